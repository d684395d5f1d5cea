// SPDX-License-Identifier: MIT OR Apache-2.0

//! A bpftk that is stopped, and what its clsact filter does meanwhile.

use nix::sys::signal::Signal;

use super::lifecycle::{BY_THEN, has_clsact, qdiscs};
use super::*;
use crate::support::within;

/// The block is off, which is told with what passed; it is on again with the next beat.
#[test]
fn without_a_heartbeat_a_filter_lets_pass_and_counts() {
    if !root() || !has_clsact() {
        return;
    }
    let wire = Wire::new();
    let run = wire.start(&["tc-drop", "near", "--backend", "clsact", "--proto", "udp", "-i", "1h"]);
    thread::sleep(Duration::from_secs(6));
    assert_eq!(wire.exchange(NEAR4, 10), 0, "it beats");
    run.signal(Signal::SIGSTOP);
    let (mut sent, mut passed) = (10, 0);
    let mut exchange = || {
        let arrived = wire.exchange(NEAR4, 10);
        sent += 10;
        passed += arrived;
        arrived
    };
    assert!(within(BY_THEN, || exchange() == 10));
    run.signal(Signal::SIGCONT);
    run.until_told("the heartbeat had lapsed for");
    assert!(within(BY_THEN, || exchange() == 0), "it beats again");
    let run = run.stop();
    let summary = run.summary();
    assert_eq!(summary["lapsed_packets"], passed, "{summary}");
    assert!(summary["lapsed_s"].as_f64().unwrap() > 0.0, "{summary}");
    assert_eq!(packets(&run, "udp"), sent - passed as u64);
    assert_eq!(packets(&run, "lapsed"), passed as u64);
}

/// --fail-closed: stopped or killed, it drops on; another run leaves it alone, and one like it takes its place.
#[test]
fn what_fails_closed_stays_closed() {
    if !root() || !has_clsact() {
        return;
    }
    let wire = Wire::new();
    let args = ["tc-drop", "near", "--fail-closed", "--proto", "udp"];
    let run = wire.start(&args);
    run.signal(Signal::SIGSTOP);
    // Longer than a heartbeat lasts.
    thread::sleep(Duration::from_secs(5));
    assert_eq!(wire.exchange(NEAR4, 10), 0);
    run.kill();
    assert_eq!(wire.exchange(NEAR4, 10), 0);
    let run = wire.start(&["tc-drop", "near", "--backend", "clsact", "--proto", "tcp"]).stop();
    assert!(!run.stderr.contains("removed"), "{}", run.stderr);
    assert_eq!(wire.exchange(NEAR4, 10), 0);
    let run = wire.start(&args);
    run.until_told("near: removed 1 filter of a bpftk that was killed");
    assert_eq!(wire.exchange(NEAR4, 10), 0);
    let run = run.stop();
    assert_eq!(run.summary()["lapsed_s"], Value::Null);
    assert_eq!(wire.exchange(NEAR4, 10), 10);
    assert!(!qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
    // And doctor can, as the manual says.
    wire.start(&args).kill();
    let doctor = wire.near.run(|| output(&["doctor", "--cleanup"]));
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(text.contains("removed"), "{text}");
    assert_eq!(wire.exchange(NEAR4, 10), 10);
    for args in [
        &["tc-drop", "near", "--fail-closed", "--backend", "tcx"][..],
        &["tc-drop", "near", "--fail-closed", "--dry-run"],
        &["tc-egress", "near", "--fail-closed"],
    ] {
        let (status, text) = refused(&wire, args, &[]);
        assert!(status == 2 && text.contains("--fail-closed"), "{text}");
    }
}
