// SPDX-License-Identifier: MIT OR Apache-2.0

//! Before there is a connection: senders and readers that wait for one, Fast Open, and whoever speaks first.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::Backlog;

use super::work::{exchange, listen, pair, patient, recv, take};
use super::*;
use crate::support::Tcp;

/// A connect that does not wait, and at once a send by another thread.
#[test]
fn a_sender_that_waits_for_the_connection_keeps_its_order() {
    let Some(place) = Place::new() else { return };
    place.spread();
    let run = place.start(&[]);
    place.run(|| {
        let (listener, addr) = listen("127.0.0.1");
        for round in 0..rounds(500) {
            let client = Tcp::v4();
            let other = TcpStream::from(client.0.try_clone().unwrap());
            let delay = Duration::from_micros(fastrand::u64(..100));
            thread::scope(|scope| {
                // It may find a socket that is not connected yet, one that is being connected, or one that is.
                let sender = scope.spawn(move || {
                    thread::sleep(delay);
                    let mut other = other;
                    let begin = std::time::Instant::now();
                    while let Err(error) = other.write_all(b"first ") {
                        let errno = error.raw_os_error();
                        assert!(
                            errno == Some(libc::EPIPE) || errno == Some(libc::ENOTCONN),
                            "{error}"
                        );
                        assert!(begin.elapsed() < super::work::PATIENCE);
                    }
                    other.write_all(b"second ").unwrap();
                });
                client.connect(addr).unwrap();
                sender.join().unwrap();
            });
            let mut client = TcpStream::from(client.0);
            client.write_all(b"third").unwrap();
            let (mut server, _) = listener.accept().unwrap();
            patient(&server);
            patient(&client);
            let got = take(&mut server, 18);
            assert_eq!(got, b"first second third", "round {round}");
            exchange(&mut client, &mut server);
        }
    });
    println!("{}", run.stop().summary());
}

/// A reader that waits since before there was a connection is in TCP's own function, and sees nothing but TCP's bytes.
#[test]
fn a_reader_that_waits_for_the_connection_gets_its_bytes() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&[]);
    place.run(|| {
        let listener = Tcp::v4();
        listener.bind("127.0.0.1:0".parse().unwrap());
        // With one that is not accepted, it is full: requests get no answer, and are made again a second later.
        nix::sys::socket::listen(&listener.0, Backlog::new(0).unwrap()).unwrap();
        let addr = listener.local();
        let listener = TcpListener::from(listener.0);
        for _ in 0..2 {
            let in_the_way = TcpStream::connect(addr).unwrap();
            let client = Tcp::v4().nonblocking();
            assert_eq!(client.connect(addr), Err(Errno::EINPROGRESS));
            let client = TcpStream::from(client.0);
            patient(&client);
            thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    // As if it had been connecting in another thread, which does not wait.
                    let mut bytes = [0; 5];
                    set_blocking(&client, true);
                    let got = recv(&client, &mut bytes, libc::MSG_WAITALL);
                    got.map(|many| bytes[..many].to_vec())
                });
                thread::sleep(Duration::from_millis(200));
                set_blocking(&client, false);
                drop(listener.accept().unwrap());
                let (mut server, _) = listener.accept().unwrap();
                server.write_all(b"hello").unwrap();
                assert_eq!(reader.join().unwrap().unwrap(), b"hello");
            });
            drop(in_the_way);
        }
    });
    let summary = run.stop().summary();
    println!("{summary}");
    assert_eq!(summary["reasons"]["reader"], 2, "{summary}");
}

/// For what is called from now on.
fn set_blocking(stream: &TcpStream, yes: bool) {
    stream.set_nonblocking(!yes).unwrap();
}

#[test]
fn a_server_may_speak_first() {
    let Some(place) = Place::new() else { return };
    place.spread();
    let run = place.start(&[]);
    place.run(|| {
        for _ in 0..rounds(500) {
            let (mut client, mut server) = pair();
            server.write_all(b"220 ready").unwrap();
            assert_eq!(take(&mut client, 9), b"220 ready");
            exchange(&mut client, &mut server);
        }
    });
    let summary = run.stop().summary();
    assert!(summary["redirected"].as_u64().unwrap() > 0, "{summary}");
}

/// What is in the first packet is TCP's.
#[test]
fn fast_open_stays_on_tcp() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&[]);
    let enabled = place.run(|| {
        // /proc/sys shows the namespace of whoever looks; both ends, and no cookies asked for.
        fs::write("/proc/thread-self/../../sys/net/ipv4/tcp_fastopen", "1543")
            .or_else(|_| fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1543"))
    });
    if let Err(error) = enabled {
        println!("SKIP no Fast Open: {error}");
        return;
    }
    place.run(|| {
        let (listener, addr) = Tcp::listen("127.0.0.1");
        listener.option(libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16);
        let listener = std::net::TcpListener::from(listener.0);
        for _ in 0..20 {
            let client = Tcp::v4();
            assert_eq!(client.fast_open(addr, b"in the first packet, "), Ok(21));
            let mut client = TcpStream::from(client.0);
            client.write_all(b"and behind it").unwrap();
            let (mut server, _) = listener.accept().unwrap();
            patient(&server);
            patient(&client);
            assert_eq!(take(&mut server, 34), b"in the first packet, and behind it");
            exchange(&mut client, &mut server);
        }
    });
    let summary = run.stop().summary();
    println!("{summary}");
    assert_eq!(summary["redirected"], 0, "{summary}");
    assert_eq!(summary["reasons"]["prior-bytes"], 20, "{summary}");
}
