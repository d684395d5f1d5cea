// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk tc-egress`: where packets go, how many, whose they are, and what is not to go.

mod args;
mod block;
mod book;
mod by;
mod exclude;
mod manual;
mod named;
mod rate;
mod rows;
mod session;
mod spared;
mod suggest;
mod summary;
mod whose;

use std::cell::RefCell;
use std::process::ExitCode;

use anyhow::{Error, Result};

pub(crate) use self::args::TcEgress;
use self::args::{Top, Way};
use self::block::Blocking;
use self::book::View;
use self::by::Columns;
pub(crate) use self::manual::MANUAL;
use self::named::Named;
use self::rate::{AuditRate, Limiter};
use self::rows::{EVENT_FIELDS, FIELDS};
use self::session::Session;
use self::suggest::Suggestions;
use super::common::{closed_backend, interval, note, refuse_without, take_signals, tell, tell_all};
use super::unseen::refuse_bypass;
use super::watch::{Following, Step};
use crate::error::usage;
use crate::filter::libpcap::{self, Names, Source};
use crate::kernel::attach::tc::{Direction, Order, TcBackend};
use crate::kernel::backend::{self, Chosen};
use crate::kernel::btf::BtfSource;
use crate::kernel::caps::{self, Cap, Held};
use crate::kernel::egress::{Config, Counter, Events};
use crate::kernel::interfaces::{interfaces_and_expression, link_of};
use crate::kernel::log;
use crate::kernel::netlink::Interface;
use crate::kernel::owners::{Options, Owners, SendersBy};
use crate::kernel::unseen::Unseen;
use crate::output::{Format, Sink};

/// Rows of a table, if nothing else is asked for: what a terminal holds.
const TOP: usize = 20;

impl TcEgress {
    pub(crate) fn run(self) -> Result<ExitCode> {
        log::collect(self.verbose > 1);
        let options = [
            (self.all_packets, "--all-packets"),
            (self.max_events.is_some(), "-n"),
            (self.timestamp, "--timestamp"),
        ];
        refuse_without("--events", self.events, &options)?;
        let interval = interval(self.interval)?;
        let direction = match self.direction {
            Way::Egress => Direction::Egress,
            Way::Ingress => Direction::Ingress,
        };
        let shown = Columns::resolve(self.by, direction)?;
        self.check(direction, shown)?;
        let names = self.names || shown.name;
        let needs_btf = shown.whose() || names || self.btf.is_some();
        let btf = needs_btf.then(|| BtfSource::new(self.btf.as_deref())).transpose()?;
        let excluded = self.excludes.resolve()?;
        caps::require(caps::PACKETS)?;
        let (interfaces, expression) = interfaces_and_expression(&self.interfaces)?;
        let expression = expression
            .map(|expression| {
                let packets = link_of(interfaces.iter())?.into();
                let source = Source {
                    expression: &expression.text,
                    packets,
                    optimize: true,
                    names: Names::REFUSED,
                };
                libpcap::compile(&source).map_err(|error| expression.explain(error))
            })
            .transpose()?;
        let blocking = self.blocks.resolve(direction, &interfaces)?;
        if self.fail_closed && blocking.is_none() {
            return Err(usage(
                "--fail-closed: nothing is blocked; expected --block, --block-file, --block-match or --allow-only with it",
            ));
        }
        let forced = closed_backend(self.fail_closed, self.backend)?;
        let audits = blocking.is_some() && self.output.format == Format::Json;
        let events = match (self.events || audits, self.all_packets) {
            (false, _) => None,
            (true, false) => Some(Events::Flows),
            (true, true) => Some(Events::Packets),
        };

        // Before anything is in the kernel: a file that can't be opened, a signal that comes early.
        let suggestions = self
            .suggest
            .as_deref()
            .map(|path| Suggestions::new(path, shown.by.addr.unwrap_or((32, 128))))
            .transpose()?;
        let mut sink = Sink::open(&self.output.sink(), Vec::new(), self.fields())?;
        if audits && !self.events {
            sink.takes_events(EVENT_FIELDS);
        }
        if self.audit_rate.is_some() && events.is_none() {
            return Err(usage(
                "--audit-rate: there are no lines of flows; expected --events, or --format json with --block or its like",
            ));
        }
        // Enforcement goes on when output can't be written: a blocked user may be able to fill the disk.
        sink.set_lasting(blocking.is_some());
        let rate = AuditRate::or_default(self.audit_rate, blocking.is_some(), self.all_packets);
        let rereads = self.blocks.rereads();
        let mut signals = take_signals(self.output.output.is_some() || rereads)?;

        // Before the first packet is counted.
        let rules = blocking.is_some();
        let named =
            btf.as_ref().filter(|_| names).map(|btf| Named::start(btf, rules)).transpose()?;
        let owners = if shown.whose() {
            btf.clone().map(|btf| self.owners(btf)).transpose()?
        } else if direction == Direction::Egress && (events.is_some() || suggestions.is_some()) {
            self.owners_if_possible(btf.clone())
        } else {
            None
        };
        let mut by = shown.by;
        by.cookie = owners.is_some();
        let excludes = excluded.is_some();
        let config = Config {
            direction,
            by,
            excluded,
            expression,
            max_entries: self.max_entries,
            events,
            counts: !self.events || suggestions.is_some(),
            rules: blocking.as_ref().map(|blocking| blocking.rules.clone()),
            btf: owners.as_ref().map(|(_, btf)| btf.clone()),
            fail_closed: self.fail_closed,
        };
        debug_assert!(!(self.first && self.last));
        let order = if self.last { Order::Last } else { Order::First };
        let chosen = self.arm(&config, &interfaces, (order, forced), blocking.as_ref())?;
        for (backend, reason) in &chosen.passed_over {
            note(self.verbose, || format!("not {backend}: {reason}"));
        }
        let (backend, mut counter) = (chosen.backend, chosen.armed);
        self.refuse_calls(&mut counter, &config);
        let dry_run = config.rules.as_ref().is_none_or(|rules| rules.dry_run);
        let bypass = if dry_run { None } else { refuse_bypass() };
        // Before anybody is told that it has begun.
        let egress = direction == Direction::Egress;
        let unseen = if egress { Unseen::begin(counter.interfaces().iter())? } else { None };
        note(self.verbose, || format!("armed, back end {backend}"));
        let blocks = blocking.is_some();
        sink.set_columns(if self.events {
            let several = interfaces.len() > 1;
            rows::event_columns(self.timestamp, several, names, owners.is_some(), blocks)
        } else {
            rows::columns(shown, direction, names, blocks)
        });
        if self.events {
            sink.start()?;
        }
        let top = match (self.top, self.output.format) {
            (None, Format::Table) => Some(TOP),
            (None, _) | (Some(Top::All), _) => None,
            (Some(Top::Most(most)), _) => Some(most),
        };
        let view = View { interval: true, sort: self.sort, top, excludes };
        let owners = owners.map(|(owners, _)| owners);
        let dry_run = blocking.as_ref().is_some_and(|blocking| blocking.rules.dry_run);
        let mut session = Session {
            title: title(&counter, direction, backend, dry_run),
            names: blocking.map(|blocking| blocking.names),
            owners: owners.as_ref(),
            named: named.as_ref(),
            suggestions,
            limiter: Limiter::new(rate),
            shown,
            direction,
            interval,
            bypass,
            unseen,
            ..Session::new(&self, view)
        };
        let attached = format!("tc {direction} by {backend}");
        let places = counter.interfaces().iter().cloned();
        let places = places.map(|interface| (interface, attached.clone()));
        let mut following = Following::new(places, self.follow, self.duration)?;
        let outcome = following.run(|following, step| match step {
            Step::Follow => session.follow(following, &counter, &mut signals, &mut sink),
            Step::Attach { at, interface } => {
                counter.attach_again(at, interface.clone())?;
                tell_all(&counter.take_remarks());
                Ok(())
            }
            Step::Detach { at } => {
                counter.detach_from(at);
                Ok(())
            }
            Step::Rename { index, name } => {
                counter.rename(index, name);
                session.title = title(&counter, direction, backend, dry_run);
                Ok(())
            }
        });
        session.tell_bypasses(&mut sink)?;
        session.look_at_sent(&counter)?;
        counter.detach()?;
        let ended = outcome?;
        session.finish(backend, &counter, &mut sink)?;
        sink.unwritten_is_an_error()?;
        ended.status()
    }

    /// What contradicts itself.
    fn check(&self, direction: Direction, shown: Columns) -> Result<()> {
        if self.senders.is_some() && !shown.whose() && !self.events && self.suggest.is_none() {
            return Err(usage(
                "--senders: nothing needs it but --by process, user or cgroup, --events and --suggest",
            ));
        }
        let needs_btf =
            shown.whose() || shown.name || self.names || self.events || self.suggest.is_some();
        if self.btf.is_some() && !needs_btf {
            return Err(usage(
                "--btf: nothing needs it but --names, --by process, user, cgroup or name, --events and --suggest",
            ));
        }
        let without_addresses = shown.by.addr.is_none();
        let expected = match direction {
            Direction::Egress => "dst",
            Direction::Ingress => "src",
        };
        if self.names && (shown.nets || without_addresses) && !self.events {
            return Err(usage(format!(
                "--names: names are of addresses, which rows don't have; expected --by {expected}"
            )));
        }
        if self.suggest.is_some() {
            if direction == Direction::Ingress {
                return Err(usage(
                    "--suggest: the list is of where packets go; expected --direction egress",
                ));
            }
            if without_addresses {
                return Err(usage(
                    "--suggest: rows have no addresses; expected --by dst, or net/24 and the like",
                ));
            }
        }
        Ok(())
    }

    fn fields(&self) -> &'static [crate::output::Field] {
        if self.events { EVENT_FIELDS } else { FIELDS }
    }

    /// What is missing for finding owners is told at once, since it is missing in every row.
    fn owners(&self, btf: BtfSource) -> Result<(RefCell<Owners>, BtfSource)> {
        let senders = self.senders.map_or(SendersBy::Best, SendersBy::from);
        let options = Options { btf: btf.clone(), senders, ..Options::default() };
        let (owners, missing) = Owners::start(&options)?;
        for missing in &missing {
            tell(&missing.to_string());
        }
        note(self.verbose, || match owners.senders() {
            Some(senders) => format!("who sends is seen by {senders}"),
            None => "who sends is not seen".into(),
        });
        Ok((RefCell::new(owners), btf))
    }

    /// Where rows are of use without it, too.
    fn owners_if_possible(&self, btf: Option<BtfSource>) -> Option<(RefCell<Owners>, BtfSource)> {
        let start = || -> Result<_> {
            if !Held::read()?.has(Cap::Perfmon) {
                anyhow::bail!("needs {}", Cap::Perfmon.name());
            }
            let btf = btf.map_or_else(|| BtfSource::new(None), Ok)?;
            self.owners(btf)
        };
        start()
            .map_err(|error: Error| tell(&format!("whose packets are is not told: {error:#}")))
            .ok()
    }

    /// Loads, checks and attaches.
    fn arm(
        &self,
        config: &Config,
        interfaces: &[Interface],
        (order, forced): (Order, Option<TcBackend>),
        blocking: Option<&Blocking>,
    ) -> Result<Chosen<TcBackend, Counter>> {
        // What the rules would do is no matter of the back end: asked once, and not taken for a reason to try the next.
        let mut refused = None;
        let chosen = backend::choose(&TcBackend::ORDER, forced, |backend| {
            let mut counter = Counter::load(config, backend, interfaces.to_vec())?;
            if let Some(blocking) = blocking
                && refused.is_none()
                && let Some(lost) = counter.would_lose(blocking.needs)?
            {
                refused = Some(usage(format!(
                    "these rules block {lost}; --dry-run shows what they match, --strict blocks it all the same"
                )));
            }
            if refused.is_some() {
                anyhow::bail!("refused");
            }
            counter.attach(order)?;
            tell_all(&counter.take_remarks());
            Ok(counter)
        });
        match refused {
            Some(refused) => Err(refused),
            None => chosen,
        }
    }

    /// Where that is not to be had, packets are dropped all the same, and their senders wait.
    fn refuse_calls(&self, counter: &mut Counter, config: &Config) {
        let Some(rules) = &config.rules else { return };
        let spares = &rules.spares;
        let shut = [(spares.arp, "ARP"), (spares.neighbours, "neighbour discovery")];
        let shut: Vec<_> = shut.iter().filter(|(open, _)| !open).map(|(_, what)| *what).collect();
        if rules.allowed.is_some() && !shut.is_empty() {
            let verb = if rules.dry_run { "would be blocked" } else { "blocked" };
            tell(&format!("{}: {verb} as well", shut.join(" and ")));
        }
        if rules.blocked.is_none() && rules.allowed.is_none() {
            return;
        }
        let outcome = if config.expression.is_some() {
            Err(Error::msg("a call is no packet that the expression could be asked about"))
        } else {
            counter.refuse_calls()
        };
        match outcome {
            Ok(()) if rules.dry_run => {
                note(self.verbose, || {
                    "calls of processes would be refused; this is a dry run".into()
                });
            }
            Ok(()) => note(self.verbose, || "calls of processes are refused".into()),
            Err(error) if rules.dry_run => tell(&format!(
                "packets would be dropped, but calls of processes not be refused at once: {error:#}"
            )),
            Err(error) => tell(&format!(
                "packets are dropped, but calls of processes are not refused at once: {error:#}"
            )),
        }
    }
}

fn title(counter: &Counter, direction: Direction, backend: TcBackend, dry_run: bool) -> String {
    let names: Vec<&str> =
        counter.interfaces().iter().map(|interface| interface.name.as_str()).collect();
    let dry_run = if dry_run { ", dry run" } else { "" };
    format!("{}, tc {direction} by {backend}{dry_run}", names.join(", "))
}
