// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk sockredir preflight`: a process that does what redirection changes is unsafe, by the name of what it did; one that
//! doesn't is safe, whatever it does with other files; and one that just blocks is in between.

mod answers;
mod calls;
mod namespaces;
mod output;
mod peers;
mod reasons;
mod threads;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use serde_json::Value;

use crate::support::{Actor, Run, Running, Stage};

/// What a process with these reasons is to be called.
fn verdict(counts: &Value) -> &'static str {
    let reasons: Vec<&String> = counts.as_object().unwrap().keys().collect();
    match reasons.as_slice() {
        [] => "safe",
        [only] if *only == "blocking" => "caution",
        _ => "unsafe",
    }
}

/// Reasons that aren't about every read that may block.
fn but_blocking(row: &Value) -> Value {
    let mut counts = row["counts"].clone();
    counts.as_object_mut().unwrap().remove("blocking");
    counts
}

/// Lets actors work under the watch of one bpftk, and returns their ids and its run.
fn watch(actors: Vec<Actor>) -> (Vec<u32>, Run) {
    let pids: Vec<u32> = actors.iter().map(Actor::pid).collect();
    let list: Vec<String> = pids.iter().map(u32::to_string).collect();
    let args = ["sockredir", "preflight", "-d", "300s", "-p", &list.join(",")];
    let running = Running::json(&args);
    (pids, perform(actors, running))
}

/// One after the other: Linux 7 skips the programs for who comes where another was preempted in one, so that of many at a
/// time some calls may escape.
fn perform(actors: Vec<Actor>, running: Running) -> Run {
    for mut actor in actors {
        actor.go();
        actor.finish();
    }
    let run = running.stop();
    assert!(run.status.success(), "{}", run.stderr);
    let summary = run.summary();
    assert_eq!(summary["lost"], 0, "{summary}");
    // Where the kernel preempts programs it is told how many calls may be missing, at most.
    if !preempts() {
        assert_eq!(summary["skipped"], 0, "{summary}");
    }
    run
}

/// Linux 7 preempts programs at tracepoints.
pub(crate) fn preempts() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.split('.').next().unwrap().parse::<u32>().unwrap() >= 7
}

/// Linux 7 skips the programs for who comes where another was preempted in one: what escaped so is seen at another try.
fn steadily(test: impl Fn()) {
    let tries = if preempts() { 3 } else { 1 };
    for left in (0..tries).rev() {
        match catch_unwind(AssertUnwindSafe(&test)) {
            Ok(()) => return,
            Err(panic) if left == 0 => resume_unwind(panic),
            Err(_) => println!("once more: the kernel may have skipped the program"),
        }
    }
}

fn rows(run: &Run) -> Vec<Value> {
    run.json().into_iter().filter(|line| line["type"] == "row").collect()
}

fn row(run: &Run, pid: u32) -> Value {
    let found = rows(run).into_iter().find(|row| row["pid"] == pid);
    found.unwrap_or_else(|| panic!("no row of {pid}: {}", run.stdout))
}

fn actor(work: impl FnOnce()) -> Actor {
    Actor::new(|_: &mut Stage| work())
}
