// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packets: well-formed ones of every kind that expressions tell apart, and what becomes of them when they are cut or changed.

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, PacketBuilderStep, VlanId,
    ip_number,
};
use fastrand::Rng;

/// Addresses and ports are from few, so that filters and packets meet.
pub(super) const PORTS: [u16; 6] = [22, 53, 80, 443, 8080, 40000];

fn mac(rng: &mut Rng) -> [u8; 6] {
    match rng.u8(0..5) {
        0 => [0xff; 6],
        1 => [1, 0, 0x5e, 0, 0, rng.u8(0..3)],
        _ => [2, 0, 0, 0, 0, rng.u8(0..4)],
    }
}

fn v4(rng: &mut Rng) -> [u8; 4] {
    [*rng.choice(&[10, 192, 224, 127]).unwrap(), rng.u8(0..2), 0, rng.u8(0..4)]
}

fn v6(rng: &mut Rng) -> [u8; 16] {
    let mut address = [0; 16];
    address[..4].copy_from_slice(
        rng.choice(&[[0x20, 1, 0xd, 0xb8], [0xff, 2, 0, 0], [0xfe, 0x80, 0, 0]]).unwrap(),
    );
    address[15] = rng.u8(0..4);
    address
}

fn port(rng: &mut Rng) -> u16 {
    if rng.u8(0..4) == 0 { rng.u16(..) } else { *rng.choice(&PORTS).unwrap() }
}

/// A well-formed Ethernet frame.
pub(super) fn well_formed(rng: &mut Rng) -> Vec<u8> {
    let mut payload: Vec<u8> = (0..rng.usize(0..60)).map(|_| rng.u8(..)).collect();
    if rng.u8(0..12) == 0 {
        payload.resize(rng.usize(200..1400), 0x55);
    }
    let start = PacketBuilder::ethernet2(mac(rng), mac(rng));
    let mut vlan = || VlanId::try_new(*rng.choice(&[1, 2, 100, 4094]).unwrap()).unwrap();
    let (outer, inner) = (vlan(), vlan());
    let mut frame = Vec::new();
    match rng.u8(0..10) {
        0 | 1 => start_ip(rng, start.single_vlan(outer), &payload, &mut frame),
        2 => start_ip(rng, start.double_vlan(outer, inner), &payload, &mut frame),
        3 => {
            let arp = ArpPacket::new(
                ArpHardwareId::ETHERNET,
                EtherType::IPV4,
                if rng.bool() { ArpOperation::REQUEST } else { ArpOperation::REPLY },
                &mac(rng),
                &v4(rng),
                &mac(rng),
                &v4(rng),
            )
            .unwrap();
            start.arp(arp).write(&mut frame).unwrap();
        }
        4 => {
            // Something that is no IP at all: LLC, LLDP, PPPoE, MPLS.
            frame.extend(mac(rng));
            frame.extend(mac(rng));
            let kind: u16 = *rng.choice(&[0x0026, 0x88cc, 0x8864, 0x8847, 0x9000]).unwrap();
            frame.extend(kind.to_be_bytes());
            frame.extend([0x42, 0x42, 3]);
            frame.extend(&payload);
        }
        _ => start_ip(rng, start, &payload, &mut frame),
    }
    frame
}

/// What each kind of builder step can do.
trait Start {
    fn v4(self, source: [u8; 4], destination: [u8; 4]) -> PacketBuilderStep<etherparse::IpHeaders>;
    fn v6(
        self,
        source: [u8; 16],
        destination: [u8; 16],
    ) -> PacketBuilderStep<etherparse::IpHeaders>;
}

macro_rules! starts {
    ($($kind:ty),+) => {
        $(impl Start for PacketBuilderStep<$kind> {
            fn v4(self, source: [u8; 4], destination: [u8; 4]) -> PacketBuilderStep<etherparse::IpHeaders> {
                self.ipv4(source, destination, 64)
            }

            fn v6(self, source: [u8; 16], destination: [u8; 16]) -> PacketBuilderStep<etherparse::IpHeaders> {
                self.ipv6(source, destination, 64)
            }
        })+
    };
}

starts!(etherparse::Ethernet2Header, etherparse::VlanHeader);

fn start_ip(rng: &mut Rng, start: impl Start, payload: &[u8], frame: &mut Vec<u8>) {
    let is_v4 = rng.u8(0..3) > 0;
    let step = if is_v4 { start.v4(v4(rng), v4(rng)) } else { start.v6(v6(rng), v6(rng)) };
    match rng.u8(0..8) {
        0..3 => {
            let tcp = step.tcp(port(rng), port(rng), rng.u32(..), 1024);
            let tcp = match rng.u8(0..4) {
                0 => tcp.syn(),
                1 => tcp.fin().ack(rng.u32(..)),
                2 => tcp.rst(),
                _ => tcp.psh().ack(rng.u32(..)),
            };
            tcp.write(frame, payload).unwrap();
        }
        3..6 => step.udp(port(rng), port(rng)).write(frame, payload).unwrap(),
        6 if is_v4 => step.icmpv4_echo_request(1, rng.u16(..)).write(frame, payload).unwrap(),
        6 => step.icmpv6_echo_request(1, rng.u16(..)).write(frame, payload).unwrap(),
        _ => {
            let number = *rng
                .choice(&[ip_number::SCTP, ip_number::GRE, ip_number::PIM, ip_number::IGMP])
                .unwrap();
            step.write(frame, number, payload).unwrap();
        }
    }
}

/// A frame of at least 15 bytes, the fewest that the kernel runs a hook's program on.
pub(super) fn any(rng: &mut Rng) -> Vec<u8> {
    let mut frame = well_formed(rng);
    match rng.u8(0..8) {
        0 => frame.truncate(rng.usize(15..=frame.len())),
        1 => {
            for _ in 0..rng.usize(1..6) {
                let at = rng.usize(0..frame.len());
                frame[at] = rng.u8(..);
            }
        }
        // The lengths of headers, and fragments.
        2 => {
            frame[14] = 0x40 | rng.u8(..) & 0xf;
            if frame.len() > 21 {
                frame[20] = rng.u8(..);
            }
        }
        3 => frame = (0..rng.usize(15..90)).map(|_| rng.u8(..)).collect(),
        _ => {}
    }
    frame
}

/// The same frame as the kernel has it at tc when its first tag was taken off: the bytes, and the tag (its EtherType, what
/// it says).
pub(super) fn untag(frame: &[u8]) -> Option<(Vec<u8>, u16, u16)> {
    let field = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    if frame.len() < 19 || !matches!(field(12), 0x8100 | 0x88a8) {
        return None;
    }
    let mut bytes = frame[..12].to_vec();
    bytes.extend(&frame[16..]);
    Some((bytes, field(12), field(14)))
}
