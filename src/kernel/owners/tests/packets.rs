// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whose packets are: those of a process, of the kernel, of both kinds of TCP.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags};

use super::*;
use crate::kernel::skel::socket_kind_probe::{
    SocketKindProbeSkel, SocketKindProbeSkelBuilder, types as probe_types,
};

/// Counts of all that leaves local sockets, as tc-egress counts what leaves interfaces.
struct Probe {
    _link: Link,
    skel: SocketKindProbeSkel<'static>,
}

impl Probe {
    fn new() -> Self {
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let skel = SocketKindProbeSkelBuilder::default().open(cell).unwrap().load().unwrap();
        let root = Root::open().unwrap();
        let link = skel.progs.bpftk_probe_cg.attach_cgroup(root.as_fd().as_raw_fd()).unwrap();
        Self { _link: link, skel }
    }

    /// Packets and kind, by cookie.
    fn counts(&self) -> HashMap<u64, (u64, u32)> {
        let map = &self.skel.maps.packets;
        map.keys()
            .map(|key| {
                let value = map.lookup(&key, MapFlags::ANY).unwrap().unwrap();
                let count: probe_types::probe_count = copy_from(&value).unwrap();
                (u64::from_ne_bytes(key.try_into().unwrap()), (count.packets, count.kind))
            })
            .collect()
    }
}

// SAFETY: integers without hidden padding.
unsafe impl Plain for probe_types::probe_count {}

/// bpf/socket_kind.bpf.h
const OF_PROCESS: u32 = 1;
const OF_KERNEL: u32 = 2;

#[test]
fn packets_of_the_kernel_and_of_listeners_are_told_apart() {
    if !root() {
        return;
    }
    // In a network that nobody else speaks in. The probe sees others' packets too, by other cookies.
    let probe = Probe::new();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let cookie = cookie_of(&listener);
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let before = probe.counts();
    // The listener itself has sent nothing but answers to requests.
    assert_eq!(before.get(&cookie), Some(&(1, OF_PROCESS)));
    assert_eq!(before.get(&cookie_of(&client)).map(|count| count.1), Some(OF_PROCESS));

    // A port that nobody has: the kernel answers.
    let nobody = udp().local_addr().unwrap();
    let socket = udp();
    let kernel = |counts: &HashMap<u64, (u64, u32)>| -> u64 {
        counts.values().filter(|count| count.1 == OF_KERNEL).map(|count| count.0).sum()
    };
    let answers = kernel(&probe.counts());
    socket.send_to(b"x", nobody).unwrap();
    let counts = probe.counts();
    assert!(kernel(&counts) > answers, "{counts:?}");
    assert_eq!(counts.get(&cookie_of(&socket)), Some(&(1, OF_PROCESS)));
}

/// MPTCP's packets are sent by sockets of TCP that the kernel makes: they are the process's all the same.
#[test]
fn packets_of_mptcp_belong_to_the_process() {
    const IPPROTO_MPTCP: i32 = 262;
    if !root() {
        return;
    }
    let socket = || {
        // SAFETY: makes a descriptor.
        let fd = unsafe {
            libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, IPPROTO_MPTCP)
        };
        // SAFETY: the kernel just made it.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let (Some(client), Some(listener)) = (socket(), socket()) else {
        println!("SKIP this kernel has no MPTCP");
        return;
    };
    let mut owners = start(SendersBy::Best);
    let listener = TcpListener::from(listener);
    // SAFETY: a descriptor of ours.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 8) }, 0);
    let port = listener.local_addr().unwrap().port();
    let probe = Probe::new();
    let before = probe.counts();
    let to: nix::sys::socket::SockaddrIn =
        std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
    nix::sys::socket::connect(client.as_raw_fd(), &to).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    std::io::Write::write_all(&mut TcpStream::from(client.try_clone().unwrap()), b"hello").unwrap();
    std::io::Read::read_exact(&mut accepted, &mut [0; 5]).unwrap();
    let mut seen = 0;
    for (cookie, (packets, kind)) in probe.counts() {
        if before.contains_key(&cookie) || kind != OF_PROCESS {
            continue;
        }
        // Others' packets may come in between.
        if asked(&mut owners, cookie).map(|(who, _)| who) == Some(me()) {
            seen += packets;
        }
    }
    // At the least: from the client SYN, ACK and data; from the server SYN and ACK.
    assert!(seen >= 5, "{seen} packets");
}

/// What the issue promises: at least 99 of 100 packets of local processes, whatever the kernel shows of senders.
#[test]
fn nearly_all_packets_of_short_lived_clients_and_an_old_server_have_an_owner() {
    if !root() {
        return;
    }
    each_way(|_, way| {
        let clients = here_or_guest(60, 25);
        let mut server = Actor::new(|stage| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            stage.put(listener.local_addr().unwrap().port().into());
            for _ in 0..clients {
                let (mut accepted, _) = listener.accept().unwrap();
                let mut request = [0; 5];
                std::io::Read::read_exact(&mut accepted, &mut request).unwrap();
                std::io::Write::write_all(&mut accepted, &request).unwrap();
            }
            stage.pause();
        });
        server.go();
        let port = server.get() as u16;
        let senders = way.map_or(SendersBy::Nothing, SendersBy::Only);
        let mut owners = start(senders);
        let probe = Probe::new();
        let mut pids = vec![server.pid()];
        for _ in 0..clients {
            let mut client = Actor::new(|_| {
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                std::io::Write::write_all(&mut stream, b"hello").unwrap();
                let mut reply = Vec::new();
                std::io::Read::read_to_end(&mut stream, &mut reply).unwrap();
                assert_eq!(reply, b"hello");
                let datagram = udp();
                datagram.send_to(b"x", (Ipv4Addr::LOCALHOST, 9)).unwrap();
            });
            pids.push(client.pid());
            client.go();
            client.finish();
        }
        let counts = probe.counts();
        let (mut all, mut right, mut kernel) = (0, 0, 0);
        for (cookie, (packets, kind)) in counts {
            if kind == OF_KERNEL {
                kernel += packets;
                continue;
            }
            owners.take().unwrap();
            match owners.of(cookie) {
                Owner::Process(process, _) if pids.contains(&process.id.tgid) => {
                    all += packets;
                    right += packets;
                }
                // Somebody else's.
                Owner::Process(..) | Owner::Kernel => {}
                Owner::Forwarded | Owner::Unknown => all += packets,
            }
        }
        println!("{right} of {all} packets have an owner; {kernel} of the kernel's; {way:?}");
        assert!(right >= clients as u64 * 8, "{right} of {all}");
        assert!(right * 100 >= all * 99, "{right} of {all}");
        server.go();
        server.finish();
    });
}
