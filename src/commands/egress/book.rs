// SPDX-License-Identifier: MIT OR Apache-2.0

//! What was counted in the last interval, and in all of them.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::kernel::count::Count;
use crate::kernel::egress::{Rows, Taken};

/// So long, a key that nothing comes of any more is remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// And so many of them.
const MOST_KEYS: usize = 1 << 20;

/// By what rows are in order. The most is first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    #[default]
    Packets,
    Bytes,
    /// The first column, from small to large
    Key,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    new: Count,
    total: Count,
    /// When something came last.
    seen: Option<Instant>,
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What<K> {
    Key(K),
    /// Keys beyond --top, those that there was no room for, and those that were forgotten.
    Other,
    Malformed,
    NotIp,
    Excluded,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<K> {
    pub(super) what: What<K>,
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
pub(super) struct Book<K> {
    keys: HashMap<K, Entry>,
    new: Rows,
    total: Rows,
    /// Of keys that were forgotten.
    forgotten: Count,
    memory: Duration,
    most_keys: usize,
}

impl<K: Copy + Eq + Hash + Ord> Book<K> {
    pub(super) fn new() -> Self {
        Self {
            keys: HashMap::new(),
            new: Rows::default(),
            total: Rows::default(),
            forgotten: Count::default(),
            memory: MEMORY,
            most_keys: MOST_KEYS,
        }
    }

    /// Begins a new interval with what was counted in it.
    pub(super) fn add(&mut self, keys: impl Iterator<Item = (K, Count)>, rows: Rows, now: Instant) {
        for entry in self.keys.values_mut() {
            entry.new = Count::default();
        }
        for (key, count) in keys {
            let entry = self.keys.entry(key).or_default();
            entry.new += count;
            entry.total += count;
            entry.seen = Some(now);
        }
        self.new = rows;
        self.total = self.total + rows;
        self.forget(now);
    }

    /// Keys that are old, and if there are too many, the oldest; never those of this interval.
    fn forget(&mut self, now: Instant) {
        let mut limit = now.checked_sub(self.memory);
        if self.keys.len() > self.most_keys {
            let mut seen: Vec<Instant> =
                self.keys.values().filter_map(|entry| entry.seen).collect();
            let at = seen.len() - self.most_keys;
            let (_, at, _) = seen.select_nth_unstable(at);
            limit = limit.max(Some(*at));
        }
        let Some(limit) = limit else { return };
        let forgotten = &mut self.forgotten;
        self.keys.retain(|_, entry| {
            let keep = entry.seen.is_some_and(|seen| seen >= limit || seen == now);
            if !keep {
                *forgotten += entry.total;
            }
            keep
        });
    }

    pub(super) fn rows(&self) -> &Rows {
        &self.total
    }

    /// What has a key, whether there was room for it or not.
    pub(super) fn counted(&self) -> Count {
        self.keys.values().map(|entry| entry.total).sum::<Count>()
            + self.forgotten
            + self.total.not_stored()
    }

    pub(super) fn lines(&self, view: View) -> Vec<Line<K>> {
        let mut lines: Vec<Line<K>> = self
            .keys
            .iter()
            .filter(|(_, entry)| !view.interval || entry.new.packets > 0)
            .map(|(key, entry)| Line { what: What::Key(*key), new: entry.new, total: entry.total })
            .collect();
        let most = |line: &Line<K>| {
            let count = if view.interval { line.new } else { line.total };
            let key = match line.what {
                What::Key(key) => Some(key),
                _ => None,
            };
            match view.sort {
                Sort::Packets => (Reverse(count.packets), Reverse(count.bytes), key),
                Sort::Bytes => (Reverse(count.bytes), Reverse(count.packets), key),
                Sort::Key => (Reverse(0), Reverse(0), key),
            }
        };
        lines.sort_by_key(most);
        let shown = view.top.unwrap_or(usize::MAX).min(lines.len());
        let rest = lines.split_off(shown);
        let sum =
            |of: fn(&Line<K>) -> Count, lines: &[Line<K>]| lines.iter().map(of).sum::<Count>();
        // Everything that has a key and no row: so the totals add up in every table.
        let other = Line {
            what: What::Other,
            new: sum(|line| line.new, &rest) + self.new.not_stored(),
            total: self.counted() - sum(|line| line.total, &lines),
        };
        let excluded = (What::Excluded, self.new.excluded, self.total.excluded);
        let fixed = [
            (What::Malformed, self.new.malformed, self.total.malformed),
            (What::NotIp, self.new.not_ip, self.total.not_ip),
            excluded,
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

impl Book<crate::kernel::egress::Key> {
    pub(super) fn take(&mut self, taken: Taken, now: Instant) {
        self.add(taken.keys.into_iter(), taken.rows, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn rows_add_up_in_every_view() {
        let mut book = Book::new();
        let now = Instant::now();
        book.add(
            [(1, packets(5)), (2, packets(7)), (3, packets(1))].into_iter(),
            rows(13, 4, 2),
            now,
        );
        book.add([(2, packets(1)), (4, packets(9))].into_iter(), rows(10, 1, 0), now);
        for top in [None, Some(1), Some(2), Some(100)] {
            let interval = book.lines(view(true, top));
            assert_eq!(sum(&interval, |line| line.new), 11, "{interval:?}");
            let total = book.lines(view(false, top));
            assert_eq!(sum(&total, |line| line.total), 30, "{total:?}");
        }
        let lines = book.lines(view(true, Some(1)));
        assert_eq!((lines[0].what, lines[0].total), (What::Key(4), packets(9)));
        assert_eq!((lines[1].what, lines[1].new), (What::Other, packets(1)));
        assert_eq!(book.lines(view(false, None))[0].what, What::Key(4));
        let by_key = View { sort: Sort::Key, ..view(false, None) };
        assert_eq!(book.lines(by_key)[0].what, What::Key(1));
    }

    #[test]
    fn what_is_forgotten_stays_in_the_totals() {
        let mut book = Book::new();
        book.memory = Duration::from_secs(60);
        let begin = Instant::now();
        for second in 0..200 {
            let now = begin + Duration::from_secs(second);
            book.add([(second as u32, packets(1))].into_iter(), rows(1, 0, 0), now);
            assert_eq!(sum(&book.lines(view(false, Some(3))), |line| line.total), second + 1);
        }
        assert!(book.keys.len() <= 61, "{}", book.keys.len());
        assert_eq!(book.forgotten.packets, 200 - book.keys.len() as u64);
        // Too many in one interval are all shown, and the oldest go.
        book.most_keys = 10;
        let now = begin + Duration::from_secs(201);
        book.add((1000..1020).map(|key| (key, packets(1))), rows(20, 0, 0), now);
        assert_eq!(book.keys.len(), 20);
        assert_eq!(book.lines(view(true, None)).len(), 21);
        assert_eq!(sum(&book.lines(view(false, None)), |line| line.total), 220);
    }
}
