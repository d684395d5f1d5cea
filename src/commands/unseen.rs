// SPDX-License-Identifier: MIT OR Apache-2.0

//! What left through an interface past tc, as the commands tell of it.

use super::common::{counted, tell};
use crate::kernel::bypass::{Bypass, Refusal};
use crate::kernel::count::Count;
use crate::output::{Field, Record, printable};

/// While something is dropped at egress. Where it is not to be had, that is told.
pub(super) fn refuse_bypass() -> Option<Bypass> {
    Bypass::refuse()
        .map_err(|error| tell(&format!("ways past tc are not refused, only counted: {error:#}")))
        .ok()
}

pub(super) fn bypass_sentence(refusal: &Refusal) -> String {
    let Refusal { tgid, comm, option, .. } = refusal;
    format!("process {tgid} ({}) was refused {option}, a way past tc", printable(comm))
}

/// For the last line.
pub(super) fn unseen_sentence(unseen: Option<Count>) -> Option<String> {
    let packets = unseen.filter(|unseen| unseen.packets > 0)?.packets;
    let packets = counted(packets, "packet", "packets");
    Some(format!(
        "{packets} left without passing tc, neither looked at nor dropped (PACKET_QDISC_BYPASS, AF_XDP, or a program in front)"
    ))
}

pub(super) fn with_unseen(record: Record, unseen: Option<Count>) -> Record {
    record
        .with("unseen_packets", unseen.map(|unseen| unseen.packets))
        .with("unseen_bytes", unseen.map(|unseen| unseen.bytes))
}

/// Of a summary.
pub(super) const UNSEEN_PACKETS: Field = Field::new(
    "unseen_packets",
    "at egress: packets that left without passing tc, as far as the interfaces' own counts show it; null where these can't be compared",
);
pub(super) const UNSEEN_BYTES: Field = Field::new("unseen_bytes", "their bytes, likewise");

/// For the manual pages.
pub(super) const UNSEEN: &str = "tc does not see everything that leaves. A packet socket with PACKET_QDISC_BYPASS (it takes CAP_NET_RAW, which Docker gives its containers), AF_XDP, pktgen, and packets that an XDP program sends or redirects go to the driver past tc: they are neither dropped nor counted by rows. Nor is what a program in front of bpftk's accepts for good. So what is seen at egress is compared with what the interface itself counts as sent, in every interval; more than that is a row `unseen`, beside what the other rows add up to, and in the summary. It is never too much, but may be too little: an interface that counts a large packet (GSO) once hides as many others as it has segments, and a network card or tun up to 1024 that may have waited in it when bpftk began. Tunnels and bonds, which count packets of their own, are not compared (unseen_packets is null), and what comes in isn't either. While something is dropped at egress, processes of the interface's network namespace that set PACKET_QDISC_BYPASS, or make an AF_XDP socket's transmit ring, get EPERM, and that is told: a bump in the way, and no wall, since calls of 32-bit programs can't be refused so, sockets that have it already keep it, and pktgen and XDP programs ask nobody.";
