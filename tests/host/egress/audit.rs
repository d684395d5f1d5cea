// SPDX-License-Identifier: MIT OR Apache-2.0

//! A line for each flow and decision, and the list that is made of them.

use std::net::UdpSocket;

use super::*;
use crate::support::wire::outcome;

fn rows_with(run: &Run, daddr: &str) -> Vec<Value> {
    run.events().into_iter().filter(|event| event["daddr"] == daddr).collect()
}

/// So many datagrams of one socket; whether the last was refused.
fn datagrams(to: &str, count: usize) -> bool {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    (0..count).fold(false, |_, _| socket.send_to(b"x", (to, 99)).is_err())
}

#[test]
fn each_flow_has_one_line_for_what_was_decided() {
    if !root() {
        return;
    }
    let wire = wire();
    let own = u64::from(std::process::id());
    for backend in backends() {
        for dry_run in [false, true] {
            let args = ["tc-egress", "near", "--block", "10.50.0.0/16", "--backend", backend];
            let dry: &[&str] = if dry_run { &["--dry-run"] } else { &[] };
            let run = wire.start(&[&args[..], dry].concat());
            wire.near.run(|| {
                assert_eq!(datagrams("10.50.0.1", 5), !dry_run);
                assert!(!datagrams("10.60.0.1", 5));
                assert_eq!(datagrams("10.50.0.1", 1), !dry_run);
            });
            settle();
            let run = run.stop();
            adds_up(&run);
            let refused = rows_with(&run, "10.50.0.1");
            let calls: Vec<_> = refused.iter().filter(|row| row["hook"] == "sendmsg").collect();
            assert_eq!(calls.len(), 2, "one for each socket: {backend} {}", run.stdout);
            for row in &calls {
                let verdict = if dry_run { "would-refuse" } else { "refuse" };
                assert_eq!(
                    (&row["verdict"], &row["rule"]),
                    (&verdict.into(), &"block 10.50.0.0/16".into())
                );
                assert_eq!((&row["pid"], &row["uid"]), (&own.into(), &0.into()), "{row}");
                assert_eq!((&row["proto"], &row["dport"]), (&"udp".into(), &99.into()), "{row}");
                assert!(row["exe"].as_str().unwrap().starts_with('/'), "{row}");
                assert!(row["comm"].is_string() && row["cgroup"].is_string(), "{row}");
                assert!(row["saddr"].is_null() && row["iface"].is_null(), "{row}");
            }
            let dropped = refused.iter().filter(|row| row["verdict"] == "would-drop").count();
            assert_eq!(dropped, if dry_run { 2 } else { 0 }, "{}", run.stdout);
            let passed = rows_with(&run, "10.60.0.1");
            assert_eq!(passed.len(), 1, "{}", run.stdout);
            let row = &passed[0];
            assert_eq!((&row["verdict"], &row["hook"]), (&"pass".into(), &"tc".into()), "{row}");
            assert_eq!((&row["saddr"], &row["pid"]), (&NEAR4.into(), &own.into()), "{row}");
            assert!(row["rule"].is_null(), "{row}");
            // Without a gap, from the first.
            let numbers: Vec<u64> =
                run.events().iter().map(|row| row["seq"].as_u64().unwrap()).collect();
            let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
            assert_eq!(numbers, expected);
            let summary = run.summary();
            assert_eq!((&summary["events"], &summary["lost"]), (&numbers.len().into(), &0.into()));
        }
    }
}

/// Numbers that are missing are those of rows that were lost.
#[test]
fn a_gap_shows() {
    if !root() {
        return;
    }
    let wire = wire();
    let args = ["tc-egress", "near", "--block", "10.50.0.0/16", "--events", "--audit-rate", "all"];
    let run = wire.start(&args);
    run.pause_reading(true);
    let socket = wire.near.run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    // More than the ring buffer holds.
    for i in 0..30_000_u32 {
        let to = std::net::Ipv4Addr::from_bits(0x0a00_0000 + i);
        socket.send_to(b"x", (to, 9)).unwrap();
    }
    run.pause_reading(false);
    read_up();
    wire.near.run(|| assert!(datagrams("10.50.0.9", 1)));
    settle();
    let run = run.stop();
    let lost = run.summary()["lost"].as_u64().unwrap();
    assert!(lost > 0, "{}", run.stderr);
    let events = run.events();
    let last = events.last().unwrap();
    assert_eq!(last["daddr"], "10.50.0.9", "{last}");
    assert_eq!(last["lost"], lost, "{last}");
    assert_eq!(last["seq"].as_u64().unwrap(), events.len() as u64 + lost);
    let numbers = events.iter().map(|row| row["seq"].as_u64().unwrap());
    assert!(numbers.clone().zip(numbers.skip(1)).all(|(a, b)| a < b));
}

/// Whoever is blocked can't fill the log: lines of one flow are limited in rate, and what is left out is counted.
#[test]
fn the_lines_of_one_flow_are_limited() {
    if !root() {
        return;
    }
    let wire = wire();
    let run = wire.start(&["tc-egress", "near", "--block", "10.50.0.0/16", "--audit-rate", "3"]);
    // Each socket is another flow to the kernel.
    wire.near.run(|| assert!((0..300).all(|_| datagrams("10.50.0.1", 1))));
    wire.near.run(|| assert!(datagrams("10.50.0.2", 1)));
    // Until there is room for another line.
    thread::sleep(Duration::from_millis(400));
    wire.near.run(|| assert!(datagrams("10.50.0.1", 1)));
    settle();
    let run = run.stop();
    let (flow, events) = (rows_with(&run, "10.50.0.1"), run.events());
    assert!((4..200).contains(&flow.len()), "{} lines", flow.len());
    assert_eq!(rows_with(&run, "10.50.0.2").len(), 1);
    let told: u64 = flow.iter().map(|row| row["left_out"].as_u64().unwrap()).sum();
    assert_eq!(told + flow.len() as u64, 301, "each call is a line or was left out");
    let summary = run.summary();
    assert_eq!(summary["left_out"], told, "{summary}");
    assert_eq!(summary["refused_calls"], 302, "{summary}");
    let last = events.last().unwrap();
    assert_eq!(last["seq"].as_u64().unwrap(), events.len() as u64 + told, "{last}");
}

#[test]
fn the_table_of_flows_says_whose_they_are() {
    if !root() {
        return;
    }
    let wire = wire();
    let run = wire
        .near
        .run(|| Running::start(&["tc-egress", "near", "--events", "--only", "10.0.0.0/8"]));
    wire.near.run(|| datagrams("10.60.0.1", 3));
    settle();
    let run = run.stop();
    let own = format!("/{}", std::process::id());
    let line = run.stdout.lines().find(|line| line.contains("10.60.0.1"));
    let line = line.unwrap_or_else(|| panic!("{}", run.stdout));
    assert!(run.stdout.contains("PROCESS") && !run.stdout.contains("VERDICT"), "{}", run.stdout);
    assert!(line.trim_end().ends_with(&own), "{line}");
}

#[test]
fn what_was_seen_becomes_what_is_allowed() {
    if !root() {
        return;
    }
    let wire = wire();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("allowed");
    let file = path.to_str().unwrap();
    for backend in backends() {
        let run = wire.start(&["tc-egress", "near", "--suggest", file, "--backend", backend]);
        wire.near.run(|| {
            datagrams("10.60.0.1", 7);
            datagrams("10.60.0.2", 2);
            let v6 = UdpSocket::bind(("::", 0)).unwrap();
            v6.send_to(b"x", ("fd60::1", 99)).unwrap();
        });
        settle();
        let run = run.stop();
        assert!(run.stderr.contains("addresses written for --allow-only"), "{}", run.stderr);
        let text = std::fs::read_to_string(&path).unwrap();
        let exe = std::env::current_exe().unwrap();
        let line = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start));
            line.unwrap_or_else(|| panic!("no {start} in {text}")).to_string()
        };
        let exe = exe.file_name().unwrap().to_str().unwrap();
        assert!(line("10.60.0.1/32  # ").contains(exe), "{text}");
        assert!(line("10.60.0.1/32  # ").contains("7 packets"), "{text}");
        assert!(line("10.60.0.2/32  # ").contains("2 packets"), "{text}");
        line("fd60::1/128");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing beside it");

        // What it is for.
        let args = ["tc-egress", "near", "--allow-only", file, "--backend", backend];
        let run = wire.start(&[&args[..], &["--suggest", file]].concat());
        wire.near.run(|| {
            assert!(!datagrams("10.60.0.1", 1));
            assert!(datagrams("10.61.0.1", 1));
        });
        settle();
        run.stop();
        // The list of a run that blocks has what it blocked, but does not allow it.
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("# blocked: 10.61.0.1/32"), "{text}");
        assert!(text.contains("\n10.60.0.1/32"), "{text}");
        std::fs::remove_file(&path).unwrap();
    }
    // Networks in place of addresses.
    let (status, text) = outcome(
        &wire,
        &["tc-egress", "near", "--suggest", file, "--by", "net/16", "-d", "100ms"],
        &[],
    );
    assert_eq!(status, 0, "{text}");
}
