// SPDX-License-Identifier: MIT OR Apache-2.0

//! `tc-egress`, between two network namespaces: ours, and a peer's that gets whatever is sent.

mod allow;
mod audit;
mod block;
mod counts;
mod disk;
mod events;
mod lifecycle;
mod names;
mod owners;
mod unseen;
mod ways;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::wire::{FAR4, FAR6, NEAR4, NEAR6, Wire, addresses, outcome, send, tc_backends};
use crate::support::{Netns, Run, Running, ip, output, root, stderr, stdout};

fn backends() -> Vec<&'static str> {
    tc_backends(&["tc-egress", "lo"])
}

/// A wire at whose near end every address is reached through the far end, which drops it.
fn wire() -> Wire {
    let wire = Wire::new();
    wire.near.run(|| {
        ip(&format!("route add default via {FAR4}"));
        ip(&format!("-6 route add default via {FAR6}"));
    });
    wire
}

/// What is on its way when the last sender returns.
fn settle() {
    thread::sleep(Duration::from_millis(100));
}

/// Until a ring buffer that was full is empty again.
fn read_up() {
    let emulated = std::env::var_os("BPFTK_VM").is_some();
    thread::sleep(Duration::from_millis(if emulated { 6000 } else { 1000 }));
}

/// The rows of the last table.
fn totals(run: &Run) -> Vec<Value> {
    assert!(run.status.success(), "{}", run.stderr);
    run.json().into_iter().filter(|row| row["scope"] == "total").collect()
}

/// The last table's row of an address, or of that name.
fn total(run: &Run, what: &str) -> (u64, u64) {
    let rows = totals(run);
    let row = rows.iter().find(|row| {
        ["daddr", "saddr", "net", "proto"].iter().any(|field| row[field] == what)
            || row["row"] == what && what != "key"
    });
    let row = row.unwrap_or_else(|| panic!("no {what} in {}", run.stdout));
    (row["packets_total"].as_u64().unwrap(), row["bytes_total"].as_u64().unwrap())
}

/// In every table and in the summary, rows add up to what was looked at; and intervals to the totals.
fn adds_up(run: &Run) {
    let lines = run.json();
    let summary = run.summary();
    assert_eq!(summary["unaccounted"], 0, "{}", run.stdout);
    let sum = |scope: &str, field: &str| -> u64 {
        let rows = lines.iter().filter(|row| row["scope"] == scope);
        rows.map(|row| row[field].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("total", "packets"), summary["packets"], "{}", run.stdout);
    assert_eq!(sum("total", "bytes"), summary["bytes"], "{}", run.stdout);
    // What came behind the last interval is only in the totals.
    assert!(sum("interval", "packets") <= summary["packets"].as_u64().unwrap());
}
