// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual page says of `sockredir`.

use super::{FIELDS, preflight};
use crate::commands::man::Manual;
use crate::output::Field;

pub(crate) const MANUAL: Manual = Manual {
    command: "sockredir",
    examples: &[
        (
            "bpftk sockredir --cgroup /sys/fs/cgroup/app",
            "Whatever the programs of this cgroup send each other.",
        ),
        (
            "bpftk sockredir --all --port 5432,6379",
            "Local connections to PostgreSQL and Redis, of any program.",
        ),
        (
            "bpftk sockredir --all --exclude-port 22 --events",
            "A line for each connection as it closes.",
        ),
        (
            "bpftk sockredir --cgroup /sys/fs/cgroup/app --format json | jq 'select(.scope == \"totals\").reasons'",
            "Why what is not redirected is not.",
        ),
        (
            "bpftk sockredir preflight --cgroup /sys/fs/cgroup/app -d 5m",
            "Which programs of this cgroup do what redirection changes, in five minutes of their work.",
        ),
        (
            "bpftk sockredir --all $(bpftk sockredir preflight -d 5m --emit-excludes)",
            "Redirect what was found to be safe.",
        ),
    ],
    columns: &[
        ("CLIENT SERVER", "Who connected, and to whom."),
        (
            "COMM",
            "The tasks that sent last at the client's end and at the server's; a question mark where none has.",
        ),
        (
            "STATE",
            "redirect, tcp with the reason, or idle when nothing was sent yet: one word when both directions are alike, else the direction to the server first; followed by (closed) in the table that is a connection's last.",
        ),
        ("BYTES→ BYTES←", "Sent to the server and to the client since the beginning, both ways."),
        ("MSGS", "Redirected sends, as the kernel cut them."),
        ("TIME", "With --timestamp: local time at which the connection closed."),
        (
            "VERDICT",
            "Of preflight: unsafe when the process did what redirection changes on a local TCP connection, or what can't be looked into; else safe, as far as it was seen.",
        ),
        ("CALLS", "Of preflight: calls on local TCP connections that were looked at."),
        ("WHY", "Of preflight: reasons, each with the number of calls that it was found in."),
    ],
    fields: &[
        ("Fields of JSON lines of type row and event, and of CSV", FIELDS),
        ("Fields of the JSON line of type summary", SUMMARY),
        ("Fields of JSON lines of type row, and of CSV, of preflight", preflight::FIELDS),
        ("Fields of the JSON line of type summary of preflight", preflight::SUMMARY),
        ("Reasons of preflight", preflight::REASONS),
    ],
    mechanism: &[
        "A program at the cgroup's socket operations puts the two ends of a connection into a map of sockets (SOCKHASH) when it is established. A second program sees each message before TCP does (sk_msg), and has the kernel put it into the queue of the socket at the other end.",
        "The ends find each other by addresses, ports and both initial sequence numbers: so equal addresses in two network namespaces are two connections, and one over a veth between two namespaces is one. A client goes into the map only after a listener in scope has seen its request, and a server only if its client is there: sockets of connections to other machines stay what they are.",
        "Each direction is decided by its first byte. It is redirected if nothing of it has entered TCP and the other end is in the map; else it is TCP's for good. A redirected direction may become TCP's later, since a reader takes redirected data first; never the other way round. The verdict is always to pass: bpftk never makes a send fail.",
        "What waits unread in a redirected direction is bounded by --max-queue and --max-messages. The message that would exceed them and all that follow go by TCP, with its flow control: a fast sender to a slow reader ends up there by design.",
        "What waits in all directions together is bounded by --max-memory; each message counts for its bytes and 1 KiB, which is what the kernel takes for it. Beyond that no direction is redirected anew, and a redirected one whose reader is behind is TCP's from its next message on; one whose reader has read everything goes on, so that each may hold one message more. The kernel does not tell what is read: a queue is taken to be empty when the next sender, or bpftk once a second, finds it so, and when its socket is closed or the connection has ended at both ends. (bpftk looks at every queue for each table; without tables, or in between, when more than an eighth of the bound is used.) After SIGKILL nobody looks any more at queues to which nobody sends.",
        "Reasons for TCP: peer-unknown (the other end was not in the map when the first byte was sent: it is out of scope, older than bpftk, or was not established yet), prior-bytes (something was sent before: Fast Open, a thread that waited for the connection, urgent data), backlog (over a limit of its own), memory (over --max-memory, or TCP itself is short of it), not-local (no listener in scope saw the request, and the address is none of the own), filtered (--port, --exclude-port, --comm), map-full, exists (in somebody else's map of sockets, or lent to the kernel), mptcp, kernel (a kernel subsystem's socket), ulp (kernel TLS and the like), reader (a thread waits in a read that it began before there was a connection), refused (by the kernel for another reason), peer-closed, stopped (bpftk ended).",
        "Rows are of the connections whose ends are in the map, and of those that were refused for one of these reasons but not-local and filtered, which are only counted, and map-full where there is no room for the row either. What a refused end sent is what TCP has transmitted, without what it transmitted again; MPTCP may send data of its own twice. In how many sends is not known of it.",
        "At the end, or when bpftk is killed, no new connection is taken, and no entry is removed: with it would go data that nobody has read. Connections that were taken keep the map and the program in the kernel until they close; after an orderly end what they send goes by TCP, after SIGKILL redirection goes on for those that were redirected. The last line says how many there are, and doctor lists the program.",
        "Redirection changes what programs see in these cases, and no BPF program can help it. A blocking read fails with EAGAIN when something else wakes it: a signal (also with SA_RESTART), a reset (the next read says so), another thread that waits to read from or to write to the same socket. MSG_WAITALL and SO_RCVLOWAT return early. splice(2) from the socket finds nothing. MSG_OOB has no urgent data. MSG_ZEROCOPY is never completed. recv with MSG_TRUNC and no buffer fails with EFAULT. Closing with unread data sends a FIN instead of a reset. TCP_INFO, ss and tcpdump don't see redirected bytes, nor do packet filters, traffic control and accounting. At the limit of a memory cgroup a send can fail with ENOMEM instead of waiting; at that of TCP's memory nothing is redirected any more (from one mem_pcpu_rsv a processor below the first of tcp_mem, 1 MiB unless it was set). Kernel TLS can't be used: the kernel refuses the keys, and the direction is TCP's from then on (ulp). Sockets that are in the map and were left to TCP have the first of these, too.",
        "Bytes are counted when their verdict is made: what the kernel could not deliver then, for want of memory or because the other end closed at that moment, is counted all the same.",
        "The kernel gate: mistakes of Linux are known that let redirected connections crash the machine or lose data. bpftk has a table of them with the releases that mended them, for 5.10, 5.15, 6.1, 6.6, 6.12, 6.18 and 7.x, from the kernel's CVE records and changelogs. On a kernel that lacks such a fix sockredir ends with status 4 and names it; so it does where it is not known whether the kernel has it, as when a distribution doesn't tell which stable release its kernel is (Debian does in uname -v, Ubuntu in /proc/version_signature; Red Hat and SUSE do not). What a kernel doesn't have (MPTCP, TLS) can't hurt it, and what sockredir doesn't do can't either: doctor lists these too. --force goes on with a warning.",
        "preflight: one program at the entry of all system calls (the raw tracepoint sys_enter, which works without kprobes and fentry). Linux 7 preempts such programs, and skips them for whoever comes there meanwhile: there a second one looks at what the first was skipped for. On a busy machine a call may escape both: how many may have, at most, is told at the end, and then safe is not certain. It looks into read, readv, preadv2, recvfrom, recvmsg, recvmmsg, write, writev, pwritev2, sendto, sendmsg, sendmmsg, splice, sendfile and getsockopt, and there only if the descriptor is a TCP connection whose other end is of this machine: a loopback address, the socket's own address, or an address of any network namespace that a process is in or that is mounted. What a socket was set to is read from the socket at each use, so it does not matter when it was set. A connection to another machine with an address that a namespace here has as well is taken for local.",
        "preflight can't see: what is done by io_uring (every process that uses it is unsafe) or by Linux AIO; system calls of 32-bit programs; processes that did nothing while it watched. Two threads at one connection are seen when a call begins while the other thread waits: a send is unsafe then if there may be no room for it, and one that tells its length only in memory (writev, sendmsg) whatever its length. A call counts when it begins, whether or not it succeeds. Nothing is lost by a slow reader: all is counted in tables, of 8192 processes and 16384 ports.",
        "preflight --emit-excludes prints --exclude-port with the ports that were listened at among those of the unsafe connections. Where no port is known, or what can't be looked into may use any, it says so and ends with status 1.",
    ],
    overhead: &[
        "Requests and responses take about half the time that they take by TCP, large messages less. Many small messages in one direction on one processor get slower: TCP joins them, redirection wakes the reader for each.",
        "A socket that is in the map and was left to TCP sends slower than without bpftk, by a tenth for small messages and by up to two fifths for large ones on one processor: --port and --cgroup keep out what does not profit.",
        "An entry takes about 400 bytes and the kernel's own about 1 KiB a socket. What waits unread takes about its size, and for small messages about 1 KiB each.",
        "preflight: while it watches, Linux sends every system call of every process through its slow path and runs a short program there, also for those that are not in scope. On a small virtual machine with Linux 6.18 a call of no interest took 0.09 microseconds more (0.14 without), a read of /dev/zero or a write to /dev/null 0.4 more (0.18), a receive from a local connection 1.0 more (0.27), a byte sent and received over one 3.2 more (6.9). Its tables take some 5 MiB. Each second it looks up the addresses and the listening sockets of all network namespaces, a thread for each.",
    ],
    exit_status: &[],
};

const SUMMARY: &[Field] = &[
    Field::new("command", "sockredir"),
    Field::new("clients", "ends that connected, established in scope"),
    Field::new("servers", "ends that accepted, established in scope"),
    Field::new("admitted", "of all ends, those that went into the map"),
    Field::new(
        "redirected",
        "directions (one for each end) that were redirected from their first byte on",
    ),
    Field::new("fell_back", "of these, those that were left to TCP later"),
    Field::new("silent", "ends in the map that closed without having sent"),
    Field::new(
        "reasons",
        "object: directions that were left to TCP, by reason; clients + servers = redirected + silent + open ones that have not sent + these - fell_back",
    ),
    Field::new("redirected_bytes", "bytes redirected"),
    Field::new("redirected_messages", "in how many messages"),
    Field::new(
        "tcp_bytes",
        "bytes that went by TCP, but for those of connections that are not-local or filtered",
    ),
    Field::new(
        "overlaps",
        "packets of TCP that brought bytes a second time, to ends in the map; they were cut off",
    ),
    Field::new(
        "overlaps_kept",
        "of these, packets for which there was no memory to cut them off: their readers got bytes twice",
    ),
    Field::new("high_water", "largest queue of a direction, in bytes"),
    Field::new(
        "waiting",
        "what waits unread at the end in all directions, as --max-memory counts it",
    ),
    Field::new(
        "failed_inserts",
        "ends that the kernel did not take into the map: map-full, exists, refused",
    ),
    Field::new("backend", "sockmap"),
    Field::new("lingering", "connections in the map at the end"),
    Field::new("lingering_redirected", "of these, redirected until the end"),
    Field::new(
        "lost",
        "ends that closed and could not be reported: rows lack them, the totals don't",
    ),
    Field::new("lost_ring_full", "of these, because the ring buffer was full"),
];
