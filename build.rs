// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compiles every `bpf/*.bpf.c`, and those of the tests, and writes their skeletons to `OUT_DIR`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libbpf_cargo::SkeletonBuilder;
use object::{Object, ObjectSection};

/// The first clang whose BPF back end emits every relocation that the programs use
/// (`__builtin_preserve_type_info`, BTF for 64-bit enums).
const OLDEST_CLANG: u32 = 15;

fn main() {
    println!("cargo:rerun-if-env-changed=CLANG");
    println!("cargo:rerun-if-env-changed=PATH");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let vmlinux = root.join("vmlinux").join(&arch);
    if !vmlinux.join("vmlinux.h").exists() {
        fail(&format!("no vmlinux/{arch}/vmlinux.h: bpftk builds for x86_64 and aarch64"));
    }
    println!("cargo:rerun-if-changed={}", vmlinux.display());

    if env::var_os("CARGO_FEATURE_STATIC").is_some() {
        link_libpcap(&out, &arch);
    }

    let clang = find_clang();
    let mut sources = Vec::new();
    let headers = root.join("bpf");
    for directory in [&headers, &root.join("tests/bpf")] {
        for entry in fs::read_dir(directory).expect("it is part of the source") {
            let path = entry.expect("it is readable").path();
            println!("cargo:rerun-if-changed={}", path.display());
            if path.to_string_lossy().ends_with(".bpf.c") {
                sources.push(path);
            }
        }
        println!("cargo:rerun-if-changed={}", directory.display());
    }
    sources.sort();
    for source in sources {
        build(&source, &clang, &[&vmlinux, &headers], &out);
    }
}

fn build(source: &Path, clang: &Path, includes: &[&Path], out: &Path) {
    let file = source.file_name().expect("a file").to_string_lossy();
    let stem = file.strip_suffix(".bpf.c").expect("filtered by the caller");
    let object = out.join(format!("{stem}.bpf.o"));
    let mut arguments = vec![
        "-Wall".into(),
        "-Werror".into(),
        // The headers from BTF declare bit fields and anonymous members as the kernel has them.
        "-Wno-missing-declarations".into(),
        "-mcpu=v3".into(),
    ];
    for include in includes {
        arguments.extend(["-I".into(), include.as_os_str().to_os_string()]);
    }
    let built = SkeletonBuilder::new()
        .source(source)
        .obj(&object)
        .clang(clang)
        .clang_args(arguments)
        .reference_obj(true)
        .build_and_generate(out.join(format!("{stem}.skel.rs")));
    if let Err(error) = built {
        fail(&format!("{}: {error:#}", source.display()));
    }
    let types = match fs::read(&object).map_err(Into::into).and_then(|elf| relocated_types(&elf)) {
        Ok(types) => types,
        Err(error) => fail(&format!("{}: {error}", object.display())),
    };
    fs::write(out.join(format!("{stem}.types")), types).expect("OUT_DIR can be written");
}

/// The names of the kernel types that an object's relocations refer to, one a line: what `src/kernel/btf` looks for.
/// Format: Documentation/bpf/btf.rst in the kernel's source.
fn relocated_types(elf: &[u8]) -> Result<String, Box<dyn std::error::Error>> {
    let file = object::File::parse(elf)?;
    let section = |name: &str| -> Result<&[u8], Box<dyn std::error::Error>> {
        Ok(file.section_by_name(name).ok_or(format!("no section {name}"))?.data()?)
    };
    let (btf, ext) = (section(".BTF")?, section(".BTF.ext")?);
    let word = |bytes: &[u8], at: usize| -> Result<usize, Box<dyn std::error::Error>> {
        let field = bytes.get(at..at + 4).ok_or("BTF is cut short")?;
        Ok(u32::from_le_bytes(field.try_into()?) as usize)
    };

    let body = word(btf, 4)?;
    let types = &btf[body + word(btf, 8)?..][..word(btf, 12)?];
    let strings = &btf[body + word(btf, 16)?..][..word(btf, 20)?];
    // Where each type starts, by its id; 0 is void.
    let mut starts = vec![0];
    let mut at = 0;
    while at < types.len() {
        starts.push(at);
        let info = word(types, at + 4)?;
        let count = info & 0xffff;
        at += 12
            + match info >> 24 & 0x1f {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => 0,
            };
    }

    let relocations = word(ext, 4)? + word(ext, 24)?;
    let relocations = &ext[relocations..][..word(ext, 28)?];
    let mut names = std::collections::BTreeSet::new();
    if relocations.is_empty() {
        return Ok(String::new());
    }
    let record = word(relocations, 0)?;
    let mut at = 4;
    while at < relocations.len() {
        let count = word(relocations, at + 4)?;
        at += 8;
        for _ in 0..count {
            let id = word(relocations, at + 4)?;
            let name = &strings[word(types, starts[id])?..];
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            let name = std::str::from_utf8(name)?;
            // What follows three underscores tells our variants of a type apart, not the kernel's.
            names.insert(name.split("___").next().unwrap_or(name).to_string());
            at += record;
        }
    }
    Ok(names.into_iter().collect::<Vec<_>>().join("\n"))
}

/// Links libpcap statically: only its compiler of expressions and its interpreter.
///
/// libpcap.a also refers to every way of capturing that it was built with, and these to D-Bus, InfiniBand and whatnot. In
/// a copy of the archive those references are made weak, so that the linker leaves all of that out. The calls that
/// look names up are renamed to functions of src/filter/libpcap/lookups.rs, which says why.
fn link_libpcap(out: &Path, arch: &str) {
    println!("cargo:rerun-if-env-changed=LIBPCAP_LIBDIR");
    println!("cargo:rerun-if-env-changed=OBJCOPY");
    const LOOKUPS: [&str; 6] = [
        "getaddrinfo",
        "freeaddrinfo",
        "getprotobyname_r",
        "getnetbyname_r",
        "ether_hostton",
        "gethostbyname",
    ];
    const CAPTURING: [&str; 5] =
        ["*_create", "*_findalldevs", "pcap_create_interface", "*_platform_finddevs", "dbus_*"];
    let places = match env::var_os("LIBPCAP_LIBDIR") {
        Some(place) => vec![PathBuf::from(place)],
        None => [format!("/usr/lib/{arch}-linux-gnu"), "/usr/lib64".into(), "/usr/lib".into()]
            .map(PathBuf::from)
            .to_vec(),
    };
    let Some(archive) = places.iter().map(|place| place.join("libpcap.a")).find(|a| a.exists())
    else {
        fail(
            "no libpcap.a, which the feature `static` links. Install it (`make deps-test`; Debian: libpcap0.8-dev), \
             or name its directory in $LIBPCAP_LIBDIR.",
        )
    };
    println!("cargo:rerun-if-changed={}", archive.display());
    let copy = out.join("libbpftk_pcap.a");
    let objcopy = env::var_os("OBJCOPY").unwrap_or_else(|| "objcopy".into());
    let mut command = Command::new(&objcopy);
    command.arg("--wildcard");
    command.args(CAPTURING.map(|symbol| format!("--weaken-symbol={symbol}")));
    command.args(LOOKUPS.map(|symbol| format!("--redefine-sym={symbol}=bpftk_{symbol}")));
    match command.arg(&archive).arg(&copy).status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("objcopy of {}: {status}", archive.display())),
        Err(error) => fail(&format!("{}: {error}", Path::new(&objcopy).display())),
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=bpftk_pcap");
}

/// `$CLANG`, else the newest of `clang` and `clang-NN` on the path.
fn find_clang() -> PathBuf {
    let asked = env::var_os("CLANG").filter(|clang| !clang.is_empty());
    let candidates = match &asked {
        Some(clang) => vec![PathBuf::from(clang)],
        None => {
            let numbered = (OLDEST_CLANG..=40).rev().map(|n| format!("clang-{n}"));
            numbered.chain(["clang".into()]).map(PathBuf::from).collect()
        }
    };
    let found = candidates
        .into_iter()
        .filter_map(|clang| Some((clang_version(&clang)?, clang)))
        .max_by_key(|(version, _)| *version);
    match found {
        Some((version, clang)) if version >= OLDEST_CLANG => clang,
        Some((version, clang)) => fail(&format!(
            "{} is version {version}; the BPF programs need clang {OLDEST_CLANG} or newer. \
             Install one (`make deps`) or name it in $CLANG.",
            clang.display()
        )),
        None => fail(&match asked {
            Some(clang) => format!("$CLANG names `{}`, which does not run", clang.display()),
            None => "no clang found to compile bpf/*.bpf.c. \
                     Install it with `make deps`, or name one in $CLANG."
                .into(),
        }),
    }
}

fn clang_version(clang: &Path) -> Option<u32> {
    let output = Command::new(clang).arg("-dumpversion").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim().split('.').next()?.parse().ok()
}

fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo:error={line}");
    }
    std::process::exit(1)
}
