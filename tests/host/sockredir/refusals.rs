// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sockets that must not be redirected, real ones: MPTCP's, the kernel's own, and those of an upper layer protocol. Their bytes go by
//! TCP, and the row says why.

use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{Backlog, SockaddrStorage, accept, connect};
use serde_json::Value;

use super::work::{exchange, listen, pair, patient, take};
use super::*;
use crate::support::Tcp;

fn mptcp() -> Tcp {
    Tcp::mptcp().expect("tried before")
}

fn has_mptcp() -> bool {
    let has = Tcp::mptcp().is_some();
    if !has {
        println!("SKIP this kernel has no MPTCP");
    }
    has
}

fn listen_on(socket: &Tcp) -> std::net::SocketAddr {
    socket.bind("127.0.0.1:0".parse().unwrap());
    nix::sys::socket::listen(&socket.0, Backlog::MAXCONN).unwrap();
    socket.local()
}

fn accepted(listener: &Tcp) -> TcpStream {
    let fd = accept(listener.0.as_raw_fd()).expect("somebody connected");
    // SAFETY: it was just made.
    TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Much in both directions, at once; every byte counts.
fn talk(client: TcpStream, server: TcpStream) {
    let question: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(700_001).collect();
    let answer: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(300_007).collect();
    for stream in [&client, &server] {
        patient(stream);
    }
    std::thread::scope(|scope| {
        for (stream, text) in [(&client, &question), (&server, &answer)] {
            scope.spawn(move || std::io::Write::write_all(&mut &*stream, text).unwrap());
        }
        let (mut client, mut server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let at_client = scope.spawn(move || take(&mut client, 300_007));
        assert!(take(&mut server, 700_001) == question);
        assert!(at_client.join().unwrap() == answer);
    });
}

/// The rows of what `work` does with connections in the place, and the summary.
fn rows_of(place: &Place, work: impl FnOnce() + Send) -> (Vec<Value>, Value) {
    let run = place.start(&["--events"]);
    place.run(work);
    // MPTCP closes its connections when both ends have heard of it.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let run = run.stop();
    let summary = run.summary();
    println!("{:#?} {summary}", run.events());
    assert_eq!(summary["redirected"], 0, "{summary}");
    (run.events(), summary)
}

#[test]
fn mptcp_stays_as_it_is() {
    let Some(place) = Place::new() else { return };
    if !has_mptcp() {
        return;
    }
    let (rows, summary) = rows_of(&place, || {
        let listener = mptcp();
        let addr = listen_on(&listener);
        let client = mptcp();
        client.connect(addr).unwrap();
        let server = accepted(&listener);
        talk(TcpStream::from(client.0), server);
    });
    assert_eq!(summary["reasons"]["mptcp"], 2, "{summary}");
    assert_eq!(rows.len(), 1, "{rows:#?}");
    let row = &rows[0];
    for direction in ["server", "client"] {
        assert_eq!(row[format!("state_to_{direction}").as_str()], "tcp", "{row}");
        assert_eq!(row[format!("reason_to_{direction}").as_str()], "mptcp", "{row}");
    }
    // MPTCP may send again what TCP has sent.
    assert!(row["tcp_to_server"].as_u64() >= Some(700_001), "{row}");
    assert!(row["tcp_to_client"].as_u64() >= Some(300_007), "{row}");
}

/// One end speaks MPTCP, the other does not: they agree on TCP. Kernels that crash then are not let in by the gate.
#[test]
fn mptcp_with_tcp_stays_as_it_is() {
    let Some(place) = Place::new() else { return };
    if !has_mptcp() {
        return;
    }
    let (rows, summary) = rows_of(&place, || {
        let (listener, addr) = listen("127.0.0.1");
        let client = mptcp();
        client.connect(addr).unwrap();
        talk(TcpStream::from(client.0), listener.accept().unwrap().0);
    });
    assert_eq!(summary["tcp_bytes"], 1_000_008, "{summary}");
    assert_eq!(rows[0]["reason_to_server"], "mptcp", "{rows:#?}");
    assert_eq!(rows[0]["reason_to_client"], "peer-unknown", "{rows:#?}");

    // The socket that the program accepts is the kernel's until it does.
    let (rows, summary) = rows_of(&place, || {
        let listener = mptcp();
        let addr = listen_on(&listener);
        let client = TcpStream::connect(addr).unwrap();
        talk(client, accepted(&listener));
    });
    assert_eq!(rows[0]["reason_to_client"], "kernel", "{summary}");
}

/// TCP_ULP: the protocol alone, without keys. Then nothing is different yet.
fn tls(stream: &TcpStream) -> std::io::Result<()> {
    // SAFETY: a name of the length that is stated.
    let status = unsafe {
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_ULP);
        libc::setsockopt(stream.as_raw_fd(), level, option, c"tls".as_ptr().cast(), 3)
    };
    if status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// include/uapi/linux/tls.h: AES-GCM with 128 bits, for what is sent.
fn tls_key(stream: &TcpStream) -> i32 {
    const SOL_TLS: i32 = 282;
    const TLS_TX: i32 = 1;
    let mut key = [7_u8; 40];
    key[..2].copy_from_slice(&0x0303_u16.to_ne_bytes());
    key[2..4].copy_from_slice(&51_u16.to_ne_bytes());
    // SAFETY: as many bytes as are stated.
    let status = unsafe {
        let length = key.len() as u32;
        libc::setsockopt(stream.as_raw_fd(), SOL_TLS, TLS_TX, key.as_ptr().cast(), length)
    };
    if status == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap() }
}

/// A socket with an upper layer protocol goes on by TCP, and gets no keys from a kernel that is sound; one that would give them is
/// refused by the gate.
#[test]
fn kernel_tls_and_redirection_exclude_each_other() {
    let Some(place) = Place::new() else { return };
    let (plain, _other) = place.run(pair);
    if let Err(error) = tls(&plain) {
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
        println!("SKIP this kernel has no TLS: {error}");
        return;
    }
    // It may lack the cipher; the question is a good one.
    assert_ne!(tls_key(&plain), libc::EINVAL);
    let run = place.start(&["--events"]);
    for redirected_before in [false, true] {
        for at_client in [false, true] {
            let (mut client, mut server) = place.run(pair);
            if redirected_before {
                exchange(&mut client, &mut server);
            }
            std::io::Write::write_all(&mut server, b"unread, ").unwrap();
            let it = if at_client { &client } else { &server };
            tls(it).unwrap();
            assert_eq!(tls_key(it), libc::EINVAL, "{redirected_before} {at_client}");
            std::io::Write::write_all(&mut server, b"and more").unwrap();
            assert_eq!(take(&mut client, 16), b"unread, and more");
            exchange(&mut client, &mut server);
        }
    }
    let run = run.stop();
    let summary = run.summary();
    println!("{summary}");
    assert_eq!(summary["reasons"]["ulp"], 8, "{summary}");
    // The server's began before, and the client's of those that had exchanged something.
    assert_eq!((&summary["redirected"], &summary["fell_back"]), (&6.into(), &6.into()));
    for event in run.events() {
        assert_eq!(event["reason_to_server"], "ulp", "{event}");
        assert_eq!(event["reason_to_client"], "ulp", "{event}");
    }
}

/// SMC makes a TCP socket of its own for each of its sockets, and falls back to it with who doesn't speak SMC.
#[test]
fn the_kernels_own_sockets_stay_as_they_are() {
    const AF_SMC: i32 = 43;
    let Some(place) = Place::new() else { return };
    // SAFETY: creates a descriptor.
    let smc = || unsafe { libc::socket(AF_SMC, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let probe = smc();
    if probe < 0 {
        println!("SKIP this kernel has no SMC: {}", std::io::Error::last_os_error());
        return;
    }
    // SAFETY: it was just made.
    drop(unsafe { OwnedFd::from_raw_fd(probe) });
    let (rows, summary) = rows_of(&place, || {
        let (listener, addr) = listen("127.0.0.1");
        let fd = smc();
        // SAFETY: it was just made.
        let client = unsafe { OwnedFd::from_raw_fd(fd) };
        connect(fd, &SockaddrStorage::from(addr)).unwrap();
        talk(TcpStream::from(client), listener.accept().unwrap().0);
    });
    assert_eq!(rows[0]["reason_to_server"], "kernel", "{summary}");
    assert_eq!(rows[0]["tcp_to_server"], 700_001, "{rows:#?}");
    assert_eq!(summary["reasons"]["kernel"], 1, "{summary}");
}
