// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sets of networks as the kernel's longest-prefix tries have them.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv6Net};

/// struct bpf_lpm_trie_key: the length of the prefix, then the address, v4-mapped as in every record.
fn prefix_key(net: &IpNet) -> [u8; 20] {
    let (len, addr) = match net {
        IpNet::V4(net) => (net.prefix_len() + 96, net.addr().to_ipv6_mapped()),
        IpNet::V6(net) => (net.prefix_len(), net.addr()),
    };
    let mut key = [0; 20];
    key[..4].copy_from_slice(&u32::from(len).to_ne_bytes());
    key[4..].copy_from_slice(&addr.octets());
    key
}

/// The set of these networks, as prefixes that are in it or not: the longest decides. IPv6's do not have IPv4's addresses.
pub(super) fn prefixes(nets: &[IpNet]) -> BTreeMap<[u8; 20], bool> {
    let mapped: Ipv6Net = "::ffff:0:0/96".parse().expect("a network");
    let around = |net: &IpNet| matches!(net, IpNet::V6(net) if net.contains(&mapped));
    let mut prefixes = BTreeMap::new();
    if nets.iter().any(around) {
        prefixes.insert(prefix_key(&mapped.into()), false);
    }
    prefixes.extend(nets.iter().map(|net| (prefix_key(net), true)));
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    #[test]
    fn prefixes_are_v4_mapped() {
        let key = prefix_key(&"10.0.0.0/8".parse().unwrap());
        assert_eq!(u32::from_ne_bytes(key[..4].try_into().unwrap()), 104);
        assert_eq!(&key[4..], &"::ffff:10.0.0.0".parse::<Ipv6Addr>().unwrap().octets());
        let key = prefix_key(&"2001:db8::/32".parse().unwrap());
        assert_eq!(u32::from_ne_bytes(key[..4].try_into().unwrap()), 32);
    }

    #[test]
    fn ipv4_is_in_no_network_of_ipv6() {
        let set = |nets: &[&str]| {
            prefixes(&nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>())
        };
        let key = |net: &str| prefix_key(&net.parse().unwrap());
        assert_eq!(set(&[]), BTreeMap::new());
        assert_eq!(set(&["::/97"]), [(key("::/97"), true)].into());
        for around in ["::/0", "::/80", "::fffe:0:0/95"] {
            let expected = [(key(around), true), (key("::ffff:0:0/96"), false)];
            assert_eq!(set(&[around]), expected.into(), "{around}");
        }
        let both = [(key("::/0"), true), (key("0.0.0.0/0"), true)];
        assert_eq!(set(&["0.0.0.0/0", "::/0"]), both.into());
    }
}
