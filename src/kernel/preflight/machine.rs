// SPDX-License-Identifier: MIT OR Apache-2.0

//! What belongs to this machine: the addresses of its network namespaces, and the ports that somebody listens at.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::kernel::addr::mapped;
use crate::kernel::mounts::Mount;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns;

/// Namespaces that are looked into, at most. Each look takes a thread.
const NAMESPACES: usize = 1024;

/// One look at all namespaces.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// IPv4 as v4-mapped. Of the loopback network only what is set on an interface: all of it is known to be local.
    pub(super) addresses: BTreeSet<[u8; 16]>,
    pub(super) listening: BTreeSet<u16>,
    /// Namespaces that could not be looked into.
    pub(super) unseen: u64,
}

impl Machine {
    /// Looks into every namespace that a process is in or that is mounted somewhere.
    pub(super) fn look() -> Self {
        let (namespaces, mut unseen) = namespaces();
        let mut machine = Self::default();
        let own = fs::metadata("/proc/thread-self/ns/net").map_or(0, |meta| meta.ino());
        for (seen, (inode, path)) in namespaces.into_iter().enumerate() {
            if seen >= NAMESPACES {
                unseen += 1;
                continue;
            }
            // One's own takes no privilege.
            let found = if inode == own {
                Some(here())
            } else {
                // One that ended meanwhile has no connections any more.
                let Ok(file) = File::open(&path) else { continue };
                if !file.metadata().is_ok_and(|meta| meta.ino() == inode) {
                    continue;
                }
                netns::within(&file, here).ok()
            };
            match found {
                Some((addresses, listening)) => {
                    machine.addresses.extend(addresses);
                    machine.listening.extend(listening);
                }
                None => unseen += 1,
            }
        }
        machine.unseen = unseen;
        machine
    }

    /// One bit a port.
    pub(super) fn listening_words(&self) -> Vec<u64> {
        let mut words = vec![0_u64; 65536 / 64];
        for &port in &self.listening {
            words[usize::from(port) / 64] |= 1 << (port % 64);
        }
        words
    }
}

/// By inode number, each with a path to it; and how many processes' could not be read.
fn namespaces() -> (HashMap<u64, PathBuf>, u64) {
    let mut found = HashMap::new();
    let mut unreadable = 0;
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in processes {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            continue;
        }
        let path = entry.path().join("ns/net");
        match fs::metadata(&path) {
            Ok(meta) => {
                found.entry(meta.ino()).or_insert(path);
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => unreadable += 1,
            // It is gone.
            Err(_) => {}
        }
    }
    // Such as those that `ip netns` keeps without a process in them.
    for mount in Mount::of_this_process().into_iter().filter(|mount| mount.fstype == "nsfs") {
        if let Ok(meta) = fs::metadata(&mount.point)
            && mount.root.to_string_lossy().starts_with("net:")
        {
            found.entry(meta.ino()).or_insert(mount.point);
        }
    }
    (found, unreadable)
}

/// Addresses and listening ports of the calling thread's namespace.
fn here() -> (Vec<[u8; 16]>, Vec<u16>) {
    let addresses = Netlink::open().and_then(|netlink| netlink.addresses()).unwrap_or_default();
    let ports = ["tcp", "tcp6"].into_iter().flat_map(listeners).collect();
    (addresses.into_iter().map(mapped).collect(), ports)
}

fn listeners(table: &str) -> Vec<u16> {
    let Ok(file) = File::open(format!("/proc/thread-self/net/{table}")) else {
        return Vec::new();
    };
    // The kernel tells the listening sockets first (net/ipv4/tcp_ipv4.c, tcp_get_idx), and the others may be many.
    BufReader::new(file).lines().map_while(Result::ok).skip(1).map_while(|l| listener(&l)).collect()
}

/// `  0: 0100007F:1F90 00000000:0000 0A …`
fn listener(line: &str) -> Option<u16> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, _, state) = (words.next()?, words.next()?, words.next()?);
    if state != "0A" {
        return None;
    }
    u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
}

/// Ports that the kernel gives to clients, in our own namespace.
pub(super) fn ephemeral() -> (u16, u16) {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = text.split_ascii_whitespace().filter_map(|word| word.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(low), Some(high)) => (low, high),
        // net/ipv4/af_inet.c
        _ => (32768, 60999),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, TcpListener};

    #[test]
    fn a_listener_is_seen_and_a_connection_is_none() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let machine = Machine::look();
        assert!(machine.listening.contains(&port));
        assert!(!machine.listening.contains(&client.local_addr().unwrap().port()));
        let word = machine.listening_words()[usize::from(port) / 64];
        assert_ne!(word & 1 << (port % 64), 0);
        assert!(machine.addresses.contains(&mapped(IpAddr::from([127, 0, 0, 1]))));
    }

    #[test]
    fn a_line_of_the_table() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 1 1";
        assert_eq!(listener(line), Some(8080));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        let v6 = "   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(listener(v6), Some(80));
        assert_eq!(listener("odd"), None);
    }

    #[test]
    fn clients_get_ports_from_a_range() {
        let (low, high) = ephemeral();
        assert!(low <= high && low > 0);
    }
}
