// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tables, options, refusals, and the end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use serde_json::Value;

use super::calls::{call_me, clone_exit};
use super::{backends, call_backends, start, vm};
use crate::support::{
    self, Actor, Cgroup, Running, bpftk, output, programs, programs_left, stderr,
};

#[test]
fn names_are_escaped_and_lines_fit() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let mut actor = Actor::new(|_| {
            call_me("\x1b[31mx");
            clone_exit(libc::SIGCHLD as u64);
            std::thread::spawn(|| ()).join().unwrap();
            clone_exit(libc::CLONE_THREAD as u64);
        });
        let pid = actor.pid().to_string();
        let running = Running::start(&["clone-trace", "--backend", backend, "-p", &pid]);
        actor.go();
        actor.finish();
        let run = running.stop();
        assert!(!run.stdout.contains('\x1b'), "{backend}: {:?}", run.stdout);
        let lines: Vec<Vec<&str>> =
            run.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(run.stdout.lines().all(|line| line.len() <= 80), "{}", run.stdout);
        assert_eq!(lines[0], ["PID", "COMM", "CALL", "CHILD", "KIND", "FLAGS"]);
        assert_eq!(&lines[1][..2], [pid.as_str(), "\\x1b[31mx"]);
        assert_eq!(&lines[1][4..], ["process", "-"]);
        assert_eq!(&lines[2][4..], ["thread", "PTHREAD"]);
        if *backend == "task" {
            assert_eq!(lines.len(), 3, "{}", run.stdout);
        } else {
            assert_eq!(&lines[3][2..], ["clone", "EINVAL", "thread", "THREAD"]);
        }
    }
}

#[test]
fn more_columns() {
    if !support::root() {
        return;
    }
    for backend in call_backends() {
        let mut actor = Actor::new(|stage| stage.put(clone_exit(libc::SIGCHLD as u64)));
        let pid = actor.pid().to_string();
        let args = ["clone-trace", "--backend", backend, "-p", &pid];
        let more = ["-T", "-U", "-P", "--print-cgroup", "--latency", "--args"];
        let running = Running::start(&[&args[..], &more].concat());
        actor.go();
        let child = actor.finish()[0].to_string();
        let run = running.stop();
        let mut lines = run.stdout.lines();
        let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            header,
            [
                "TIME", "USER", "PPID", "PID", "COMM", "CALL", "CHILD", "KIND", "LATENCY",
                "CGROUP", "FLAGS", "ARGS"
            ]
        );
        let cells: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(cells[1], "root");
        assert_eq!(cells[2], std::process::id().to_string());
        assert_eq!((cells[3], cells[6]), (pid.as_str(), child.as_str()));
        assert!(cells[8].ends_with("ms"), "{cells:?}");
        assert!(cells[11..].contains(&"exit_signal=SIGCHLD"), "{cells:?}");
    }
}

#[test]
fn it_stops_after_so_many_rows() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let mut actor = Actor::new(|_| {
            for _ in 0..20 {
                clone_exit(libc::SIGCHLD as u64);
            }
        });
        let running = start(backend, actor.pid(), &["-n", "3"]);
        actor.go();
        let run = running.wait();
        actor.finish();
        assert!(run.status.success());
        assert_eq!(run.events().len(), 3, "{backend}");
        assert_eq!(run.summary()["calls"], 3);
    }
}

#[test]
fn counts_add_up() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let mut actor = Actor::new(|stage| {
            call_me("counted");
            for round in 0..2 {
                for _ in 0..5 {
                    clone_exit(libc::SIGCHLD as u64);
                }
                std::thread::spawn(|| ()).join().unwrap();
                clone_exit(libc::CLONE_THREAD as u64);
                if round == 0 {
                    stage.put(0);
                    stage.pause();
                }
            }
        });
        let running = start(backend, actor.pid(), &["--count", "-i", "100ms"]);
        actor.go();
        actor.get();
        // Into another interval.
        std::thread::sleep(Duration::from_millis(250));
        actor.go();
        actor.finish();
        std::thread::sleep(Duration::from_millis(250));
        let run = running.stop();
        let rows: Vec<Value> =
            run.json().into_iter().filter(|line| line["type"] == "row").collect();
        let sum = |scope: &str, kind: &str| -> (u64, u64) {
            rows.iter()
                .filter(|row| {
                    row["scope"] == scope && row["kind"] == kind && row["comm"] == "counted"
                })
                .fold((0, 0), |(calls, failures), row| {
                    (
                        calls + row["calls"].as_u64().unwrap(),
                        failures + row["failures"].as_u64().unwrap(),
                    )
                })
        };
        let threads = if *backend == "task" { (2, 0) } else { (4, 2) };
        for scope in ["interval", "total"] {
            assert_eq!(sum(scope, "process"), (10, 0), "{backend} {scope}: {}", run.stdout);
            assert_eq!(sum(scope, "thread"), threads, "{backend} {scope}: {}", run.stdout);
        }
        let totals: Vec<&Value> = rows.iter().filter(|row| row["scope"] == "total").collect();
        assert_eq!(totals.len(), 2, "{backend}");
        assert_eq!(totals[0]["kind"], "process", "the most first");
        assert!(rows.len() > 4, "{backend}: two intervals had calls");
    }
}

#[test]
fn every_pair_of_options_loads_on_every_back_end() {
    if !support::root() {
        return;
    }
    let pid = std::process::id().to_string();
    let made = Cgroup::new(&format!("bpftk-pairs-{pid}"));
    let cgroup = made.as_ref().map(|cgroup| cgroup.path().to_str().unwrap().to_string());
    let options: [&[&str]; 7] = [
        &["-p", &pid],
        &["-u", "root"],
        &["--comm", "x"],
        &["--cgroup", cgroup.as_deref().unwrap_or("/none")],
        &["--kind", "thread,vfork"],
        &["--failed"],
        &["--args"],
    ];
    let mut sets: Vec<Vec<usize>> = vec![vec![], (0..options.len()).collect(), (0..5).collect()];
    for a in 0..options.len() {
        sets.push(vec![a]);
        // Under software emulation each of them takes a second.
        if !vm() {
            sets.extend((a + 1..options.len()).map(|b| vec![a, b]));
        }
    }
    for backend in backends() {
        for set in &sets {
            let mut args = vec!["clone-trace", "--backend", backend, "-d", "1ms"];
            set.iter().for_each(|&i| args.extend(options[i]));
            let contradiction = *backend == "task" && set.iter().any(|&i| i >= 5);
            if set.contains(&3) && cgroup.is_none() {
                continue;
            }
            let output = output(&args);
            let expected = if contradiction { 2 } else { 0 };
            assert_eq!(output.status.code(), Some(expected), "{args:?}: {}", stderr(&output));
        }
    }
}

#[test]
fn without_capabilities_it_says_which() {
    if !support::root() {
        return;
    }
    // Where nobody may run it.
    let dir = std::env::temp_dir().join(format!("bpftk-nobody-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let binary = dir.join("bpftk");
    fs::copy(support::bpftk_path(), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let output = std::process::Command::new(&binary)
        .args(["clone-trace", "-d", "1ms"])
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("CAP_BPF") && text.lines().count() == 1, "{text}");
}

#[test]
fn nothing_is_left_after_a_kill() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let running = Running::start(&["clone-trace", "--backend", backend]);
        let ids = programs(running.pid());
        assert!(!ids.is_empty(), "{backend}");
        running.kill();
        assert_eq!(programs_left(&ids), [0; 0], "{backend}");
    }
}

#[test]
fn a_reader_that_leaves_is_a_clean_end() {
    if !support::root() {
        return;
    }
    let mut child = bpftk(&["clone-trace"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut byte = [0];
    // The header: it is armed.
    std::io::Read::read_exact(&mut out, &mut byte).unwrap();
    drop(out);
    assert!(child.wait().unwrap().success());
}
