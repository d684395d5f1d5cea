// SPDX-License-Identifier: MIT OR Apache-2.0

//! What programs see of redirection, as the manual says it: each of these is the kernel's, and a test, so that a kernel that
//! does otherwise is noticed.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::work::{exchange, option, pair, readable, recv, reset_on_close, send, take};
use super::*;

const SOON: Duration = Duration::from_millis(300);

/// Something that one end does, in words.
type Behaviour = fn(TcpStream, TcpStream) -> String;

fn errno(error: &io::Error) -> String {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)).to_string()
}

fn told(result: io::Result<usize>) -> String {
    match result {
        Ok(many) => many.to_string(),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN) => "EAGAIN".into(),
            Some(libc::EFAULT) => "EFAULT".into(),
            Some(libc::EINVAL) => "EINVAL".into(),
            Some(libc::ECONNRESET) => "ECONNRESET".into(),
            _ => errno(&error),
        },
    }
}

/// A read that waits is interrupted by a signal whose handler says that it goes on.
fn signal(client: TcpStream, server: TcpStream) -> String {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    let before = unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    // With a time limit, no read goes on after a signal.
    server.set_read_timeout(None).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let got = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            sender.send(pthread_self()).unwrap();
            let mut buffer = [0; 8];
            recv(&server, &mut buffer, 0)
        });
        let reader_thread = receiver.recv().unwrap();
        thread::sleep(SOON);
        pthread_kill(reader_thread, Signal::SIGUSR1).unwrap();
        thread::sleep(SOON);
        send(&client, b"data", 0).unwrap();
        reader.join().unwrap()
    });
    // SAFETY: what it was before.
    unsafe { sigaction(Signal::SIGUSR1, &before) }.unwrap();
    told(got)
}

/// A thread that waits for room to write wakes one that waits to read.
fn two_threads(mut client: TcpStream, server: TcpStream) -> String {
    let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::scope(|scope| {
        // To its limit, by TCP at the end; then it waits for room.
        scope.spawn(move || client.write_all(&vec![1; 16 << 20]).unwrap());
        let reader = scope.spawn(move || {
            let mut buffer = [0; 8];
            recv(&client2, &mut buffer, 0)
        });
        thread::sleep(2 * SOON);
        let mut all = server2;
        assert_eq!(take(&mut all, 16 << 20).len(), 16 << 20);
        thread::sleep(SOON);
        send(&server, b"data", 0).unwrap();
        told(reader.join().unwrap())
    })
}

/// What comes wakes both, and is enough for one.
fn two_readers(client: TcpStream, server: TcpStream) -> String {
    server.set_read_timeout(None).unwrap();
    thread::scope(|scope| {
        let read = || {
            let mut byte = [0];
            told(recv(&server, &mut byte, 0))
        };
        let readers = [scope.spawn(read), scope.spawn(read)];
        thread::sleep(SOON);
        for _ in 0..2 {
            send(&client, b"a", 0).unwrap();
            thread::sleep(SOON);
        }
        let mut told = readers.map(|reader| reader.join().unwrap());
        told.sort();
        told.join(" and ")
    })
}

fn peer_reset(client: TcpStream, server: TcpStream) -> String {
    server.set_read_timeout(None).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut buffer = [0; 8];
            let first = told(recv(&server, &mut buffer, 0));
            format!("{first}, then {}", told(recv(&server, &mut buffer, 0)))
        });
        thread::sleep(SOON);
        reset_on_close(&client);
        drop(client);
        reader.join().unwrap()
    })
}

fn wait_for_all(client: TcpStream, server: TcpStream) -> String {
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut buffer = [0; 200];
            told(recv(&server, &mut buffer, libc::MSG_WAITALL))
        });
        send(&client, &[1; 100], 0).unwrap();
        thread::sleep(SOON);
        send(&client, &[2; 100], 0).unwrap();
        reader.join().unwrap()
    })
}

fn splice(client: TcpStream, server: TcpStream) -> String {
    send(&client, &[1; 1000], 0).unwrap();
    assert!(readable(&server, SOON));
    // Redirected, it waits for TCP, to which nothing comes.
    server.set_read_timeout(Some(SOON)).unwrap();
    let (_read, write) = nix::unistd::pipe().unwrap();
    // SAFETY: descriptors of ours, no offsets.
    let moved = unsafe {
        libc::splice(
            server.as_raw_fd(),
            std::ptr::null_mut(),
            write.as_raw_fd(),
            std::ptr::null_mut(),
            1000,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    told(usize::try_from(moved).map_err(|_| io::Error::last_os_error()))
}

fn zero_copy(client: TcpStream, mut server: TcpStream) -> String {
    option(&client, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1);
    send(&client, &[1; 20_000], libc::MSG_ZEROCOPY).unwrap();
    assert_eq!(take(&mut server, 20_000), [1; 20_000]);
    let mut control = [0_u64; 16];
    // SAFETY: all zero is a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    for _ in 0..10 {
        // SAFETY: the message has the room for control data that it states.
        let got = unsafe { libc::recvmsg(client.as_raw_fd(), &mut message, libc::MSG_ERRQUEUE) };
        if got >= 0 {
            return "completed".into();
        }
        thread::sleep(SOON / 10);
    }
    "never completed".into()
}

fn urgent(client: TcpStream, server: TcpStream) -> String {
    send(&client, b"abc", 0).unwrap();
    send(&client, b"!", libc::MSG_OOB).unwrap();
    thread::sleep(SOON / 3);
    let mut byte = [0];
    let urgent = recv(&server, &mut byte, libc::MSG_OOB).map(|_| byte[0] as char);
    let mut rest = [0; 16];
    let many = recv(&server, &mut rest, libc::MSG_DONTWAIT).unwrap_or(0);
    format!("{:?}, then {}", urgent.ok(), String::from_utf8_lossy(&rest[..many]))
}

fn low_water(client: TcpStream, server: TcpStream) -> String {
    option(&server, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 100);
    send(&client, &[1; 10], 0).unwrap();
    if readable(&server, SOON) { "ready".into() } else { "not ready".into() }
}

fn discard(client: TcpStream, server: TcpStream) -> String {
    send(&client, &[1; 100], 0).unwrap();
    assert!(readable(&server, SOON));
    // SAFETY: the kernel is asked to discard, and needs no room.
    let got = unsafe { libc::recv(server.as_raw_fd(), std::ptr::null_mut(), 100, libc::MSG_TRUNC) };
    told(usize::try_from(got).map_err(|_| io::Error::last_os_error()))
}

fn close_with_unread(client: TcpStream, server: TcpStream) -> String {
    send(&client, b"never read", 0).unwrap();
    assert!(readable(&server, SOON));
    drop(server);
    thread::sleep(SOON / 3);
    let mut buffer = [0; 8];
    told(recv(&client, &mut buffer, 0))
}

fn unread_at_reset(client: TcpStream, server: TcpStream) -> String {
    send(&client, b"unread", 0).unwrap();
    assert!(readable(&server, SOON));
    reset_on_close(&client);
    drop(client);
    thread::sleep(SOON / 3);
    let mut buffer = [0; 8];
    told(recv(&server, &mut buffer, libc::MSG_DONTWAIT))
}

fn received_by_tcp(client: TcpStream, mut server: TcpStream) -> String {
    send(&client, &[1; 1000], 0).unwrap();
    take(&mut server, 1000);
    // include/uapi/linux/tcp.h: tcpi_bytes_received
    let mut info = [0_u8; 256];
    let mut length = info.len() as u32;
    // SAFETY: room for as much as is stated.
    let status = unsafe {
        libc::getsockopt(
            server.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    assert_eq!(status, 0);
    u64::from_ne_bytes(info[128..136].try_into().unwrap()).to_string()
}

fn discard_into(client: TcpStream, server: TcpStream) -> String {
    send(&client, b"abc", 0).unwrap();
    assert!(readable(&server, SOON));
    let mut buffer = *b"---";
    let many = recv(&server, &mut buffer, libc::MSG_TRUNC).unwrap();
    format!("{many} {}", String::from_utf8_lossy(&buffer))
}

fn nothing(_client: TcpStream, server: TcpStream) -> String {
    told(recv(&server, &mut [], libc::MSG_DONTWAIT))
}

/// How many bytes of control messages come.
fn left_to_read(client: TcpStream, server: TcpStream) -> String {
    const TCP_INQ: i32 = 36;
    option(&server, libc::IPPROTO_TCP, TCP_INQ, 1);
    send(&client, &[1; 200], 0).unwrap();
    assert!(readable(&server, SOON));
    let (mut bytes, mut control) = ([0_u8; 100], [0_u64; 8]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: one part and control messages, with room for their lengths.
    assert_eq!(unsafe { libc::recvmsg(server.as_raw_fd(), &raw mut message, 0) }, 100);
    if message.msg_controllen > 0 { "told".into() } else { "not told".into() }
}

fn how_much(client: TcpStream, server: TcpStream) -> String {
    send(&client, &[1; 100], 0).unwrap();
    assert!(readable(&server, SOON));
    let mut number = -1;
    // SAFETY: room for the number.
    assert_eq!(unsafe { libc::ioctl(server.as_raw_fd(), libc::FIONREAD, &mut number) }, 0);
    number.to_string()
}

/// One that lets nothing through.
fn socket_filter(client: TcpStream, server: TcpStream) -> String {
    // ret #0
    let mut code = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut code };
    // SAFETY: a program of the length that is stated.
    let status = unsafe {
        libc::setsockopt(
            server.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as u32,
        )
    };
    assert_eq!(status, 0);
    send(&client, b"abc", 0).unwrap();
    if readable(&server, SOON) { "data".into() } else { "no data".into() }
}

/// What it is called, what happens with TCP, and what may happen redirected: kernels differ.
const DIFFERENCES: &[(&str, Behaviour, &str, &[&str])] = &[
    ("a signal with SA_RESTART", signal, "4", &["EAGAIN"]),
    ("another thread waits to write", two_threads, "4", &["4", "EAGAIN"]),
    ("two threads that read", two_readers, "1 and 1", &["1 and 1", "1 and EAGAIN"]),
    (
        "a read when the peer resets",
        peer_reset,
        "ECONNRESET, then 0",
        &["EAGAIN, then ECONNRESET", "ECONNRESET, then 0"],
    ),
    ("MSG_WAITALL", wait_for_all, "200", &["100"]),
    ("splice from the socket", splice, "1000", &["EAGAIN"]),
    ("MSG_ZEROCOPY", zero_copy, "completed", &["never completed"]),
    ("MSG_OOB", urgent, "Some('!'), then abc", &["Some('a'), then bc!"]),
    ("SO_RCVLOWAT", low_water, "not ready", &["ready"]),
    ("MSG_TRUNC without a buffer", discard, "100", &["EFAULT"]),
    ("MSG_TRUNC with a buffer", discard_into, "3 ---", &["3 abc"]),
    ("a receive of no bytes", nothing, "EAGAIN", &["0"]),
    ("TCP_INQ", left_to_read, "told", &["not told"]),
    ("FIONREAD", how_much, "100", &["0", "100"]),
    ("a socket filter", socket_filter, "no data", &["data"]),
    ("close with unread data", close_with_unread, "ECONNRESET", &["0"]),
    ("unread data at a reset", unread_at_reset, "6", &["6"]),
    ("TCP_INFO's bytes received", received_by_tcp, "1000", &["0"]),
];

/// Of these the direction matters; of all others, that the socket is in the map.
const OF_REDIRECTED_BYTES: &[&str] =
    &["MSG_ZEROCOPY", "SO_RCVLOWAT", "TCP_INFO's bytes received", "a socket filter"];

#[test]
fn applications_see_these_differences() {
    let Some(place) = Place::new() else { return };
    let mut wrong = Vec::new();
    for (name, behaviour, plain, redirected) in DIFFERENCES {
        let without = {
            let (client, server) = place.run(pair);
            behaviour(client, server)
        };
        let run = place.start(&[]);
        let (client, server) = place.run(pair);
        let with = behaviour(client, server);
        let summary = run.stop().summary();
        println!("{name}: {without}; redirected: {with}");
        if without != *plain || !redirected.contains(&with.as_str()) {
            wrong.push(format!(
                "{name}: {without}; redirected: {with}; expected {plain}, {redirected:?}"
            ));
        }
        assert_eq!(summary["clients"], 1, "{name}: {summary}");

        // In the map, and all that it sends goes by TCP.
        let run = place.start(&["--comm", "nobody"]);
        let (client, server) = place.run(pair);
        let left = behaviour(client, server);
        let summary = run.stop().summary();
        println!("{name}: left to TCP: {left}");
        let expected = if OF_REDIRECTED_BYTES.contains(name) { &[*plain][..] } else { *redirected };
        if !expected.contains(&left.as_str()) {
            wrong.push(format!("{name}: left to TCP: {left}; expected {expected:?}"));
        }
        assert_eq!(
            (&summary["admitted"], &summary["redirected"]),
            (&2.into(), &0.into()),
            "{name}: {summary}"
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What has passed the loopback interface, in bytes.
fn passed(place: &Place) -> u64 {
    let text = place.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Packet filters, tcpdump and the counters of interfaces see the connection, and nothing that is sent on it.
#[test]
fn no_packet_carries_what_is_redirected() {
    let Some(place) = Place::new() else { return };
    let talk = || {
        let before = passed(&place);
        let (mut client, mut server) = place.run(pair);
        for _ in 0..100 {
            client.write_all(&[7; 10_000]).unwrap();
            assert_eq!(take(&mut server, 10_000).len(), 10_000);
        }
        passed(&place) - before
    };
    let plain = talk();
    let run = place.start(&[]);
    let redirected = talk();
    println!("a megabyte: {plain} bytes in packets by TCP, {redirected} redirected");
    assert_eq!(run.stop().summary()["redirected_bytes"], 1_000_000);
    assert!(plain > 1_000_000 && redirected < 2_000, "{plain} {redirected}");
}

/// Nothing of these is different.
#[test]
fn ordinary_calls_are_as_ever() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&[]);
    let (mut client, mut server) = place.run(pair);
    exchange(&mut client, &mut server);
    // What is peeked stays.
    send(&client, b"peeked", 0).unwrap();
    let mut buffer = [0; 16];
    for _ in 0..3 {
        assert_eq!(recv(&server, &mut buffer, libc::MSG_PEEK).unwrap(), 6);
    }
    assert_eq!(take(&mut server, 6), b"peeked");
    // writev, read in pieces.
    let parts = [io::IoSlice::new(b"one "), io::IoSlice::new(b"two")];
    assert_eq!(client.write_vectored(&parts).unwrap(), 7);
    assert_eq!(take(&mut server, 3), b"one");
    assert_eq!(take(&mut server, 4), b" two");
    // sendfile.
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[9; 70_000]).unwrap();
    let mut offset = 0;
    while offset < 70_000 {
        // SAFETY: descriptors of ours, and an offset.
        let sent = unsafe {
            libc::sendfile(
                client.as_raw_fd(),
                file.as_raw_fd(),
                &mut offset,
                70_000 - offset as usize,
            )
        };
        assert!(sent > 0, "{}", io::Error::last_os_error());
    }
    assert_eq!(take(&mut server, 70_000), vec![9; 70_000]);
    // A read that does not wait, and one with a time limit.
    let mut byte = [0];
    assert_eq!(told(recv(&server, &mut byte, libc::MSG_DONTWAIT)), "EAGAIN");
    server.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(told(recv(&server, &mut byte, 0)), "EAGAIN");
    assert!(!readable(&server, Duration::from_millis(10)));
    let summary = run.stop().summary();
    assert_eq!(summary["redirected"], 2, "{summary}");
    assert_eq!(summary["tcp_bytes"], 0, "{summary}");
}
