// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sockets of real processes. Each process of a test says what its sockets' cookies are (SO_COOKIE) and who it is, by
//! /proc; bpftk has to find out.

#[path = "../../../../tests/host/support/actor.rs"]
mod actor;
mod bounds;
mod holders;
mod packets;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use self::actor::{Actor, Stage};
use super::process::{identity_of, in_ticks};
use super::*;
use crate::error::{Status, status_of};
use crate::random::here_or_guest;

/// A process: its id, and its start time as /proc has it.
type Who = (u32, u64);

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP needs root, to load BPF programs");
    }
    root
}

fn cookie_of(socket: &impl AsFd) -> u64 {
    const SO_COOKIE: i32 = 57;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: room for a number of the length that is stated.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut length,
        )
    };
    assert_eq!(status, 0, "SO_COOKIE");
    cookie
}

/// The calling process, by the id that this test knows it by.
fn me() -> Who {
    let link = std::fs::read_link("/proc/self").unwrap();
    identity_of(link.to_str().unwrap().parse().unwrap()).unwrap()
}

/// Tells the test of a socket of the calling process.
fn put(stage: &mut Stage, socket: &impl AsFd) {
    let (pid, start) = me();
    stage.put(cookie_of(socket) as i64);
    stage.put(pid.into());
    stage.put(start as i64);
}

fn get(actor: &mut Actor) -> (u64, Who) {
    (actor.get() as u64, (actor.get() as u32, actor.get() as u64))
}

fn udp() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

fn raw(family: AddressFamily, protocol: SockProtocol) -> OwnedFd {
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).expect("root may have it")
}

fn start(senders: SendersBy) -> Owners {
    let (owners, missing) = Owners::start(&Options { senders, ..Options::default() }).unwrap();
    assert!(missing.is_empty(), "{missing:?}");
    owners
}

/// Every way to see senders that this kernel has, and none.
fn each_way(test: impl Fn(Owners, Option<Senders>)) {
    let mut ways: Vec<_> = Senders::ORDER.map(|way| (SendersBy::Only(way), Some(way))).into();
    ways.push((SendersBy::Nothing, None));
    for (senders, way) in ways {
        match Owners::start(&Options { senders, ..Options::default() }) {
            Ok((owners, missing)) => {
                assert!(missing.is_empty(), "{missing:?}");
                println!("senders by {way:?}");
                test(owners, way);
            }
            Err(error) => {
                let text = format!("{error:#}");
                assert_eq!(status_of(&error), Status::Unsupported, "{text}");
                assert!(!text.contains("refuses the programs"), "{text}");
                println!("senders by {way:?} are not offered here: {text}");
            }
        }
    }
}

fn found(owner: &Owner) -> Option<(Who, Source)> {
    match owner {
        Owner::Process(process, source) => Some((in_ticks(process.id), *source)),
        _ => None,
    }
}

/// Asks again until there is an answer: a round may have to be waited for.
fn asked(owners: &mut Owners, cookie: u64) -> Option<(Who, Source)> {
    for _ in 0..500 {
        owners.take().unwrap();
        if let Some(found) = found(&owners.of(cookie)) {
            return Some(found);
        }
        thread::sleep(Duration::from_millis(20));
    }
    None
}

fn now(owners: &mut Owners, cookie: u64) -> Option<(Who, Source)> {
    owners.take().unwrap();
    found(&owners.of(cookie))
}

/// A copy of another process's descriptor. pidfd_getfd, Linux 5.6.
fn duplicate_of(pid: i32, fd: RawFd) -> OwnedFd {
    // SAFETY: numbers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(process >= 0, "pidfd_open");
    // SAFETY: numbers.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, fd, 0) };
    assert!(copy >= 0, "pidfd_getfd");
    // SAFETY: the kernel just made it.
    unsafe { OwnedFd::from_raw_fd(copy as RawFd) }
}
