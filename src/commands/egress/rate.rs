// SPDX-License-Identifier: MIT OR Apache-2.0

//! How many lines there are of what one sender does again and again: whoever is blocked must not be able to fill the disk with that.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::str::FromStr;

use crate::kernel::egress::{Event, Rule, RuleHook};

/// Lines a second of one flow, unless something else is asked for.
const DEFAULT: u32 = 10;
/// A user may have so many flows' worth of lines.
const FLOWS_OF_A_USER: u32 = 100;
/// Flows, and users, that are known apart. What is beyond them shares one bucket.
const MOST_KEYS: usize = 16_384;

/// `--audit-rate`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AuditRate {
    All,
    PerSecond(u32),
}

impl AuditRate {
    /// Where it isn't said: of what is blocked, but not of what only tells, or of who asks for every packet.
    pub(super) fn or_default(asked: Option<Self>, blocks: bool, all_packets: bool) -> Self {
        let default = if blocks && !all_packets { Self::PerSecond(DEFAULT) } else { Self::All };
        asked.unwrap_or(default)
    }
}

impl FromStr for AuditRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => match text.parse() {
                Ok(rate) if (1..=1_000_000).contains(&rate) && !text.starts_with('+') => {
                    Ok(Self::PerSecond(rate))
                }
                _ => Err("expected lines a second of one flow, from 1 to 1000000, or all".into()),
            },
        }
    }
}

/// A flow, from whichever of its ports it comes: each new socket has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flow {
    daddr: IpAddr,
    dport: Option<u16>,
    proto: Option<u8>,
    rule: Option<Rule>,
    call: bool,
}

#[derive(Debug)]
pub(super) struct Limiter {
    flows: Option<Buckets<Flow>>,
    users: Option<Buckets<Option<u32>>>,
    total: u64,
}

impl Limiter {
    pub(super) fn new(rate: AuditRate) -> Self {
        let (flows, users) = match rate {
            AuditRate::All => (None, None),
            AuditRate::PerSecond(rate) => {
                (Some(Buckets::new(rate)), Some(Buckets::new(rate.saturating_mul(FLOWS_OF_A_USER))))
            }
        };
        Self { flows, users, total: 0 }
    }

    /// Lines that were left out so far.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Whether there is to be a line of it, and then how many of its flow were left out before. Whose it is is only asked where that
    /// matters.
    pub(super) fn admits(
        &mut self,
        event: &Event,
        user: impl FnOnce() -> Option<u32>,
    ) -> Option<u64> {
        let (Some(flows), Some(users)) = (&mut self.flows, &mut self.users) else { return Some(0) };
        let flow = Flow {
            daddr: event.daddr,
            dport: event.dport,
            proto: event.proto,
            rule: event.rule,
            call: event.hook != RuleHook::Tc,
        };
        let bucket = flows.of(flow, event.time_ns);
        if bucket.has_one() && users.of(user(), event.time_ns).takes_one() {
            bucket.takes_one();
            return Some(std::mem::take(&mut bucket.left_out));
        }
        bucket.left_out += 1;
        self.total += 1;
        None
    }
}

/// Lines that may be written now, of a second's worth at most.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    lines: f64,
    at: u64,
    left_out: u64,
}

impl Bucket {
    fn has_one(&self) -> bool {
        self.lines >= 1.0
    }

    fn takes_one(&mut self) -> bool {
        let has = self.has_one();
        if has {
            self.lines -= 1.0;
        }
        has
    }

    /// Events of several processors may come in another order than they happened.
    fn refill(&mut self, rate: u32, now: u64) {
        let passed = now.saturating_sub(self.at) as f64 / 1e9;
        self.lines = (self.lines + passed * f64::from(rate)).min(rate.into());
        self.at = self.at.max(now);
    }
}

#[derive(Debug)]
struct Buckets<K> {
    rate: u32,
    of: HashMap<K, Bucket>,
    rest: Bucket,
    swept: u64,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(rate: u32) -> Self {
        let rest = Bucket { lines: rate.into(), at: 0, left_out: 0 };
        Self { rate, of: HashMap::new(), rest, swept: 0 }
    }

    fn of(&mut self, key: K, now: u64) -> &mut Bucket {
        let rate = self.rate;
        // No more often than in each second, since it looks at all of them.
        if self.of.len() >= MOST_KEYS && now.saturating_sub(self.swept) >= 1_000_000_000 {
            self.swept = now;
            self.of.retain(|_, bucket| {
                bucket.refill(rate, now);
                // One that is full and owes nothing is as good as none.
                bucket.lines < rate.into() || bucket.left_out > 0
            });
        }
        let room = self.of.len() < MOST_KEYS;
        let bucket = if room || self.of.contains_key(&key) {
            let full = Bucket { lines: rate.into(), at: now, left_out: 0 };
            self.of.entry(key).or_insert(full)
        } else {
            &mut self.rest
        };
        bucket.refill(rate, now);
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn event(time_ns: u64, last: u32, dport: u16) -> Event {
        Event {
            time_ns,
            hook: RuleHook::Sendmsg,
            rule: Some(Rule::Blocked),
            interface: None,
            socket: None,
            tgid: None,
            saddr: None,
            daddr: IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + last)),
            sport: None,
            dport: Some(dport),
            proto: Some(17),
            packets: 0,
            bytes: 0,
        }
    }

    #[test]
    fn rates_are_numbers_or_all() {
        assert_eq!("all".parse(), Ok(AuditRate::All));
        assert_eq!("7".parse(), Ok(AuditRate::PerSecond(7)));
        for bad in ["0", "-1", "+1", "", "1/s", "1000001", "18446744073709551616"] {
            assert!(bad.parse::<AuditRate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_left_out_is_told_with_the_next_line_of_the_flow() {
        let mut limiter = Limiter::new(AuditRate::PerSecond(10));
        let mut admits = |time, last, port| limiter.admits(&event(time, last, port), || Some(7));
        for n in 0..100 {
            assert_eq!(admits(1, 1, 9).is_some(), n < 10, "{n}");
        }
        // Another flow is not of it.
        assert_eq!(admits(1, 1, 10), Some(0));
        // A tenth of a second later there is room for one more.
        assert_eq!(admits(1 + SECOND / 10, 1, 9), Some(90));
        assert_eq!(admits(1 + SECOND / 10, 1, 9), None);
        assert_eq!(admits(1, 1, 9), None, "an older one");
        assert_eq!(admits(1 + 9 * SECOND, 1, 9), Some(2));
        assert_eq!(limiter.total(), 92);
    }

    #[test]
    fn a_user_of_many_flows_leaves_room_for_others() {
        let mut limiter = Limiter::new(AuditRate::PerSecond(2));
        let mut lines = |user, flows: u32| {
            (0..flows).filter(|&n| limiter.admits(&event(5, n, 9), || user).is_some()).count()
        };
        assert_eq!(lines(Some(1000), 100_000), 200);
        assert!(limiter.flows.as_ref().unwrap().of.len() <= MOST_KEYS);
        assert_eq!(limiter.total(), 99_800);
        assert!(limiter.admits(&event(5, 1 << 20, 80), || Some(0)).is_some());
        let mut everything = Limiter::new(AuditRate::All);
        assert!((0..1000).all(|_| everything.admits(&event(5, 1, 9), || None) == Some(0)));
    }
}
