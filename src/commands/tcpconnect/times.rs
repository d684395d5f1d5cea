// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many times in little room: how many there are of each, within 1 %.

/// Bits of a time behind its first one that tell it from others: the middle of so many parts of an octave is within 1 %.
const BITS: u32 = 6;
/// Of an entry; the rest is its count.
const COUNT_BITS: u32 = 48;

/// In any unit. Most destinations have few times that differ: each takes eight bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Times {
    /// In order: the bucket, and behind it how many times are in it.
    entries: Vec<u64>,
    len: u64,
}

/// What is less than two octaves of parts has a bucket of its own.
fn bucket(time: u64) -> u64 {
    let octave = (u64::BITS - time.leading_zeros()).saturating_sub(BITS + 1);
    (u64::from(octave) << BITS) + (time >> octave)
}

/// The middle of a bucket.
fn middle(bucket: u64) -> f64 {
    let octave = (bucket >> BITS).saturating_sub(1);
    let first = (bucket - (octave << BITS)) << octave;
    first as f64 + ((1_u64 << octave) - 1) as f64 / 2.0
}

impl Times {
    pub(super) fn add(&mut self, time: u64) {
        self.add_to(bucket(time), 1);
    }

    fn add_to(&mut self, bucket: u64, count: u64) {
        self.len += count;
        match self.entries.binary_search_by_key(&bucket, |entry| entry >> COUNT_BITS) {
            Ok(at) => self.entries[at] += count,
            Err(at) => {
                // A vector's first room is for four, of which most need one.
                if self.entries.is_empty() {
                    self.entries.reserve_exact(1);
                }
                self.entries.insert(at, bucket << COUNT_BITS | count);
            }
        }
    }

    /// The least time that this share of all is not beyond.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = ((self.len as f64 * share).ceil() as u64).max(1);
        let mut sum = 0;
        self.entries.iter().find_map(|entry| {
            sum += entry & ((1 << COUNT_BITS) - 1);
            (sum >= wanted).then(|| middle(entry >> COUNT_BITS))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::seeded;

    #[test]
    fn buckets_are_in_order_and_within_one_percent() {
        let mut random = seeded();
        let mut times: Vec<u64> = (0..4000).map(|_| random.u64(..) >> random.u32(..64)).collect();
        times.extend(0..2000);
        times.extend([u64::MAX, 1 << 63, (1 << 63) - 1]);
        times.sort_unstable();
        for pair in times.windows(2) {
            assert!(bucket(pair[0]) <= bucket(pair[1]), "{pair:?}");
        }
        assert!(bucket(u64::MAX) < 1 << (64 - COUNT_BITS));
        for time in times {
            let found = middle(bucket(time));
            assert!((found - time as f64).abs() <= time as f64 / 100.0, "{time} {found}");
        }
    }

    #[test]
    fn quantiles_are_those_of_all_times() {
        let mut random = seeded();
        for size in [1, 2, 10, 1000] {
            let mut all: Vec<u64> = (0..size).map(|_| random.u64(1..1 << 24)).collect();
            let mut times = Times::default();
            all.iter().for_each(|&time| times.add(time));
            all.sort_unstable();
            for share in [0.5, 0.99] {
                let exact = all[((size as f64 * share).ceil() as usize).max(1) - 1] as f64;
                let found = times.quantile(share).unwrap();
                assert!((found - exact).abs() <= exact / 100.0, "{size} {share}: {found} {exact}");
            }
        }
        assert_eq!(Times::default().quantile(0.5), None);
    }

    #[test]
    fn few_times_take_little_room() {
        let mut times = Times::default();
        (0..1000).for_each(|_| times.add(1500));
        assert_eq!((times.entries.len(), times.entries.capacity()), (1, 1));
        assert_eq!(times.quantile(0.5).map(|time| (time - 1500.0).abs() < 15.0), Some(true));
    }
}
