// SPDX-License-Identifier: MIT OR Apache-2.0

//! Filters as texts: compile, asm, disasm.

use std::process::Command;

use serde_json::Value;

use crate::filter::{ARP, filter, filter_with, libpcap, write};
use crate::support::{assert_usage, root, stderr, stdout};

#[test]
fn only_arp_is_the_same_as_expression_assembly_c_and_ebpf() {
    let dir = tempfile::tempdir().unwrap();
    // tcpdump wants 262144 bytes of a packet, the tutorial all.
    let text = ARP.replace("#-1", "#262144");
    let assembly = write(dir.path(), "arp.asm", &text);
    let c = filter(&["asm", assembly.to_str().unwrap()]);
    assert_eq!(
        c,
        "{ 0x28, 0, 0, 0x0000000c },\n{ 0x15, 0, 1, 0x00000806 },\n\
         { 0x6, 0, 0, 0x00040000 },\n{ 0x6, 0, 0, 0x00000000 },\n"
    );
    let array = write(dir.path(), "arp.c", format!("struct sock_filter arp[] = {{\n{c}}};\n"));
    if libpcap() {
        assert_eq!(filter(&["compile", "arp", "--emit", "c"]), c);
    }
    for form in ["asm", "tcpdump", "c", "dec", "ebpf", "ebpf-c", "ebpf-asm"] {
        let of =
            |path: &std::path::Path| filter(&["disasm", path.to_str().unwrap(), "--emit", form]);
        assert_eq!(of(&assembly), of(&array), "{form}");
        if libpcap() {
            assert_eq!(of(&array), filter(&["compile", "arp", "--emit", form]), "{form}");
        }
        // What was printed is the same program again.
        let printed = write(dir.path(), "printed", of(&assembly));
        let printed = printed.to_str().unwrap();
        match form {
            "asm" | "c" | "dec" => {
                assert_eq!(filter(&["asm", printed, "--emit", "c"]), c, "{form}")
            }
            "ebpf-asm" | "ebpf-c" => {
                assert_eq!(
                    filter(&["asm", printed, "--ebpf"]),
                    filter(&["disasm", assembly.to_str().unwrap(), "--emit", "ebpf-c"])
                );
            }
            _ => {}
        }
    }
    // The eBPF of the tutorial: bounds, EtherType, verdict.
    let ebpf = filter(&["asm", assembly.to_str().unwrap(), "--emit", "ebpf", "--hook", "xdp"]);
    assert!(
        ebpf.contains("= *(u16 *)(r") && ebpf.contains("0x806") && ebpf.contains("exit"),
        "{ebpf}"
    );
    let tc = filter(&["asm", assembly.to_str().unwrap(), "--emit", "ebpf", "--hook", "tc"]);
    assert_ne!(ebpf, tc);
}

#[test]
fn tcpdump_prints_the_same() {
    let Ok(version) = Command::new("tcpdump").arg("--version").output() else {
        println!("SKIP tcpdump is not installed");
        return;
    };
    if !libpcap() {
        return;
    }
    let json: Value = serde_json::from_str(&filter(&["compile", "arp", "--emit", "json"])).unwrap();
    let ours = json["libpcap"].as_str().unwrap();
    let theirs = stdout(&version) + &stderr(&version);
    if !theirs.contains(ours) {
        println!("SKIP tcpdump has another libpcap than `{ours}`");
        return;
    }
    for expression in [
        "",
        "arp",
        "tcp port 80",
        "ip6 host 2001:db8::1",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 and not src and dst net 192.0.2.0/24",
        "vlan 5 and udp portrange 5000-6000",
        "ether host 02:00:00:00:00:01 or ether proto 0x88cc",
        "(ip[2:2] - ((ip[0] & 0xf) << 2)) - ((tcp[12] & 0xf0) >> 2) != 0",
        "ether[len - 4 : 4] % 7 = 3 or ether[0] ^ 5 > -1",
        "port http or udp port domain",
        "icmp6 and greater 100",
        "mpls 3 and host 192.0.2.1",
        "ip proto \\icmp or outbound",
    ] {
        for (flag, emit) in [("-d", "tcpdump"), ("-dd", "c"), ("-ddd", "dec")] {
            for optimized in [true, false] {
                let mut theirs = Command::new("tcpdump");
                theirs
                    .args(["-y", "EN10MB", flag])
                    .args((!optimized).then_some("-O"))
                    .arg(expression);
                let theirs = theirs.output().unwrap();
                assert!(theirs.status.success(), "{expression}: {}", stderr(&theirs));
                let mut args = vec!["compile", "--emit", emit];
                args.extend((!optimized).then_some("--unoptimized"));
                args.push(expression);
                assert_eq!(filter(&args), stdout(&theirs), "{expression} {flag}");
            }
        }
    }
}

/// What bpf_conformance's texts have beside the instructions: a label that nobody wrote, and a call by register.
#[test]
fn texts_of_bpf_conformance() {
    let bytes = |text: &str| {
        let output = filter_with(text, &["asm", "--ebpf", "-"]);
        assert!(output.status.success(), "{text}: {}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(
        bytes("mov %r0, 0\njne %r1, 0, exit\nmov %r0, 1\nexit\n"),
        bytes("mov %r0, 0\njne %r1, 0, +1\nmov %r0, 1\nexit\n")
    );
    assert_eq!(bytes("mov %r2, 5\ncall %r2\nexit"), bytes("mov %r2, 5\ncallx %r2\nexit"));
    let none = filter_with("ja exit\n", &["asm", "--ebpf", "-"]);
    assert!(stderr(&none).contains("no label `exit`"), "{}", stderr(&none));
}

#[test]
fn what_is_wrong_is_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut at = 0;
    let mut file = |text: &str| {
        at += 1;
        write(dir.path(), &format!("bad{at}"), text).to_str().unwrap().to_string()
    };
    for (text, parts) in [
        ("", &["line 1, column 1", "an instruction"][..]),
        ("ldh [12]\n  jeg #1, drop\n", &["line 2, column 3", "`jeg`"]),
        ("ldh [12]\n", &["instruction 0", "no `ret`"]),
        ("jeq #1, away\nret #0", &["line 1, column 9", "no label `away`"]),
        ("{ 0x28, 0, 0 }", &["line 1, column 14", "`,`"]),
        ("3\n40 0 0 12\n", &["line 3", "code"]),
        ("div #0\nret a", &["divides by zero"]),
        ("st M[99]\nret a", &["line 1, column 6", "0 to 15"]),
        ("\u{1b}[2J", &["line 1, column 1", "\\u{1b}"]),
    ] {
        for verb in ["asm", "disasm"] {
            assert_usage(&["filter", verb, &file(text)], parts);
        }
    }
    assert_usage(&["filter", "asm", "--ebpf", &file("mov %r11, 1")], &["line 1, column 5", "%r10"]);
    assert_usage(
        &["filter", "disasm", "--ebpf", &file("{ 0xff, 0, 0, 0, 0 }")],
        &["instruction 0", "0xff"],
    );
    let good = file(ARP);
    for (args, parts) in [
        (&["asm", "/no/such"][..], &["/no/such"][..]),
        (&["asm", "--emit", "elf", &good], &["elf", "tcpdump"]),
        (&["asm", "--hook", "tc", &good], &["--hook", "ebpf"]),
        (&["asm", "--ebpf", "--emit", "c", &good], &["mov"]),
        (&["compile"], &["EXPR"]),
        (&["compile", "arp", "--link", "token-ring"], &["token-ring", "ethernet"]),
        (&["compile", "arp", "--hook", "tc"], &["--hook", "ebpf"]),
        (&["run", "arp"], &["--read"]),
        (&["run", "--read", "x"], &["EXPR"]),
        (&["run", "--asm", &good, "--read", "/no/such"], &["/no/such"]),
        (&["run", "--asm", &good, "--read", &good], &["not a capture file"]),
        (&["run", "--asm", &good, "--read", &good, "--step", "0"], &["0"]),
        (&["run", "--asm", &good, "--read", &good, "--step", "1", "--engine", "xdp"], &["--step"]),
        (&["run", "--asm", "-", "--read", "-"], &["standard input"]),
        (&["capture"], &["IFACE"]),
        (&["capture", "lo", "--asm", "/no/such"], &["/no/such"]),
        (&["capture", "lo", "--asm", &good, "arp"], &["cannot be used with"]),
        (&["capture", "lo", "--resolve"], &["--resolve"]),
        (&["capture", "lo", "-w", "x", "--format", "json"], &["cannot be used with"]),
        (&["nonsense"], &["nonsense"]),
    ] {
        assert_usage(&[&["filter"], args].concat(), parts);
    }
    if !libpcap() {
        return;
    }
    for (expression, parts) in [
        ("tcp port", &["tcp port", "syntax error"][..]),
        ("ip broadcast", &["netmask"]),
        ("host example.org", &["example.org", "not looked up", "--resolve"]),
        ("net foo", &["foo", "not looked up"]),
        ("ether host foo", &["foo", "not looked up"]),
        ("port no-such-port", &["no-such-port"]),
    ] {
        for args in [
            &["filter", "compile", expression][..],
            &["filter", "capture", "lo", expression],
            &["filter", "run", expression, "--read", "x"],
        ] {
            assert_usage(args, parts);
        }
    }
    let protochain = ["filter", "compile", "ip6 protochain 58", "--emit", "ebpf"];
    assert_usage(&protochain, &["protochain", "jumps backward"]);
    for args in [&["compile", "ip6 protochain 58"][..], &["capture", "lo", "ip6 protochain 58"]] {
        if args[0] != "capture" || root() {
            assert_usage(&[&["filter"], args].concat(), &["jumps backward"]);
        }
    }
    // Kernel extensions that XDP has not.
    assert_usage(&["filter", "compile", "outbound", "--emit", "ebpf"], &["XDP"]);
}

#[test]
fn text_in_and_out_of_pipes() {
    let c = filter_with(ARP, &["asm", "-"]);
    assert!(c.status.success(), "{}", stderr(&c));
    let back = filter_with(&stdout(&c), &["disasm", "-"]);
    assert_eq!(stdout(&back), "    ldh [12]\n    jne #0x806, l3\n    ret #-1\nl3:\n    ret #0\n");
    let json = filter_with(ARP, &["asm", "-", "--emit", "json"]);
    let json: Value = serde_json::from_str(&stdout(&json)).unwrap();
    assert_eq!((&json["type"], &json["instructions"]), (&"row".into(), &4.into()));
    assert_eq!(json["insns"][1]["k"], 0x806);
    assert_eq!((&json["linux"], &json["ebpf_refused"]), (&"ok".into(), &Value::Null));
    let bad = filter_with("ret 0", &["asm", "-"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(stderr(&bad).contains("standard input: line 1, column 5"), "{}", stderr(&bad));
}

#[test]
fn names_are_looked_up_only_when_asked_for() {
    let known = std::fs::read_to_string("/etc/hosts").is_ok_and(|hosts| {
        hosts.lines().any(|line| line.starts_with("127.0.0.1") && line.contains("localhost"))
    });
    if !libpcap() || !known {
        println!("SKIP no libpcap, or /etc/hosts does not know localhost");
        return;
    }
    assert_usage(&["filter", "compile", "ip host localhost"], &["`localhost`", "--resolve"]);
    let output = crate::support::output(&["filter", "compile", "--resolve", "ip host localhost"]);
    match output.status.code() {
        Some(0) => assert_eq!(stdout(&output), filter(&["compile", "ip host 127.0.0.1"])),
        Some(4) => {
            assert!(stderr(&output).contains("linked statically"), "{}", stderr(&output));
        }
        _ => panic!("{}", stderr(&output)),
    }
}
