// SPDX-License-Identifier: MIT OR Apache-2.0

//! What leaves past tc: it is told, and where something is blocked, refused where the kernel lets us.

use super::*;
use crate::support::bypass;

/// Frames of a socket with PACKET_QDISC_BYPASS are in a row of their own, and nothing else is.
#[test]
fn what_goes_past_tc_is_told() {
    if !root() {
        return;
    }
    let wire = wire();
    let unseen = |run: &Run| {
        let rows = run.json();
        let row = |row: &&Value| {
            row["scope"] == "total" && (row["row"] == "unseen" || row["rule"] == "unseen")
        };
        let packets = rows.iter().find(row).map(|row| row["packets_total"].as_u64().unwrap());
        (packets, run.summary()["unseen_packets"].as_u64())
    };
    for command in [
        &["tc-egress", "near", "-i", "100ms"][..],
        &["tc-drop", "near", "--direction", "both", "--proto", "tcp", "--dry-run", "-i", "100ms"],
    ] {
        let run = wire.start(command);
        wire.near.run(|| {
            send(SocketAddr::from(([10, 0, 0, 1], 9)), 5);
            bypass::send(&bypass::socket(None).unwrap(), "near", 6);
        });
        settle();
        let run = run.stop();
        assert!(run.status.success(), "{}", run.stderr);
        assert_eq!(unseen(&run), (None, Some(0)), "{}", run.stdout);

        let run = wire.start(command);
        wire.near.run(|| {
            send(SocketAddr::from(([10, 0, 0, 1], 9)), 5);
            bypass::send(&bypass::socket(Some(1)).unwrap(), "near", 7);
        });
        settle();
        let run = run.stop();
        // A packet of the kernel's own (neighbour discovery of IPv6) may be seen before the first look at the interface's count: what is
        // told is the least, and never more than there was.
        let (row, sum) = unseen(&run);
        assert_eq!(row, sum, "{}", run.stdout);
        assert!((4..=7).contains(&sum.unwrap()), "{}", run.stdout);
        assert!(run.stderr.contains("armed"), "{}", run.stderr);
        assert!(run.summary()["unseen_bytes"].as_u64().unwrap() <= 7 * 60, "{}", run.stdout);
    }
    // At ingress there is nothing to compare with.
    let run = wire.start(&["tc-egress", "near", "--direction", "ingress"]).stop();
    assert_eq!(run.summary()["unseen_packets"], Value::Null);
}

/// While something is blocked, a socket doesn't get the option; in another namespace it does, and so does who turns it off.
#[test]
fn ways_past_tc_are_refused_while_something_is_blocked() {
    if !root() {
        return;
    }
    let wire = wire();
    for command in [
        &["tc-egress", "near", "--block", "10.9.0.0/16"][..],
        &["tc-drop", "near", "--direction", "egress", "--proto", "tcp"],
    ] {
        let run = wire.start(command);
        let refused = |netns: &Netns, value| netns.run(|| bypass::socket(Some(value)).is_err());
        if !refused(&wire.near, 1) {
            let run = run.stop();
            assert!(
                run.stderr.contains("ways past tc are not refused, only counted"),
                "{command:?}"
            );
            println!("SKIP {}", run.stderr);
            return;
        }
        assert!(!refused(&wire.near, 0), "{command:?}");
        assert!(!refused(&wire.far, 1), "{command:?}");
        // Others, of any length, are as they were.
        wire.near.run(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let value = vec![0_u8; 70_000];
            // SAFETY: the value is as long as is stated.
            let status = unsafe {
                libc::setsockopt(
                    std::os::fd::AsRawFd::as_raw_fd(&socket),
                    libc::SOL_SOCKET,
                    libc::SO_RCVBUF,
                    value.as_ptr().cast(),
                    value.len() as u32,
                )
            };
            assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
        });
        run.until_told("was refused PACKET_QDISC_BYPASS, a way past tc");
        let run = run.stop();
        assert!(run.status.success(), "{}", run.stderr);
        if command[0] == "tc-egress" {
            let events = run.events();
            let event = events.iter().find(|event| event["hook"] == "setsockopt").unwrap();
            assert_eq!(event["pid"], std::process::id());
            assert_eq!(event["rule"], "PACKET_QDISC_BYPASS");
            assert_eq!(run.summary()["refused_options"], 1);
        }
        assert!(!refused(&wire.near, 1), "{command:?}");
    }
}
