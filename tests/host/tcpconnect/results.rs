// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every way in which a connect can end.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, Shutdown, shutdown};
use std::os::fd::{AsFd, AsRawFd};

use super::{MANY, assert_row, with_backends};
use crate::support::{Tcp, ip, silent_network};

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn each_success_is_one_row() {
    for ip in ["127.0.0.1", "::1"] {
        with_backends(|traced| {
            let (made, rows, _) = traced.trace(&[], || {
                let (_listener, to) = Tcp::listen(ip);
                let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                (0..MANY)
                    .map(|_| {
                        let socket = Tcp::new(family);
                        socket.connect(to).unwrap();
                        (socket.local(), to)
                    })
                    .collect::<Vec<_>>()
            });
            assert_eq!(rows.len(), MANY);
            for ((from, to), row) in made.into_iter().zip(&rows) {
                assert_row(row, Some(from), to, "ok");
                assert_eq!(row["errno"], serde_json::Value::Null);
                let latency = row["latency_us"].as_f64().unwrap();
                assert!(latency > 0.0 && latency < 60e6, "{row}");
            }
        });
    }
}

#[test]
fn v4_mapped_is_the_ipv4_that_it_is_and_one_row() {
    with_backends(|traced| {
        let ((from, to), rows, _) = traced.trace(&[], || {
            let (_listener, to) = Tcp::listen("127.0.0.1");
            let mapped = SocketAddr::new(
                match to.ip() {
                    std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
                    v6 => v6,
                },
                to.port(),
            );
            let socket = Tcp::v6();
            socket.connect(mapped).unwrap();
            // Refused, and without a route, on the same path.
            assert_eq!(Tcp::v6().connect(addr("[::ffff:127.0.0.1]:1")), Err(Errno::ECONNREFUSED));
            assert_eq!(Tcp::v6().connect(addr("[::ffff:192.0.2.1]:1")), Err(Errno::ENETUNREACH));
            (socket.local(), mapped)
        });
        assert_eq!(rows.len(), 3, "{rows:?}");
        assert_row(&rows[0], Some(from), to, "ok");
        assert_eq!(rows[0]["saddr"], "127.0.0.1");
        assert_eq!((&rows[1]["result"], &rows[1]["family"]), (&"ECONNREFUSED".into(), &4.into()));
        assert_row(&rows[2], None, addr("192.0.2.1:1"), "ENETUNREACH");
    });
}

#[test]
fn a_refusal_is_told_once() {
    for to in ["127.0.0.1:1", "[::1]:1"] {
        with_backends(|traced| {
            let to = addr(to);
            let ((), rows, _) = traced.trace(&[], || {
                for _ in 0..MANY {
                    let family =
                        if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                    assert_eq!(Tcp::new(family).connect(to), Err(Errno::ECONNREFUSED));
                }
            });
            assert_eq!(rows.len(), MANY);
            for row in &rows {
                assert_eq!((&row["result"], &row["errno"]), (&"ECONNREFUSED".into(), &111.into()));
                assert_eq!(row["daddr"], to.ip().to_string());
                // It had a source port when it sent.
                assert!(row["sport"].as_u64().unwrap() > 0, "{row}");
            }
        });
    }
}

#[test]
fn failures_before_the_first_packet_have_rows() {
    with_backends(|traced| {
        let ((), rows, _) = traced.trace(&[], || {
            for route in
                ["prohibit 198.51.100.1", "unreachable 198.51.100.2", "blackhole 198.51.100.3"]
            {
                ip(&format!("route add {route}"));
            }
            for (to, errno) in [
                ("192.0.2.1:80", Errno::ENETUNREACH),
                ("198.51.100.1:81", Errno::EACCES),
                ("198.51.100.2:82", Errno::EHOSTUNREACH),
                ("198.51.100.3:83", Errno::EINVAL),
            ] {
                assert_eq!(Tcp::v4().connect(addr(to)), Err(errno), "{to}");
            }
            assert_eq!(Tcp::v6().connect(addr("[2001:db8::1]:84")), Err(Errno::ENETUNREACH));
            // The wrong kind of socket for an address.
            assert_eq!(Tcp::v4().connect(addr("[::1]:85")), Err(Errno::EAFNOSUPPORT));
        });
        let told: Vec<_> =
            rows.iter().map(|row| (row["dport"].clone(), row["result"].clone())).collect();
        let expected: Vec<(serde_json::Value, serde_json::Value)> = [
            (80, "ENETUNREACH"),
            (81, "EACCES"),
            (82, "EHOSTUNREACH"),
            (83, "EINVAL"),
            (84, "ENETUNREACH"),
            (85, "EAFNOSUPPORT"),
        ]
        .map(|(port, result)| (port.into(), result.into()))
        .to_vec();
        assert_eq!(told, expected);
        for row in &rows {
            assert_eq!((&row["saddr"], &row["sport"]), (&().into(), &().into()), "{row}");
            assert!(row["latency_us"].as_f64().unwrap() < 1e6, "{row}");
        }
    });
}

#[test]
fn a_taken_source_port_is_told() {
    with_backends(|traced| {
        let (from, rows, _) = traced.trace(&[], || {
            let (_listener, to) = Tcp::listen("127.0.0.1");
            let first = Tcp::v4();
            first.option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
            first.bind(addr("127.0.0.1:0"));
            let from = first.local();
            let second = Tcp::v4();
            second.option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
            second.bind(from);
            first.connect(to).unwrap();
            assert_eq!(second.connect(to), Err(Errno::EADDRNOTAVAIL));
            from
        });
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert_eq!(rows[0]["result"], "ok");
        assert_eq!((&rows[1]["result"], &rows[1]["errno"]), (&"EADDRNOTAVAIL".into(), &99.into()));
        assert_eq!(rows[1]["saddr"], from.ip().to_string());
    });
}

#[test]
fn a_timeout_takes_its_time() {
    with_backends(|traced| {
        let ((), rows, _) = traced.trace(&[], || {
            silent_network();
            let socket = Tcp::v4();
            // One retransmission: two to four seconds.
            socket.option(libc::IPPROTO_TCP, libc::TCP_SYNCNT, 1);
            assert_eq!(socket.connect(addr("203.0.113.2:80")), Err(Errno::ETIMEDOUT));
        });
        assert_eq!(rows.len(), 1);
        assert_eq!((&rows[0]["result"], &rows[0]["errno"]), (&"ETIMEDOUT".into(), &110.into()));
        assert!(rows[0]["latency_us"].as_f64().unwrap() > 1e6, "{}", rows[0]);
        assert_eq!(rows[0]["saddr"], "203.0.113.1");
    });
}

#[test]
fn a_neighbour_that_does_not_answer_makes_a_host_unreachable() {
    with_backends(|traced| {
        let ((), rows, _) = traced.trace(&[], || {
            ip("link add left type veth peer name right");
            ip("addr add 203.0.113.1/24 dev left");
            ip("link set left up");
            ip("link set right up");
            assert_eq!(Tcp::v4().connect(addr("203.0.113.2:80")), Err(Errno::EHOSTUNREACH));
        });
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0]["result"], "EHOSTUNREACH");
        assert!(rows[0]["sport"].as_u64().is_some(), "a packet was to be sent: {}", rows[0]);
    });
}

#[test]
fn a_nonblocking_attempt_is_told_when_it_is_decided() {
    with_backends(|traced| {
        let ((), rows, _) = traced.trace(&[], || {
            let (_listener, open) = Tcp::listen("127.0.0.1");
            for (to, expected) in [(open, 0), (addr("127.0.0.1:1"), libc::ECONNREFUSED)] {
                let socket = Tcp::v4().nonblocking();
                match socket.connect(to) {
                    Ok(()) | Err(Errno::EINPROGRESS | Errno::ECONNREFUSED) => {}
                    other => panic!("{other:?}"),
                }
                let mut fds = [PollFd::new(socket.0.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::from(5000_u16)).unwrap();
                // Asking how it went is no second attempt, however often.
                let again: Vec<_> = (0..3).map(|_| socket.connect(to)).collect();
                if expected == 0 {
                    assert!(again.contains(&Err(Errno::EISCONN)), "{again:?}");
                }
            }
        });
        let results: Vec<_> = rows.iter().map(|row| row["result"].as_str().unwrap()).collect();
        assert_eq!(results[..2], ["ok", "ECONNREFUSED"], "{results:?}");
        // The refused socket is free again after its error was fetched: what asks then is a new attempt, refused too, unless the
        // socket is closed before.
        let again = |result: &&str| matches!(*result, "ECONNREFUSED" | "closed");
        assert!(results[2..].iter().all(again), "{results:?}");
        assert!(results.len() <= 4, "{results:?}");
    });
}

#[test]
fn fetching_an_error_by_connect_is_no_second_row() {
    with_backends(|traced| {
        let ((), rows, _) = traced.trace(&[], || {
            let socket = Tcp::v4().nonblocking();
            let to = addr("127.0.0.1:1");
            let first = socket.connect(to);
            if first == Err(Errno::EINPROGRESS) {
                let mut fds = [PollFd::new(socket.0.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::from(5000_u16)).unwrap();
                assert_eq!(socket.connect(to), Err(Errno::ECONNREFUSED));
            }
        });
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0]["result"], "ECONNREFUSED");
    });
}

#[test]
fn what_the_caller_gives_up_is_closed() {
    with_backends(|traced| {
        let ((), rows, _) = traced.trace(&[], || {
            silent_network();
            let closed = Tcp::v4().nonblocking();
            assert_eq!(closed.connect(addr("203.0.113.2:80")), Err(Errno::EINPROGRESS));
            sleep(Duration::from_millis(50));
            drop(closed);
            let shut = Tcp::v4().nonblocking();
            assert_eq!(shut.connect(addr("203.0.113.2:81")), Err(Errno::EINPROGRESS));
            let _ = shutdown(shut.0.as_raw_fd(), Shutdown::Both);
            // connect() to AF_UNSPEC takes the attempt back; the socket can then connect anew.
            let disconnected = Tcp::v4().nonblocking();
            assert_eq!(disconnected.connect(addr("203.0.113.2:82")), Err(Errno::EINPROGRESS));
            disconnect(&disconnected);
            assert_eq!(disconnected.connect(addr("203.0.113.2:83")), Err(Errno::EINPROGRESS));
        });
        let mut told: Vec<_> = rows.iter().map(|row| row["dport"].as_u64().unwrap()).collect();
        told.sort_unstable();
        assert_eq!(told, [80, 81, 82, 83]);
        assert!(
            rows.iter().all(|row| row["result"] == "closed" && row["errno"].is_null()),
            "{rows:?}"
        );
        let first = rows.iter().find(|row| row["dport"] == 80).unwrap();
        assert!(first["latency_us"].as_f64().unwrap() >= 50_000.0, "{first}");
    });
}

fn disconnect(socket: &Tcp) {
    let none = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    // SAFETY: a sockaddr of the length that is stated.
    let status =
        unsafe { libc::connect(socket.0.as_raw_fd(), &none, size_of::<libc::sockaddr>() as u32) };
    assert_eq!(status, 0, "{}", Errno::last());
}

#[test]
fn undecided_attempts_are_pending_at_the_end() {
    with_backends(|traced| {
        let running = traced.start(&[]);
        let (held, from) = traced.netns.run(|| {
            silent_network();
            let socket = Tcp::v4().nonblocking();
            assert_eq!(socket.connect(addr("203.0.113.2:80")), Err(Errno::EINPROGRESS));
            let from = socket.local();
            (socket, from)
        });
        let run = running.stop();
        drop(held);
        let rows = run.events();
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_row(&rows[0], Some(from), addr("203.0.113.2:80"), "pending");
        assert!(rows[0]["latency_us"].is_null());
        assert_eq!(run.summary()["pending"], 1);
    });
}

#[test]
fn an_interrupted_call_is_one_attempt_that_goes_on() {
    with_backends(|traced| {
        let ((), rows, _) = traced.trace(&[], || {
            silent_network();
            let socket = Tcp::v4();
            let this = nix::sys::pthread::pthread_self();
            install_handler();
            let begin = std::time::Instant::now();
            let result = std::thread::scope(|scope| {
                scope.spawn(move || {
                    sleep(Duration::from_millis(200));
                    nix::sys::pthread::pthread_kill(this, nix::sys::signal::Signal::SIGUSR1)
                        .unwrap();
                });
                socket.connect(addr("203.0.113.2:80"))
            });
            assert_eq!(result, Err(Errno::EINTR));
            assert!(begin.elapsed() >= Duration::from_millis(200));
        });
        // The call was interrupted; the attempt ended when the socket was closed.
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0]["result"], "closed");
    });
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Without SA_RESTART, so that the call returns EINTR.
fn install_handler() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
}

#[test]
fn calls_that_ask_for_no_connection_are_no_attempts() {
    with_backends(|traced| {
        let ((), rows, _) = traced.trace(&[], || {
            let (listener, to) = Tcp::listen("127.0.0.1");
            assert_eq!(listener.connect(to), Err(Errno::EISCONN));
            let connected = Tcp::v4();
            connected.connect(to).unwrap();
            assert_eq!(connected.connect(to), Err(Errno::EISCONN));
            // SAFETY: a descriptor that can't be open, a null address.
            assert_eq!(unsafe { libc::connect(1_000_000, std::ptr::null(), 16) }, -1);
            let socket = Tcp::v4();
            // SAFETY: an address that can't be read, which the kernel finds out.
            let status = unsafe { libc::connect(socket.0.as_raw_fd(), 8 as *const _, 16) };
            assert_eq!(status, -1);
            // UDP and UNIX sockets connect too, but not by TCP.
            std::net::UdpSocket::bind("127.0.0.1:0").unwrap().connect(to).unwrap();
            assert!(std::os::unix::net::UnixStream::connect("/no/such/socket").is_err());
        });
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0]["result"], "ok");
    });
}
