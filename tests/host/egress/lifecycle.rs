// SPDX-License-Identifier: MIT OR Apache-2.0

//! However it ends, and whatever becomes of the interface: what others have there stays, and what it had goes.

use super::*;
use crate::support::{programs, programs_left, within};

/// Qdiscs and filters of near.
fn state(wire: &Wire) -> String {
    let show = |args: &str| {
        let tc = std::process::Command::new("tc").args(args.split(' ')).output().unwrap();
        stdout(&tc)
    };
    wire.near.run(|| {
        ["qdisc show dev near", "filter show dev near egress", "filter show dev near ingress"]
            .map(show)
            .concat()
    })
}

#[test]
fn before_and_after_are_equal_in_every_ending() {
    if !root() {
        return;
    }
    let backends = backends();
    for foreign in [false, true] {
        let wire = wire();
        if foreign {
            let made = wire.near.run(|| {
                ["qdisc add dev near clsact", "filter add dev near egress matchall action pass"]
                    .iter()
                    .all(|args| {
                        let mut tc = std::process::Command::new("tc");
                        tc.args(args.split(' ')).output().unwrap().status.success()
                    })
            });
            if !made {
                println!("SKIP tc can't make a filter of its own here");
                continue;
            }
        }
        let before = state(&wire);
        for &backend in &backends {
            let args = ["tc-egress", "near", "--backend", backend];
            // By a signal.
            let run = wire.start(&args);
            wire.near.run(|| send(SocketAddr::from(([10, 0, 0, 1], 9)), 5));
            settle();
            if backend == "clsact" {
                assert!(state(&wire).contains("bpftk_out"), "{}", state(&wire));
            }
            assert_eq!(total(&run.stop(), "10.0.0.1").0, 5, "{backend}");
            assert_eq!(state(&wire), before, "{backend}");
            // By its own time, by a reader that leaves, by a start that fails.
            let (status, text) =
                outcome(&wire, &[&args[..], &["-d", "100ms", "-o", "/dev/null"]].concat(), &[]);
            assert_eq!(status, 0, "{text}");
            let mut missing = args.to_vec();
            missing.insert(2, "missing");
            assert_eq!(outcome(&wire, &missing, &[]).0, 2);
            let (status, _) = outcome(
                &wire,
                &[&args[..], &["-d", "1s", "-i", "50ms", "-o", "/dev/full"]].concat(),
                &[],
            );
            assert_eq!(status, 1);
            assert_eq!(state(&wire), before, "{backend}");
            // By SIGKILL: a filter stays, counts for nobody, and goes with doctor or with the next start.
            let run = wire.start(&args);
            let ids = programs(run.pid());
            assert!(!ids.is_empty());
            run.kill();
            if backend == "clsact" {
                let text = stdout(&wire.near.run(|| output(&["doctor"])));
                assert!(text.contains("bpftk_out") && text.contains("tc egress near"), "{text}");
                let run = wire.start(&args);
                run.until_told("near: removed 1 filter of a bpftk that was killed");
                wire.near.run(|| send(SocketAddr::from(([10, 0, 0, 2], 9)), 7));
                settle();
                assert_eq!(total(&run.stop(), "10.0.0.2").0, 7);
            }
            assert!(within(10, || state(&wire) == before), "{backend} {}", state(&wire));
            assert_eq!(programs_left(&ids), Vec::<u32>::new(), "{backend}");
        }
    }
}

#[test]
fn several_interfaces_are_attached_to_or_none() {
    if !root() {
        return;
    }
    let wire = wire();
    for backend in backends() {
        let run = wire.start(&["tc-egress", "near", "lo", "--backend", backend]);
        wire.near.run(|| {
            send(SocketAddr::from(([10, 0, 0, 1], 9)), 5);
            send(SocketAddr::from(([127, 0, 0, 3], 9)), 6);
        });
        settle();
        let run = run.stop();
        assert_eq!((total(&run, "10.0.0.1").0, total(&run, "127.0.0.3").0), (5, 6), "{backend}");
        adds_up(&run);
    }
    if !backends().contains(&"clsact") {
        return;
    }
    // The qdisc `ingress` has no egress hook: near gets nothing either.
    let made = wire.near.run(|| {
        let mut tc = std::process::Command::new("tc");
        tc.args("qdisc add dev lo ingress".split(' ')).output().unwrap().status.success()
    });
    if made {
        let before = state(&wire);
        let args = ["tc-egress", "near", "lo", "--backend", "clsact", "-d", "1s"];
        let (status, text) = outcome(&wire, &args, &[]);
        assert!(status == 4 && text.contains("no egress hook"), "{status} {text}");
        assert_eq!(state(&wire), before);
    }
}

#[test]
fn interfaces_go_and_come() {
    if !root() {
        return;
    }
    for backend in backends() {
        let args = ["tc-egress", "near", "--backend", backend, "-i", "100ms"];
        let wire = wire();
        let run = wire.start(&args);
        wire.near.run(|| ip("link del near"));
        let run = run.wait();
        assert_eq!(run.status.code(), Some(1), "{}", run.stderr);
        assert!(run.stderr.contains("bpftk: every interface is gone"), "{}", run.stderr);
        assert_eq!(run.summary()["unaccounted"], 0);

        let wire = super::wire();
        let run = wire.start(&[&args[..], &["--follow"]].concat());
        wire.near.run(|| send(SocketAddr::from(([10, 0, 0, 1], 9)), 5));
        settle();
        wire.near.run(|| ip("link del near"));
        run.until_told("near is gone");
        wire.add("near");
        wire.configure();
        wire.near.run(|| ip(&format!("route add default via {FAR4}")));
        run.until_told("near: attached again");
        wire.near.run(|| send(SocketAddr::from(([10, 0, 0, 1], 9)), 6));
        settle();
        let run = run.stop();
        // Counts go on.
        assert_eq!(total(&run, "10.0.0.1").0, 11, "{backend}");
        adds_up(&run);
    }
}

/// A stopped bpftk blocks nothing after a while; all of it is counted, and told of.
#[test]
fn what_goes_while_the_heartbeat_lapses_is_counted() {
    if !root() || !backends().contains(&"clsact") {
        return;
    }
    let wire = wire();
    let to = SocketAddr::from(([10, 0, 0, 1], 9));
    let args = ["tc-egress", "near", "--backend", "clsact", "--block-match", "udp port 9"];
    let run = wire.start(&args);
    wire.near.run(|| send(to, 5));
    run.signal(nix::sys::signal::Signal::SIGSTOP);
    // Longer than a heartbeat lasts.
    thread::sleep(Duration::from_secs(5));
    wire.near.run(|| send(to, 10));
    settle();
    run.signal(nix::sys::signal::Signal::SIGCONT);
    run.until_told(": 10 packets that rules match passed meanwhile");
    // From then on it beats.
    wire.near.run(|| send(to, 3));
    settle();
    let run = run.stop();
    adds_up(&run);
    let summary = run.summary();
    assert_eq!(summary["blocked_packets"], 8, "{summary}");
    assert_eq!(summary["lapsed_packets"], 10, "{summary}");
    let rows = totals(&run);
    let row = |rule: &str| rows.iter().find(|row| row["rule"] == rule).unwrap();
    let lapsed = row("lapsed");
    assert_eq!((&lapsed["verdict"], &lapsed["packets_total"]), (&"pass".into(), &10.into()));
    assert_eq!(row("match udp port 9")["packets_total"], 8);
}
