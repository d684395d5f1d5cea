// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk sockredir preflight`: which processes use what redirection changes, before anything is redirected.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::cli::{KernelArgs, OutputArgs};
use crate::commands::common::{TaskArgs, note, take_signals};
use crate::error::Status;
use crate::kernel::btf::BtfSource;
use crate::kernel::caps::{self, Cap};
use crate::kernel::preflight::{Config, Missing, Process, Reason, Verdict, Watch};
use crate::kernel::run::{Flow, Timing, Turn, wait};
use crate::kernel::{cgroup, log};
use crate::output::{Column, Field, Kind, Record, Sink, Value, bytes_to_string};
use crate::values::{PidList, PortSet, parse_duration};

/// How often the addresses and listeners of the machine are looked up.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Watch which processes use, on local TCP connections, what redirection changes
#[derive(Args, Debug)]
pub(crate) struct Preflight {
    /// Only processes in this cgroup (v2), given as a directory, or below it
    #[arg(long, value_name = "PATH", conflicts_with = "pid", help_heading = "Filters")]
    cgroup: Option<PathBuf>,

    /// Only these processes (thread group ids), such as 1,22
    #[arg(short, long, value_name = "LIST", help_heading = "Filters")]
    pid: Option<PidList>,

    /// How long to watch: long enough for the programs to do all that they do
    #[arg(short, long, value_name = "TIME", default_value = "30s", value_parser = parse_duration, help_heading = "Run")]
    duration: Duration,

    /// Instead of the table, print the options of sockredir that keep the unsafe processes' connections out (those of a
    /// process that is to be treated with caution stay in)
    #[arg(long, conflicts_with_all = ["format", "no_header", "color"], help_heading = "Output")]
    emit_excludes: bool,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kernel: KernelArgs,
}

/// The schema of a row.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("pid", "process (thread group) id, in the initial PID namespace"),
    Field::new("comm", "name of the process when it was first seen"),
    Field::new("uid", "real user id of the thread that was seen first"),
    Field::new("cgroup", "cgroup v2 path of the process; null when the cgroup is gone"),
    Field::new("verdict", "safe, caution or unsafe"),
    Field::new("calls", "calls on local TCP connections that were looked at"),
    Field::new("reasons", "list of what redirection changes, by name; empty when nothing was seen"),
    Field::new("counts", "object of how many calls each reason was found in"),
    Field::new(
        "ports",
        "ports that keep the unsafe connections out; empty when there are none or none could be found",
    ),
];

pub(crate) const SUMMARY: &[Field] = &[
    Field::new("command", "sockredir preflight"),
    Field::new("processes", "that used local TCP connections or what can't be looked into"),
    Field::new("safe", "of these, safe as far as was seen"),
    Field::new("caution", "of these, right unless they are stopped, traced or get signals"),
    Field::new("unsafe", "of these, unsafe"),
    Field::new("excludes", "options that keep the unsafe connections out; null for none"),
    Field::new("not_excluded", "process ids for which no port was found"),
    Field::new("lost", "processes or ports for which a table had no room, as often as they came"),
    Field::new(
        "skipped",
        "system calls, at most, that were not looked into: the kernel did not run the program",
    ),
    Field::new("namespaces_not_seen", "network namespaces that could not be looked into"),
    Field::new("addresses_not_known", "addresses of this machine for which there was no room"),
    Field::new(
        "not_looked_for",
        "list of what redirection changes as well and preflight can't find",
    ),
];

/// Every reason, in the order of `Reason::ALL`: its name, and what is different for a program that does so.
pub(crate) const REASONS: &[Field] = &[
    Field::new(
        "splice",
        "splice(2) or sendfile(2) from the connection: it finds nothing, and says EAGAIN while poll says that there is some",
    ),
    Field::new("zerocopy-receive", "TCP_ZEROCOPY_RECEIVE: it finds nothing"),
    Field::new("waitall", "a read with MSG_WAITALL: it can come back short"),
    Field::new(
        "oob",
        "MSG_OOB, sent or received: urgent data is a byte of the stream, and reading it takes an ordinary one",
    ),
    Field::new(
        "trunc",
        "a read with MSG_TRUNC: instead of being discarded, data is copied into the buffer, and without a buffer the read fails with EFAULT",
    ),
    Field::new(
        "zerocopy",
        "SO_ZEROCOPY is set: of a send with MSG_ZEROCOPY it is never told when its data may be changed",
    ),
    Field::new(
        "rcvlowat",
        "a read, SO_RCVLOWAT being more than 1: poll says ready at the first byte",
    ),
    Field::new(
        "rcvtimeo",
        "a read that may block, SO_RCVTIMEO being set: EAGAIN can come before the time, by a signal or a reset",
    ),
    Field::new(
        "signals",
        "a read that may block, in a process with a handler of a signal (but for SIGSEGV and what else only faults raise): when one comes, the read fails with EAGAIN and isn't restarted",
    ),
    Field::new(
        "threads",
        "a read that may block, or a send that may find no room, while another thread waits in a read or a send of the same connection; or shutdown(SHUT_WR) while one waits in a read: the read fails with EAGAIN when the other thread is woken",
    ),
    Field::new("ulp", "TCP_ULP is set, as for kernel TLS: it and redirection don't go together"),
    Field::new(
        "mptcp",
        "MPTCP: such a connection stays on TCP; a listener is a danger on kernels without a fix",
    ),
    Field::new(
        "repair",
        "TCP_REPAIR is set: what is saved of the connection lacks redirected data",
    ),
    Field::new(
        "fionread",
        "ioctl FIONREAD (SIOCINQ), on kernels where it says 0 or too little while data waits: before Linux 7.0, 6.18.14, 6.12.75, 6.6.128",
    ),
    Field::new("tcp-info", "getsockopt TCP_INFO: its counters lack redirected data"),
    Field::new(
        "tcp-inq",
        "a read, TCP_INQ being set: the control message with what is left does not come",
    ),
    Field::new("peek-off", "a read, SO_PEEK_OFF being set: each MSG_PEEK begins at the first byte"),
    Field::new(
        "timestamps",
        "SO_TIMESTAMP, SO_TIMESTAMPNS or SO_TIMESTAMPING is set: they do not come",
    ),
    Field::new(
        "zero-length",
        "recv or recvfrom of 0 bytes: it returns 0 at once, also where no data waits",
    ),
    Field::new(
        "socket-filter",
        "a read, a socket filter being attached: redirected data passes it by",
    ),
    Field::new(
        "unread-at-close",
        "close(2) with unread data: the peer gets a FIN instead of a reset",
    ),
    Field::new(
        "half-close",
        "a read that may block, after shutdown(SHUT_WR), on a connection that brought something before: it fails with EAGAIN when the peer acknowledges the end of what was sent",
    ),
    Field::new(
        "room",
        "a read that may block, after a send for which there was no room: it fails with EAGAIN when there is room again",
    ),
    Field::new(
        "blocking",
        "a read that may block (caution, if nothing else): it fails with EAGAIN when the process is stopped and continued, its cgroup is frozen and thawed, a tracer attaches or detaches, another thread calls setuid or setgid, or the peer resets the connection (then the next read says ECONNRESET)",
    ),
    Field::new(
        "io_uring",
        "io_uring_setup or io_uring_enter: what goes through the ring is not looked into, so it may be anything",
    ),
    Field::new("32-bit", "a system call on sockets of a 32-bit program: they are not looked into"),
];

/// What redirection changes as well, and is in no system call that is looked at, or not in what the program can read of
/// it.
pub(crate) const NOT_LOOKED_FOR: [&str; 9] = [
    "unread data where a process exits or replaces a descriptor (dup2, close_range)",
    "recvmsg of 0 bytes",
    "Linux AIO",
    "ioctl SIOCOUTQ and SIOCOUTQNSD",
    "TCP_CORK and MSG_MORE",
    "reads into memory of which a part is not mapped",
    "ENOMEM at the limit of a memory cgroup",
    "who watches from outside (ss, tcpdump, packet filters, accounting)",
    "anything a process did not do while it was watched",
];

fn name(reason: Reason) -> &'static str {
    Reason::ALL
        .iter()
        .zip(REASONS)
        .find(|(it, _)| **it == reason)
        .map_or("", |(_, field)| field.name)
}

const COLUMNS: [Column; 5] = [
    Column::left("PID", "pid", 7),
    Column::left("COMM", "comm", 15),
    Column::left("VERDICT", "verdict", 7).alarming_if(is_unsafe),
    Column::right("CALLS", "calls", 8),
    Column::left("WHY", "counts", 40).shown_by(why),
];

fn is_unsafe(value: &Value) -> bool {
    matches!(value, Value::Text(text) if text == "unsafe")
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Unsafe => "unsafe",
        Verdict::Caution => "caution",
        Verdict::Safe => "safe",
    }
}

/// `splice (12), waitall (3)`
fn why(value: &Value) -> String {
    let Value::Map(entries) = value else { return value.text() };
    let texts: Vec<String> =
        entries.iter().map(|(name, count)| format!("{name} ({})", count.text())).collect();
    texts.join(", ")
}

fn record(process: &Process, paths: &mut cgroup::Paths) -> Record {
    let counts: Vec<(&'static str, Value)> =
        process.reasons.iter().map(|&(reason, count)| (name(reason), count.into())).collect();
    let reasons: Vec<String> = counts.iter().map(|(name, _)| (*name).to_string()).collect();
    Record::new(Kind::Row)
        .with("pid", process.pid)
        .with("comm", bytes_to_string(&process.comm))
        .with("uid", process.uid)
        .with("cgroup", paths.get(process.cgroup_id))
        .with("verdict", word(process.verdict()))
        .with("calls", process.calls)
        .with("reasons", reasons)
        .with("counts", counts)
        .with("ports", process.ports.iter().map(|port| u32::from(*port)).collect::<Vec<_>>())
}

/// What keeps the unsafe ones out, and which of them it can't.
#[derive(Debug, PartialEq, Eq)]
struct Excludes {
    options: Option<String>,
    without: Vec<(u32, String)>,
}

impl Excludes {
    fn of(processes: &[Process]) -> Self {
        let mut ports: Vec<u16> = Vec::new();
        let mut without = Vec::new();
        for process in processes.iter().filter(|process| process.verdict() == Verdict::Unsafe) {
            ports.extend(&process.ports);
            if process.ports.is_empty() || is_blind(process) {
                without.push((process.pid, bytes_to_string(&process.comm)));
            }
        }
        ports.sort_unstable();
        ports.dedup();
        let set = PortSet(ranges(&ports));
        let options = (!set.0.is_empty()).then(|| format!("--exclude-port {set}"));
        Self { options, without }
    }
}

/// Whether it does what can't be looked into: it may be on connections of which no port is known.
pub(super) fn is_blind(process: &Process) -> bool {
    process.reasons.iter().any(|(reason, _)| matches!(reason, Reason::IoUring | Reason::Abi32))
}

/// What a process does that redirection changes, each with the number of calls.
pub(super) fn reasons_of(process: &Process) -> String {
    let texts: Vec<String> = process
        .reasons
        .iter()
        .map(|&(reason, count)| format!("{} ({count})", name(reason)))
        .collect();
    texts.join(", ")
}

/// `80,8000-8003`
pub(super) fn port_list(ports: &[u16]) -> String {
    PortSet(ranges(ports)).to_string()
}

/// Sorted ports without repetitions, as ranges.
fn ranges(ports: &[u16]) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &port in ports {
        match ranges.last_mut() {
            Some((_, high)) if high.checked_add(1) == Some(port) => *high = port,
            _ => ranges.push((port, port)),
        }
    }
    ranges
}

impl Preflight {
    pub(crate) fn run(self) -> Result<ExitCode> {
        log::collect(self.kernel.verbose > 1);
        let tasks =
            TaskArgs { pid: self.pid.clone(), cgroup: self.cgroup.clone(), user: None, comm: None };
        let config = Config {
            btf: BtfSource::new(self.kernel.btf.as_deref())?,
            tasks: tasks.resolve()?,
            guard: false,
            learn: Duration::ZERO,
        };
        caps::require(&[Cap::Bpf, Cap::Perfmon])?;
        let mut sink = Sink::open(&self.output.sink(), Vec::new(), FIELDS)?;
        let mut signals = take_signals(self.output.output.is_some())?;
        let mut watch = Watch::arm(&config)?;
        note(self.kernel.verbose, || "armed".into());

        let timing = Timing {
            duration: Some(self.duration),
            interval: Some(LOOK_EVERY),
            look: false,
            to_stdout: self.output.output.is_none(),
            gather: false,
        };
        wait(&mut signals, timing, |turn| match turn {
            Turn::Event(never) => match never {},
            Turn::Rest => Ok(Flow::Continue),
            Turn::Tick => watch.refresh().map(|()| Flow::Continue),
            Turn::Look => Ok(Flow::Continue),
            Turn::Reopen => sink.reopen().map(|()| Flow::Continue),
        })?;
        watch.detach();
        watch.refresh_at_the_end()?;
        self.tell(&watch.processes()?, watch.missing()?, &mut sink)
    }

    fn tell(&self, processes: &[Process], missing: Missing, sink: &mut Sink) -> Result<ExitCode> {
        let excludes = Excludes::of(processes);
        if self.emit_excludes {
            if let Some(options) = &excludes.options {
                sink.detail(&format!("{options}\n"))?;
            }
        } else {
            let mut paths = cgroup::Paths::new();
            let rows: Vec<Record> =
                processes.iter().map(|process| record(process, &mut paths)).collect();
            sink.section(&COLUMNS, &rows, "No process used local TCP connections.")?;
        }

        let counted = Counted::of(processes);
        let pids: Vec<u32> = excludes.without.iter().map(|(pid, _)| *pid).collect();
        let summary = Record::new(Kind::Summary)
            .with("command", "sockredir preflight")
            .with("processes", processes.len() as u64)
            .with("safe", counted.safe)
            .with("caution", counted.caution)
            .with("unsafe", counted.bad)
            .with("excludes", excludes.options.clone())
            .with("not_excluded", pids)
            .with("lost", missing.table_full)
            .with("skipped", missing.skipped)
            .with("namespaces_not_seen", missing.namespaces)
            .with("addresses_not_known", missing.addresses)
            .with("not_looked_for", NOT_LOOKED_FOR.map(String::from).to_vec());
        sink.summary(&summary, &sentence(counted, missing))?;

        if !self.emit_excludes || excludes.without.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        // Who pastes the options must not believe that they are enough.
        let list: Vec<String> =
            excludes.without.iter().map(|(pid, comm)| format!("{pid} ({comm})")).collect();
        let _ = writeln!(
            std::io::stderr(),
            "bpftk: no port is known that keeps all connections of these out: {}; leave them out by the scope \
             (--cgroup, --port, --comm)",
            crate::output::printable(&list.join(", "))
        );
        Ok(Status::Failed.into())
    }
}

/// Processes by what is to be thought of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    safe: u64,
    caution: u64,
    bad: u64,
}

impl Counted {
    fn of(processes: &[Process]) -> Self {
        let mut counted = Self::default();
        for process in processes {
            match process.verdict() {
                Verdict::Safe => counted.safe += 1,
                Verdict::Caution => counted.caution += 1,
                Verdict::Unsafe => counted.bad += 1,
            }
        }
        counted
    }
}

fn sentence(counted: Counted, missing: Missing) -> String {
    let Counted { safe, caution, bad } = counted;
    let all = safe + caution + bad;
    let mut parts = vec![format!(
        "{all} processes with local TCP: {safe} safe, {caution} with caution, {bad} unsafe"
    )];
    for (count, before, after) in [
        (missing.table_full, "", " times a table was full: processes or ports are missing"),
        (
            missing.skipped,
            "up to ",
            " system calls were not looked into: the kernel skipped the program",
        ),
        (
            missing.namespaces,
            "",
            " network namespaces could not be looked into: connections with them are taken for others'",
        ),
        (
            missing.addresses,
            "",
            " addresses of this machine had no room: connections with them are taken for others'",
        ),
    ] {
        if count > 0 {
            parts.push(format!("{before}{count}{after}"));
        }
    }
    if parts.len() == 1 {
        parts.push("0 lost".into());
    }
    format!("{}\nbpftk: not looked for: {}", parts.join("; "), NOT_LOOKED_FOR.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, reasons: &[(Reason, u64)], ports: &[u16]) -> Process {
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"name");
        Process {
            pid,
            start_ns: 0,
            comm,
            uid: 0,
            cgroup_id: 1,
            calls: 9,
            reasons: reasons.to_vec(),
            ports: ports.to_vec(),
        }
    }

    #[test]
    fn rows_have_the_schema_and_say_why() {
        let it = process(7, &[(Reason::Splice, 12), (Reason::Waitall, 3)], &[5432]);
        let record = record(&it, &mut cgroup::Paths::default());
        let names: Vec<_> = record.fields.iter().map(|(name, _)| *name).collect();
        let schema: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
        assert_eq!(names, schema);
        assert_eq!(why(record.get("counts")), "splice (12), waitall (3)");
        assert_eq!(record.get("verdict").text(), "unsafe");
    }

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let mut names: Vec<_> = Reason::ALL.into_iter().map(name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), REASONS.len());
        assert!(!names.contains(&""));
        // The order is the same in both.
        for (reason, text) in [
            (Reason::Splice, "splice"),
            (Reason::Rcvlowat, "rcvlowat"),
            (Reason::Ulp, "ulp"),
            (Reason::Abi32, "32-bit"),
        ] {
            assert_eq!(name(reason), text);
        }
    }

    #[test]
    fn who_only_blocks_is_to_be_treated_with_caution_and_not_excluded() {
        let blocks = process(1, &[(Reason::Blocking, 5)], &[]);
        let both = process(2, &[(Reason::Splice, 1), (Reason::Blocking, 5)], &[80]);
        let neither = process(3, &[], &[]);
        let verdicts = [&blocks, &both, &neither].map(|it| word(it.verdict()));
        assert_eq!(verdicts, ["caution", "unsafe", "safe"]);
        let all = [blocks, both, neither];
        assert_eq!(Counted::of(&all), Counted { safe: 1, caution: 1, bad: 1 });
        let excludes = Excludes::of(&all);
        assert_eq!(excludes.options.as_deref(), Some("--exclude-port 80"));
        assert_eq!(excludes.without, []);
    }

    #[test]
    fn ports_become_options_that_can_be_read_again() {
        let excludes = Excludes::of(&[
            process(1, &[(Reason::Splice, 1)], &[8080, 80]),
            process(2, &[(Reason::Oob, 1)], &[8081, 80]),
            process(3, &[], &[]),
        ]);
        assert_eq!(excludes.options.as_deref(), Some("--exclude-port 80,8080-8081"));
        assert_eq!(excludes.without, []);
        let list = excludes.options.unwrap();
        let ports: PortSet = list.split_once(' ').unwrap().1.parse().unwrap();
        assert_eq!(ports.0, [(80, 80), (8080, 8081)]);
        assert_eq!(ranges(&[65535]), [(65535, 65535)]);
    }

    #[test]
    fn what_no_port_keeps_out_is_named() {
        let excludes = Excludes::of(&[
            process(1, &[(Reason::IoUring, 1), (Reason::Splice, 1)], &[80]),
            process(2, &[(Reason::Waitall, 1)], &[]),
        ]);
        assert_eq!(excludes.options.as_deref(), Some("--exclude-port 80"));
        assert_eq!(excludes.without, [(1, "name".into()), (2, "name".into())]);
        assert_eq!(Excludes::of(&[]).options, None);
    }
}
