// SPDX-License-Identifier: MIT OR Apache-2.0

//! Filters run on capture files, by bpftk's own interpreter.

use std::process::Command;

use crate::filter::{
    ARP, behind_extension_headers, filter, frames, json, libpcap, pcap, pcap_of, write,
};
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
    for (text, part) in [
        ("ld #mark\nret a", "`#mark`"),
        ("ld [-1048576]\nret a", "place of a header"),
        ("ldh [x + -1048576]\nret a", "place of a header"),
        ("ldxb 4*([-2097152]&0xf)\ntxa\nret a", "place of a header"),
        ("{ 0x5, 0, 0, 0xffffffff }, { 0x6, 0, 0, 0 }", "more often than the packet has bytes"),
    ] {
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

/// Which packets of the file match, by this engine.
fn matching(file: &[u8], expression: &str, engine: &str) -> Vec<u64> {
    let dir = tempfile::tempdir().unwrap();
    // By a name that AppArmor lets tcpdump read.
    let packets = write(dir.path(), "packets.pcap", file);
    let packets = packets.to_str().unwrap();
    let rows = json(&filter(&[
        "run", expression, "--read", packets, "--format", "json", "--engine", engine,
    ]));
    let matching: Vec<u64> = rows
        .iter()
        .filter(|row| row["verdict"] == "match")
        .map(|row| row["packet"].as_u64().unwrap())
        .collect();
    // tcpdump and libpcap know best.
    let theirs = Command::new("tcpdump").args(["-n", "-t", "-r", packets, expression]).output();
    if let Ok(theirs) = theirs {
        assert!(theirs.status.success(), "{}", stderr(&theirs));
        let theirs = stdout(&theirs);
        let lines = theirs.lines().filter(|line| !line.starts_with(['\t', ' '])).count();
        assert_eq!(matching.len(), lines, "{expression}: {theirs}");
    }
    matching
}

/// pcapng's Packet Block is obsolete since 2009, and files with it are still there.
#[test]
fn obsolete_packet_blocks_are_packets() {
    if !libpcap() {
        return;
    }
    for big in [false, true] {
        let word = |value: u32| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let half = |value: u16| if big { value.to_be_bytes() } else { value.to_le_bytes() };
        let block = |kind: u32, body: &[u8]| {
            let mut body = body.to_vec();
            body.resize(body.len().next_multiple_of(4), 0);
            let length = word(body.len() as u32 + 12);
            [&word(kind)[..], &length, &body, &length].concat()
        };
        let mut file = [
            block(0x0a0d_0d0a, &[&word(0x1a2b_3c4d)[..], &half(1), &half(0), &[0xff; 8]].concat()),
            block(1, &[&half(1)[..], &half(0), &word(0)].concat()),
        ]
        .concat();
        for frame in frames() {
            let length = word(frame.len() as u32);
            let header = [&half(0)[..], &half(0xffff), &word(0), &word(5), &length, &length];
            file.extend(block(2, &[&header.concat()[..], &frame].concat()));
        }
        for engine in ["interp", "libpcap"] {
            assert_eq!(matching(&file, "udp port 53 or arp", engine), [1, 2], "big {big}");
        }
    }
}

#[test]
fn cooked_captures() {
    if !libpcap() {
        return;
    }
    // An ARP request of others, a datagram that we sent, and a segment in a VLAN.
    let cooked = |link: u32| -> Vec<Vec<u8>> {
        let kinds = [1_u8, 4, 0];
        let each = frames().into_iter().zip(kinds);
        let packet = |(frame, kind): (Vec<u8>, u8)| {
            let (kind_of_link, address) = ([0, 1], [0, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
            match link {
                113 => [&[0, kind][..], &kind_of_link, &address, &frame[12..]].concat(),
                _ => [
                    &frame[12..14],
                    &[0, 0, 0, 0, 0, 3],
                    &kind_of_link,
                    &[kind, 6],
                    &address[2..],
                    &frame[14..],
                ]
                .concat(),
            }
        };
        each.map(packet).collect()
    };
    for link in [113, 276] {
        let file = pcap_of(link, &cooked(link));
        for (expression, expected) in [
            ("arp", vec![1]),
            ("udp dst port 53 and host 192.0.2.2", vec![2]),
            ("ether proto 0x8100", vec![3]),
            ("outbound", vec![2]),
            ("", vec![1, 2, 3]),
        ] {
            for engine in ["interp", "libpcap"] {
                let found = matching(&file, expression, engine);
                assert_eq!(found, expected, "{link} {expression} {engine}");
            }
        }
    }
    // Only the second version has it.
    assert_eq!(matching(&pcap_of(276, &cooked(276)), "ifindex 3", "interp"), [1, 2, 3]);
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "any.pcap", pcap_of(113, &cooked(113)));
    let rows = json(&filter(&["run", "ip", "--read", file.to_str().unwrap(), "--format", "json"]));
    assert_eq!((&rows[1]["proto"], &rows[1]["daddr"]), (&"udp".into(), &"192.0.2.2".into()));
    assert_eq!((&rows[1]["dport"], &rows[0]["proto"]), (&53.into(), &"arp".into()));
    let ifindex =
        output(&["filter", "run", "ifindex 3", "--read", file.to_str().unwrap(), "--no-header"]);
    assert_eq!(ifindex.status.code(), Some(2));
    assert!(stderr(&ifindex).contains("packet 1, of link type 113"), "{}", stderr(&ifindex));
}

/// RAW looks at the version, IPV4 and IPV6 say it: there everything is IPv4, or IPv6.
#[test]
fn link_types_are_their_own() {
    if !libpcap() {
        return;
    }
    let four = frames()[1][14..46].to_vec();
    let six = behind_extension_headers();
    let neither = vec![0; 40];
    let packets = [four, six, neither];
    for (link, expression, expected) in [
        (101, "ip", vec![1]),
        (101, "not ip6", vec![1, 3]),
        (12, "ip6", vec![2]),
        (228, "ip", vec![1, 2, 3]),
        (228, "not ip6", vec![1, 2, 3]),
        (228, "udp port 53", vec![1]),
        (229, "ip6", vec![1, 2, 3]),
        (229, "ip6 protochain 58", vec![2]),
    ] {
        for engine in ["interp", "libpcap"] {
            let found = matching(&pcap_of(link, &packets), expression, engine);
            assert_eq!(found, expected, "{link} {expression} {engine}");
        }
    }
    // BSD's loopback has the family in the byte order of the file; 28 is FreeBSD's number for IPv6.
    let six = behind_extension_headers();
    for (file, family) in [
        (pcap_of(0, &[[&[28, 0, 0, 0][..], &six].concat()]), 28),
        (pcap_of(108, &[[&[0, 0, 0, 28][..], &six].concat()]), 28),
        (pcap_of(0, &[[&[30, 0, 0, 0][..], &six].concat()]), 30),
    ] {
        assert_eq!(matching(&file, "ip6", "interp"), [1], "{family}");
    }
    let mut big = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0002_0004, 0, 0, 0, 0, 0, 0, 4 + 20, 4 + 20, 2] {
        big.extend(word.to_be_bytes());
    }
    big.extend(&frames()[1][14..34]);
    assert_eq!(matching(&big, "ip", "interp"), [1]);
}

/// The interfaces of a pcapng file may have packets of different kinds, and a filter may be for some of them only.
#[test]
fn a_filter_that_is_not_for_all_kinds_of_packets_runs_on_the_others() {
    if !libpcap() {
        return;
    }
    let block = |kind: u32, body: &[u8]| {
        let mut body = body.to_vec();
        body.resize(body.len().next_multiple_of(4), 0);
        let length = (body.len() as u32 + 12).to_le_bytes();
        [&kind.to_le_bytes()[..], &length, &body, &length].concat()
    };
    let interface = |link: u16| block(1, &[&link.to_le_bytes()[..], &[0; 6]].concat());
    let packet = |interface: u32, data: &[u8]| {
        let length = (data.len() as u32).to_le_bytes();
        block(6, &[&interface.to_le_bytes()[..], &[0; 8], &length, &length, data].concat())
    };
    // Ethernet, IPV4, and NETLINK, of which libpcap knows no protocols.
    let mut file = block(
        0x0a0d_0d0a,
        &[&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat(),
    );
    for link in [1, 228, 253] {
        file.extend(interface(link));
    }
    let [arp, udp, _] = &frames()[..] else { unreachable!() };
    for (at, data) in [(0, &arp[..]), (1, &udp[14..]), (2, &[7; 30]), (0, &udp[..])] {
        file.extend(packet(at, data));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "several.pcapng", &file);
    for (expression, expected) in [
        ("arp", ["match", "not run", "not run", "no match"]),
        ("udp", ["no match", "match", "not run", "match"]),
        ("len = 30", ["no match", "no match", "match", "no match"]),
    ] {
        let args = ["run", expression, "--read", path.to_str().unwrap(), "--format", "json"];
        let rows = json(&filter(&args));
        for (row, expected) in rows.iter().zip(expected) {
            assert_eq!(row["verdict"], expected, "{expression}: {row}");
            let link = row["not_run"].as_str().map(|why| why.contains("of link type 2"));
            assert_eq!(link, (expected == "not run").then_some(true), "{expression}: {row}");
        }
        let not_run = expected.iter().filter(|verdict| **verdict == "not run").count();
        assert_eq!(rows[4]["not_run"], not_run);
    }
}

#[test]
fn protochain_goes_from_header_to_header() {
    if !libpcap() {
        return;
    }
    let ethernet = [&frames()[0][..12], &[0x86, 0xdd], &behind_extension_headers()[..]].concat();
    let file = pcap(&[frames()[1].clone(), ethernet]);
    for engine in ["interp", "libpcap"] {
        for (expression, expected) in [
            ("ip6 protochain 58", vec![2]),
            ("ip6 proto 58", vec![]),
            ("protochain 17 or ip6 protochain 60", vec![1, 2]),
            ("ip6 protochain 6", vec![]),
        ] {
            assert_eq!(matching(&file, expression, engine), expected, "{expression} {engine}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "chain.pcap", file);
    let args = ["run", "ip6 protochain 58", "--read", path.to_str().unwrap(), "--format", "json"];
    let steps = json(&filter(&[&args[..], &["--step", "2"]].concat()));
    let pcs: Vec<u64> = steps.iter().filter_map(|row| row["pc"].as_u64()).collect();
    assert!(pcs.windows(2).any(|pair| pair[1] < pair[0]), "no jump backward: {pcs:?}");
    assert_eq!(steps.last().unwrap()["verdict"], "match");
    // The kernel takes no loops.
    let kernel = output(&[&["filter"], &args[..], &["--engine", "kernel"]].concat());
    assert_eq!(kernel.status.code(), Some(4), "{}", stderr(&kernel));
    assert!(stderr(&kernel).contains("jumps backward"), "{}", stderr(&kernel));
}
