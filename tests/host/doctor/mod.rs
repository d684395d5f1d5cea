// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk doctor`: what it says of the machine is true, and it removes what nobody owns, and nothing else.

mod facts;
mod leftovers;
mod programs;

use std::fs;
use std::process::Output;
use std::sync::{Mutex, MutexGuard};

use serde_json::Value;

use crate::support;

/// What one test leaves behind another's `--cleanup` would take.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn doctor(args: &[&str]) -> Output {
    let mut all = vec!["doctor"];
    all.extend(args);
    support::output(&all)
}

fn rows(output: &Output, table: &str) -> Vec<Value> {
    lines(output).into_iter().filter(|line| line["table"] == table).collect()
}

fn lines(output: &Output) -> Vec<Value> {
    support::stdout(output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

/// How doctor ends where every command works that can: sockredir needs Linux 6.1.
fn usual_status() -> Option<i32> {
    Some(if kernel_version() >= vec![6, 1] { 0 } else { 4 })
}

fn kernel_version() -> Vec<u32> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release.split(['.', '-']).take(2).map(|part| part.parse().unwrap()).collect()
}
