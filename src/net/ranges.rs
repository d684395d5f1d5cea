// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sets of addresses as sorted ranges that neither overlap nor touch.

#[cfg(test)]
use std::net::IpAddr;

use ipnet::IpNet;

/// What the prefixes given so far cover. Ranges include both of their ends.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl Ranges {
    /// In order, apart from each other by one address at least.
    pub(crate) fn v4(&self) -> &[(u32, u32)] {
        &self.v4
    }

    pub(crate) fn v6(&self) -> &[(u128, u128)] {
        &self.v6
    }

    /// Every address there is.
    pub(crate) fn all() -> Self {
        Self { v4: vec![(0, u32::MAX)], v6: vec![(0, u128::MAX)] }
    }

    /// Those from the first to the second of each pair, in any order.
    pub(crate) fn between(mut v4: Vec<(u32, u32)>, mut v6: Vec<(u128, u128)>) -> Self {
        merge(&mut v4, |end| end.checked_add(1));
        merge(&mut v6, |end| end.checked_add(1));
        Self { v4, v6 }
    }

    #[cfg(test)]
    pub(crate) fn contains(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(addr) => within(&self.v4, addr.to_bits()),
            IpAddr::V6(addr) => within(&self.v6, addr.to_bits()),
        }
    }

    /// What is in either.
    pub(crate) fn with(mut self, other: &Self) -> Self {
        self.v4.extend(&other.v4);
        self.v6.extend(&other.v6);
        Self::between(self.v4, self.v6)
    }

    /// What is here and not in `other`.
    pub(crate) fn without(&self, other: &Self) -> Self {
        Self {
            v4: difference(&self.v4, &other.v4, |a| a.checked_sub(1), |a| a.checked_add(1)),
            v6: difference(&self.v6, &other.v6, |a| a.checked_sub(1), |a| a.checked_add(1)),
        }
    }
}

impl FromIterator<IpNet> for Ranges {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut ranges = Self::default();
        for net in nets {
            match net {
                IpNet::V4(net) => {
                    ranges.v4.push((net.network().to_bits(), net.broadcast().to_bits()));
                }
                IpNet::V6(net) => {
                    ranges.v6.push((net.network().to_bits(), net.broadcast().to_bits()));
                }
            }
        }
        Self::between(ranges.v4, ranges.v6)
    }
}

#[cfg(test)]
fn within<T: Copy + Ord>(ranges: &[(T, T)], what: T) -> bool {
    let behind = ranges.partition_point(|&(first, _)| first <= what);
    behind.checked_sub(1).is_some_and(|at| ranges[at].1 >= what)
}

/// `next` gives the address behind a range's end, if there is one.
fn merge<T: Copy + Ord>(ranges: &mut Vec<(T, T)>, next: impl Fn(T) -> Option<T>) {
    ranges.sort_unstable();
    ranges.dedup_by(|later, earlier| {
        let joins = next(earlier.1).is_none_or(|next| later.0 <= next);
        if joins {
            earlier.1 = earlier.1.max(later.1);
        }
        joins
    });
    ranges.shrink_to_fit();
}

/// Both sorted, as `merge` leaves them.
fn difference<T: Copy + Ord>(
    from: &[(T, T)],
    what: &[(T, T)],
    before: impl Fn(T) -> Option<T>,
    behind: impl Fn(T) -> Option<T>,
) -> Vec<(T, T)> {
    let mut left = Vec::new();
    let mut what = what.iter().peekable();
    for &(first, last) in from {
        let mut rest = Some(first);
        while let Some(&&(start, end)) = what.peek() {
            if rest.is_some_and(|rest| end < rest) {
                what.next();
                continue;
            }
            let Some(at) = rest.filter(|_| start <= last) else { break };
            if at < start
                && let Some(end) = before(start)
            {
                left.push((at, end));
            }
            rest = behind(end).filter(|&next| next <= last);
            if rest.is_none() {
                // It may reach into the next range as well.
                break;
            }
            what.next();
        }
        left.extend(rest.map(|rest| (rest, last)));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(nets: &[&str]) -> Ranges {
        nets.iter().map(|net| net.parse::<IpNet>().unwrap()).collect()
    }

    #[test]
    fn what_overlaps_or_touches_becomes_one() {
        let set = ranges(&["10.0.0.128/25", "10.0.0.0/25", "10.0.0.7/32", "10.0.2.0/24"]);
        assert_eq!(set.v4(), [(0x0a00_0000, 0x0a00_00ff), (0x0a00_0200, 0x0a00_02ff)]);
        let set = ranges(&["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8"]);
        assert_eq!(set.v4(), [(0x0a00_0000, 0x0aff_ffff)]);
    }

    #[test]
    fn the_last_address_has_none_behind_it() {
        let set = ranges(&["255.255.255.255/32", "128.0.0.0/1", "0.0.0.0/32"]);
        assert_eq!(set.v4(), [(0, 0), (1 << 31, u32::MAX)]);
        assert_eq!(ranges(&["::/0", "ffff::/16"]).v6(), [(0, u128::MAX)]);
    }

    #[test]
    fn both_ends_are_inside() {
        let set = ranges(&["10.0.0.0/24", "10.0.2.0/24", "2001:db8::/32"]);
        for (addr, inside) in [
            ("9.255.255.255", false),
            ("10.0.0.0", true),
            ("10.0.0.255", true),
            ("10.0.1.0", false),
            ("10.0.2.255", true),
            ("10.0.3.0", false),
            ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", true),
            ("2001:db9::", false),
            ("::", false),
        ] {
            assert_eq!(set.contains(addr.parse().unwrap()), inside, "{addr}");
        }
    }

    #[test]
    fn sets_are_added_and_taken_away() {
        let some = ranges(&["10.0.0.0/8", "192.168.0.0/16", "fc00::/7"]);
        let left = some.without(&ranges(&["10.1.0.0/16", "10.255.0.0/16", "192.0.0.0/8"]));
        assert_eq!(left.v4(), [(0x0a00_0000, 0x0a00_ffff), (0x0a02_0000, 0x0afe_ffff)]);
        assert_eq!(left.v6(), some.v6());
        assert_eq!(some.without(&Ranges::all()).v4(), []);
        let rest = Ranges::all().without(&some);
        assert_eq!(rest.v4().len(), 3);
        let whole = rest.with(&some);
        assert_eq!((whole.v4(), whole.v6()), (&[(0, u32::MAX)][..], &[(0, u128::MAX)][..]));
    }

    /// Beside one address after the other.
    #[test]
    fn random_sets_are_what_their_addresses_say() {
        let mut random = crate::random::seeded();
        let mut set = || -> Ranges {
            (0..random.usize(..12))
                .map(|_| {
                    let net = ipnet::Ipv4Net::new(random.u32(..256).into(), random.u8(24..=32));
                    IpNet::from(net.unwrap().trunc())
                })
                .collect()
        };
        for _ in 0..2000 {
            let (a, b) = (set(), set());
            let (sum, difference) = (a.clone().with(&b), a.without(&b));
            let has =
                |set: &Ranges, address| set.v4().iter().any(|r| r.0 <= address && address <= r.1);
            for address in 0..257 {
                assert_eq!(has(&sum, address), has(&a, address) || has(&b, address));
                assert_eq!(has(&difference, address), has(&a, address) && !has(&b, address));
            }
            assert!(
                difference.v4().windows(2).all(|pair| pair[0].1 + 1 < pair[1].0),
                "{difference:?}"
            );
        }
    }
}
