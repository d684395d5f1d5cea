// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a packet is, for one line about it.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use etherparse::{
    ArpPacketSlice, LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice, VlanSlice, ether_type,
};

use super::linktype::{Header, LinkType};

/// What is known of a packet. Of one that is cut short or malformed, what comes before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) smac: Option<String>,
    pub(crate) dmac: Option<String>,
    /// Tags, the outer first.
    pub(crate) vlan: Vec<u32>,
    pub(crate) family: Option<u8>,
    pub(crate) saddr: Option<IpAddr>,
    pub(crate) sport: Option<u16>,
    pub(crate) daddr: Option<IpAddr>,
    pub(crate) dport: Option<u16>,
    /// `tcp`, `arp`, or a number
    pub(crate) proto: String,
    /// What the packet does, where a word says it: an ARP operation, TCP flags, an ICMP type
    pub(crate) info: Option<String>,
}

/// Describes a packet that begins with what `link` says.
pub(crate) fn describe(data: &[u8], link: LinkType) -> Description {
    let mut description = Description { proto: "unknown".into(), ..Description::default() };
    let parsed = match link.header() {
        Header::Ethernet => LaxSlicedPacket::from_ethernet(data).ok(),
        Header::Ip => LaxSlicedPacket::from_ip(data).ok(),
        // <https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL.html>, and the same with SLL2
        Header::Cooked => cooked(data, 2, 14, 16),
        Header::Cooked2 => cooked(data, 8, 0, 20),
        // Every number for IPv4 and IPv6 leads to the same; what is something else is no IP header.
        Header::Family => data.get(4..).and_then(|ip| LaxSlicedPacket::from_ip(ip).ok()),
        Header::Other => None,
    };
    if let Some(parsed) = parsed {
        description.fill(&parsed);
    }
    description
}

/// Behind a header of `length` bytes, with the hardware type at `hardware` and the protocol at `protocol`.
fn cooked(
    data: &[u8],
    hardware: usize,
    protocol: usize,
    length: usize,
) -> Option<LaxSlicedPacket<'_>> {
    const ARPHRD_FRAD: u16 = 770;
    const ARPHRD_IEEE80211_RADIOTAP: u16 = 803;
    const ARPHRD_NETLINK: u16 = 824;
    let field = |at: usize| Some(u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?));
    let payload = data.get(length..)?;
    match field(hardware)? {
        // Of these the protocol is no EtherType.
        ARPHRD_FRAD | ARPHRD_IEEE80211_RADIOTAP | ARPHRD_NETLINK => None,
        _ => Some(LaxSlicedPacket::from_ether_type(field(protocol)?.into(), payload)),
    }
}

impl Description {
    fn fill(&mut self, packet: &LaxSlicedPacket<'_>) {
        if let Some(LinkSlice::Ethernet2(header)) = &packet.link {
            self.smac = Some(hardware(&header.source()));
            self.dmac = Some(hardware(&header.destination()));
        }
        if let Some(VlanSlice::SingleVlan(_) | VlanSlice::DoubleVlan(_)) = packet.vlan() {
            self.vlan = packet.vlan_ids().iter().map(|id| u32::from(id.value())).collect();
        }
        if let Some(payload) = packet.ether_payload() {
            self.proto = ether_name(payload.ether_type.0);
        }
        match &packet.net {
            Some(LaxNetSlice::Ipv4(ip)) => {
                let header = ip.header();
                self.family = Some(4);
                self.saddr = Some(header.source_addr().into());
                self.daddr = Some(header.destination_addr().into());
                // Only the first fragment has ports.
                let first = header.fragments_offset().value() == 0;
                self.transport(ip.payload().ip_number.0, first.then_some(ip.payload().payload));
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                let header = ip.header();
                self.family = Some(6);
                self.saddr = Some(header.source_addr().into());
                self.daddr = Some(header.destination_addr().into());
                let whole = !ip.is_payload_fragmented();
                self.transport(ip.payload().ip_number.0, whole.then_some(ip.payload().payload));
            }
            Some(LaxNetSlice::Arp(arp)) => self.arp(arp),
            None => {}
        }
        self.info = match &packet.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                let flags = [
                    (tcp.syn(), 'S'),
                    (tcp.fin(), 'F'),
                    (tcp.rst(), 'R'),
                    (tcp.psh(), 'P'),
                    (tcp.ack(), 'A'),
                    (tcp.urg(), 'U'),
                    (tcp.ece(), 'E'),
                    (tcp.cwr(), 'C'),
                ];
                Some(flags.into_iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect())
            }
            Some(TransportSlice::Icmpv4(icmp)) => Some(icmp_info(icmp.type_u8(), icmp.code_u8())),
            Some(TransportSlice::Icmpv6(icmp)) => Some(icmp_info(icmp.type_u8(), icmp.code_u8())),
            _ => self.info.take(),
        };
    }

    fn transport(&mut self, number: u8, payload: Option<&[u8]>) {
        self.proto = ip_name(number);
        // TCP, UDP, DCCP, SCTP and UDP-Lite have the ports at the same place.
        if let (6 | 17 | 33 | 132 | 136, Some([a, b, c, d, ..])) = (number, payload) {
            self.sport = Some(u16::from_be_bytes([*a, *b]));
            self.dport = Some(u16::from_be_bytes([*c, *d]));
        }
    }

    fn arp(&mut self, arp: &ArpPacketSlice<'_>) {
        self.proto = "arp".into();
        self.info = Some(match arp.operation().0 {
            1 => "request".into(),
            2 => "reply".into(),
            other => format!("operation {other}"),
        });
        let address = |bytes: &[u8]| {
            let bytes: [u8; 4] = bytes.try_into().ok()?;
            Some(IpAddr::from(Ipv4Addr::from(bytes)))
        };
        if arp.proto_addr_type() == ether_type::IPV4 {
            self.family = Some(4);
            self.saddr = address(arp.sender_protocol_addr());
            self.daddr = address(arp.target_protocol_addr());
        }
    }
}

fn icmp_info(kind: u8, code: u8) -> String {
    format!("type {kind} code {code}")
}

fn hardware(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let colon = if text.is_empty() { "" } else { ":" };
        let _ = write!(text, "{colon}{byte:02x}");
    }
    text
}

fn ip_name(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        2 => "igmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        33 => "dccp".into(),
        47 => "gre".into(),
        50 => "esp".into(),
        51 => "ah".into(),
        58 => "icmp6".into(),
        89 => "ospf".into(),
        103 => "pim".into(),
        112 => "vrrp".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        other => format!("ip {other}"),
    }
}

fn ether_name(number: u16) -> String {
    match number {
        0x0800 => "ip".into(),
        0x0806 => "arp".into(),
        0x86dd => "ip6".into(),
        0x8035 => "rarp".into(),
        0x8847 | 0x8848 => "mpls".into(),
        0x8863 => "pppoed".into(),
        0x8864 => "pppoes".into(),
        0x88cc => "lldp".into(),
        0x88e5 => "macsec".into(),
        // Below, the field is a length: 802.3.
        0..=0x5dc => "llc".into(),
        other => format!("{other:#06x}"),
    }
}

/// Bytes as tcpdump -x shows them: 16 a line, with their offset.
pub(crate) fn hex_lines(data: &[u8]) -> String {
    let mut text = String::new();
    for (i, line) in data.chunks(16).enumerate() {
        let _ = write!(text, "\t{:#06x}: ", i * 16);
        for pair in line.chunks(2) {
            text.push(' ');
            for byte in pair {
                let _ = write!(text, "{byte:02x}");
            }
        }
        text.push('\n');
    }
    text
}

/// Bytes without anything between them.
pub(crate) fn hex(data: &[u8]) -> String {
    data.iter().fold(String::with_capacity(data.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, VlanId};

    const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

    #[test]
    fn what_packets_are() {
        let mut packet = Vec::new();
        PacketBuilder::ethernet2(MACS.0, MACS.1)
            .single_vlan(VlanId::try_new(7).unwrap())
            .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
            .tcp(4000, 443, 1, 1024)
            .syn()
            .write(&mut packet, &[])
            .unwrap();
        let tcp = describe(&packet, LinkType::ETHERNET);
        assert_eq!(tcp.smac.as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!((tcp.vlan.clone(), tcp.family, tcp.proto.as_str()), (vec![7], Some(4), "tcp"));
        assert_eq!((tcp.sport, tcp.dport, tcp.info.as_deref()), (Some(4000), Some(443), Some("S")));
        assert_eq!(tcp.daddr.unwrap().to_string(), "192.0.2.2");
        let raw = describe(&packet[18..], LinkType::RAW);
        assert_eq!((raw.smac, raw.dport), (None, Some(443)));

        let mut arp = vec![0xff; 6];
        arp.extend(MACS.0);
        arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend([2, 0, 0, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 2]);
        let arp = describe(&arp, LinkType::ETHERNET);
        assert_eq!((arp.proto.as_str(), arp.info.as_deref()), ("arp", Some("request")));
        assert_eq!(arp.saddr.unwrap().to_string(), "192.0.2.1");
    }

    #[test]
    fn cooked_captures() {
        let ip = &udp_over_ipv6()[14..];
        // To us, of Ethernet, six bytes of address, EtherType.
        let first = [&[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0, 0x86, 0xdd], ip].concat();
        let second =
            [&[0x86, 0xdd, 0, 0, 0, 0, 0, 3, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0], ip].concat();
        let loopback = [&[30, 0, 0, 0], ip].concat();
        for (link, packet) in [(113, &first), (276, &second), (0, &loopback)] {
            let is = describe(packet, LinkType(link));
            assert_eq!((is.proto.as_str(), is.sport, is.dport), ("udp", Some(53), Some(5353)));
            for length in 0..packet.len() {
                describe(&packet[..length], LinkType(link));
            }
        }
        let mut arp = first.clone();
        arp[14..16].copy_from_slice(&[8, 6]);
        assert_eq!(describe(&arp[..16], LinkType(113)).proto, "arp");
        // What netlink's protocol means is not an EtherType.
        let mut netlink = first;
        netlink[2..4].copy_from_slice(&824_u16.to_be_bytes());
        assert_eq!(describe(&netlink, LinkType(113)).proto, "unknown");
        assert_eq!(describe(ip, LinkType(147)).proto, "unknown");
    }

    fn udp_over_ipv6() -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ethernet2(MACS.0, MACS.1)
            .ipv6([1; 16], [2; 16], 64)
            .udp(53, 5353)
            .write(&mut packet, &[0; 40])
            .unwrap();
        packet
    }

    #[test]
    fn no_bytes_make_it_fail() {
        let packet = udp_over_ipv6();
        for length in 0..packet.len() {
            let cut = describe(&packet[..length], LinkType::ETHERNET);
            assert_eq!(cut.dport.is_some(), length >= 58, "{length}");
            describe(&packet[..length], LinkType::RAW);
        }
    }

    #[test]
    fn fuzz_packets() {
        let packet = udp_over_ipv6();
        let mut random = crate::random::seeded();
        for _ in 0..crate::random::rounds(20_000) {
            let mut bytes = packet.clone();
            for _ in 0..4 {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            for link in [1, 101, 113, 276, 0, 147] {
                describe(&bytes, LinkType(link));
            }
        }
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(
            hex_lines(&[0; 17]),
            "\t0x0000:  0000 0000 0000 0000 0000 0000 0000 0000\n\t0x0010:  00\n"
        );
        assert_eq!(hex(&[1, 0xab]), "01ab");
    }
}
