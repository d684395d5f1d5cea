// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk filter check`: what it says of a filter is what this kernel does with it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::Value;

use crate::support::{output, public_copy, root, stderr, stdout};

fn check(expression: &str) -> (i32, Vec<Value>, String) {
    let output = output(&["filter", "check", expression, "--format", "json"]);
    let rows = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    (output.status.code().expect("it ends by itself"), rows, stderr(&output))
}

#[test]
fn an_expression_loads_at_every_hook() {
    if !root() {
        return;
    }
    for expression in [
        "arp",
        "tcp port 80",
        "not tcp port 80",
        "vlan and udp port 53",
        "vlan 5 and vlan and ip6 host 2001:db8::1",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
        "tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)",
        "host 10.0.0.1 or net 192.0.2.0/24 or portrange 1000-2000 or ip6 proto 58",
        "len > 100 and ip[ip[8] - 1] = 6",
    ] {
        let (status, rows, said) = check(expression);
        assert_eq!(status, 0, "{expression}: {rows:?} {said}");
        let (summary, rows) = rows.split_last().unwrap();
        let hooks: Vec<&str> = rows.iter().map(|row| row["hook"].as_str().unwrap()).collect();
        for hook in ["socket", "xdp", "tc ingress", "tc egress"] {
            assert!(hooks.contains(&hook), "{hooks:?}");
        }
        for row in rows {
            assert_eq!(row["status"], "ok", "{row}");
            assert!(row["classic"].as_u64().unwrap() > 1, "{row}");
            if row["hook"] != "socket" {
                // Statistics are of every kernel; what is verified on all ways is no less than what there is to gain.
                assert!(row["ebpf"].as_u64().unwrap() > 4, "{row}");
                assert!(row["verified"].as_u64().unwrap() > 4, "{row}");
                assert!(row["verifier_us"].is_u64(), "{row}");
            }
        }
        assert_eq!(summary["type"], "summary");
        assert_eq!(summary["expression"], expression);
        assert_eq!(summary["failed"], 0);
    }
}

#[test]
fn a_hook_that_lacks_something_says_what() {
    if !root() {
        return;
    }
    // libpcap before 1.11 makes a program of it that asks the kernel; later ones refuse it where there is no interface.
    let (status, rows, said) = check("inbound");
    if status == 2 {
        println!("SKIP this libpcap takes no `inbound`: {said}");
        return;
    }
    assert_eq!(status, 1, "{rows:?}");
    for row in &rows[..rows.len() - 1] {
        let is_xdp = row["hook"].as_str().unwrap().starts_with("xdp");
        assert_eq!(row["status"], if is_xdp { "refused" } else { "ok" }, "{row}");
        assert_eq!(row["detail"].as_str().is_some_and(|text| text.contains("`type`")), is_xdp);
    }
    let output = output(&["filter", "check", "inbound"]);
    assert!(stderr(&output).contains("does not run at"), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("HOOK "), "{}", stdout(&output));
}

#[test]
fn a_loop_and_nonsense_are_refused_up_front() {
    for (words, part) in [
        (&["ip6", "protochain", "58"][..], "protochain"),
        (&["tcp", "port"], "syntax error"),
        (&["--link", "tokenring", "arp"], "tokenring"),
        (&["--link", "raw", "ether host 02:00:00:00:00:01"], "ether"),
        (&[], "EXPR"),
    ] {
        let output = output(&[&["filter", "check"], words].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
        assert!(output.stdout.is_empty() && text.lines().count() == 1, "{words:?}: {text}");
        assert!(text.contains(part), "{words:?}: {text}");
    }
}

#[test]
fn without_capabilities_it_names_them() {
    if !root() {
        return;
    }
    let dir = public_copy();
    let mut command = Command::new(dir.path().join("bpftk"));
    let output = command.args(["filter", "check", "arp"]).uid(65534).gid(65534).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr(&output).contains("CAP_BPF and CAP_PERFMON and CAP_NET_ADMIN"),
        "{}",
        stderr(&output)
    );
}
