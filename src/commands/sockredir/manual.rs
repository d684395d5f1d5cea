// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual page says of `sockredir`.

use super::{FIELDS, preflight};
use crate::commands::man::{Manual, REMOVED_CGROUP};
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
            "bpftk sockredir --all --learn 5m",
            "The same of all programs, each after it was watched at work for five minutes instead of ten seconds, but for those that do what redirection changes within that time, or later on.",
        ),
        (
            "bpftk sockredir --cgroup /sys/fs/cgroup/app --learn 0",
            "From the first connection on: for programs of which preflight has found nothing.",
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
            "Of preflight: unsafe when the process did what redirection changes on a local TCP connection, or what can't be looked into; caution when it did nothing but wait in reads, which is right unless it is stopped, frozen or traced, or gets signals; else safe, as far as it was seen.",
        ),
        ("CALLS", "Of preflight: calls on local TCP connections that were looked at."),
        ("WHY", "Of preflight: reasons, each with the number of calls that it was found in."),
    ],
    fields: &[
        ("Fields of JSON lines of type row and event, and of CSV", FIELDS),
        ("Fields of the JSON line of type summary", SUMMARY),
        ("What programs see differently of every connection in the map", DIFFERENCES),
        ("Fields of JSON lines of type row, and of CSV, of preflight", preflight::FIELDS),
        ("Fields of the JSON line of type summary of preflight", preflight::SUMMARY),
        ("Reasons of preflight", preflight::REASONS),
    ],
    mechanism: &[
        "A program at the cgroup's socket operations puts the two ends of a connection into a map of sockets (SOCKHASH) when it is established. A second program sees each message before TCP does (sk_msg), and has the kernel put it into the queue of the socket at the other end.",
        "What TCP brings to a socket of the map goes into the same queue, behind what was redirected (a third program, sk_skb): so nothing is overtaken, and edge-triggered readers are woken for all of it. A retransmission that overlaps with what has come before is cut, so that no byte is read twice (overlaps in the summary); where there is no memory to cut it, bpftk warns and counts it (overlaps_kept).",
        "The ends find each other by addresses, ports and both initial sequence numbers: so equal addresses in two network namespaces are two connections, and one over a veth between two namespaces is one. Between namespaces nothing is redirected without --across-namespaces, since packet filters and connection tracking between them would see nothing that is sent, and may forget the connection. A client goes into the map only after a listener in scope has seen its request, and a server only if its client is there: sockets of connections to other machines stay what they are.",
        "Each direction is decided by its first byte. It is redirected if nothing of it has entered TCP and the other end is in the map; else it is TCP's for good. A redirected direction may become TCP's later, since a reader takes redirected data first; never the other way round. The verdict is always to pass: bpftk never makes a send fail.",
        "What waits unread in a redirected direction is bounded by --max-queue and --max-messages. The message that would exceed them and all that follow go by TCP, with its flow control: a fast sender to a slow reader ends up there by design.",
        "What TCP then brings waits as it came: a packet of one byte, which TCP by itself would join to the one before, takes about 0.9 KiB that count for the receive buffer and for tcp_mem (1.3 KiB on Linux 6.1), and a message of 1 KiB that counts for nothing, not even for a memory cgroup (net/core/skmsg.c, sk_psock_skb_ingress_self and alloc_sk_msg). So a connection on which nobody reads, and whose sender sends single bytes with TCP_NODELAY, takes up to about 2.6 times its receive buffer. That is SO_RCVBUF as the kernel doubles it, or else what the kernel lets it grow to, at most the last of net.ipv4.tcp_rmem. Measured: 16 MB of a buffer of 6 MB on Linux 6.12, 36 MB of 14 MB on 7.3; on 6.18 1 MB, since the buffer did not grow, and 31 MB where a reader that read fast before had made it grow. --max-messages and --max-memory do not count it. TCP keeps to the buffer since Linux 6.6 (net/ipv4/tcp_input.c, tcp_data_queue: it closes the window). Before, it minds the buffer only if something is in TCP's own queue, which is always empty here, and takes as many packets as there are bytes in the window: 175 MB for a window of 64 KB on 6.1, and with larger windows all that tcp_mem allows. There a fourth program (cgroup_skb, at the cgroup's ingress) drops small packets when more than the buffer and more than 2 MiB wait, until the sender, which has to send them again, has no room left and waits (postponed in the summary); one a second is let in, and more rarely the more there is, down to one in 64 seconds: 8 MB in all, measured with 50000 bytes, and 17 MB of a buffer that had grown to 6 MB. When the reader goes on, the rest comes with the sender's next attempt. After bpftk's end that program is gone, and the sockets that are in the map are bounded by the window and tcp_mem alone until they close.",
        "What waits in all directions together is bounded by --max-memory; each message counts for its bytes and 1 KiB, which is what the kernel takes for it. Beyond that no direction is redirected anew, and a redirected one whose reader is behind is TCP's from its next message on; one whose reader has read everything goes on, so that each may hold one message more. The kernel does not tell what is read: a queue is taken to be empty when the next sender, or bpftk once a second, finds it so, and when its socket is closed or the connection has ended at both ends. (bpftk looks at every queue for each table; without tables, or in between, when more than an eighth of the bound is used.) After SIGKILL nobody looks any more at queues to which nobody sends.",
        "Reasons for TCP: peer-unknown (the other end was not in the map when the first byte was sent: it is out of scope, older than bpftk, or was not established yet), prior-bytes (something was sent before: Fast Open, a thread that waited for the connection, urgent data), backlog (over a limit of its own), memory (over --max-memory, or TCP itself is short of it), not-local (no listener in scope saw the request, and the address is none of the own), other-namespace (the other end is in another network namespace, and --across-namespaces was not given), translated (the address or the port that the client connects to is translated on the way: the two ends do not call the connection the same), filtered (--port, --exclude-port, --comm), map-full, exists (in somebody else's map of sockets, or lent to the kernel), mptcp, kernel (a kernel subsystem's socket), ulp (kernel TLS and the like), repair (the socket is in TCP_REPAIR: what is sent to it is meant for its own queues), reader (a thread waits in a read that it began before there was a connection), refused (by the kernel for another reason), peer-closed, stopped (bpftk ended), guarded (the guard keeps out a program that uses this port), half-closed (the receiver said that it will send no more, before anything was redirected to it: it is taken out of the map, since a blocking read there would fail when the other end acknowledges that), learning (the guard does not know the client's program, or whoever serves the port, for long enough).",
        "Rows are of the connections whose ends are in the map, and of those that were refused for one of these reasons but not-local and filtered, which are only counted, and map-full where there is no room for the row either. What a refused end sent is what TCP has transmitted, without what it transmitted again; MPTCP may send data of its own twice. In how many sends is not known of it.",
        "At the end, or when bpftk is killed, no new connection is taken, and no entry is removed: with it would go data that nobody has read. Connections that were taken keep the map and the program in the kernel until they close; after an orderly end what they send goes by TCP, after SIGKILL redirection goes on for those that were redirected. The last line says how many there are, and doctor lists the program. While bpftk runs, a socket that is disconnected is taken out of the map with what nobody has read; one that was half closed before, when it connects again. One that it left behind stays in it: when it connects again, its first reads give what nobody read of the connection before.",
        "Redirection changes what programs see, and no BPF program can help it: the list above says how. The kernel reads from every socket of the map by another function than TCP's, so it is so for every end in the map, whether its direction is redirected or was left to TCP; only what is said of redirected bytes is of these alone. TCP's memory being short (from one mem_pcpu_rsv a processor below the first of tcp_mem, 1 MiB unless it was set), nothing is redirected any more. Programs that use kernel TLS must be kept out. A thread that is in a read before its socket is connected is noticed (reader), unless it begins that read in the very moment of the connection, or the connect was interrupted by a signal.",
        "Bytes are counted when their verdict is made: what the kernel could not deliver then, for want of memory or because the other end closed at that moment, is counted all the same.",
        "sockredir needs Linux 6.1: before it, a reader may wait for ever where a redirected direction becomes TCP's. preflight needs Linux 5.10.",
        "The kernel gate: mistakes of Linux are known that let redirected connections crash the machine or lose data. bpftk has a table of them with the releases that mended them, for 6.1, 6.6, 6.12, 6.18 and 7.x, from the kernel's CVE records and changelogs. On a kernel that lacks such a fix sockredir ends with status 4 and names it; so it does where it is not known whether the kernel has it, as when a distribution doesn't tell which stable release its kernel is (Debian does in uname -v, Ubuntu in /proc/version_signature; Red Hat and SUSE do not). What a kernel doesn't have (MPTCP, TLS) can't hurt it, and what sockredir doesn't do can't either: doctor lists these too. --force goes on with a warning.",
        "The guard watches, beside redirection and as preflight does, the processes in scope. One that is unsafe in preflight's words is named once on standard error (once a program, where it forks for each connection; not for what it does on ports that are not redirected anyway), and is kept out from then on (reason guarded). New connections are kept out by the kernel's side alone, before the call that was the reason is done: those to the ports of the connections on which it was unsafe, for all programs; those to a port at which the process begins to listen later on; and whatever the process itself connects to. If nobody listens at either port of a connection any more, both are kept out, or the one that is outside of ip_local_port_range. Connections that exist go to TCP in both directions from their next message on, by the kernel's side as well: it looks at each message. A row says guarded from that message on. What a program does for the first time on a redirected connection is done before it is kept out; and a socket that is in the map already goes on to differ until it closes, whoever has its directions. So what is new is watched first (see the next paragraph). A process of which no port is known (it was seen to use io_uring, say) is kept out where it connects and begins to listen: a warning says that the rest is not, and --cgroup, --port and --exclude-port can. A process with the verdict caution is let in. What is redirected is not in TCP's own queue, so the guard does not see that it is unread when its reader closes (preflight does). --no-guard does without it.",
        "Learning: the connections of a program stay with TCP (learning) until the guard has watched it at work for as long as --learn says (10 s), and one of them from its beginning to its end; and so do connections to a port, until that was so of whoever serves it. A tenth of the time counts when a call on a local connection was seen in it, and eleven of them have to count, so that time in which nothing happens does not: a program that is always busy is let in after 10 s, one that makes a call a minute after ten minutes. A connection has to end because a part of what redirection changes is done at the end (a half-close, a close with unread data), and one that lives on for hours shows nothing of it; one is enough, since programs that keep a few connections for good would never be let in else, until they are started again. Nothing is held against what was not done meanwhile: a proxy that splices only what is large is kept out when it does so, after that time on a redirected connection. --learn longer, or preflight, is for such programs. A connection that was made while learning stays with TCP until it closes: a pool of connections that live long is redirected when it is made anew.",
        "A program is an executable file, in a cgroup, by the name of the process: so clients that live for one connection and workers that are forked don't begin anew, and what one process of it was seen to do keeps out what the others connect to. Scripts that an interpreter runs in the same cgroup and under the same name (python3, java) are one program: a second one is not watched before it is let in. A port is known in its network namespace, and anew when another program begins to listen there; a listener that is older than bpftk counts as another one. Only calls at the server's end count for a port: where they can't be seen (io_uring, 32-bit programs, a server that is outside of the cgroup of --cgroup), nothing is ever redirected. A program that connects and leaves it to others to send and to receive is not seen at work either. Of 8192 programs and 16384 ports those that were not used for longest are forgotten, and begin anew.",
        "preflight: one program at the entry of all system calls (the raw tracepoint sys_enter, which works without kprobes and fentry). Linux 7 preempts such programs, and skips them for whoever comes there meanwhile: there a second one looks at what the first was skipped for. On a busy machine a call may escape both: how many may have, at most, is told at the end, and then safe is not certain. It looks into read, readv, preadv2, recvfrom, recvmsg, recvmmsg, write, writev, pwritev2, sendto, sendmsg, sendmmsg, splice, sendfile, getsockopt, ioctl and close, and there only if the descriptor is a TCP connection whose other end is of this machine: a loopback address, the socket's own address, or an address of any network namespace that a process is in or that is mounted. What a socket was set to is read from the socket at each use, so it does not matter when it was set. A connection to another machine with an address that a namespace here has as well is taken for local.",
        "preflight can't see: what is done by io_uring (every process that uses it is unsafe) or by Linux AIO; system calls of 32-bit programs; unread data of a process that exits or replaces a descriptor (dup2, close_range); recvmsg of 0 bytes; what comes of a lack of memory; what others see of the connections (ss, tcpdump, packet filters, accounting); processes that did nothing while it watched. Two threads at one connection are seen when a call begins while the other thread waits: a send is unsafe then if there may be no room for it, and one that tells its length only in memory (writev, sendmsg) whatever its length. A call counts when it begins, whether or not it succeeds. Nothing is lost by a slow reader: all is counted in tables, of 8192 processes and 16384 ports.",
        "The C library uses signal 33 to have all threads take part in setuid, setgid and their like, and 32 to cancel a thread. They have handlers in nearly every process, and are left out of the reason signals: what they do to a read is in blocking, which makes a process caution and not unsafe.",
        "preflight --emit-excludes prints --exclude-port with the ports that were listened at among those of the connections of unsafe processes; what a process with caution does is not kept out. Where no port is known, or what can't be looked into may use any, it says so and ends with status 1.",
    ],
    overhead: &[
        "Requests and responses take about half the time that they take by TCP, large messages less. Many small messages in one direction on one processor get slower: TCP joins them, redirection wakes the reader for each.",
        "A socket that is in the map and was left to TCP sends slower than without bpftk, by a tenth for small messages and by up to two fifths for large ones on one processor: --port and --cgroup keep out what does not profit.",
        "An entry takes about 500 bytes and the kernel's own about 1 KiB a socket. What waits unread takes about its size, and for small messages about 1 KiB each; about 2 KiB where TCP brought them (see MECHANISM).",
        "The guard costs what preflight does, while sockredir runs, and a look at one byte for each redirected message: it is the system calls that take longer. On a small and busy virtual machine with Linux 6.18, with the guard and without it, the best of rounds by turns: getppid 0.32 and 0.22 microseconds (1.4 times: the kernel's own way to a tracepoint), a redirected send of one byte 2.7 and 1.9 (1.4 times), such a send and its receive 4.3 and 2.7 (1.6 times; 7.6 by TCP without bpftk). --no-guard saves that. What is known of programs and ports takes some 4 MiB.",
        "preflight: while it watches, Linux sends every system call of every process through its slow path and runs a short program there, also for those that are not in scope. On a small virtual machine with Linux 6.18 a call of no interest took 0.09 microseconds more (0.14 without), a read of /dev/zero or a write to /dev/null 0.4 more (0.18), a receive from a local connection 1.0 more (0.27), a byte sent and received over one 3.2 more (6.9). Its tables take some 5 MiB. Each second it looks up the addresses and the listening sockets of all network namespaces, for 200 ms at most: with more than that takes, those that were not looked into for longest come first. Namespaces that it was never in, as when the process may not look into them or can't have a thread, are told at the end.",
    ],
    exit_status: &[REMOVED_CGROUP],
};

/// Most are pinned by a test: tests/host/sockredir/differences.rs.
const DIFFERENCES: &[Field] = &[
    Field::new(
        "a blocking read, and a signal comes",
        "fails with EAGAIN, also with SA_RESTART; by TCP it goes on. So it is when the process is stopped and continued, its cgroup is frozen and thawed, a tracer attaches or detaches, or another thread calls setuid or setgid",
    ),
    Field::new(
        "a blocking read, while another thread waits to read from or to write to the same socket",
        "may fail with EAGAIN; by TCP it goes on. It does when the other thread calls shutdown(SHUT_WR), as proxies do that have a thread for each direction",
    ),
    Field::new(
        "a blocking read, and the peer resets",
        "may fail with EAGAIN, and the next one with ECONNRESET; by TCP the first does",
    ),
    Field::new(
        "a blocking read, after shutdown(SHUT_WR) on a connection that brought data before",
        "fails with EAGAIN when the other end acknowledges that, 40 ms later or when it has read everything; by TCP it goes on. Where nothing came before, the socket is left to TCP in time, while bpftk runs",
    ),
    Field::new(
        "a blocking read, after a send for which there was no room",
        "may fail with EAGAIN when there is room again; by TCP it goes on. Of directions that TCP has: a redirected send never waits for room",
    ),
    Field::new("a blocking read with SO_RCVTIMEO", "may fail with EAGAIN before the time"),
    Field::new("MSG_WAITALL", "comes back short; by TCP it waits for all"),
    Field::new(
        "SO_RCVLOWAT",
        "poll(2) says ready at the first redirected byte; by TCP it waits for as many",
    ),
    Field::new(
        "splice(2) and sendfile(2) from the socket, TCP_ZEROCOPY_RECEIVE",
        "find nothing, and EAGAIN comes while poll(2) says that there is some; by TCP they move the data",
    ),
    Field::new("MSG_ZEROCOPY", "is never completed for redirected bytes"),
    Field::new("MSG_OOB", "the urgent byte is in the stream; by TCP it is apart"),
    Field::new(
        "recv with MSG_TRUNC",
        "copies what by TCP is discarded, and fails with EFAULT without a buffer",
    ),
    Field::new("recv of 0 bytes", "is 0 at once; by TCP it waits for data, or fails with EAGAIN"),
    Field::new("SO_PEEK_OFF", "is not minded: each peek begins at the first byte"),
    Field::new("TCP_INQ, SO_TIMESTAMP, SO_TIMESTAMPING", "their control messages do not come"),
    Field::new(
        "SIOCOUTQ, SIOCOUTQNSD",
        "are 0 for redirected bytes, also while the other end has read none of them",
    ),
    Field::new("TCP_CORK, MSG_MORE", "hold no redirected bytes back"),
    Field::new(
        "a read into memory of which a part is not mapped",
        "gives what fits; by TCP it fails with EFAULT",
    ),
    Field::new(
        "FIONREAD (SIOCINQ)",
        "is 0 or too little while data waits, before Linux 7.0, 6.18.14, 6.12.75 and 6.6.128",
    ),
    Field::new(
        "a socket filter of the receiver (SO_ATTACH_FILTER)",
        "does not see redirected bytes",
    ),
    Field::new("close(2) with unread data", "sends a FIN; by TCP it resets the connection"),
    Field::new(
        "TCP_INFO, ss, tcpdump, packet filters, traffic control, accounting",
        "do not see redirected bytes, but see the connection begin and end",
    ),
    Field::new(
        "a send at the limit of a memory cgroup",
        "may fail with ENOMEM when it is redirected; by TCP it waits",
    ),
    Field::new(
        "kernel TLS",
        "the kernel refuses the keys, and the direction is TCP's from then on (ulp)",
    ),
];

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
    Field::new(
        "postponed",
        "packets of TCP that were dropped, so that they are sent again, since too many small ones waited unread: on Linux before 6.6, else 0",
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
    Field::new(
        "guarded_processes",
        "processes that the guard saw doing what redirection changes; null without the guard",
    ),
    Field::new("lingering", "connections in the map at the end"),
    Field::new("lingering_redirected", "of these, redirected until the end"),
    Field::new(
        "lost",
        "ends that closed and could not be reported: rows lack them, the totals don't",
    ),
    Field::new("lost_ring_full", "of these, because the ring buffer was full"),
];

#[cfg(test)]
mod tests {
    use super::DIFFERENCES;
    use crate::commands::sockredir::preflight::{NOT_LOOKED_FOR, REASONS};

    /// By what preflight tells each difference: names of reasons, or words of its last line.
    const TOLD_BY: &[(&str, &[&str])] = &[
        ("a blocking read, and a signal comes", &["signals", "blocking"]),
        ("a blocking read, while another thread", &["threads"]),
        ("a blocking read, and the peer resets", &["blocking"]),
        ("a blocking read, after shutdown", &["half-close"]),
        ("a blocking read, after a send", &["room"]),
        ("a blocking read with SO_RCVTIMEO", &["rcvtimeo"]),
        ("MSG_WAITALL", &["waitall"]),
        ("SO_RCVLOWAT", &["rcvlowat"]),
        ("splice(2) and sendfile(2)", &["splice", "zerocopy-receive"]),
        ("MSG_ZEROCOPY", &["zerocopy"]),
        ("MSG_OOB", &["oob"]),
        ("recv with MSG_TRUNC", &["trunc"]),
        ("recv of 0 bytes", &["zero-length", "recvmsg of 0 bytes"]),
        ("SO_PEEK_OFF", &["peek-off"]),
        ("TCP_INQ, SO_TIMESTAMP", &["tcp-inq", "timestamps"]),
        ("SIOCOUTQ", &["SIOCOUTQ"]),
        ("TCP_CORK, MSG_MORE", &["TCP_CORK"]),
        ("a read into memory", &["a part is not mapped"]),
        ("FIONREAD", &["fionread"]),
        ("a socket filter", &["socket-filter"]),
        ("close(2) with unread data", &["unread-at-close", "where a process exits"]),
        ("TCP_INFO, ss, tcpdump", &["tcp-info", "who watches from outside"]),
        ("a send at the limit of a memory cgroup", &["ENOMEM at the limit of a memory cgroup"]),
        ("kernel TLS", &["ulp"]),
    ];

    #[test]
    fn preflight_tells_every_difference_or_says_that_it_does_not() {
        assert_eq!(DIFFERENCES.len(), TOLD_BY.len());
        for (difference, (begin, by)) in DIFFERENCES.iter().zip(TOLD_BY) {
            assert!(difference.name.starts_with(begin), "{} is not {begin}", difference.name);
            for words in *by {
                let is_reason = REASONS.iter().any(|reason| reason.name == *words);
                let is_said = NOT_LOOKED_FOR.iter().any(|text| text.contains(words));
                assert!(is_reason || is_said, "{begin}: {words}");
            }
        }
        // And every reason is one of these, but for what keeps a connection out anyway, and what can't be looked into.
        let others = ["mptcp", "repair", "io_uring", "32-bit"];
        for reason in REASONS.iter().filter(|reason| !others.contains(&reason.name)) {
            assert!(TOLD_BY.iter().any(|(_, by)| by.contains(&reason.name)), "{}", reason.name);
        }
    }
}
