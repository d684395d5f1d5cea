// SPDX-License-Identifier: MIT OR Apache-2.0

//! What several commands do alike: filters on tasks, cells, the end of a run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use jiff::tz::TimeZone;

use crate::cli::OutputArgs;
use crate::error::usage;
use crate::kernel::attach::tc::TcBackend;
use crate::kernel::cgroup;
use crate::kernel::losses::Losses;
use crate::kernel::signals::Signals;
use crate::kernel::task_filter::TaskFilter;
use crate::net::blocklist::{self, Blocklist};
use crate::output::{Column, Progress, Record, SinkOptions, Value, printable};
use crate::values::{Comm, PidList, UserList, user_name};

/// Which tasks to follow. The filters are combined by AND, and run in the kernel.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Filters")]
pub(crate) struct TaskArgs {
    /// Only these processes (thread group ids), such as 1,22
    #[arg(short, long, value_name = "LIST")]
    pub(crate) pid: Option<PidList>,

    /// Only these users, by name or number, such as root,1000
    #[arg(short, long, value_name = "LIST")]
    pub(crate) user: Option<UserList>,

    /// Only tasks of this name, as in /proc/PID/comm
    #[arg(long, value_name = "NAME")]
    pub(crate) comm: Option<Comm>,

    /// Only tasks in this cgroup (v2), given as a directory, or below it
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<PathBuf>,
}

impl TaskArgs {
    pub(crate) fn resolve(&self) -> Result<TaskFilter> {
        for &pid in self.pid.iter().flat_map(|list| &list.0) {
            check_pid(pid)?;
        }
        Ok(TaskFilter {
            pids: self.pid.clone().map(|list| list.0),
            uids: self.user.clone().map(|list| list.0),
            comm: self.comm.clone().map(|comm| comm.0),
            cgroup: self.cgroup.as_deref().map(cgroup::open).transpose()?,
        })
    }

    /// The cgroup that `filter` was made of.
    pub(crate) fn watched(&self, filter: &TaskFilter) -> Result<Option<cgroup::Watched>> {
        let both = self.cgroup.as_deref().zip(filter.cgroup.as_ref());
        both.map(|(path, dir)| cgroup::Watched::new(path, dir)).transpose()
    }
}

/// A process that isn't there matches nothing, and a thread's id is no process's: both are slips.
fn check_pid(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/status");
    let Ok(status) = std::fs::read_to_string(Path::new(&path)) else {
        return Err(usage(format!(
            "--pid {pid}: no such process; expected ids of running processes"
        )));
    };
    let tgid =
        status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse::<u32>().ok());
    match tgid {
        Some(tgid) if tgid != pid => {
            Err(usage(format!("--pid {pid}: a thread of process {tgid}; expected {tgid}")))
        }
        _ => Ok(()),
    }
}

/// Takes the signals over. With `reopens`, SIGHUP has files opened anew.
pub(crate) fn take_signals(reopens: bool) -> Result<Signals> {
    let signals = Signals::take(reopens)?;
    if reopens && signals.hangup_was_ignored {
        tell(
            "SIGHUP was ignored at the start, as nohup does; it is not any more, since it has files opened and read anew",
        );
    }
    Ok(signals)
}

/// The zone that times of day are shown in: that of TZ, or the system's.
pub(crate) fn time_zone() -> TimeZone {
    static ZONE: OnceLock<TimeZone> = OnceLock::new();
    let zone = ZONE.get_or_init(|| {
        TimeZone::try_system().unwrap_or_else(|_| {
            // A machine without /etc/localtime has UTC, and needs no word about it.
            if let Some(name) = std::env::var_os("TZ").filter(|name| !name.is_empty()) {
                tell(&format!(
                    "TZ={}: no such time zone here; times are UTC",
                    printable(&name.to_string_lossy())
                ));
            }
            TimeZone::UTC
        })
    });
    zone.clone()
}

/// Says what is no row, where it does not disturb them.
pub(crate) fn tell(text: &str) {
    // Nobody may be listening any more, and that is no failure of the run.
    let _ = writeln!(std::io::stderr(), "bpftk: {text}");
}

pub(crate) fn tell_all(texts: &[String]) {
    texts.iter().for_each(|text| tell(text));
}

/// A file of addresses, one CIDR a line. On a terminal it is said how far the reading is.
pub(crate) fn read_list(what: &str, path: &Path) -> Result<Blocklist> {
    let mut progress = Progress::new(format!("reading {}", path.display()));
    blocklist::read(what, path, |share| progress.tell(share))
}

/// A number and its noun.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Refuses options that mean nothing without `needed`. clap does so, too, but not where `needed` would contradict an option that
/// is there as well.
pub(crate) fn refuse_without(needed: &str, present: bool, options: &[(bool, &str)]) -> Result<()> {
    match options.iter().find(|(given, _)| *given && !present) {
        Some((_, option)) => Err(usage(format!(
            "{option}: means nothing without {needed}, which contradicts another option"
        ))),
        None => Ok(()),
    }
}

/// The back end of --fail-closed, which a link, that goes with its process, can't be.
pub(crate) fn closed_backend(
    fail_closed: bool,
    asked: Option<TcBackend>,
) -> Result<Option<TcBackend>> {
    match (fail_closed, asked) {
        (true, Some(TcBackend::Tcx)) => Err(usage(
            "--fail-closed: tcx links go with their process, and with them what they stop; expected --backend clsact, or none",
        )),
        (true, _) => Ok(Some(TcBackend::Clsact)),
        (false, asked) => Ok(asked),
    }
}

/// How often an interval's table comes: what is asked for, or every second.
pub(crate) fn interval(asked: Option<Duration>) -> Result<Duration> {
    match asked {
        Some(interval) if interval < Duration::from_millis(10) => {
            Err(usage("--interval: shorter than 10ms; expected at least that"))
        }
        Some(interval) => Ok(interval),
        None => Ok(Duration::from_secs(1)),
    }
}

impl OutputArgs {
    pub(crate) fn sink(&self) -> SinkOptions {
        SinkOptions {
            format: self.format,
            output: self.output.clone(),
            no_header: self.no_header,
            color: self.color,
        }
    }
}

/// The column of `--timestamp`.
pub(crate) const TIME_COLUMN: Column = Column::left("TIME", "time", 12).shown_by(time_of_day);

fn time_of_day(value: &Value) -> String {
    match value {
        Value::Time(time) => time.to_zoned(time_zone()).strftime("%H:%M:%S%.3f").to_string(),
        other => other.text(),
    }
}

/// The column of `--print-user`.
pub(crate) const USER_COLUMN: Column = Column::left("USER", "uid", 10).shown_by(user_cell);

fn user_cell(value: &Value) -> String {
    match value {
        Value::Unsigned(uid) => user_name(*uid as u32),
        other => other.text(),
    }
}

/// A duration in µs, shown in ms.
pub(crate) fn millis(value: &Value) -> String {
    match value {
        Value::Float(us) => format!("{:.2}ms", us / 1000.0),
        other => other.text(),
    }
}

/// What is missing, for the last line; nothing when nothing is.
pub(crate) fn losses_sentence(losses: Losses, undecodable: u64) -> String {
    let mut parts = Vec::new();
    for (count, cause) in [
        (losses.ring_full, "the reader was too slow for the ring buffer"),
        (losses.table_full, "the table of what is under way was full"),
        (losses.missed_return, "the kernel did not run the hook at their return"),
        (undecodable, "their record was not understood"),
    ] {
        if count > 0 {
            parts.push(format!("{count} lost: {cause}"));
        }
    }
    if losses.skipped > 0 {
        parts.push(format!(
            "up to {} more may be missing: the kernel skipped a program that the CPU was in the middle of",
            losses.skipped
        ));
    }
    if losses.unseen > 0 {
        parts.push(format!("{} more ended that had begun before", losses.unseen));
    }
    if losses.dns > 0 {
        parts.push(format!("{} pieces of DNS answers lost: names may be missing", losses.dns));
    }
    if losses.rows() + undecodable == 0 {
        parts.insert(0, "0 lost".into());
    }
    parts.join("; ")
}

/// The losses, as a summary has them.
pub(crate) fn with_losses(record: Record, losses: Losses, undecodable: u64) -> Record {
    record
        .with("lost", losses.rows() + undecodable)
        .with("lost_ring_full", losses.ring_full)
        .with("lost_table_full", losses.table_full)
        .with("lost_missed_return", losses.missed_return)
}

/// A message for `-v`, on standard error.
pub(crate) fn note(verbose: u8, message: impl FnOnce() -> String) {
    if verbose > 0 {
        tell(&message());
    }
}

/// Bytes, in the largest unit of which there is one.
pub(crate) fn amount(value: &Value) -> String {
    let mut number = match value {
        Value::Float(number) => *number,
        Value::Unsigned(number) => *number as f64,
        other => return other.text(),
    };
    if number < 1024.0 {
        return format!("{number:.0} B");
    }
    let mut units = ["KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    let mut unit = "B";
    while number >= 1024.0
        && let Some(next) = units.next()
    {
        number /= 1024.0;
        unit = next;
    }
    format!("{number:.1} {unit}")
}

/// Time that has passed, as a clock shows it.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        assert_eq!(amount(&Value::Unsigned(0)), "0 B");
        assert_eq!(amount(&Value::Unsigned(1023)), "1023 B");
        assert_eq!(amount(&Value::Float(1536.0)), "1.5 KiB");
        assert_eq!(amount(&Value::Unsigned(5 << 30)), "5.0 GiB");
        assert_eq!(clock(Duration::from_secs(3671)), "01:01:11");
    }
}
