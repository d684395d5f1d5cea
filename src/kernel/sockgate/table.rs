// SPDX-License-Identifier: MIT OR Apache-2.0

//! Mistakes of Linux in what `sockredir` makes of it, and the releases that mended them. Only what could be looked up:
//! for a series that an entry doesn't name, nobody here knows.
//!
//! Sources: the kernel's own CVE records (cvelistV5, which name the first release of each series that has the fix), the
//! review mails of stable releases, and Debian's changelogs, which list every commit of a series' stable releases.
//!
//! Left out is what only 5.x has, where sockredir does not run at all.

use super::release::Series;

/// What a series' stable releases have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stable {
    /// The fix, from this release on.
    Since(u32),
    /// The mistake never got into it.
    Unaffected,
    /// No fix, up to the day that `Fix::source` was written.
    NotThere,
}

/// What it takes to run into the mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// A connection that is redirected.
    Always,
    /// A kernel with MPTCP: any program may make a socket of that kind.
    Mptcp,
    /// A kernel with TLS: any program may turn it on for its own connection.
    Tls,
    /// What sockredir doesn't do.
    Never(&'static str),
}

#[derive(Debug)]
pub(super) struct Fix {
    /// Subject of the commit that mended it.
    pub(super) title: &'static str,
    /// Its id in mainline.
    pub(super) commit: &'static str,
    pub(super) cve: Option<&'static str>,
    /// What the mistake does to the user.
    pub(super) effect: &'static str,
    /// The series that the mistake came with.
    pub(super) broken_since: Series,
    /// The first series all of whose releases have the fix.
    pub(super) mainline: Series,
    pub(super) stable: &'static [(Series, Stable)],
    pub(super) reach: Reach,
    /// Where the releases are from.
    pub(super) source: &'static str,
}

const V6_1: Series = Series(6, 1);
const V6_6: Series = Series(6, 6);
const V6_12: Series = Series(6, 12);
const V6_18: Series = Series(6, 18);

use Stable::{NotThere, Since, Unaffected};

/// What can be reached first, the worst of it before the rest.
pub(super) const FIXES: &[Fix] = &[
    Fix {
        title: "bpf, sockmap: Fix incorrect copied_seq calculation",
        commit: "b40cc5adaa80e1471095a62d78233b611d7a558c",
        cve: None,
        effect: "after a read of redirected bytes, bytes that TCP brings can wait in the kernel until more of them have come than were redirected: the reader hangs",
        // The reader counts redirected bytes as TCP's (tp->copied_seq), and tcp_data_ready() then takes what comes for
        // read: the verdict isn't run.
        broken_since: V6_1,
        mainline: Series(7, 0),
        stable: &[
            (V6_1, Since(165)),
            (V6_6, Since(128)),
            (V6_12, Since(75)),
            (V6_18, Since(14)),
            (Series(6, 19), Since(4)),
        ],
        reach: Reach::Always,
        source: "announcements of 6.18.14 and 6.19.4, review mail of 6.6.128, Debian's changelogs of 6.1.192 and 6.12.118",
    },
    Fix {
        title: "bpf: tcp_read_skb needs to pop skb regardless of seq",
        commit: "9b7177b1df64b8d7f85700027c324aadd6aded00",
        cve: None,
        effect: "bytes that TCP brings while earlier ones are unread can be thrown away",
        // e5c6de5fa025 (6.4), and its backports.
        broken_since: V6_1,
        mainline: V6_6,
        stable: &[(V6_1, Since(57)), (Series(6, 5), Since(7))],
        reach: Reach::Always,
        source: "review mails of 6.1 and 6.5 of 2023-10-09, Debian's changelogs of 6.1.192 and 6.12.118",
    },
    Fix {
        title: "bpf, sockmap: Do not inc copied_seq when PEEK flag set",
        commit: "da9e915eaf5dadb1963b7738cdfa42ed55212445",
        cve: None,
        effect: "after a read with MSG_PEEK, a program that waits for more isn't woken",
        // e5c6de5fa025 (6.4), and its backports.
        broken_since: V6_1,
        mainline: V6_6,
        stable: &[(V6_1, Since(57)), (Series(6, 5), Since(7))],
        reach: Reach::Always,
        source: "review mails of 6.1 and 6.5 of 2023-10-09, Debian's changelogs of 6.1.192 and 6.12.118",
    },
    Fix {
        title: "bpf, sockmap: Pass skb ownership through read_skb",
        commit: "78fa0d61d97a728d306b0c23d353c0e340756437",
        cve: None,
        effect: "a packet that TCP brings is released while the reader's queue still has it, which corrupts memory",
        broken_since: V6_1,
        mainline: Series(6, 4),
        stable: &[(V6_1, Since(32)), (Series(6, 3), Since(6))],
        reach: Reach::Always,
        source: "announcement of 6.3.6, Debian's changelog of 6.1.192",
    },
    Fix {
        title: "bpf, sockmap: Improved check for empty queue",
        commit: "405df89dd52cbcd69a3cd7d9a10d64de38f854b2",
        cve: None,
        effect: "when memory is short, bytes that TCP brings can overtake earlier ones",
        broken_since: V6_1,
        mainline: Series(6, 4),
        stable: &[(V6_1, Since(32)), (Series(6, 3), Since(6))],
        reach: Reach::Always,
        source: "announcement of 6.3.6, Debian's changelog of 6.1.192",
    },
    Fix {
        title: "bpf, sockmap: Handle fin correctly",
        commit: "901546fd8f9ca4b5c481ce00928ab425ce9aacc0",
        cve: None,
        effect: "the end of a connection reads as EAGAIN instead of as the end",
        broken_since: V6_1,
        mainline: Series(6, 4),
        stable: &[(V6_1, Since(32)), (Series(6, 3), Since(6))],
        reach: Reach::Always,
        source: "announcement of 6.3.6, Debian's changelog of 6.1.192",
    },
    Fix {
        title: "bpf, sockmap: TCP data stall on recv before accept",
        commit: "ea444185a6bf7da4dd0df1598ee953e4f7174858",
        cve: None,
        effect: "bytes that TCP brings before accept(2) aren't seen by the reader until more come",
        broken_since: V6_1,
        mainline: Series(6, 4),
        stable: &[(V6_1, Since(32)), (Series(6, 3), Since(6))],
        reach: Reach::Always,
        source: "announcement of 6.3.6, Debian's changelog of 6.1.192",
    },
    Fix {
        title: "bpf, sockmap: Wake up polling after data copy",
        commit: "6df7f764cd3cf5a03a4a47b23be47e57e41fcd85",
        cve: None,
        effect: "a program that waits for bytes that TCP brings isn't always woken",
        broken_since: V6_1,
        mainline: Series(6, 4),
        stable: &[(V6_1, Since(32)), (Series(6, 3), Since(6))],
        reach: Reach::Always,
        source: "announcement of 6.3.6, Debian's changelog of 6.1.192",
    },
    Fix {
        title: "bpf, sockmap: Avoid potential NULL dereference in sk_psock_verdict_data_ready()",
        commit: "b320a45638296b63be8d9a901ca8bc43716b1ae1",
        cve: None,
        effect: "a packet for a connection that is just being closed can crash the kernel",
        // 6df7f764cd3c (6.4), and its backports.
        broken_since: V6_1,
        mainline: Series(6, 4),
        stable: &[(V6_1, Since(34)), (Series(6, 3), Since(8))],
        reach: Reach::Always,
        source: "Debian's changelogs of 6.1.192 and 6.12.118",
    },
    Fix {
        title: "bpf, sockmap: Fix NULL pointer dereference in sk_psock_verdict_data_ready()",
        commit: "4cd12c6065dfcdeba10f49949bffcf383b3952d8",
        cve: Some("CVE-2024-26731"),
        effect: "a packet for a connection that is just being closed can crash the kernel",
        // 6df7f764cd3c (6.4), and its backports.
        broken_since: V6_1,
        mainline: Series(6, 8),
        stable: &[(V6_1, Since(80)), (V6_6, Since(19)), (Series(6, 7), Since(7))],
        reach: Reach::Always,
        source: "CVE record of 2024-04-03",
    },
    Fix {
        title: "bpf, skmsg: Fix NULL pointer dereference in sk_psock_skb_ingress_enqueue",
        commit: "6648e613226e18897231ab5e42ffc29e63fa3365",
        cve: Some("CVE-2024-36938"),
        effect: "bytes for a connection that is just being closed can crash the kernel",
        // Only with a verdict program: without one nothing is saved that could be gone.
        broken_since: V6_1,
        mainline: Series(6, 9),
        stable: &[(V6_1, Since(91)), (V6_6, Since(31)), (Series(6, 8), Since(10))],
        reach: Reach::Always,
        source: "CVE record of 2025-05-04",
    },
    Fix {
        title: "bpf, sockmap: Fix an infinite loop error when len is 0 in tcp_bpf_recvmsg_parser()",
        commit: "d900f3d20cc3169ce42ec72acc850e662a4d4db2",
        cve: Some("CVE-2023-53133"),
        effect: "any program that reads 0 bytes from a redirected connection can keep a processor in the kernel for good",
        // Not only with a verdict program: tcp_bpf_recvmsg() had it, too.
        broken_since: V6_1,
        mainline: Series(6, 3),
        stable: &[(V6_1, Since(20)), (Series(6, 2), Since(7))],
        reach: Reach::Always,
        source: "CVE record of 2026-05-11, Debian's changelog of 5.10.262",
    },
    Fix {
        title: "bpf, sockmap: Fix skb refcnt race after locking changes",
        commit: "a454d84ee20baf7bd7be90721b9821f73c7d23d9",
        cve: Some("CVE-2023-53836"),
        effect: "when memory is short, the kernel can use a packet that it has freed",
        broken_since: V6_1,
        mainline: V6_6,
        stable: &[(V6_1, Since(54)), (Series(6, 5), Since(4))],
        reach: Reach::Always,
        source: "CVE record of 2026-08-04",
    },
    Fix {
        title: "bpf, sockmap: Fix data lost during EAGAIN retries",
        commit: "7683167196bd727ad5f3c3fc6a9ca70f54520a81",
        cve: None,
        effect: "when memory is short, bytes that TCP brings can be lost to the reader",
        // The mistake may be older; 5.15 has the fix, too, but its release wasn't looked up.
        broken_since: V6_1,
        mainline: Series(6, 16),
        stable: &[
            (V6_1, Since(142)),
            (V6_6, Since(95)),
            (V6_12, Since(35)),
            (Series(6, 15), Since(4)),
        ],
        reach: Reach::Always,
        source: "announcements of 6.6.95 and 6.15.4, Debian's changelogs of 6.1.192 and 6.12.118",
    },
    Fix {
        title: "bpf, sockmap: Fix panic when calling skb_linearize",
        commit: "5ca2e29f6834c64c0e5a9ccf1278c21fb49b827e",
        cve: Some("CVE-2025-38165"),
        effect: "when memory is short, a packet in many pieces can crash the kernel",
        // a454d84ee20b (6.6), and its backports.
        broken_since: V6_1,
        mainline: Series(6, 16),
        stable: &[
            (V6_1, Since(142)),
            (V6_6, Since(94)),
            (V6_12, Since(34)),
            (Series(6, 15), Since(3)),
        ],
        reach: Reach::Always,
        source: "CVE record of 2025-07-03",
    },
    Fix {
        title: "bpf, sockmap: Fix psock incorrectly pointing to sk",
        commit: "76be5fae32febb1fdb848ba09f78c4b2c76cb337",
        cve: None,
        effect: "when memory is short, a socket that connects again can get its old connection's bytes handled as its new one's, which can corrupt the kernel's memory",
        // Needs an entry that is taken out and put in again: sockredir does so when a socket connects again.
        broken_since: V6_1,
        mainline: Series(6, 17),
        stable: &[
            (V6_1, Since(148)),
            (V6_6, Since(102)),
            (V6_12, Since(42)),
            (Series(6, 15), Since(10)),
            (Series(6, 16), Since(1)),
        ],
        reach: Reach::Always,
        source: "announcements of 6.6.102 and 6.16.1, review mail of 6.15.10, Debian's changelogs of 6.1.192 and 6.12.118",
    },
    Fix {
        title: "skmsg: Skip zero length skb in sk_msg_recvmsg",
        commit: "f0c18025693707ec344a70b6887f7450bf4c826b",
        cve: Some("CVE-2024-41048"),
        effect: "reading the end of a connection can crash the kernel where the address of no page can't be computed: seen on LoongArch, not on x86",
        broken_since: V6_1,
        mainline: Series(6, 10),
        stable: &[(V6_1, Since(100)), (V6_6, Since(41)), (Series(6, 9), Since(10))],
        reach: Reach::Always,
        source: "CVE record of 2024-11-05",
    },
    Fix {
        title: "bpf, sockmap: Fix repeated calls to sock_put() when msg has more_data",
        commit: "7a9841ca025275b5b0edfb0b618934abb6ceec15",
        cve: Some("CVE-2022-50536"),
        effect: "a send that memory is short for can release the receiver's socket twice, which corrupts memory",
        broken_since: V6_1,
        mainline: Series(6, 2),
        stable: &[(V6_1, Since(2))],
        reach: Reach::Always,
        source: "CVE record of 2025-10-07",
    },
    Fix {
        title: "bpf, skmsg: fix verdict sk_data_ready racing with ktls rx",
        commit: "ddf8029623a1af20e984c040e89ff918158397ab",
        cve: Some("CVE-2026-64025"),
        effect: "a program that turns on kernel TLS for a connection in the map can make the kernel use memory that it has freed",
        // 6.1 isn't in the record. Out of reach where TLS and sockmap can't be combined (460e6486617c).
        broken_since: V6_1,
        mainline: Series(7, 1),
        stable: &[
            (V6_1, Since(191)),
            (V6_6, Since(142)),
            (V6_12, Since(92)),
            (V6_18, Since(34)),
            (Series(7, 0), Since(11)),
        ],
        reach: Reach::Tls,
        source: "CVE record of 2026-08-05, Debian's changelog of 6.1.192",
    },
    Fix {
        title: "mptcp: Fix proto fallback detection with BPF",
        commit: "c77b3b79a92e3345aa1ee296180d1af4e7031f8f",
        cve: Some("CVE-2025-68227"),
        effect: "accepting a plain TCP connection on an MPTCP listener (Go's default) can crash the kernel",
        broken_since: V6_1,
        mainline: V6_18,
        stable: &[
            (V6_1, Since(159)),
            (V6_6, Since(118)),
            (V6_12, Since(60)),
            (Series(6, 17), Since(10)),
        ],
        reach: Reach::Mptcp,
        source: "CVE record of 2026-05-11",
    },
    Fix {
        title: "tls: reject the combination of TLS and sockmap",
        commit: "460e6486617c17dd19abe8f3fc67d9a6fa25f8ca",
        cve: Some("CVE-2026-93824"),
        effect: "a program that turns on kernel TLS for a redirected connection can corrupt the kernel's memory",
        broken_since: V6_1,
        mainline: Series(7, 2),
        stable: &[
            // Not in the record; in Debian's changelog of 6.1.190.
            (V6_1, Since(190)),
            (V6_6, NotThere),
            (V6_12, Since(111)),
            (V6_18, Since(53)),
        ],
        reach: Reach::Tls,
        source: "CVE record of 2026-09-24, Debian's changelog of 6.1.190",
    },
    Fix {
        title: "bpf: sockmap: Fix use-after-free of sk->sk_socket in sk_psock_verdict_data_ready().",
        commit: "ad8391d37f334ee73ba91926f8b4e4cf6d31ea04",
        cve: Some("CVE-2026-43016"),
        effect: "a packet for a socket that is just being closed can make the kernel use memory that it has freed",
        // 6.1 isn't in the record.
        broken_since: V6_1,
        mainline: Series(7, 0),
        stable: &[
            (V6_1, Since(191)),
            (V6_6, Since(134)),
            (V6_12, Since(81)),
            (V6_18, Since(22)),
            (Series(6, 19), Since(12)),
        ],
        reach: Reach::Never(
            "it takes AF_UNIX sockets: TCP calls it with the socket locked, and closing needs that lock",
        ),
        source: "CVE record of 2026-08-05, Debian's changelog of 6.1.192",
    },
    Fix {
        title: "bpf: fix recursive lock when verdict program return SK_PASS",
        commit: "8ca2a1eeadf09862190b2810697702d803ceef2d",
        cve: Some("CVE-2024-56694"),
        effect: "the first packet that is let pass hangs a processor",
        // 6648e613226e (6.9), and its backports.
        broken_since: V6_1,
        mainline: Series(6, 13),
        stable: &[
            (V6_1, Since(120)),
            (V6_6, Since(64)),
            (Series(6, 11), Since(11)),
            (V6_12, Since(2)),
        ],
        reach: Reach::Never("it takes a stream parser, which sockredir doesn't have"),
        source: "CVE record of 2026-05-11",
    },
    Fix {
        title: "bpf, sockmap: Avoid using sk_socket after free when sending",
        commit: "8259eb0e06d8f64c700f5fbdb28a5c18e10de291",
        cve: Some("CVE-2025-38154"),
        effect: "closing a socket can make the kernel use memory that it has freed",
        // 4b4647add7d3 (6.10), and its backports.
        broken_since: V6_1,
        mainline: Series(6, 16),
        stable: &[
            (V6_1, Since(142)),
            (V6_6, Since(94)),
            (V6_12, Since(34)),
            (Series(6, 15), Since(3)),
        ],
        reach: Reach::Never("it takes a verdict that sends packets on, which sockredir's doesn't"),
        source: "CVE record of 2025-07-03",
    },
    Fix {
        title: "bpf, sockmap: fix duplicated data transmission",
        commit: "3b4f14b794287be137ea2c6158765d1ea1e018a4",
        cve: None,
        effect: "packets that are sent on can be sent twice",
        // The mistake may be older.
        broken_since: V6_1,
        mainline: Series(6, 16),
        stable: &[(V6_1, Since(142)), (V6_12, Since(34))],
        reach: Reach::Never("it takes a verdict that sends packets on, which sockredir's doesn't"),
        source: "Debian's changelogs of 6.1.192 and 6.12.118",
    },
    Fix {
        title: "bpf, sockmap: Fix self-redirect copied_seq double-counting",
        commit: "490a83d6386eec1d29f470c8d7331677fb46c3b7",
        cve: None,
        effect: "a socket whose packets are redirected to itself stops being told of new ones",
        // b40cc5adaa80 (7.0), and its backports.
        broken_since: V6_1,
        mainline: Series(7, 3),
        stable: &[(V6_1, Since(189)), (V6_12, Since(112))],
        reach: Reach::Never(
            "it takes a verdict that redirects to the socket itself; sockredir's lets pass",
        ),
        source: "Debian's changelogs of 6.1.192 and 6.12.118; mainline has it since 2026-09-24",
    },
    Fix {
        title: "bpf, sockmap: Account for receive queue in FIONREAD without a verdict program",
        commit: "04af4efde58a4a4ef4feab7360c46af9ec0b83a0",
        cve: None,
        effect: "FIONREAD says 0 for bytes that TCP brought",
        // 929e30f93125 (7.0), and its backports; 6.1 doesn't have it.
        broken_since: V6_6,
        mainline: Series(7, 2),
        stable: &[(V6_1, Unaffected), (V6_12, Since(114))],
        reach: Reach::Never("it takes a map without a verdict program"),
        source: "Debian's changelogs of 6.1.192 and 6.12.118",
    },
    Fix {
        title: "bpf: Allow delete from sockmap/sockhash only if update is allowed",
        commit: "98e948fb60d41447fd8d2d0c3b8637fc6b6dc26d",
        cve: Some("CVE-2024-38662"),
        effect: "a tracing program that takes sockets out of a sockmap can hang processors",
        // ff9105993240 (6.9), and its backports.
        broken_since: V6_1,
        mainline: Series(6, 10),
        stable: &[(V6_1, Since(93)), (V6_6, Since(33)), (Series(6, 9), Since(4))],
        reach: Reach::Never(
            "sockredir takes sockets out in a sockops program, which may also put them in",
        ),
        source: "CVE record of 2025-05-04",
    },
    Fix {
        title: "bpf, sockmap: Prevent lock inversion deadlock in map delete elem",
        commit: "ff91059932401894e6c86341915615c5eb0eca48",
        cve: Some("CVE-2024-35895"),
        effect: "a tracing program that takes sockets out of a sockmap can hang processors",
        broken_since: V6_1,
        mainline: Series(6, 9),
        stable: &[(V6_1, Since(85)), (V6_6, Since(26)), (Series(6, 8), Since(5))],
        reach: Reach::Never(
            "sockredir takes sockets out in a sockops program, which never runs with interrupts off",
        ),
        source: "CVE record of 2025-05-04",
    },
    Fix {
        title: "mptcp: Disallow MPTCP subflows from sockmap",
        commit: "fbade4bd08ba52cbc74a71c4e86e736f059f99f7",
        cve: None,
        effect: "a part of an MPTCP connection in a sockmap loses that connection's data",
        broken_since: V6_1,
        mainline: V6_18,
        stable: &[
            (V6_1, Since(159)),
            (V6_6, Since(118)),
            (V6_12, Since(60)),
            (Series(6, 17), Since(10)),
        ],
        reach: Reach::Never("sockredir itself leaves out the sockets of MPTCP"),
        source: "review mails of the releases",
    },
    Fix {
        title: "bpf, sockmap: Fix sk_redir use-after-free in send verdict",
        commit: "a76624733730e541e4955fdecf506af2f6b20558",
        cve: Some("CVE-2026-74589"),
        effect: "two threads that send on one connection can make the kernel use memory that it has freed",
        broken_since: V6_1,
        mainline: Series(7, 2),
        stable: &[
            (V6_1, Since(183)),
            (V6_6, Since(152)),
            (V6_12, Since(104)),
            (V6_18, Since(45)),
            (Series(7, 1), Since(9)),
        ],
        reach: Reach::Never(
            "it takes a verdict that outlasts its message (bpf_msg_apply_bytes), which sockredir's doesn't",
        ),
        source: "CVE record of 2026-08-22",
    },
    Fix {
        title: "bpf, sockmap: Fix cork use-after-free in tcp_bpf_sendmsg()",
        commit: "2d66a033864e27ab8d5e44cb36f31d9d2413bee4",
        cve: Some("CVE-2026-68284"),
        effect: "two threads that send on one connection can make the kernel use memory that it has freed",
        broken_since: V6_1,
        mainline: Series(7, 2),
        stable: &[
            (V6_1, Since(183)),
            (V6_6, Since(148)),
            (V6_12, Since(101)),
            (V6_18, Since(42)),
            (Series(7, 1), Since(6)),
        ],
        reach: Reach::Never(
            "it takes messages that are held back (bpf_msg_cork_bytes), which sockredir doesn't",
        ),
        source: "CVE record of 2026-08-10",
    },
    Fix {
        title: "bpf, sockmap: Fix race between element replace and close()",
        commit: "ed1fc5d76b81a4d681211333c026202cad4d5649",
        cve: Some("CVE-2024-56664"),
        effect: "a socket that takes another's place in a sockmap can make the kernel use memory that it has freed",
        broken_since: V6_1,
        mainline: Series(6, 13),
        stable: &[(V6_1, Since(125)), (V6_6, Since(67)), (V6_12, Since(6))],
        reach: Reach::Never("sockredir never replaces an entry"),
        source: "CVE record of 2026-05-11",
    },
    Fix {
        title: "sock_map: avoid race between sock_map_close and sk_psock_put",
        commit: "4b4647add7d3c8530493f7247d11e257ee425bf0",
        cve: Some("CVE-2024-39500"),
        effect: "closing a socket while it is taken out of a sockmap can make the kernel call itself without end",
        broken_since: V6_1,
        mainline: Series(6, 10),
        stable: &[(V6_1, Since(95)), (V6_6, Since(35)), (Series(6, 9), Since(6))],
        reach: Reach::Never(
            "it takes a close beside the removal: sockredir removes in connect(2), while the file is in use",
        ),
        source: "CVE record of 2025-05-04",
    },
    Fix {
        title: "bpf, sockmap: Don't let sock_map_{close,destroy,unhash} call itself",
        commit: "5b4a79ba65a1ab479903fff2e604865d229b70a9",
        cve: Some("CVE-2023-52735"),
        effect: "a connection that a listener in a sockmap accepted can make the kernel call itself without end",
        broken_since: V6_1,
        mainline: Series(6, 2),
        stable: &[(V6_1, Since(13))],
        reach: Reach::Never("sockredir takes no listener in"),
        source: "CVE record of 2024-05-21, Debian's changelog of 5.10.249",
    },
];
