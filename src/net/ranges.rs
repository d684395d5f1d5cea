// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sets of addresses as sorted ranges that neither overlap nor touch.

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
        merge(&mut ranges.v4, |end| end.checked_add(1));
        merge(&mut ranges.v6, |end| end.checked_add(1));
        ranges
    }
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
}
