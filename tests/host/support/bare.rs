// SPDX-License-Identifier: MIT OR Apache-2.0

//! Interfaces whose packets begin with the IP header.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use super::ip;

/// One of them, in the namespace where it was made: 192.0.2.1, the only way to 192.0.2.0/24.
#[derive(Debug)]
pub(crate) struct Bare {
    pub(crate) name: &'static str,
    /// Its other end, if that is a file.
    reader: Option<File>,
}

/// Where to, through a `Bare`.
pub(crate) const BEHIND_BARE: &str = "192.0.2.9";
/// Of a datagram that `Bare::send` sends: IPv4, UDP, payload.
pub(crate) const BARE_BYTES: u64 = 20 + 8 + 7;

impl Bare {
    /// What this kernel has of them, in words for `new`.
    pub(crate) fn kinds() -> Vec<&'static str> {
        let namespace = super::Netns::new();
        let kinds = ["tun", "wireguard", "ipip"];
        let found: Vec<_> =
            kinds.into_iter().filter(|kind| namespace.run(|| Self::new(kind)).is_some()).collect();
        if found.is_empty() {
            println!("SKIP this kernel has none of {}", kinds.join(", "));
        }
        // The matrix loads the modules: there it is a mistake.
        let guest = super::emulated();
        assert!(!guest || found.len() == kinds.len(), "only {found:?} of {kinds:?}");
        found
    }

    /// Makes one in the calling thread's namespace.
    pub(crate) fn new(kind: &str) -> Option<Self> {
        let bare = match kind {
            // With somebody who reads: otherwise it has no carrier, and some kernels send nothing to it.
            "tun" => Self { name: "tun0", reader: Some(tun("tun0")?) },
            // Without keys and peers it sends nothing, but is given it.
            "wireguard" => added("wg0", "wireguard")?,
            _ => added("ipip0", "ipip local 127.0.0.1 remote 127.0.0.8")?,
        };
        ip(&format!("addr add 192.0.2.1/24 dev {}", bare.name));
        ip(&format!("link set {} up", bare.name));
        Some(bare)
    }

    /// Sends so many datagrams of 7 bytes. Not all devices take what they are given.
    pub(crate) fn send(&self, count: usize) {
        let socket = UdpSocket::bind(("192.0.2.1", 0)).unwrap();
        let to: SocketAddr = format!("{BEHIND_BARE}:9999").parse().unwrap();
        for _ in 0..count {
            let sent = socket.send_to(b"payload", to);
            assert!(sent.is_ok() || self.reader.is_none(), "{}: {sent:?}", self.name);
        }
    }

    /// How many datagrams have come out at the other end and were not asked for before, where it can be read.
    pub(crate) fn came_out(&mut self) -> Option<usize> {
        const UDP: u8 = 17;
        let reader = self.reader.as_mut()?;
        let mut packet = [0; 2048];
        let packets = std::iter::from_fn(|| {
            let length = reader.read(&mut packet).ok()?;
            Some(length >= 20 && packet[0] >> 4 == 4 && packet[9] == UDP)
        });
        Some(packets.filter(|udp| *udp).count())
    }
}

fn added(name: &'static str, kind: &str) -> Option<Bare> {
    let words = format!("link add {name} type {kind}");
    let made = Command::new("ip").args(words.split(' ')).output().expect("ip is installed");
    made.status.success().then_some(Bare { name, reader: None })
}

/// A tun interface, and the file that what is sent to it is read from.
fn tun(name: &str) -> Option<File> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    const IFF_TUN_NO_PI: u16 = 0x1001;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = file.open("/dev/net/tun").ok()?;
    // struct ifreq: the name, then the flags.
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&IFF_TUN_NO_PI.to_ne_bytes());
    // SAFETY: the request is as long as the kernel reads and writes it.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    (status == 0).then_some(file)
}
