// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual page says of `filter`.

use super::{capture, check, mechanism, run, steps};
use crate::commands::man::Manual;

pub(crate) const MANUAL: Manual = Manual {
    command: "filter",
    examples: &[
        ("bpftk filter capture eth0 arp", "Only ARP, a line each."),
        (
            "bpftk filter capture eth0 'tcp[tcpflags] & tcp-syn != 0' -n 10 -w syn.pcap",
            "Ten connection attempts, for tcpdump or Wireshark to read.",
        ),
        ("bpftk filter compile tcp port 80", "The expression as assembly, to read and to change."),
        (
            "bpftk filter compile tcp port 80 --emit ebpf --hook tc",
            "What runs of it at tc, as bpftool would print it.",
        ),
        ("tcpdump -ddd -y EN10MB udp | bpftk filter disasm -", "What somebody's numbers mean."),
        (
            "bpftk filter asm arp.asm --emit c > arp.h",
            "An array of struct sock_filter for SO_ATTACH_FILTER.",
        ),
        (
            "bpftk filter disasm --ebpf insns.c | bpftk filter asm --ebpf - --emit ebpf-c",
            "eBPF to its mnemonics, and back to the same bytes.",
        ),
        (
            "bpftk filter run 'vlan and tcp port 443' --read trace.pcapng --engine all",
            "Whether every engine agrees on each packet of a file.",
        ),
        (
            "bpftk filter run --asm arp.asm --read trace.pcap --step 7",
            "Each instruction on the seventh packet, with the registers before it.",
        ),
        (
            "bpftk filter run 'ip6 protochain 58' --read any.pcap",
            "ICMPv6 behind any extension headers, in what tcpdump -i any wrote.",
        ),
        ("bpftk filter check udp port 53", "Whether it runs at every hook of this kernel."),
    ],
    columns: &[
        ("TIME", "Of capture: local time at which the kernel had the packet."),
        ("PROTO", "Protocol: tcp, udp, icmp, arp and so on, or its number."),
        ("LEN", "Bytes on the wire, a VLAN tag included."),
        (
            "SADDR DADDR",
            "Addresses; of ARP the sender's and the target's. Of capture: hardware addresses where the packet has no others.",
        ),
        ("SPORT DPORT", "Ports; a dash where there are none, as in all but the first fragment."),
        ("VLAN", "VLAN ids, the outer first."),
        ("INFO", "ARP operation; TCP flags by S, F, R, P, A, U, E and C; ICMP type and code."),
        ("PACKET", "Of run: number of the packet in the file."),
        (
            "VERDICT",
            "match or no match; differ, where engines do not agree; not run, where none could be given the packet.",
        ),
        (
            "INTERP LIBPCAP KERNEL XDP TC",
            "With --engine all: what each engine says. not run: the engine can't run this filter, the kernel does not run this hook's programs on such a packet, or the file has it cut short.",
        ),
        (
            "INSTRUCTION A X M",
            "With --step: an instruction, and the registers and used words of M[] before it.",
        ),
        (
            "HOOK STATUS CLASSIC EBPF VERIFIED JITED VERIFIER",
            "Of check: a hook, whether the filter runs there, and figures: instructions of classic BPF, of eBPF, and that the verifier went through, bytes of machine code, time of the verifier.",
        ),
    ],
    fields: &[
        ("Fields of JSON lines of type event, and of CSV, of capture", capture::FIELDS),
        ("Fields of the JSON line of type summary of capture", capture::SUMMARY),
        ("Fields of JSON lines of type event, and of CSV, of run", run::FIELDS),
        ("Fields of the JSON line of type summary of run", run::SUMMARY),
        ("Fields of JSON lines of type event, and of CSV, of run --step", steps::FIELDS),
        ("Fields of the JSON line of type summary of run --step", steps::SUMMARY),
        ("Fields of JSON lines of type row, and of CSV, of check", check::FIELDS),
        ("Fields of the JSON line of type summary of check", check::SUMMARY),
    ],
    mechanism: &[
        "libpcap compiles an expression to classic BPF, as for tcpdump: for Ethernet or raw IP, with the netmask unknown (so `ip broadcast` is an error). libpcap looks up names while it compiles, and no option stops it. So bpftk reads the expression first, by libpcap's own rules, and refuses a name that libpcap would look up as a host, a network or an Ethernet address; --resolve lets libpcap ask. Names of ports and protocols come from /etc/services and /etc/protocols.",
        "libpcap 1.9 or newer is loaded when an expression is to be compiled; nothing else of bpftk needs it. A statically linked bpftk (`make static`) has libpcap's compiler inside, and can't look up hosts.",
        "asm and disasm read and write the syntax of the kernel's bpf_asm: labels, `;` and /* */ comments, extensions such as #vlan_tci; and what tcpdump -dd and -ddd print. A program that Linux would not take is refused with the instruction and the reason. What is disassembled assembles to the same bytes; what the syntax cannot say (a value in a field that the instruction does not use) is refused, not left out. --ebpf reads and writes eBPF in the mnemonics of ubpf and bpf_conformance, with map_fd(N), map_value(N, OFFSET), btf_id(N) and the like for the values of lddw that they have no words for. As in bpf_conformance, a jump to exit goes to the first exit where the text has no label of that name, and call %r2 is callx %r2.",
        "capture is a packet socket. It gets its filter before it is bound to the interface, so that no packet is queued that the filter does not let through. The kernel takes a packet's VLAN tag out before the filter sees it: the filter lets every packet with a tag through, and bpftk runs it again on the packet with the tag put back. So `vlan` and `not vlan` mean what they say, and what is captured is what the same expression finds in the file that --write makes. A filter from --asm is attached as it is. On the loopback, what is sent is left out, as every packet would be seen twice. The interface is not set promiscuous without --promiscuous.",
        "run gives each packet of a file to bpftk's interpreter, libpcap's, the kernel's socket filter by a pair of sockets, or the translation for XDP or tc by BPF_PROG_TEST_RUN. The file is pcap or pcapng, of any link type: the expression is compiled for that of each packet, as tcpdump -r does it, cooked captures (LINUX_SLL and LINUX_SLL2, which tcpdump -i any writes) among them. Addresses and ports are shown of Ethernet, raw IP, cooked captures and BSD's loopback. Of a pcapng file with several, a packet of a kind that the filter is not for is not run.",
        "A filter that asks for what no file tells (a mark, a queue), or loads by the place of a header (offsets from -0x200000 to -0x1001, by ld, ldxb or [x + k]: Linux takes the link-layer or network header's start for them, and libpcap takes them for offsets beyond any packet), is refused by run. An engine that can't run a filter is an error when it was asked for alone; with --engine all it is not run, and the field not_run says why: the kernel takes no loops, libpcap has no extensions of Linux such as #xor_x and #nla, XDP and tc have some. BPF_PROG_TEST_RUN takes packets of about one page at tc, and at XDP of as many pages as a packet may have pieces (from Linux 5.18 on; of one page before). A filter that is a loop ends with an error when it goes round more often than the packet has bytes; what libpcap makes of protochain does not.",
        mechanism::TRANSLATION,
        mechanism::WIRE,
        mechanism::PIECES,
        mechanism::RULES,
        mechanism::LOADING,
    ],
    overhead: &[
        "capture: the kernel runs the filter on each packet of the interface, and copies those that it lets through: 4 MiB of them may wait. What finds no room is counted and told at the end.",
        "A translated expression costs a few nanoseconds a packet; `make bench` prints it beside hand-written C and the kernel's own filter.",
        "The other verbs read and write text, and leave nothing in the kernel.",
    ],
    exit_status: &[
        ("1, of run --engine all", "the engines differ on a packet"),
        ("1, of check", "the filter does not run at every hook"),
        (
            "4, of all that take an expression",
            "libpcap is missing: the message says how to install it",
        ),
    ],
};
