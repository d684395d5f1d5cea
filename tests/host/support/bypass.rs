// SPDX-License-Identifier: MIT OR Apache-2.0

//! A packet socket whose frames go to the driver past tc.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::wire::{FAR_MAC, NEAR_MAC};

const PACKET_QDISC_BYPASS: i32 = 20;

/// In the calling thread's namespace. The option, if it is to be set, may be refused.
pub(crate) fn socket(bypass: Option<i32>) -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: it was just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let Some(value) = bypass else { return Ok(socket) };
    // SAFETY: the value is an int, of the length that is stated.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_QDISC_BYPASS,
            (&raw const value).cast(),
            4,
        )
    };
    if status == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

fn frame() -> Vec<u8> {
    let mac = |text: &str| -> Vec<u8> {
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
    };
    let mut frame = [mac(FAR_MAC), mac(NEAR_MAC), vec![8, 0]].concat();
    // IPv4 and UDP, to port 9 of 10.0.0.1.
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 198, 51, 100, 1, 10, 0, 0, 1]);
    frame.extend([0, 9, 0, 9, 0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}

/// Sends so many frames through the interface.
pub(crate) fn send(socket: &OwnedFd, interface: &str, count: usize) {
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    // SAFETY: zero bytes are valid.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    to.sll_halen = 6;
    let frame = frame();
    for _ in 0..count {
        // SAFETY: the frame and the address are as long as is stated.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }
}
