// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual page says of `tc-egress`.

use super::{EVENT_FIELDS, FIELDS};
use crate::commands::lapses::{LAPSED_BYTES, LAPSED_PACKETS, LAPSED_S};
use crate::commands::man::Manual;
use crate::commands::unseen::{UNSEEN, UNSEEN_BYTES, UNSEEN_PACKETS};
use crate::output::Field;

pub(crate) const MANUAL: Manual = Manual {
    command: "tc-egress",
    examples: &[
        (
            "bpftk tc-egress enp0s1 --exclude 192.168.0.0/16",
            "Each second, who this machine sends packets to, but for its own network.",
        ),
        (
            "bpftk tc-egress enp0s1 --exclude-private --by net/24,net6/48 --top 10 -i 10s",
            "The ten networks that most goes to.",
        ),
        (
            "bpftk tc-egress enp0s1 'udp or icmp' --by dst,proto,port",
            "What goes where without TCP.",
        ),
        (
            "bpftk tc-egress enp0s1 --by dst,process",
            "Which process sends what where, and how much of it is known.",
        ),
        (
            "bpftk tc-egress enp0s1 --by dst,port,process --names",
            "The same, with what the destinations are called.",
        ),
        (
            "bpftk tc-egress enp0s1 -d 24h --names --suggest allowed",
            "A day's destinations as a list of what to allow, with names and programs as comments.",
        ),
        (
            "bpftk tc-egress enp0s1 --allow-only allowed --dry-run --by dst,process",
            "What that list would stop, and whose it is.",
        ),
        (
            "bpftk tc-egress enp0s1 --allow-only allowed --format json -o /var/log/egress.json",
            "Stops everything else, and keeps a line for each flow and each refused call.",
        ),
        (
            "bpftk tc-egress enp0s1 --block 198.51.100.0/24,2001:db8:bad::/48 --block-match 'udp port 443'",
            "Stops two networks, and QUIC.",
        ),
        ("bpftk tc-egress wg0 --events", "A line for each new flow through a tunnel."),
        (
            "bpftk tc-egress enp0s1 --direction ingress --only 203.0.113.0/24 --format json",
            "What comes from a network, for a program.",
        ),
    ],
    columns: &[
        (
            "DESTINATION, SOURCE",
            "Where packets go; with --direction ingress, where they come from. An address, or with --by net/N its network. other is what is beyond --top, had no room in the kernel's table, or was silent for so long that it was forgotten; malformed, what says that it is IP and isn't; not-ip, ARP and the like; excluded, what --exclude and its like leave out; unseen, what left without passing tc.",
        ),
        ("ROW", "Where rows have no address and no protocol: key, or one of the names above."),
        (
            "PROTO",
            "With --by proto: the protocol that IP carries, unknown where that can't be told.",
        ),
        (
            "PORT",
            "With --by port: the port that packets go to (at ingress: come from); none for protocols without ports, and for fragments behind the first.",
        ),
        (
            "NAME",
            "With --by name, in front: the most likely name of where packets go; the address, if it has none. A name's row is of all its addresses.",
        ),
        (
            "VERDICT",
            "With --block and its like: pass; drop, packets that were dropped; refuse, calls of processes that got EPERM. With --dry-run would-drop and would-refuse: they went on.",
        ),
        ("RULE", "What decided: see MECHANISM. None where no rule says anything."),
        ("PACKETS BYTES", "Of the interval; in the last table, of the whole run."),
        ("TOTAL, TOTAL BYTES", "Since the beginning."),
        (
            "CALLS",
            "With --block and its like: calls that were refused, since the beginning; they are no packets.",
        ),
        (
            "PROCESS",
            "With --by process: name and id of the process that owns the packet's socket; kernel for what no process sent; forwarded for what came in through another interface, or from another network namespace; unknown.",
        ),
        ("USER CGROUP", "With --by user and --by cgroup: those of the process."),
        (
            "BY NAME",
            "With --names: the names that the address may be meant by, the most likely first, and what says each: dns, an answer to a question for the name; sni, the server name of a TLS client; host, the host of an HTTP client.",
        ),
        (
            "IFACE PROTO SADDR SPORT DADDR DPORT",
            "With --events: what the first packet of the flow was, or with --all-packets each. A call that is refused has no source yet. PROCESS is there wherever owners can be found, VERDICT and RULE with --block and its like.",
        ),
    ],
    fields: &[
        ("Fields of JSON lines of type row, and of CSV", FIELDS),
        (
            "Fields of JSON lines of type event, with --events, and with --block and its like",
            EVENT_FIELDS,
        ),
        ("Fields of the JSON line of type summary", SUMMARY),
    ],
    mechanism: &[
        "A program at tc's hook of the interface counts each packet, and changes nothing: unless it is blocked, the packet goes on to the next program. IPv4 and IPv6 with every protocol, VLAN tags (802.1Q, QinQ, up to four in the packet), up to eight extension headers and fragments are understood. On an interface without Ethernet headers (tun, WireGuard, PPP) a packet begins with its IP header. What has no IP header is counted as not-ip.",
        "In every table, the rows add up to the packets that were looked at, those that were excluded included; the summary says so, and would say if they did not (unaccounted). Counts are kept in two generations: programs write to one of them; at the end of an interval they are told to write to the other, bpftk waits until no program can be writing to the first any more, reads it and empties it. So nothing is lost between reading and deleting. What has no room in a table of --max-entries is counted as other, by cause. Where keys have no process, each processor has up to 512 recent keys beside the table, which is asked only for what is not among them: once for a train of packets to one destination, and not at all while a processor's destinations are few.",
        "Packets and bytes are those on the wire: what the kernel handles as one large packet (GSO, GRO) is counted as its segments, with the headers of each. Where a virtual machine sends large packets, the number is computed from their length, and may be one too many where the last segment is nearly full. At ingress the kernel does not keep the length of the headers that GRO took away, so bytes are a little too few there. A VLAN tag counts, whether it is in the packet or the interface inserts it.",
        "--exclude, --exclude-file, --exclude-private and --only together make one set of addresses, in which one look-up is made for each packet. Of an address that several of them name, --only gives way. What is excluded is only counted, in one row. At ingress the source address counts.",
        PRIVATE,
        "--by process, user and cgroup: the kernel counts by socket, and bpftk finds out whose a socket is, from where processes make sockets (a program at the root of cgroup v2), from where they send (a tracepoint since Linux 6.3, else fentry or kprobes), and from the open files of all processes. What is learned later is used for what was counted before. A process is its id and its start time, so that an id that is used again never stands for two. What this machine lacks for it is told at the start, with what is lost by that; the last line says what share of the packets was attributed.",
        "--names: programs at the root of cgroup v2 copy what sockets ask of port 53 and are answered (UDP and TCP, IPv4 and IPv6, stub resolvers on the loopback included), and how connections begin that sockets open with TLS or HTTP/1, in any network namespace. An address is called by the question whose answer, through its CNAMEs or by the hints of an HTTPS record, led to it, for as long as the answer may be kept, ten minutes at the least and a day at the most; and by the names that TLS and HTTP clients asked it for, for an hour, with --by port only those at that port. An answer counts once, and only if the same socket had asked just this question of port 53, by number, name, type and class, within the last 30 seconds; questions that address translation sends to another port (Docker's resolver in a container) are not seen, so their answers name nothing. Names are of the network namespace in which they were asked for; packets may come from others (containers), so the names of those come last, but never of one that belongs to another user namespace, which any user can make. With --by process, names that the same process asked for come first. Beside rules (--block and its like), and in --suggest, stands no name that a program could have made up: only what a resolver of /etc/resolv.conf, /run/systemd/resolve/resolv.conf or /run/NetworkManager/no-stub-resolv.conf answered in the network namespace of the interfaces. There is never a reverse look-up. What is asked over TLS or HTTPS, or of a resolver by other means than DNS, can't be seen, nor can QUIC's server names, and packets that this machine only passes on are named by answers that it saw itself. A name that is known only later is shown in the next table; rows of --events have what is known when the packet leaves.",
        "--block, --block-file, --block-match and --allow-only are rules for packets that leave. They are asked in this order: block, of --block (with the network, where it is told) and --block-file; match and the expression, of --block-match; then, if there is an allow list, allow-only, what it has; what stays open beside it (see below); and default, all the rest, with what can't be understood. An address blocks in both of its forms, IPv4 and v4-mapped. Later fragments have no ports, so no port keeps them open.",
        "What a machine needs to stay one of its network stays open beside an allow list, and no more than that. dns: port 53, UDP and TCP, to the resolvers in force: those of /etc/resolv.conf, of /run/systemd/resolve/resolv.conf and of /run/NetworkManager/no-stub-resolv.conf, and those of --resolver. Other resolvers on the loopback (dnsmasq, unbound) ask servers that bpftk does not know of: name these with --resolver, and likewise the resolvers of containers and other machines whose packets are forwarded. dhcp: UDP to port 67 at the broadcast address, 169.254.0.0/16 and the server of the interface's lease, and to port 547 at ff02::1:2 and fe80::/10. The lease's server is found where systemd-networkd and dhclient keep it; other clients (NetworkManager's own, dhcpcd) renew at their server in vain, and then by broadcast, as they do when it is gone. What a DHCP server answers is not open: its clients belong into the list. neighbours: neighbour discovery (ICMPv6 133 to 137) with hop limit 255 to link-local addresses, multicast, and networks that a route has on the link without a router; MLD and IGMP with hop limit 1 to multicast. link: ARP, and EAPOL, which keeps a link that needs it. ssh: TCP from the port of the SSH connection that bpftk is run from, to its far end. --closed dns,dhcp,arp,nd,ssh closes any of them, --strict all. Resolvers and leases are read again when the lists are.",
        "What is blocked is stopped twice. Programs on the root of cgroup v2 (connect and sendmsg, IPv4 and IPv6) have connect(2), sendto(2) and sendmsg(2) fail with EPERM, Fast Open included. The program at tc drops what doesn't ask: raw and packet sockets, sockets that were connected before, forwarded packets, and everything if these programs are not to be had. They are not asked about expressions, and know no interface: so they refuse a call only in the network namespace of the interfaces, and only for addresses that the routes of every table send through these interfaces alone (a socket that is bound to one of them counts in any case). Changes of routes are followed at each interval. Where policy routing, a bridge or a bond is in the way, packets are dropped without a word to their sender. Connections that are there when a rule begins end by losing their packets.",
        "Before anything is attached, the rules are asked what they would do to the SSH connection that bpftk is run from, to ARP, to neighbour discovery, and, without an allow list, to everything; if they would stop it, bpftk ends with status 2, unless --strict or --dry-run, or --closed has it. SIGHUP reads the files of --block-file and --allow-only again, beside everything else; how many entries there are is told each time. If one is wrong, or empty (but for --block-file with --allow-empty), all rules stay as they were. --exclude does not hide what is blocked. What the expression behind the interfaces does not match is neither looked at nor blocked.",
        "--suggest FILE: at the end, FILE is replaced by a list that --allow-only takes: each destination that packets went to (with --by net/N its network), and as comments its names (with --names), the programs that sent there, and how many packets. What was blocked is a comment. What --exclude left out is not in it, which the list says.",
        "JSON lines of type event are an audit log: one for each flow and decision, and one for each socket whose call is refused. seq counts them, those that were lost included, so that a gap shows; lost says how many that are so far. With --block and its like there are at most 10 lines a second of one flow (--audit-rate), whatever its source port, and 1000 of one user, so that nobody who is blocked can fill the log with that; left_out says in the next line of the flow how many there were, and the summary how many in all. With --block and its like they are there beside the rows, without --events too. What is blocked without being of a flow (ARP with --closed arp, what can't be understood) has no line, and is counted in the rows.",
        "With --block and its like, an output that can't be written (a full disk, a limit of the file's size) ends nothing: it is told once, lines that are not written are counted (unwritten in the summary), the rest goes on, and bpftk ends with status 1 in the end. Only a closed pipe ends it. Without rules, bpftk only prints, and ends with status 1 at once.",
        "A bpftk that is stopped (SIGSTOP, a frozen cgroup) has no heartbeat: 4 seconds later its clsact filter blocks nothing, but counts on. What would have been blocked then has the rule lapsed; for how long it was and how many packets passed is told when it beats again, and at the end. While a machine is suspended that time stands still. Links, and refused calls, need no heartbeat. --fail-closed takes clsact and no heartbeat: the filter blocks until the run ends in order, whatever becomes of bpftk. The risk: after a crash or kill -9 the machine stays cut off from what is blocked, with an allow list from nearly everything, until `bpftk doctor --cleanup`, a reboot, or another start with --fail-closed, which puts its own filter in force first.",
        UNSEEN,
        "--by name: rows are of names, the most likely one of each address, whatever its other names are.",
        "--events prints the first packet of each flow: the same addresses, ports and protocol. 65536 flows are remembered, and the longest unseen makes room for a new one; a flow that was forgotten so is printed again with its next packet. A row that did not fit in the ring buffer is counted as lost, and the next packet of the flow is printed instead.",
        "A key that nothing is sent to for ten minutes is forgotten, and so is the longest silent one if there are more than a million: its counts go on as a part of other.",
        "tcx: links, since Linux 6.6; the kernel removes them when bpftk ends, however it ends. clsact: filters of that qdisc, under a handle of bpftk's own; the qdisc is made if there is none, and if it was a bpftk that made it, the last bpftk on the interface removes it, unless somebody else has a filter there. Its priority is the first or the last; where filters of another kind have that, the next one, and it is told. A filter outlives a bpftk that is killed, but blocks nothing any more 4 seconds later, since it needs a heartbeat; the next start of tc-egress or tc-drop at the interface removes it, and tells, and so does `bpftk doctor --cleanup`. Only what no process has open is removed. -v says which it is, --backend insists on one. bpftk stands before the programs of others, and so counts what they drop, too, unless --last. Behind a program that accepts a packet for good (TC_ACT_OK), it does not see it.",
        "With several interfaces, a packet that goes through two of them (a VLAN device and what it is on, a bridge and its port) is counted twice. Whether the programs still are attached is looked at whenever an interface, a qdisc or a filter changes, and once a second. If somebody else has taken one away (tc qdisc del dev IFACE clsact, bpftool link detach), that is told at once, and --follow attaches it again; otherwise bpftk ends with its account and status 1. An interface that goes away, or moves to another network namespace, takes nothing of bpftk along: that is told, and --follow attaches again when it, or a new one of its name, is there. When all are gone, and without --follow, bpftk ends with status 1. One that is renamed goes on under its new name.",
    ],
    overhead: &[
        "--block and its like: a look-up for each set of addresses and the expressions, for each packet; a call of a process costs one or two look-ups.",
        "A packet costs the program's time, some tens of nanoseconds; `make bench` prints it. An interval costs bpftk reading what was counted in it. With --all-packets, each packet is handed to bpftk by itself.",
        "--names: a program for each packet that a local socket sends or receives; it reads headers, and copies a few packets.",
        "Memory in the kernel: two tables of --max-entries keys, each some 100 bytes: 13 MiB by default; 48 KiB for each processor, for recent keys; a ring buffer of 1 MiB. In bpftk, some 1200 bytes for each key while a table of it is made: 76 MB for 65000 keys.",
    ],
    exit_status: &[],
};

// The blocks are those of src/net/special.rs: a test compares.
const PRIVATE: &str = "--exclude-private leaves out what is not globally reachable by IANA's special-purpose address registries of October 2025: 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, 192.88.99.2/32, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 240.0.0.0/4, ::/128, ::1/128, ::ffff:0:0/96, 64:ff9b:1::/48, 100::/64, 100:0:0:1::/64, 2001::/23, 2001:2::/48, 2001:db8::/32, 3fff::/20, 5f00::/16, fc00::/7, fe80::/10; but not, within these, 192.0.0.9/32, 192.0.0.10/32, 2001::/32, 2001:1::1/128, 2001:1::2/128, 2001:1::3/128, 2001:3::/32, 2001:4:112::/48, 2001:10::/28, 2001:20::/28, 2001:30::/28. Multicast is in neither registry, and is shown.";

const SUMMARY: &[Field] = &[
    Field::new("command", "tc-egress"),
    Field::new("backend", "tcx or clsact"),
    Field::new("direction", "egress or ingress"),
    Field::new("packets", "packets that were looked at"),
    Field::new("bytes", "their bytes"),
    Field::new("counted_packets", "of these, counted by key, or as other"),
    Field::new("excluded_packets", "of these, excluded"),
    Field::new("not_ip_packets", "of these, not IP"),
    Field::new("malformed_packets", "of these, malformed"),
    Field::new("dry_run", "with --block and its like: whether all went on; else null"),
    Field::new("blocked_packets", "likewise: packets that were dropped, or would have been"),
    Field::new("blocked_bytes", "likewise: their bytes"),
    Field::new("refused_calls", "likewise: calls that were refused, or would have been"),
    Field::new(
        "refused_options",
        "likewise: socket options for a way past tc that processes did not get",
    ),
    Field::new("unmatched_packets", "packets that the expression did not match: not looked at"),
    Field::new("no_room_full", "packets counted as other, since the kernel's table was full"),
    Field::new("no_room_busy", "since the table was locked"),
    Field::new("no_room_memory", "since the kernel had no memory for them"),
    Field::new("no_room_refused", "since the kernel would not store them for another reason"),
    Field::new("unaccounted", "packets less the sum of their rows: 0"),
    Field::new(
        "process_packets",
        "by process, user or cgroup: packets counted by key whose process is known; else null",
    ),
    Field::new("kernel_packets", "likewise, that no process sent"),
    Field::new("forwarded_packets", "likewise, that came from elsewhere"),
    Field::new("unknown_packets", "likewise, of sockets that nothing told of"),
    Field::new("events", "rows of --events"),
    Field::new("lost", "rows of --events missing, all causes together"),
    Field::new("lost_ring_full", "because the reader was too slow for the ring buffer"),
    UNSEEN_PACKETS,
    UNSEEN_BYTES,
    LAPSED_S,
    LAPSED_PACKETS,
    LAPSED_BYTES,
    Field::new(
        "lost_names",
        "with --names: pieces of answers and connections that were not heard: names may be missing, no packets; else null",
    ),
    Field::new("left_out", "rows of flows that --audit-rate left out"),
    Field::new("unwritten", "lines that could not be written"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::special::{REGISTRY, Reach};

    /// The page names the blocks that the code uses.
    #[test]
    fn the_page_lists_the_registries() {
        let (inside, outside) = PRIVATE.split_once("but not, within these,").unwrap();
        let named = |text: &str, block: &str| {
            text.split([' ', ',', ';']).any(|word| word.trim_end_matches('.') == block)
        };
        let parse = |block: &str| block.parse::<ipnet::IpNet>().unwrap();
        for (block, _, reach) in REGISTRY {
            let within = REGISTRY.iter().any(|(outer, _, reach)| {
                *reach == Reach::NotGlobal && outer != block && parse(outer).contains(&parse(block))
            });
            assert_eq!(named(inside, block), *reach == Reach::NotGlobal, "{block}");
            assert_eq!(named(outside, block), *reach != Reach::NotGlobal && within, "{block}");
        }
    }
}
