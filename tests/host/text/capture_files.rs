// SPDX-License-Identifier: MIT OR Apache-2.0

//! Filters run on capture files, by bpftk's own interpreter.

use crate::filter::{ARP, filter, frames, json, libpcap, pcap, write};
use crate::support::{output, stderr, stdout};

#[test]
fn a_verdict_for_each_packet() {
    let dir = tempfile::tempdir().unwrap();
    let packets = write(dir.path(), "packets.pcap", pcap(&frames()));
    let arp = write(dir.path(), "arp.asm", ARP);
    let (packets, arp) = (packets.to_str().unwrap(), arp.to_str().unwrap());
    let rows = json(&filter(&["run", "--asm", arp, "--read", packets, "--format", "json"]));
    let verdicts: Vec<_> = rows[..3].iter().map(|row| row["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["match", "no match", "no match"]);
    assert_eq!((&rows[0]["proto"], &rows[0]["returned"]), (&"arp".into(), &u32::MAX.into()));
    assert_eq!((&rows[1]["dport"], &rows[1]["daddr"]), (&53.into(), &"192.0.2.2".into()));
    assert_eq!(rows[2]["time"], "2023-11-14T22:13:22Z");
    assert_eq!((&rows[3]["packets"], &rows[3]["matched"]), (&3.into(), &1.into()));

    let table = output(&["filter", "run", "--asm", arp, "--read", packets]);
    assert_eq!(stdout(&table).lines().count(), 4);
    assert!(stdout(&table).lines().all(|line| line.len() <= 80), "{}", stdout(&table));
    assert_eq!(stderr(&table), "bpftk: 3 packets: 1 match\n");
    if !libpcap() {
        return;
    }
    for (expression, matching) in [
        ("arp", vec![1]),
        ("udp port 53", vec![2]),
        ("tcp port 80", vec![]),
        ("vlan and tcp port 80", vec![3]),
        ("not arp", vec![2, 3]),
        ("ip or vlan", vec![2, 3]),
    ] {
        let rows = json(&filter(&["run", expression, "--read", packets, "--format", "json"]));
        let matched: Vec<u64> = rows
            .iter()
            .filter(|row| row["verdict"] == "match")
            .map(|row| row["packet"].as_u64().unwrap())
            .collect();
        assert_eq!(matched, matching, "{expression}");
    }
}

#[test]
fn each_instruction_with_its_registers() {
    let dir = tempfile::tempdir().unwrap();
    let packets = write(dir.path(), "packets.pcap", pcap(&frames()));
    let text = "ldb [23]\nst M[3]\ntax\nldx #4\nld M[3]\nadd x\nret a\n";
    let assembly = write(dir.path(), "steps.asm", text);
    let (packets, assembly) = (packets.to_str().unwrap(), assembly.to_str().unwrap());
    let args = ["run", "--asm", assembly, "--read", packets, "--step", "2", "--format", "json"];
    let rows = json(&filter(&args));
    let registers: Vec<_> = rows[..7]
        .iter()
        .map(|row| {
            (
                row["a"].as_u64().unwrap(),
                row["x"].as_u64().unwrap(),
                row["mem"][3].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        registers,
        [(0, 0, 0), (17, 0, 0), (17, 0, 17), (17, 17, 17), (17, 4, 17), (17, 4, 17), (21, 4, 17)]
    );
    assert_eq!((&rows[6]["pc"], &rows[7]["returned"]), (&6.into(), &21.into()));
    let table = filter(&args[..7]);
    assert!(table.contains("(004) ld       M[3]") && table.contains("M[3]=0x11"), "{table}");
    let past = output(&["filter", "run", "--asm", assembly, "--read", packets, "--step", "4"]);
    assert_eq!(past.status.code(), Some(2));
    assert!(stderr(&past).contains("has 3 packets"), "{}", stderr(&past));
}

#[test]
fn what_no_file_tells_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let packets = write(dir.path(), "packets.pcap", pcap(&frames()));
    for (text, part) in
        [("ld #mark\nret a", "`#mark`"), ("ld [-1048576]\nret a", "place of a header")]
    {
        let assembly = write(dir.path(), "x.asm", text);
        let output = output(&[
            "filter",
            "run",
            "--asm",
            assembly.to_str().unwrap(),
            "--read",
            packets.to_str().unwrap(),
        ]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
    // A file that ends in the middle of a packet: what is whole is shown, and then the end is told.
    let mut cut = pcap(&frames());
    cut.truncate(cut.len() - 3);
    let cut = write(dir.path(), "cut.pcap", cut);
    let arp = write(dir.path(), "arp.asm", ARP);
    let output = output(&[
        "filter",
        "run",
        "--asm",
        arp.to_str().unwrap(),
        "--read",
        cut.to_str().unwrap(),
        "--no-header",
    ]);
    assert_eq!((output.status.code(), stdout(&output).lines().count()), (Some(2), 2));
    assert!(stderr(&output).contains("cut short after packet 2"), "{}", stderr(&output));
}
