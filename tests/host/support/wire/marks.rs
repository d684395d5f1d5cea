// SPDX-License-Identifier: MIT OR Apache-2.0

//! A mark behind packets: once it is there, they are where they go, or nowhere. It is no IP, so that few rules match it.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::TimeVal;
use nix::unistd::Pid;

/// An EtherType for local experiments (IEEE 802).
const MARK: u16 = 0x88b5;

/// Marks at an interface of the calling thread's namespace.
#[derive(Debug)]
pub(super) struct Marks {
    socket: OwnedFd,
    interface: i32,
}

impl Marks {
    pub(super) fn at(interface: &str) -> Self {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
        // SAFETY: makes a descriptor.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        assert!(fd >= 0, "root may have a packet socket");
        // SAFETY: the kernel just made it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let interface = nix::net::if_::if_nametoindex(interface).expect("the interface is there");
        let marks = Self { socket, interface: interface as i32 };
        let (address, length) = marks.address([0; 6]);
        // SAFETY: an address of the length that is stated.
        let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "a packet socket is bound");
        marks
    }

    fn address(&self, mac: [u8; 6]) -> (libc::sockaddr_ll, libc::socklen_t) {
        // SAFETY: integers, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = MARK.to_be();
        address.sll_ifindex = self.interface;
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&mac);
        (address, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    }

    pub(super) fn send(&self, to: &str) {
        let mut mac = [0; 6];
        for (byte, text) in mac.iter_mut().zip(to.split(':')) {
            *byte = u8::from_str_radix(text, 16).expect("a MAC address");
        }
        let (address, length) = self.address(mac);
        let (data, fd) = ([0_u8; 46], self.socket.as_raw_fd());
        let to = (&raw const address).cast();
        // SAFETY: data and an address of the lengths that are stated.
        let sent = unsafe { libc::sendto(fd, data.as_ptr().cast(), data.len(), 0, to, length) };
        assert_eq!(sent, data.len() as isize, "{}", std::io::Error::last_os_error());
    }

    /// Until the mark is there, which rules may have dropped: then for as long as packets may take.
    pub(super) fn wait(&self) {
        let emulated = crate::support::emulated();
        let most = Duration::from_millis(if emulated { 1000 } else { 200 });
        let most = TimeVal::new(most.as_secs() as i64, most.subsec_micros().into());
        setsockopt(&self.socket, ReceiveTimeout, &most).expect("a socket has a time limit");
        let mut data = [0_u8; 64];
        // SAFETY: room of the length that is stated.
        unsafe { libc::recv(self.socket.as_raw_fd(), data.as_mut_ptr().cast(), data.len(), 0) };
    }
}

/// The calling thread's processor is the one that it is on.
pub(super) fn stay_on_this_processor() {
    let here = nix::sched::sched_getcpu().expect("a thread is on a processor");
    let mut only = CpuSet::new();
    only.set(here).expect("a processor that is known");
    sched_setaffinity(Pid::from_raw(0), &only).expect("a thread may stay");
}
