// SPDX-License-Identifier: MIT OR Apache-2.0

//! What clsact filters leave behind when something goes wrong: nothing that stays, and nothing in silence.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lifecycle::{has_clsact, qdiscs};
use super::*;
use crate::support::seccomp::{Answer, Call, Supervisor};
use crate::support::{bpftk, emulated, programs, programs_left};

const RTM_NEWQDISC: u16 = 36;
const CALLS: [libc::c_long; 2] = [libc::SYS_sendto, libc::SYS_recvfrom];
const ARGS: [&str; 8] =
    ["tc-drop", "near", "--backend", "clsact", "--direction", "both", "--proto", "udp"];

/// Filters of near, as tc shows them.
fn filters(wire: &Wire) -> String {
    let show = |direction: &str| {
        let args = ["filter", "show", "dev", "near", direction];
        let output = std::process::Command::new("tc").args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    wire.near.run(|| show("ingress") + &show("egress"))
}

fn started(
    wire: &Wire,
    decide: impl FnMut(&Call) -> Answer + Send + 'static,
) -> (Running, Supervisor) {
    let mut command = bpftk(&[&ARGS[..], &["-v", "--format", "json"]].concat());
    let mut supervisor = Supervisor::of(&mut command, CALLS);
    supervisor.begin(decide);
    (wire.near.run(|| Running::spawn(&mut command)), supervisor)
}

/// Each question and each answer fails once, for a reason that passes, from the first to the last.
#[test]
fn errors_that_pass_leave_nothing() {
    if !root() || !has_clsact() {
        return;
    }
    let wire = Wire::new();
    let errors = [libc::EINTR, libc::ENOBUFS, libc::ENOMEM, libc::EMFILE];
    let mut seen = 0;
    let (run, supervisor) = started(&wire, move |_| {
        seen += 1;
        if seen % 2 == 1 { Answer::Fail(errors[seen / 2 % errors.len()]) } else { Answer::Go }
    });
    assert!(filters(&wire).contains("bpftk_tc_in"), "{}", filters(&wire));
    let run = run.stop();
    drop(supervisor);
    assert!(run.status.success(), "{}", run.stderr);
    assert!(!run.stderr.contains("could not be taken away"), "{}", run.stderr);
    assert!(!qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
}

/// An error that stays is told, with what is left and who takes it; and the next start does.
#[test]
fn errors_that_stay_are_told_and_the_next_start_cleans_up() {
    if !root() || !has_clsact() {
        return;
    }
    let wire = Wire::new();
    let fails = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&fails);
    let (run, supervisor) = started(&wire, move |call| {
        let fails = switch.load(Ordering::Relaxed) && call.number == libc::SYS_sendto;
        if fails { Answer::Fail(libc::ENOBUFS) } else { Answer::Go }
    });
    fails.store(true, Ordering::Relaxed);
    let run = run.stop();
    drop(supervisor);
    for direction in ["ingress", "egress"] {
        let words = format!("the filter of near {direction} could not be taken away");
        assert!(run.stderr.contains(&words), "{}", run.stderr);
    }
    assert!(qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
    let run = wire.start(&["tc-egress", "near"]);
    run.until_told("near: removed 2 filters of a bpftk that was killed");
    let run = run.stop();
    assert!(run.status.success(), "{}", run.stderr);
    assert!(!qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
}

/// Killed before the first call behind the one that makes the qdisc: it has a filter by then, which says whose it is.
#[test]
fn a_kill_behind_the_making_of_the_qdisc_leaves_it_marked() {
    if !root() || !has_clsact() {
        return;
    }
    let wire = Wire::new();
    let made = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&made);
    let mut command = bpftk(&ARGS);
    let mut supervisor = Supervisor::of(&mut command, CALLS);
    supervisor.begin(move |call| {
        if seen.load(Ordering::Relaxed) {
            return Answer::Kill;
        }
        if call.netlink_type() == Some(RTM_NEWQDISC) {
            seen.store(true, Ordering::Relaxed);
        }
        Answer::Go
    });
    let mut child = wire
        .near
        .run(|| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("bpftk starts"));
    let status = child.wait().unwrap();
    drop(supervisor);
    assert!(made.load(Ordering::Relaxed), "{status}");
    assert!(qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
    assert!(filters(&wire).contains("bpftk_tc_in+clsact"), "{}", filters(&wire));
    assert!(wire.start(&["tc-drop", "near"]).stop().status.success());
    assert!(!qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
}

/// The next start takes what killed ones have left, and neither what a live one has nor what is somebody else's.
#[test]
fn what_killed_runs_have_left_goes_with_the_next_start() {
    if !root() || !has_clsact() {
        return;
    }
    let wire = Wire::new();
    let foreign = "filter add dev near ingress prio 7 protocol ip bpf flowid 1:1 bytecode";
    wire.near.run(|| {
        let mut tc = std::process::Command::new("tc");
        assert!(tc.args("qdisc add dev near clsact".split(' ')).status().unwrap().success());
        let mut tc = std::process::Command::new("tc");
        let tc = tc.args(foreign.split(' ')).arg("1,6 0 0 1");
        assert!(tc.status().unwrap().success());
    });
    let before = filters(&wire);
    let live = wire.start(&["tc-drop", "near", "--backend", "clsact", "--proto", "tcp"]);
    let with_live = filters(&wire);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let run = wire.start(&ARGS);
        ids.extend(programs(run.pid()));
        run.kill();
    }
    assert_ne!(filters(&wire), with_live);
    let next = wire.start(&["tc-egress", "near"]);
    next.until_told("of a bpftk that was killed");
    assert!(next.stop().status.success());
    assert_eq!(filters(&wire), with_live);
    assert_eq!(programs_left(&ids), Vec::<u32>::new());
    assert!(live.stop().status.success());
    assert_eq!(filters(&wire), before);
    assert!(qdiscs(&wire).contains("clsact"), "it is not ours");
}

/// Killed at any moment, also while it arms and ends; then one start, and nothing is left.
#[test]
fn after_kills_at_any_moment_one_start_leaves_nothing() {
    if !root() || !has_clsact() {
        return;
    }
    let wire = Wire::new();
    let rounds = if emulated() { 4 } else { 12 };
    let seed = std::env::var("BPFTK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("BPFTK_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let most = if emulated() { 3000 } else { 400 };
    for _ in 0..rounds {
        let mut command = bpftk(&[&ARGS[..], &["-d", "200ms"]].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = wire.near.run(|| command.spawn().expect("bpftk starts"));
        // Time has to pass: that is what is random.
        thread::sleep(Duration::from_millis(random.u64(..most)));
        let _ = child.kill();
        child.wait().unwrap();
    }
    assert!(wire.start(&["tc-drop", "near"]).stop().status.success());
    assert!(!qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
}
