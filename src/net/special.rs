// SPDX-License-Identifier: MIT OR Apache-2.0

//! The special-purpose address registries of the Internet Assigned Numbers Authority, both families, as of October 2025:
//! <https://www.iana.org/assignments/iana-ipv4-special-registry> and <https://www.iana.org/assignments/iana-ipv6-special-registry>.

use super::ranges::Ranges;

/// What a registry says of "globally reachable".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    Global,
    NotGlobal,
    /// Neither yes nor no: it depends on what is embedded in the address, or the entry is deprecated.
    NotSaid,
}

use Reach::{Global, NotGlobal, NotSaid};

/// A block, its name and whether it is globally reachable. Where blocks are in others, the innermost counts.
pub(crate) const REGISTRY: &[(&str, &str, Reach)] = &[
    ("0.0.0.0/8", "this network", NotGlobal),
    ("10.0.0.0/8", "private use", NotGlobal),
    ("100.64.0.0/10", "shared address space", NotGlobal),
    ("127.0.0.0/8", "loopback", NotGlobal),
    ("169.254.0.0/16", "link local", NotGlobal),
    ("172.16.0.0/12", "private use", NotGlobal),
    ("192.0.0.0/24", "IETF protocol assignments", NotGlobal),
    ("192.0.0.9/32", "port control protocol anycast", Global),
    ("192.0.0.10/32", "TURN anycast", Global),
    ("192.0.2.0/24", "documentation", NotGlobal),
    ("192.31.196.0/24", "AS112", Global),
    ("192.52.193.0/24", "AMT", Global),
    ("192.88.99.0/24", "6to4 relay anycast, deprecated", NotSaid),
    ("192.88.99.2/32", "6a44 relay anycast", NotGlobal),
    ("192.168.0.0/16", "private use", NotGlobal),
    ("192.175.48.0/24", "direct delegation AS112", Global),
    ("198.18.0.0/15", "benchmarking", NotGlobal),
    ("198.51.100.0/24", "documentation", NotGlobal),
    ("203.0.113.0/24", "documentation", NotGlobal),
    ("240.0.0.0/4", "reserved, and limited broadcast", NotGlobal),
    ("::/128", "unspecified address", NotGlobal),
    ("::1/128", "loopback", NotGlobal),
    ("::ffff:0:0/96", "IPv4-mapped", NotGlobal),
    ("64:ff9b::/96", "translation of IPv4", Global),
    ("64:ff9b:1::/48", "translation of IPv4, local", NotGlobal),
    ("100::/64", "discard only", NotGlobal),
    ("100:0:0:1::/64", "dummy prefix", NotGlobal),
    ("2001::/23", "IETF protocol assignments", NotGlobal),
    ("2001::/32", "Teredo", NotSaid),
    ("2001:1::1/128", "port control protocol anycast", Global),
    ("2001:1::2/128", "TURN anycast", Global),
    ("2001:1::3/128", "DNS-SD service registration anycast", Global),
    ("2001:2::/48", "benchmarking", NotGlobal),
    ("2001:3::/32", "AMT", Global),
    ("2001:4:112::/48", "AS112", Global),
    ("2001:10::/28", "ORCHID, deprecated", NotSaid),
    ("2001:20::/28", "ORCHIDv2", Global),
    ("2001:30::/28", "drone remote identification", Global),
    ("2001:db8::/32", "documentation", NotGlobal),
    ("2002::/16", "6to4", NotSaid),
    ("2620:4f:8000::/48", "direct delegation AS112", Global),
    ("3fff::/20", "documentation", NotGlobal),
    ("5f00::/16", "segment routing", NotGlobal),
    ("fc00::/7", "unique local", NotGlobal),
    ("fe80::/10", "link local", NotGlobal),
];

/// What is not globally reachable, by the innermost entry that an address is in.
pub(crate) fn not_global() -> Ranges {
    let mut blocks: Vec<(ipnet::IpNet, Reach)> = REGISTRY
        .iter()
        .map(|(block, _, reach)| (block.parse().expect("the table has blocks"), *reach))
        .collect();
    blocks.sort_by_key(|(block, _)| block.prefix_len());
    blocks.into_iter().fold(Ranges::default(), |set, (block, reach)| {
        let block: Ranges = [block].into_iter().collect();
        if reach == NotGlobal { set.with(&block) } else { set.without(&block) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn has(set: &Ranges, address: &str) -> bool {
        match address.parse().unwrap() {
            IpAddr::V4(address) => {
                let address = address.to_bits();
                set.v4().iter().any(|range| range.0 <= address && address <= range.1)
            }
            IpAddr::V6(address) => {
                let address = address.to_bits();
                set.v6().iter().any(|range| range.0 <= address && address <= range.1)
            }
        }
    }

    #[test]
    fn the_innermost_entry_counts() {
        let set = not_global();
        for inside in [
            "10.255.255.255",
            "100.64.0.1",
            "172.31.0.1",
            "192.0.0.8",
            "192.0.0.11",
            "192.168.1.1",
            "192.88.99.2",
            "255.255.255.255",
            "::1",
            "2001:1::4",
            "2001:1ff::1",
            "2001:db8::1",
            "3fff:fff::1",
            "fd00::1",
            "fe80::1",
        ] {
            assert!(has(&set, inside), "{inside}");
        }
        for outside in [
            "9.255.255.255",
            "11.0.0.0",
            "100.128.0.0",
            "172.32.0.0",
            "192.0.0.9",
            "192.0.1.1",
            "192.88.99.1",
            "224.0.0.251",
            "239.255.255.255",
            "2001::1",
            "2001:1::1",
            "2001:20::1",
            "2001:200::1",
            "2002::1",
            "2606:4700::1111",
            "64:ff9b::1",
            "ff02::1",
        ] {
            assert!(!has(&set, outside), "{outside}");
        }
    }

    #[test]
    fn entries_are_blocks_each_once() {
        let mut blocks: Vec<ipnet::IpNet> =
            REGISTRY.iter().map(|(block, ..)| block.parse().unwrap()).collect();
        let count = blocks.len();
        blocks.sort();
        blocks.dedup();
        assert_eq!(blocks.len(), count);
    }
}
