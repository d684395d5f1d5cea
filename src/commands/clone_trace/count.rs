// SPDX-License-Identifier: MIT OR Apache-2.0

//! `clone-trace --count`: calls by name of the caller and kind.

use std::cmp::Reverse;
use std::collections::HashMap;

use anyhow::Result;
use jiff::Timestamp;

use crate::commands::common::time_zone;
use crate::kernel::clone_trace::{self, Call, Outcome};
use crate::output::{Column, Field, Kind, Record, Sink, bytes_to_string};

pub(crate) const FIELDS: &[Field] = &[
    Field::new("time", "end of the interval, RFC 3339"),
    Field::new("scope", "interval, or total for the table at the end"),
    Field::new("comm", "name of the calling thread"),
    Field::new(
        "kind",
        "process, thread, vfork or namespace; null for calls whose flags could not be read",
    ),
    Field::new("calls", "calls that ended in the interval"),
    Field::new("failures", "those of them that failed or were intercepted"),
];

pub(super) fn columns() -> Vec<Column> {
    vec![
        Column::left("COMM", "comm", 0),
        Column::left("KIND", "kind", 0),
        Column::right("CALLS", "calls", 0),
        Column::right("FAILURES", "failures", 0),
    ]
}

type Key = ([u8; 16], Option<clone_trace::Kind>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    calls: u64,
    failures: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    interval: HashMap<Key, Tally>,
    total: HashMap<Key, Tally>,
}

impl Counts {
    pub(super) fn add(&mut self, call: &Call) {
        let key = (call.comm, call.shape.map(|shape| shape.kind));
        for tallies in [&mut self.interval, &mut self.total] {
            let tally = tallies.entry(key).or_default();
            tally.calls += 1;
            tally.failures += u64::from(call.outcome != Outcome::Ok);
        }
    }

    /// The interval's table; the next one begins empty.
    pub(super) fn interval(&mut self, sink: &mut Sink) -> Result<()> {
        let tallies = std::mem::take(&mut self.interval);
        write(sink, "interval", &tallies)
    }

    /// The table of the whole run.
    pub(super) fn total(&mut self, sink: &mut Sink) -> Result<()> {
        sink.settle();
        write(sink, "total", &self.total)
    }
}

/// The most calls first.
fn sorted(tallies: &HashMap<Key, Tally>) -> Vec<(&Key, &Tally)> {
    let mut sorted: Vec<_> = tallies.iter().collect();
    sorted.sort_by_key(|(key, tally)| (Reverse(tally.calls), **key));
    sorted
}

fn write(sink: &mut Sink, scope: &'static str, tallies: &HashMap<Key, Tally>) -> Result<()> {
    let now = Timestamp::now();
    let rows: Vec<Record> = sorted(tallies)
        .into_iter()
        .map(|((comm, kind), tally)| {
            Record::new(Kind::Row)
                .with("time", now)
                .with("scope", scope)
                .with("comm", bytes_to_string(comm))
                .with("kind", kind.map(|kind| kind.to_string()))
                .with("calls", tally.calls)
                .with("failures", tally.failures)
        })
        .collect();
    let title = match scope {
        "total" => "Total".to_string(),
        _ => now.to_zoned(time_zone()).strftime("%H:%M:%S").to_string(),
    };
    sink.interval(&title, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::clone_trace::Shape;

    fn call(comm: &[u8], kind: clone_trace::Kind, outcome: Outcome) -> Call {
        let mut name = [0; 16];
        name[..comm.len()].copy_from_slice(comm);
        Call {
            start_ns: None,
            end_ns: None,
            pid: 1,
            tid: 1,
            ppid: 0,
            uid: 0,
            comm: name,
            cgroup_id: 1,
            name: None,
            outcome,
            child: None,
            child_ns: None,
            shape: Some(Shape { kind, flags: 0, exit_signal: 0 }),
            args: None,
        }
    }

    #[test]
    fn an_interval_begins_empty_and_the_total_does_not() {
        use clone_trace::Kind::{Process, Thread};
        let mut counts = Counts::default();
        counts.add(&call(b"sh", Process, Outcome::Failed(11)));
        counts.interval = HashMap::new();
        for _ in 0..2 {
            counts.add(&call(b"java", Thread, Outcome::Ok));
        }
        counts.add(&call(b"sh", Process, Outcome::Ok));
        let of = |tallies: &HashMap<Key, Tally>| -> Vec<(u64, u64)> {
            sorted(tallies).iter().map(|(_, tally)| (tally.calls, tally.failures)).collect()
        };
        assert_eq!(of(&counts.interval), [(2, 0), (1, 0)]);
        assert_eq!(of(&counts.total), [(2, 0), (2, 1)]);
    }
}
