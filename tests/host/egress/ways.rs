// SPDX-License-Identifier: MIT OR Apache-2.0

//! Ways for a packet to leave, and what becomes of it.

use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, sendto, socket};

use super::*;
use crate::support::{Tcp, sockaddr};

/// What a sender is told, and whether its packet came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Refused,
    /// Sent, as far as the sender knows.
    Dropped,
    Arrived,
}

/// All that arrives at the far end, but for what its neighbour says by itself.
pub(super) struct Far(OwnedFd);

impl Far {
    pub(super) fn new(wire: &Wire) -> Self {
        const ALL: libc::c_int = (libc::ETH_P_ALL as u16).to_be() as libc::c_int;
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the call takes numbers; the descriptor is checked, and nobody else's.
        Self(wire.far.run(|| unsafe {
            let fd = libc::socket(libc::AF_PACKET, kind, ALL);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        }))
    }

    /// What has arrived since the last time.
    pub(super) fn received(&self) -> usize {
        let mut buffer = [0; 2048];
        let mut count = 0;
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let (to, kind) = (&buffer[..6], &buffer[12..14]);
            let ip6 = kind == [0x86, 0xdd] && buffer[20] != 58;
            let to_it = to == [2, 0, 0, 0, 0, 2] || to == [0xff; 6];
            let counts = ip6 || kind == [8, 0] || kind == [8, 6];
            count += usize::from(length > 20 && to_it && counts);
        }
        count
    }
}

pub(super) fn fate(wire: &Wire, far: &Far, send: impl FnOnce() -> io::Result<()> + Send) -> Fate {
    far.received();
    let outcome = wire.near.run(send);
    match outcome {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            assert_eq!(far.received(), 0, "refused, and sent all the same");
            Fate::Refused
        }
        // A full queue is what AF_PACKET makes of a drop.
        Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => panic!("{error}"),
        _ => {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(300) {
                if far.received() > 0 {
                    return Fate::Arrived;
                }
                thread::sleep(Duration::from_millis(5));
            }
            Fate::Dropped
        }
    }
}

/// The beginning of a connection: nobody answers, and we don't wait.
pub(super) fn connect(to: &str) -> io::Result<()> {
    let to = SocketAddr::new(to.parse().unwrap(), 80);
    let socket = if to.is_ipv4() { Tcp::v4() } else { Tcp::v6() }.nonblocking();
    match socket.connect(to) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn datagram(to: &str, port: u16) -> io::Result<()> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
    UdpSocket::bind((any, 0))?.send_to(b"payload", to).map(drop)
}

pub(super) fn connected_datagram(to: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect((to, 99))?;
    socket.send(b"payload").map(drop)
}

pub(super) fn fast_open(to: &str) -> io::Result<()> {
    let socket = Tcp::v4().nonblocking();
    match socket.fast_open(SocketAddr::new(to.parse().unwrap(), 80), b"first") {
        Ok(_) | Err(nix::errno::Errno::EINPROGRESS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// An echo request.
pub(super) fn raw(to: &str) -> io::Result<()> {
    // SAFETY: the call takes numbers; the descriptor is checked, and nobody else's.
    let socket = unsafe {
        let fd =
            libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    };
    let to = sockaddr(SocketAddr::new(to.parse().unwrap(), 0));
    let request = [8, 0, 0xf7, 0xfe, 0, 1, 0, 0];
    sendto(socket.as_raw_fd(), &request, &to, MsgFlags::empty())?;
    Ok(())
}

/// A frame of a packet socket, with a UDP datagram in it.
pub(super) fn packet_socket(to: &str) -> io::Result<()> {
    let to: std::net::Ipv4Addr = to.parse().unwrap();
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 35, 0, 1, 0, 0, 64, 17, 0, 0, 10, 99, 0, 1]);
    frame.extend(to.octets());
    frame.extend([0, 99, 0, 99, 0, 15, 0, 0]);
    frame.extend(b"payload");
    packet(&frame)
}

/// Past all of the kernel's own addressing.
fn packet(frame: &[u8]) -> io::Result<()> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeros is a value of it.
    let mut link: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_ifindex = nix::net::if_::if_nametoindex("near")? as i32;
    // SAFETY: both lengths are those of what the pointers are to.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const link).cast(),
            size_of_val(&link) as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The first bytes of a message of a protocol that has no ports.
pub(super) fn message(proto: u8, kind: u8, hops: u8, to: IpAddr) -> io::Result<()> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    match to {
        IpAddr::V4(to) => {
            frame.extend([8, 0, 0x45, 0, 0, 28, 0, 1, 0, 0, hops, proto, 0, 0, 10, 99, 0, 1]);
            frame.extend(to.octets());
        }
        IpAddr::V6(to) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, proto, hops]);
            frame.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            frame.extend(to.octets());
        }
    }
    frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
    packet(&frame)
}

/// An ARP request, by a packet socket: neighbours are permanent here, so that the kernel asks nobody.
pub(super) fn ask() -> io::Result<()> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 99, 0, 1]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 99, 0, 77]);
    packet(&frame)
}
