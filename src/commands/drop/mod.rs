// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `xdp-drop` and `tc-drop` have in common: rules, tables, and the run from the first look to the last.

mod manual;
mod rules;
mod tables;
mod tc;
mod xdp;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

pub(crate) use self::manual::{TC_MANUAL, XDP_MANUAL};
use self::rules::{Named, RuleArgs};
use self::tables::Tables;
pub(crate) use self::tables::{FIELDS, SAMPLE_FIELDS};
pub(crate) use self::tc::TcDrop;
pub(crate) use self::xdp::XdpDrop;
use super::common::{
    interval, losses_sentence, note, refuse_without, take_signals, tell, tell_all,
};
use super::lapses::{Lapses, lapses_sentence, with_lapses};
use super::lists::Rereading;
use super::unseen::{bypass_sentence, refuse_bypass, unseen_sentence, with_unseen};
use super::watch::{Following, Step};
use crate::cli::OutputArgs;
use crate::error::usage;
use crate::kernel::addrset::NewSet;
use crate::kernel::attach::tc::{Direction, Order};
use crate::kernel::attach::xdp::XdpMode;
use crate::kernel::bypass::Bypass;
use crate::kernel::caps;
use crate::kernel::drop::{By, Config, Dropper, How, Sample};
use crate::kernel::filter::inject::xdp_may_miss_tags;
use crate::kernel::guard::Ssh;
use crate::kernel::interfaces::interfaces_and_expression;
use crate::kernel::log;
use crate::kernel::netlink::Interface;
use crate::kernel::run::{Flow, Turn, follow};
use crate::kernel::signals::Signals;
use crate::kernel::unseen::{Excess, Unseen};
use crate::output::{Kind, Record, Sink};
use crate::values::{number, parse_duration};

/// What both commands take.
#[derive(Args, Clone, Debug)]
pub(crate) struct DropArgs {
    #[command(flatten)]
    rules: RuleArgs,

    /// Count what would be dropped, and drop nothing
    #[arg(long, help_heading = "Safety")]
    dry_run: bool,

    /// Drop even what would end your SSH connection, ARP, neighbour discovery, or everything
    #[arg(long, help_heading = "Safety")]
    yes_lock_me_out: bool,

    /// Attach again when an interface of the same name comes back
    #[arg(long, help_heading = "Safety")]
    follow: bool,

    /// By what the rows of the table differ
    #[arg(long, value_name = "WHAT", default_value = "rule", help_heading = "Rows")]
    by: By,

    /// A table every so often, such as 500ms or 10s (default: 1s)
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, help_heading = "Rows")]
    interval: Option<Duration>,

    /// Instead of tables, a row for every Nth packet that is dropped
    #[arg(long, value_name = "N", value_parser = number::<u32>(1, u32::MAX), conflicts_with_all = ["interval", "by"], help_heading = "Rows")]
    sample: Option<u32>,

    /// Stop after N rows of --sample
    #[arg(short = 'n', long, value_name = "N", requires = "sample", value_parser = number::<u64>(1, u64::MAX), help_heading = "Rows")]
    max_events: Option<u64>,

    /// Add a TIME column to the rows of --sample: local time of day, in ms
    #[arg(short = 'T', long, requires = "sample", help_heading = "Rows")]
    timestamp: bool,

    /// Stop after this long, such as 30s or 5m; the kernel stops dropping then, whatever becomes of bpftk
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, help_heading = "Run")]
    duration: Option<Duration>,

    #[command(flatten)]
    output: OutputArgs,

    /// Say on standard error how it is attached, and when it is; -vv adds libbpf's log
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = "Kernel")]
    verbose: u8,
}

/// How the programs get onto the interfaces.
#[derive(Clone, Copy, Debug)]
struct Attaching {
    mode: Option<XdpMode>,
    order: Order,
}

/// The rules, as the kernel takes them and as they are called.
#[derive(Debug)]
struct Prepared {
    config: Config,
    named: Vec<Named>,
    interfaces: Vec<Interface>,
    /// Whether there are expressions among the rules.
    expressions: bool,
}

impl DropArgs {
    /// `words` are interfaces, and behind them perhaps an expression.
    fn prepare(&self, words: &[String]) -> Result<Prepared> {
        log::collect(self.verbose > 1);
        let options = [(self.max_events.is_some(), "-n"), (self.timestamp, "--timestamp")];
        refuse_without("--sample", self.sample.is_some(), &options)?;
        interval(self.interval)?;
        caps::require(caps::PACKETS)?;
        let (interfaces, expression) = interfaces_and_expression(words)?;
        let (rules, named) = self.rules.resolve(expression.as_ref(), &interfaces)?;
        let expressions = self.rules.has_expressions(expression.is_some());
        let config = Config {
            rules,
            dry_run: self.dry_run,
            rate: self.rules.rate,
            sample: self.sample,
            by: self.by,
            duration: self.duration,
            fail_closed: false,
        };
        Ok(Prepared { config, named, interfaces, expressions })
    }

    /// Refuses rules that would cut off the operator.
    fn check(&self, dropper: &Dropper) -> Result<()> {
        if self.yes_lock_me_out || self.dry_run {
            return Ok(());
        }
        match dropper.would_lose(Ssh::current())? {
            None => Ok(()),
            Some(lost) => Err(usage(format!(
                "these rules drop {lost}; --dry-run shows what they match, --yes-lock-me-out drops it all the same"
            ))),
        }
    }

    /// `arm` loads, checks and attaches.
    fn run(
        &self,
        command: &'static str,
        attaching: Attaching,
        prepared: &Prepared,
        arm: impl FnOnce(&Self) -> Result<(How, Dropper)>,
    ) -> Result<ExitCode> {
        // Before anything is in the kernel: a file that can't be opened, a signal that comes early.
        let rereads = self.rules.blocklist.is_some();
        let (columns, fields) = match self.sample {
            Some(_) => (tables::sample_columns(self.timestamp), SAMPLE_FIELDS),
            None => (Vec::new(), FIELDS),
        };
        let mut sink = Sink::open(&self.output.sink(), columns, fields)?;
        // Enforcement goes on when output can't be written.
        sink.set_lasting(true);
        let mut signals = take_signals(self.output.output.is_some() || rereads)?;

        let (how, mut dropper) = arm(self)?;
        let tables = Tables::new(&dropper, prepared, self.dry_run, sink.redraws());
        if self.sample.is_none() {
            sink.set_columns(tables.columns());
        }
        for (place, (mode, because)) in dropper.places().iter().zip(dropper.modes()) {
            let because = because.map(|because| format!(": {because}")).unwrap_or_default();
            // Which mode it is decides what it costs: that is told without being asked for.
            tell(&format!("{}: {mode}{because}", place.interface.name));
        }
        if how == How::Xdp && prepared.expressions {
            for place in dropper.places() {
                let name = &place.interface.name;
                if xdp_may_miss_tags(name).unwrap_or(false) {
                    tell(&format!(
                        "{name} takes VLAN tags off before XDP: expressions don't see them \
                         (ethtool -K {name} rxvlan off, or tc-drop)"
                    ));
                }
            }
        }
        if rereads {
            note(self.verbose, || {
                let mebibytes = dropper.blocklist_bytes() as f64 / f64::from(1 << 20);
                format!("the block list takes {mebibytes:.1} MiB in the kernel")
            });
        }
        let drops = drops_at_egress(how, &dropper) && !self.dry_run;
        let bypass = if drops { refuse_bypass() } else { None };
        let unseen = begin_unseen(how, &dropper)?;
        note(self.verbose, || format!("armed, back end {how}"));
        if self.sample.is_some() {
            sink.start()?;
        }
        tell_all(&dropper.take_remarks());
        let places = dropper.places().iter().zip(dropper.modes());
        let places = places.map(|(place, (mode, _))| (place.interface.clone(), mode));
        let mut following = Following::new(places, self.follow, self.duration)?;
        let mut session = Session {
            args: self,
            tables,
            samples: 0,
            undecodable: 0,
            rereading: Rereading::default(),
            lapses: Lapses::default(),
            unseen,
            bypass,
        };
        let ended = following.run(|following, step| match step {
            Step::Follow => session.follow(following, &dropper, &mut signals, &mut sink),
            Step::Attach { at, interface } => {
                dropper.attach_again(at, interface.clone(), attaching.mode)?;
                tell_all(&dropper.take_remarks());
                Ok(())
            }
            Step::Detach { at } => {
                dropper.detach_from(at);
                Ok(())
            }
            Step::Rename { index, name } => {
                dropper.rename(index, name);
                session.tables.retitle(&dropper);
                Ok(())
            }
        });
        session.tell_bypasses()?;
        session.look_at_sent(&dropper)?;
        dropper.detach();
        let ended = ended?;
        session.finish(command, how, &dropper, &mut sink)?;
        sink.unwritten_is_an_error()?;
        ended.status()
    }
}

fn egress_interfaces(dropper: &Dropper) -> impl Iterator<Item = &Interface> + Clone {
    let places = dropper.places().iter().filter(|place| place.direction == Direction::Egress);
    places.map(|place| &place.interface)
}

fn drops_at_egress(how: How, dropper: &Dropper) -> bool {
    how != How::Xdp && egress_interfaces(dropper).next().is_some()
}

fn begin_unseen(how: How, dropper: &Dropper) -> Result<Option<Unseen>> {
    if drops_at_egress(how, dropper) { Unseen::begin(egress_interfaces(dropper)) } else { Ok(None) }
}

struct Session<'a> {
    args: &'a DropArgs,
    tables: Tables,
    /// Rows of --sample.
    samples: u64,
    /// Records that were not understood.
    undecodable: u64,
    /// What SIGHUP has read again.
    rereading: Rereading<(NewSet, String)>,
    /// What was told of times without a heartbeat.
    lapses: Lapses,
    /// At egress, where the interfaces' own counts can be compared with.
    unseen: Option<Unseen>,
    /// What refuses to let packets past tc.
    bypass: Option<Bypass>,
}

impl Session<'_> {
    /// Until the end, or until something is to be changed in the kernel.
    fn follow(
        &mut self,
        following: &mut Following,
        dropper: &Dropper,
        signals: &mut Signals,
        sink: &mut Sink,
    ) -> Result<()> {
        let ring = dropper.samples()?;
        let interval = interval(self.args.interval)?;
        let timing = following.timing(interval, self.args.output.output.is_none());
        follow(&ring, signals, timing, |turn| match turn {
            Turn::Event(sample) => self.sample(&sample, dropper, sink),
            Turn::Rest => Ok(Flow::Continue),
            Turn::Tick => {
                if self.args.sample.is_none() {
                    self.look_at_sent(dropper)?;
                    let excess = self.excess(dropper)?;
                    self.tables.interval(dropper, excess, sink)?;
                }
                Ok(Flow::Continue)
            }
            Turn::Look => {
                self.take_reread(dropper);
                self.tell_lapse(dropper)?;
                self.tell_bypasses()?;
                Ok(following.look(|| dropper.lost()))
            }
            Turn::Reopen => {
                sink.reopen()?;
                self.reread();
                Ok(Flow::Continue)
            }
        })?;
        self.undecodable += ring.undecodable();
        Ok(())
    }

    fn reread(&mut self) {
        let rules = &self.args.rules;
        let Some(path) = rules.blocklist.clone() else { return };
        let allow_empty = rules.allow_empty;
        self.rereading.begin(move || {
            let list = rules::read_blocklist(&path, allow_empty, |_| {})?;
            Ok((NewSet::new(&list.ranges)?, rules::entries(&path, &list)))
        });
    }

    /// A list that can't be used is told of, and the old one stays.
    fn take_reread(&mut self, dropper: &Dropper) {
        let Some(outcome) = self.rereading.take() else { return };
        let outcome = outcome.and_then(|(set, entries)| {
            dropper.replace_blocklist(set)?;
            Ok(entries)
        });
        match outcome {
            Ok(entries) => tell(&format!("read again: {entries}")),
            Err(error) => tell(&format!("the block list stays as it was: {error:#}")),
        }
    }

    /// What the interfaces say that they sent: before counts are read, and at the end before detaching.
    fn look_at_sent(&mut self, dropper: &Dropper) -> Result<()> {
        match &mut self.unseen {
            Some(unseen) => unseen.look(egress_interfaces(dropper)),
            None => Ok(()),
        }
    }

    fn tell_bypasses(&self) -> Result<()> {
        let refusals = self.bypass.as_ref().map(Bypass::refusals).transpose()?;
        refusals.into_iter().flatten().for_each(|refusal| tell(&bypass_sentence(&refusal)));
        Ok(())
    }

    fn excess(&mut self, dropper: &Dropper) -> Result<Option<Excess>> {
        match &mut self.unseen {
            Some(unseen) => Ok(Some(unseen.excess(self.tables.went_on(dropper)?))),
            None => Ok(None),
        }
    }

    fn tell_lapse(&mut self, dropper: &Dropper) -> Result<()> {
        let passed = || Ok(self.tables.totals(dropper)?.lapsed.packets);
        self.lapses.tell(dropper.lapsed(), self.args.dry_run, passed)
    }

    fn sample(&mut self, sample: &Sample, dropper: &Dropper, sink: &mut Sink) -> Result<Flow> {
        let full = |samples| self.args.max_events.is_some_and(|most| samples >= most);
        if full(self.samples) {
            return Ok(Flow::Stop);
        }
        self.samples += 1;
        sink.event(&self.tables.sample(sample, dropper))?;
        Ok(if full(self.samples) { Flow::Stop } else { Flow::Continue })
    }

    /// After detaching: what is still in the ring, the totals, and what is missing.
    fn finish(
        &mut self,
        command: &'static str,
        how: How,
        dropper: &Dropper,
        sink: &mut Sink,
    ) -> Result<()> {
        let ring = dropper.samples()?;
        while ring.fill()? {
            while let Some(sample) = ring.next() {
                self.sample(&sample, dropper, sink)?;
            }
        }
        let unseen = self.excess(dropper)?;
        if self.args.sample.is_none() {
            self.tables.total(dropper, unseen, sink)?;
        }
        let unseen = unseen.map(|unseen| unseen.total);
        let losses = dropper.losses()?;
        let totals = self.tables.totals(dropper)?;
        let undecodable = self.undecodable + ring.undecodable();
        let verb = if self.args.dry_run { "would have been dropped" } else { "dropped" };
        let record = Record::new(Kind::Summary)
            .with("command", command)
            .with("backend", how.to_string())
            .with("dry_run", self.args.dry_run)
            .with("dropped_packets", totals.dropped.packets)
            .with("dropped_bytes", totals.dropped.bytes)
            .with("passed_packets", totals.passed.packets)
            .with("passed_bytes", totals.passed.bytes)
            .with("excepted_packets", totals.excepted.packets)
            .with("malformed_packets", totals.malformed.packets);
        let lapsed = dropper.lapsed();
        let record = with_unseen(with_lapses(record, lapsed, totals.lapsed), unseen);
        // Of the causes that other commands have, samples know but this one.
        let record = record
            .with("lost", losses.rows() + undecodable)
            .with("lost_ring_full", losses.ring_full)
            .with("unwritten", sink.unwritten());
        let lost = match self.args.sample {
            Some(_) => format!("; {}", losses_sentence(losses, undecodable)),
            None => String::new(),
        };
        let sentence = format!(
            "{} packets {verb}, {} passed, {} of them malformed{lost}",
            totals.dropped.packets,
            totals.passed.packets
                + totals.excepted.packets
                + totals.malformed.packets
                + totals.lapsed.packets,
            totals.malformed.packets
        );
        let more = [lapses_sentence(lapsed, totals.lapsed), unseen_sentence(unseen)];
        let sentence =
            more.into_iter().flatten().fold(sentence, |all, more| format!("{all}; {more}"));
        sink.summary(&record, &sentence)
    }
}
