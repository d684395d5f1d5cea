// SPDX-License-Identifier: MIT OR Apache-2.0

//! A row for each flow, or for each packet.

use std::net::UdpSocket;

use super::*;

#[test]
fn each_flow_is_told_of_once_and_each_packet_if_asked_for() {
    if !root() {
        return;
    }
    let wire = wire();
    let traffic = || {
        wire.near.run(|| {
            // Ten flows: each sender has a port of its own.
            for i in 0..5 {
                send(SocketAddr::from(([10, 0, 0, i], 53)), 20);
                send(SocketAddr::new("2001:db8:1::7".parse().unwrap(), 53), 10);
            }
        });
        settle();
    };
    let only = ["--only", "10.0.0.0/8,2001:db8:1::/48"];
    for backend in backends() {
        let args = [&["tc-egress", "near", "--events", "--backend", backend], &only[..]].concat();
        let run = wire.start(&args);
        traffic();
        let run = run.stop();
        let events = run.events();
        assert_eq!(events.len(), 10, "{backend} {}", run.stdout);
        let first = &events[0];
        assert_eq!((&first["daddr"], &first["dport"]), (&"10.0.0.0".into(), &53.into()));
        assert_eq!((&first["saddr"], &first["proto"]), (&NEAR4.into(), &"udp".into()));
        assert_eq!((&first["iface"], &first["direction"]), (&"near".into(), &"egress".into()));
        assert_eq!((&first["packets"], &first["bytes"]), (&1.into(), &49.into()));
        assert_eq!(events[1]["daddr"], "2001:db8:1::7");
        assert!(first["sport"].as_u64().unwrap() > 0);
        let summary = run.summary();
        assert_eq!((&summary["events"], &summary["lost"]), (&10.into(), &0.into()));
        assert_eq!(summary["counted_packets"], 150);

        let run = wire.start(&[&args[..], &["--all-packets"]].concat());
        traffic();
        let run = run.stop();
        assert_eq!(run.events().len(), 150, "{backend}");
        let run = wire.start(&[&args[..], &["-n", "3"]].concat());
        traffic();
        assert_eq!(run.wait().events().len(), 3, "{backend}");
    }
}

/// More than the ring buffer holds while nobody takes the rows: rows and losses add up, and a lost flow is told of later.
#[test]
fn what_is_lost_is_counted_and_no_flow_is_hidden_by_it() {
    if !root() {
        return;
    }
    let wire = wire();
    // Some 12 000 records fit.
    const MANY: usize = 30_000;
    let only = ["--only", "10.0.0.0/8"];
    let run =
        wire.start(&[&["tc-egress", "near", "--events", "--all-packets"], &only[..]].concat());
    run.pause_reading(true);
    wire.near.run(|| send(SocketAddr::from(([10, 0, 0, 1], 9)), MANY));
    run.pause_reading(false);
    settle();
    let run = run.stop();
    let (events, lost) = (run.events().len() as u64, run.summary()["lost"].as_u64().unwrap());
    assert_eq!(events + lost, MANY as u64);
    assert!(lost > 0 && events > 1000, "{events} {lost}");

    let run = wire.start(&[&["tc-egress", "near", "--events"], &only[..]].concat());
    run.pause_reading(true);
    let flows = |socket: &UdpSocket| {
        for i in 0..MANY as u32 {
            let to = SocketAddr::from((std::net::Ipv4Addr::from_bits(0x0a00_0000 + i), 9));
            socket.send_to(b"x", to).unwrap();
        }
    };
    let socket = wire.near.run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    flows(&socket);
    run.pause_reading(false);
    read_up();
    // The same flows again, not faster than they are read.
    for i in (0..MANY as u32).rev().take(1000) {
        let to = SocketAddr::from((std::net::Ipv4Addr::from_bits(0x0a00_0000 + i), 9));
        socket.send_to(b"x", to).unwrap();
    }
    settle();
    let run = run.stop();
    assert!(run.summary()["lost"].as_u64().unwrap() > 0, "{}", run.stderr);
    let last = std::net::Ipv4Addr::from_bits(0x0a00_0000 + MANY as u32 - 1).to_string();
    let told = run.events().iter().filter(|event| event["daddr"] == last.as_str()).count();
    assert_eq!(told, 1, "the last flow was lost at first, and is told of with its next packet");
}
