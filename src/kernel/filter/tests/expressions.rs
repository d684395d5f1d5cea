// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random expressions, from a grammar of what tcpdump takes for Ethernet.

use std::time::Instant;

use fastrand::Rng;

use super::differential::{Tally, compare};
use super::packets::PORTS;
use super::{here_or_guest, packets, root};
use crate::filter::classic::check::check;
use crate::filter::libpcap::{Link, Names, Source, available, compile};
use crate::random::seeded;

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(0..from.len())]
}

fn direction(rng: &mut Rng) -> &'static str {
    pick(rng, &["", "src ", "dst ", "src or dst ", "src and dst "])
}

fn port(rng: &mut Rng) -> u16 {
    PORTS[rng.usize(0..PORTS.len())]
}

fn v4(rng: &mut Rng) -> String {
    format!("{}.{}.0.{}", pick(rng, &["10", "192", "224"]), rng.u8(0..2), rng.u8(0..4))
}

fn v6(rng: &mut Rng) -> String {
    format!("{}::{}", pick(rng, &["2001:db8", "ff02", "fe80"]), rng.u8(0..4))
}

/// `ip[6:2] & 0x1fff`, and what one may do with it.
fn arithmetic(rng: &mut Rng, depth: u8) -> String {
    match rng.u8(0..if depth == 0 { 3 } else { 8 }) {
        0 => rng.u32(0..300).to_string(),
        1 => "len".into(),
        2..5 => {
            let layer = pick(rng, &["ether", "ip", "ip", "tcp", "udp", "ip6", "arp", "icmp"]);
            let index = if depth > 0 && rng.u8(0..4) == 0 {
                arithmetic(rng, depth - 1)
            } else {
                rng.u8(0..24).to_string()
            };
            format!("{layer}[{index}{}]", pick(rng, &["", ":1", ":2", ":4"]))
        }
        _ => {
            let operator = pick(rng, &["+", "-", "*", "&", "|", "^", "<<", ">>", "/", "%"]);
            let left = arithmetic(rng, depth - 1);
            let right = match operator {
                "<<" | ">>" => rng.u8(0..32).to_string(),
                "/" | "%" if rng.bool() => rng.u8(1..9).to_string(),
                _ => arithmetic(rng, depth - 1),
            };
            format!("({left} {operator} {right})")
        }
    }
}

fn primitive(rng: &mut Rng) -> String {
    match rng.u8(0..26) {
        0 => {
            pick(rng, &["ip", "ip6", "arp", "rarp", "tcp", "udp", "icmp", "icmp6", "sctp", "igmp"])
                .into()
        }
        1 => pick(
            rng,
            &["broadcast", "multicast", "ip multicast", "ip6 multicast", "ether broadcast"],
        )
        .into(),
        2 => format!("vlan {}", pick(rng, &["", "1", "2", "100", "4094"])),
        3 => "vlan".into(),
        4 => {
            pick(rng, &["mpls", "pppoes", "llc", "stp", "ether proto 0x88cc", "ether proto 0x806"])
                .into()
        }
        5 => format!("{}host {}", direction(rng), v4(rng)),
        6 => format!("{}host {}", direction(rng), v6(rng)),
        7 => format!("{}net {}.0.0.0/{}", direction(rng), pick(rng, &["10", "192", "224"]), 8),
        8 => format!("{}net 10.{}.0.0/16", direction(rng), rng.u8(0..2)),
        9 => format!("{}net 2001:db8::/32", direction(rng)),
        10..14 => {
            let protocol = pick(rng, &["", "tcp ", "udp "]);
            format!("{protocol}{}port {}", direction(rng), port(rng))
        }
        14 => format!("{}portrange {}-{}", pick(rng, &["", "tcp ", "udp "]), rng.u16(1..100), 443),
        15 => format!("ether {}host 02:00:00:00:00:0{}", direction(rng), rng.u8(0..4)),
        16 => format!("{} {}", pick(rng, &["greater", "less"]), rng.u16(20..200)),
        17 => {
            format!("{} proto {}", pick(rng, &["ip", "ip6"]), pick(rng, &["6", "17", "1", "103"]))
        }
        18 => format!(
            "tcp[tcpflags] & ({}) != 0",
            pick(rng, &["tcp-syn", "tcp-syn|tcp-fin", "tcp-rst"])
        ),
        19 => format!("icmp[icmptype] == {}", pick(rng, &["icmp-echo", "icmp-echoreply"])),
        20 => format!("arp {}host {}", direction(rng), v4(rng)),
        _ => {
            let comparison = pick(rng, &["=", "!=", ">", "<", ">=", "<="]);
            format!("{} {comparison} {}", arithmetic(rng, 2), arithmetic(rng, 1))
        }
    }
}

fn expression(rng: &mut Rng, depth: u8) -> String {
    match rng.u8(0..if depth == 0 { 1 } else { 5 }) {
        0 => primitive(rng),
        1 => format!("not {}", parenthesized(rng, depth)),
        2 => format!("{} and {}", expression(rng, depth - 1), parenthesized(rng, depth)),
        3 => format!("{} or {}", parenthesized(rng, depth), expression(rng, depth - 1)),
        _ => parenthesized(rng, depth),
    }
}

fn parenthesized(rng: &mut Rng, depth: u8) -> String {
    format!("({})", expression(rng, depth - 1))
}

#[test]
fn random_expressions() {
    if !root() {
        return;
    }
    if let Err(reason) = available() {
        println!("SKIP {reason:#}");
        return;
    }
    let mut rng = seeded();
    let begin = Instant::now();
    let (wanted, count) = here_or_guest((1000, 100), (40, 30));
    let (mut refused, mut loops) = (0, 0);
    let mut tally = Tally::default();
    while tally.programs < wanted {
        let depth = rng.u8(0..4);
        let text = expression(&mut rng, depth);
        let source = Source {
            expression: &text,
            packets: Link::Ethernet.into(),
            optimize: rng.bool(),
            names: Names::REFUSED,
        };
        // `tcp and arp`: libpcap finds that nothing can match. `vlan` and the like can't be where it was put.
        let Ok(program) = compile(&source) else {
            refused += 1;
            continue;
        };
        // The kernel doesn't take all that libpcap makes, such as a shift by a constant that is too large.
        if check(&program).is_err() {
            loops += 1;
            continue;
        }
        let frames: Vec<Vec<u8>> = (0..count).map(|_| packets::any(&mut rng)).collect();
        compare(&text, &program, &frames, &mut tally);
    }
    println!(
        "{tally:?} in {:?}; libpcap refused {refused}, Linux would refuse {loops}",
        begin.elapsed()
    );
    assert!(refused < wanted * 2, "{refused}");
}

/// Everything that libpcap's grammar has for Ethernet and that is no name of another link layer.
#[test]
fn what_tcpdump_takes() {
    if !root() {
        return;
    }
    if let Err(reason) = available() {
        println!("SKIP {reason:#}");
        return;
    }
    let mut rng = seeded();
    let mut tally = Tally::default();
    let count = here_or_guest(300, 30);
    for text in EXPRESSIONS {
        for optimize in [true, false] {
            let source = Source {
                expression: text,
                packets: Link::Ethernet.into(),
                optimize,
                names: Names::REFUSED,
            };
            let program = compile(&source).unwrap_or_else(|error| panic!("{text}: {error:#}"));
            let frames: Vec<Vec<u8>> = (0..count).map(|_| packets::any(&mut rng)).collect();
            compare(text, &program, &frames, &mut tally);
        }
    }
    println!("{tally:?}");
}

const EXPRESSIONS: &[&str] = &[
    "",
    "arp",
    "tcp port 80",
    "not tcp port 80",
    "ip6",
    "ip multicast or ether broadcast",
    "vlan",
    "not vlan",
    "vlan 100",
    "vlan and ip",
    "vlan and vlan and tcp",
    "vlan 100 and vlan 2 and udp port 53",
    "vlan or tcp port 80",
    "not vlan and tcp port 80",
    "ether[12:2] = 0x8100 and ether[14:2] & 0xfff = 100",
    "ether[10:4] > 5",
    "ether[11:2] & 1 = 0",
    "ether[13:4] != 0",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 and not src and dst net 127.0.0.0/8",
    "tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)",
    "ether[0] & 1 = 0 and ip[16] >= 224",
    "icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply",
    "ip[ip[8] - 1] = 6",
    "ether[ether[14] - 70] = 0",
    "ether[len - 1] = 0x55",
    "len > 100 and len <= 200",
    "portrange 20-100",
    "host 10.0.0.1 or host 2001:db8::1 or arp host 10.0.0.2",
    "src net 10.0.0.0/8 and dst net not 10.0.0.0/16",
    "ip6[40] = 58 and ip6[6] = 17",
    "mpls",
    "mpls and ip",
    "pppoes and ip",
    "geneve",
    "llc",
    "stp or isis or ether proto 0x88cc",
    "sctp port 80",
    "udp[8:4] / udp[4:2] = 3 or udp[8] % udp[9] = 1",
    "ether host 02:00:00:00:00:01 or ether multicast",
    "ip proto 1 or ip6 proto 58 or icmp6",
];
