// SPDX-License-Identifier: MIT OR Apache-2.0

//! `tcpconnect --count`: attempts by source address, destination and port.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::Result;
use jiff::Timestamp;

use super::times::Times;
use crate::commands::common::{millis, time_zone};
use crate::commands::resolver::Resolver;
use crate::kernel::tcpconnect::{Attempt, Outcome};
use crate::output::{Column, Field, Kind, Record, Sink};

pub(crate) const FIELDS: &[Field] = &[
    Field::new("time", "end of the interval, RFC 3339"),
    Field::new("scope", "interval, or total for the table at the end"),
    Field::new("row", "key; or other: all that --max-keys has no room for"),
    Field::new("saddr", "source address; null for attempts that never had one, and of other"),
    Field::new("daddr", "destination address; null of other"),
    Field::new("dport", "destination port; null of other"),
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
        Column::left("DADDR", "daddr", 0).or("row"),
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

#[derive(Debug, Default)]
struct Tally {
    attempts: u64,
    failures: u64,
    /// The latest one's network namespace.
    netns: u32,
    /// In µs.
    latency: Times,
}

impl Tally {
    fn add(&mut self, attempt: &Attempt) {
        self.attempts += 1;
        self.netns = attempt.netns;
        match attempt.outcome {
            Outcome::Pending => return,
            Outcome::Ok => {}
            Outcome::Failed(_) | Outcome::Closed | Outcome::Unknown => self.failures += 1,
        }
        if let Some(ns) = attempt.time_to_answer_ns() {
            self.latency.add(ns.div_ceil(1000));
        }
    }
}

/// By key, and what is of none that there is room for.
#[derive(Debug, Default)]
struct Tallies {
    keys: HashMap<Key, Tally>,
    other: Tally,
}

impl Tallies {
    fn add(&mut self, key: Option<Key>, attempt: &Attempt) {
        match key {
            Some(key) => self.keys.entry(key).or_default().add(attempt),
            None => self.other.add(attempt),
        }
    }
}

#[derive(Debug)]
pub(super) struct Counts {
    /// The first so many keys have rows of their own, for the whole run.
    most: usize,
    interval: Tallies,
    total: Tallies,
}

impl Counts {
    pub(super) fn new(most: u32) -> Self {
        Self { most: most as usize, interval: Tallies::default(), total: Tallies::default() }
    }

    pub(super) fn add(&mut self, attempt: &Attempt) {
        let key = (attempt.saddr, attempt.daddr, attempt.dport);
        let known = self.total.keys.len() < self.most || self.total.keys.contains_key(&key);
        for tallies in [&mut self.interval, &mut self.total] {
            tallies.add(known.then_some(key), attempt);
        }
    }

    /// Attempts that are of no row of their own.
    pub(super) fn other(&self) -> u64 {
        self.total.other.attempts
    }

    /// The interval's table; the next one begins empty.
    pub(super) fn interval(&mut self, sink: &mut Sink, resolver: &Resolver) -> Result<()> {
        let tallies = std::mem::take(&mut self.interval);
        write(sink, "interval", &tallies, resolver)
    }

    /// The table of the whole run.
    pub(super) fn total(&mut self, sink: &mut Sink, resolver: &Resolver) -> Result<()> {
        self.interval = Tallies::default();
        sink.settle();
        write(sink, "total", &self.total, resolver)
    }
}

/// Rows that are made at a time, where none depends on another's width.
const CHUNK: usize = 1024;

/// The most attempts first, and in the end what there was no room for.
fn write(
    sink: &mut Sink,
    scope: &'static str,
    tallies: &Tallies,
    resolver: &Resolver,
) -> Result<()> {
    let now = Timestamp::now();
    let mut sorted: Vec<(&Key, &Tally)> = tallies.keys.iter().collect();
    sorted.sort_by_key(|(key, tally)| (std::cmp::Reverse(tally.attempts), **key));
    let rows: Vec<(Option<&Key>, &Tally)> = sorted
        .into_iter()
        .map(|(key, tally)| (Some(key), tally))
        .chain((tallies.other.attempts > 0).then_some((None, &tallies.other)))
        .collect();
    let record = |&(key, tally): &(Option<&Key>, &Tally)| {
        let names =
            key.map(|&(_, daddr, _)| resolver.names(daddr, tally.netns)).unwrap_or_default();
        Record::new(Kind::Row)
            .with("time", now)
            .with("scope", scope)
            .with("row", if key.is_some() { "key" } else { "other" })
            .with("saddr", key.and_then(|key| key.0))
            .with("daddr", key.map(|key| key.1))
            .with("dport", key.map(|key| key.2))
            .with("attempts", tally.attempts)
            .with("failures", tally.failures)
            .with("latency_median_us", tally.latency.quantile(0.5))
            .with("latency_p99_us", tally.latency.quantile(0.99))
            .with("name", (!names.is_empty()).then_some(names))
    };
    let clock = now.to_zoned(time_zone()).strftime("%H:%M:%S");
    let title = match scope {
        "total" => "Total".to_string(),
        _ => clock.to_string(),
    };
    if sink.is_table() {
        return sink.interval(&title, &rows.iter().map(record).collect::<Vec<_>>());
    }
    rows.chunks(CHUNK)
        .try_for_each(|rows| sink.interval(&title, &rows.iter().map(record).collect::<Vec<_>>()))
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
        let mut tally = Tally::default();
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
        assert!(
            near(tally.latency.quantile(0.5).unwrap(), 5_000.0),
            "{:?}",
            tally.latency.quantile(0.5)
        );
        assert!(
            near(tally.latency.quantile(0.99).unwrap(), 9_900.0),
            "{:?}",
            tally.latency.quantile(0.99)
        );
        assert_eq!((tally.attempts, tally.failures), (40_001, 30_000));
    }

    #[test]
    fn an_interval_begins_empty_and_the_total_does_not() {
        let mut counts = Counts::new(10);
        counts.add(&attempt(5, Outcome::Failed(111)));
        counts.interval = Tallies::default();
        counts.add(&attempt(5, Outcome::Ok));
        let key = (None, "192.0.2.1".parse().unwrap(), 80);
        assert_eq!(
            (counts.interval.keys[&key].attempts, counts.interval.keys[&key].failures),
            (1, 0)
        );
        assert_eq!((counts.total.keys[&key].attempts, counts.total.keys[&key].failures), (2, 1));
    }

    #[test]
    fn what_has_no_room_is_in_one_row_and_the_sum_is_exact() {
        let mut counts = Counts::new(100);
        for n in 0..1000_u16 {
            let to = |dport| Attempt { dport, ..attempt(5, Outcome::Failed(111)) };
            counts.add(&to(n));
            // One that is known stays so.
            counts.add(&to(7));
        }
        for tallies in [&counts.interval, &counts.total] {
            assert_eq!(tallies.keys.len(), 100);
            let sum: u64 = tallies.keys.values().map(|tally| tally.attempts).sum();
            assert_eq!((sum + tallies.other.attempts, tallies.other.attempts), (2000, 900));
            assert_eq!(tallies.other.failures, 900);
            assert!(tallies.other.latency.quantile(0.5).is_some());
        }
        // A new interval knows the same keys.
        counts.interval = Tallies::default();
        counts.add(&Attempt { dport: 500, ..attempt(5, Outcome::Ok) });
        counts.add(&Attempt { dport: 50, ..attempt(5, Outcome::Ok) });
        assert_eq!((counts.interval.keys.len(), counts.interval.other.attempts), (1, 1));
        assert_eq!(counts.other(), 901);
    }

    #[test]
    fn a_key_takes_little_room() {
        assert!(size_of::<(Key, Tally)>() <= 96, "{}", size_of::<(Key, Tally)>());
    }
}
