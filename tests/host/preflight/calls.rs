// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an actor does to its connections: system calls, and nothing around them.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::support::Tcp;

/// A connection, both of whose ends this process has.
pub(super) struct Pair {
    pub(super) client: Tcp,
    pub(super) server: OwnedFd,
    pub(super) port: u16,
    /// Stays open: by its port the connection is known.
    _listener: Tcp,
}

impl Pair {
    pub(super) fn new(ip: &str) -> Self {
        Self::by(ip, |_| ())
    }

    /// `prepare` has the client's socket before it connects.
    pub(super) fn by(ip: &str, prepare: impl FnOnce(&Tcp)) -> Self {
        let (listener, addr) = Tcp::listen(ip);
        let v4 = matches!(addr.ip(), IpAddr::V4(_));
        let client = if v4 { Tcp::v4() } else { Tcp::v6() };
        prepare(&client);
        client.connect(addr).expect("it listens");
        let server = accept(&listener);
        Self { client, server, port: addr.port(), _listener: listener }
    }

    pub(super) fn client(&self) -> RawFd {
        self.client.0.as_raw_fd()
    }

    pub(super) fn server(&self) -> RawFd {
        self.server.as_raw_fd()
    }
}

pub(super) fn accept(listener: &Tcp) -> OwnedFd {
    let fd = nix::sys::socket::accept(listener.0.as_raw_fd()).expect("somebody connected");
    // SAFETY: it was just made.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(super) fn addr(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn result(number: isize) -> Result<usize, i32> {
    usize::try_from(number).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

pub(super) fn send(fd: RawFd, data: &[u8], flags: i32) -> Result<usize, i32> {
    // SAFETY: bytes and their length.
    result(unsafe { libc::send(fd, data.as_ptr().cast(), data.len(), flags) })
}

/// As many bytes as come, up to 64.
pub(super) fn recv(fd: RawFd, length: usize, flags: i32) -> Result<usize, i32> {
    let mut bytes = [0_u8; 64];
    // SAFETY: room for as many bytes.
    result(unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), length.min(64), flags) })
}

pub(super) fn recvmsg(fd: RawFd, flags: i32) -> Result<usize, i32> {
    let mut bytes = [0_u8; 64];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    // SAFETY: one part, with room for its length.
    result(unsafe { libc::recvmsg(fd, &mut message, flags) })
}

pub(super) fn read(fd: RawFd) -> Result<usize, i32> {
    let mut bytes = [0_u8; 64];
    // SAFETY: room for 64 bytes.
    result(unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) })
}

pub(super) fn write(fd: RawFd, data: &[u8]) -> Result<usize, i32> {
    // SAFETY: bytes and their length.
    result(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) })
}

pub(super) fn pipe() -> [OwnedFd; 2] {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(fds.as_mut_ptr()) }, 0);
    // SAFETY: they were just made.
    fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn splice(from: RawFd, to: RawFd, length: usize) -> Result<usize, i32> {
    let (no_from, no_to) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: descriptors without offsets.
    result(unsafe { libc::splice(from, no_from, to, no_to, length, 0) })
}

/// On a busy machine it may come after the send has returned.
pub(super) fn wait_for_data(fd: RawFd) {
    let mut fds = [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }];
    // SAFETY: one descriptor.
    assert_eq!(unsafe { libc::poll(fds.as_mut_ptr(), 1, 30_000) }, 1, "data comes");
}

pub(super) fn nonblocking(fd: RawFd) {
    // SAFETY: a descriptor of ours and a documented command.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) }, 0);
}

pub(super) fn option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> Result<usize, i32> {
    // SAFETY: a value of the length that is stated.
    result(unsafe {
        libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), size_of::<T>() as u32)
    } as isize)
}

/// What an actor with a handler has for it.
extern "C" fn nothing(_signal: libc::c_int) {}

pub(super) fn handle(signal: i32) {
    // SAFETY: the handler does nothing.
    let before = unsafe { libc::signal(signal, nothing as *const () as libc::sighandler_t) };
    assert_ne!(before, libc::SIG_ERR);
}

/// TCP_ZEROCOPY_RECEIVE with nothing mapped: what it answers does not matter.
pub(super) fn receive_map(fd: RawFd) {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    let mut arguments = [0_u64; 8];
    let mut length = 64_u32;
    // SAFETY: room for as many bytes as are stated.
    unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            TCP_ZEROCOPY_RECEIVE,
            arguments.as_mut_ptr().cast(),
            &mut length,
        )
    };
}

/// FIONREAD, or another request whose answer is a number.
pub(super) fn ioctl(fd: RawFd, request: libc::Ioctl) -> i32 {
    let mut number = -1;
    // SAFETY: room for the number.
    assert_eq!(unsafe { libc::ioctl(fd, request, &mut number) }, 0);
    number
}

/// What the option is, is of no interest.
pub(super) fn ask(fd: RawFd, level: i32, name: i32) -> Result<usize, i32> {
    let mut bytes = [0_u8; 256];
    let mut length = bytes.len() as u32;
    // SAFETY: room for as many bytes as are stated.
    result(unsafe { libc::getsockopt(fd, level, name, bytes.as_mut_ptr().cast(), &mut length) }
        as isize)
}

/// A ring of no entries, which the kernel refuses.
pub(super) fn io_uring() {
    // SAFETY: the kernel checks the pointer.
    unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<libc::c_void>()) };
}
