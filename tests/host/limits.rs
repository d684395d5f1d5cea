// SPDX-License-Identifier: MIT OR Apache-2.0

//! A limit of the process is told as that. It is no reason to do the work worse, or to say that the kernel can't.

use std::os::unix::process::CommandExt;
use std::process::Output;

use nix::sys::resource::{Resource, setrlimit};
use serde_json::Value;

use crate::support::{bpftk, emulated, output, root, stderr, stdout};

/// Runs bpftk with so many open files, which it may raise to `hard`.
fn with_files(args: &[&str], soft: u64, hard: u64) -> Output {
    let mut command = bpftk(args);
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?));
    }
    command.output().expect("bpftk runs")
}

fn last_line(output: &Output) -> Value {
    let text = stdout(output);
    serde_json::from_str(text.lines().last().unwrap_or_else(|| panic!("{}", stderr(output))))
        .unwrap()
}

/// Where no thread can be made, that is an error with the limit named, and no panic.
#[test]
fn no_more_threads_are_a_limit() {
    if !root() {
        return;
    }
    for args in [
        &["tcpconnect", "-d", "100ms"][..],
        &["tc-egress", "lo", "-d", "100ms"],
        &["sockredir", "preflight", "-d", "100ms"],
        &["doctor"],
        &["filter", "capture", "lo", "-d", "100ms", "arp"],
    ] {
        let mut command = bpftk(args);
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let again = libc::SECCOMP_RET_ERRNO | libc::EAGAIN as u32;
                // The C library takes the second where the kernel has no first.
                let nothing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
                crate::support::seccomp::answer(libc::SYS_clone3, nothing, 0);
                crate::support::seccomp::answer(libc::SYS_clone, again, 0);
                Ok(())
            });
        }
        let output = command.output().unwrap();
        let text = format!("{}{}", stderr(&output), stdout(&output));
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains("`ulimit -u`"), "{args:?}: {text}");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
    }
}

/// What a run that has all that it needs says at its end. It is compared without what differs from run to run.
fn back_ends(output: &Output) -> Vec<Value> {
    stdout(output)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| line["backend"].clone())
        .filter(|backend| !backend.is_null())
        .collect()
}

/// Numbers of open files from too few to enough: at each another step fails.
#[test]
fn too_few_open_files_are_told_and_nothing_poorer_is_used() {
    if !root() {
        return;
    }
    for command in ["clone-trace", "tcpconnect", "doctor"] {
        let mut args = vec![command, "--format", "json"];
        if command != "doctor" {
            args.extend(["-d", "1ms"]);
        }
        let usual = output(&args);
        let enough = |output: &Output| output.status.code() == usual.status.code();
        let mut files = 6;
        let mut failed = 0;
        loop {
            let run = with_files(&args, files, files);
            let text = stderr(&run);
            if enough(&run) {
                assert_eq!(back_ends(&run), back_ends(&usual), "{command} with {files}");
                break;
            }
            assert_eq!(run.status.code(), Some(1), "{command} with {files}: {text}");
            assert!(text.contains("`ulimit -n`"), "{command} with {files}: {text}");
            assert_eq!(text.lines().count(), 1, "{command} with {files}: {text}");
            assert!(files < 200, "{command}: {text}");
            failed += 1;
            // Under software emulation each takes seconds.
            files += if emulated() { 29 } else { 5 };
        }
        assert!(failed > 0, "{command} was never short of files");
        println!("{command}: {files} files are enough");
    }
}

#[test]
fn a_soft_limit_is_raised() {
    if !root() {
        return;
    }
    let args = ["tcpconnect", "-d", "1ms", "--format", "json"];
    let run = with_files(&args, 8, 1000);
    assert!(run.status.success(), "{}", stderr(&run));
    assert_eq!(last_line(&run)["backend"], last_line(&output(&args))["backend"]);
}
