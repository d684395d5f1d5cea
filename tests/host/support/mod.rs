// SPDX-License-Identifier: MIT OR Apache-2.0

//! Running bpftk as its user would, and places to make traffic in.

mod actor;
mod bare;
pub(crate) mod bypass;
mod cgroup;
pub(crate) mod dns;
mod netns;
mod objects;
mod running;
pub(crate) mod seccomp;
mod socket;
pub(crate) mod wire;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

pub(crate) use actor::{Actor, Stage};
pub(crate) use bare::{BARE_BYTES, BEHIND_BARE, Bare};
pub(crate) use cgroup::Cgroup;
pub(crate) use netns::{Netns, ip, silent_network};
pub(crate) use objects::{map_entries, programs, programs_left, programs_left_after};
pub(crate) use running::{Run, Running};
pub(crate) use socket::{Tcp, sockaddr};

/// The binary under test: `BPFTK_BIN` in a guest, cargo's elsewhere.
pub(crate) fn bpftk_path() -> PathBuf {
    std::env::var_os("BPFTK_BIN").map_or_else(|| env!("CARGO_BIN_EXE_bpftk").into(), PathBuf::from)
}

pub(crate) fn bpftk(args: &[&str]) -> Command {
    let mut command = Command::new(bpftk_path());
    command.args(args);
    // An emulated processor takes four seconds to make tables of the usual size.
    let sized = args.iter().any(|arg| ["--max-entries", "--events"].contains(arg));
    if emulated() && args.first() == Some(&"tc-egress") && !sized {
        command.args(["--max-entries", "2048"]);
    }
    command
}

/// Whether this is a guest of the kernel matrix, where everything takes long.
pub(crate) fn emulated() -> bool {
    std::env::var_os("BPFTK_VM").is_some()
}

/// Whether it comes true in so many seconds.
pub(crate) fn within(seconds: u64, mut holds: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if begin.elapsed() > Duration::from_secs(seconds) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs bpftk to its end.
pub(crate) fn output(args: &[&str]) -> Output {
    bpftk(args).output().expect("bpftk runs")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether this test can do its work. Says why when it can't.
pub(crate) fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP needs root, to load BPF programs");
    }
    root
}

/// The back ends of `command` that this kernel has. At least one: a kernel that has none fails the test.
pub(crate) fn backends(command: &str, all: &[&'static str]) -> Vec<&'static str> {
    let here: Vec<&str> = all
        .iter()
        .copied()
        .filter(|backend| {
            let output = output(&[command, "--backend", backend, "-d", "10ms"]);
            match output.status.code() {
                Some(0) => true,
                // A program that the verifier refuses is our mistake, whatever the kernel.
                Some(4) if !stderr(&output).contains("refuses the programs") => {
                    println!("back end {backend} is not offered here: {}", stderr(&output).trim());
                    false
                }
                _ => panic!("{command} --backend {backend}: {}", stderr(&output)),
            }
        })
        .collect();
    assert!(!here.is_empty(), "no back end of {command} works");
    here
}

/// Runs bpftk with options that are wrong, and checks that it says so in one line that has `parts`.
pub(crate) fn assert_usage(args: &[&str], parts: &[&str]) {
    let output = output(args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    assert!(text.starts_with("bpftk: "), "{args:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{args:?}: no `{part}` in: {text}");
    }
}

/// Makes `command` run without privileges.
pub(crate) fn as_nobody(command: &mut Command) -> &mut Command {
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setgroups(&[])?;
            nix::unistd::setgid(65534.into())?;
            nix::unistd::setuid(65534.into())?;
            Ok(())
        })
    }
}

/// A copy of bpftk where anybody may run it.
pub(crate) fn public_copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(bpftk_path(), dir.path().join("bpftk")).unwrap();
    dir
}
