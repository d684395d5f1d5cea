// SPDX-License-Identifier: MIT OR Apache-2.0

//! A socket that had another connection before: nothing of that one is read by the next.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use super::readers::{byte, bytes};
use super::work::{listen, patient, readable, recv, take};
use super::*;
use crate::support::{Tcp, sockaddr};

/// connect(2) to AF_UNSPEC.
fn disconnect(socket: &TcpStream) {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    // SAFETY: an address of the length that is stated.
    let status = unsafe {
        libc::connect(socket.as_raw_fd(), &raw const nowhere, size_of_val(&nowhere) as u32)
    };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
}

fn connect(socket: &TcpStream, addr: SocketAddr) {
    nix::sys::socket::connect(socket.as_raw_fd(), &sockaddr(addr)).expect("it connects");
}

/// Connects one socket `times` times, each time with bytes that nobody reads before it is disconnected.
fn again_and_again(times: u64, beyond_the_queue: bool) {
    let (listener, addr) = listen("127.0.0.1");
    let client = Tcp::v4();
    client.bind((Ipv4Addr::LOCALHOST, 0).into());
    let mut client = TcpStream::from(client.0);
    for time in 0..times {
        connect(&client, addr);
        let (mut server, _) = listener.accept().unwrap();
        patient(&server);
        patient(&client);
        server.write_all(&bytes(time, 0, 100)).unwrap();
        assert_eq!(take(&mut client, 100), bytes(time, 0, 100), "connection {time}");
        client.write_all(&bytes(time, 7, 100)).unwrap();
        assert_eq!(take(&mut server, 100), bytes(time, 7, 100), "connection {time}");
        // Of these some go by TCP.
        server
            .write_all(&vec![byte(time, 1); if beyond_the_queue { 100_000 } else { 4000 }])
            .unwrap();
        assert!(readable(&client, Duration::from_secs(5)));
        disconnect(&client);
        // Which error depends on how TCP ended it.
        let between = recv(&client, &mut [0; 10], libc::MSG_DONTWAIT);
        assert!(between.is_err(), "between {time} and the next there are {between:?} bytes");
    }
}

#[test]
fn a_new_connection_begins_with_its_own_bytes() {
    let Some(place) = Place::new() else { return };
    place.run(|| again_and_again(3, true));
    let run = place.start(&["--max-queue", "64K"]);
    let times = rounds(500) as u64;
    place.run(|| {
        again_and_again(times, false);
        again_and_again(times.min(50), true);
    });
    let summary = run.stop().summary();
    println!("{summary}");
    // It is redirected each time: the socket is not left out for having been in the map.
    let connections = times + times.min(50);
    assert!(
        summary["redirected"].as_u64().unwrap() >= 2 * connections - connections / 10,
        "{summary}"
    );
}

/// bpftk is gone, and the socket's program is not: it must not take the new connection's bytes for the old one's. (What nobody read of
/// the old connection, its end included, stays in the queue then: the manual says so.)
#[test]
fn a_socket_that_bpftk_left_behind_connects_again() {
    let Some(place) = Place::new() else { return };
    for kill in [false, true] {
        let run = place.start(&[]);
        place.run(|| {
            let (listener, addr) = listen("127.0.0.1");
            // The same port each time, so that addresses and ports are those of the old connection.
            let client = Tcp::v4();
            setsockopt(&client.0, sockopt::ReuseAddr, &true).unwrap();
            client.bind((Ipv4Addr::LOCALHOST, 0).into());
            let mut client = TcpStream::from(client.0);
            connect(&client, addr);
            let (mut server, _) = listener.accept().unwrap();
            patient(&client);
            server.write_all(b"first").unwrap();
            assert_eq!(take(&mut client, 5), b"first");
            drop(if kill { run.kill() } else { run.stop() });
            server.write_all(b"by TCP").unwrap();
            assert_eq!(take(&mut client, 6), b"by TCP");
            let mut servers = Vec::new();
            for time in 0..20 {
                disconnect(&client);
                connect(&client, addr);
                let (mut server, _) = listener.accept().unwrap();
                let content = bytes(time, 0, 30_000);
                server.write_all(&content).unwrap();
                assert!(take(&mut client, 30_000) == content, "connection {time}");
                servers.push(server);
            }
        });
    }
}
