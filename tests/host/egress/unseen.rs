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
        &["tc-drop", "near", "--direction", "both", "--proto", "tcp", "-i", "100ms"],
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
        assert_eq!(unseen(&run), (Some(7), Some(7)), "{}", run.stdout);
        assert!(run.stderr.contains("armed"), "{}", run.stderr);
        assert_eq!(run.summary()["unseen_bytes"], 7 * 60);
    }
    // At ingress there is nothing to compare with.
    let run = wire.start(&["tc-egress", "near", "--direction", "ingress"]).stop();
    assert_eq!(run.summary()["unseen_packets"], Value::Null);
}
