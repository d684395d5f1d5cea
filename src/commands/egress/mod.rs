// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk tc-egress`: where packets go, and how many.

mod args;
mod book;
mod by;
mod exclude;
mod manual;
mod named;
mod rows;
mod whose;

use std::cell::RefCell;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

pub(crate) use self::args::TcEgress;
use self::args::{Top, Way};
use self::book::{Book, Share, View};
use self::by::Columns;
pub(crate) use self::manual::MANUAL;
use self::named::Named;
use self::rows::{EVENT_FIELDS, FIELDS};
use self::whose::{RowKey, Sources};
use super::common::{clock, interval, losses_sentence, note};
use super::watch::{Change, Watch};
use crate::error::usage;
use crate::filter::libpcap::{self, Source};
use crate::kernel::attach::tc::{Direction, Order, TcBackend};
use crate::kernel::backend;
use crate::kernel::btf::BtfSource;
use crate::kernel::caps::{self, Cap};
use crate::kernel::count::Count;
use crate::kernel::egress::{Config, Counter, Event, Events, Key};
use crate::kernel::interfaces::{interfaces_and_expression, link_of, not_an_interface_either};
use crate::kernel::log;
use crate::kernel::owners::{Options, Owners, SendersBy};
use crate::kernel::run::{Flow, Timing, Turn, follow};
use crate::kernel::signals::Signals;
use crate::output::{Format, Kind, Record, Sink};

/// Rows of a table, if nothing else is asked for: what a terminal holds.
const TOP: usize = 20;

impl TcEgress {
    pub(crate) fn run(self) -> Result<ExitCode> {
        log::collect(self.verbose > 1);
        let interval = interval(self.interval)?;
        let direction = match self.direction {
            Way::Egress => Direction::Egress,
            Way::Ingress => Direction::Ingress,
        };
        let shown = Columns::resolve(self.by, direction)?;
        if self.senders.is_some() && !shown.whose() {
            return Err(usage("--senders: nothing needs it but --by process, user or cgroup"));
        }
        let needs_btf = shown.whose() || self.names;
        if self.btf.is_some() && !needs_btf {
            return Err(usage(
                "--btf: nothing needs it but --names and --by process, user or cgroup",
            ));
        }
        if self.names && (shown.nets || shown.by.addr.is_none()) && !self.events {
            let expected = match direction {
                Direction::Egress => "dst",
                Direction::Ingress => "src",
            };
            return Err(usage(format!(
                "--names: names are of addresses, which rows don't have; expected --by {expected}"
            )));
        }
        let btf = needs_btf.then(|| BtfSource::new(self.btf.as_deref())).transpose()?;
        let excluded = self.excludes.resolve()?;
        let needed = if shown.whose() {
            &[Cap::Bpf, Cap::NetAdmin, Cap::Perfmon][..]
        } else {
            &[Cap::Bpf, Cap::NetAdmin]
        };
        caps::require(needed)?;
        let (interfaces, expression) = interfaces_and_expression(&self.interfaces)?;
        let expression = expression
            .map(|expression| {
                let link = link_of(interfaces.iter())?;
                libpcap::compile(&Source { expression, link, optimize: true, resolve: false })
                    .map_err(|error| not_an_interface_either(error, Some(expression)))
            })
            .transpose()?;
        let events = match (self.events, self.all_packets) {
            (false, _) => None,
            (true, false) => Some(Events::Flows),
            (true, true) => Some(Events::Packets),
        };
        let excludes = excluded.is_some();
        let config = Config {
            direction,
            by: shown.by,
            excluded,
            expression,
            max_entries: self.max_entries,
            events,
            btf: btf.clone().filter(|_| shown.whose()),
        };

        // Before anything is in the kernel: a file that can't be opened, a signal that comes early.
        let (columns, fields) = match events {
            None => (rows::columns(shown, direction, self.names), FIELDS),
            Some(_) => {
                let several = interfaces.len() > 1;
                (rows::event_columns(self.timestamp, several, self.names), EVENT_FIELDS)
            }
        };
        let mut sink = Sink::open(&self.output.sink(), columns, fields)?;
        let mut signals = Signals::take(self.output.output.is_some())?;

        // Before the first packet is counted.
        let named = btf.as_ref().filter(|_| self.names).map(Named::start).transpose()?;
        let owners = btf.filter(|_| shown.whose()).map(|btf| self.owners(btf)).transpose()?;
        debug_assert!(!(self.first && self.last));
        let order = if self.last { Order::Last } else { Order::First };
        let chosen = backend::choose(&TcBackend::ORDER, self.backend, |backend| {
            let mut counter = Counter::load(&config, backend, interfaces.clone())?;
            counter.attach(order)?;
            Ok(counter)
        })?;
        for (backend, reason) in &chosen.passed_over {
            note(self.verbose, || format!("not {backend}: {reason}"));
        }
        let (backend, mut counter) = (chosen.backend, chosen.armed);
        note(self.verbose, || format!("armed, back end {backend}"));
        if events.is_some() {
            sink.start()?;
        }
        let names: Vec<&str> =
            counter.interfaces().iter().map(|interface| interface.name.as_str()).collect();
        let top = match (self.top, self.output.format) {
            (None, Format::Table) => Some(TOP),
            (None, _) | (Some(Top::All), _) => None,
            (Some(Top::Most(most)), _) => Some(most),
        };
        let mut session = Session {
            title: format!("{}, tc {direction} by {backend}", names.join(", ")),
            watch: Watch::new(counter.interfaces().iter()),
            view: View { interval: true, sort: self.sort, top, excludes },
            args: &self,
            order,
            direction,
            shown,
            interval,
            book: Book::new(),
            owners: owners.as_ref(),
            named: named.as_ref(),
            begin: Instant::now(),
            events: 0,
            undecodable: 0,
            gone: None,
        };
        let outcome = session.follow(&mut counter, &mut signals, &mut sink);
        counter.detach()?;
        outcome?;
        session.finish(backend, &counter, &mut sink)?;
        match session.gone {
            Some(gone) => Err(gone),
            None => Ok(ExitCode::SUCCESS),
        }
    }
}

impl TcEgress {
    /// What is missing for finding owners is told at once, since it is missing in every row.
    fn owners(&self, btf: BtfSource) -> Result<RefCell<Owners>> {
        let senders = self.senders.map_or(SendersBy::Best, SendersBy::from);
        let (owners, missing) = Owners::start(&Options { btf, senders, ..Options::default() })?;
        for missing in &missing {
            let _ = writeln!(std::io::stderr(), "bpftk: {missing}");
        }
        note(self.verbose, || match owners.senders() {
            Some(senders) => format!("who sends is seen by {senders}"),
            None => "who sends is not seen".into(),
        });
        Ok(RefCell::new(owners))
    }
}

struct Session<'a> {
    args: &'a TcEgress,
    order: Order,
    direction: Direction,
    shown: Columns,
    interval: Duration,
    view: View,
    title: String,
    watch: Watch,
    book: Book<Key, RowKey>,
    owners: Option<&'a RefCell<Owners>>,
    named: Option<&'a Named>,
    begin: Instant,
    /// Rows of --events.
    events: u64,
    /// Records that were not understood.
    undecodable: u64,
    /// Why the run ended by itself.
    gone: Option<anyhow::Error>,
}

/// Why the loop was left.
#[derive(PartialEq, Eq)]
enum Left {
    Done,
    /// Something is to be changed in the kernel, and then it goes on.
    ForChange,
}

impl Session<'_> {
    fn follow(
        &mut self,
        counter: &mut Counter,
        signals: &mut Signals,
        sink: &mut Sink,
    ) -> Result<()> {
        let end = self.args.duration.map(|duration| Instant::now() + duration);
        while self.follow_until_change(counter, signals, sink, end)? == Left::ForChange {
            for change in self.watch.look()? {
                self.change(&change, counter);
            }
            if self.watch.all_gone() && !self.args.follow {
                self.gone = Some(anyhow!("every interface is gone"));
                return Ok(());
            }
        }
        Ok(())
    }

    fn follow_until_change(
        &mut self,
        counter: &Counter,
        signals: &mut Signals,
        sink: &mut Sink,
        end: Option<Instant>,
    ) -> Result<Left> {
        let ring = counter.events()?;
        let duration = end.map(|end| end.saturating_duration_since(Instant::now()));
        let timing = Timing {
            duration: duration.map(|left| left.max(Duration::from_nanos(1))),
            interval: Some(self.interval),
            to_stdout: self.args.output.output.is_none(),
        };
        let mut left = Left::Done;
        let sources = Sources::new(&ring, self.owners, self.named)?;
        follow(&sources, signals, timing, |turn| match turn {
            Turn::Event(event) => self.event(&event, counter, sink),
            Turn::Tick => {
                self.tick(counter, sink)?;
                if self.watch.changed()? {
                    left = Left::ForChange;
                    return Ok(Flow::Stop);
                }
                Ok(Flow::Continue)
            }
            Turn::Reopen => sink.reopen().map(|()| Flow::Continue),
        })?;
        self.undecodable += ring.undecodable();
        Ok(left)
    }

    fn change(&mut self, change: &Change, counter: &mut Counter) {
        let tell = |text: &str| {
            let _ = writeln!(std::io::stderr(), "bpftk: {text}");
        };
        tell(&change.to_string());
        if let Change::Back { at, interface } = change
            && self.args.follow
        {
            match counter.attach_again(*at, interface.clone(), self.order) {
                Ok(()) => {
                    self.watch.attached(*at, interface);
                    tell(&format!("{}: attached again", interface.name));
                }
                Err(error) => tell(&format!("{error:#}")),
            }
        }
    }

    fn event(&mut self, event: &Event, counter: &Counter, sink: &mut Sink) -> Result<Flow> {
        let full = |events| self.args.max_events.is_some_and(|most| events >= most);
        if full(self.events) {
            return Ok(Flow::Stop);
        }
        self.events += 1;
        let iface = counter
            .interfaces()
            .iter()
            .find(|interface| interface.index == event.interface)
            .map(|interface| interface.name.as_str());
        let names = self.named.map(|named| named.of_event(event, self.direction));
        sink.event(&rows::event(event, iface, self.direction, names))?;
        Ok(if full(self.events) { Flow::Stop } else { Flow::Continue })
    }

    /// Takes what was counted, and writes it.
    fn tick(&mut self, counter: &Counter, sink: &mut Sink) -> Result<()> {
        if self.args.events {
            return Ok(());
        }
        self.take(counter)?;
        let title = format!("{}, {}", self.title, clock(self.begin.elapsed()));
        self.write(&title, self.view, sink)
    }

    fn take(&mut self, counter: &Counter) -> Result<()> {
        let taken = counter.take()?;
        if let Some(owners) = self.owners {
            // What was sent before is known now.
            owners.borrow_mut().take()?;
        }
        if let Some(named) = self.named {
            named.take(self.owners)?;
        }
        let (owners, shown) = (self.owners, self.shown);
        let row = |key: &Key| whose::row(key, owners, shown);
        self.book.add(taken.keys.into_iter(), taken.rows, Instant::now(), row);
        Ok(())
    }

    fn row(&self, key: &Key) -> RowKey {
        whose::row(key, self.owners, self.shown)
    }

    fn write(&self, title: &str, view: View, sink: &mut Sink) -> Result<()> {
        let records: Vec<Record> = self
            .book
            .lines(view, |key| self.row(key))
            .iter()
            .map(|line| {
                let names = self.named.and_then(|named| Some(named.of(line.what.row()?)));
                let record = rows::record(line, self.shown, self.direction, view.interval, names);
                // A column of tables, in which the fields of the others are one.
                if sink.is_table() && self.shown.process {
                    record.with("process", rows::process_cell(line))
                } else {
                    record
                }
            })
            .collect();
        sink.interval(title, &records)
    }

    /// After detaching: what came meanwhile, the totals, and what is missing.
    fn finish(&mut self, backend: TcBackend, counter: &Counter, sink: &mut Sink) -> Result<()> {
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
        let shares = self.owners.map(|_| {
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
        let counted = if self.args.events {
            rows.total - rows.excluded - rows.not_ip - rows.malformed
        } else {
            self.book.counted()
        };
        let sum = counted + rows.excluded + rows.not_ip + rows.malformed;
        let record = Record::new(Kind::Summary)
            .with("command", "tc-egress")
            .with("backend", backend.to_string())
            .with("direction", self.direction.to_string())
            .with("packets", rows.total.packets)
            .with("bytes", rows.total.bytes)
            .with("counted_packets", counted.packets)
            .with("excluded_packets", rows.excluded.packets)
            .with("not_ip_packets", rows.not_ip.packets)
            .with("malformed_packets", rows.malformed.packets)
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
            .with("lost_names", self.named.map(Named::lost).transpose()?);
        let mut parts = vec![format!(
            "{} packets: {} counted, {} excluded, {} not IP, {} malformed",
            rows.total.packets,
            counted.packets,
            rows.excluded.packets,
            rows.not_ip.packets,
            rows.malformed.packets
        )];
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
        if sum.packets != rows.total.packets {
            parts.push(format!("the rows add up to {}: please report this", sum.packets));
        }
        sink.summary(&record, &parts.join("; "))
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
