// SPDX-License-Identifier: MIT OR Apache-2.0

//! Filters run on capture files, by every engine, and with what the machine has and allows.

use std::process::Command;

use super::{ARP, behind_extension_headers, filter, frames, json, libpcap, pcap, pcap_of, write};
use crate::support::{as_nobody, public_copy, root, stderr, stdout};

#[test]
fn every_engine_agrees() {
    if !root() || !libpcap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let packets = write(dir.path(), "packets.pcap", pcap(&frames()));
    let packets = packets.to_str().unwrap();
    for (expression, matches) in [
        ("arp", 1),
        ("udp port 53 or arp", 2),
        ("vlan 5 and tcp[tcpflags] & tcp-syn != 0", 1),
        ("len > 20", 3),
    ] {
        let rows = json(&filter(&[
            "run", expression, "--read", packets, "--engine", "all", "--format", "json",
        ]));
        for row in &rows[..3] {
            for engine in ["interp", "libpcap", "kernel", "xdp", "tc"] {
                // The kernel may refuse to run a hook's program on a packet, never say something else.
                let said = row[engine].as_str().unwrap();
                assert!(said == row["verdict"] || said == "not run", "{expression}: {row}");
            }
            assert_eq!((&row["interp"], &row["xdp"]), (&row["libpcap"], &row["verdict"]), "{row}");
        }
        assert_eq!((&rows[3]["matched"], &rows[3]["differ"]), (&matches.into(), &0.into()));
    }
}

/// A packet of any length is an answer: of the engine, or why it has none.
#[test]
fn long_packets_end_nothing() {
    if !root() || !libpcap() {
        return;
    }
    let long = |length: usize| {
        let mut frame = frames()[1].clone();
        frame.resize(length, 7);
        frame
    };
    let lengths = [60, 1500, 3000, 5000, 9000, 66_000, 80_000, 300_000, 1_000_000];
    let file = pcap(&lengths.map(long));
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "long.pcap", file);
    // The last is behind what XDP gets at once.
    for (expression, matches) in [("udp port 53", 9), ("len > 4000", 6), ("ether[7000] = 7", 5)] {
        let all = |engine: &str| {
            let path = path.to_str().unwrap();
            json(&filter(&[
                "run", expression, "--read", path, "--engine", engine, "--format", "json",
            ]))
        };
        let rows = all("all");
        let summary = &rows[lengths.len()];
        assert_eq!((&summary["matched"], &summary["differ"]), (&matches.into(), &0.into()));
        for row in &rows[..3] {
            assert_eq!(row["not_run"], serde_json::Value::Null, "{row}");
        }
        let longest = &rows[lengths.len() - 1];
        assert_eq!((&longest["xdp"], &longest["tc"]), (&"not run".into(), &"not run".into()));
        assert!(longest["not_run"].as_str().unwrap().contains("longer than"), "{longest}");
        for engine in ["kernel", "xdp", "tc"] {
            assert_eq!(all(engine).len(), lengths.len() + 1, "{engine}");
        }
    }
}

/// An engine that can't run a filter says so, and the others run it.
#[test]
fn engines_that_cannot_run_a_filter_say_why() {
    if !root() || !libpcap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ethernet = [&frames()[0][..12], &[0x86, 0xdd], &behind_extension_headers()[..]].concat();
    let packets = write(dir.path(), "packets.pcap", pcap(&[ethernet]));
    let packets = packets.to_str().unwrap();
    let run = |what: &[&str]| {
        let args =
            [&["run"], what, &["--read", packets, "--engine", "all", "--format", "json"]].concat();
        json(&filter(&args))
    };
    let chain = &run(&["ip6 protochain 58"])[0];
    for (engine, said) in [
        ("interp", "match"),
        ("libpcap", "match"),
        ("kernel", "not run"),
        ("xdp", "not run"),
        ("tc", "not run"),
        ("verdict", "match"),
    ] {
        assert_eq!(chain[engine], said, "{chain}");
    }
    assert!(chain["not_run"].as_str().unwrap().contains("jumps backward"), "{chain}");
    // libpcap takes Linux's extensions for offsets beyond any packet.
    let xor = write(dir.path(), "xor.asm", "ld #5\nldx #6\nld xor_x\nret a\n");
    let xor = &run(&["--asm", xor.to_str().unwrap()])[0];
    for (engine, said) in
        [("interp", "match"), ("libpcap", "not run"), ("kernel", "match"), ("xdp", "match")]
    {
        assert_eq!(xor[engine], said, "{xor}");
    }
    assert!(xor["not_run"].as_str().unwrap().contains("#xor_x"), "{xor}");
}

/// What tcpdump writes of the interface `any`.
#[test]
fn every_engine_runs_cooked_captures() {
    if !root() || !libpcap() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cooked: Vec<Vec<u8>> = frames()
        .iter()
        .map(|frame| [&[0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0], &frame[12..]].concat())
        .collect();
    let packets = write(dir.path(), "any.pcap", pcap_of(113, &cooked));
    let packets = packets.to_str().unwrap();
    for expression in ["arp", "udp port 53", "not ip", "ether proto 0x8100"] {
        let args = ["run", expression, "--read", packets, "--engine", "all", "--format", "json"];
        for row in &json(&filter(&args))[..3] {
            for engine in ["interp", "libpcap", "kernel", "xdp", "tc"] {
                assert_eq!(row[engine], row["verdict"], "{expression}: {row}");
            }
        }
    }
}

#[test]
fn nothing_of_this_needs_privileges() {
    if !root() {
        return;
    }
    let dir = public_copy();
    let program = dir.path().join("bpftk");
    let assembly = write(dir.path(), "arp.asm", ARP);
    let packets = write(dir.path(), "packets.pcap", pcap(&frames()));
    let (assembly, packets) = (assembly.to_str().unwrap(), packets.to_str().unwrap());
    let mut all = vec![
        vec!["asm", assembly],
        vec!["disasm", assembly, "--emit", "ebpf"],
        vec!["run", "--asm", assembly, "--read", packets],
        vec!["run", "--asm", assembly, "--read", packets, "--step", "2"],
        vec!["run", "--asm", assembly, "--read", packets, "--engine", "kernel"],
    ];
    if libpcap() {
        all.push(vec!["compile", "tcp port 80", "--emit", "json"]);
        all.push(vec!["run", "arp", "--read", packets, "--engine", "libpcap"]);
    }
    for args in all {
        let output = as_nobody(Command::new(&program).arg("filter").args(&args)).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    }
    for (args, capability) in [
        (&["capture", "lo"][..], "CAP_NET_RAW"),
        (&["run", "--asm", assembly, "--read", packets, "--engine", "all"], "CAP_BPF"),
    ] {
        let output = as_nobody(Command::new(&program).arg("filter").args(args)).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {text}");
        assert!(text.contains(capability) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn without_libpcap_all_but_expressions_works() {
    if !root() {
        return;
    }
    let without = |command: &str| {
        let hide = "for f in $(find /usr/lib /usr/lib64 /lib -name 'libpcap.so*' 2>/dev/null); do mount --bind /dev/null $f || exit 99; done; exec \"$0\" ";
        Command::new("unshare")
            .args(["--mount", "sh", "-c", &format!("{hide}{command}")])
            .arg(crate::support::bpftk_path())
            .output()
            .unwrap()
    };
    let compile = without("filter compile arp");
    match compile.status.code() {
        // Linked statically, it has libpcap inside.
        Some(0) => assert!(stdout(&compile).contains("ldh [12]")),
        Some(4) => {
            let text = stderr(&compile);
            assert!(text.contains("libpcap.so") && text.contains("install"), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
        _ => panic!("{}", stderr(&compile)),
    }
    let dir = tempfile::tempdir().unwrap();
    let assembly = write(dir.path(), "arp.asm", ARP);
    for command in [
        format!("filter asm {} --emit ebpf", assembly.display()),
        format!("filter capture lo --asm {} -d 10ms", assembly.display()),
        "doctor --help".into(),
    ] {
        let output = without(&command);
        assert!(output.status.success(), "{command}: {}", stderr(&output));
    }
}
