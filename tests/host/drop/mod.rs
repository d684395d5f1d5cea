// SPDX-License-Identifier: MIT OR Apache-2.0

//! `xdp-drop` and `tc-drop`, between two network namespaces: ours, and a peer's that sends to it.

mod attach;
mod faults;
mod lapses;
mod lifecycle;
mod removed;
mod rules;

use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::wire::{FAR4, FAR6, NEAR4, NEAR6, Wire, outcome, send, tc_backends};
use crate::support::{Netns, Run, Running, ip, output, root, stderr};

/// The last table's row for `rule`, at the place whose `iface` and `direction` it has.
fn total<'a>(rows: &'a [Value], rule: &str) -> &'a Value {
    rows.iter()
        .find(|row| row["scope"] == "total" && row["rule"] == rule)
        .unwrap_or_else(|| panic!("no total of {rule} in {rows:#?}"))
}

fn packets(run: &Run, rule: &str) -> u64 {
    assert!(run.status.success(), "{}", run.stderr);
    total(&run.json(), rule)["packets_total"].as_u64().unwrap()
}

/// The ways to drop at ingress that this kernel has.
fn ways() -> Vec<Vec<&'static str>> {
    let mut ways = vec![vec!["xdp-drop", "near"], vec!["xdp-drop", "near", "--mode", "native"]];
    for backend in backends() {
        ways.push(vec!["tc-drop", "near", "--backend", backend]);
    }
    ways
}

fn backends() -> Vec<&'static str> {
    tc_backends(&["tc-drop", "lo", "--dry-run"])
}

/// What `bpftk` says to this, in the near namespace, and with which status.
fn refused(wire: &Wire, args: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    outcome(wire, args, environment)
}
