// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is blocked: by whichever way it goes out, and nothing else.

use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};

use nix::sys::signal::Signal;

use super::ways::*;
use super::*;
use crate::support::wire::outcome;
use crate::support::within;

pub(super) const BLOCKED4: &str = "10.50.0.1";
const BLOCKED6: &str = "fd50::1";
pub(super) const OPEN4: &str = "10.60.0.1";
pub(super) const BLOCK: [&str; 4] = ["tc-egress", "near", "--block", "10.50.0.0/16,fd50::/16"];

/// A way to send, and what becomes of it where it is blocked.
type Case = (&'static str, fn(&str) -> io::Result<()>, Fate);

fn cases() -> Vec<Case> {
    vec![
        ("TCP", connect, Fate::Refused),
        ("TCP, v4-mapped", |to| connect(&format!("::ffff:{to}")), Fate::Refused),
        ("Fast Open", fast_open, Fate::Refused),
        ("UDP", |to| datagram(to, 99), Fate::Refused),
        ("UDP, v4-mapped", |to| datagram(&format!("::ffff:{to}"), 99), Fate::Refused),
        ("connected UDP", connected_datagram, Fate::Refused),
        ("raw ICMP", raw, Fate::Dropped),
        ("packet socket", packet_socket, Fate::Dropped),
    ]
}

/// Rows of the last table with that verdict: packets and calls.
pub(super) fn verdict(run: &Run, daddr: &str, verdict: &str) -> (u64, u64) {
    let rows = totals(run);
    let fits = |row: &&Value| row["daddr"] == daddr && row["verdict"] == verdict;
    let sum = |field: &str| rows.iter().filter(fits).filter_map(|row| row[field].as_u64()).sum();
    (sum("packets_total"), sum("calls_total"))
}

#[test]
fn every_way_out_is_closed_and_others_stay_open() {
    if !root() {
        return;
    }
    let wire = wire();
    let far = Far::new(&wire);
    for backend in backends() {
        let run = wire.start(&[&BLOCK[..], &["--backend", backend]].concat());
        for (what, send, expected) in cases() {
            assert_eq!(fate(&wire, &far, || send(BLOCKED4)), expected, "{backend} {what}");
            assert_eq!(fate(&wire, &far, || send(OPEN4)), Fate::Arrived, "{backend} {what}");
        }
        for (what, send) in
            [("TCP", connect as fn(&str) -> io::Result<()>), ("UDP", |to: &str| datagram(to, 99))]
        {
            assert_eq!(
                fate(&wire, &far, || send(BLOCKED6)),
                Fate::Refused,
                "{backend} {what}, IPv6"
            );
            assert_eq!(
                fate(&wire, &far, || send("fd60::1")),
                Fate::Arrived,
                "{backend} {what}, IPv6"
            );
        }
        let run = run.stop();
        adds_up(&run);
        assert_eq!(verdict(&run, BLOCKED4, "drop"), (2, 0), "{}", run.stdout);
        assert_eq!(verdict(&run, BLOCKED4, "refuse"), (0, 6), "{}", run.stdout);
        assert_eq!(verdict(&run, BLOCKED4, "pass"), (0, 0), "{}", run.stdout);
        assert_eq!(verdict(&run, OPEN4, "pass"), (8, 0), "{}", run.stdout);
        let summary = run.summary();
        assert_eq!(
            (&summary["blocked_packets"], &summary["refused_calls"], &summary["dry_run"]),
            (&2.into(), &8.into(), &false.into()),
            "{}",
            run.stdout
        );

        // The same without the block: everything arrives, and is told of.
        let run = wire.start(&[&BLOCK[..], &["--dry-run", "--backend", backend]].concat());
        for (what, send, _) in cases() {
            assert_eq!(
                fate(&wire, &far, || send(BLOCKED4)),
                Fate::Arrived,
                "{backend} {what}, dry run"
            );
        }
        let run = run.stop();
        adds_up(&run);
        assert_eq!(verdict(&run, BLOCKED4, "would-drop"), (8, 0), "{}", run.stdout);
        assert_eq!(verdict(&run, BLOCKED4, "would-refuse"), (0, 6), "{}", run.stdout);
        // And nothing is left of it.
        assert_eq!(fate(&wire, &far, || connect(BLOCKED4)), Fate::Arrived);
    }
}

#[test]
fn forwarded_packets_are_dropped() {
    if !root() {
        return;
    }
    let wire = wire();
    let far = Far::new(&wire);
    let inner = wire.forwards();
    for backend in backends() {
        let args = ["--by", "dst,process", "--backend", backend];
        let run = wire.start(&[&BLOCK[..], &args].concat());
        far.received();
        // A process of another network namespace is told nothing: its packets may never get here.
        inner.run(|| {
            for _ in 0..7 {
                datagram(BLOCKED4, 99).unwrap();
            }
        });
        settle();
        assert_eq!(far.received(), 0, "{backend}");
        let run = run.stop();
        assert_eq!(verdict(&run, BLOCKED4, "drop"), (7, 0), "{backend} {}", run.stdout);
        let rows = totals(&run);
        let row = rows.iter().find(|row| row["daddr"] == BLOCKED4).unwrap();
        assert_eq!(row["owner"], "forwarded", "{row}");
    }
}

/// Calls know no interface: what leaves through another one, or not at all, is none of ours.
#[test]
fn what_leaves_elsewhere_is_not_refused() {
    if !root() {
        return;
    }
    let wire = wire();
    let other = Netns::new();
    wire.near.run(|| {
        ip(&format!("link add second type veth peer name far2 netns {}", other.path()));
        addresses("second", "172.21.0.1", "fd00:21::1");
        ip("route add 10.50.7.0/24 dev second");
        ip("addr add 10.50.8.1/32 dev lo");
    });
    let run = wire.start(&[&BLOCK[..], &["-i", "100ms"]].concat());
    let sent = |to: &str| wire.near.run(|| datagram(to, 99)).is_ok();
    assert!(!sent(BLOCKED4));
    assert!(sent("10.50.7.9"), "it leaves through another interface");
    assert!(sent("10.50.8.1"), "it is this machine's own");
    // A socket that is bound to the interface does leave through it, whatever the routes say.
    let bound = wire.near.run(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::BindToDevice,
            &"near".into(),
        )
        .unwrap();
        socket.send_to(b"x", ("10.50.7.9", 99)).unwrap_err()
    });
    assert_eq!(bound.raw_os_error(), Some(libc::EPERM), "{bound}");
    // Routes change.
    wire.near.run(|| ip("route del 10.50.7.0/24 dev second"));
    assert!(within(10, || !sent("10.50.7.9")), "the change of routes goes unnoticed");
    wire.near.run(|| ip("route add 10.50.0.0/16 dev second"));
    assert!(within(10, || sent(BLOCKED4)), "the change of routes goes unnoticed");
    run.stop();
}

pub(super) fn list(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn a_connection_that_is_there_ends_and_the_operators_own_does_not() {
    if !root() {
        return;
    }
    let wire = wire();
    let allowed = list("10.60.0.0/16\n");
    let listener = wire.near.run(|| TcpListener::bind((NEAR4, 22)).unwrap());
    let client = wire.far.run(|| TcpStream::connect((NEAR4, 22)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    let ssh = format!("{FAR4} {} {NEAR4} 22", client.local_addr().unwrap().port());
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut answered = |wait: Duration| {
        io::Write::write_all(&mut server, b"x").unwrap();
        client.set_read_timeout(Some(wait)).unwrap();
        io::Read::read_exact(&mut &client, &mut [0]).is_ok()
    };
    assert!(answered(Duration::from_secs(5)));
    let args = ["tc-egress", "near", "--allow-only", allowed.path().to_str().unwrap()];
    let start = |args: &[&str]| {
        wire.near.run(|| {
            let mut command = crate::support::bpftk(args);
            Running::spawn(command.args(["-v", "--format", "json"]).env("SSH_CONNECTION", &ssh))
        })
    };
    let run = start(&args);
    assert!(answered(Duration::from_secs(5)), "the operator's connection is cut");
    let run = run.stop();
    let rows = totals(&run);
    assert!(
        rows.iter().any(|row| row["rule"] == "ssh" && row["verdict"] == "pass"),
        "{}",
        run.stdout
    );
    let run = start(&[&args[..], &["--strict"]].concat());
    assert!(!answered(Duration::from_millis(300)));
    run.stop();
    // What was sent meanwhile comes again.
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    io::Read::read_exact(&mut &client, &mut [0]).unwrap();

    // Rules that would cut it off are refused before anything is attached.
    let environment = [("SSH_CONNECTION", ssh.as_str())];
    let block = ["tc-egress", "near", "--block", FAR4, "-d", "100ms"];
    let (status, text) = outcome(&wire, &block, &environment);
    assert!(status == 2 && text.contains("your SSH connection"), "{status} {text}");
    let all = ["tc-egress", "near", "--block-match", "arp", "-d", "100ms"];
    let (status, text) = outcome(&wire, &all, &[]);
    assert!(status == 2 && text.contains("ARP"), "{status} {text}");
    for way in ["--dry-run", "--strict"] {
        let (status, text) = outcome(&wire, &[&block[..], &[way]].concat(), &environment);
        assert_eq!(status, 0, "{way} {text}");
    }
}

#[test]
fn expressions_block_packets() {
    if !root() {
        return;
    }
    let wire = wire();
    let far = Far::new(&wire);
    for backend in backends() {
        let run = wire.start(&[
            "tc-egress",
            "near",
            "--block-match",
            "udp dst port 7",
            "--block-match",
            "icmp",
            "--by",
            "dst,proto",
            "--backend",
            backend,
        ]);
        assert_eq!(fate(&wire, &far, || datagram(OPEN4, 7)), Fate::Dropped, "{backend}");
        assert_eq!(fate(&wire, &far, || datagram(OPEN4, 8)), Fate::Arrived, "{backend}");
        assert_eq!(fate(&wire, &far, || raw(OPEN4)), Fate::Dropped, "{backend}");
        let run = run.stop();
        adds_up(&run);
        let rows = totals(&run);
        let rule = |rule: &str| {
            let row = rows.iter().find(|row| row["rule"] == rule);
            let row = row.unwrap_or_else(|| panic!("no {rule} in {}", run.stdout));
            (row["proto"].as_str().unwrap().to_string(), row["packets"].as_u64().unwrap())
        };
        assert_eq!(rule("match udp dst port 7"), ("udp".into(), 1));
        assert_eq!(rule("match icmp"), ("icmp".into(), 1));
    }
}

#[test]
fn lists_are_read_again_and_bad_ones_change_nothing() {
    if !root() {
        return;
    }
    let wire = wire();
    let far = Far::new(&wire);
    let file = list("10.50.0.0/16\n");
    let path = file.path().to_str().unwrap();
    let run = wire.start(&["tc-egress", "near", "--block-file", path, "-i", "100ms"]);
    assert_eq!(fate(&wire, &far, || datagram(BLOCKED4, 9)), Fate::Refused);
    assert_eq!(fate(&wire, &far, || datagram(OPEN4, 9)), Fate::Arrived);
    let until = |to: &'static str, expected: Fate| {
        let decided = || fate(&wire, &far, || datagram(to, 9)) == expected;
        assert!(within(10, decided), "{to} is not {expected:?}");
    };
    std::fs::write(path, "10.60.0.0/16\n").unwrap();
    run.signal(Signal::SIGHUP);
    until(OPEN4, Fate::Refused);
    until(BLOCKED4, Fate::Arrived);
    std::fs::write(path, "10.50.0.0/16\nnonsense\n").unwrap();
    run.signal(Signal::SIGHUP);
    thread::sleep(Duration::from_millis(300));
    until(OPEN4, Fate::Refused);
    let run = run.stop();
    assert!(run.stderr.contains("the lists are read again"), "{}", run.stderr);
    assert!(run.stderr.contains("the lists stay as they were"), "{}", run.stderr);
    assert!(run.stderr.contains(": 1 entry"), "{}", run.stderr);
}

/// Nobody is locked out by a bpftk that is gone.
#[test]
fn a_kill_opens_everything_again() {
    if !root() {
        return;
    }
    let wire = wire();
    let far = Far::new(&wire);
    for backend in backends() {
        let run = wire.start(&[&BLOCK[..], &["--backend", backend]].concat());
        assert_eq!(fate(&wire, &far, || datagram(BLOCKED4, 9)), Fate::Refused, "{backend}");
        assert_eq!(fate(&wire, &far, || raw(BLOCKED4)), Fate::Dropped, "{backend}");
        run.kill();
        let open = || {
            fate(&wire, &far, || raw(BLOCKED4)) == Fate::Arrived
                && fate(&wire, &far, || datagram(BLOCKED4, 9)) == Fate::Arrived
        };
        assert!(within(20, open), "{backend}");
        wire.near.run(|| output(&["doctor", "--cleanup"]));
    }
}

#[test]
fn contradictions_are_wrong_usage() {
    if !root() {
        return;
    }
    let wire = wire();
    let empty = list("# nothing\n");
    let empty = empty.path().to_str().unwrap();
    for (args, expected) in [
        (&["--block", "0.0.0.0/0,::/0"][..], "these rules block everything"),
        (&["--block-match", "len >= 0"], "these rules block everything"),
        (&["--only", "10.1.0.0/16", "--exclude", "10.0.0.0/8"], "all of it is excluded"),
        (&["--only", "fd00::/8", "--exclude-private"], "all of it is excluded"),
        (&["--max-entries", "4194305"], "expected a number from 1 to 4194304"),
        (&["--top", "-1"], "expected a number of rows"),
        (&["--audit-rate", "5"][..], "expected --events"),
        (&["--audit-rate", "0", "--events"], "from 1 to 1000000"),
        (&["--strict"], "nothing is blocked"),
        (&["--closed", "dns"], "nothing is blocked"),
        (&["--block", "10.0.0.0/8", "--closed", "dns"], "expected --allow-only"),
        (&["--allow-only", empty, "--closed", "tcp"], "dns, dhcp, arp, nd, ssh"),
        (&["--allow-only", empty, "--closed", "dns", "--resolver", "10.0.0.1"], "contradicts"),
        (&["--allow-only", empty, "--strict", "--resolver", "10.0.0.1"], "contradicts"),
        (&["--allow-only", empty, "--strict", "--closed", "arp"], "--closed"),
        (&["--allow-only", empty, "--resolver", "here"], "here"),
        (&["--dry-run"], "nothing is blocked"),
        (&["--block", "10.0.0.0/8", "--direction", "ingress"], "xdp-drop"),
        (&["--block", "10.0.0.0/33"], "10.0.0.0/33"),
        (&["--block-file", "/no/such/file"], "/no/such/file"),
        (&["--block-match", "no such thing ("], "no such thing"),
        (&["--allow-only", empty], "nothing would be allowed"),
        (&["--block-file", empty], "nothing would be blocked"),
        (&["--suggest", "/no/such/dir/list"], "/no/such/dir/list"),
        (&["--suggest", "/dev/null", "--by", "proto"], "expected --by dst"),
        (&["--suggest", "/dev/null", "--direction", "ingress"], "--direction egress"),
    ] {
        let args = [&["tc-egress", "near", "-d", "100ms"], args].concat();
        let (status, text) = outcome(&wire, &args, &[]);
        assert!(status == 2 && text.contains(expected), "{args:?} {status} {text}");
    }
    // It is asked for, it is no block, or it is for some packets only: nothing is said that isn't so.
    let all = ["tc-egress", "near", "-d", "100ms", "-v", "--block", "0.0.0.0/0,::/0"];
    for (more, said) in [
        (&["--strict"][..], "calls of processes are refused"),
        (&["--dry-run"], "calls of processes would be refused"),
        (&["udp", "port", "9"], "calls of processes are not refused at once"),
    ] {
        let words = [&all[..2], more, &all[2..]].concat();
        let (status, text) = outcome(&wire, &words, &[]);
        assert!(status == 0 && text.contains(said), "{more:?} {status} {text}");
    }
}
