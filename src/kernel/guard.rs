// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether rules would cut off the operator, or the network as a whole: the loaded programs themselves are asked, with packets of
//! what must go on.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, anyhow};
use libbpf_rs::{ProgramInput, ProgramMut};

use super::attach::tc::Direction;
use super::log;

/// The operator's own connection, as sshd tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ssh {
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
}

impl Ssh {
    /// From our environment or an ancestor's: sudo keeps the variable to itself.
    pub(crate) fn current() -> Option<Self> {
        if let Some(found) =
            std::env::var("SSH_CONNECTION").ok().and_then(|text| Self::parse(&text))
        {
            return Some(found);
        }
        let mut pid = std::process::id();
        while pid > 1 {
            pid = parent(pid)?;
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let found = environment
                .split(|&byte| byte == 0)
                .filter_map(|entry| {
                    std::str::from_utf8(entry).ok()?.strip_prefix("SSH_CONNECTION=")
                })
                .find_map(Self::parse);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// `client-address client-port server-address server-port`; an address may have a zone.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut end = || {
            let address = words.next()?.split('%').next()?.parse::<IpAddr>().ok()?.to_canonical();
            Some(SocketAddr::new(address, words.next()?.parse().ok()?))
        };
        Some(Self { client: end()?, server: end()? })
    }
}

/// The fourth field of stat(5), behind a name that may have anything in it.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// What is not to be lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    pub(crate) ssh: Option<Ssh>,
    pub(crate) arp: bool,
    pub(crate) neighbours: bool,
}

impl Needs {
    pub(crate) fn all(ssh: Option<Ssh>) -> Self {
        Self { ssh, arp: true, neighbours: true }
    }
}

/// What of the operator's own, or of what a network needs, is lost in this direction; `drops` says it of a packet.
pub(super) fn would_lose(
    direction: Direction,
    ethernet: bool,
    needs: Needs,
    drops: impl Fn(&[u8]) -> Result<bool>,
) -> Result<Option<String>> {
    // Without the Ethernet header where there is none.
    let drops = |packet: &[u8]| drops(if ethernet { packet } else { &packet[14..] });
    if let Some(Ssh { client, server }) = needs.ssh {
        let (from, to) = match direction {
            Direction::Ingress => (client, server),
            Direction::Egress => (server, client),
        };
        for (flags, length) in [(SYN, 0), (ACK, 0), (ACK, 36), (ACK, 1200)] {
            if drops(&tcp(from, to, flags, length))? {
                return Ok(Some(format!(
                    "{direction} packets of your SSH connection ({client} to {server})"
                )));
            }
        }
    }
    for operation in [1, 2] {
        if needs.arp && ethernet && drops(&arp(operation))? {
            return Ok(Some("ARP, without which IPv4 ends".into()));
        }
    }
    for kind in 133..=136 {
        if needs.neighbours && drops(&neighbour_discovery(kind))? {
            return Ok(Some("neighbour discovery, without which IPv6 ends".into()));
        }
    }
    Ok(None)
}

/// Whether nothing at all goes on.
pub(super) fn would_lose_all(
    ethernet: bool,
    drops: impl Fn(&[u8]) -> Result<bool>,
) -> Result<bool> {
    for packet in strangers() {
        if !drops(if ethernet { &packet } else { &packet[14..] })? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a program says of a packet (BPF_PROG_TEST_RUN).
pub(super) fn verdict(program: &ProgramMut<'static>, packet: &[u8]) -> Result<u32> {
    // The kernel takes no frame that is shorter than Ethernet's shortest would be without its checksum.
    let mut packet = packet.to_vec();
    packet.resize(packet.len().max(60), 0);
    log::clear();
    let input = ProgramInput { data_in: Some(&packet), repeat: 1, ..Default::default() };
    let output = program.test_run(input).map_err(|error| {
        anyhow!("cannot try the rules before using them: {}", log::explain(error))
    })?;
    Ok(output.return_value)
}

const SYN: u8 = 2;
const ACK: u8 = 0x10;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ip(from: IpAddr, to: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + payload.len() as u16).to_be_bytes());
            packet.extend([0, 1, 0x40, 0, 64, proto, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            packet.extend(payload);
            frame(0x0800, &packet)
        }
        (from, to) => {
            let v6 = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([proto, 255]);
            packet.extend(v6(from).octets());
            packet.extend(v6(to).octets());
            packet.extend(payload);
            frame(0x86dd, &packet)
        }
    }
}

fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, length: usize) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.resize(segment.len() + length, 0);
    ip(from.ip(), to.ip(), TCP, &segment)
}

fn arp(operation: u8) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend([2, 0, 0, 0, 0, 2, 192, 0, 2, 2]);
    packet.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
    frame(0x0806, &packet)
}

/// Router solicitation is 133, and so on to neighbour advertisement, 136.
fn neighbour_discovery(kind: u8) -> Vec<u8> {
    let from = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(from.octets());
    ip(from.into(), to.into(), ICMPV6, &message)
}

/// Packets that have nothing in common but that they are IP: rules that mean something leave some of them alone.
fn strangers() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (from, to) in [
        (Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(10, 1, 2, 3)),
        (Ipv4Addr::new(5, 6, 7, 8), Ipv4Addr::new(192, 168, 9, 1)),
        (Ipv4Addr::new(130, 11, 12, 13), Ipv4Addr::new(224, 0, 0, 251)),
    ] {
        for (proto, port) in [(TCP, 9_u16), (TCP, 51_000), (UDP, 5353), (UDP, 40_001), (47, 0)] {
            let mut payload = vec![0; 28];
            payload[..2].copy_from_slice(&(port ^ 0x5a5a).to_be_bytes());
            payload[2..4].copy_from_slice(&port.to_be_bytes());
            payload[12] = 0x50;
            packets.push(ip(from.into(), to.into(), proto, &payload));
        }
    }
    packets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_connections_are_understood() {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(
            Ssh::parse("192.0.2.1 50000 198.51.100.2 22"),
            Some(Ssh { client: end("192.0.2.1:50000"), server: end("198.51.100.2:22") })
        );
        assert_eq!(
            Ssh::parse("fe80::1%eth0 50000 ::ffff:198.51.100.2 22"),
            Some(Ssh { client: end("[fe80::1]:50000"), server: end("198.51.100.2:22") })
        );
        for bad in ["", "192.0.2.1", "192.0.2.1 x 192.0.2.2 22", "a 1 b 2"] {
            assert_eq!(Ssh::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn our_parent_is_found() {
        assert_eq!(parent(std::process::id()), Some(std::os::unix::process::parent_id()));
    }
}
