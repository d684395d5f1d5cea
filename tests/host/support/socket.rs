// SPDX-License-Identifier: MIT OR Apache-2.0

//! TCP sockets with nothing between a test and the system calls.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, getsockname,
    listen, sendto, socket,
};

#[derive(Debug)]
pub(crate) struct Tcp(pub(crate) OwnedFd);

pub(crate) fn sockaddr(addr: SocketAddr) -> SockaddrStorage {
    addr.into()
}

impl Tcp {
    /// A blocking socket of this address family.
    pub(crate) fn new(family: AddressFamily) -> Self {
        Self(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket"))
    }

    pub(crate) fn v4() -> Self {
        Self::new(AddressFamily::Inet)
    }

    pub(crate) fn v6() -> Self {
        Self::new(AddressFamily::Inet6)
    }

    pub(crate) fn nonblocking(self) -> Self {
        self.option_raw(|fd| {
            // SAFETY: a descriptor of ours and a documented command.
            unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) }
        });
        self
    }

    fn option_raw(&self, set: impl FnOnce(RawFd) -> i32) {
        let status = set(self.0.as_raw_fd());
        assert_eq!(status, 0, "{}", Errno::last());
    }

    pub(crate) fn option(&self, level: i32, name: i32, value: i32) {
        self.option_raw(|fd| {
            // SAFETY: the value is an int, of the length that is stated.
            unsafe {
                libc::setsockopt(
                    fd,
                    level,
                    name,
                    std::ptr::from_ref(&value).cast(),
                    size_of::<i32>() as u32,
                )
            }
        });
    }

    /// An IPv4 socket of MPTCP, where the kernel has it.
    pub(crate) fn mptcp() -> Option<Self> {
        const IPPROTO_MPTCP: i32 = 262;
        // SAFETY: creates a descriptor.
        let fd = unsafe {
            libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, IPPROTO_MPTCP)
        };
        // SAFETY: it was just created.
        (fd >= 0).then(|| Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn bind(&self, addr: SocketAddr) {
        bind(self.0.as_raw_fd(), &sockaddr(addr)).expect("the address is free");
    }

    pub(crate) fn connect(&self, addr: SocketAddr) -> Result<(), Errno> {
        connect(self.0.as_raw_fd(), &sockaddr(addr))
    }

    /// Sends with MSG_FASTOPEN, which connects.
    pub(crate) fn fast_open(&self, addr: SocketAddr, data: &[u8]) -> Result<usize, Errno> {
        let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL);
        sendto(self.0.as_raw_fd(), data, &sockaddr(addr), flags)
    }

    pub(crate) fn local(&self) -> SocketAddr {
        let name: SockaddrStorage = getsockname(self.0.as_raw_fd()).expect("a socket has a name");
        match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
            (Some(v4), _) => SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()),
            (_, Some(v6)) => SocketAddr::new(IpAddr::V6(v6.ip()), v6.port()),
            _ => panic!("not an IP socket"),
        }
    }

    /// A listener on a free port of `ip`. Nobody need accept: the kernel answers.
    pub(crate) fn listen(ip: &str) -> (Self, SocketAddr) {
        let ip: IpAddr = ip.parse().unwrap();
        let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let listener = Self::new(family);
        listener.bind(SocketAddr::new(ip, 0));
        listen(&listener.0, nix::sys::socket::Backlog::MAXCONN).expect("it listens");
        let addr = listener.local();
        (listener, addr)
    }
}
