// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk tcpconnect`: every active TCP connect, with its result and latency.

mod count;
mod manual;
mod times;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use ipnet::IpNet;

use self::count::Counts;
pub(crate) use self::manual::MANUAL;
use super::common::{
    TIME_COLUMN, TaskArgs, USER_COLUMN, losses_sentence, millis, note, refuse_without, with_losses,
};
use super::resolver::Resolver;
use super::tracing::{self, Plan};
use crate::cli::{KernelArgs, OutputArgs, StreamArgs};
use crate::error::usage;
use crate::kernel::btf::BtfSource;
use crate::kernel::caps::Cap;
use crate::kernel::cgroup;
use crate::kernel::clock::{boot_ns, wall_time};
use crate::kernel::log;
use crate::kernel::netns;
use crate::kernel::run::Flow;
use crate::kernel::tcpconnect::{Attempt, Backend, Config, Event, Outcome, Tracer, arm};
use crate::net::errno;
use crate::net::ranges::Ranges;
use crate::output::{Column, Field, Kind, Record, Sink, Value, bytes_to_string};
use crate::values::{CidrList, PortSet, number, parse_duration};

/// Trace every active TCP connect: who, where to, its result and its latency
#[derive(Args, Debug)]
pub(crate) struct Tcpconnect {
    #[command(flatten)]
    tasks: TaskArgs,

    /// Only to these destination ports, such as 80,443,8000-8100,http
    #[arg(short = 'P', long, value_name = "LIST", help_heading = "Filters")]
    port: Option<PortSet>,

    /// Only to these addresses, such as 10.0.0.0/8,2001:db8::1; may be given several times
    #[arg(long, value_name = "CIDRS", help_heading = "Filters")]
    dst: Vec<CidrList>,

    /// Not to these addresses, even if --dst has them; may be given several times
    #[arg(long, value_name = "CIDRS", help_heading = "Filters")]
    exclude: Vec<CidrList>,

    /// Only IPv4, v4-mapped IPv6 included
    #[arg(short = '4', long, conflicts_with = "ipv6", help_heading = "Filters")]
    ipv4: bool,

    /// Only IPv6
    #[arg(short = '6', long, help_heading = "Filters")]
    ipv6: bool,

    /// Only sockets in this network namespace: a name as `ip netns` lists it, a file such as /proc/PID/ns/net, or `self`
    #[arg(long, value_name = "NAME|PATH|self", help_heading = "Filters")]
    netns: Option<PathBuf>,

    /// Only attempts that did not succeed
    #[arg(long, help_heading = "Filters")]
    failed: bool,

    /// Only attempts that took at least this long, such as 100ms
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Filters")]
    min_latency: Option<Duration>,

    /// Print each attempt when it is made, without its result and latency
    #[arg(long, conflicts_with_all = ["failed", "min_latency", "count"], help_heading = "Rows")]
    at_start: bool,

    /// Count attempts per source address, destination and port: a table each interval, and one at the end
    #[arg(short, long, conflicts_with_all = ["max_events", "timestamp", "lport", "print_user", "print_cgroup"], help_heading = "Rows")]
    count: bool,

    /// How often --count prints
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, requires = "count", help_heading = "Rows")]
    interval: Option<Duration>,

    /// Rows for so many keys of --count at most, those that came first; the rest is in one row `other`
    #[arg(long, value_name = "N", default_value = "65536", value_parser = number::<u32>(1, 4_194_304), requires = "count", help_heading = "Rows")]
    max_keys: u32,

    /// Add an LPORT column: the local port
    #[arg(short = 'L', long, help_heading = "Rows")]
    lport: bool,

    /// Add a USER column
    #[arg(short = 'U', long, help_heading = "Rows")]
    print_user: bool,

    /// Add a CGROUP column: the caller's cgroup v2 path
    #[arg(long, help_heading = "Rows")]
    print_cgroup: bool,

    /// Add a NAME column, from DNS answers that this machine received
    #[arg(long, help_heading = "Rows")]
    dns: bool,

    /// Room for N attempts under way; more are counted as lost
    #[arg(long, value_name = "N", default_value = "16384", value_parser = number::<u32>(1, 16_777_216), help_heading = "Kernel")]
    max_pending: u32,

    /// Use this way of following calls, instead of the first that works here
    #[arg(long, value_name = "BACKEND", help_heading = "Kernel")]
    backend: Option<Backend>,

    #[command(flatten)]
    stream: StreamArgs,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kernel: KernelArgs,
}

/// The schema of a row.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("time", "when connect was called, RFC 3339"),
    Field::new("pid", "process (thread group) id of the caller, in the initial PID namespace"),
    Field::new("tid", "thread id of the caller"),
    Field::new("uid", "real user id of the caller"),
    Field::new("comm", "name of the caller's thread"),
    Field::new("cgroup", "cgroup v2 path of the caller; null when the cgroup is gone"),
    Field::new("netns", "inode number of the socket's network namespace"),
    Field::new("family", "4 or 6: of the packets on the wire, so 4 for a v4-mapped destination"),
    Field::new("saddr", "source address; null when none was chosen yet"),
    Field::new("sport", "source port; null when none was chosen yet"),
    Field::new("daddr", "destination address"),
    Field::new("dport", "destination port"),
    Field::new(
        "result",
        "ok, an errno's name, closed (by the caller, before an answer), unknown, or pending",
    ),
    Field::new("errno", "the error number of a failure; else null"),
    Field::new(
        "latency_us",
        "from the call to the answer, or to when the caller closed it, in microseconds; null when it is undecided or its beginning was not seen",
    ),
    Field::new(
        "name",
        "list of names that DNS answers gave the destination, the latest first; null without --dns or when there is none",
    ),
];

const RESULT: Column = Column::left("RESULT", "result", 12).alarming_if(is_failure);

fn is_failure(value: &Value) -> bool {
    !matches!(value, Value::Null)
        && !matches!(value, Value::Text(text) if text == "ok" || text == "pending")
}

impl Tcpconnect {
    fn columns(&self) -> Vec<Column> {
        let mut columns = Vec::new();
        if self.stream.timestamp {
            columns.push(TIME_COLUMN);
        }
        if self.print_user {
            columns.push(USER_COLUMN);
        }
        columns.push(Column::left("PID", "pid", 6));
        columns.push(Column::left("COMM", "comm", 10));
        columns.push(Column::left("IP", "family", 2));
        columns.push(Column::left("SADDR", "saddr", 15));
        if self.lport {
            columns.push(Column::right("LPORT", "sport", 5));
        }
        columns.push(Column::left("DADDR", "daddr", 15));
        columns.push(Column::right("DPORT", "dport", 5));
        columns.push(RESULT);
        columns.push(Column::right("LATENCY", "latency_us", 8).shown_by(millis));
        if self.print_cgroup {
            columns.push(Column::left("CGROUP", "cgroup", 20));
        }
        if self.dns {
            columns.push(Column::left("NAME", "name", 20));
        }
        columns
    }

    fn require_destinations(&self, dst: &[IpNet], exclude: &[IpNet]) -> Result<()> {
        let ranges = |nets: &[IpNet]| nets.iter().copied().collect::<Ranges>();
        let asked = if dst.is_empty() { Ranges::all() } else { ranges(dst) };
        let left = asked.without(&ranges(exclude));
        let v4 = !self.ipv6 && !left.v4().is_empty();
        let v6 = !self.ipv4 && !left.v6().is_empty();
        if v4 || v6 {
            return Ok(());
        }
        Err(usage(
            "--dst, --exclude, -4 and -6 contradict each other: together they leave no address",
        ))
    }

    fn config(&self) -> Result<Config> {
        let nets = |lists: &[CidrList]| -> Vec<IpNet> {
            lists.iter().flat_map(|list| list.0.clone()).collect()
        };
        let (dst, exclude) = (nets(&self.dst), nets(&self.exclude));
        self.require_destinations(&dst, &exclude)?;
        Ok(Config {
            tasks: self.tasks.resolve()?,
            at_start: self.at_start,
            failed_only: self.failed,
            min_latency_ns: self.min_latency.map_or(0, |time| time.as_nanos() as u64),
            family: match (self.ipv4, self.ipv6) {
                (true, _) => 4,
                (_, true) => 6,
                _ => 0,
            },
            netns: self.netns.as_deref().map(netns::resolve).transpose()?.unwrap_or(0),
            ports: self.port.as_ref().map(PortSet::words),
            dst,
            exclude,
            dns: self.dns,
            max_pending: self.max_pending,
            btf: BtfSource::new(self.kernel.btf.as_deref())?,
        })
    }

    pub(crate) fn run(self) -> Result<ExitCode> {
        log::collect(self.kernel.verbose > 1);
        refuse_without("--count", self.count, &[(self.interval.is_some(), "--interval")])?;
        let config = self.config()?;
        let mut needed = vec![Cap::Bpf, Cap::Perfmon];
        if self.dns {
            needed.push(Cap::NetAdmin);
        }
        let plan = Plan {
            stream: &self.stream,
            output: &self.output,
            kernel: &self.kernel,
            needed: &needed,
            columns: if self.count { count::columns(self.dns) } else { self.columns() },
            fields: if self.count { count::FIELDS } else { FIELDS },
            tables: self.count,
            interval: self.interval,
            cgroup: self.tasks.watched(&config.tasks)?,
            gather: true,
        };
        tracing::run(
            plan,
            || arm(&config, self.backend),
            |backend| Session {
                args: &self,
                backend,
                paths: cgroup::Paths::new(),
                resolver: Resolver::default(),
                counts: self.count.then(|| Counts::new(self.max_keys)),
                totals: Totals::default(),
            },
        )
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    ok: u64,
    failed: u64,
    pending: u64,
    rows: u64,
}

/// What a run knows beside what the kernel does.
#[derive(Debug)]
struct Session<'a> {
    args: &'a Tcpconnect,
    backend: Backend,
    paths: cgroup::Paths,
    resolver: Resolver,
    counts: Option<Counts>,
    totals: Totals,
}

impl tracing::Session<Tracer> for Session<'_> {
    fn event(&mut self, event: Event, sink: &mut Sink) -> Result<Flow> {
        match event {
            Event::Dns(piece) => self.resolver.learn(&piece, |_| None),
            Event::Attempt(_) if self.full() => return Ok(Flow::Stop),
            Event::Attempt(attempt) => {
                self.attempt(&attempt, sink)?;
                if self.full() {
                    return Ok(Flow::Stop);
                }
            }
        }
        Ok(Flow::Continue)
    }

    fn tick(&mut self, _tracer: &Tracer, sink: &mut Sink) -> Result<()> {
        self.counts.as_mut().map_or(Ok(()), |counts| counts.interval(sink, &self.resolver))
    }

    /// What nobody answered, and what is missing.
    fn finish(&mut self, tracer: &Tracer, undecodable: u64, sink: &mut Sink) -> Result<()> {
        let args = self.args;
        let now = boot_ns();
        let waited = |attempt: &Attempt| {
            let time = attempt.latency_ns().unwrap_or(now - attempt.start_ns);
            args.min_latency.is_none_or(|least| time >= least.as_nanos() as u64)
        };
        let asked = |attempt: &Attempt| {
            waited(attempt) && !(args.failed && attempt.outcome == Outcome::Pending)
        };
        if !args.at_start && !self.full() {
            for attempt in tracer.pending().iter().filter(|attempt| asked(attempt)) {
                if self.full() {
                    break;
                }
                self.attempt(attempt, sink)?;
            }
        }
        if let Some(counts) = &mut self.counts {
            counts.total(sink, &self.resolver)?;
        }
        note(args.kernel.verbose, || format!("{} entries left in the tables", tracer.entries()));
        let other = self.counts.as_ref().map(Counts::other);
        let losses = tracer.losses()?;
        let Totals { ok, failed, pending, rows } = self.totals;
        let record = Record::new(Kind::Summary)
            .with("command", "tcpconnect")
            .with("backend", self.backend.to_string())
            .with("attempts", rows)
            .with("ok", ok)
            .with("failed", failed)
            .with("pending", pending);
        let record = with_losses(record, losses, undecodable)
            .with("lost_dns", losses.dns)
            .with("unseen", losses.unseen)
            .with("skipped", losses.skipped)
            .with("other", other);
        let lost = losses_sentence(losses, undecodable);
        let other = match other {
            Some(attempts) if attempts > 0 => format!("; {attempts} in other: --max-keys"),
            _ => String::new(),
        };
        let what = if args.at_start {
            format!("{rows} attempts")
        } else {
            format!("{rows} attempts: {ok} ok, {failed} failed, {pending} pending")
        };
        sink.summary(&record, &format!("{what}{other}; {lost}"))
    }
}

impl Session<'_> {
    fn full(&self) -> bool {
        self.args.stream.max_events.is_some_and(|limit| self.totals.rows >= limit)
    }

    fn attempt(&mut self, attempt: &Attempt, sink: &mut Sink) -> Result<()> {
        self.totals.rows += 1;
        match attempt.outcome {
            Outcome::Ok => self.totals.ok += 1,
            Outcome::Pending => self.totals.pending += 1,
            _ => self.totals.failed += 1,
        }
        match &mut self.counts {
            Some(counts) => {
                counts.add(attempt);
                Ok(())
            }
            None => sink.event(&self.record(attempt)),
        }
    }

    fn record(&mut self, attempt: &Attempt) -> Record {
        let (result, errno) = match attempt.outcome {
            Outcome::Ok => (Some("ok".to_string()), None),
            Outcome::Failed(errno) => (Some(errno::name(errno)), Some(errno)),
            Outcome::Closed => (Some("closed".into()), None),
            Outcome::Unknown => (Some("unknown".into()), None),
            // The call is all that --at-start looks at.
            Outcome::Pending if self.args.at_start => (None, None),
            Outcome::Pending => (Some("pending".into()), None),
        };
        let latency = attempt.latency_ns().map(|ns| ns as f64 / 1000.0);
        let names = self.resolver.names(attempt.daddr, attempt.netns);
        Record::new(Kind::Event)
            .with("time", wall_time(attempt.start_ns))
            .with("pid", attempt.pid)
            .with("tid", attempt.tid)
            .with("uid", attempt.uid)
            .with("comm", bytes_to_string(&attempt.comm))
            .with("cgroup", self.paths.get(attempt.cgroup_id))
            .with("netns", attempt.netns)
            .with("family", if attempt.daddr.is_ipv4() { 4_u8 } else { 6 })
            .with("saddr", attempt.saddr)
            .with("sport", attempt.sport)
            .with("daddr", attempt.daddr)
            .with("dport", attempt.dport)
            .with("result", result)
            .with("errno", errno)
            .with("latency_us", latency)
            .with("name", (!names.is_empty()).then_some(names))
    }
}
