// SPDX-License-Identifier: MIT OR Apache-2.0

//! Getting onto interfaces, beside others, and off them again.

use super::*;
use crate::support::{BARE_BYTES, Bare, stdout};

#[test]
fn the_mode_and_its_reason_are_told() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let run = wire.start(&["xdp-drop", "near"]).stop();
    assert!(run.stderr.contains("near: generic XDP: a veth device"), "{}", run.stderr);
    let run = wire.start(&["xdp-drop", "near", "--mode", "native"]).stop();
    assert!(run.stderr.contains("near: native XDP\n"), "{}", run.stderr);
    let run = wire.start(&["xdp-drop", "lo"]).stop();
    assert!(run.stderr.contains("lo: generic XDP: the driver refuses"), "{}", run.stderr);
    let (status, text) = refused(&wire, &["xdp-drop", "lo", "--mode", "native"], &[]);
    assert!(status == 4 && text.contains("cannot attach native XDP to lo"), "{text}");
}

#[test]
fn a_program_of_somebody_else_is_named_and_stays() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let there = wire.start(&["xdp-drop", "near", "--proto", "udp"]);
    for args in [&["xdp-drop", "near"][..], &["xdp-drop", "lo", "near", "--mode", "generic"]] {
        let (status, text) = refused(&wire, args, &[]);
        assert_eq!(status, 1, "{text}");
        assert!(text.contains("near has an XDP program already (generic): program "), "{text}");
        assert!(text.contains(&format!("`bpftk_xdp_drop`, of process {}", there.pid())), "{text}");
    }
    // All or none: the loopback has nothing.
    let shown =
        wire.near.run(|| std::process::Command::new("ip").args(["link", "show", "lo"]).output());
    assert!(!stdout(&shown.unwrap()).contains("xdp"));
    assert_eq!(wire.exchange(NEAR4, 10), 0);
    assert_eq!(packets(&there.stop(), "udp"), 10);
    assert_eq!(wire.exchange(NEAR4, 10), 10);
}

#[test]
fn two_at_tc_stand_in_the_order_asked_for() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    for backend in backends() {
        let base = ["tc-drop", "near", "--proto", "udp", "--backend", backend];
        let last = wire.start(&[&base[..], &["--last"]].concat());
        let first = wire.start(&[&base[..], &["--first"]].concat());
        assert_eq!(wire.exchange(NEAR4, 10), 0);
        assert_eq!(packets(&first.stop(), "udp"), 10, "{backend}");
        assert_eq!(wire.exchange(NEAR4, 7), 0);
        assert_eq!(packets(&last.stop(), "udp"), 7, "{backend}");
        assert_eq!(wire.exchange(NEAR4, 10), 10);
    }
}

#[test]
fn several_interfaces_have_rows_of_their_own() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    for command in ["xdp-drop", "tc-drop"] {
        let run = wire.start(&[command, "near", "lo", "near", "--proto", "udp"]);
        assert_eq!(wire.exchange(NEAR4, 30), 0);
        wire.near.run(|| send("127.0.0.1:9999".parse().unwrap(), 12));
        thread::sleep(Duration::from_millis(100));
        let run = run.stop();
        let of = |iface: &str| {
            let rows = run.json();
            let row = rows.iter().find(|row| {
                row["scope"] == "total" && row["rule"] == "udp" && row["iface"] == iface
            });
            row.unwrap()["packets_total"].as_u64().unwrap()
        };
        assert_eq!((of("near"), of("lo")), (30, 12), "{command} {}", run.stdout);
    }
}

#[test]
fn an_interface_without_ethernet() {
    if !root() {
        return;
    }
    for kind in Bare::kinds() {
        let namespace = Netns::new();
        let mut bare = namespace.run(|| Bare::new(kind)).unwrap();
        for backend in backends() {
            for dry in [&["--dry-run"][..], &[]] {
                let args = ["tc-drop", bare.name, "--direction", "egress", "--backend", backend];
                let args = [&args[..], &["--proto", "udp"], dry].concat();
                let run = namespace.run(|| Running::json(&args));
                namespace.run(|| bare.send(15));
                let run = run.stop();
                assert_eq!(packets(&run, "udp"), 15, "{kind} {backend} {}", run.stdout);
                let rows = run.json();
                let bytes = &total(&rows, "udp")["bytes_total"];
                assert_eq!(*bytes, 15 * BARE_BYTES, "{kind} {backend} {}", run.stdout);
                if let Some(packets) = bare.came_out() {
                    assert_eq!(packets, if dry.is_empty() { 0 } else { 15 }, "{backend} {dry:?}");
                }
            }
        }
    }
}

#[test]
fn the_operator_is_not_locked_out() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let ssh = [("SSH_CONNECTION", "203.0.113.5 50022 198.51.100.1 22")];
    let ssh6 = [("SSH_CONNECTION", "2001:db8::5 50022 2001:db8::1 22")];
    for command in ["xdp-drop", "tc-drop"] {
        for (rule, environment, expected) in [
            (
                &["--proto", "tcp", "--dport", "22"][..],
                &ssh,
                "ingress packets of your SSH connection",
            ),
            (
                &["--src", "203.0.113.0/24"],
                &ssh,
                "SSH connection (203.0.113.5:50022 to 198.51.100.1:22)",
            ),
            (&["--sport", "50000-60000"], &ssh6, "SSH connection"),
            (&["--proto", "icmp6"], &ssh, "neighbour discovery"),
            (&["--src", "0.0.0.0/0,::/0"], &ssh, "every packet"),
            (&["--src", "fe80::/10"], &ssh, "neighbour discovery"),
        ] {
            let args = [&[command, "near"], rule].concat();
            let (status, text) = refused(&wire, &args, environment);
            assert!(status == 2 && text.contains(expected), "{args:?} {status} {text}");
            for allowed in ["--yes-lock-me-out", "--dry-run"] {
                let args = [&args[..], &["-d", "10ms", allowed]].concat();
                let (status, text) = refused(&wire, &args, environment);
                assert_eq!(status, 0, "{args:?} {text}");
            }
        }
        for ports in
            [&["--proto", "icmp", "--dport", "53"], &["--proto", "icmp,gre", "--sport", "1-9"]]
        {
            let (status, text) = refused(&wire, &[&[command, "near"], &ports[..]].concat(), &[]);
            assert!(status == 2 && text.contains("has no ports"), "{ports:?} {status} {text}");
        }
        // What has nothing to do with it is no matter.
        for rule in [&["--proto", "tcp", "--dport", "23"][..], &["--src", "203.0.113.6"], &[]] {
            let args = [&[command, "near", "-d", "10ms"], rule].concat();
            let (status, text) = refused(&wire, &args, &ssh);
            assert_eq!(status, 0, "{args:?} {text}");
        }
    }
    let out = ["tc-drop", "near", "--direction", "egress", "--proto", "tcp", "--sport", "22"];
    let (status, text) = refused(&wire, &out, &ssh);
    assert!(status == 2 && text.contains("egress packets of your SSH connection"), "{text}");
}
