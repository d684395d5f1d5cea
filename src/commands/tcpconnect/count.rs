// SPDX-License-Identifier: MIT OR Apache-2.0

//! `tcpconnect --count`: attempts by source address, destination and port.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::Result;
use hdrhistogram::Histogram;
use jiff::Timestamp;

use crate::commands::common::{millis, time_zone};
use crate::commands::resolver::Resolver;
use crate::kernel::tcpconnect::{Attempt, Outcome};
use crate::output::{Column, Field, Kind, Record, Sink};

pub(crate) const FIELDS: &[Field] = &[
    Field::new("time", "end of the interval, RFC 3339"),
    Field::new("scope", "interval, or total for the table at the end"),
    Field::new("saddr", "source address; null for attempts that never had one"),
    Field::new("daddr", "destination address"),
    Field::new("dport", "destination port"),
    Field::new("attempts", "connect attempts decided in the interval, or pending at the end"),
    Field::new("failures", "those of them that failed or were closed before an answer"),
    Field::new(
        "latency_median_us",
        "median time to the answer, in microseconds, within 1 %; null when nothing was answered",
    ),
    Field::new("latency_p99_us", "99th percentile of the same"),
    Field::new(
        "name",
        "list of names that DNS answers gave the destination; null without --dns or when there is none",
    ),
];

pub(super) fn columns(dns: bool) -> Vec<Column> {
    let mut columns = vec![
        Column::left("SADDR", "saddr", 0),
        Column::left("DADDR", "daddr", 0),
        Column::right("DPORT", "dport", 0),
        Column::right("ATTEMPTS", "attempts", 0),
        Column::right("FAILURES", "failures", 0),
        Column::right("MEDIAN", "latency_median_us", 0).shown_by(millis),
        Column::right("P99", "latency_p99_us", 0).shown_by(millis),
    ];
    if dns {
        columns.push(Column::left("NAME", "name", 0));
    }
    columns
}

type Key = (Option<IpAddr>, IpAddr, u16);

#[derive(Debug)]
struct Tally {
    attempts: u64,
    failures: u64,
    /// The latest one's network namespace.
    netns: u32,
    /// In µs. Two significant digits: within 1 %.
    latency: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        let latency =
            Histogram::new(2).expect("two significant digits are within the library's 0 to 5");
        Self { attempts: 0, failures: 0, netns: 0, latency }
    }

    fn add(&mut self, attempt: &Attempt) {
        self.attempts += 1;
        self.netns = attempt.netns;
        match attempt.outcome {
            Outcome::Pending => return,
            Outcome::Ok => {}
            Outcome::Failed(_) | Outcome::Closed | Outcome::Unknown => self.failures += 1,
        }
        if let Some(ns) = attempt.time_to_answer_ns() {
            // The histogram grows to fit any value.
            let _ = self.latency.record(ns.div_ceil(1000));
        }
    }

    fn quantile(&self, q: f64) -> Option<f64> {
        (!self.latency.is_empty()).then(|| self.latency.value_at_quantile(q) as f64)
    }
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    interval: HashMap<Key, Tally>,
    total: HashMap<Key, Tally>,
}

impl Counts {
    pub(super) fn add(&mut self, attempt: &Attempt) {
        let key = (attempt.saddr, attempt.daddr, attempt.dport);
        for tallies in [&mut self.interval, &mut self.total] {
            tallies.entry(key).or_insert_with(Tally::new).add(attempt);
        }
    }

    /// The interval's table; the next one begins empty.
    pub(super) fn interval(&mut self, sink: &mut Sink, resolver: &Resolver) -> Result<()> {
        let tallies = std::mem::take(&mut self.interval);
        write(sink, "interval", &tallies, resolver)
    }

    /// The table of the whole run.
    pub(super) fn total(&mut self, sink: &mut Sink, resolver: &Resolver) -> Result<()> {
        sink.settle();
        write(sink, "total", &self.total, resolver)
    }
}

/// The most attempts first.
fn write(
    sink: &mut Sink,
    scope: &'static str,
    tallies: &HashMap<Key, Tally>,
    resolver: &Resolver,
) -> Result<()> {
    let now = Timestamp::now();
    let mut sorted: Vec<(&Key, &Tally)> = tallies.iter().collect();
    sorted.sort_by_key(|(key, tally)| (std::cmp::Reverse(tally.attempts), **key));
    let rows: Vec<Record> = sorted
        .into_iter()
        .map(|(&(saddr, daddr, dport), tally)| {
            let names = resolver.names(daddr, tally.netns);
            Record::new(Kind::Row)
                .with("time", now)
                .with("scope", scope)
                .with("saddr", saddr)
                .with("daddr", daddr)
                .with("dport", dport)
                .with("attempts", tally.attempts)
                .with("failures", tally.failures)
                .with("latency_median_us", tally.quantile(0.5))
                .with("latency_p99_us", tally.quantile(0.99))
                .with("name", (!names.is_empty()).then_some(names))
        })
        .collect();
    let clock = now.to_zoned(time_zone()).strftime("%H:%M:%S");
    let title = match scope {
        "total" => "Total".to_string(),
        _ => clock.to_string(),
    };
    sink.interval(&title, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(us: u64, outcome: Outcome) -> Attempt {
        Attempt {
            start_ns: 1_000,
            end_ns: 1_000 + us * 1000,
            instant: false,
            pid: 1,
            tid: 1,
            uid: 0,
            comm: [0; 16],
            cgroup_id: 1,
            netns: 1,
            saddr: None,
            sport: None,
            daddr: "192.0.2.1".parse().unwrap(),
            dport: 80,
            outcome,
        }
    }

    #[test]
    fn quantiles_are_within_one_percent() {
        let mut tally = Tally::new();
        for us in 1..=10_000 {
            tally.add(&attempt(us, Outcome::Ok));
        }
        // What nobody answered, and what nobody saw begin, is no time to an answer.
        tally.add(&attempt(0, Outcome::Pending));
        for _ in 0..10_000 {
            tally.add(&attempt(1_000_000, Outcome::Closed));
            tally.add(&attempt(1_000_000, Outcome::Unknown));
            tally.add(&Attempt { instant: true, ..attempt(0, Outcome::Failed(13)) });
        }
        let near = |value: f64, expected: f64| (value - expected).abs() / expected < 0.01;
        assert!(near(tally.quantile(0.5).unwrap(), 5_000.0), "{:?}", tally.quantile(0.5));
        assert!(near(tally.quantile(0.99).unwrap(), 9_900.0), "{:?}", tally.quantile(0.99));
        assert_eq!((tally.attempts, tally.failures), (40_001, 30_000));
    }

    #[test]
    fn an_interval_begins_empty_and_the_total_does_not() {
        let mut counts = Counts::default();
        counts.add(&attempt(5, Outcome::Failed(111)));
        counts.interval = HashMap::new();
        counts.add(&attempt(5, Outcome::Ok));
        let key = (None, "192.0.2.1".parse().unwrap(), 80);
        assert_eq!((counts.interval[&key].attempts, counts.interval[&key].failures), (1, 0));
        assert_eq!((counts.total[&key].attempts, counts.total[&key].failures), (2, 1));
    }
}
