// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk sockredir preflight`: a process that does what redirection changes is unsafe, by the name of what it did; one that
//! doesn't is safe, whatever it does with other files.

mod calls;
mod output;
mod peers;
mod reasons;

use serde_json::Value;

use crate::support::{Actor, Run, Running, Stage};

/// Lets actors work under the watch of one bpftk, all at the same time, and returns what they put out and its run.
fn watch(actors: Vec<Actor>) -> (Vec<u32>, Run) {
    let pids: Vec<u32> = actors.iter().map(Actor::pid).collect();
    let list: Vec<String> = pids.iter().map(u32::to_string).collect();
    let args = ["sockredir", "preflight", "-d", "300s", "-p", &list.join(",")];
    let running = Running::json(&args);
    (pids, perform(actors, running))
}

fn perform(mut actors: Vec<Actor>, running: Running) -> Run {
    actors.iter_mut().for_each(Actor::go);
    for actor in actors {
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
fn preempts() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.split('.').next().unwrap().parse::<u32>().unwrap() >= 7
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
