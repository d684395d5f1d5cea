// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual pages say of `xdp-drop` and `tc-drop`.

use super::{FIELDS, SAMPLE_FIELDS};
use crate::commands::lapses::{LAPSED_BYTES, LAPSED_PACKETS, LAPSED_S};
use crate::commands::man::Manual;
use crate::commands::unseen::{UNSEEN, UNSEEN_BYTES, UNSEEN_PACKETS};
use crate::output::Field;

const COLUMNS: &[(&str, &str)] = &[
    ("IFACE DIRECTION", "Where, if there are several interfaces or both directions."),
    (
        "RULE",
        "The rule; passed for what none matched, or was within its rate; excepted for what --except kept from being dropped; malformed for IP packets whose headers can't be followed, which pass as well; lapsed for what a rule matched while the heartbeat of a clsact filter had lapsed, so that it passed; unseen for what left without passing tc.",
    ),
    (
        "PROTO",
        "The protocols that the rule is for, or any. With --by proto, the protocol of what is dropped; none for what isn't IP.",
    ),
    (
        "SADDR",
        "With --by src: where what is dropped comes from; other for what the table had no room for.",
    ),
    ("CPU", "With --by cpu: the processor that dropped it."),
    (
        "PKT/S BYTE/S",
        "Packets and bytes a second, of the last interval; in the last table, of the whole run.",
    ),
    ("PACKETS BYTES", "Packets and bytes since the beginning."),
    ("TREND", "On a terminal: packets of the last minute, the newest on the right."),
];

const RULES: &str = "--proto, --src, --dst, --sport and --dport make one rule together: a packet is dropped if all of them match. --blocklist is a rule of its own, tried first. VLAN tags (802.1Q, QinQ, up to four in the packet) are seen through, and so are up to eight extension headers of IPv6. Ports are never read from a fragment behind the first, which has none: it matches no rule with ports. Without any rule, ICMP is dropped, and ICMPv6 but for neighbour discovery.";

const EXPRESSIONS: &str = "A tcpdump expression behind the interfaces, and each --match, is a rule of its own, tried after the others in the order given. What an --except matches is not dropped by any rule, and is counted as excepted whether a rule matched it or not. Expressions are compiled by libpcap and translated to eBPF (see bpftk-filter(1)); names are not looked up. As with tcpdump, `vlan` is needed to look behind a tag, and ports behind extension headers of IPv6 are not found: --dport and the like find them.";

const BLOCKLIST: &str = "--blocklist takes a file with one address or CIDR a line, IPv4 and IPv6; # and ; begin comments. Entries may repeat and overlap. It becomes one table in the kernel, in which a look-up takes two steps for IPv4, and one for each level of a tree of 17 branches for IPv6 and for short lists. A million entries load in about a second. SIGHUP reads the file again, beside everything else, and replaces the table in one step: no packet sees half of it. How many entries there are is told each time. A file with an error is told of, and the old list stays; so is an empty one, which at the start is wrong usage, unless --allow-empty.";

const SAFETY: &str = "Before anything is attached, the loaded rules are asked about packets of the SSH connection that bpftk was started from (found in the environment of bpftk or of the processes that started it), ARP, neighbour discovery, and about packets that have nothing in common. What would drop those is refused, unless --yes-lock-me-out. With several interfaces, it begins when all are attached, or at none. --duration is kept by the kernel: the programs stop dropping at that time even if bpftk hangs.";

const RATE: &str = "--rate N/s: each rule lets N packets a second through, and a tenth of a second's worth at once; they are counted as passed. Several interfaces share it.";

type Examples = &'static [(&'static str, &'static str)];

/// What both pages have, with what only one of them has to say.
const fn page(
    command: &'static str,
    examples: Examples,
    mechanism: &'static [&'static str],
) -> Manual {
    Manual {
        command,
        examples,
        columns: COLUMNS,
        fields: FIELDS_OF_ROWS,
        mechanism,
        overhead: OVERHEAD,
        exit_status: &[],
    }
}

macro_rules! mechanism {
    ($($own:expr),* $(,)?) => { &[RULES, EXPRESSIONS, BLOCKLIST, RATE, SAFETY, OUTPUT, $($own),*] };
}

pub(crate) const XDP_MANUAL: Manual = page(
    "xdp-drop",
    &[
        ("bpftk xdp-drop eth0", "Drop ICMP, and show how much of it comes."),
        (
            "bpftk xdp-drop eth0 --proto udp --sport 53,123 --rate 1000/s",
            "Reflected DNS and NTP, beyond a thousand a second.",
        ),
        (
            "bpftk xdp-drop eth0 eth1 --blocklist bad.txt -d 1h",
            "A block list on two interfaces, for an hour.",
        ),
        (
            "bpftk xdp-drop eth0 --src 198.51.100.0/24 --dry-run --by proto",
            "What would be dropped, by protocol.",
        ),
        (
            "bpftk xdp-drop eth0 --proto tcp --dport 23 --sample 100",
            "One of every hundred dropped packets.",
        ),
    ],
    mechanism![
        "The program is attached by a link, which the kernel removes when bpftk ends, however it ends. Native mode (in the driver) is tried first, then generic mode (behind it); which one it is, and why, is printed. Virtual devices (veth, bridge and the like) get generic mode: native XDP on veth turns segmentation offload off, which makes TCP between containers several times slower. --mode insists. Programs say that they can do with packets in several buffers where the kernel knows that (Linux 5.18), so that a large MTU is no obstacle.",
        "A program of somebody else on the interface is named, and stays; bpftk ends. Packets that are dropped here are seen by no capture and no packet filter of this machine. An interface that hands VLAN tags over beside the packet is no matter: only what the packet carries is looked at.",
        "An interface that goes away, or moves to another network namespace, takes nothing of bpftk along: that is told, and --follow attaches again to a new one of the same name, or when it comes back. When all are gone, and without --follow, bpftk ends with status 1. Whether the program still is attached is looked at whenever something changes at an interface, and once a second: if somebody else has detached it, that is told at once, and --follow attaches it again; otherwise bpftk ends with its account and status 1. An interface that is renamed goes on under its new name.",
    ],
);

pub(crate) const TC_MANUAL: Manual = page(
    "tc-drop",
    &[
        ("bpftk tc-drop eth0", "Drop ICMP that comes in."),
        (
            "bpftk tc-drop eth0 --direction egress --proto tcp --dport 25",
            "No mail leaves this machine.",
        ),
        (
            "bpftk tc-drop eth0 --direction both --blocklist bad.txt",
            "Nothing from these addresses, and nothing to them.",
        ),
        ("bpftk tc-drop wg0 --src 10.9.0.0/16", "An interface without Ethernet headers."),
    ],
    mechanism![
        "tcx: links, since Linux 6.6; the kernel removes them when bpftk ends, however it ends. clsact: filters of that qdisc, under a handle of bpftk's own; the qdisc is made if there is none, and if it was a bpftk that made it, the last bpftk on the interface removes it, unless somebody else has a filter there. Its priority is the first or the last; where filters of another kind have that, the next one, and it is told. Names of filters in such a qdisc end in +clsact. A filter outlives a bpftk that is killed, but drops nothing any more 4 seconds later, since it needs a heartbeat; the next start of tc-drop or tc-egress at the interface removes it, and tells, and so does `bpftk doctor --cleanup`. Only what no process has open is removed. -v says which it is, --backend insists on one.",
        "A bpftk that is stopped (SIGSTOP, a frozen cgroup) has no heartbeat either: after 4 seconds its clsact filter lets everything pass. What rules match then is counted as lapsed; for how long it was and how many packets passed is told when it beats again, and at the end. While a machine is suspended that time stands still. --fail-closed takes clsact and no heartbeat: the filter drops until the run ends in order, whatever becomes of bpftk. The risk: after a crash or kill -9 what the rules match stays cut off, across logins and for whoever has no other way to the machine, until `bpftk doctor --cleanup`, a reboot, or another start with --fail-closed, which puts its own filter in force first.",
        "The programs of others stay where they are, and bpftk's stands before them (--first) or behind (--last). What passes goes on to the next one. tcx programs run before filters. Behind a program that accepts a packet for good (TC_ACT_OK), bpftk does not see it.",
        UNSEEN,
        "Whether the programs still are attached is looked at whenever an interface, a qdisc or a filter changes, and once a second. If somebody else has taken one away (tc qdisc del dev IFACE clsact, bpftool link detach), that is told at once, and --follow attaches it again; otherwise bpftk ends with its account and status 1. An interface that goes away, or moves to another network namespace, takes nothing of bpftk along; --follow attaches again when it, or a new one of its name, is there. One that is renamed goes on under its new name.",
        "Packets and bytes are those on the wire: what the kernel handles as one large packet (GSO, GRO) is counted as its segments. At ingress the kernel does not keep the length of the headers that GRO took away, so bytes are a little too few there.",
    ],
);

const OUTPUT: &str = "An output that can't be written (a full disk, a limit of the file's size) ends nothing: it is told once, lines that are not written are counted (unwritten in the summary), and bpftk ends with status 1 in the end. A closed pipe ends it.";

const OVERHEAD: &[&str] = &[
    "A packet costs the program's time: some tens of nanoseconds; a block list adds two or three look-ups that may miss the cache. `make bench` prints look-up times beside the kernel's own trie.",
    "Memory in the kernel: counters for each processor, a ring buffer of 1 MiB, and the block list: for more than some 2000 separate ranges of IPv4 8 MiB and 32 bytes for each network of 24 bits that is listed in part; for IPv6 34 bytes a range. -v tells. Replacing it takes as much again for a moment.",
];

const FIELDS_OF_ROWS: &[(&str, &[Field])] = &[
    ("Fields of JSON lines of type row, and of CSV", FIELDS),
    ("Fields of JSON lines of type event, with --sample", SAMPLE_FIELDS),
    ("Fields of the JSON line of type summary", SUMMARY),
];

const SUMMARY: &[Field] = &[
    Field::new("command", "xdp-drop or tc-drop"),
    Field::new("backend", "xdp, tcx or clsact"),
    Field::new("dry_run", "true: nothing was dropped"),
    Field::new("dropped_packets", "packets that rules matched, beyond their rate"),
    Field::new("dropped_bytes", "their bytes"),
    Field::new("passed_packets", "packets that no rule matched, or that were within its rate"),
    Field::new("passed_bytes", "their bytes"),
    Field::new("excepted_packets", "packets that --except kept from being dropped, or would have"),
    Field::new("malformed_packets", "packets whose headers could not be followed; they passed too"),
    UNSEEN_PACKETS,
    UNSEEN_BYTES,
    LAPSED_S,
    LAPSED_PACKETS,
    LAPSED_BYTES,
    Field::new("lost", "rows of --sample missing, all causes together"),
    Field::new("lost_ring_full", "because the reader was too slow for the ring buffer"),
    Field::new("unwritten", "lines that could not be written"),
];
