// SPDX-License-Identifier: MIT OR Apache-2.0

//! What leaves through an interface and never passes tc: sockets with PACKET_QDISC_BYPASS, AF_XDP, pktgen, and what a
//! program in front of ours lets pass for good. No program of tc's sees it; but the interface counts it.
//!
//! An interface may count a large packet (GSO) once or as its segments, and what a queue drops not at all. So only what it
//! counts beyond all segments that passed tc can be told: never too much, sometimes too little.

use std::collections::HashMap;

use anyhow::{Context, Result};

use super::count::Count;
use super::netlink::{Interface, Netlink};

/// Devices of software that count what they are given to send, and nothing else. A tunnel also counts its own packets,
/// a bond those of its links.
const COMPARABLE: [&str; 8] =
    ["veth", "vlan", "bridge", "macvlan", "ipvlan", "tun", "dummy", "ifb"];
/// Of these, what counts when a packet is handed over.
const AT_ONCE: [&str; 7] = ["veth", "vlan", "bridge", "macvlan", "ipvlan", "dummy", "ifb"];
/// What a device that counts later (a network card, when a packet has left it; tun, when it is read) may have waiting.
const WAITING: u64 = 1024;

#[derive(Clone, Copy, Debug)]
struct Sent {
    first: Count,
    last: Count,
}

/// What interfaces have sent since this was made.
#[derive(Debug)]
pub(crate) struct Unseen {
    netlink: Netlink,
    sent: HashMap<i32, Sent>,
    /// What was on its way already.
    waiting: u64,
    told: Count,
}

/// What was not seen: since the last time, and all in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Excess {
    pub(crate) new: Count,
    pub(crate) total: Count,
}

impl Unseen {
    /// After attaching. Nothing, if an interface doesn't count what passes tc alone.
    pub(crate) fn begin<'a>(
        interfaces: impl Iterator<Item = &'a Interface> + Clone,
    ) -> Result<Option<Self>> {
        let mut waiting = 0;
        for interface in interfaces.clone() {
            let kind = interface.kind.as_deref();
            if kind.is_some_and(|kind| !COMPARABLE.contains(&kind)) {
                return Ok(None);
            }
            if !kind.is_some_and(|kind| AT_ONCE.contains(&kind)) && interface.index != 1 {
                waiting += WAITING;
            }
        }
        let netlink = Netlink::open().context("cannot open a netlink socket")?;
        for interface in interfaces.clone() {
            waiting += netlink
                .queued(interface.index)
                .with_context(|| format!("cannot list the qdiscs of {}", interface.name))?;
        }
        let mut unseen = Self { netlink, sent: HashMap::new(), waiting, told: Count::default() };
        unseen.look(interfaces)?;
        Ok(Some(unseen))
    }

    /// Reads what the interfaces have sent by now. Before what the programs counted is read, which then is all of that.
    pub(crate) fn look<'a>(
        &mut self,
        interfaces: impl Iterator<Item = &'a Interface>,
    ) -> Result<()> {
        let all = self.netlink.interfaces().context("cannot list the interfaces")?;
        for interface in interfaces {
            // One that is gone has sent what it had at the last look, at least.
            if let Some(now) = all.iter().find(|now| now.index == interface.index) {
                let sent =
                    self.sent.entry(now.index).or_insert(Sent { first: now.sent, last: now.sent });
                sent.last = now.sent;
            }
        }
        Ok(())
    }

    /// What can't have been `seen`: all packets that the programs let go on, as segments.
    pub(crate) fn excess(&mut self, seen: Count) -> Excess {
        let sent: Count = self.sent.values().map(|sent| sent.last - sent.first).sum();
        let before = self.told;
        self.told = excess(sent, seen, self.waiting, before);
        Excess { new: self.told - before, total: self.told }
    }
}

/// It never gets less: what was told was there.
fn excess(sent: Count, seen: Count, waiting: u64, before: Count) -> Count {
    let packets = sent.packets.saturating_sub(seen.packets).saturating_sub(waiting);
    if packets <= before.packets {
        return before;
    }
    Count { packets, bytes: sent.bytes.saturating_sub(seen.bytes).max(before.bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nothing_else_explains_is_unseen() {
        let count = |packets| Count { packets, bytes: 100 * packets };
        let none = Count::default();
        assert_eq!(excess(count(10), count(10), 0, none), none);
        // Large packets that were counted once.
        assert_eq!(excess(count(3), count(90), 0, none), none);
        // What waited when it began.
        assert_eq!(excess(count(15), count(10), 5, none), none);
        assert_eq!(excess(count(17), count(10), 5, none).packets, 2);
        // What large packets hide later was there all the same.
        assert_eq!(excess(count(17), count(90), 0, count(7)), count(7));
    }
}
