// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counts as rows: of an interval, of the whole run, and of single packets.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;

use super::Prepared;
use super::rules::Named;
use crate::commands::common::{TIME_COLUMN, amount, clock};
use crate::kernel::attach::tc::Direction;
use crate::kernel::clock::wall_time;
use crate::kernel::count::Count;
use crate::kernel::drop::{By, Dropper, Key, Row, Sample};
use crate::kernel::unseen::Excess;
use crate::net::protos;
use crate::output::{Column, Field, Kind, Record, Sink, Value};

/// The schema of a table's row.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("time", "end of the interval, RFC 3339"),
    Field::new("scope", "interval, or total for the table at the end"),
    Field::new("iface", "the interface; null in tables by protocol, source or processor"),
    Field::new("direction", "ingress or egress; null as above"),
    Field::new(
        "rule",
        "the rule; passed, excepted (--except), malformed, or lapsed (a rule matched while the heartbeat had lapsed), which all passed; or unseen: what left without passing tc; null as above",
    ),
    Field::new(
        "proto",
        "the rule's protocols, or any; in a table by protocol the protocol, or none for what isn't IP",
    ),
    Field::new(
        "saddr",
        "in a table by source: the address, other for those that the table has no room for; else null",
    ),
    Field::new("cpu", "in a table by processor: its number; else null"),
    Field::new("verdict", "drop, would-drop (--dry-run) or pass"),
    Field::new("packets", "packets of the interval, or of the whole run"),
    Field::new("bytes", "their bytes"),
    Field::new("packets_per_s", "packets a second"),
    Field::new("bytes_per_s", "bytes a second"),
    Field::new("packets_total", "packets since the beginning"),
    Field::new("bytes_total", "bytes since the beginning"),
];

/// The schema of a row of --sample.
pub(crate) const SAMPLE_FIELDS: &[Field] = &[
    Field::new("time", "when the packet was there, RFC 3339"),
    Field::new("iface", "the interface"),
    Field::new("direction", "ingress or egress"),
    Field::new("rule", "the rule that it matched"),
    Field::new("family", "4 or 6; null for what isn't IP"),
    Field::new("proto", "the protocol; null when it could not be told"),
    Field::new("saddr", "source address; null for what isn't IP"),
    Field::new("sport", "source port; null when there is none to be seen"),
    Field::new("daddr", "destination address"),
    Field::new("dport", "destination port"),
    Field::new("bytes", "length of the packet, link layer included"),
];

pub(super) fn sample_columns(timestamp: bool) -> Vec<Column> {
    let mut columns = Vec::new();
    if timestamp {
        columns.push(TIME_COLUMN);
    }
    columns.extend([
        Column::left("IFACE", "iface", 8),
        Column::left("RULE", "rule", 10),
        Column::left("PROTO", "proto", 5),
        Column::left("SADDR", "saddr", 15),
        Column::right("SPORT", "sport", 5),
        Column::left("DADDR", "daddr", 15),
        Column::right("DPORT", "dport", 5),
        Column::right("BYTES", "bytes", 6),
    ]);
    columns
}

/// How far back the trend goes, and how wide it is.
const MINUTE: Duration = Duration::from_secs(60);
const TREND: usize = 12;

/// Packets of each interval, of the last minute.
#[derive(Debug, Default)]
struct Trend(VecDeque<(Instant, u64)>);

impl Trend {
    fn push(&mut self, now: Instant, packets: u64) {
        self.0.push_back((now, packets));
        while self.0.front().is_some_and(|(then, _)| now.duration_since(*then) > MINUTE) {
            self.0.pop_front();
        }
    }

    /// A character for each twelfth of a minute, the last one now.
    fn draw(&self, now: Instant) -> String {
        const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let mut most = [None::<u64>; TREND];
        for &(then, packets) in &self.0 {
            let back = now.duration_since(then).as_secs_f64() / MINUTE.as_secs_f64();
            let slot = TREND - 1 - ((back * TREND as f64) as usize).min(TREND - 1);
            most[slot] = Some(most[slot].unwrap_or(0).max(packets));
        }
        let top = most.iter().flatten().max().copied().unwrap_or(0).max(1);
        most.iter()
            .skip_while(|packets| packets.is_none())
            .map(|packets| match packets {
                None => ' ',
                Some(packets) => LEVELS[(packets * 7).div_ceil(top).min(7) as usize],
            })
            .collect()
    }
}

/// What the end says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Totals {
    pub(super) dropped: Count,
    pub(super) passed: Count,
    pub(super) excepted: Count,
    pub(super) malformed: Count,
    /// What rules matched, and passed while the heartbeat had lapsed.
    pub(super) lapsed: Count,
}

pub(super) struct Tables {
    named: Vec<Named>,
    by: By,
    dry_run: bool,
    /// Whether there is a terminal to draw trends on.
    trends: Option<HashMap<Key, Trend>>,
    several: bool,
    directions: bool,
    begin: Instant,
    last: Instant,
    before: HashMap<Key, Count>,
    title: String,
}

impl Tables {
    pub(super) fn new(dropper: &Dropper, prepared: &Prepared, dry_run: bool, draws: bool) -> Self {
        let places = dropper.places();
        let mut named = prepared.named.clone();
        let fixed =
            [(Row::PASSED, "passed"), (Row::MALFORMED, "malformed"), (Row::LAPSED, "lapsed")];
        for (row, name) in fixed {
            named.push(Named { row, name: name.into(), proto: String::new() });
        }
        let now = Instant::now();
        Self {
            named,
            by: prepared.config.by,
            dry_run,
            trends: draws.then(HashMap::new),
            several: places.iter().any(|p| p.interface.index != places[0].interface.index),
            directions: places.iter().any(|place| place.direction != places[0].direction),
            begin: now,
            last: now,
            before: HashMap::new(),
            title: title(dropper),
        }
    }

    /// After an interface was renamed.
    pub(super) fn retitle(&mut self, dropper: &Dropper) {
        self.title = title(dropper);
    }

    pub(super) fn columns(&self) -> Vec<Column> {
        let mut columns = Vec::new();
        match self.by {
            By::Rule => {
                if self.several {
                    columns.push(Column::left("IFACE", "iface", 0));
                }
                if self.directions {
                    columns.push(Column::left("DIRECTION", "direction", 0));
                }
                columns.push(Column::left("RULE", "rule", 0));
                columns.push(Column::left("PROTO", "proto", 0));
            }
            By::Proto => columns.push(Column::left("PROTO", "proto", 0)),
            By::Src => columns.push(Column::left("SADDR", "saddr", 0)),
            By::Cpu => columns.push(Column::right("CPU", "cpu", 0)),
        }
        columns.extend([
            Column::right("PKT/S", "packets_per_s", 0).shown_by(rounded),
            Column::right("BYTE/S", "bytes_per_s", 0).shown_by(amount),
            Column::right("PACKETS", "packets_total", 0),
            Column::right("BYTES", "bytes_total", 0).shown_by(amount),
        ]);
        if self.trends.is_some() {
            columns.push(Column::left("TREND", "trend", 0));
        }
        columns
    }

    fn counts(&self, dropper: &Dropper) -> Result<Vec<(Key, Count)>> {
        let rows: Vec<Row> = self.named.iter().map(|named| named.row).collect();
        match self.by {
            // Most never lapse.
            By::Rule => Ok(dropper
                .rows(&rows)?
                .into_iter()
                .filter(|(key, count)| {
                    !matches!(key, Key::Row(_, Row::LAPSED)) || count.packets > 0
                })
                .collect()),
            By::Proto => dropper.protos(),
            By::Src => dropper.sources(),
            By::Cpu => dropper.cpus(&rows),
        }
    }

    /// Writes what came since the last time.
    pub(super) fn interval(
        &mut self,
        dropper: &Dropper,
        unseen: Option<Excess>,
        sink: &mut Sink,
    ) -> Result<()> {
        let counts = self.counts(dropper)?;
        let now = Instant::now();
        let seconds = now.duration_since(self.last).as_secs_f64().max(1e-9);
        let mut rows: Vec<(Count, Record)> = Vec::new();
        for &(key, total) in &counts {
            let new = total - self.before.insert(key, total).unwrap_or_default();
            let mut record = self.record("interval", dropper, key, new, total, seconds);
            if let Some(trends) = &mut self.trends {
                let trend = trends.entry(key).or_default();
                trend.push(now, new.packets);
                record = record.with("trend", trend.draw(now));
            }
            rows.push((total, record));
        }
        if let Some(Excess { new, total }) = unseen.filter(|unseen| unseen.total.packets > 0) {
            rows.push((total, self.unseen("interval", new, total, seconds)));
        }
        self.last = now;
        let title = format!("{}, {}", self.title, clock(now.duration_since(self.begin)));
        sink.interval(&title, &self.sorted(rows))
    }

    /// Writes the table of the whole run.
    pub(super) fn total(
        &mut self,
        dropper: &Dropper,
        unseen: Option<Excess>,
        sink: &mut Sink,
    ) -> Result<()> {
        let seconds = self.begin.elapsed().as_secs_f64().max(1e-9);
        let mut rows = Vec::new();
        for (key, total) in self.counts(dropper)? {
            rows.push((total, self.record("total", dropper, key, total, total, seconds)));
        }
        if let Some(Excess { total, .. }) = unseen.filter(|unseen| unseen.total.packets > 0) {
            rows.push((total, self.unseen("total", total, total, seconds)));
        }
        self.trends = None;
        sink.settle();
        sink.set_columns(self.columns());
        sink.interval("Total", &self.sorted(rows))
    }

    /// Rules stay where they are; of what differs from run to run, the most is first.
    fn sorted(&self, mut rows: Vec<(Count, Record)>) -> Vec<Record> {
        if matches!(self.by, By::Proto | By::Src) {
            rows.sort_by_key(|(count, _)| std::cmp::Reverse(count.packets));
        }
        rows.into_iter().map(|(_, record)| record).collect()
    }

    fn record(
        &self,
        scope: &str,
        dropper: &Dropper,
        key: Key,
        new: Count,
        total: Count,
        seconds: f64,
    ) -> Record {
        let place = match key {
            Key::Row(place, _) => dropper.places().get(place),
            _ => None,
        };
        let named = match key {
            Key::Row(_, row) => self.named.iter().find(|named| named.row == row),
            _ => None,
        };
        let drops = !matches!(key, Key::Row(_, row) if !row.drops());
        let proto = match key {
            Key::Proto(Some(proto)) => Some(protos::name(proto)),
            Key::Proto(None) => Some("none".into()),
            _ => named.map(|named| named.proto.clone()).filter(|proto| !proto.is_empty()),
        };
        let saddr = match key {
            Key::Src(Some(addr)) => Some(addr.to_string()),
            Key::Src(None) => Some("other".into()),
            _ => None,
        };
        let cpu = match key {
            Key::Cpu(cpu) => Some(cpu as u32),
            _ => None,
        };
        let record = Record::new(Kind::Row)
            .with("time", Timestamp::now())
            .with("scope", scope)
            .with("iface", place.map(|place| place.interface.name.clone()))
            .with("direction", place.map(|place| place.direction.to_string()))
            .with("rule", named.map(|named| named.name.clone()))
            .with("proto", proto)
            .with("saddr", saddr)
            .with("cpu", cpu)
            .with("verdict", self.verdict(drops));
        with_counts(record, new, total, seconds)
    }

    /// What left past tc, at all interfaces together.
    fn unseen(&self, scope: &str, new: Count, total: Count, seconds: f64) -> Record {
        let record = Record::new(Kind::Row)
            .with("time", Timestamp::now())
            .with("scope", scope)
            .with("iface", None::<&str>)
            .with("direction", "egress")
            .with("rule", "unseen")
            .with("proto", None::<&str>)
            .with("saddr", None::<&str>)
            .with("cpu", None::<u32>)
            .with("verdict", self.verdict(false));
        with_counts(record, new, total, seconds)
    }

    /// Packets that went on at egress.
    pub(super) fn went_on(&self, dropper: &Dropper) -> Result<Count> {
        let rows: Vec<Row> = self.named.iter().map(|named| named.row).collect();
        let egress = |place: usize| dropper.places()[place].direction == Direction::Egress;
        let counts = dropper.rows(&rows)?.into_iter();
        Ok(counts
            .filter(|(key, _)| match key {
                Key::Row(place, row) => egress(*place) && (self.dry_run || !row.drops()),
                _ => false,
            })
            .map(|(_, count)| count)
            .sum())
    }

    fn verdict(&self, drops: bool) -> &'static str {
        match (drops, self.dry_run) {
            (true, false) => "drop",
            (true, true) => "would-drop",
            (false, _) => "pass",
        }
    }

    pub(super) fn sample(&self, sample: &Sample, dropper: &Dropper) -> Record {
        let place = dropper.places().get(sample.place);
        let rule = self.named.iter().find(|named| named.row == sample.row);
        let (saddr, daddr) = sample.addresses.unzip();
        let (sport, dport) = sample.ports.unzip();
        Record::new(Kind::Event)
            .with("time", wall_time(sample.time_ns))
            .with("iface", place.map(|place| place.interface.name.clone()))
            .with("direction", place.map(|place| place.direction.to_string()))
            .with("rule", rule.map(|named| named.name.clone()))
            .with("family", saddr.map(|addr| if addr.is_ipv4() { 4_u8 } else { 6 }))
            .with("proto", sample.proto.map(protos::name))
            .with("saddr", saddr)
            .with("sport", sport)
            .with("daddr", daddr)
            .with("dport", dport)
            .with("bytes", sample.bytes)
    }

    pub(super) fn totals(&self, dropper: &Dropper) -> Result<Totals> {
        let rows: Vec<Row> = self.named.iter().map(|named| named.row).collect();
        let counts = dropper.rows(&rows)?;
        let sum = |wanted: &dyn Fn(Row) -> bool| -> Count {
            counts
                .iter()
                .filter(|(key, _)| matches!(key, Key::Row(_, row) if wanted(*row)))
                .map(|(_, count)| *count)
                .sum()
        };
        Ok(Totals {
            dropped: sum(&Row::drops),
            passed: sum(&|row| row == Row::PASSED),
            excepted: sum(&|row| row == Row::EXCEPTED),
            malformed: sum(&|row| row == Row::MALFORMED),
            lapsed: sum(&|row| row == Row::LAPSED),
        })
    }
}

fn with_counts(record: Record, new: Count, total: Count, seconds: f64) -> Record {
    record
        .with("packets", new.packets)
        .with("bytes", new.bytes)
        .with("packets_per_s", new.packets as f64 / seconds)
        .with("bytes_per_s", new.bytes as f64 / seconds)
        .with("packets_total", total.packets)
        .with("bytes_total", total.bytes)
}

fn title(dropper: &Dropper) -> String {
    let mut title: Vec<String> = dropper
        .places()
        .iter()
        .zip(dropper.modes())
        .map(|(place, (mode, _))| format!("{}, {mode}", place.interface.name))
        .collect();
    title.dedup();
    title.join("; ")
}

fn rounded(value: &Value) -> String {
    match value {
        Value::Float(number) => format!("{number:.0}"),
        other => other.text(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trend_is_a_minute() {
        let mut trend = Trend::default();
        let begin = Instant::now();
        for second in 0..=120 {
            trend.push(begin + Duration::from_secs(second), second % 10);
        }
        let now = begin + Duration::from_secs(120);
        assert!(trend.0.len() <= 61);
        let drawn = trend.draw(now);
        assert_eq!(drawn.chars().count(), TREND);
        assert!(drawn.contains('█'), "{drawn}");
        let mut quiet = Trend::default();
        quiet.push(begin, 0);
        assert_eq!(quiet.draw(begin), "▁");
    }
}
