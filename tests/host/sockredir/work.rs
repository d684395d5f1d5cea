// SPDX-License-Identifier: MIT OR Apache-2.0

//! What both ends of a connection do.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Nothing takes so long but what never comes.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A listener on 127.0.0.1, or on another address.
pub(super) fn listen(ip: &str) -> (TcpListener, SocketAddr) {
    let ip: std::net::IpAddr = ip.parse().unwrap();
    let listener = TcpListener::bind((ip, 0)).expect("it listens");
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Reads and writes don't wait for ever.
pub(super) fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
}

/// A client and its server, connected on 127.0.0.1.
pub(super) fn pair() -> (TcpStream, TcpStream) {
    pair_on("127.0.0.1")
}

pub(super) fn pair_on(ip: &str) -> (TcpStream, TcpStream) {
    let (listener, addr) = listen(ip);
    let client = TcpStream::connect(addr).expect("it connects");
    let (server, _) = listener.accept().expect("it accepts");
    patient(&client);
    patient(&server);
    (client, server)
}

/// As many bytes as asked for, or what there was until the end.
pub(super) fn take(stream: &mut TcpStream, many: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.take(many as u64).read_to_end(&mut bytes).expect("it is readable");
    bytes
}

/// Sends in both directions, and reads what was sent.
pub(super) fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"question").unwrap();
    assert_eq!(take(server, 8), b"question");
    server.write_all(b"answer").unwrap();
    assert_eq!(take(client, 6), b"answer");
}

/// send(2) and recv(2) with flags.
pub(super) fn send(stream: &TcpStream, bytes: &[u8], flags: i32) -> io::Result<usize> {
    // SAFETY: a descriptor of ours, and as many bytes as are stated.
    let sent = unsafe {
        libc::send(
            stream.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

pub(super) fn recv(stream: &TcpStream, bytes: &mut [u8], flags: i32) -> io::Result<usize> {
    // SAFETY: a descriptor of ours, and room for as many bytes as are stated.
    let got =
        unsafe { libc::recv(stream.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

pub(super) fn option(stream: &TcpStream, level: i32, name: i32, value: i32) {
    // SAFETY: the value is an int, of the length that is stated.
    let status = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
}

/// Closing resets the connection.
pub(super) fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the value is a linger, of the length that is stated.
    let status = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            std::ptr::from_ref(&linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
}

/// Whether it is readable within this time.
pub(super) fn readable(stream: &TcpStream, time: Duration) -> bool {
    let mut poll = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    let ready = unsafe { libc::poll(&mut poll, 1, time.as_millis() as i32) };
    ready == 1 && poll.revents & libc::POLLIN != 0
}
