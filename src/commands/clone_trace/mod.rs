// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk clone-trace`: every clone, clone3, fork and vfork, with its child or its error.

mod count;
mod flags;
mod manual;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use self::count::Counts;
pub(crate) use self::manual::MANUAL;
use super::common::{
    TIME_COLUMN, TaskArgs, USER_COLUMN, losses_sentence, refuse_without, with_losses,
};
use super::tracing::{self, Plan};
use crate::cli::{KernelArgs, OutputArgs, StreamArgs};
use crate::error::usage;
use crate::kernel::btf::BtfSource;
use crate::kernel::caps::Cap;
use crate::kernel::cgroup;
use crate::kernel::clock::{boot_ns, wall_time};
use crate::kernel::clone_trace::{self, Args, Backend, Call, Config, Name, Outcome, Tracer, arm};
use crate::kernel::log;
use crate::kernel::run::Flow;
use crate::net::errno;
use crate::output::{Column, Field, Kind, Record, Sink, Value, bytes_to_string};
use crate::values::parse_duration;

/// Trace every clone, clone3, fork and vfork: who called, with which flags, and the child or the error
#[derive(clap::Args, Debug)]
pub(crate) struct CloneTrace {
    #[command(flatten)]
    tasks: TaskArgs,

    /// Only calls that make these, such as thread,namespace
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Filters")]
    kind: Vec<clone_trace::Kind>,

    /// Only calls that made nothing: they failed or were intercepted
    #[arg(long, help_heading = "Filters")]
    failed: bool,

    /// Count calls per name of the caller and kind: a table each interval, and one at the end
    #[arg(short, long, conflicts_with_all = ["max_events", "timestamp", "args", "latency", "print_ppid", "print_user", "print_cgroup"], help_heading = "Rows")]
    count: bool,

    /// How often --count prints
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, requires = "count", help_heading = "Rows")]
    interval: Option<Duration>,

    /// Add an ARGS column: what was passed beside the flags
    #[arg(short, long, help_heading = "Rows")]
    args: bool,

    /// Add a LATENCY column: how long the call took
    #[arg(short, long, help_heading = "Rows")]
    latency: bool,

    /// Add a PPID column: the caller's parent
    #[arg(short = 'P', long, help_heading = "Rows")]
    print_ppid: bool,

    /// Add a USER column
    #[arg(short = 'U', long, help_heading = "Rows")]
    print_user: bool,

    /// Add a CGROUP column: the caller's cgroup v2 path
    #[arg(long, help_heading = "Rows")]
    print_cgroup: bool,

    /// Use this way of seeing calls, instead of the first that works here
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
    Field::new(
        "time",
        "when the call was made, RFC 3339; when it ended, for one whose beginning was not seen",
    ),
    Field::new("pid", "process (thread group) id of the caller, in the initial PID namespace"),
    Field::new("tid", "thread id of the caller"),
    Field::new("ppid", "process id of the caller's parent; 0 for none"),
    Field::new("uid", "real user id of the caller"),
    Field::new("comm", "name of the calling thread"),
    Field::new("cgroup", "cgroup v2 path of the caller; null when the cgroup is gone"),
    Field::new("call", "clone, clone3, fork or vfork; null with the task back end"),
    Field::new(
        "child",
        "id of the new task (a thread's own id, not its process's), in the initial PID namespace; null when the call made none",
    ),
    Field::new(
        "child_ns",
        "the same id as the call returned it, in the caller's PID namespace; null when the call made none or its return was not seen",
    ),
    Field::new(
        "kind",
        "process, thread, vfork or namespace; null when the flags could not be read",
    ),
    Field::new(
        "flags",
        "list of the flags' full names, what has no name in hex; null when they could not be read",
    ),
    Field::new(
        "flags_raw",
        "the flags as a number, as passed: for clone the low byte is the exit signal; for fork and vfork, what they stand for",
    ),
    Field::new(
        "exit_signal",
        "number of the signal that the parent gets when the child ends; 0 is none",
    ),
    Field::new(
        "result",
        "ok, an errno's name, or intercepted (seccomp or a tracer answered in the kernel's place, without an error: nothing was made)",
    ),
    Field::new("errno", "the error number of a failure; else null"),
    Field::new(
        "latency_us",
        "from the call to its return, in microseconds; null when either was not seen",
    ),
    Field::new(
        "args",
        "object of what was passed beside the flags, addresses in hex as text; null without --args, for fork and vfork, and when it could not be read",
    ),
];

const FLAGS: Column = Column::left("FLAGS", "flags", 30).shown_by(flags_cell);
const ARGS: Column = Column::left("ARGS", "args", 20).shown_by(args_cell);
/// A failure has no child, and its errno's name stands there.
const CHILD: Column = Column::left("CHILD", "child", 7).or("result").alarming_if(is_failure);

fn flags_cell(value: &Value) -> String {
    match value {
        Value::Texts(names) => flags::short(names),
        _ => "?".into(),
    }
}

/// In ms as everywhere, with the µs that most calls take.
fn latency_cell(value: &Value) -> String {
    match value {
        Value::Float(us) => format!("{:.3}ms", us / 1000.0),
        other => other.text(),
    }
}

fn is_failure(value: &Value) -> bool {
    matches!(value, Value::Text(text) if text != "ok")
}

/// `name=value`, without what there is none of.
fn args_cell(value: &Value) -> String {
    let Value::Map(entries) = value else {
        return value.text();
    };
    let texts: Vec<String> = entries
        .iter()
        .filter(|(_, value)| !value.text().is_empty())
        .map(|(name, value)| match (*name, value) {
            ("exit_signal", Value::Unsigned(number)) => format!("{name}={}", signal_name(*number)),
            _ => format!("{name}={}", value.text()),
        })
        .collect();
    texts.join(" ")
}

/// `SIGCHLD` for 17; the number where it has no name, as real-time signals.
fn signal_name(number: u64) -> String {
    i32::try_from(number)
        .ok()
        .and_then(|number| Signal::try_from(number).ok())
        .map_or_else(|| number.to_string(), |signal| signal.as_str().to_string())
}

fn hex(address: u64) -> Value {
    format!("{address:#x}").into()
}

fn args_value(args: &Args, exit_signal: Option<u64>) -> Value {
    match args {
        Args::Clone { newsp, parent_tidptr, child_tidptr, tls, pidfd_number } => vec![
            ("exit_signal", exit_signal.into()),
            ("newsp", hex(*newsp)),
            ("parent_tidptr", hex(*parent_tidptr)),
            ("child_tidptr", hex(*child_tidptr)),
            ("tls", hex(*tls)),
            ("pidfd_number", (*pidfd_number).into()),
        ],
        Args::Clone3 {
            size,
            pidfd,
            child_tid,
            parent_tid,
            stack,
            stack_size,
            tls,
            set_tid,
            set_tid_size,
            set_tids,
            cgroup,
            pidfd_number,
        } => vec![
            ("size", (*size).into()),
            ("pidfd", hex(*pidfd)),
            ("child_tid", hex(*child_tid)),
            ("parent_tid", hex(*parent_tid)),
            ("exit_signal", exit_signal.into()),
            ("stack", hex(*stack)),
            ("stack_size", hex(*stack_size)),
            ("tls", hex(*tls)),
            ("set_tid", hex(*set_tid)),
            ("set_tid_size", (*set_tid_size).into()),
            ("cgroup", (*cgroup).into()),
            ("set_tids", set_tids.clone().map_or(Value::Null, Value::Numbers)),
            ("pidfd_number", (*pidfd_number).into()),
        ],
    }
    .into()
}

impl CloneTrace {
    fn columns(&self) -> Vec<Column> {
        let mut columns = Vec::new();
        if self.stream.timestamp {
            columns.push(TIME_COLUMN);
        }
        if self.print_user {
            columns.push(USER_COLUMN);
        }
        if self.print_ppid {
            columns.push(Column::left("PPID", "ppid", 6));
        }
        columns.push(Column::left("PID", "pid", 6));
        columns.push(Column::left("COMM", "comm", 15));
        columns.push(Column::left("CALL", "call", 6));
        columns.push(CHILD);
        columns.push(Column::left("KIND", "kind", 9));
        if self.latency {
            columns.push(Column::right("LATENCY", "latency_us", 9).shown_by(latency_cell));
        }
        if self.print_cgroup {
            columns.push(Column::left("CGROUP", "cgroup", 20));
        }
        columns.push(FLAGS);
        if self.args {
            columns.push(ARGS);
        }
        columns
    }

    /// What only the beginning or the end of a call can answer.
    fn needs_calls(&self) -> Option<&'static str> {
        [(self.failed, "--failed"), (self.args, "--args"), (self.latency, "--latency")]
            .into_iter()
            .find_map(|(asked, option)| asked.then_some(option))
    }

    fn config(&self) -> Result<Config> {
        let needs_calls = self.needs_calls();
        if let (Some(Backend::Task), Some(option)) = (self.backend, needs_calls) {
            return Err(usage(format!(
                "{option} contradicts --backend task, which sees new tasks and no calls; expected --backend syscall or kprobe"
            )));
        }
        Ok(Config {
            tasks: self.tasks.resolve()?,
            kinds: self.kind.clone(),
            failed_only: self.failed,
            args: self.args,
            needs_calls,
            btf: BtfSource::new(self.kernel.btf.as_deref())?,
        })
    }

    pub(crate) fn run(self) -> Result<ExitCode> {
        log::collect(self.kernel.verbose > 1);
        refuse_without("--count", self.count, &[(self.interval.is_some(), "--interval")])?;
        let config = self.config()?;
        let plan = Plan {
            stream: &self.stream,
            output: &self.output,
            kernel: &self.kernel,
            needed: &[Cap::Bpf, Cap::Perfmon],
            columns: if self.count { count::columns() } else { self.columns() },
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
                counts: self.count.then(Counts::default),
                totals: Totals::default(),
            },
        )
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    ok: u64,
    failed: u64,
}

impl Totals {
    fn rows(self) -> u64 {
        self.ok + self.failed
    }
}

/// What a run knows beside what the kernel does.
#[derive(Debug)]
struct Session<'a> {
    args: &'a CloneTrace,
    backend: Backend,
    paths: cgroup::Paths,
    counts: Option<Counts>,
    totals: Totals,
}

impl tracing::Session<Tracer> for Session<'_> {
    fn event(&mut self, call: Call, sink: &mut Sink) -> Result<Flow> {
        if self.full() {
            return Ok(Flow::Stop);
        }
        self.call(&call, sink)?;
        Ok(if self.full() { Flow::Stop } else { Flow::Continue })
    }

    fn tick(&mut self, _tracer: &Tracer, sink: &mut Sink) -> Result<()> {
        self.counts.as_mut().map_or(Ok(()), |counts| counts.interval(sink))
    }

    /// What has a child and has not returned, and what is missing.
    fn finish(&mut self, tracer: &Tracer, undecodable: u64, sink: &mut Sink) -> Result<()> {
        if !self.args.failed {
            for call in tracer.unreturned() {
                self.event(call, sink)?;
            }
        }
        if let Some(counts) = &mut self.counts {
            counts.total(sink)?;
        }
        let losses = tracer.losses()?;
        let rows = self.totals.rows();
        let Totals { ok, failed } = self.totals;
        let record = Record::new(Kind::Summary)
            .with("command", "clone-trace")
            .with("backend", self.backend.to_string())
            .with("calls", rows)
            .with("ok", ok)
            .with("failed", failed);
        let record = with_losses(record, losses, undecodable);
        let lost = losses_sentence(losses, undecodable);
        let what = match self.backend {
            // It sees no failures to count.
            Backend::Task => format!("{rows} new tasks"),
            _ => format!("{rows} calls: {ok} ok, {failed} failed"),
        };
        sink.summary(&record, &format!("{what}; {lost}"))
    }
}

impl Session<'_> {
    fn call(&mut self, call: &Call, sink: &mut Sink) -> Result<()> {
        match call.outcome {
            Outcome::Ok => self.totals.ok += 1,
            Outcome::Failed(_) | Outcome::Intercepted => self.totals.failed += 1,
        }
        match &mut self.counts {
            Some(counts) => counts.add(call),
            None => sink.event(&self.record(call))?,
        }
        Ok(())
    }

    fn full(&self) -> bool {
        self.args.stream.max_events.is_some_and(|limit| self.totals.rows() >= limit)
    }

    fn record(&mut self, call: &Call) -> Record {
        let latency = match (call.start_ns, call.end_ns) {
            (Some(start), Some(end)) => Some(end.saturating_sub(start) as f64 / 1000.0),
            _ => None,
        };
        let time = call.start_ns.or(call.end_ns).unwrap_or_else(boot_ns);
        let (result, errno) = match call.outcome {
            Outcome::Ok => ("ok".to_string(), None),
            Outcome::Failed(number) => (errno::name(number), Some(number)),
            Outcome::Intercepted => ("intercepted".to_string(), None),
        };
        let exit_signal = call.shape.map(|shape| shape.exit_signal);
        Record::new(Kind::Event)
            .with("time", wall_time(time))
            .with("pid", call.pid)
            .with("tid", call.tid)
            .with("ppid", call.ppid)
            .with("uid", call.uid)
            .with("comm", bytes_to_string(&call.comm))
            .with("cgroup", self.paths.get(call.cgroup_id))
            .with("call", call.name.as_ref().map(Name::to_string))
            .with("child", call.child)
            .with("child_ns", call.child_ns)
            .with("kind", call.shape.map(|shape| shape.kind.to_string()))
            .with("flags", call.shape.map(|shape| flags::names(call.name, shape.flags)))
            .with("flags_raw", call.shape.map(|shape| shape.flags))
            .with("exit_signal", exit_signal)
            .with("result", result)
            .with("errno", errno)
            .with("latency_us", latency)
            .with("args", call.args.as_ref().map(|args| args_value(args, exit_signal)))
    }
}
