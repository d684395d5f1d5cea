// SPDX-License-Identifier: MIT OR Apache-2.0

//! Each reason by a process that does just that; and processes that do much, of which nothing is unsafe.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use serde_json::json;

use super::calls::{
    Pair, accept, addr, handle, io_uring, nonblocking, option, pipe, read, receive_map, recv,
    recvmsg, send, splice, wait_for_data, write,
};
use super::{actor, row, rows, steadily, verdict, watch};
use crate::support::{self, Actor, Tcp};

const LO: &str = "127.0.0.1";

/// What the actors did, and what is to be said of each: why, in how many of how many calls.
pub(super) fn check(cases: Vec<(&str, Actor, u64, serde_json::Value)>) {
    let names: Vec<_> =
        cases.iter().map(|(name, _, calls, why)| (*name, *calls, why.clone())).collect();
    let (pids, run) = watch(cases.into_iter().map(|(_, actor, _, _)| actor).collect());
    for ((name, calls, why), pid) in names.into_iter().zip(pids) {
        let row = row(&run, pid);
        let verdict = verdict(&why);
        assert_eq!((&row["counts"], &row["verdict"]), (&why, &json!(verdict)), "{name}: {row}");
        assert_eq!(row["calls"], calls, "{name}: {row}");
        let reasons: Vec<&String> = why.as_object().unwrap().keys().collect();
        assert_eq!(row["reasons"].as_array().unwrap().len(), reasons.len(), "{name}: {row}");
        if verdict != "unsafe" {
            assert_eq!(row["ports"], json!([]), "{name}");
        }
    }
}

#[test]
fn what_redirection_changes_is_unsafe() {
    steadily(|| {
        if !support::root() {
            return;
        }
        check(vec![
            (
                "splice",
                actor(|| {
                    let (pair, [_r, w]) = (Pair::new(LO), pipe());
                    send(pair.client(), b"abc", 0).unwrap();
                    assert_eq!(splice(pair.server(), w.as_raw_fd(), 3), Ok(3));
                }),
                2,
                json!({"splice": 1}),
            ),
            (
                "waitall, by recv and recvmsg",
                actor(|| {
                    let pair = Pair::new(LO);
                    send(pair.client(), &[7; 128], 0).unwrap();
                    assert_eq!(recv(pair.server(), 64, libc::MSG_WAITALL), Ok(64));
                    assert_eq!(recvmsg(pair.server(), libc::MSG_WAITALL), Ok(64));
                }),
                3,
                json!({"waitall": 2, "blocking": 2}),
            ),
            (
                "oob, sent and received",
                actor(|| {
                    let pair = Pair::new(LO);
                    send(pair.client(), b"!", libc::MSG_OOB).unwrap();
                    let _ = recv(pair.server(), 1, libc::MSG_OOB | libc::MSG_DONTWAIT);
                    // The byte stays in the queue, and closing with it is another reason.
                    std::mem::forget(pair);
                }),
                2,
                json!({"oob": 2}),
            ),
            (
                "trunc",
                actor(|| {
                    let pair = Pair::new(LO);
                    send(pair.client(), b"abc", 0).unwrap();
                    assert_eq!(recv(pair.server(), 3, libc::MSG_TRUNC), Ok(3));
                }),
                2,
                json!({"trunc": 1, "blocking": 1}),
            ),
            (
                "zerocopy",
                actor(|| {
                    let pair = Pair::new(LO);
                    // Without the option, the flag means nothing.
                    send(pair.client(), b"abc", libc::MSG_ZEROCOPY).unwrap();
                    option(pair.client(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1_i32).unwrap();
                    send(pair.client(), b"abc", libc::MSG_ZEROCOPY).unwrap();
                    assert_eq!(recv(pair.server(), 6, 0), Ok(6));
                    // Completions are no data.
                    let _ = recvmsg(pair.client(), libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT);
                }),
                3,
                json!({"zerocopy": 1, "blocking": 1}),
            ),
            (
                "rcvlowat, from before the connection",
                actor(|| {
                    let low = |socket: &Tcp| {
                        socket.option(libc::SOL_SOCKET, libc::SO_RCVLOWAT, 3);
                    };
                    let pair = Pair::by(LO, low);
                    send(pair.server(), b"abc", 0).unwrap();
                    assert_eq!(recv(pair.client(), 3, 0), Ok(3));
                }),
                2,
                json!({"rcvlowat": 1, "blocking": 1}),
            ),
            (
                "rcvtimeo",
                actor(|| {
                    let pair = Pair::new(LO);
                    let time = libc::timeval { tv_sec: 60, tv_usec: 0 };
                    option(pair.server(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time).unwrap();
                    send(pair.client(), b"abc", 0).unwrap();
                    assert_eq!(recv(pair.server(), 3, 0), Ok(3));
                }),
                2,
                json!({"rcvtimeo": 1, "blocking": 1}),
            ),
            (
                "signals: a handler, and reads that may block",
                actor(|| {
                    let pair = Pair::new(LO);
                    send(pair.client(), b"abcdef", 0).unwrap();
                    // Before there is a handler.
                    assert_eq!(recv(pair.server(), 1, 0), Ok(1));
                    handle(libc::SIGUSR1);
                    assert_eq!(recv(pair.server(), 1, libc::MSG_DONTWAIT), Ok(1));
                    assert_eq!(recv(pair.server(), 1, 0), Ok(1));
                    assert_eq!(read(pair.server()), Ok(3));
                }),
                5,
                json!({"signals": 2, "blocking": 3}),
            ),
            (
                "zerocopy receive",
                actor(|| {
                    let pair = Pair::new(LO);
                    receive_map(pair.server());
                }),
                1,
                json!({"zerocopy-receive": 1}),
            ),
            ("io_uring", actor(io_uring), 0, json!({"io_uring": 1})),
        ]);
    });
}

#[test]
fn what_it_does_not_change_is_safe_but_for_reads_that_may_block() {
    steadily(|| {
        if !support::root() {
            return;
        }
        check(vec![
            (
                "a client and a server",
                actor(|| {
                    let pair = Pair::new(LO);
                    for _ in 0..5 {
                        send(pair.client(), b"ask", 0).unwrap();
                        assert_eq!(recv(pair.server(), 64, 0), Ok(3));
                        write(pair.server(), b"answer").unwrap();
                        assert_eq!(read(pair.client()), Ok(6));
                    }
                    assert_eq!(recv(pair.server(), 1, libc::MSG_DONTWAIT), Err(libc::EAGAIN));
                    let _ = recv(pair.server(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT);
                }),
                22,
                json!({"blocking": 10}),
            ),
            (
                "splice, but of pipes, and into a connection",
                actor(|| {
                    let (pair, [r, w], [r2, w2]) = (Pair::new(LO), pipe(), pipe());
                    write(w.as_raw_fd(), b"abc").unwrap();
                    assert_eq!(splice(r.as_raw_fd(), w2.as_raw_fd(), 3), Ok(3));
                    assert_eq!(splice(r2.as_raw_fd(), pair.client(), 3), Ok(3));
                    assert_eq!(recv(pair.server(), 3, 0), Ok(3));
                }),
                2,
                json!({"blocking": 1}),
            ),
            (
                "MSG_WAITALL, but of UDP and of a UNIX socket",
                actor(|| {
                    let pair = Pair::new(LO);
                    let server = std::net::UdpSocket::bind((LO, 0)).unwrap();
                    let client = std::net::UdpSocket::bind((LO, 0)).unwrap();
                    client.connect(server.local_addr().unwrap()).unwrap();
                    server.connect(client.local_addr().unwrap()).unwrap();
                    send(client.as_raw_fd(), b"abc", 0).unwrap();
                    assert_eq!(recv(server.as_raw_fd(), 3, libc::MSG_WAITALL), Ok(3));
                    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
                    send(a.as_raw_fd(), b"abc", 0).unwrap();
                    assert_eq!(recv(b.as_raw_fd(), 3, libc::MSG_WAITALL), Ok(3));
                    send(pair.client(), b"abc", 0).unwrap();
                    wait_for_data(pair.server());
                    assert_eq!(recv(pair.server(), 3, libc::MSG_DONTWAIT), Ok(3));
                }),
                2,
                json!({}),
            ),
            (
                "a handler, and a socket that does not block; time-outs too",
                actor(|| {
                    handle(libc::SIGUSR1);
                    let pair = Pair::new(LO);
                    let time = libc::timeval { tv_sec: 60, tv_usec: 0 };
                    option(pair.server(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time).unwrap();
                    nonblocking(pair.server());
                    send(pair.client(), b"abc", 0).unwrap();
                    wait_for_data(pair.server());
                    assert_eq!(recv(pair.server(), 3, 0), Ok(3));
                }),
                2,
                json!({}),
            ),
            (
                "handlers of what only faults raise",
                actor(|| {
                    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE] {
                        handle(signal);
                    }
                    let pair = Pair::new(LO);
                    send(pair.client(), b"abc", 0).unwrap();
                    assert_eq!(recv(pair.server(), 3, 0), Ok(3));
                }),
                2,
                json!({"blocking": 1}),
            ),
        ]);
    });
}

#[test]
fn who_has_no_local_connection_is_not_listed() {
    steadily(|| {
        if !support::root() {
            return;
        }
        let (pids, run) = watch(vec![actor(|| {
            let ([r, w], [_r2, w2]) = (pipe(), pipe());
            write(w.as_raw_fd(), b"abc").unwrap();
            assert_eq!(splice(r.as_raw_fd(), w2.as_raw_fd(), 3), Ok(3));
            // A listener, a socket of no connection, no socket, and no file at all.
            let (listener, _) = Tcp::listen(LO);
            let alone = Tcp::v4();
            for fd in
                [listener.0.as_raw_fd(), alone.0.as_raw_fd(), r.as_raw_fd(), 999, -1, i32::MAX]
            {
                assert!(recv(fd, 1, libc::MSG_WAITALL | libc::MSG_DONTWAIT).is_err());
            }
        })]);
        assert_eq!(
            rows(&run).iter().filter(|row| row["pid"] == pids[0]).count(),
            0,
            "{}",
            run.stdout
        );
        assert_eq!(run.summary()["processes"], 0);
    });
}

#[test]
fn mptcp_is_unsafe() {
    steadily(|| {
        if !support::root() {
            return;
        }
        if Tcp::mptcp().is_none() {
            println!("SKIP this kernel has no MPTCP");
            return;
        }
        let (pids, run) = watch(vec![actor(|| {
            let listener = Tcp::mptcp().expect("tried before");
            listener.bind(addr(LO, 0));
            nix::sys::socket::listen(&listener.0, nix::sys::socket::Backlog::MAXCONN).unwrap();
            let client = Tcp::mptcp().expect("tried before");
            client.connect(listener.local()).unwrap();
            let server = accept(&listener);
            send(client.0.as_raw_fd(), b"abc", 0).unwrap();
            assert_eq!(recv(server.as_raw_fd(), 3, 0), Ok(3));
        })]);
        let row = row(&run, pids[0]);
        assert_eq!(
            (&row["verdict"], &row["counts"]["mptcp"]),
            (&json!("unsafe"), &json!(2)),
            "{row}"
        );
    });
}

#[test]
fn an_upper_layer_protocol_is_unsafe() {
    steadily(|| {
        if !support::root() {
            return;
        }
        let tls = |pair: &Pair| option(pair.client(), libc::IPPROTO_TCP, libc::TCP_ULP, b"tls");
        if let Err(error) = tls(&Pair::new(LO)) {
            println!("SKIP this kernel has no TLS: errno {error}");
            return;
        }
        let (pids, run) = watch(vec![actor(move || {
            let pair = Pair::new(LO);
            tls(&pair).unwrap();
            // Without keys it is plain.
            send(pair.client(), b"abc", 0).unwrap();
            assert_eq!(recv(pair.server(), 3, 0), Ok(3));
        })]);
        let row = row(&run, pids[0]);
        assert_eq!(
            (&row["verdict"], &row["counts"]),
            (&json!("unsafe"), &json!({"ulp": 1, "blocking": 1})),
            "{row}"
        );
    });
}

/// socket(2) as a 32-bit program calls it. Kernels need not have that: then the process dies.
#[cfg(target_arch = "x86_64")]
fn socket32() {
    // SAFETY: the call has no pointers; what the registers hold is no valid domain or one that gives a descriptor.
    unsafe {
        std::arch::asm!(
            "push rbx", "mov ebx, 1", "int 0x80", "pop rbx",
            inout("eax") 359 => _, in("ecx") 1, in("edx") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_of_32_bit_programs_are_not_looked_into() {
    steadily(|| {
        if !support::root() {
            return;
        }
        // SAFETY: the child makes one system call and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            socket32();
            // SAFETY: ends this process.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: our child.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        if !libc::WIFEXITED(status) {
            println!("SKIP this kernel has no 32-bit system calls");
            return;
        }
        let (pids, run) = watch(vec![actor(socket32)]);
        let row = row(&run, pids[0]);
        assert_eq!(row["counts"], json!({"32-bit": 1}), "{row}");
    });
}

#[test]
fn a_thread_s_own_descriptors_and_a_duplicate_are_seen() {
    steadily(|| {
        if !support::root() {
            return;
        }
        check(vec![(
            "a duplicate at a high number, in another thread",
            actor(|| {
                let pair = Pair::new(LO);
                // SAFETY: a descriptor of ours, to a number that nothing has.
                let high = unsafe { libc::dup2(pair.server(), 900) };
                assert_eq!(high, 900);
                // SAFETY: it was just made.
                let high = unsafe { OwnedFd::from_raw_fd(high) };
                send(pair.client(), b"abc", 0).unwrap();
                std::thread::spawn(move || {
                    assert_eq!(recv(high.as_raw_fd(), 3, libc::MSG_WAITALL), Ok(3));
                })
                .join()
                .unwrap();
            }),
            2,
            json!({"waitall": 1, "blocking": 1}),
        )]);
    });
}
