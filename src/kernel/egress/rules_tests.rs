// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the program decides about random packets under random rules, beside a reference that has nothing in common with it.

use std::net::{Ipv4Addr, SocketAddr};

use fastrand::Rng;
use ipnet::IpNet;

use super::tests::{load, program, root};
use super::*;
use crate::filter::libpcap::{self, Names, Source};
use crate::kernel::frames::{Seen, frame, seen};
use crate::kernel::guard::{self, Ssh};
use crate::random::seeded;

/// What is in front of the network layer, behind the tags.
fn type_of(frame: &[u8]) -> Option<u16> {
    let mut rest = &frame[12..];
    for _ in 0..5 {
        match rest {
            [0x81 | 0x91, 0, ..] | [0x88, 0xa8, ..] => rest = rest.get(4..)?,
            [a, b, ..] => return Some(u16::from_be_bytes([*a, *b])),
            _ => return None,
        }
    }
    None
}

fn blocked(frame: &[u8], seen: &Seen, rules: &Rules, matches_udp: bool) -> bool {
    let dst = seen.addresses.map(|(_, dst)| dst);
    let in_set =
        |set: &Option<Ranges>, addr: IpAddr| set.as_ref().is_some_and(|set| set.contains(addr));
    if dst.is_some_and(|dst| in_set(&rules.blocked, dst.to_canonical())) {
        return true;
    }
    // What libpcap takes for UDP: no tags, no extension headers but a fragment's, first fragments or not.
    if matches_udp && udp(frame) {
        return true;
    }
    if rules.allowed.is_none() {
        return false;
    }
    let Some(dst) = dst else {
        return !(rules.spares.arp && matches!(type_of(frame), Some(0x0806 | 0x888e)));
    };
    if in_set(&rules.allowed, dst) {
        return false;
    }
    if rules.spares.neighbours && of_neighbours(dst, seen, hops(frame, dst)) {
        return false;
    }
    let Some((sport, dport)) = seen.ports else { return true };
    let proto = seen.proto.unwrap();
    if let Some(ssh) = rules.ssh
        && (proto, sport, dst) == (6, ssh.server.port(), ssh.client.ip())
    {
        return false;
    }
    let open = match (dst, dport, proto) {
        (_, 53, 6 | 17) => in_set(&rules.spares.dns, dst),
        (IpAddr::V4(to), 67, 17) => {
            rules.spares.dhcp.is_some() && (to.is_broadcast() || to.is_link_local())
                || in_set(&rules.spares.dhcp, dst)
        }
        (IpAddr::V6(to), 547, 17) => {
            let nobody = to.is_unicast_link_local() || to.to_string() == "ff02::1:2";
            rules.spares.dhcp.is_some() && nobody || in_set(&rules.spares.dhcp, dst)
        }
        _ => false,
    };
    !open
}

/// The loopback has no neighbours but these.
fn of_neighbours(dst: IpAddr, seen: &Seen, hops: Option<u8>) -> bool {
    match (dst, seen.proto, seen.icmp) {
        (IpAddr::V4(_), Some(2), _) => dst.is_multicast() && hops == Some(1),
        (IpAddr::V6(to), Some(58), Some(133..=137)) => {
            (to.is_multicast() || to.is_unicast_link_local()) && hops == Some(255)
        }
        (IpAddr::V6(_), Some(58), Some(130..=132 | 143)) => dst.is_multicast() && hops == Some(1),
        _ => false,
    }
}

/// What the header of such an address says.
fn hops(frame: &[u8], dst: IpAddr) -> Option<u8> {
    let tags = frame[12..]
        .chunks(4)
        .take_while(|it| matches!(it, [0x81 | 0x91, 0, ..] | [0x88, 0xa8, ..]));
    let header = 14 + 4 * tags.count();
    frame.get(header + if dst.is_ipv4() { 8 } else { 7 }).copied()
}

/// `udp`, of which the expression sees untagged frames only.
fn udp(frame: &[u8]) -> bool {
    match &frame[12..] {
        [8, 0, packet @ ..] => packet.get(9) == Some(&17),
        [0x86, 0xdd, packet @ ..] => {
            packet.get(6) == Some(&17) || packet.get(6) == Some(&44) && packet.get(40) == Some(&17)
        }
        _ => false,
    }
}

/// Half of each set is of addresses that packets have.
fn random_set(random: &mut Rng, frames: &[Vec<u8>]) -> Ranges {
    (0..random.usize(1..40))
        .map(|_| {
            let addr = match seen(&frames[random.usize(..frames.len())]).addresses {
                Some((_, dst)) if random.bool() => dst.to_canonical(),
                _ => IpAddr::from(Ipv4Addr::from_bits(random.u32(..))),
            };
            let most = if addr.is_ipv4() { 32 } else { 128 };
            IpNet::new(addr, random.u8(most / 2..=most)).unwrap().trunc()
        })
        .collect()
}

/// Ports and types that rules speak of.
fn interesting(random: &mut Rng) -> Vec<u8> {
    let mut frame = frame(random);
    let untagged_v4 = frame.len() > 38 && frame[12..14] == [8, 0] && frame[14] == 0x45;
    if untagged_v4 && random.bool() {
        let port = [53_u16, 67, 67, 68, 22, 546][random.usize(..6)].to_be_bytes();
        let at = if random.bool() { 34 } else { 36 };
        frame[at..at + 2].copy_from_slice(&port);
        let to = [[10, 1, 1, 1], [255; 4], [169, 254, 7, 7], [169, 253, 7, 7], [224, 0, 0, 22]];
        frame[30..34].copy_from_slice(&to[random.usize(..5)]);
        frame[22] = [1, 2, 64, 255][random.usize(..4)];
        frame[23] = [2, 6, 17, 17][random.usize(..4)];
    }
    let untagged_v6 = frame.len() > 62 && frame[12..15] == [0x86, 0xdd, 0x60];
    if untagged_v6 && random.bool() {
        frame[21] = [1, 2, 64, 255, 255][random.usize(..5)];
        if random.bool() {
            let to = ["fe80::9", "ff02::1:2", "ff02::16", "ff05::1", "febf::1", "fec0::1"];
            let to: std::net::Ipv6Addr = to[random.usize(..6)].parse().unwrap();
            frame[38..54].copy_from_slice(&to.octets());
        }
        if random.bool() {
            frame[20] = [17, 17, 58, 58, 58, 6][random.usize(..6)];
            frame[54] = if frame[20] == 58 { random.u8(129..145) } else { 0 };
            let port = [53_u16, 547, 546][random.usize(..3)].to_be_bytes();
            frame[56..58].copy_from_slice(&port);
        }
    }
    if frame.len() > 14 && random.u8(..10) == 0 {
        let kind = [0x0806_u16, 0x888e, 0x88cc][random.usize(..3)].to_be_bytes();
        frame[12..14].copy_from_slice(&kind);
    }
    frame
}

#[test]
fn random_packets_are_blocked_as_the_reference_would() {
    if !root() {
        return;
    }
    let mut random = seeded();
    let rounds = if std::env::var_os("BPFTK_VM").is_some() { 6 } else { 30 };
    let (mut dropped, mut passed, mut refused) = (0, 0, 0);
    for round in 0..rounds {
        let frames: Vec<Vec<u8>> = (0..600).map(|_| interesting(&mut random)).collect();
        // Lists of both kinds, of either and of none.
        let (blocks, allows) = (round % 2 == 0, round % 3 == 0);
        let matches_udp = random.bool();
        let udp = || {
            libpcap::compile(&Source {
                expression: "udp",
                packets: crate::filter::ebpf::translate::Link::Ethernet.into(),
                optimize: true,
                names: Names::REFUSED,
            })
            .unwrap()
        };
        let peer = seen(&frames[random.usize(..frames.len())]).addresses.map(|(_, dst)| dst);
        let rules = Rules {
            blocked: blocks.then(|| random_set(&mut random, &frames)),
            allowed: allows.then(|| random_set(&mut random, &frames)),
            matches: if matches_udp { vec![udp()] } else { Vec::new() },
            spares: Spares {
                dns: random.bool().then(|| random_set(&mut random, &frames)),
                dhcp: random.bool().then(|| random_set(&mut random, &frames)),
                arp: random.bool(),
                neighbours: random.bool(),
            },
            ssh: peer.map(|peer| Ssh {
                client: SocketAddr::new(peer, 40000),
                server: SocketAddr::new(peer, 22),
            }),
            dry_run: random.bool(),
        };
        let config = Config { rules: Some(rules.clone()), ..Config::default() };
        let counter = load(&config);
        let mut expected_rows = Rows::default();
        for frame in &frames {
            let seen = seen(frame);
            let expected = blocked(frame, &seen, &rules, matches_udp);
            counter.variables.borrow_mut().probing = true;
            let verdict = guard::verdict(program(&counter), frame);
            counter.variables.borrow_mut().probing = false;
            // The probe makes packets longer than the shortest; only what is that long can be compared.
            let Ok(verdict) = verdict else {
                refused += 1;
                continue;
            };
            if frame.len() < 60 {
                continue;
            }
            assert_eq!(verdict == 2, expected, "{rules:?} {seen:?} {frame:02x?}");
            let verdict = guard::verdict(program(&counter), frame).unwrap();
            assert_eq!(verdict == 2, expected && !rules.dry_run, "{rules:?} {frame:02x?}");
            expected_rows.total.packets += 1;
            expected_rows.blocked.packets += u64::from(expected);
            if expected { dropped += 1 } else { passed += 1 }
        }
        let taken = counter.take().unwrap();
        assert_eq!(taken.rows.total.packets, expected_rows.total.packets);
        assert_eq!(taken.rows.blocked.packets, expected_rows.blocked.packets);
        let by_key = |blocked: bool| -> u64 {
            let fits = |key: &Key| key.rule.is_some_and(Rule::blocks) == blocked;
            taken.keys.iter().filter(|(key, _)| fits(key)).map(|(_, count)| count.packets).sum()
        };
        let fixed = taken.rows.not_ip_blocked + taken.rows.malformed_blocked;
        assert_eq!(by_key(true) + fixed.packets, taken.rows.blocked.packets);
        assert_eq!(
            by_key(true) + by_key(false) + taken.rows.without_key().packets,
            taken.rows.total.packets
        );
        assert!(taken.calls.is_empty());
    }
    println!("{dropped} dropped, {passed} passed; {refused} frames refused by the kernel");
    assert!(dropped > 20 * rounds && passed > 20 * rounds);
}
