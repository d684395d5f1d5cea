// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tables, options, scopes, and the end.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;

use serde_json::json;

use super::calls::{Pair, io_uring, recv, send};
use super::{actor, perform, row, rows};
use crate::support::{self, Actor, Cgroup, Run, Running, output, programs, programs_left, stderr};

const LO: &str = "127.0.0.1";

/// Unsafe, and says at which port its server was.
fn unsafe_actor() -> Actor {
    Actor::new(|stage| {
        let pair = Pair::new(LO);
        send(pair.client(), b"abc", 0).unwrap();
        assert_eq!(recv(pair.server(), 3, libc::MSG_WAITALL), Ok(3));
        stage.put(pair.port.into());
        // The listener is there until bpftk has ended.
        stage.pause();
    })
}

/// Runs with `options`; the actor's listener is open until the end.
fn run_with(options: &[&str]) -> (u32, u16, Run) {
    let mut actor = unsafe_actor();
    let pid = actor.pid().to_string();
    let args = [&["sockredir", "preflight", "-d", "300s", "-p", &pid], options].concat();
    let running = Running::start(&args);
    actor.go();
    let port = actor.get() as u16;
    let run = running.stop();
    actor.go();
    let pid = actor.pid();
    actor.finish();
    (pid, port, run)
}

#[test]
fn the_table_says_who_and_why() {
    if !support::root() {
        return;
    }
    let (pid, _, run) = run_with(&[]);
    let lines: Vec<Vec<&str>> =
        run.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["PID", "COMM", "VERDICT", "CALLS", "WHY"], "{}", run.stdout);
    assert_eq!(lines[1][0], pid.to_string());
    assert_eq!(
        lines[1][2..],
        ["unsafe", "2", "waitall", "(1),", "blocking", "(1)"],
        "{}",
        run.stdout
    );
    assert_eq!(lines.len(), 2);
    assert!(
        run.stderr.contains("1 processes with local TCP: 0 safe, 0 with caution, 1 unsafe"),
        "{}",
        run.stderr
    );
    let last = run.stderr.lines().last().unwrap();
    assert!(last.starts_with("bpftk: not looked for: "), "{}", run.stderr);
}

#[test]
fn who_only_blocks_is_counted_apart_and_not_excluded() {
    if !support::root() {
        return;
    }
    let blocks = || {
        actor(|| {
            let pair = Pair::new(LO);
            send(pair.client(), b"abc", 0).unwrap();
            assert_eq!(recv(pair.server(), 3, 0), Ok(3));
        })
    };
    let it = blocks();
    let pid = it.pid();
    let args = ["sockredir", "preflight", "-d", "300s", "-p", &pid.to_string()];
    let run = perform(vec![it], Running::json(&args));
    let (row, summary) = (row(&run, pid), run.summary());
    assert_eq!(row["verdict"], "caution", "{row}");
    assert_eq!((&row["counts"], &row["ports"]), (&json!({"blocking": 1}), &json!([])), "{row}");
    let counts = ["safe", "caution", "unsafe"].map(|name| summary[name].clone());
    assert_eq!(counts, [0, 1, 0], "{summary}");
    assert_eq!(summary["excludes"], json!(null), "{summary}");
    assert!(!summary["not_looked_for"].as_array().unwrap().is_empty(), "{summary}");

    let mut it = blocks();
    let pid = it.pid().to_string();
    let args = ["sockredir", "preflight", "-d", "300s", "--emit-excludes", "-p", &pid];
    let running = Running::start(&args);
    it.go();
    it.finish();
    let run = running.stop();
    assert!(run.status.success() && run.stdout.is_empty(), "{} {}", run.stdout, run.stderr);
}

#[test]
fn the_options_that_keep_it_out_are_taken_by_sockredir() {
    if !support::root() {
        return;
    }
    let (_, port, run) = run_with(&["--emit-excludes"]);
    assert!(run.status.success(), "{}", run.stderr);
    assert_eq!(run.stdout, format!("--exclude-port {port}\n"), "{}", run.stderr);
    let Some(cgroup) = Cgroup::new(&format!("bpftk-preflight-{}", std::process::id())) else {
        println!("SKIP cgroup v2 is not mounted here");
        return;
    };
    let mut args = vec!["sockredir", "--cgroup", cgroup.path().to_str().unwrap(), "-d", "10ms"];
    args.extend(run.stdout.split_whitespace());
    let output = output(&args);
    // 4: this kernel can't. That is asked after the options have been read.
    assert!(matches!(output.status.code(), Some(0 | 4)), "{args:?}: {}", stderr(&output));
}

#[test]
fn what_no_port_keeps_out_is_said() {
    if !support::root() {
        return;
    }
    let mut actor = actor(io_uring);
    let pid = actor.pid().to_string();
    let args = ["sockredir", "preflight", "-d", "300s", "--emit-excludes", "-p", &pid];
    let running = Running::start(&args);
    actor.go();
    actor.finish();
    let run = running.stop();
    assert_eq!(run.status.code(), Some(1), "{}", run.stderr);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.contains("no port is known") && run.stderr.contains(&pid), "{}", run.stderr);
}

#[test]
fn nobody_is_no_table() {
    if !support::root() {
        return;
    }
    let pid = std::process::id().to_string();
    let output = output(&["sockredir", "preflight", "-d", "10ms", "-p", &pid]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(support::stdout(&output), "No process used local TCP connections.\n");
    let output =
        support::output(&["sockredir", "preflight", "-d", "10ms", "-p", &pid, "--emit-excludes"]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", stderr(&output));
}

#[test]
fn csv_has_the_schema() {
    if !support::root() {
        return;
    }
    let (pid, port, run) = run_with(&["--format", "csv"]);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines[0], "pid,comm,uid,cgroup,verdict,calls,reasons,counts,ports");
    assert!(lines[1].starts_with(&format!("{pid},")), "{}", run.stdout);
    assert!(
        lines[1].ends_with(&format!(",unsafe,2,\"waitall,blocking\",waitall=1 blocking=1,{port}")),
        "{}",
        run.stdout
    );
}

#[test]
fn the_scope_is_a_cgroup_or_processes() {
    if !support::root() {
        return;
    }
    let Some(cgroup) = Cgroup::new(&format!("bpftk-preflight-in-{}", std::process::id())) else {
        println!("SKIP cgroup v2 is not mounted here");
        return;
    };
    let use_it = || {
        let pair = Pair::new(LO);
        send(pair.client(), b"abc", 0).unwrap();
    };
    let (inside, outside) = (actor(use_it), actor(use_it));
    let (pid, other) = (inside.pid(), outside.pid());
    fs::write(cgroup.path().join("cgroup.procs"), pid.to_string()).unwrap();
    let path = cgroup.path().to_str().unwrap();
    let running = Running::json(&["sockredir", "preflight", "-d", "300s", "--cgroup", path]);
    let run = perform(vec![inside, outside], running);
    let row = row(&run, pid);
    assert!(row["cgroup"].as_str().unwrap().ends_with(&path[path.rfind('/').unwrap()..]), "{row}");
    assert!(rows(&run).iter().all(|row| row["pid"] != other), "{}", run.stdout);
}

/// A kernel that says that it is another one: that it isn't known to be sound is why it is refused.
#[test]
fn a_kernel_that_is_too_old_is_refused_and_force_does_not_help() {
    if !support::root() {
        return;
    }
    let Some(cgroup) = Cgroup::new(&format!("bpftk-gate-{}", std::process::id())) else {
        println!("SKIP cgroup v2 is not mounted here");
        return;
    };
    let run = |args: &[&str]| {
        let path = cgroup.path().to_str().unwrap();
        let all = [&["sockredir", "--cgroup", path, "-d", "10ms"], args].concat();
        let mut command = support::bpftk(&all);
        // SAFETY: between fork and exec there is one system call.
        unsafe {
            command.pre_exec(|| {
                // include/uapi/linux/personality.h: uname(2) says 2.6.
                const UNAME26: libc::c_ulong = 0x002_0000;
                libc::personality(UNAME26);
                Ok(())
            });
        }
        command.output().unwrap()
    };
    for args in [&[][..], &["--force"]] {
        let refused = run(args);
        let text = stderr(&refused);
        assert_eq!(refused.status.code(), Some(4), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("bpftk: Linux 2.6."), "{text}");
        assert!(text.contains("is too old for sockredir, which needs Linux 6.1"), "{text}");
    }
}

#[test]
fn nothing_is_left_after_a_kill() {
    if !support::root() {
        return;
    }
    let running = Running::start(&["sockredir", "preflight", "-d", "300s"]);
    let ids = programs(running.pid());
    assert!(!ids.is_empty());
    running.kill();
    assert_eq!(programs_left(&ids), [0; 0]);
}

#[test]
fn without_capabilities_it_says_which() {
    if !support::root() {
        return;
    }
    let file = fs::File::open(support::bpftk_path()).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let copy = std::env::temp_dir().join(format!("bpftk-preflight-{}", std::process::id()));
    fs::copy(path, &copy).unwrap();
    fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = std::process::Command::new(&copy)
        .args(["sockredir", "preflight", "-d", "1ms"])
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    fs::remove_file(&copy).unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("CAP_BPF") && text.lines().count() == 1, "{text}");
}
