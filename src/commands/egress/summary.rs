// SPDX-License-Identifier: MIT OR Apache-2.0

//! The end of a run: what came meanwhile, the totals, and what is missing.

use anyhow::Result;

use super::book::{Share, View};
use super::named::Named;
use super::session::Session;
use super::whose;
use crate::commands::common::{losses_sentence, note, tell};
use crate::commands::lapses::{lapses_sentence, with_lapses};
use crate::commands::unseen::{unseen_sentence, with_unseen};
use crate::kernel::attach::tc::TcBackend;
use crate::kernel::count::Count;
use crate::kernel::egress::{Counter, Key};
use crate::output::{Kind, Record, Sink};

impl Session<'_> {
    /// After detaching.
    pub(super) fn finish(
        &mut self,
        backend: TcBackend,
        counter: &Counter,
        sink: &mut Sink,
    ) -> Result<()> {
        let ring = counter.events()?;
        while ring.fill()? {
            while let Some(event) = ring.next() {
                self.event(&event, counter, sink)?;
            }
        }
        let undecodable = self.undecodable + ring.undecodable();
        self.take(counter)?;
        if !self.args.events {
            sink.settle();
            self.write("Total", View { interval: false, ..self.view }, sink)?;
        }
        let shares = self.owners.filter(|_| self.shown.whose()).map(|_| {
            let shares = self.book.shares(|key| self.row(key));
            let of = |share| shares.get(&share).copied().unwrap_or_default();
            Shares {
                process: of(Share::Process),
                kernel: of(Share::Kernel),
                forwarded: of(Share::Forwarded),
                unknown: of(Share::Unknown),
            }
        });
        let losses = counter.losses()?;
        let rows = *self.book.rows();
        // Those of --events have no keys.
        let counted =
            if self.args.events { rows.total - rows.without_key() } else { self.book.counted() };
        let sum = counted + rows.without_key();
        let blocks = self.names.is_some();
        let dry_run = self.args.blocks.is_dry_run();
        let record = Record::new(Kind::Summary)
            .with("command", "tc-egress")
            .with("backend", backend.to_string())
            .with("direction", self.direction.to_string())
            .with("packets", rows.total.packets)
            .with("bytes", rows.total.bytes)
            .with("counted_packets", counted.packets)
            .with("excluded_packets", rows.excluded.packets)
            .with("not_ip_packets", (rows.not_ip + rows.not_ip_blocked).packets)
            .with("malformed_packets", (rows.malformed + rows.malformed_blocked).packets)
            .with("dry_run", blocks.then_some(dry_run))
            .with("blocked_packets", blocks.then_some(rows.blocked.packets))
            .with("blocked_bytes", blocks.then_some(rows.blocked.bytes))
            .with("refused_calls", blocks.then_some(rows.calls))
            .with("refused_options", blocks.then_some(self.bypasses))
            .with("unmatched_packets", rows.unmatched.packets)
            .with("no_room_full", rows.full.packets)
            .with("no_room_busy", rows.busy.packets)
            .with("no_room_memory", rows.no_memory.packets)
            .with("no_room_refused", rows.refused.packets)
            .with("unaccounted", rows.total.packets as i64 - sum.packets as i64)
            .with("process_packets", shares.as_ref().map(|shares| shares.process.packets))
            .with("kernel_packets", shares.as_ref().map(|shares| shares.kernel.packets))
            .with("forwarded_packets", shares.as_ref().map(|shares| shares.forwarded.packets))
            .with("unknown_packets", shares.as_ref().map(|shares| shares.unknown.packets))
            .with("events", self.events)
            .with("lost", losses.rows() + undecodable)
            .with("lost_ring_full", losses.ring_full)
            .with("lost_names", self.named.map(Named::lost).transpose()?)
            .with("left_out", self.limiter.total())
            .with("unwritten", sink.unwritten());
        let lapsed = counter.lapsed();
        let record = with_lapses(record, lapsed, rows.lapsed);
        let unseen = self.unseen.as_ref().map(|_| self.excess.total);
        let record = with_unseen(record, unseen);
        let mut parts = vec![format!(
            "{} packets: {} counted, {} excluded, {} not IP, {} malformed",
            rows.total.packets,
            counted.packets,
            rows.excluded.packets,
            (rows.not_ip + rows.not_ip_blocked).packets,
            (rows.malformed + rows.malformed_blocked).packets
        )];
        if blocks {
            let (packets, calls) = (rows.blocked.packets, rows.calls);
            parts.push(if dry_run {
                format!(
                    "{packets} of them would have been dropped, and {calls} calls of processes refused"
                )
            } else {
                format!("{packets} of them dropped, and {calls} calls of processes refused")
            });
        }
        if blocks && !dry_run {
            parts.extend(lapses_sentence(lapsed, rows.lapsed));
        }
        parts.extend(unseen_sentence(unseen));
        let not_stored = rows.not_stored().packets;
        if not_stored > 0 {
            parts.push(format!(
                "{not_stored} of them counted as other, since the table had no room: --max-entries"
            ));
        }
        parts.extend(shares.map(|shares| shares.sentence()));
        if let Some(owners) = self.owners {
            let owners = owners.borrow();
            note(self.args.verbose, || {
                let (sockets, rounds) = owners.figures();
                let lost = owners.lost();
                format!(
                    "{sockets} sockets known, {rounds} looks at all open files, {lost} records lost"
                )
            });
        }
        if self.args.events {
            parts.push(format!("{} rows", self.events));
            parts.push(losses_sentence(losses, undecodable));
        }
        match self.limiter.total() {
            0 => {}
            left_out => parts.push(format!("{left_out} rows left out by --audit-rate")),
        }
        if sum.packets != rows.total.packets {
            parts.push(format!("the rows add up to {}: please report this", sum.packets));
        }
        let mut suggested = Ok(());
        if let Some(suggestions) = &self.suggestions {
            let names: Vec<&str> =
                counter.interfaces().iter().map(|interface| interface.name.as_str()).collect();
            let owner = |key: &Key| whose::owner(key.socket, self.owners);
            suggested = suggestions.write(&names.join(", "), &rows, owner).map(|entries| {
                tell(&format!("{entries} addresses written for --allow-only"));
            });
        }
        sink.summary(&record, &parts.join("; "))?;
        suggested
    }
}

/// What was whose.
#[derive(Clone, Copy, Debug)]
struct Shares {
    process: Count,
    kernel: Count,
    forwarded: Count,
    unknown: Count,
}

impl Shares {
    /// The share of what processes sent, or may have sent.
    fn sentence(&self) -> String {
        let known = self.process.packets;
        let all = known + self.unknown.packets;
        // Rounded down: all of them are all of them.
        let share = match (known * 1000).checked_div(all) {
            Some(permille) => format!(
                "{}.{} % of {all} packets of processes attributed",
                permille / 10,
                permille % 10
            ),
            None => "no packets of processes".into(),
        };
        format!(
            "{share}; {} the kernel's, {} forwarded",
            self.kernel.packets, self.forwarded.packets
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_down() {
        let shares = |process, unknown| {
            let count = |packets| Count { packets, bytes: 0 };
            let (kernel, forwarded) = (count(3), count(4));
            let (process, unknown) = (count(process), count(unknown));
            Shares { process, kernel, forwarded, unknown }.sentence()
        };
        assert!(shares(1999, 1).starts_with("99.9 % of 2000 packets"), "{}", shares(1999, 1));
        assert!(shares(5, 0).starts_with("100.0 % of 5 packets"));
        assert_eq!(shares(0, 0), "no packets of processes; 3 the kernel's, 4 forwarded");
    }
}
