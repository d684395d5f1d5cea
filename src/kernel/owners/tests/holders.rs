// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who has a socket, however it came to it.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, TcpListener, TcpStream};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg, socketpair,
};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use super::*;

/// Sockets of every kind that sends packets by IP.
fn of_all_kinds() -> Vec<OwnedFd> {
    let mut sockets = vec![
        udp().into(),
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap(),
        raw(AddressFamily::Inet, SockProtocol::Icmp),
    ];
    for (kind, protocol) in [
        (SockType::Stream, None),
        (SockType::Datagram, None),
        (SockType::Raw, Some(SockProtocol::IcmpV6)),
    ] {
        // A kernel may have no IPv6.
        sockets.extend(socket(AddressFamily::Inet6, kind, SockFlag::SOCK_CLOEXEC, protocol));
    }
    sockets
}

#[test]
fn processes_that_live_for_a_millisecond_are_known() {
    if !root() {
        return;
    }
    each_way(|mut owners, _| {
        let processes = here_or_guest(50, 15);
        let rounds = owners.figures().1;
        let mut told = Vec::new();
        for _ in 0..processes {
            let mut actor = Actor::new(|stage| {
                for socket in of_all_kinds() {
                    put(stage, &socket);
                }
            });
            actor.go();
            // It is gone before anybody looks.
            let numbers = actor.finish();
            told.extend(numbers.chunks_exact(3).map(|n| (n[0] as u64, (n[1] as u32, n[2] as u64))));
        }
        assert!(told.len() >= 3 * processes);
        owners.take().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        for (cookie, who) in told {
            let owner = owners.of(cookie);
            assert_eq!(found(&owner), Some((who, Source::Creator)));
            let Owner::Process(process, _) = owner else { unreachable!() };
            assert_eq!(process.uid, uid);
            assert!(process.cgroup_id != 0 && process.cgroup.is_some(), "{process:?}");
            // The actor is a copy of the process's first thread, whose name it keeps or has from the test.
            assert!(!process.comm.is_empty());
        }
        assert_eq!(owners.figures().1, rounds, "nobody had to look through open files");
    });
}

#[test]
fn programs_are_known_by_path_name_and_user() {
    if !root() {
        return;
    }
    let mut owners = start(SendersBy::Best);
    let socket = udp();
    owners.take().unwrap();
    let Owner::Process(process, Source::Creator) = owners.of(cookie_of(&socket)) else {
        panic!("{:?}", owners.of(cookie_of(&socket)));
    };
    let exe = std::env::current_exe().unwrap().to_string_lossy().into_owned();
    assert_eq!(process.exe.as_deref(), Some(exe.as_str()));
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(process.comm, comm.trim());
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    assert_eq!(process.cgroup.as_deref(), Some(own));
}

#[test]
fn servers_that_were_there_before_are_known_and_what_they_accept() {
    if !root() {
        return;
    }
    each_way(|_, way| {
        let mut server = Actor::new(|stage| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let datagrams = udp();
            stage.put(listener.local_addr().unwrap().port().into());
            put(stage, &listener);
            put(stage, &datagrams);
            stage.pause();
            // One that is sent through, one that is only received from, one that is closed at once, one that idles.
            for kind in 0..4 {
                let (mut accepted, _) = listener.accept().unwrap();
                match kind {
                    0 => std::io::Write::write_all(&mut accepted, b"hello").unwrap(),
                    1 => std::io::Read::read_exact(&mut accepted, &mut [0]).unwrap(),
                    _ => {}
                }
                put(stage, &accepted);
                if kind == 2 {
                    drop(accepted);
                    stage.put(0);
                } else {
                    stage.pause();
                }
            }
        });
        server.go();
        let port = server.get() as u16;
        let (listener, who) = get(&mut server);
        let (datagrams, _) = get(&mut server);

        let senders = way.map_or(SendersBy::Nothing, SendersBy::Only);
        let mut owners = start(senders);
        assert_eq!(now(&mut owners, listener), Some((who, Source::Descriptor)));
        assert_eq!(now(&mut owners, datagrams), Some((who, Source::Descriptor)));

        server.go();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut clients = Vec::new();
        for kind in 0..4 {
            let mut client = TcpStream::connect(addr).unwrap();
            if kind == 1 {
                std::io::Write::write_all(&mut client, b"x").unwrap();
            }
            let (accepted, _) = get(&mut server);
            // Here it was SO_COOKIE that made the cookie. Before the process sends, or asks, there was none to tell of.
            let seen = if kind == 2 {
                server.get();
                now(&mut owners, accepted)
            } else {
                asked(&mut owners, accepted)
            };
            assert_eq!(seen.map(|(who, _)| who), Some(who), "accepted socket {kind}");
            if kind != 2 {
                server.go();
            }
            let own = now(&mut owners, cookie_of(&client)).unwrap();
            assert_eq!(own.0, me());
            clients.push(client);
        }
        server.finish();
    });
}

/// Sends `socket` through `channel`, which is one end of a Unix socket.
fn pass(channel: RawFd, socket: RawFd) {
    let fds = [socket];
    sendmsg::<()>(
        channel,
        &[IoSlice::new(b"!")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
}

fn passed(channel: RawFd) -> OwnedFd {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(channel, &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
    match message.cmsgs().unwrap().next() {
        // SAFETY: just received.
        Some(ControlMessageOwned::ScmRights(fds)) => unsafe { OwnedFd::from_raw_fd(fds[0]) },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_socket_that_was_passed_on_belongs_to_who_uses_it() {
    if !root() {
        return;
    }
    each_way(|mut owners, way| {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::empty()).unwrap();
        // An actor keeps no descriptor but its own: this one is opened anew by its number in the test's /proc.
        let path = nix::unistd::getpid();
        let (there, fd) = (path.as_raw(), theirs.as_raw_fd());
        let mut heir = Actor::new(move |stage| {
            let channel = duplicate_of(there, fd);
            let socket = UdpSocket::from(passed(channel.as_raw_fd()));
            put(stage, &socket);
            stage.pause();
            socket.send_to(b"hello", (Ipv4Addr::LOCALHOST, 9)).unwrap();
            stage.put(1);
            stage.pause();
        });
        let socket = udp();
        let cookie = cookie_of(&socket);
        assert_eq!(now(&mut owners, cookie), Some((me(), Source::Creator)));
        heir.go();
        pass(ours.as_raw_fd(), socket.as_raw_fd());
        drop(socket);
        let (same, who) = get(&mut heir);
        assert_eq!(same, cookie);
        heir.go();
        heir.get();
        if way.is_none() {
            owners.round().unwrap();
        }
        let source = if way.is_some() { Source::Sender } else { Source::Descriptor };
        assert_eq!(now(&mut owners, cookie), Some((who, source)));
        heir.go();
        heir.finish();
    });
}

#[test]
fn a_process_in_a_pid_namespace_is_known_as_it_is_here() {
    if !root() {
        return;
    }
    let mut owners = start(SendersBy::Best);
    let mut actor = Actor::new(|stage| {
        unshare(CloneFlags::CLONE_NEWPID).unwrap();
        // SAFETY: the child makes system calls and ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                assert_eq!(nix::unistd::getpid().as_raw(), 1);
                put(stage, &udp());
                // SAFETY: ends this process, and nothing of the other.
                unsafe { libc::_exit(0) };
            }
            ForkResult::Parent { child } => {
                waitpid(child, None).unwrap();
            }
        }
    });
    actor.go();
    let (cookie, who) = get(&mut actor);
    assert_ne!(who.0, 1);
    actor.finish();
    assert_eq!(now(&mut owners, cookie), Some((who, Source::Creator)));
}

#[test]
fn packet_sockets_are_found_by_who_sends_or_has_them() {
    if !root() {
        return;
    }
    each_way(|mut owners, _| {
        let socket = raw(AddressFamily::Packet, SockProtocol::EthAll);
        assert_eq!(asked(&mut owners, cookie_of(&socket)), Some((me(), Source::Descriptor)));
    });
}

/// Without a mount of cgroup v2, in a mount namespace of its own.
#[test]
fn cgroup_v2_need_not_be_mounted() {
    if !root() {
        return;
    }
    let mut actor = Actor::new(|stage| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        while let Some(point) = crate::kernel::cgroup::mount_point() {
            umount2(&point, MntFlags::MNT_DETACH).unwrap();
        }
        let (mut owners, missing) = Owners::start(&Options::default()).unwrap();
        assert!(missing.is_empty(), "{missing:?}");
        let socket = udp();
        owners.take().unwrap();
        let Owner::Process(process, Source::Creator) = owners.of(cookie_of(&socket)) else {
            panic!("the socket's owner is known");
        };
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        assert_eq!(process.cgroup.as_deref(), Some(own));
        stage.put(1);
    });
    actor.go();
    assert_eq!(actor.finish(), [1]);
}

#[test]
fn two_work_side_by_side_and_leave_nothing() {
    if !root() {
        return;
    }
    let (mut one, mut two) = (start(SendersBy::Best), start(SendersBy::Best));
    let first = udp();
    for owners in [&mut one, &mut two] {
        assert_eq!(now(owners, cookie_of(&first)), Some((me(), Source::Creator)));
    }
    drop(one);
    let second = udp();
    assert_eq!(now(&mut two, cookie_of(&second)), Some((me(), Source::Creator)));
    drop(two);
    // Sockets are made as ever.
    drop(udp());
}
