// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk sockredir`

mod connections;
mod manual;
mod preflight;

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Subcommand};
use jiff::Timestamp;

pub(crate) use self::connections::FIELDS;
use self::connections::{Connection, Counted, connections, record};
pub(crate) use self::manual::MANUAL;
use super::common::{amount, clock, interval, losses_sentence, tell};
use super::tracing::{self, Plan};
use crate::cli::{KernelArgs, OutputArgs, StreamArgs};
use crate::error::usage;
use crate::kernel::btf::BtfSource;
use crate::kernel::caps::Cap;
use crate::kernel::run::Flow;
use crate::kernel::sockgate::Gate;
use crate::kernel::sockredir::{
    Config, End, Key, MOST_COMMS, Redirector, Settling, Sockmap, State, Totals, arm, no_cgroups,
};
use crate::kernel::{cgroup, log};
use crate::output::{Kind, Record, Sink, Value};
use crate::values::{CommList, PortSet, parse_bytes, parse_duration};

/// Every so often, what was read is looked for, and with --events what is waited for in vain.
const OFTEN: Duration = Duration::from_secs(1);

/// Let local TCP connections bypass the network stack, losing and reordering no byte
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Sockredir {
    #[command(subcommand)]
    verb: Option<Verb>,

    /// Connections both of whose ends are sockets of this cgroup (v2), given as a directory, or below it
    #[arg(long, value_name = "PATH", conflicts_with = "all", help_heading = "Scope")]
    cgroup: Option<PathBuf>,

    /// All local connections of this machine
    #[arg(long, help_heading = "Scope")]
    all: bool,

    /// Only connections to these ports, such as 5432,6379,8000-8100
    #[arg(short = 'P', long, value_name = "LIST", help_heading = "Scope")]
    port: Option<PortSet>,

    /// No connections to these ports
    #[arg(long, value_name = "LIST", help_heading = "Scope")]
    exclude_port: Option<PortSet>,

    /// Only what tasks of these names send, such as redis-server,redis-cli: name both ends for both directions
    #[arg(long, value_name = "LIST", help_heading = "Scope")]
    comm: Option<CommList>,

    /// What may wait unread in one direction; beyond it, the direction is TCP's
    #[arg(long, value_name = "BYTES", default_value = "4M", value_parser = parse_bytes, help_heading = "Limits")]
    max_queue: u64,

    /// The same in messages: a small one takes a kilobyte of kernel memory
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    max_messages: u32,

    /// What may wait unread in all directions together, each message counting for a kilobyte more: beyond it, none is redirected anew,
    /// and those whose readers are behind are TCP's
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = parse_bytes, help_heading = "Limits")]
    max_memory: u64,

    /// How many connections at a time; those beyond stay on TCP
    #[arg(long, value_name = "N", default_value_t = 32768, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Limits")]
    max_connections: u32,

    /// Instead of tables, a row for each connection as it closes
    #[arg(long, conflicts_with_all = ["interval", "top"], help_heading = "Rows")]
    events: bool,

    /// A table every so often, such as 500ms or 10s (default: 1s)
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, help_heading = "Rows")]
    interval: Option<Duration>,

    /// How many connections a table shows, those that sent most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Rows")]
    top: u32,

    /// Redirect on a kernel that is known, or may be, to crash or to lose data when it does
    #[arg(long, help_heading = "Kernel")]
    force: bool,

    #[command(flatten)]
    stream: StreamArgs,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kernel: KernelArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Preflight(Box<preflight::Preflight>),
}

impl Sockredir {
    fn scope(&self) -> Result<File> {
        match (&self.cgroup, self.all) {
            (Some(path), _) => cgroup::open(path),
            (None, true) => cgroup::open(&cgroup::mount_point().ok_or_else(no_cgroups)?),
            (None, false) => Err(usage(
                "which connections? Redirection changes what some programs see of their sockets (man bpftk-sockredir), \
                 so the scope is to be given: --cgroup PATH, or --all",
            )),
        }
    }

    fn config(&self) -> Result<Config> {
        let comms = self.comm.clone().map(|list| list.0).unwrap_or_default();
        if comms.len() > MOST_COMMS {
            return Err(usage(format!("--comm: more than {MOST_COMMS} names")));
        }
        if self.stream.max_events.is_some() && !self.events {
            return Err(usage("--max-events counts the rows of --events; expected both"));
        }
        if self.stream.timestamp && !self.events {
            return Err(usage("--timestamp is for the rows of --events; expected both"));
        }
        Ok(Config {
            btf: BtfSource::new(self.kernel.btf.as_deref())?,
            ports: self.port.as_ref().map(PortSet::words),
            excluded_ports: self.exclude_port.as_ref().map(PortSet::words),
            comms,
            max_queue: self.max_queue,
            max_messages: self.max_messages,
            max_memory: self.max_memory,
            max_ends: 2 * self.max_connections,
            events: self.events,
        })
    }

    /// How many turns make an interval: with rare tables, or none, there is something to look for in between.
    fn turns(&self) -> Result<u32> {
        let interval = interval(self.interval)?;
        Ok(interval.as_nanos().div_ceil(OFTEN.as_nanos()).try_into().unwrap_or(u32::MAX))
    }

    fn pace(&self) -> Result<Duration> {
        Ok(interval(self.interval)? / self.turns()?)
    }

    pub(crate) fn run(mut self) -> Result<ExitCode> {
        if let Some(Verb::Preflight(preflight)) = self.verb.take() {
            return preflight.run();
        }
        log::collect(self.kernel.verbose > 1);
        let cgroup = self.scope()?;
        let config = self.config()?;
        if let Some(warning) = Gate::here()?.pass(self.force)? {
            tell(&warning);
        }
        let plan = Plan {
            stream: &self.stream,
            output: &self.output,
            kernel: &self.kernel,
            needed: &[Cap::Bpf, Cap::Perfmon, Cap::NetAdmin],
            columns: connections::columns(self.events, self.stream.timestamp),
            fields: FIELDS,
            tables: !self.events,
            interval: Some(self.pace()?),
        };
        let turns = self.turns()?;
        tracing::run(plan, || arm(&config, &cgroup), |backend| Session::new(&self, backend, turns))
    }
}

/// What a run knows beside what the kernel does.
#[derive(Debug)]
struct Session<'a> {
    args: &'a Sockredir,
    backend: Sockmap,
    begin: Instant,
    /// Of each connection at the last table.
    before: HashMap<Key, Counted>,
    /// Ends that are closed while the other one may not be.
    halves: HashMap<Key, (End, Instant)>,
    rows: u64,
    settling: Settling,
    /// Of an interval, in all and so far.
    turns: u32,
    turn: u32,
}

impl tracing::Session<Redirector> for Session<'_> {
    fn event(&mut self, end: End, sink: &mut Sink) -> Result<Flow> {
        if self.full() {
            return Ok(Flow::Stop);
        }
        match self.halves.remove(&end.key.other()) {
            Some((other, _)) => self.closed(Connection::new(end, Some(other)), sink)?,
            None => {
                self.halves.insert(end.key, (end, Instant::now()));
            }
        }
        Ok(if self.full() { Flow::Stop } else { Flow::Continue })
    }

    fn tick(&mut self, tracer: &Redirector, sink: &mut Sink) -> Result<()> {
        self.turn += 1;
        let due = !self.args.events && self.turn >= self.turns;
        // Whoever shows every end can as well look at all.
        if !due {
            if tracer.waiting()? > self.args.max_memory / 8 {
                self.settling.turn(tracer, &tracer.ends()?)?;
            }
            return if self.args.events { self.give_up(tracer, sink) } else { Ok(()) };
        }
        self.turn = 0;
        let mut ends = tracer.ends()?;
        self.settling.turn(tracer, &ends)?;
        let refused = tracer.refused()?;
        let totals = totals(tracer, &refused)?;
        ends.extend(refused);
        let mut all = connections(ends);
        let now: HashMap<Key, Counted> = all.iter().map(|c| (c.key(), c.counted())).collect();
        let new =
            |c: &Connection| c.counted() - self.before.get(&c.key()).copied().unwrap_or_default();
        all.sort_by_key(|c| std::cmp::Reverse((new(c).bytes(), c.counted().bytes())));
        let open = all.len();
        let mut rows: Vec<Record> = all
            .iter()
            .take(self.args.top as usize)
            .map(|c| record(Kind::Row, "interval", c, new(c), Timestamp::now()))
            .collect();
        if !sink.is_table() {
            rows.push(connections::totals(&totals, open));
        }
        let title = format!(
            "{}, {} connected, {} accepted, {open} open; {}",
            clock(self.begin.elapsed()),
            totals.clients,
            totals.servers,
            connections::sentence(&totals)
        );
        self.before = now;
        sink.interval(&title, &rows)
    }

    /// What is left of the connections that were taken, and the totals.
    fn finish(&mut self, tracer: &Redirector, undecodable: u64, sink: &mut Sink) -> Result<()> {
        let halves = std::mem::take(&mut self.halves);
        for (end, _) in halves.into_values() {
            self.closed(Connection::new(end, None), sink)?;
        }
        let ends = tracer.ends()?;
        tracer.settle(&ends)?;
        let lingering = connections(ends);
        let redirected = lingering.iter().filter(|c| c.is(State::Redirect)).count();
        let totals = totals(tracer, &tracer.refused()?)?;
        let losses = tracer.losses()?;
        let record = summary(&totals)
            .with("backend", self.backend.to_string())
            .with("lingering", lingering.len() as u64)
            .with("lingering_redirected", redirected as u64)
            .with("lost", losses.rows() + undecodable)
            .with("lost_ring_full", losses.ring_full);
        let lost = match self.args.events {
            true => format!("; {}", losses_sentence(losses, undecodable)),
            false => String::new(),
        };
        let stay = match lingering.len() {
            0 => "no connection lingers".to_string(),
            n => format!(
                "{n} connections stay in the kernel's map until they close, {redirected} of them redirected until now"
            ),
        };
        sink.settle();
        sink.summary(&record, &format!("{}; {stay}{lost}", connections::sentence(&totals)))
    }
}

/// Of refused ends, which no message is seen of, the kernel's side counts the bytes when they close.
fn totals(tracer: &Redirector, refused: &[End]) -> Result<Totals> {
    let mut totals = tracer.totals()?;
    totals.tcp_bytes += refused.iter().map(|end| end.tcp_bytes).sum::<u64>();
    Ok(totals)
}

fn summary(totals: &Totals) -> Record {
    let reasons: Vec<(&'static str, Value)> =
        totals.reasons.iter().map(|(reason, count)| (reason.name(), (*count).into())).collect();
    Record::new(Kind::Summary)
        .with("command", "sockredir")
        .with("clients", totals.clients)
        .with("servers", totals.servers)
        .with("admitted", totals.admitted)
        .with("redirected", totals.redirected)
        .with("fell_back", totals.fell_back)
        .with("silent", totals.silent)
        .with("reasons", reasons)
        .with("redirected_bytes", totals.bytes)
        .with("redirected_messages", totals.messages)
        .with("tcp_bytes", totals.tcp_bytes)
        .with("tcp_messages", totals.tcp_messages)
        .with("high_water", totals.high_water)
        .with("waiting", totals.waiting)
        .with("failed_inserts", totals.failed_inserts())
}

impl<'a> Session<'a> {
    fn new(args: &'a Sockredir, backend: Sockmap, turns: u32) -> Self {
        Self {
            args,
            backend,
            begin: Instant::now(),
            before: HashMap::new(),
            halves: HashMap::new(),
            rows: 0,
            settling: Settling::default(),
            turns,
            turn: 0,
        }
    }

    fn full(&self) -> bool {
        self.args.stream.max_events.is_some_and(|most| self.rows >= most)
    }

    /// The row of a connection that is over.
    fn closed(&mut self, connection: Connection, sink: &mut Sink) -> Result<()> {
        if self.full() {
            return Ok(());
        }
        self.rows += 1;
        let time = connection.closed();
        sink.event(&record(Kind::Event, "closed", &connection, connection.counted(), time))
    }

    /// The other end of a connection may have been refused, or its record lost.
    fn give_up(&mut self, tracer: &Redirector, sink: &mut Sink) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(2);
        if self.halves.values().all(|(_, since)| since.elapsed() < PATIENCE) {
            return Ok(());
        }
        let ends = tracer.ends()?.into_iter().chain(tracer.refused()?);
        let open: Vec<Key> = ends.map(|end| end.key).collect();
        let hopeless: Vec<Key> = self
            .halves
            .iter()
            .filter(|(key, (_, since))| since.elapsed() >= PATIENCE && !open.contains(&key.other()))
            .map(|(key, _)| *key)
            .collect();
        for key in hopeless {
            if let Some((end, _)) = self.halves.remove(&key) {
                self.closed(Connection::new(end, None), sink)?;
            }
        }
        Ok(())
    }
}

/// Bytes, as text.
fn bytes(number: u64) -> String {
    amount(&number.into())
}
