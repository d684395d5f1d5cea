// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is asked of TCP, or is to come with its data, and isn't there of redirected data.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use serde_json::json;

use super::calls::{
    Pair, ask, ioctl, nonblocking, option, pipe, read, recv, recvmsg, send, wait_for_data, write,
};
use super::reasons::check;
use super::{actor, steadily};
use crate::support;

const LO: &str = "127.0.0.1";
const TCP: i32 = libc::IPPROTO_TCP;
const TCP_REPAIR: i32 = 19;
const TCP_INQ: i32 = 36;

/// A connection whose server has three bytes to read, and does not block.
fn with_data() -> Pair {
    let pair = Pair::new(LO);
    nonblocking(pair.server());
    send(pair.client(), b"abc", 0).unwrap();
    wait_for_data(pair.server());
    pair
}

/// Whether FIONREAD is right on this kernel: the function came with that.
fn counts_what_waits() -> bool {
    let types = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
    types.windows(14).any(|bytes| bytes == b"\0tcp_bpf_ioctl")
}

#[test]
fn questions_that_tcp_answers_without_redirected_data_are_unsafe() {
    steadily(|| {
        if !support::root() {
            return;
        }
        check(vec![
            (
                "how much can be read",
                actor(|| {
                    let pair = with_data();
                    assert_eq!(ioctl(pair.server(), libc::FIONREAD), 3);
                    // Other questions, and other files.
                    ioctl(pair.server(), 0x8905);
                    let [r, w] = pipe();
                    write(w.as_raw_fd(), b"abc").unwrap();
                    assert_eq!(ioctl(r.as_raw_fd(), libc::FIONREAD), 3);
                    assert_eq!(recv(pair.server(), 3, 0), Ok(3));
                }),
                if counts_what_waits() { 2 } else { 3 },
                if counts_what_waits() { json!({}) } else { json!({"fionread": 1}) },
            ),
            (
                "a read that may block, of a socket that had no room to send",
                actor(|| {
                    let pair = Pair::new(LO);
                    send(pair.client(), b"abc", 0).unwrap();
                    let sent = send(pair.server(), &vec![0; 32 << 20], libc::MSG_DONTWAIT).unwrap();
                    assert!(sent < 32 << 20);
                    wait_for_data(pair.server());
                    assert_eq!(recv(pair.server(), 3, 0), Ok(3));
                }),
                4,
                // What the client did not read is unread at its end.
                json!({"room": 1, "blocking": 1, "unread-at-close": 1}),
            ),
            (
                "TCP_INFO",
                actor(|| {
                    let pair = with_data();
                    ask(pair.client(), TCP, libc::TCP_INFO).unwrap();
                    ask(pair.client(), TCP, libc::TCP_NODELAY).unwrap();
                    ask(pair.client(), libc::SOL_SOCKET, libc::SO_TYPE).unwrap();
                    assert_eq!(recv(pair.server(), 3, 0), Ok(3));
                }),
                3,
                json!({"tcp-info": 1}),
            ),
            (
                "a receive of no bytes, by recv; read returns before it comes to TCP",
                actor(|| {
                    let pair = with_data();
                    assert_eq!(recv(pair.server(), 0, 0), Ok(0));
                    // SAFETY: nothing is written.
                    assert_eq!(unsafe { libc::read(pair.server(), std::ptr::null_mut(), 0) }, 0);
                    assert_eq!(recv(pair.server(), 3, 0), Ok(3));
                }),
                4,
                json!({"zero-length": 1}),
            ),
            (
                "TCP_REPAIR",
                actor(|| {
                    let pair = with_data();
                    assert_eq!(recv(pair.server(), 3, 0), Ok(3));
                    option(pair.client(), TCP, TCP_REPAIR, &1_i32).unwrap();
                    let _ = recv(pair.client(), 1, libc::MSG_DONTWAIT);
                    option(pair.client(), TCP, TCP_REPAIR, &0_i32).unwrap();
                }),
                3,
                json!({"repair": 1}),
            ),
        ]);
    });
}

#[test]
fn what_comes_with_data_or_before_it_is_unsafe() {
    steadily(|| {
        if !support::root() {
            return;
        }
        check(vec![
            (
                "TCP_INQ",
                actor(|| {
                    let pair = with_data();
                    option(pair.server(), TCP, TCP_INQ, &1_i32).unwrap();
                    assert_eq!(recvmsg(pair.server(), 0), Ok(3));
                    option(pair.server(), TCP, TCP_INQ, &0_i32).unwrap();
                    assert_eq!(recv(pair.server(), 3, 0), Err(libc::EAGAIN));
                }),
                3,
                json!({"tcp-inq": 1}),
            ),
            (
                "time stamps of what is received, and of what is sent",
                actor(|| {
                    // SOF_TIMESTAMPING_TX_SOFTWARE, SOF_TIMESTAMPING_SOFTWARE
                    let sent = 2 | 16;
                    let pair = with_data();
                    let socket = libc::SOL_SOCKET;
                    option(pair.server(), socket, libc::SO_TIMESTAMP, &1_i32).unwrap();
                    assert_eq!(recvmsg(pair.server(), 0), Ok(3));
                    // It says nothing of what is sent.
                    send(pair.server(), b"abc", 0).unwrap();
                    assert_eq!(recv(pair.client(), 3, 0), Ok(3));
                    option(pair.client(), socket, libc::SO_TIMESTAMPING, &sent).unwrap();
                    send(pair.client(), b"abc", 0).unwrap();
                    option(pair.server(), socket, libc::SO_TIMESTAMP, &0_i32).unwrap();
                    wait_for_data(pair.server());
                    assert_eq!(read(pair.server()), Ok(3));
                }),
                6,
                json!({"timestamps": 2, "blocking": 1}),
            ),
            (
                "a socket filter",
                actor(|| {
                    let pair = with_data();
                    // ret #-1
                    let mut code = libc::sock_filter { code: 6, jt: 0, jf: 0, k: u32::MAX };
                    let program = libc::sock_fprog { len: 1, filter: &mut code };
                    let socket = libc::SOL_SOCKET;
                    option(pair.server(), socket, libc::SO_ATTACH_FILTER, &program).unwrap();
                    assert_eq!(recv(pair.server(), 1, 0), Ok(1));
                    option(pair.server(), socket, libc::SO_DETACH_FILTER, &0_i32).unwrap();
                    assert_eq!(recv(pair.server(), 2, 0), Ok(2));
                }),
                3,
                json!({"socket-filter": 1}),
            ),
        ]);
    });
}

#[test]
fn an_offset_of_peeks_is_unsafe() {
    steadily(|| {
        if !support::root() {
            return;
        }
        let set = |pair: &Pair| option(pair.server(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, &0_i32);
        if let Err(error) = set(&Pair::new(LO)) {
            println!("SKIP this kernel has no SO_PEEK_OFF for TCP: errno {error}");
            return;
        }
        check(vec![(
            "SO_PEEK_OFF",
            actor(move || {
                let pair = with_data();
                assert_eq!(recv(pair.server(), 1, libc::MSG_PEEK), Ok(1));
                set(&pair).unwrap();
                assert_eq!(recv(pair.server(), 1, libc::MSG_PEEK), Ok(1));
                assert_eq!(recv(pair.server(), 3, 0), Ok(3));
            }),
            4,
            json!({"peek-off": 2}),
        )]);
    });
}

/// A close that isn't unsafe is not counted.
#[test]
fn closing_with_unread_data_is_unsafe() {
    steadily(|| {
        if !support::root() {
            return;
        }
        check(vec![
            ("unread", actor(|| drop(with_data())), 2, json!({"unread-at-close": 1})),
            (
                "read, the connection's end not yet",
                actor(|| {
                    let Pair { client, server, .. } = with_data();
                    assert_eq!(recv(server.as_raw_fd(), 3, 0), Ok(3));
                    drop(client);
                    wait_for_data(server.as_raw_fd());
                    drop(server);
                }),
                2,
                json!({}),
            ),
            (
                "one of two descriptors, as whoever forks does",
                actor(|| {
                    let pair = with_data();
                    // SAFETY: a descriptor of ours, and the new one is nobody's.
                    drop(unsafe { OwnedFd::from_raw_fd(libc::dup(pair.server())) });
                    assert_eq!(recv(pair.server(), 3, 0), Ok(3));
                }),
                2,
                json!({}),
            ),
        ]);
    });
}
