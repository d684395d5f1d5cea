// SPDX-License-Identifier: MIT OR Apache-2.0

//! Addresses: the same ones in two namespaces, a veth between two, IPv6, v4-mapped, and whatever else names this machine.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::socket::{AddressFamily, setsockopt, sockopt};

use super::work::{exchange, listen, pair_on, patient, take};
use super::*;
use crate::support::{Tcp, ip};

/// Both ends of a connection with just these ports, on 127.0.0.1.
fn fixed((sport, dport): (u16, u16)) -> (TcpStream, TcpStream) {
    let listener = Tcp::v4();
    setsockopt(&listener.0, sockopt::ReuseAddr, &true).unwrap();
    listener.bind((Ipv4Addr::LOCALHOST, dport).into());
    nix::sys::socket::listen(&listener.0, nix::sys::socket::Backlog::MAXCONN).unwrap();
    let listener = TcpListener::from(listener.0);
    let client = Tcp::v4();
    client.bind((Ipv4Addr::LOCALHOST, sport).into());
    client.connect((Ipv4Addr::LOCALHOST, dport).into()).unwrap();
    let (client, server) = (TcpStream::from(client.0), listener.accept().unwrap().0);
    patient(&client);
    patient(&server);
    (client, server)
}

/// Two that were not used before: the kernel keeps those of a connection for a while.
fn ports() -> (u16, u16) {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let first = NEXT.fetch_add(2, Ordering::Relaxed);
    (first, first + 1)
}

/// The first connection's client is gone, and its server is not: then a message for the second connection's server, in
/// another namespace, gets to the first one's, if the addresses are all there is to a name. Returns what that one got.
fn leaked(place: &Place) -> Vec<u8> {
    let ports = ports();
    let other = Netns::new();
    let (client_a, mut server_a) = place.run(|| fixed(ports));
    drop(client_a);
    let (mut client_b, mut server_b) = other.run(|| fixed(ports));
    let sent = client_b.write_all(b"secret-of-B");
    let mut got = [0; 64];
    server_a.set_nonblocking(true).unwrap();
    let leaked = server_a.read(&mut got).unwrap_or(0);
    if leaked == 0 {
        sent.unwrap();
        assert_eq!(take(&mut server_b, 11), b"secret-of-B");
    }
    got[..leaked].to_vec()
}

#[test]
fn naive_redirection_leaks_between_namespaces() {
    let Some(place) = Place::new() else { return };
    assert_eq!(leaked(&place), b"", "without redirection");
    let _naive = place.naive(true);
    assert_eq!(leaked(&place), b"secret-of-B", "the test would not find it");
}

/// Two connections of the same addresses at once: whether anything of one gets to the other.
fn mixed_up(place: &Place) -> bool {
    let ports = ports();
    let other = Netns::new();
    let (mut client_a, server_a) = place.run(|| fixed(ports));
    let (mut client_b, server_b) = other.run(|| fixed(ports));
    let sent = [client_a.write_all(b"of A"), client_b.write_all(b"of B")];
    let got = [server_a, server_b].map(|mut server| {
        // What went by TCP may come later.
        super::work::readable(&server, Duration::from_secs(2));
        server.set_nonblocking(true).unwrap();
        let mut got = [0; 64];
        let many = server.read(&mut got).unwrap_or(0);
        got[..many].to_vec()
    });
    sent.iter().any(Result::is_err) || got != [b"of A".to_vec(), b"of B".to_vec()]
}

#[test]
fn equal_addresses_in_two_namespaces_are_two_connections() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&[]);
    for _ in 0..10 {
        assert_eq!(leaked(&place), b"");
        assert!(!mixed_up(&place));
    }
    let summary = run.stop().summary();
    assert_eq!(summary["failed_inserts"], 0, "{summary}");
    assert_eq!(summary["redirected"], 30, "each that sent anything: {summary}");
}

fn redirected(
    place: &Place,
    args: &[&str],
    connect: impl FnOnce() -> (TcpStream, TcpStream),
) -> u64 {
    let run = place.start(args);
    let (mut client, mut server) = connect();
    for _ in 0..5 {
        exchange(&mut client, &mut server);
    }
    let summary = run.stop().summary();
    println!("{summary}");
    // It goes on when bpftk has ended.
    exchange(&mut client, &mut server);
    summary["redirected"].as_u64().unwrap()
}

#[test]
fn ipv6_is_redirected() {
    let Some(place) = Place::new() else { return };
    assert_eq!(redirected(&place, &[], || place.run(|| pair_on("::1"))), 2);
}

/// A listener for both families, and a client of IPv4.
#[test]
fn v4_mapped_is_redirected() {
    let Some(place) = Place::new() else { return };
    let connect = || {
        place.run(|| {
            let listener = Tcp::new(AddressFamily::Inet6);
            listener.option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0);
            listener.bind("[::]:0".parse().unwrap());
            nix::sys::socket::listen(&listener.0, nix::sys::socket::Backlog::MAXCONN).unwrap();
            let listener = TcpListener::from(listener.0);
            let port = listener.local_addr().unwrap().port();
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let server = listener.accept().unwrap().0;
            patient(&client);
            patient(&server);
            (client, server)
        })
    };
    assert_eq!(redirected(&place, &[], connect), 2);
}

/// An address of the machine that is not the loopback's.
#[test]
fn own_addresses_are_redirected() {
    let Some(place) = Place::new() else { return };
    place.run(|| ip("addr add 198.51.100.7/32 dev lo"));
    assert_eq!(redirected(&place, &[], || place.run(|| pair_on("198.51.100.7"))), 2);
}

#[test]
fn a_veth_between_namespaces_is_redirected_if_asked_for() {
    let Some(place) = Place::new() else { return };
    let far = Netns::new();
    place.run(|| {
        ip(&format!("link add near type veth peer name far netns {}", far.path()));
        ip("addr add 198.51.100.1/24 dev near");
        ip("link set near up");
    });
    far.run(|| {
        ip("addr add 198.51.100.2/24 dev far");
        ip("link set far up");
    });
    let connect = || {
        let (listener, addr): (TcpListener, SocketAddr) = far.run(|| listen("198.51.100.2"));
        let client = place.run(|| TcpStream::connect(addr).expect("it connects"));
        // The last packet of the handshake may take another processor.
        let server = listener.accept().unwrap().0;
        patient(&client);
        patient(&server);
        (client, server)
    };
    let run = place.start(&[]);
    let (mut client, mut server) = connect();
    exchange(&mut client, &mut server);
    drop((client, server));
    let summary = run.stop().summary();
    assert_eq!(summary["redirected"], 0, "{summary}");
    assert_eq!(summary["reasons"]["other-namespace"], 2, "{summary}");
    assert_eq!(summary["tcp_bytes"], 14, "{summary}");
    assert_eq!(redirected(&place, &["--across-namespaces"], connect), 2);
}

/// As for a container's published port: the client connects to one port, and the server listens at another.
#[test]
fn a_translated_address_is_told() {
    let Some(place) = Place::new() else { return };
    let rules = "table ip t { chain c { type nat hook output priority -100; tcp dport 8080 dnat to 127.0.0.1:9090; } }";
    let nft = place.run(|| std::process::Command::new("nft").arg(rules).output());
    if !nft.is_ok_and(|output| output.status.success()) {
        println!("SKIP no nft, or this kernel can't translate addresses");
        return;
    }
    let run = place.start(&[]);
    let (mut client, mut server) = place.run(|| {
        let listener = TcpListener::bind("127.0.0.1:9090").unwrap();
        let client = TcpStream::connect("127.0.0.1:8080").expect("it is translated");
        (client, listener.accept().unwrap().0)
    });
    exchange(&mut client, &mut server);
    drop((client, server));
    let summary = run.stop().summary();
    assert_eq!(summary["redirected"], 0, "{summary}");
    assert_eq!(summary["reasons"]["translated"], 2, "{summary}");
}
