// SPDX-License-Identifier: MIT OR Apache-2.0

//! Mistakes of Linux in what `sockredir` makes of it, and the releases that mended them. Only what could be looked up: for a
//! series that an entry doesn't name, nobody here knows.
//!
//! Sources: the kernel's own CVE records (cvelistV5, which name the first release of each series that has the fix), the review
//! mails of stable releases, and Debian's changelogs, which list every commit of a series' stable releases.

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

const V5_10: Series = Series(5, 10);
const V5_15: Series = Series(5, 15);
const V6_1: Series = Series(6, 1);
const V6_6: Series = Series(6, 6);
const V6_12: Series = Series(6, 12);
const V6_18: Series = Series(6, 18);

use Stable::{NotThere, Since, Unaffected};

/// What can be reached first, the worst of it before the rest.
pub(super) const FIXES: &[Fix] = &[
    Fix {
        title: "mptcp: Fix proto fallback detection with BPF",
        commit: "c77b3b79a92e3345aa1ee296180d1af4e7031f8f",
        cve: Some("CVE-2025-68227"),
        effect: "accepting a plain TCP connection on an MPTCP listener (Go's default) can crash the kernel",
        broken_since: Series(5, 7),
        mainline: V6_18,
        stable: &[
            (V5_10, Since(247)),
            (V5_15, Since(197)),
            (V6_1, Since(159)),
            (V6_6, Since(118)),
            (V6_12, Since(60)),
            (Series(6, 17), Since(10)),
        ],
        reach: Reach::Mptcp,
        source: "CVE record of 2026-05-11",
    },
    Fix {
        title: "skmsg: Fix wrong last sg check in sk_msg_recvmsg()",
        commit: "583585e48d965338e73e1eb383768d16e0922d73",
        cve: None,
        effect: "reading what was redirected can crash the kernel",
        // 9974d37ea75f, and its backports.
        broken_since: V5_15,
        mainline: Series(6, 0),
        stable: &[(V5_15, Since(66)), (Series(5, 19), Since(8))],
        reach: Reach::Always,
        source: "review mails of 5.15.66 and 5.19.8; Debian's changelog of 5.10.262 has neither the fix nor what it mends",
    },
    Fix {
        title: "tcp_bpf: Fix one concurrency problem in the tcp_bpf_send_verdict function",
        commit: "cd9733f5d75c94a32544d6ce5be47e14194cf137",
        cve: None,
        effect: "of two threads that send on one connection, one's bytes can go by the other's verdict",
        broken_since: Series(4, 20),
        mainline: V5_15,
        // Earlier releases of 5.10 may have it.
        stable: &[(V5_10, Since(84)), (Series(5, 14), Since(16))],
        reach: Reach::Always,
        source: "review mail of 5.14.16, Debian's changelog of 5.10.84",
    },
    Fix {
        title: "bpf, sockmap: Fix repeated calls to sock_put() when msg has more_data",
        commit: "7a9841ca025275b5b0edfb0b618934abb6ceec15",
        cve: Some("CVE-2022-50536"),
        effect: "a send that memory is short for can release the receiver's socket twice, which corrupts memory",
        broken_since: V5_10,
        mainline: Series(6, 2),
        stable: &[
            (V5_10, Since(163)),
            (V5_15, Since(86)),
            (Series(6, 0), Since(16)),
            (V6_1, Since(2)),
        ],
        reach: Reach::Always,
        source: "CVE record of 2025-10-07",
    },
    Fix {
        title: "bpf, sockmap: Fix memleak in tcp_bpf_sendmsg while sk msg is full",
        commit: "9c34e38c4a870eb30b13f42f5b44f42e9d19ccb8",
        cve: Some("CVE-2022-49209"),
        effect: "a send that has to wait for memory can lose some of the kernel's for good",
        broken_since: Series(4, 20),
        mainline: Series(5, 18),
        stable: &[
            (V5_10, Since(110)),
            (V5_15, Since(33)),
            (Series(5, 16), Since(19)),
            (Series(5, 17), Since(2)),
        ],
        reach: Reach::Always,
        source: "CVE record of 2025-02-26",
    },
    Fix {
        title: "tls: reject the combination of TLS and sockmap",
        commit: "460e6486617c17dd19abe8f3fc67d9a6fa25f8ca",
        cve: Some("CVE-2026-93824"),
        effect: "a program that turns on kernel TLS for a redirected connection can corrupt the kernel's memory",
        broken_since: Series(4, 20),
        mainline: Series(7, 2),
        stable: &[
            (V5_10, NotThere),
            (V5_15, NotThere),
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
        title: "mptcp: Disallow MPTCP subflows from sockmap",
        commit: "fbade4bd08ba52cbc74a71c4e86e736f059f99f7",
        cve: None,
        effect: "a part of an MPTCP connection in a sockmap loses that connection's data",
        broken_since: Series(5, 6),
        mainline: V6_18,
        stable: &[
            // It needs what 5.10 doesn't have: the patch failed to apply.
            (V5_10, NotThere),
            (V5_15, Since(197)),
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
        broken_since: Series(4, 20),
        mainline: Series(7, 2),
        stable: &[
            (V5_10, Since(265)),
            (V5_15, Since(216)),
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
        broken_since: Series(4, 20),
        mainline: Series(7, 2),
        stable: &[
            (V5_10, Since(265)),
            (V5_15, Since(216)),
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
        broken_since: Series(4, 20),
        mainline: Series(6, 13),
        stable: &[
            (V5_10, Since(236)),
            (V5_15, Since(180)),
            (V6_1, Since(125)),
            (V6_6, Since(67)),
            (V6_12, Since(6)),
        ],
        reach: Reach::Never("sockredir never replaces an entry"),
        source: "CVE record of 2026-05-11",
    },
    Fix {
        title: "sock_map: avoid race between sock_map_close and sk_psock_put",
        commit: "4b4647add7d3c8530493f7247d11e257ee425bf0",
        cve: Some("CVE-2024-39500"),
        effect: "closing a socket while it is taken out of a sockmap can make the kernel call itself without end",
        broken_since: Series(5, 13),
        mainline: Series(6, 10),
        stable: &[
            (V5_10, Unaffected),
            (V5_15, Since(162)),
            (V6_1, Since(95)),
            (V6_6, Since(35)),
            (Series(6, 9), Since(6)),
        ],
        reach: Reach::Never("sockredir takes no socket out"),
        source: "CVE record of 2025-05-04",
    },
    Fix {
        title: "bpf, sockmap: Don't let sock_map_{close,destroy,unhash} call itself",
        commit: "5b4a79ba65a1ab479903fff2e604865d229b70a9",
        cve: Some("CVE-2023-52735"),
        effect: "a connection that a listener in a sockmap accepted can make the kernel call itself without end",
        broken_since: Series(4, 20),
        mainline: Series(6, 2),
        // Earlier releases of 5.10 may have it.
        stable: &[(V5_10, Since(249)), (V5_15, Since(95)), (V6_1, Since(13))],
        reach: Reach::Never("sockredir takes no listener in"),
        source: "CVE record of 2024-05-21, Debian's changelog of 5.10.249",
    },
];
