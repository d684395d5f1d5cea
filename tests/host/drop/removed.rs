// SPDX-License-Identifier: MIT OR Apache-2.0

//! Somebody else takes away what bpftk had attached, or the interface from under it.

use std::fs;

use libbpf_rs::libbpf_sys;

use super::lifecycle::qdiscs;
use super::*;
use crate::support::wire::{FAR_MAC, addresses, neighbours};

/// Every link of a process that is attached to an interface.
fn links(pid: u32) -> Vec<u32> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    let infos = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    let word = |info: &str, what: &str| {
        info.lines().find_map(|line| line.strip_prefix(what).map(|rest| rest.trim().to_string()))
    };
    infos
        .filter(|info| word(info, "ifindex:").is_some_and(|index| index != "0"))
        .filter_map(|info| word(&info, "link_id:")?.parse().ok())
        .collect()
}

/// As `bpftool link detach` does.
fn detach(link: u32) {
    // SAFETY: numbers; and closes what it opened.
    unsafe {
        let fd = libbpf_sys::bpf_link_get_fd_by_id(link);
        assert!(fd >= 0, "link {link}");
        assert_eq!(libbpf_sys::bpf_link_detach(fd), 0);
        libc::close(fd);
    }
}

/// The near end of the pair, which lost what it had with its namespace.
fn configure(wire: &Wire) {
    wire.near.run(|| {
        addresses("near", NEAR4, NEAR6);
        neighbours("near", FAR_MAC, [FAR4, FAR6]);
    });
}

fn take_away(wire: &Wire, run: &Running) {
    let links = links(run.pid());
    if links.is_empty() {
        wire.near.run(|| {
            let mut tc = std::process::Command::new("tc");
            assert!(tc.args("qdisc del dev near clsact".split(' ')).status().unwrap().success());
        });
    }
    links.into_iter().for_each(detach);
}

/// Tables come only at the end: it isn't they that find it.
fn all_ways() -> Vec<Vec<&'static str>> {
    let mut all = vec![vec!["xdp-drop", "near", "--proto", "udp", "-i", "1h"]];
    for backend in backends() {
        all.push(vec!["tc-drop", "near", "--backend", backend, "--proto", "udp", "-i", "1h"]);
    }
    all
}

#[test]
fn what_somebody_else_takes_away_is_told_and_ends_the_run() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let mut ways = all_ways();
    for backend in backends() {
        ways.push(vec!["tc-egress", "near", "--backend", backend, "-i", "1h"]);
    }
    for way in ways {
        let run = wire.start(&way);
        if way[0] != "tc-egress" {
            assert_eq!(wire.exchange(NEAR4, 10), 0, "{way:?}");
        }
        take_away(&wire, &run);
        let run = run.wait();
        assert_eq!(run.status.code(), Some(1), "{way:?}: {}", run.stderr);
        assert!(
            run.stderr.contains("is not there any more: somebody else has taken it away")
                && run.stderr.contains("--follow attaches it again"),
            "{way:?}: {}",
            run.stderr
        );
        // The account is given all the same.
        let summary = run.summary();
        if way[0] != "tc-egress" {
            assert_eq!(summary["dropped_packets"], 10, "{way:?}: {summary}");
        }
        assert_eq!(wire.exchange(NEAR4, 10), 10, "{way:?}");
    }
}

#[test]
fn what_somebody_else_takes_away_is_followed() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    for way in all_ways() {
        let run = wire.start(&[&way[..], &["--follow"]].concat());
        take_away(&wire, &run);
        run.until_told("is not there any more: somebody else has taken it away");
        run.until_told("near: attached again");
        assert_eq!(wire.exchange(NEAR4, 10), 0, "{way:?}");
        let run = run.stop();
        assert_eq!(packets(&run, "udp"), 10, "{way:?}");
        assert_eq!(wire.exchange(NEAR4, 10), 10, "{way:?}");
        assert!(!qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
    }
}

/// An interface that goes to another network namespace takes nothing along; when it comes back, it is attached to again.
#[test]
fn an_interface_that_moves_takes_nothing_along() {
    if !root() {
        return;
    }
    for way in all_ways() {
        let mut wire = Wire::new();
        let mut other = Netns::new();
        let run = wire.start(&[&way[..], &["--follow"]].concat());
        assert_eq!(wire.exchange(NEAR4, 10), 0, "{way:?}");
        wire.near.run(|| ip(&format!("link set near netns {}", other.path())));
        run.until_told("near is gone from here");
        std::mem::swap(&mut wire.near, &mut other);
        configure(&wire);
        assert!(crate::support::within(10, || wire.exchange(NEAR4, 10) == 10), "{way:?}");
        assert!(!qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
        wire.near.run(|| ip(&format!("link set near netns {}", other.path())));
        std::mem::swap(&mut wire.near, &mut other);
        run.until_told("near: attached again");
        configure(&wire);
        let mut dropped = 10;
        assert!(crate::support::within(10, || {
            let arrived = wire.exchange(NEAR4, 10);
            dropped += 10;
            arrived == 0
        }));
        let run = run.stop();
        assert!(run.status.success(), "{way:?}: {}", run.stderr);
        assert_eq!(packets(&run, "udp"), dropped, "{way:?}");
        assert!(!qdiscs(&wire).contains("clsact"), "{}", qdiscs(&wire));
    }
}
