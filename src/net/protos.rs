// SPDX-License-Identifier: MIT OR Apache-2.0

//! Protocols of IP by name: the registry of the Internet Assigned Numbers Authority, what is met in practice.

use std::collections::BTreeSet;

/// The names that `--proto` takes and tables show.
const NAMES: [(u8, &str); 22] = [
    (1, "icmp"),
    (2, "igmp"),
    (4, "ipip"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (41, "ipv6"),
    (46, "rsvp"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "icmp6"),
    (88, "eigrp"),
    (89, "ospf"),
    (103, "pim"),
    (108, "ipcomp"),
    (112, "vrrp"),
    (115, "l2tp"),
    (132, "sctp"),
    (136, "udplite"),
    (137, "mpls"),
    (143, "ethernet"),
];

/// The protocol's name, or its number where it has none here.
pub(crate) fn name(proto: u8) -> String {
    let known = NAMES.iter().find(|(number, _)| *number == proto);
    known.map_or_else(|| proto.to_string(), |(_, name)| (*name).to_string())
}

/// Protocols by name or number: `tcp,udp,47`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProtoList(pub(crate) BTreeSet<u8>);

impl ProtoList {
    /// One bit a protocol.
    pub(crate) fn words(&self) -> [u64; 4] {
        let mut words = [0; 4];
        for &proto in &self.0 {
            words[usize::from(proto / 64)] |= 1 << (proto % 64);
        }
        words
    }
}

impl std::fmt::Display for ProtoList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.0.iter().map(|&proto| name(proto)).collect();
        f.write_str(&names.join(","))
    }
}

impl std::str::FromStr for ProtoList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut protos = BTreeSet::new();
        for item in text.split(',').map(str::trim) {
            let by_name = NAMES.iter().find(|(_, name)| *name == item).map(|(number, _)| *number);
            let plain = !item.is_empty() && item.bytes().all(|byte| byte.is_ascii_digit());
            let proto = match by_name {
                Some(proto) => Some(proto),
                None if item == "icmpv6" => Some(58),
                None if plain => item.parse().ok(),
                None => None,
            };
            match proto {
                Some(proto) => protos.insert(proto),
                None => {
                    let names: Vec<&str> = NAMES.iter().map(|(_, name)| *name).collect();
                    return Err(format!(
                        "`{item}` is no protocol; expected a number from 0 to 255, or one of {}",
                        names.join(", ")
                    ));
                }
            };
        }
        Ok(Self(protos))
    }
}

/// TCP, UDP, DCCP, SCTP and UDP-Lite.
pub(crate) fn has_ports(proto: u8) -> bool {
    matches!(proto, 6 | 17 | 33 | 132 | 136)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let list: ProtoList = "tcp,17,icmpv6".parse().unwrap();
        assert_eq!(list.0, BTreeSet::from([6, 17, 58]));
        assert_eq!(list.to_string(), "tcp,udp,icmp6");
        assert_eq!(list.words(), [1 << 6 | 1 << 17 | 1 << 58, 0, 0, 0]);
        assert_eq!("255".parse::<ProtoList>().unwrap().words()[3], 1 << 63);
        assert_eq!(name(200), "200");
        for bad in ["", "tcp,", "256", "-1", "+6", "TCP ", "foo"] {
            assert!(bad.parse::<ProtoList>().is_err(), "{bad}");
        }
    }
}
