// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many namespaces, and those that can't be looked into.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;

use crate::support::{self, Cgroup, Running};

/// Processes, each in a network namespace of its own, until it is dropped.
struct Apart(Vec<Child>);

impl Apart {
    fn new(many: usize) -> Self {
        let start = |_| {
            let mut command = Command::new("sleep");
            // SAFETY: between fork and exec there is one system call.
            unsafe {
                command.pre_exec(|| Ok(nix::sched::unshare(CloneFlags::CLONE_NEWNET)?));
            }
            command.arg("600").spawn().expect("sleep")
        };
        Self((0..many).map(start).collect())
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Processes that take all the time that there is, until it is dropped.
struct Busy(Vec<Child>);

impl Busy {
    fn new(many: usize) -> Self {
        let start = |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]).spawn().expect("a shell")
        };
        Self((0..many).map(start).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn nobody() -> Vec<&'static str> {
    vec!["sockredir", "preflight", "-d", "300s", "-p", "1"]
}

#[test]
fn every_namespace_that_can_be_looked_into_is() {
    if !support::root() {
        return;
    }
    let _apart = Apart::new(3);
    let run = Running::json(&nobody()).stop();
    assert_eq!(run.summary()["namespaces_not_seen"], 0, "{}", run.summary());
    let run = Running::start(&nobody()).stop();
    assert!(!run.stderr.contains("namespaces"), "{}", run.stderr);
}

/// It looks into them all the time, and others want the processors.
#[test]
fn a_signal_is_obeyed_at_once_with_many_namespaces() {
    if !support::root() {
        return;
    }
    let (_apart, _busy) = (Apart::new(100), Busy::new(4));
    for wait in [0, 1100, 1700] {
        let running = Running::json(&nobody());
        std::thread::sleep(Duration::from_millis(wait));
        let begin = Instant::now();
        let run = running.stop();
        let took = begin.elapsed();
        assert!(run.status.success(), "{}", run.stderr);
        // It takes less than half a second, but some machines that run this are emulated.
        let most = if support::emulated() { 10 } else { 2 };
        assert!(took < Duration::from_secs(most), "after {wait} ms: {took:?}");
    }
}

/// A group with room for `most` threads; the controller is in one of the two versions.
fn group(name: &str, most: u32) -> Option<(PathBuf, Option<Cgroup>)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let first = mounts.lines().find(|line| {
        line.split_once(" - cgroup ").is_some_and(|(_, rest)| {
            rest.rsplit(' ').next().unwrap().split(',').any(|it| it == "pids")
        })
    });
    let (path, group) = if let Some(line) = first {
        let path = Path::new(line.split(' ').nth(4)?).join(name);
        fs::create_dir_all(&path).ok()?;
        (path, None)
    } else {
        let group = Cgroup::new(name)?;
        let root = group.path().parent()?;
        fs::write(root.join("cgroup.subtree_control"), "+pids").ok()?;
        (group.path().to_path_buf(), Some(group))
    };
    fs::write(path.join("pids.max"), most.to_string()).ok()?;
    Some((path, group))
}

#[test]
fn where_no_thread_can_be_made_it_says_what_is_missing() {
    if !support::root() {
        return;
    }
    let name = format!("bpftk-preflight-threads-{}", std::process::id());
    // One for itself, one that handles signals.
    let Some((path, group)) = group(&name, 2) else {
        println!("SKIP this machine does not limit threads (pids)");
        return;
    };
    let _apart = Apart::new(2);
    let run = |more: &[&str]| {
        let script = "echo $$ > $0/cgroup.procs && exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&path).arg(support::bpftk_path());
        command.args(["sockredir", "preflight", "-d", "10ms", "-p", "1"]).args(more);
        command.output().unwrap()
    };
    let some = run(&["--format", "json"]);
    fs::write(path.join("pids.max"), "1").unwrap();
    let none = run(&[]);
    if group.is_none() {
        fs::remove_dir(&path).unwrap();
    }
    assert!(some.status.success(), "{}", support::stderr(&some));
    let text = support::stdout(&some);
    let summary: serde_json::Value =
        serde_json::from_str(text.lines().last().unwrap()).expect("a line of JSON");
    assert!(summary["namespaces_not_seen"].as_u64().unwrap() >= 2, "{summary}");
    let text = support::stderr(&none);
    assert_eq!(none.status.code(), Some(1), "{text}");
    assert!(text.starts_with("bpftk: cannot handle signals, which takes a thread: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}
