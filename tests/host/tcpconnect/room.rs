// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the filters leave out takes no room in the tables, and is never counted as lost.

use std::net::SocketAddr;

use nix::sys::socket::AddressFamily;

use super::with_backends;
use crate::support::{Netns, Tcp, emulated, ip, map_entries, silent_network};

/// IPv4 and IPv6, and two hosts that don't answer in each.
fn silent_networks() {
    silent_network();
    ip("neigh add 203.0.113.3 lladdr 02:00:00:00:00:02 dev silent");
    ip("-6 addr add 2001:db8::1/64 dev silent nodad");
    ip("-6 neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev silent");
}

/// Begins as many connects, to ports from this one on.
fn begin(count: u16, to: &str, port: u16) -> Vec<Tcp> {
    (0..count)
        .map(|i| {
            let to = SocketAddr::new(to.parse().unwrap(), port + i);
            let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let socket = Tcp::new(family).nonblocking();
            let _ = socket.connect(to);
            socket
        })
        .collect()
}

type Case = (&'static [&'static str], (&'static str, u16), (&'static str, u16));

#[test]
fn what_filters_leave_out_takes_no_room() {
    // The option, an address and a port that it leaves out, and some that it doesn't.
    let cases: [Case; 5] = [
        (&["-P", "80-89"], ("203.0.113.2", 1000), ("203.0.113.2", 80)),
        (&["--dst", "203.0.113.3"], ("203.0.113.2", 1000), ("203.0.113.3", 1000)),
        (&["--exclude", "203.0.113.2"], ("203.0.113.2", 1000), ("203.0.113.3", 1000)),
        (&["-4"], ("2001:db8::2", 1000), ("203.0.113.2", 1000)),
        (&["-6"], ("203.0.113.2", 1000), ("2001:db8::2", 1000)),
    ];
    let many = if emulated() { 60 } else { 300 };
    with_backends(|traced| {
        traced.netns.run(silent_networks);
        for (option, (other, other_port), (wanted, port)) in cases {
            let mut args = vec!["--max-pending", "10"];
            args.extend(option);
            let running = traced.start(&args);
            let left_out = traced.netns.run(|| begin(many, other, other_port));
            for table in ["attempts", "calls"] {
                assert_eq!(map_entries(running.pid(), table), 0, "{option:?}: {table}");
            }
            let held = traced.netns.run(|| begin(7, wanted, port));
            // Answered or given up: nothing of it is known.
            drop(left_out);
            let run = running.stop();
            drop(held);
            let (rows, summary) = (run.events(), run.summary());
            assert_eq!(rows.len(), 7, "{option:?}: {summary}");
            assert!(rows.iter().all(|row| row["daddr"] == wanted), "{option:?}: {rows:?}");
            assert_eq!((&summary["lost"], &summary["unseen"]), (&0.into(), &0.into()), "{summary}");
        }
    });
}

#[test]
fn other_namespaces_and_tasks_take_no_room() {
    with_backends(|traced| {
        let other = Netns::new();
        let pid = std::process::id().to_string();
        other.run(silent_networks);
        traced.netns.run(silent_networks);
        for option in [&["-u", "1"][..], &["--comm", "nobody"], &["-p", "1"], &[]] {
            let mut args = vec!["--max-pending", "10"];
            args.extend(option);
            let running = traced.start(&args);
            let place = if option.is_empty() { &other } else { &traced.netns };
            let held = place.run(|| begin(60, "203.0.113.2", 1000));
            for table in ["attempts", "calls"] {
                assert_eq!(map_entries(running.pid(), table), 0, "{option:?}: {table}");
            }
            drop(held);
            let summary = running.stop().summary();
            assert_eq!((&summary["attempts"], &summary["lost"]), (&0.into(), &0.into()), "{pid}");
            assert_eq!(summary["unseen"], 0, "{summary}");
        }
    });
}

/// It can't be followed, and is counted.
#[test]
fn what_began_before_is_counted_when_it_ends() {
    with_backends(|traced| {
        let begun = traced.netns.run(|| {
            silent_network();
            begin(3, "203.0.113.2", 80)
        });
        let running = traced.start(&["-P", "80,81"]);
        drop(begun);
        let run = running.stop();
        let summary = run.summary();
        assert_eq!((&summary["attempts"], &summary["lost"]), (&0.into(), &0.into()), "{summary}");
        // The third is left out.
        assert_eq!(summary["unseen"], 2, "{summary}");
        // Whose they are is not known.
        let begun = traced.netns.run(|| begin(1, "203.0.113.2", 80));
        let running = traced.start(&["-u", "1"]);
        drop(begun);
        assert_eq!(running.stop().summary()["unseen"], 0);
    });
}
