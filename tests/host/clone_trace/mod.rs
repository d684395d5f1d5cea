// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk clone-trace`: what an actor does is what is printed of it, on every back end that the kernel has.

mod args;
mod calls;
mod exact;
mod filters;
mod intercepted;
mod lifecycle;
mod rows;

use std::sync::OnceLock;

use serde_json::Value;

use crate::support::{self, Actor, Run, Running, Stage, emulated};

fn backends() -> &'static [&'static str] {
    static HERE: OnceLock<Vec<&'static str>> = OnceLock::new();
    HERE.get_or_init(|| support::backends("clone-trace", &["syscall", "kprobe", "task"]))
}

/// Those that see calls, not only new tasks.
fn call_backends() -> impl Iterator<Item = &'static str> {
    backends().iter().copied().filter(|name| *name != "task")
}

fn vm() -> bool {
    emulated()
}

/// Follows one actor with these options, lets it do its work, and returns its numbers and the run.
fn follow(backend: &str, options: &[&str], work: impl FnOnce(&mut Stage)) -> (u32, Vec<i64>, Run) {
    let mut actor = Actor::new(work);
    let pid = actor.pid();
    let running = start(backend, pid, options);
    actor.go();
    let numbers = actor.finish();
    (pid, numbers, running.stop())
}

fn start(backend: &str, pid: u32, options: &[&str]) -> Running {
    let pid = pid.to_string();
    let mut args = vec!["clone-trace", "--backend", backend, "-p", &pid];
    args.extend(options);
    Running::json(&args)
}

fn flags(event: &Value) -> Vec<&str> {
    event["flags"]
        .as_array()
        .unwrap_or_else(|| panic!("{event}"))
        .iter()
        .map(|flag| flag.as_str().unwrap())
        .collect()
}

/// The summary agrees with the rows, and nothing was lost.
fn nothing_lost(run: &Run) {
    let summary = run.summary();
    assert_eq!(summary["lost"], 0, "{summary}");
    let events = run.events();
    assert_eq!(summary["calls"], events.len(), "{summary}");
    let failed = events.iter().filter(|e| e["result"] != "ok").count();
    assert_eq!(summary["failed"], failed, "{summary}");
}
