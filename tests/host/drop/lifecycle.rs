// SPDX-License-Identifier: MIT OR Apache-2.0

//! However it ends, and whatever becomes of the interface.

use std::net::SocketAddr;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::*;
use crate::support::{emulated, programs, programs_left, stdout, within};

/// Seconds: the kernel tears links down a little later, and a program without a heartbeat acts for 4.
pub(super) const BY_THEN: u64 = 6;

#[test]
fn sigkill_under_load_leaves_nothing_that_drops() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // An emulated processor has enough to do with a tenth of it.
                let (many, pause) = if emulated() { (100, 50) } else { (1000, 0) };
                wire.far.run(|| send(SocketAddr::new(NEAR4.parse().unwrap(), 9), many));
                thread::sleep(Duration::from_millis(pause));
            }
        });
        for way in ways() {
            let run = wire.start(&[&way[..], &["--proto", "udp"]].concat());
            let ids = programs(run.pid());
            assert!(!ids.is_empty());
            assert_eq!(wire.exchange(NEAR6, 10), 0, "{way:?}");
            run.kill();
            if way.contains(&"clsact") {
                // The filter is there still, and drops until its time is over.
                assert!(within(BY_THEN, || wire.exchange(NEAR6, 10) == 10), "{way:?}");
                let doctor = wire.near.run(|| output(&["doctor"]));
                let text = stdout(&doctor);
                assert!(text.contains("bpftk_tc_in") && text.contains("tc ingress near"), "{text}");
                let doctor = wire.near.run(|| output(&["doctor", "--cleanup"]));
                assert!(stdout(&doctor).contains("removed"), "{}", stdout(&doctor));
            } else {
                assert!(within(BY_THEN, || wire.exchange(NEAR6, 10) == 10), "{way:?}");
            }
            assert_eq!(programs_left(&ids), Vec::<u32>::new(), "{way:?}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// A disk that is full lets nothing in.
#[test]
fn an_output_that_can_not_be_written_lets_nothing_in() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let more = ["--proto", "udp", "-i", "50ms", "-o", "/dev/full"];
    for command in ["xdp-drop", "tc-drop"] {
        let run = wire.start(&[&[command, "near"], &more[..]].concat());
        run.until_told("No space left on device");
        assert_eq!(wire.exchange(NEAR4, 10), 0, "{command}");
        let run = run.stop();
        assert_eq!(run.status.code(), Some(1), "{command} {}", run.stderr);
        assert_eq!(run.stderr.matches("the run goes on").count(), 1, "{command} {}", run.stderr);
        assert!(run.stderr.contains("lines could not be written"), "{command} {}", run.stderr);
    }
}

#[test]
fn a_clean_end_removes_filter_and_qdisc() {
    if !root() || !has_clsact() {
        return;
    }
    let wire = Wire::new();
    let qdiscs = || qdiscs(&wire);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let run = wire.start(&["tc-drop", "near", "--backend", "clsact", "--direction", "both"]);
        assert!(qdiscs().contains("clsact"), "{}", qdiscs());
        run.signal(signal);
        assert!(run.wait().status.success());
        assert!(!qdiscs().contains("clsact"), "{}", qdiscs());
    }
}

pub(super) fn has_clsact() -> bool {
    let has = backends().contains(&"clsact");
    if !has {
        println!("SKIP this kernel has no clsact");
    }
    has
}

pub(super) fn qdiscs(wire: &Wire) -> String {
    let show = || {
        let mut tc = std::process::Command::new("tc");
        tc.args(["qdisc", "show", "dev", "near"]).output().unwrap()
    };
    stdout(&wire.near.run(show))
}

/// Whichever of two ends first, and if the one that made the qdisc is killed and only `doctor` cleans up behind it.
#[test]
fn the_last_one_removes_the_qdisc_that_the_first_one_made() {
    if !root() || !has_clsact() {
        return;
    }
    let wire = Wire::new();
    let start = |proto| wire.start(&["tc-drop", "near", "--backend", "clsact", "--proto", proto]);
    for first_ends_first in [true, false] {
        let (mut earlier, mut later) = (start("tcp"), start("udp"));
        if !first_ends_first {
            std::mem::swap(&mut earlier, &mut later);
        }
        assert!(earlier.stop().status.success());
        assert!(qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
        assert!(later.stop().status.success());
        assert!(!qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
    }

    let (killed, other) = (start("tcp"), start("udp"));
    killed.kill();
    assert!(other.stop().status.success());
    assert!(qdiscs(&wire).contains("clsact"), "the leftover is still in it");
    let doctor = wire.near.run(|| output(&["doctor", "--cleanup"]));
    assert!(stdout(&doctor).contains("removed"), "{}", stdout(&doctor));
    assert!(!qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
}

/// The deadline is the kernel's: a bpftk that does not run can't keep it.
#[test]
fn the_deadline_holds_with_bpftk_stopped() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let seconds = if emulated() { 6 } else { 3 };
    let duration = format!("{seconds}s");
    for way in ways() {
        let run = wire.start(&[&way[..], &["--proto", "udp", "--duration", &duration]].concat());
        let begin = Instant::now();
        run.signal(Signal::SIGSTOP);
        assert_eq!(wire.exchange(NEAR4, 10), 0, "{way:?}");
        let due = Duration::from_secs(seconds);
        assert!(begin.elapsed() < due, "this machine is too slow for the test");
        thread::sleep((due + Duration::from_millis(300)).saturating_sub(begin.elapsed()));
        assert_eq!(wire.exchange(NEAR4, 10), 10, "{way:?}");
        run.signal(Signal::SIGCONT);
        let run = run.wait();
        assert_eq!(packets(&run, "udp"), 10, "{way:?}");
    }
}

#[test]
fn an_interface_that_goes_away_is_told_of() {
    if !root() {
        return;
    }
    for command in ["xdp-drop", "tc-drop"] {
        let wire = Wire::new();
        let run = wire.start(&[command, "near", "--proto", "udp", "-i", "100ms"]);
        wire.near.run(|| ip("link set near mtu 1400"));
        run.until_told("near: MTU 1500 is now 1400");
        wire.near.run(|| {
            ip("link set near down");
            ip("link set near name other");
        });
        run.until_told("near is called other now");
        run.until_told("link is down");
        wire.near.run(|| ip("link del other"));
        let run = run.wait();
        assert_eq!(run.status.code(), Some(1), "{}", run.stderr);
        for expected in [
            "near: MTU 1500 is now 1400",
            "near is called other now",
            "link is down",
            "other is gone",
            "bpftk: every interface is gone",
        ] {
            assert!(run.stderr.contains(expected), "{command}: no `{expected}` in {}", run.stderr);
        }
        assert!(!run.stderr.contains("panic"), "{}", run.stderr);
        // Rows have the name of their time.
        assert_eq!(total(&run.json(), "udp")["iface"], "other", "{command}");
    }
}

#[test]
fn a_new_interface_of_the_name_is_followed() {
    if !root() {
        return;
    }
    for command in ["xdp-drop", "tc-drop"] {
        let wire = Wire::new();
        let run = wire.start(&[command, "near", "--proto", "udp", "-i", "100ms", "--follow"]);
        assert_eq!(wire.exchange(NEAR4, 10), 0);
        wire.near.run(|| ip("link del near"));
        run.until_told("near is gone");
        wire.add("near");
        wire.configure();
        run.until_told("near: attached again");
        assert_eq!(wire.exchange(NEAR4, 10), 0, "{command}");
        let run = run.stop();
        // The counts go on.
        assert_eq!(packets(&run, "udp"), 20, "{command}");
        assert_eq!(wire.exchange(NEAR4, 10), 10, "{command}");
    }
}

/// Somebody else's program on the new interface stays, and when it is gone it is bpftk's turn.
#[test]
fn a_new_interface_that_is_taken_is_tried_again() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let run = wire.start(&["xdp-drop", "near", "--proto", "udp", "-i", "50ms", "--follow"]);
    wire.near.run(|| ip("link del near"));
    wire.add("other");
    run.until_told("near is gone");
    let there = wire.start(&["xdp-drop", "other", "--proto", "tcp"]);
    wire.near.run(|| ip("link set other name near"));
    wire.configure();
    run.until_told("there is a new near");
    run.until_told("near has an XDP program already");
    assert!(within(BY_THEN, || wire.exchange(NEAR4, 10) == 10));
    assert!(there.stop().status.success());
    run.until_told("near: attached again");
    assert_eq!(wire.exchange(NEAR4, 10), 0);
    let run = run.stop();
    assert_eq!(packets(&run, "udp"), 10, "{}", run.stdout);
    // However often it was tried. (While its process ends, the program is said to be nobody's: that is another sentence.)
    let mut said: Vec<_> = run.stderr.lines().collect();
    let lines = said.len();
    said.sort_unstable();
    said.dedup();
    assert_eq!(said.len(), lines, "{}", run.stderr);
}
