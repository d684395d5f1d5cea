// SPDX-License-Identifier: MIT OR Apache-2.0

//! What packet sockets need (packet(7)).

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{done, owned};

/// What the kernel says of an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interface {
    pub(crate) index: i32,
    /// include/uapi/linux/if_arp.h
    pub(crate) hardware: u16,
}

/// A packet socket that gets nothing until it is bound: protocol 0.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: numbers.
    owned(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }.into())
}

/// Looks the interface up in the socket's network namespace.
pub(crate) fn interface(socket: BorrowedFd<'_>, name: &str) -> io::Result<Interface> {
    // SAFETY: an ifreq is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let text = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let bytes = text.as_bytes_with_nul();
    if bytes.len() > request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // SAFETY: the request reads the name and writes the index.
    done(unsafe { ioctl(socket, libc::SIOCGIFINDEX as libc::c_ulong, &mut request) })?;
    // SAFETY: SIOCGIFINDEX filled in this member.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    // SAFETY: the request reads the name and writes the hardware address.
    done(unsafe { ioctl(socket, libc::SIOCGIFHWADDR as libc::c_ulong, &mut request) })?;
    // SAFETY: SIOCGIFHWADDR filled in this member.
    let hardware = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    Ok(Interface { index, hardware })
}

/// What the interface of this index is called in the socket's network namespace. ENODEV if there is none.
pub(crate) fn interface_name(socket: BorrowedFd<'_>, index: i32) -> io::Result<String> {
    // SAFETY: an ifreq is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_ifindex = index;
    // SAFETY: the request reads the index and writes the name.
    done(unsafe { ioctl(socket, libc::SIOCGIFNAME as libc::c_ulong, &mut request) })?;
    Ok(crate::output::bytes_to_string(&request.ifr_name.map(|c| c as u8)))
}

/// 0 or -errno.
///
/// # Safety
/// `number` is a request that takes an ifreq.
unsafe fn ioctl(socket: BorrowedFd<'_>, number: libc::c_ulong, request: &mut libc::ifreq) -> i32 {
    // SAFETY: the caller's promise.
    match unsafe { libc::ioctl(socket.as_raw_fd(), number as _, request) } {
        -1 => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        result => result,
    }
}

fn set<T>(socket: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: a value of the size that is stated; the kernel copies it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the kernel say of each packet how long it was and which VLAN tag it had.
pub(crate) fn tell_auxiliary(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)
}

/// Has the kernel leave out what this machine sends. Linux 4.20.
pub(crate) fn ignore_outgoing(socket: BorrowedFd<'_>) -> io::Result<()> {
    const PACKET_IGNORE_OUTGOING: i32 = 23;
    set(socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1_i32)
}

/// Promiscuous mode, for as long as the socket is open.
pub(crate) fn promiscuous(socket: BorrowedFd<'_>, index: i32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
}

/// From here on packets come: those of one interface, of every protocol.
pub(crate) fn bind(socket: BorrowedFd<'_>, index: i32) -> io::Result<()> {
    // SAFETY: a sockaddr_ll is plain data, for which zeros are a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    // SAFETY: an address of the size that is stated.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Packets that passed the filter since the last call, and those of them for which there was no room.
pub(crate) fn statistics(socket: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: room for as much as is stated.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            std::ptr::from_mut(&mut counts).cast(),
            &mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok((counts.tp_packets, counts.tp_drops))
    }
}

/// What comes with a packet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Received {
    /// Bytes in the buffer.
    pub(crate) captured: usize,
    /// How long it was.
    pub(crate) length: u32,
    /// Nanoseconds since 1970.
    pub(crate) time: Option<(i64, i64)>,
    /// The tag that the kernel took out, as it stands in the packet: protocol and control information.
    pub(crate) tag: Option<(u16, u16)>,
    /// PACKET_HOST and so on
    pub(crate) kind: u8,
}

/// Room for the messages of [`receive`], as aligned as they are.
#[repr(C, align(8))]
struct Control([u8; 128]);

/// The next packet, into `buffer`.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = Control([0; 128]);
    // SAFETY: plain data, for which zeros are a value.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: as above.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = std::ptr::from_mut(&mut from).cast();
    message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: a message whose buffers are of the sizes that it states. MSG_TRUNC has the whole length returned.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_TRUNC) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut received = Received {
        captured: (length as usize).min(buffer.len()),
        length: length as u32,
        kind: from.sll_pkttype,
        ..Received::default()
    };
    // SAFETY: the kernel filled in the control messages, which these functions walk.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    // SAFETY: null, or a header inside `control`, as is what CMSG_NXTHDR returns.
    while let Some(found) = unsafe { header.as_ref() } {
        // SAFETY: a header inside `control`.
        let data = unsafe { libc::CMSG_DATA(header) };
        match (found.cmsg_level, found.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                // SAFETY: this message has a timespec, aligned or not.
                let time = unsafe { data.cast::<libc::timespec>().read_unaligned() };
                #[allow(
                    clippy::useless_conversion,
                    reason = "the fields' types depend on the target"
                )]
                let parts = (time.tv_sec.into(), time.tv_nsec.into());
                received.time = Some(parts);
            }
            (libc::SOL_PACKET, libc::PACKET_AUXDATA) => {
                // SAFETY: this message has this structure, aligned or not.
                let known = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
                received.length = known.tp_len;
                received.tag = tag(&known);
            }
            _ => {}
        }
        // SAFETY: the message and one of its headers.
        header = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    Ok(received)
}

fn tag(known: &libc::tpacket_auxdata) -> Option<(u16, u16)> {
    // include/uapi/linux/if_packet.h
    const VLAN_VALID: u32 = 1 << 4;
    const VLAN_TPID_VALID: u32 = 1 << 6;
    if known.tp_status & VLAN_VALID == 0 {
        return None;
    }
    let protocol = if known.tp_status & VLAN_TPID_VALID == 0 { 0x8100 } else { known.tp_vlan_tpid };
    Some((protocol, known.tp_vlan_tci))
}
