// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual page says of `tcpconnect`.

use super::{FIELDS, count};
use crate::commands::man::{Manual, REMOVED_CGROUP};
use crate::output::Field;

pub(crate) const MANUAL: Manual = Manual {
    command: "tcpconnect",
    examples: &[
        ("bpftk tcpconnect", "Every connect of the machine, printed when it is decided."),
        ("bpftk tcpconnect -P 443,8000-8100 -u www-data", "Connects of one user to these ports."),
        (
            "bpftk tcpconnect --failed --exclude 10.0.0.0/8",
            "What can't reach the outside, and why.",
        ),
        (
            "bpftk tcpconnect --count --interval 10s",
            "Per destination, every ten seconds: attempts, failures, latency.",
        ),
        (
            "bpftk tcpconnect --dns --cgroup /sys/fs/cgroup/app",
            "One service's connects, with the names that it asked for.",
        ),
        ("bpftk tcpconnect --format json | jq 'select(.errno == 111)'", "For another program."),
        ("bpftk tcpconnect -n 1 -P 5432", "Wait for the next connect to a database."),
    ],
    columns: &[
        ("PID", "Process (thread group) id of the caller, as the initial PID namespace has it."),
        (
            "COMM",
            "Name of the calling thread; for an io_uring worker, of the process that it works for.",
        ),
        ("IP", "4 or 6: the version on the wire. A v4-mapped destination is 4."),
        ("SADDR", "Source address; a dash when none was chosen before the attempt failed."),
        ("LPORT", "With --lport: source port."),
        ("DADDR", "Destination address."),
        ("DPORT", "Destination port."),
        (
            "RESULT",
            "ok; the errno's name, such as ECONNREFUSED (a reset, or an ICMP message), EHOSTUNREACH (an ICMP message, or no neighbour), ETIMEDOUT (no answer), ENETUNREACH (no route), EADDRNOTAVAIL (no free source port), EACCES or EPERM (forbidden by a route, a cgroup program or a security module); closed, when the caller closed the socket or disconnected it before an answer came; unknown, when it failed and nothing shows why; pending, for what is undecided when bpftk ends. Empty with --at-start.",
        ),
        (
            "LATENCY",
            "Milliseconds from the call to the answer; for closed, to when the caller gave up. A dash where the beginning was not seen, as when a security module or a cgroup program refused at once: what the back ends see of that is below. For Fast Open with TCP_FASTOPEN_CONNECT this includes the time until the first write, which is what sends the SYN.",
        ),
        ("USER", "With --print-user: the caller's real user."),
        ("CGROUP", "With --print-cgroup: the caller's cgroup v2 path below the mount point."),
        (
            "NAME",
            "With --dns: names that DNS answers gave this address in the same network namespace, the latest first.",
        ),
        ("TIME", "With --timestamp: local time of the call."),
        (
            "ATTEMPTS FAILURES MEDIAN P99",
            "With --count: attempts decided in the interval, those that did not succeed, and the time to the answer in milliseconds, within 1 %, which leaves out what was closed before there was one and what has no latency. The last table is the whole run's. Beyond --max-keys, attempts are in one row, other.",
        ),
    ],
    fields: &[
        ("Fields of JSON lines of type event, and of CSV", FIELDS),
        ("Fields of JSON lines of type row, with --count", count::FIELDS),
        ("Fields of the JSON line of type summary", SUMMARY),
    ],
    mechanism: &[
        "An attempt begins when a TCP socket is asked to connect and ends when it leaves the state SYN_SENT. The tracepoint sock:inet_sock_set_state shows both, the beginning in the caller's context, so that process, user and cgroup are the caller's also when the answer arrives in a softirq. One attempt is one row: a second connect() on a socket that is under way only asks how the first went, and calls that ask for no connection (a bad descriptor, a socket that is connected already) are no attempts.",
        "An ICMP message, as a router or a firewall's REJECT sends it, ends an attempt at once or is only an error that the program may fetch (SO_ERROR), while the kernel goes on trying. What the program was told is shown by the tracepoint sock:inet_sk_error_report (Linux 5.14), and is the row's result when the program then closes. Before 5.14 a program that fetches the error faster than the kernel ends the attempt makes that unknown.",
        "What was under way when bpftk started has no row; when it ends, it is counted as unseen, unless a filter on tasks is set, since whose it was is not known.",
        "Failures before the first packet (no route, no free port, forbidden) change no state. How they are seen is what the back ends differ in; the first of this list that the kernel accepts is used, -v says which, --backend insists on one.",
        "fentry: fentry and fexit programs on __inet_stream_connect, which every connect and every Fast Open send comes to, io_uring's and the kernel's own included; what a security module refuses is seen on security_socket_connect, and has no latency. What Landlock refuses of Fast Open sends (Linux 7.3) is seen by its tracepoint landlock:landlock_deny_access_net, but for those of io_uring and of 32-bit programs; stable kernels that refuse them too (seen on 6.12) have no such tracepoint, and there only the back end tracepoint tells of them. Needs a trampoline for the architecture: x86_64, or aarch64 since Linux 6.0.",
        "kprobe: kprobes and kretprobes on tcp_v4_connect and tcp_v6_connect, which don't wait for the network, and on tcp_v4_pre_connect, tcp_v6_pre_connect and security_socket_connect, where cgroup programs and security modules refuse, which have no latency; Landlock's refusals of Fast Open sends as with fentry. Linux runs a kretprobe for a limited number of calls at a time (on small machines 10). Beyond it an attempt that failed at once is counted as lost_missed_return; all others are seen by their state changes.",
        "tracepoint: enter and exit of connect, and of sendto, sendmsg and sendmmsg for MSG_FASTOPEN, and io_uring:io_uring_complete. What io_uring fails to begin has no latency. Complete where kprobes and fentry are forbidden, except for two early failures: of 32-bit system calls, for which Linux has no tracepoints, and of connects that the kernel makes itself (NFS, for example). Linux 7 preempts programs at these tracepoints, and skips them for whoever comes to the same place on that processor meanwhile: an attempt that failed at once can then be missing, and is counted as lost where only its end was skipped.",
        "A seccomp filter refuses a connect() before any hook but the tracepoint at the system call's end. So the back end tracepoint has a row for it, without a latency; the others see nothing, nor does any see what a supervisor (SECCOMP_RET_USER_NOTIF) answers without an error.",
        "Linux skips a program for whatever comes to it while the same CPU is in the middle of it: an interrupt and, on preemptible kernels, every task that runs before the program goes on. On kernels whose preemption model is full or lazy (Linux 7 knows no others on x86_64) a second copy of the busiest programs does what the first was skipped for, and a call's end makes good what neither saw. What the last copy was skipped for is told as `skipped`; most of it was no attempt.",
        "Kernels without IPv6 trace IPv4. MPTCP sockets connect by TCP subflows, each of which is a row; additional subflows are the kernel's, and show its worker as caller.",
        "--dns attaches two programs to the root cgroup (v2) that copy what sockets ask of port 53 and are answered, over UDP and TCP, IPv4 and IPv6, stub resolvers on the loopback included. An address is called by the question whose answer, through its CNAMEs or by the hints of an HTTPS record, led to it, for as long as the answer may be kept, ten minutes at the least and a day at the most. An answer counts once, and only if the same socket had asked just this question of port 53, by number, name, type and class, within the last 30 seconds; questions that address translation sends to another port (Docker's resolver in a container) are not seen, so their answers name nothing. A name is known only in the network namespace in which it was asked for. Any program may ask a resolver of its own, which may say anything: names are a help for reading, no proof. Copies have a ring buffer of their own (4 MiB): however many answers come, they take no room from rows; there is never a reverse look-up. DNS over TLS or HTTPS can't be seen.",
        "Filters run in the kernel. --dst, --exclude, --port, -4 and -6 look at the destination that the kernel connects to. What a filter leaves out takes no room in the tables, and is not counted.",
    ],
    overhead: &[
        "fentry and kprobe: proportional to the rate of connects and of TCP state changes, nothing else. `make bench` prints the time per connect beside other tools.",
        "tracepoint: two programs for each connect, sendto, sendmsg and sendmmsg call, of which all but connects and Fast Open end at once; and while any system call tracepoint is in use, Linux sends every system call of every process through its slow path, which costs each some tens of nanoseconds.",
        "--dns: a program for each packet that a local socket sends or receives; it reads a few header bytes of those that are not to or from port 53.",
        "Rows that come in quick succession are printed together, up to 5 ms later, so that not each of them wakes bpftk.",
        "Memory in the kernel: room for 16384 attempts under way (about 3 MiB; --max-pending) and for 1 MiB of rows that wait for the reader, some 9000. What does not fit is counted, and told at the end.",
        "--count: in bpftk, some 600 bytes for each key: 40 MB at most, but for --max-keys.",
    ],
    exit_status: &[REMOVED_CGROUP],
};

const SUMMARY: &[Field] = &[
    Field::new("command", "tcpconnect"),
    Field::new("backend", "fentry, kprobe or tracepoint"),
    Field::new("attempts", "rows printed or counted"),
    Field::new("ok", "of these, connected"),
    Field::new("failed", "of these, failed or closed before an answer"),
    Field::new("pending", "of these, undecided"),
    Field::new("lost", "rows missing, all causes together"),
    Field::new("lost_ring_full", "because the reader was too slow for the ring buffer"),
    Field::new("lost_table_full", "because too much was under way"),
    Field::new("lost_missed_return", "because the kernel did not run the hook at a call's return"),
    Field::new(
        "lost_dns",
        "pieces of DNS questions and answers that did not fit in their ring buffer: names may be missing, no rows",
    ),
    Field::new(
        "unseen",
        "ended without having been followed, since they were under way when bpftk started; not among the lost",
    ),
    Field::new(
        "skipped",
        "times the kernel skipped a program: rows that may be missing beside the lost ones, at most",
    ),
    Field::new("other", "with --count: attempts in the row other; else null"),
];
