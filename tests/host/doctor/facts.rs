// SPDX-License-Identifier: MIT OR Apache-2.0

//! What works here, and why not.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use super::{alone, doctor, kernel_version, lines, rows, usual_status};
use crate::support;

fn fact(output: &Output, name: &str) -> (Option<String>, String) {
    let facts = rows(output, "fact");
    let row = facts.iter().find(|row| row["name"] == name).expect(name);
    (
        row["status"].as_str().map(str::to_string),
        row["detail"].as_str().unwrap_or_default().to_string(),
    )
}

fn is_yes(output: &Output, name: &str) -> bool {
    let (status, detail) = fact(output, name);
    match status.as_deref() {
        Some("yes") => true,
        Some("no") => false,
        other => panic!("{name}: {other:?} {detail}"),
    }
}

const FACTS: [&str; 22] = [
    "kernel",
    "architecture",
    "capabilities",
    "lockdown",
    "BTF",
    "unprivileged BPF",
    "bpf(2)",
    "JIT",
    "memlock",
    "kprobes",
    "fentry",
    "tracepoints",
    "raw tracepoints",
    "ring buffer",
    "tcx",
    "XDP link",
    "cgroup v2",
    "bpffs",
    "tracefs",
    "IPv6",
    "io_uring",
    "sockmap fixes",
];

#[test]
fn shows_commands_and_facts() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    let output = doctor(&[]);
    let text = support::stdout(&output);
    assert_eq!(output.status.code(), usual_status(), "{text}");
    let mut tables = text.split("\n\n");
    let commands = tables.next().unwrap();
    assert!(commands.starts_with("COMMAND"), "{text}");
    assert!(commands.contains("\ntcpconnect"), "{text}");
    let facts = tables.next().unwrap();
    assert!(facts.starts_with("FACT"), "{text}");
    for name in FACTS {
        assert!(facts.lines().any(|line| line.starts_with(name)), "{name}: {text}");
    }
    assert!(tables.next().is_some(), "leftovers, or that there are none: {text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "fits a terminal: {line}");
    }
    let headless = support::stdout(&doctor(&["--no-header"]));
    assert!(!headless.contains("COMMAND") && headless.contains("tcpconnect"), "{headless}");
    let colored = support::stdout(&doctor(&["--color", "always"]));
    assert!(colored.contains("\x1b[1mFACT"), "{colored}");
}

#[test]
fn writes_json_and_csv() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    let output = doctor(&["--format", "json"]);
    assert_eq!(output.status.code(), usual_status());
    let names: Vec<String> =
        rows(&output, "fact").iter().map(|row| row["name"].as_str().unwrap().to_string()).collect();
    assert_eq!(names, FACTS);
    let commands = rows(&output, "command");
    for row in &commands {
        let works = row["name"] != "sockredir" || usual_status() == Some(0);
        assert_eq!(row["status"], if works { "ok" } else { "unavailable" }, "{row}");
    }
    assert!(commands.iter().any(|row| row["name"] == "tcpconnect"));
    let all = lines(&output);
    let (summary, rows) = all.split_last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["commands"], commands.len());
    assert_eq!(summary["unavailable"], u64::from(usual_status() != Some(0)));
    assert!(summary["leftovers"].is_u64(), "{summary}");
    let keys = |row: &Value| -> Vec<String> { row.as_object().unwrap().keys().cloned().collect() };
    for row in rows {
        assert_eq!(row["type"], "row");
        assert_eq!(keys(row), keys(&rows[0]), "every field always");
    }

    let csv = support::stdout(&doctor(&["--format", "csv"]));
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    assert_eq!(&reader.headers().unwrap()[0], "table");
    let count = reader.records().map(|record| assert!(!record.unwrap()[1].is_empty())).count();
    assert!(count >= FACTS.len() + commands.len(), "{csv}");
}

/// The back end that doctor names is the one that the command takes.
#[test]
fn names_the_back_end_that_is_used() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    let output = doctor(&["--format", "json"]);
    for row in rows(&output, "command") {
        let name = row["name"].as_str().unwrap();
        // Commands of interfaces are tried on one; what has no back end but a library says so.
        let more: &[&str] = match name {
            "filter" => {
                assert_eq!(row["backend"], "libpcap");
                continue;
            }
            "xdp-drop" | "tc-drop" => &["lo", "--dry-run"],
            "tc-egress" => &["lo"],
            // Nobody's connections are to be changed by this.
            "sockredir" => &["--all", "--exclude-port", "1-65535"],
            _ => &[],
        };
        let run = support::output(&[&[name, "-d", "10ms", "--format", "json"][..], more].concat());
        if row["status"] == "unavailable" {
            assert_eq!(run.status.code(), Some(4), "{name}: {row}");
            continue;
        }
        let summary = lines(&run).pop().unwrap();
        assert_eq!(summary["backend"], row["backend"], "{name}");
    }
}

/// What can be known in another way is the same.
#[test]
fn tells_the_truth() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    let output = doctor(&["--format", "json"]);
    let kprobes = Path::new("/sys/bus/event_source/devices/kprobe").exists();
    assert_eq!(is_yes(&output, "kprobes"), kprobes);
    let fentry = support::output(&["tcpconnect", "--backend", "fentry", "-d", "10ms"]);
    assert_eq!(is_yes(&output, "fentry"), fentry.status.success());
    assert!(is_yes(&output, "ring buffer") && is_yes(&output, "XDP link"));
    assert!(is_yes(&output, "memlock") && is_yes(&output, "tracepoints"));
    assert!(is_yes(&output, "capabilities") && is_yes(&output, "raw tracepoints"));
    assert_eq!(is_yes(&output, "BTF"), Path::new("/sys/kernel/btf/vmlinux").exists());
    assert_eq!(is_yes(&output, "IPv6"), Path::new("/proc/net/if_inet6").exists());

    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(fact(&output, "kernel"), (None, release.trim().to_string()));
    assert_eq!(fact(&output, "architecture").1, std::env::consts::ARCH);
    assert_eq!(is_yes(&output, "tcx"), kernel_version() >= vec![6, 6], "{release}");

    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap();
    assert_eq!(is_yes(&output, "JIT"), jit.trim() != "0");
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    for (name, fstype) in [("cgroup v2", "cgroup2"), ("bpffs", "bpf"), ("tracefs", "tracefs")] {
        let point = mounts.lines().find_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[2] == fstype).then(|| words[1].to_string())
        });
        match point {
            Some(_) => assert!(is_yes(&output, name)),
            // Then bpftk has a tracefs of its own.
            None => assert_eq!(is_yes(&output, name), name == "tracefs"),
        }
        let (_, detail) = fact(&output, name);
        let shown = detail.split(' ').next().unwrap();
        assert!(
            point.is_none() || mounts.contains(&format!(" {shown} {fstype} ")),
            "{name}: {detail}"
        );
    }
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    match fact(&output, "lockdown").0.as_deref() {
        Some("yes") => assert!(!lockdown.contains("[none]"), "{lockdown}"),
        Some("no") => assert!(lockdown.is_empty() || lockdown.contains("[none]")),
        other => assert!(other == Some("unknown") && lockdown.is_empty(), "{other:?}"),
    }
}

#[test]
fn without_privileges_says_what_it_could_not_try() {
    if !support::root() {
        return;
    }
    // Wherever the tests were built, nobody may run it from here.
    let copy = std::env::temp_dir().join(format!("bpftk-doctor-{}", std::process::id()));
    fs::copy(support::bpftk_path(), &copy).unwrap();
    for format in ["table", "json"] {
        let output = std::process::Command::new(&copy)
            .args(["doctor", "--format", format])
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        let text = support::stdout(&output);
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.contains("CAP_BPF"), "{text}");
        if format == "table" {
            assert!(text.contains("Leftovers were not looked for"), "{text}");
            assert!(support::stderr(&output).contains("no back end for clone-trace, tcpconnect"));
            continue;
        }
        for name in
            ["bpf(2)", "JIT", "memlock", "kprobes", "fentry", "ring buffer", "tcx", "XDP link"]
        {
            let (status, detail) = fact(&output, name);
            assert_eq!(status.as_deref(), Some("not tried"), "{name}");
            assert!(detail.contains("CAP_BPF"), "{name}: {detail}");
        }
        assert!(!is_yes(&output, "capabilities"));
        let command = rows(&output, "command").remove(0);
        assert_eq!(command["status"], "unavailable");
        assert!(command["detail"].as_str().unwrap().contains("CAP_PERFMON"), "{command}");
        let summary = lines(&output).pop().unwrap();
        assert!(summary["leftovers"].is_null(), "{summary}");
        assert!(summary["leftovers_unknown"].as_str().unwrap().contains("CAP_SYS_ADMIN"));
    }
    let output = std::process::Command::new(&copy)
        .args(["doctor", "--cleanup"])
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    fs::remove_file(copy).unwrap();
}

/// Before Linux 5.11 maps count against a limit, and what is refused looks as if BPF were forbidden.
#[test]
fn names_the_limit_on_memory() {
    use nix::sys::resource::{Resource, setrlimit};
    const CAP_SYS_RESOURCE: std::ffi::c_ulong = 24;
    if !support::root() {
        return;
    }
    let _alone = alone();
    let mut command = support::bpftk(&["doctor", "--format", "json"]);
    // SAFETY: two system calls.
    unsafe {
        command.pre_exec(|| {
            setrlimit(Resource::RLIMIT_MEMLOCK, 1 << 16, 1 << 16)?;
            // Else libbpf raises it.
            nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, CAP_SYS_RESOURCE, 0, 0, 0);
            Ok(())
        });
    }
    let output = command.output().unwrap();
    let counted = kernel_version() < vec![5, 11];
    assert_eq!(is_yes(&output, "memlock"), !counted);
    assert!(fact(&output, "memlock").1.contains("64 KiB"));
    let command = rows(&output, "command").remove(0);
    if counted {
        assert_eq!(output.status.code(), Some(3));
        let why = command["detail"].as_str().unwrap();
        assert!(why.contains("64 KiB") && why.contains("ulimit -l"), "{why}");
    } else {
        assert_eq!(command["status"], "ok", "{command}");
    }
}

#[test]
fn takes_types_from_a_file_and_says_when_they_do_not_fit() {
    let refused = doctor(&["--btf", "/no/such/file"]);
    assert_eq!(refused.status.code(), Some(2), "{}", support::stderr(&refused));
    assert!(support::stderr(&refused).contains("/no/such/file"));
    if !support::root() {
        return;
    }
    let _alone = alone();
    // A BTF without a type: a header of 24 bytes, and strings that are one NUL.
    let path = std::env::temp_dir().join(format!("bpftk-btf-{}", std::process::id()));
    let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
    bytes.extend([1, 0]);
    for word in [24_u32, 0, 0, 0, 1] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.push(0);
    fs::write(&path, bytes).unwrap();
    let output = doctor(&["--format", "json", "--btf", path.to_str().unwrap()]);
    fs::remove_file(&path).unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", support::stdout(&output));
    for (name, backends) in [
        ("clone-trace", ["syscall", "kprobe", "task"]),
        ("tcpconnect", ["fentry", "kprobe", "tracepoint"]),
    ] {
        let rows = rows(&output, "command");
        let command = rows.iter().find(|row| row["name"] == name).unwrap();
        assert_eq!(command["status"], "unavailable");
        let why = command["detail"].as_str().unwrap();
        for backend in backends {
            assert!(why.contains(backend), "{why}");
        }
    }
    assert!(fact(&output, "BTF").1.contains(path.to_str().unwrap()));
}
