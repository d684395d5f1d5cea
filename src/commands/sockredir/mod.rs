// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk sockredir`

mod connections;
mod guard;
mod manual;
mod preflight;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Subcommand};
use jiff::Timestamp;

pub(crate) use self::connections::FIELDS;
use self::connections::{Connection, Counted, connections, record};
use self::guard::{Guard, Wanted};
pub(crate) use self::manual::MANUAL;
use super::common::{amount, clock, interval, losses_sentence, tell};
use super::tracing::{self, Plan};
use crate::cli::{KernelArgs, OutputArgs, StreamArgs};
use crate::error::usage;
use crate::kernel::btf::BtfSource;
use crate::kernel::caps::Cap;
use crate::kernel::preflight::News;
use crate::kernel::run::Flow;
use crate::kernel::sockgate::Gate;
use crate::kernel::sockredir::{
    Config, End, Event, Key, MOST_COMMS, Redirector, Settling, Sockmap, State, Totals, arm,
};
use crate::kernel::{cgroup, log};
use crate::output::{Kind, Record, Sink, Value};
use crate::values::{CommList, PortSet, number, parse_bytes, parse_duration};

/// Every so often, what was read is looked for, and with --events what is waited for in vain.
const OFTEN: Duration = Duration::from_secs(1);

/// Of closed connections that come one after the other without a pause, before the guard's news are heard.
const MOST_BEFORE_NEWS: u32 = 64;

/// Closed connections that are kept for the next table, before all but the busiest are let go.
const MOST_CLOSED: usize = 4096;

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

    /// Connections between network namespaces, too. Packet filters and connection tracking between them then see the
    /// beginning and the end of a connection, and nothing that is sent: where they forget a silent connection, its end
    /// may never arrive
    #[arg(long, help_heading = "Scope")]
    across_namespaces: bool,

    /// Only what tasks of these names send, such as redis-server,redis-cli: name both ends for both directions
    #[arg(long, value_name = "LIST", help_heading = "Scope")]
    comm: Option<CommList>,

    /// What may wait unread in one direction; beyond it, the direction is TCP's
    #[arg(long, value_name = "BYTES", default_value = "4M", value_parser = parse_bytes, help_heading = "Limits")]
    max_queue: u64,

    /// The same in messages: a small one takes a kilobyte of kernel memory
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = number::<u32>(1, u32::MAX), help_heading = "Limits")]
    max_messages: u32,

    /// What may wait unread in all directions together, each message counting for a kilobyte more: beyond it, none is
    /// redirected anew, and those whose readers are behind are TCP's
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = parse_bytes, help_heading = "Limits")]
    max_memory: u64,

    /// How many connections at a time; those beyond stay on TCP
    #[arg(long, value_name = "N", default_value_t = 32768, value_parser = number::<u32>(1, 1_000_000), help_heading = "Limits")]
    max_connections: u32,

    /// Instead of tables, a row for each connection as it closes
    #[arg(long, conflicts_with_all = ["interval", "top"], help_heading = "Rows")]
    events: bool,

    /// A table every so often, such as 500ms or 10s (default: 1s)
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, help_heading = "Rows")]
    interval: Option<Duration>,

    /// How many connections a table shows, those that sent most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = number::<u32>(1, u32::MAX), help_heading = "Rows")]
    top: u32,

    /// Don't watch for programs that do what redirection changes. With the guard, what such a program connects to, and
    /// connections to the ports on which it did so, are TCP's from then on; it makes every system call of the machine a
    /// little slower (man bpftk-sockredir)
    #[arg(long, help_heading = "Guard")]
    no_guard: bool,

    /// Leave the connections of a program to TCP until it was watched at work for so long, and one of them from its
    /// beginning to its end; the same of whoever serves a port. With 0s, all are redirected at once (man
    /// bpftk-sockredir)
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_learning, conflicts_with = "no_guard", help_heading = "Guard")]
    learn: Duration,

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
            (None, true) => cgroup::Root::open().map(cgroup::Root::into_dir),
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
        let ports = self.port.as_ref().map(PortSet::words);
        let excluded_ports = self.exclude_port.as_ref().map(PortSet::words);
        if let (Some(wanted), Some(excluded)) = (&ports, &excluded_ports)
            && wanted.iter().zip(excluded).all(|(wanted, excluded)| wanted & !excluded == 0)
        {
            return Err(usage("--exclude-port leaves none of the ports of --port"));
        }
        Ok(Config {
            btf: BtfSource::new(self.kernel.btf.as_deref())?,
            ports,
            excluded_ports,
            across_namespaces: self.across_namespaces,
            comms,
            max_queue: self.max_queue,
            max_messages: self.max_messages,
            max_memory: self.max_memory,
            max_ends: 2 * self.max_connections,
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
        let path = self.cgroup.as_deref();
        let watched = path.map(|path| cgroup::Watched::new(path, &cgroup)).transpose()?;
        let plan = Plan {
            stream: &self.stream,
            output: &self.output,
            kernel: &self.kernel,
            needed: &[Cap::Bpf, Cap::Perfmon, Cap::NetAdmin],
            columns: connections::columns(self.events, self.stream.timestamp),
            fields: FIELDS,
            tables: !self.events,
            interval: Some(self.pace()?),
            cgroup: watched,
            gather: false,
        };
        let turns = self.turns()?;
        let guard = RefCell::new(None);
        let wanted = Wanted { only: self.port.clone(), not: self.exclude_port.clone() };
        let arm = || {
            if !self.no_guard {
                let scope = self.cgroup.is_some().then_some(&cgroup);
                let watch = Guard::arm(config.btf.clone(), scope, wanted.clone(), self.learn)?;
                guard.replace(Some(watch));
            }
            let mut chosen = arm(&config, guard.borrow().as_ref().map(Guard::shared), &cgroup)?;
            chosen.armed.begin()?;
            Ok(chosen)
        };
        tracing::run(plan, arm, |backend| Session::new(&self, backend, turns, guard.take()))
    }
}

fn parse_learning(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        _ => parse_duration(text).map_err(|why| format!("{why}; or 0")),
    }
}

/// What a run knows beside what the kernel does.
#[derive(Debug)]
struct Session<'a> {
    args: &'a Sockredir,
    backend: Sockmap,
    begin: Instant,
    /// What the last tables said of each connection.
    told: HashMap<Key, Told>,
    tables: u64,
    /// Ends that are closed while the other one may not be.
    halves: HashMap<Key, (End, Instant)>,
    /// Without --events: connections that closed since the last table.
    closed: Vec<Connection>,
    rows: u64,
    /// Packets whose second bringing of bytes could not be cut off, as far as they were told.
    overlaps_kept: u64,
    guard: Option<Guard>,
    /// What the guard's program has told, and nobody has heard yet.
    news: Vec<News>,
    /// Closed connections since the first of them.
    since_news: u32,
    looked: Instant,
    settling: Settling,
    /// Of an interval, in all and so far.
    turns: u32,
    turn: u32,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    counted: Counted,
    /// By which table.
    table: u64,
}

impl tracing::Session<Redirector> for Session<'_> {
    fn event(&mut self, event: Event, sink: &mut Sink) -> Result<Flow> {
        let end = match event {
            Event::News(news) => {
                self.news.push(news);
                return Ok(Flow::Continue);
            }
            Event::Closed(_) if self.full() => return Ok(Flow::Stop),
            Event::Closed(end) => end,
        };
        self.since_news += 1;
        if self.since_news >= MOST_BEFORE_NEWS {
            self.hear()?;
        }
        match self.halves.remove(&end.key.other()) {
            Some((other, _)) => self.over(Connection::new(end, Some(other)), sink)?,
            None => {
                self.halves.insert(end.key, (end, Instant::now()));
            }
        }
        Ok(if self.full() { Flow::Stop } else { Flow::Continue })
    }

    fn rest(&mut self, _tracer: &Redirector) -> Result<()> {
        self.hear()
    }

    fn tick(&mut self, tracer: &Redirector, sink: &mut Sink) -> Result<()> {
        if self.looked.elapsed() >= OFTEN.mul_f32(0.9) {
            self.look(tracer)?;
        }
        self.turn += 1;
        let due = !self.args.events && self.turn >= self.turns;
        // Whoever shows every end can as well look at all.
        if due {
            self.turn = 0;
            return self.table(tracer, sink);
        }
        if tracer.waiting()? > self.args.max_memory / 8 {
            self.settling.turn(tracer, &tracer.ends()?)?;
        }
        if self.halves.values().any(Self::is_late) {
            let open = tracer.ends()?.into_iter().chain(tracer.refused()?);
            self.give_up(&open.map(|end| end.key).collect(), sink)?;
        }
        Ok(())
    }

    /// What is left of the connections that were taken, and the totals.
    fn finish(&mut self, tracer: &Redirector, undecodable: u64, sink: &mut Sink) -> Result<()> {
        // What the guard has seen in the last moment.
        self.hear()?;
        let halves = std::mem::take(&mut self.halves);
        for (end, _) in halves.into_values() {
            self.over(Connection::new(end, None), sink)?;
        }
        let ends = tracer.ends()?;
        tracer.settle(&ends)?;
        let totals = totals(tracer, ends.iter().chain(&tracer.refused()?))?;
        let lingering = connections(ends);
        let redirected = lingering.iter().filter(|c| c.is(State::Redirect)).count();
        self.tell_overlaps(totals.overlaps_kept);
        let losses = tracer.losses()?;
        let record = summary(&totals)
            .with("backend", self.backend.to_string())
            .with("guarded_processes", self.guard.as_ref().map(|guard| guard.found() as u64))
            .with("lingering", lingering.len() as u64)
            .with("lingering_redirected", redirected as u64)
            .with("lost", losses.rows() + undecodable)
            .with("lost_ring_full", losses.ring_full);
        let stay = match lingering.len() {
            0 => "no connection lingers".to_string(),
            n => format!(
                "{n} connections stay in the kernel's map until they close, {redirected} of them redirected until now"
            ),
        };
        sink.settle();
        let lost = losses_sentence(losses, undecodable);
        sink.summary(&record, &format!("{}; {stay}; {lost}", connections::sentence(&totals)))
    }
}

/// The kernel's side counts what went by TCP when an end closes; here it is added of those that are open.
fn totals<'a>(tracer: &Redirector, open: impl Iterator<Item = &'a End>) -> Result<Totals> {
    let mut totals = tracer.totals()?;
    totals.tcp_bytes += open.map(|end| end.tcp_bytes).sum::<u64>();
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
        .with("overlaps", totals.overlaps)
        .with("overlaps_kept", totals.overlaps_kept)
        .with("postponed", totals.postponed)
        .with("high_water", totals.high_water)
        .with("waiting", totals.waiting)
        .with("failed_inserts", totals.failed_inserts())
}

impl<'a> Session<'a> {
    fn new(args: &'a Sockredir, backend: Sockmap, turns: u32, guard: Option<Guard>) -> Self {
        Self {
            args,
            backend,
            begin: Instant::now(),
            told: HashMap::new(),
            tables: 0,
            halves: HashMap::new(),
            closed: Vec::new(),
            rows: 0,
            overlaps_kept: 0,
            guard,
            news: Vec::new(),
            since_news: 0,
            looked: Instant::now(),
            settling: Settling::default(),
            turns,
            turn: 0,
        }
    }

    /// Says what the guard's program has told.
    fn hear(&mut self) -> Result<()> {
        self.since_news = 0;
        let news = std::mem::take(&mut self.news);
        if let Some(guard) = &mut self.guard
            && !news.is_empty()
        {
            guard.hear(&news)?.iter().for_each(|text| tell(text));
        }
        Ok(())
    }

    /// Once a second, however often there are tables.
    fn look(&mut self, tracer: &Redirector) -> Result<()> {
        self.looked = Instant::now();
        self.tell_overlaps(tracer.totals()?.overlaps_kept);
        if let Some(guard) = &mut self.guard {
            guard.look(tracer)?.iter().for_each(|text| tell(text));
        }
        Ok(())
    }

    /// Nothing worse can be said of a connection, so it is said at once.
    fn tell_overlaps(&mut self, kept: u64) {
        if kept > self.overlaps_kept {
            tell(&format!(
                "warning: {} times TCP brought bytes again that could not be cut off: programs have read them twice",
                kept - self.overlaps_kept
            ));
            self.overlaps_kept = kept;
        }
    }

    fn full(&self) -> bool {
        self.args.stream.max_events.is_some_and(|most| self.rows >= most)
    }

    /// A row for a connection that is over, at once or in the next table.
    fn over(&mut self, connection: Connection, sink: &mut Sink) -> Result<()> {
        if !self.args.events {
            self.closed.push(connection);
            if self.closed.len() >= MOST_CLOSED.max(2 * self.args.top as usize) {
                let mut closed = std::mem::take(&mut self.closed);
                self.busiest(&mut closed);
                self.closed = closed;
            }
            return Ok(());
        }
        if self.full() {
            return Ok(());
        }
        self.rows += 1;
        let time = connection.closed();
        sink.event(&record(Kind::Event, "closed", &connection, connection.counted(), time))
    }

    /// What a connection sent since the last table.
    fn new_in(&self, connection: &Connection) -> Counted {
        let told = self.told.get(&connection.key()).map(|told| told.counted).unwrap_or_default();
        connection.counted() - told
    }

    /// As many as a table has, those that sent most first.
    fn busiest(&self, all: &mut Vec<Connection>) {
        all.sort_by_cached_key(|c| {
            std::cmp::Reverse((self.new_in(c).bytes(), c.counted().bytes()))
        });
        all.truncate(self.args.top as usize);
    }

    fn table(&mut self, tracer: &Redirector, sink: &mut Sink) -> Result<()> {
        let mut ends = tracer.ends()?;
        self.settling.turn(tracer, &ends)?;
        let refused = tracer.refused()?;
        let totals = totals(tracer, ends.iter().chain(&refused))?;
        ends.extend(refused);
        let keys: HashSet<Key> = ends.iter().map(|end| end.key).collect();
        self.give_up(&keys, sink)?;
        let closed_halves = self.halves.values().map(|(end, _)| end);
        ends.extend(closed_halves.filter(|end| keys.contains(&end.key.other())).cloned());
        let mut all = connections(ends);
        let open = all.len();
        let now: Vec<(Key, Counted)> = all.iter().map(|c| (c.key(), c.counted())).collect();
        all.append(&mut self.closed);
        self.busiest(&mut all);
        let mut rows: Vec<Record> = all
            .iter()
            .map(|c| record(Kind::Row, "interval", c, self.new_in(c), Timestamp::now()))
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
        self.remember(now);
        sink.interval(&title, &rows)
    }

    fn remember(&mut self, now: Vec<(Key, Counted)>) {
        self.tables += 1;
        let table = self.tables;
        self.told.extend(now.into_iter().map(|(key, counted)| (key, Told { counted, table })));
        // A connection that closes is in no map for a moment, and then waits here for its other end.
        let halves = &self.halves;
        self.told.retain(|key, told| {
            told.table + 1 >= table || halves.contains_key(key) || halves.contains_key(&key.other())
        });
    }

    fn is_late((_, since): &(End, Instant)) -> bool {
        const PATIENCE: Duration = Duration::from_secs(2);
        since.elapsed() >= PATIENCE
    }

    /// The other end of a connection may have been refused, or its record lost.
    fn give_up(&mut self, open: &HashSet<Key>, sink: &mut Sink) -> Result<()> {
        let late = |(key, half): (&Key, &(End, Instant))| {
            (Self::is_late(half) && !open.contains(&key.other())).then_some(*key)
        };
        let hopeless: Vec<Key> = self.halves.iter().filter_map(late).collect();
        for key in hopeless {
            if let Some((end, _)) = self.halves.remove(&key) {
                self.over(Connection::new(end, None), sink)?;
            }
        }
        Ok(())
    }
}

/// Bytes, as text.
fn bytes(number: u64) -> String {
    amount(&number.into())
}
