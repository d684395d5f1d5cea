// SPDX-License-Identifier: MIT OR Apache-2.0

//! What was counted in the last interval, and in all of them.
//!
//! The kernel counts by keys; rows are what the user asked for. Which row a key belongs to may be known only later: so a key that
//! packets still come of stays a key, is asked anew for each table, and becomes a part of its row for good when it has been silent for a
//! while.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::kernel::count::Count;
use crate::kernel::egress::Rows;

/// So long after its last packet, what a key belongs to is decided.
const DECIDED: Duration = Duration::from_secs(30);
/// So long, a row that nothing comes of any more is remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// And so many keys or rows.
const MOST: usize = 1 << 20;

/// By what rows are in order. The most is first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    #[default]
    Packets,
    Bytes,
    /// The first column, from small to large
    Key,
}

/// Who is responsible for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Share {
    Process,
    Kernel,
    Forwarded,
    Unknown,
}

const SHARES: usize = 4;

/// What has a row of its own.
pub(super) trait Row: Clone + Eq + Hash + Ord {
    fn share(&self) -> Share;
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    new: Count,
    total: Count,
    /// When something came last.
    seen: Option<Instant>,
}

impl Entry {
    fn join(&mut self, other: Self) {
        self.new += other.new;
        self.total += other.total;
        self.seen = self.seen.max(other.seen);
    }
}

/// What a row is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What<R> {
    Row(R),
    /// Rows beyond --top, those that there was no room for, and those that were forgotten.
    Other,
    Malformed,
    NotIp,
    /// The same, of what is blocked.
    MalformedBlocked,
    NotIpBlocked,
    Excluded,
    /// What the interfaces sent, and no program of tc's saw: beside what the rows add up to.
    Unseen,
}

impl<R> What<R> {
    pub(super) fn row(&self) -> Option<&R> {
        match self {
            Self::Row(row) => Some(row),
            _ => None,
        }
    }
}

/// One row.
#[derive(Clone, Debug)]
pub(super) struct Line<R> {
    pub(super) what: What<R>,
    pub(super) new: Count,
    pub(super) total: Count,
}

/// Which rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Of the last interval, or of all.
    pub(super) interval: bool,
    pub(super) sort: Sort,
    /// Keys that have rows of their own.
    pub(super) top: Option<usize>,
    /// Whether something is excluded at all.
    pub(super) excludes: bool,
}

#[derive(Debug)]
pub(super) struct Book<K, R> {
    keys: HashMap<K, Entry>,
    decided: HashMap<R, Entry>,
    new: Rows,
    total: Rows,
    /// Of rows that were forgotten.
    forgotten: [Count; SHARES],
    /// Nothing is for good.
    memory: Option<Duration>,
    most: usize,
}

impl<K: Copy + Eq + Hash, R: Row> Book<K, R> {
    pub(super) fn new() -> Self {
        Self {
            keys: HashMap::new(),
            decided: HashMap::new(),
            new: Rows::default(),
            total: Rows::default(),
            forgotten: [Count::default(); SHARES],
            memory: Some(MEMORY),
            most: MOST,
        }
    }

    /// Forgets nothing that there is room for.
    pub(super) fn that_remembers() -> Self {
        Self { memory: None, ..Self::new() }
    }

    /// Begins a new interval with what was counted in it. `row` says what a key belongs to.
    pub(super) fn add(
        &mut self,
        keys: impl Iterator<Item = (K, Count)>,
        rows: Rows,
        now: Instant,
        row: impl FnMut(&K) -> R,
    ) {
        for entry in self.keys.values_mut().chain(self.decided.values_mut()) {
            entry.new = Count::default();
        }
        for (key, count) in keys {
            self.keys.entry(key).or_default().join(Entry {
                new: count,
                total: count,
                seen: Some(now),
            });
        }
        self.new = rows;
        self.total = self.total + rows;
        self.decide(now, row);
        self.forget(now);
    }

    fn decide(&mut self, now: Instant, mut row: impl FnMut(&K) -> R) {
        let Some(limit) = oldest(&self.keys, now.checked_sub(DECIDED), self.most) else {
            return;
        };
        let decided = &mut self.decided;
        self.keys.retain(|key, entry| {
            let keep = entry.seen.is_some_and(|seen| seen >= limit || seen == now);
            if !keep {
                decided.entry(row(key)).or_default().join(*entry);
            }
            keep
        });
    }

    /// Rows that are old, and if there are too many, the oldest.
    fn forget(&mut self, now: Instant) {
        let limit = self.memory.and_then(|memory| now.checked_sub(memory));
        let Some(limit) = oldest(&self.decided, limit, self.most) else {
            return;
        };
        let forgotten = &mut self.forgotten;
        self.decided.retain(|row, entry| {
            let keep = entry.seen.is_some_and(|seen| seen >= limit);
            if !keep {
                forgotten[row.share() as usize] += entry.total;
            }
            keep
        });
    }

    pub(super) fn rows(&self) -> &Rows {
        &self.total
    }

    /// What has a key, whether there was room for it or not.
    pub(super) fn counted(&self) -> Count {
        let sum = |entries: &mut dyn Iterator<Item = &Entry>| -> Count {
            entries.map(|entry| entry.total).sum()
        };
        sum(&mut self.keys.values())
            + sum(&mut self.decided.values())
            + self.forgotten()
            + self.total.not_stored()
    }

    /// Of rows that there is nothing else of any more.
    pub(super) fn forgotten(&self) -> Count {
        self.forgotten.iter().copied().sum()
    }

    /// Every row that is remembered, and what there was of it.
    pub(super) fn all(&self, mut row: impl FnMut(&K) -> R) -> HashMap<R, Count> {
        let mut all: HashMap<R, Count> = HashMap::new();
        for (row, entry) in &self.decided {
            *all.entry(row.clone()).or_default() += entry.total;
        }
        for (key, entry) in &self.keys {
            *all.entry(row(key)).or_default() += entry.total;
        }
        all
    }

    /// What is whose; nothing of what there was no room for.
    pub(super) fn shares(&self, mut row: impl FnMut(&K) -> R) -> HashMap<Share, Count> {
        let mut shares: HashMap<Share, Count> = HashMap::new();
        let all = [Share::Process, Share::Kernel, Share::Forwarded, Share::Unknown];
        for share in all {
            shares.insert(share, self.forgotten[share as usize]);
        }
        for (key, entry) in &self.keys {
            *shares.entry(row(key).share()).or_default() += entry.total;
        }
        for (row, entry) in &self.decided {
            *shares.entry(row.share()).or_default() += entry.total;
        }
        shares
    }

    pub(super) fn lines(&self, view: View, mut row: impl FnMut(&K) -> R) -> Vec<Line<R>> {
        let mut joined: HashMap<R, Entry> = self.decided.clone();
        for (key, entry) in &self.keys {
            joined.entry(row(key)).or_default().join(*entry);
        }
        let mut lines: Vec<Line<R>> = joined
            .into_iter()
            .filter(|(_, entry)| !view.interval || entry.new.packets > 0)
            .map(|(row, entry)| Line { what: What::Row(row), new: entry.new, total: entry.total })
            .collect();
        lines.sort_by(|a, b| {
            let most = |line: &Line<R>| {
                let count = if view.interval { line.new } else { line.total };
                match view.sort {
                    Sort::Packets => Reverse((count.packets, count.bytes)),
                    Sort::Bytes => Reverse((count.bytes, count.packets)),
                    Sort::Key => Reverse((0, 0)),
                }
            };
            most(a).cmp(&most(b)).then_with(|| a.what.row().cmp(&b.what.row()))
        });
        let shown = view.top.unwrap_or(usize::MAX).min(lines.len());
        let rest = lines.split_off(shown);
        let sum =
            |of: fn(&Line<R>) -> Count, lines: &[Line<R>]| lines.iter().map(of).sum::<Count>();
        // Everything that has a key and no row: so the totals add up in every table.
        let other = Line {
            what: What::Other,
            new: sum(|line| line.new, &rest) + self.new.not_stored(),
            total: sum(|line| line.total, &rest) + self.forgotten() + self.total.not_stored(),
        };
        let fixed = [
            (What::Malformed, self.new.malformed, self.total.malformed),
            (What::NotIp, self.new.not_ip, self.total.not_ip),
            (What::MalformedBlocked, self.new.malformed_blocked, self.total.malformed_blocked),
            (What::NotIpBlocked, self.new.not_ip_blocked, self.total.not_ip_blocked),
            (What::Excluded, self.new.excluded, self.total.excluded),
        ]
        .map(|(what, new, total)| Line { what, new, total });
        for line in std::iter::once(other).chain(fixed) {
            let count = if view.interval { line.new } else { line.total };
            if count.packets > 0 || (view.excludes && line.what == What::Excluded) {
                lines.push(line);
            }
        }
        lines
    }
}

/// Before when what there is goes: by its age, and if there is more than `most`, so that the newest of it stay.
fn oldest<K>(entries: &HashMap<K, Entry>, limit: Option<Instant>, most: usize) -> Option<Instant> {
    if entries.len() <= most {
        return limit;
    }
    let mut seen: Vec<Instant> = entries.values().filter_map(|entry| entry.seen).collect();
    let at = seen.len() - most;
    let (_, at, _) = seen.select_nth_unstable(at);
    limit.max(Some(*at))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Row for u32 {
        fn share(&self) -> Share {
            if *self < 1000 { Share::Process } else { Share::Unknown }
        }
    }

    fn packets(packets: u64) -> Count {
        Count { packets, bytes: 100 * packets }
    }

    fn rows(counted: u64, excluded: u64, full: u64) -> Rows {
        Rows {
            total: packets(counted + excluded + full),
            excluded: packets(excluded),
            full: packets(full),
            ..Rows::default()
        }
    }

    fn view(interval: bool, top: Option<usize>) -> View {
        View { interval, sort: Sort::Packets, top, excludes: true }
    }

    fn sum(lines: &[Line<u32>], of: fn(&Line<u32>) -> Count) -> u64 {
        lines.iter().map(|line| of(line).packets).sum()
    }

    fn same(key: &u32) -> u32 {
        *key
    }

    #[test]
    fn rows_add_up_in_every_view() {
        let mut book = Book::new();
        let now = Instant::now();
        let first = [(1, packets(5)), (2, packets(7)), (3, packets(1))];
        book.add(first.into_iter(), rows(13, 4, 2), now, same);
        book.add([(2, packets(1)), (4, packets(9))].into_iter(), rows(10, 1, 0), now, same);
        for top in [None, Some(1), Some(2), Some(100)] {
            let interval = book.lines(view(true, top), same);
            assert_eq!(sum(&interval, |line| line.new), 11, "{interval:?}");
            let total = book.lines(view(false, top), same);
            assert_eq!(sum(&total, |line| line.total), 30, "{total:?}");
        }
        let lines = book.lines(view(true, Some(1)), same);
        assert_eq!((&lines[0].what, lines[0].total), (&What::Row(4), packets(9)));
        assert_eq!((&lines[1].what, lines[1].new), (&What::Other, packets(1)));
        assert_eq!(book.lines(view(false, None), same)[0].what, What::Row(4));
        let by_key = View { sort: Sort::Key, ..view(false, None) };
        assert_eq!(book.lines(by_key, same)[0].what, What::Row(1));
    }

    #[test]
    fn what_is_learned_late_counts_for_what_came_early() {
        let mut book = Book::new();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        // Keys are of a row that is not known at first.
        book.add([(1, packets(5)), (2, packets(6))].into_iter(), rows(11, 0, 0), at(0), |_| 1000);
        assert_eq!(book.lines(view(false, None), |_| 1000)[0].total, packets(11));
        assert_eq!(book.shares(|_| 1000)[&Share::Unknown], packets(11));
        let lines = book.lines(view(false, None), |key| key % 2);
        assert_eq!((lines.len(), lines[0].total), (3, packets(6)));
        // What was decided then stays, and is joined with what comes.
        book.add(std::iter::empty(), rows(0, 0, 0), at(31), |key| key % 2);
        assert!(book.keys.is_empty());
        book.add([(4, packets(1))].into_iter(), rows(1, 0, 0), at(32), |_| 7);
        let lines = book.lines(view(false, None), |_| 0);
        assert_eq!((&lines[0].what, lines[0].total), (&What::Row(0), packets(7)));
        assert_eq!((&lines[1].what, lines[1].total), (&What::Row(1), packets(5)));
        assert_eq!(book.shares(|_| 0)[&Share::Process], packets(12));
        assert_eq!(book.counted(), packets(12));
    }

    #[test]
    fn what_is_forgotten_stays_in_the_totals() {
        let mut book = Book::new();
        book.memory = Some(Duration::from_secs(60));
        let begin = Instant::now();
        for second in 0..200 {
            let now = begin + Duration::from_secs(second);
            book.add([(second as u32, packets(1))].into_iter(), rows(1, 0, 0), now, same);
            let lines = book.lines(view(false, Some(3)), same);
            assert_eq!(sum(&lines, |line| line.total), second + 1);
        }
        let known = book.keys.len() + book.decided.len();
        assert!((55..=65).contains(&known), "{known}");
        assert_eq!(book.forgotten[0].packets, 200 - known as u64);
        assert_eq!(book.shares(same)[&Share::Process], packets(200));
        // Too many in one interval are all shown, and the oldest go.
        book.most = 10;
        let now = begin + Duration::from_secs(201);
        book.add((1000..1020).map(|key| (key, packets(1))), rows(20, 0, 0), now, same);
        assert_eq!(book.keys.len(), 20);
        assert!(book.decided.len() <= 10 + 1, "{}", book.decided.len());
        assert_eq!(book.lines(view(true, None), same).len(), 21);
        assert_eq!(sum(&book.lines(view(false, None), same), |line| line.total), 220);
    }
}
