// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk filter`.

mod capture;
mod run;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use crate::support::{bpftk, output, stderr, stdout};

/// Runs bpftk filter; it has to succeed.
pub(crate) fn filter(args: &[&str]) -> String {
    let output = output(&[&["filter"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

/// The same with something on standard input.
pub(crate) fn filter_with(input: &str, args: &[&str]) -> Output {
    let mut child = bpftk(&[&["filter"], args].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bpftk starts");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Whether expressions can be compiled here. The statically linked bpftk always can.
pub(crate) fn libpcap() -> bool {
    let output = output(&["filter", "compile", "arp"]);
    match output.status.code() {
        Some(0) => true,
        Some(4) => {
            println!("SKIP {}", stderr(&output).trim());
            false
        }
        _ => panic!("{}", stderr(&output)),
    }
}

/// Only ARP, as the classic tutorial has it.
pub(crate) const ARP: &str = "ldh [12]\njne #0x806, drop\nret #-1\ndrop: ret #0\n";

pub(crate) fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    path
}

/// A pcap file of Ethernet frames.
pub(crate) fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    pcap_of(1, frames)
}

/// A pcap file of packets that begin with what `link` says.
pub(crate) fn pcap_of(link: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 0, link] {
        file.extend(word.to_le_bytes());
    }
    for (second, frame) in frames.iter().enumerate() {
        for word in [1_700_000_000 + second as u32, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

/// An ARP request, a UDP datagram to port 53, and a TCP segment to port 80 in a VLAN.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    const MACS: [u8; 12] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1];
    let arp = [
        &MACS[..],
        &[
            8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0,
            2, 2,
        ],
        &[0; 18],
    ]
    .concat();
    let ip = |protocol: u8, length: u8| {
        vec![0x45, 0, 0, length, 0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]
    };
    let udp =
        [&MACS[..], &[8, 0], &ip(17, 32)[..], &[0x30, 0x39, 0, 53, 0, 12, 0, 0], &[1; 4], &[0; 14]]
            .concat();
    let tcp = [
        &MACS[..],
        &[0x81, 0, 0, 5, 8, 0],
        &ip(6, 40)[..],
        &[0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0],
        &[0; 6],
    ]
    .concat();
    vec![arp, udp, tcp]
}

/// An IPv6 packet with two extension headers before ICMPv6.
pub(crate) fn behind_extension_headers() -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 32, 0, 64];
    packet.extend([1; 32]);
    // Hop-by-hop of 8 bytes, destination options of 16, and an echo request.
    packet.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    packet.extend([58, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet.extend([128, 0, 0, 0, 0, 0, 0, 1]);
    packet
}

pub(crate) fn json(text: &str) -> Vec<serde_json::Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
