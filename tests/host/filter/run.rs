// SPDX-License-Identifier: MIT OR Apache-2.0

//! Filters run on capture files, by every engine, and with what the machine has and allows.

use std::process::Command;

use super::{ARP, filter, frames, json, libpcap, pcap, write};
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
