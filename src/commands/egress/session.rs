// SPDX-License-Identifier: MIT OR Apache-2.0

//! The run, from the first packet to the last.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::args::TcEgress;
use super::block::{RuleNames, named};
use super::book::{Book, Line, View, What};
use super::by::Columns;
use super::named::Named;
use super::rate::{AuditRate, Limiter};
use super::rows::{self, About, Style};
use super::suggest::Suggestions;
use super::whose::{self, RowKey, Sources, Whose};
use crate::commands::common::{clock, tell};
use crate::commands::lapses::Lapses;
use crate::commands::lists::Rereading;
use crate::commands::unseen::bypass_sentence;
use crate::commands::watch::Following;
use crate::kernel::attach::tc::Direction;
use crate::kernel::bypass::Bypass;
use crate::kernel::count::Count;
use crate::kernel::egress::{Counter, Event, Key, NewLists, RuleHook};
use crate::kernel::owners::{Owner, Owners};
use crate::kernel::run::{Flow, Turn, follow};
use crate::kernel::signals::Signals;
use crate::kernel::unseen::{Excess, Unseen};
use crate::output::{Format, Record, Sink};

/// The kernel is asked no more often than this how many events it lost.
const LOSSES_ARE_FRESH: Duration = Duration::from_millis(20);

pub(super) struct Session<'a> {
    pub(super) args: &'a TcEgress,
    pub(super) direction: Direction,
    pub(super) shown: Columns,
    pub(super) interval: Duration,
    pub(super) view: View,
    pub(super) title: String,
    pub(super) book: Book<Key, RowKey>,
    /// Calls that were refused, as if they were packets.
    pub(super) calls: Book<Key, RowKey>,
    /// Where something is blocked.
    pub(super) names: Option<RuleNames>,
    pub(super) owners: Option<&'a RefCell<Owners>>,
    pub(super) named: Option<&'a Named>,
    pub(super) suggestions: Option<Suggestions>,
    pub(super) begin: Instant,
    pub(super) limiter: Limiter,
    /// Rows of events.
    pub(super) events: u64,
    /// Those that were lost, and when the kernel was asked.
    pub(super) lost: (u64, Option<Instant>),
    /// Records that were not understood.
    pub(super) undecodable: u64,
    /// What SIGHUP has read again, and how much is in each file.
    pub(super) rereading: Rereading<(NewLists, Vec<String>)>,
    /// What was told of times without a heartbeat.
    pub(super) lapses: Lapses,
    /// Where the interfaces' own counts can be compared with.
    pub(super) unseen: Option<Unseen>,
    pub(super) excess: Excess,
    /// What refuses to let packets past tc, and how often it did.
    pub(super) bypass: Option<Bypass>,
    pub(super) bypasses: u64,
}

impl<'a> Session<'a> {
    /// Of the command's own defaults; the rest is to be filled in.
    pub(super) fn new(args: &'a TcEgress, view: View) -> Self {
        Self {
            args,
            direction: Direction::Egress,
            shown: Columns::OWNER,
            interval: Duration::from_secs(1),
            view,
            title: String::new(),
            book: Book::new(),
            calls: Book::new(),
            names: None,
            owners: None,
            named: None,
            suggestions: None,
            limiter: Limiter::new(AuditRate::All),
            begin: Instant::now(),
            events: 0,
            lost: (0, None),
            undecodable: 0,
            rereading: Rereading::default(),
            lapses: Lapses::default(),
            unseen: None,
            excess: Excess::default(),
            bypass: None,
            bypasses: 0,
        }
    }

    /// Until the end, or until something is to be changed in the kernel.
    pub(super) fn follow(
        &mut self,
        following: &mut Following,
        counter: &Counter,
        signals: &mut Signals,
        sink: &mut Sink,
    ) -> Result<()> {
        let ring = counter.events()?;
        let timing = following.timing(self.interval, self.args.output.output.is_none());
        let sources = Sources::new(&ring, self.owners, self.named)?;
        follow(&sources, signals, timing, |turn| match turn {
            Turn::Event(event) => self.event(&event, counter, sink),
            Turn::Rest => Ok(Flow::Continue),
            Turn::Tick => {
                self.tick(counter, sink)?;
                // The old routes are better than no block at all.
                if let Err(error) = counter.follow_routes() {
                    tell(&format!("a change of routes is not followed: {error:#}"));
                }
                Ok(Flow::Continue)
            }
            Turn::Look => {
                self.take_reread(counter);
                let harmless = self.names.is_none() || self.args.blocks.is_dry_run();
                let passed = || Ok(counter.passed_lapsed()?.packets);
                self.lapses.tell(counter.lapsed(), harmless, passed)?;
                self.tell_bypasses(sink)?;
                Ok(following.look(|| counter.lost()))
            }
            Turn::Reopen => {
                sink.reopen()?;
                self.reread(counter);
                Ok(Flow::Continue)
            }
        })?;
        self.undecodable += ring.undecodable();
        Ok(())
    }

    /// Of socket options that were refused, a line each.
    pub(super) fn tell_bypasses(&mut self, sink: &mut Sink) -> Result<()> {
        let refusals = self.bypass.as_ref().map(Bypass::refusals).transpose()?;
        for refusal in refusals.into_iter().flatten() {
            tell(&bypass_sentence(&refusal));
            self.bypasses += 1;
            if self.args.output.format == Format::Json {
                self.events += 1;
                let seq = self.events + self.lost.0 + self.limiter.total();
                sink.event(&rows::bypass(&refusal, seq, self.lost.0))?;
            }
        }
        Ok(())
    }

    fn reread(&mut self, counter: &Counter) {
        if !self.args.blocks.rereads() {
            return;
        }
        let blocks = self.args.blocks.clone();
        let interfaces = named(counter.interfaces());
        self.rereading.begin(move || {
            let lists = blocks.lists(&interfaces, false)?;
            let (blocked, allowed) = (lists.blocked.as_ref(), lists.allowed.as_ref());
            let new = NewLists::new(blocked, allowed, &lists.spares)?;
            Ok((new, lists.entries))
        });
    }

    /// Lists that can't be used are told of, and the old ones stay.
    fn take_reread(&mut self, counter: &Counter) {
        let Some(outcome) = self.rereading.take() else { return };
        let outcome = outcome.and_then(|(lists, entries)| {
            counter.set_lists(lists)?;
            Ok(entries)
        });
        match outcome {
            Ok(entries) => tell(&format!("the lists are read again: {}", entries.join(", "))),
            Err(error) => tell(&format!("the lists stay as they were: {error:#}")),
        }
    }

    pub(super) fn event(
        &mut self,
        event: &Event,
        counter: &Counter,
        sink: &mut Sink,
    ) -> Result<Flow> {
        let full = |events| self.args.max_events.is_some_and(|most| events >= most);
        if full(self.events) {
            return Ok(Flow::Stop);
        }
        let owner = || {
            let owner = whose::owner(event.socket, self.owners)?;
            Some(match owner {
                // The caller is known better than the socket's owner, who may be another.
                Owner::Process(process, _)
                    if event.tgid.is_some_and(|it| it != process.id.tgid) =>
                {
                    Owner::Unknown
                }
                owner => owner,
            })
        };
        let user = || Whose::of(owner()?, Columns::OWNER).user;
        let Some(left_out) = self.limiter.admits(event, user) else { return Ok(Flow::Continue) };
        self.events += 1;
        if self.lost.1.is_none_or(|asked| asked.elapsed() >= LOSSES_ARE_FRESH) {
            self.lost = (counter.losses()?.rows(), Some(Instant::now()));
        }
        let iface = counter
            .interfaces()
            .iter()
            .find(|interface| Some(interface.index) == event.interface)
            .map(|interface| interface.name.as_str());
        let whose = owner().map(|owner| Whose::of(owner, Columns::OWNER));
        let process = whose.as_ref().and_then(|whose| whose.process.as_ref());
        let identity = process.map(|process| process.id);
        let names = self.named.map(|named| named.of_event(event, self.direction, identity));
        let cell = whose.as_ref().map(rows::process_cell);
        let record = rows::event(
            event,
            About {
                iface,
                direction: self.direction,
                seq: self.events + self.lost.0 + self.limiter.total(),
                lost: self.lost.0,
                left_out,
                whose,
                names,
                rules: self.names.as_ref(),
            },
        );
        // A column of tables, in which the fields of the others are one.
        let record = if sink.is_table() { record.with("process", cell) } else { record };
        sink.event(&record)?;
        Ok(if full(self.events) { Flow::Stop } else { Flow::Continue })
    }

    /// Takes what was counted, and writes it.
    fn tick(&mut self, counter: &Counter, sink: &mut Sink) -> Result<()> {
        if self.args.events && self.suggestions.is_none() {
            return Ok(());
        }
        self.look_at_sent(counter)?;
        self.take(counter)?;
        if self.args.events {
            return Ok(());
        }
        let title = format!("{}, {}", self.title, clock(self.begin.elapsed()));
        self.write(&title, self.view, sink)
    }

    pub(super) fn take(&mut self, counter: &Counter) -> Result<()> {
        let taken = counter.take()?;
        if let Some(owners) = self.owners {
            // What was sent before is known now.
            owners.borrow_mut().take()?;
        }
        if let Some(named) = self.named {
            named.take(self.owners)?;
        }
        let (owners, named, shown) = (self.owners, self.named, self.shown);
        let now = Instant::now();
        let row = |key: &Key| whose::row(key, owners, named, shown);
        if let Some(suggestions) = &mut self.suggestions {
            let owner = |key: &Key| whose::owner(key.socket, owners);
            let names = |key: &Key| named.map(|named| named.believed(key)).unwrap_or_default();
            suggestions.add(&taken.keys, &taken.calls, owner, names);
        }
        self.book.add(taken.keys.into_iter(), taken.rows, now, row);
        self.calls.add(taken.calls.into_iter(), Default::default(), now, row);
        if let Some(unseen) = &mut self.unseen {
            let rows = self.book.rows();
            let stopped =
                if self.args.blocks.is_dry_run() { Count::default() } else { rows.blocked };
            self.excess = unseen.excess(rows.total + rows.unmatched - stopped);
        }
        Ok(())
    }

    /// What the interfaces say that they sent: before what was counted is taken, and at the end before detaching.
    pub(super) fn look_at_sent(&mut self, counter: &Counter) -> Result<()> {
        match &mut self.unseen {
            Some(unseen) => unseen.look(counter.interfaces().iter()),
            None => Ok(()),
        }
    }

    pub(super) fn row(&self, key: &Key) -> RowKey {
        whose::row(key, self.owners, self.named, self.shown)
    }

    pub(super) fn write(&self, title: &str, view: View, sink: &mut Sink) -> Result<()> {
        // They are no packets, of which something may be excluded.
        let calls = View { excludes: false, ..view };
        let unseen = self.unseen_line(view);
        if sink.is_table() {
            let mut records = Vec::new();
            for (book, view, calls) in [(&self.book, view, false), (&self.calls, calls, true)] {
                self.records(book, view, calls, true, |more| {
                    records.extend(more);
                    Ok(())
                })?;
            }
            records.extend(unseen);
            return sink.interval(title, &records);
        }
        for (book, view, calls) in [(&self.book, view, false), (&self.calls, calls, true)] {
            self.records(book, view, calls, false, |records| sink.interval(title, &records))?;
        }
        unseen.map_or(Ok(()), |record| sink.interval(title, &[record]))
    }

    /// What the programs did not see of what the interfaces sent.
    fn unseen_line(&self, view: View) -> Option<Record> {
        let Excess { new, total } = self.excess;
        let line = Line { what: What::Unseen, new, total };
        let shown = if view.interval { new } else { total };
        (shown.packets > 0).then(|| rows::record(&line, self.style(view, false), None))
    }

    fn style(&self, view: View, calls: bool) -> Style<'_> {
        Style {
            shown: self.shown,
            direction: self.direction,
            interval: view.interval,
            rules: self.names.as_ref(),
            hook: if calls { RuleHook::Connect } else { RuleHook::Tc },
        }
    }

    /// Some at a time: a record takes a kilobyte or more.
    fn records(
        &self,
        book: &Book<Key, RowKey>,
        view: View,
        calls: bool,
        table: bool,
        mut take: impl FnMut(Vec<Record>) -> Result<()>,
    ) -> Result<()> {
        const CHUNK: usize = 1024;
        let style = self.style(view, calls);
        let lines = book.lines(view, |key| self.row(key));
        lines.chunks(CHUNK).try_for_each(|lines| {
            let records = lines.iter().map(|line| {
                let row = line.what.row();
                let names = self.named.and_then(|named| Some(named.of(row?)));
                let record = rows::record(line, style, names);
                if !table {
                    return record;
                }
                // Columns in which several fields are one.
                let whose = row.and_then(|row| row.whose.as_ref());
                record
                    .with("process", whose.map(rows::process_cell))
                    .with("named", row.and_then(rows::name_cell))
            });
            take(records.collect())
        })
    }
}
