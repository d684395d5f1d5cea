// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk doctor`: what works on this machine, by which back end, and why not; and what was left behind.

mod manual;

use std::fmt::Display;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

pub(crate) use self::manual::MANUAL;
use super::common::note;
use crate::cli::{KernelArgs, OutputArgs};
use crate::error::{Status, limited, status_of};
use crate::filter::libpcap;
use crate::kernel::backend::Chosen;
use crate::kernel::btf::BtfSource;
use crate::kernel::caps::{self, Cap};
use crate::kernel::facts::{self, Fact};
use crate::kernel::leftovers::{self, Leftover};
use crate::kernel::limits;
use crate::kernel::log;
use crate::kernel::sockgate::Gate;
use crate::kernel::{clone_trace, drop, egress, netns, sockredir, tcpconnect};
use crate::output::{Column, Field, Kind, Record, Sink, Value};

/// Tell what works on this machine, by which back end, and why not; find and remove what was left behind
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Remove the programs and filters of bpftk that nobody owns any more, and nothing else
    #[arg(long)]
    cleanup: bool,

    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    kernel: KernelArgs,
}

/// How a command does its work here.
struct Works {
    backend: String,
    /// What there is to say of it, such as which better back ends don't work, and why.
    remarks: Vec<String>,
}

/// A command, the capabilities that it asks for, and its own way to arm: what is tried is what would be used.
struct Command {
    name: &'static str,
    needs: &'static [Cap],
    /// What trying it takes beside these.
    trial_needs: &'static [Cap],
    arm: fn(BtfSource) -> Result<Works>,
}

/// What is known of a command.
struct Trial {
    name: &'static str,
    /// Not, if it may work and doctor lacks what trying takes.
    tried: bool,
    outcome: Result<Works>,
}

/// Every command that needs the kernel.
const COMMANDS: &[Command] = &[
    Command {
        name: "clone-trace",
        needs: &[Cap::Bpf, Cap::Perfmon],
        trial_needs: &[],
        arm: |btf| {
            let config = clone_trace::Config { btf, ..Default::default() };
            works(clone_trace::arm(&config, None))
        },
    },
    Command {
        name: "tcpconnect",
        needs: &[Cap::Bpf, Cap::Perfmon],
        trial_needs: &[],
        arm: |btf| {
            let config = tcpconnect::Config { btf, ..Default::default() };
            works(tcpconnect::arm(&config, None))
        },
    },
    Command {
        name: "xdp-drop",
        needs: caps::PACKETS,
        trial_needs: &[Cap::SysAdmin],
        arm: |_| in_new_namespace(|| works(drop::arm_xdp())),
    },
    Command {
        name: "tc-drop",
        needs: caps::PACKETS,
        trial_needs: &[Cap::SysAdmin],
        arm: |_| in_new_namespace(|| works(drop::arm_tc()).map(past_tc)),
    },
    Command {
        name: "tc-egress",
        needs: caps::PACKETS,
        trial_needs: &[Cap::SysAdmin],
        arm: |_| in_new_namespace(|| works(egress::arm()).map(past_tc)),
    },
    Command {
        name: "sockredir",
        needs: &[Cap::Bpf, Cap::Perfmon, Cap::NetAdmin],
        trial_needs: &[],
        arm: |btf| {
            Gate::here()?.pass(false)?;
            works(sockredir::try_out(btf))
        },
    },
    // What of it needs a hook has been tried above.
    Command {
        name: "filter",
        needs: &[],
        trial_needs: &[],
        arm: |_| {
            let version = libpcap::version()?;
            Ok(Works { backend: "libpcap".into(), remarks: vec![version] })
        },
    },
];

/// On the loopback of a network namespace that nobody else sees.
fn in_new_namespace(arm: fn() -> Result<Works>) -> Result<Works> {
    netns::within_new(arm).context("cannot make a network namespace to try it in")?
}

/// What no back end of tc's sees.
fn past_tc(mut works: Works) -> Works {
    works.remarks.push("what leaves past tc (PACKET_QDISC_BYPASS, AF_XDP) is only counted".into());
    works
}

/// Disarms what a command armed.
fn works<B: Display, T>(chosen: Result<Chosen<B, T>>) -> Result<Works> {
    let chosen = chosen?;
    Ok(Works {
        backend: chosen.backend.to_string(),
        remarks: chosen
            .passed_over
            .iter()
            .map(|(backend, reason)| format!("not {backend}: {reason}"))
            .collect(),
    })
}

/// The schema of a row, of whichever table.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("table", "command, fact or leftover: what the row is about"),
    Field::new("name", "of the command, the fact, or the left program"),
    Field::new(
        "status",
        "of a command: ok, unavailable, or not tried (it may work; to try it takes another capability); of a fact: \
         yes, no, unknown (the kernel does not tell), not tried (a capability is missing), or null where the detail is \
         all there is to tell; of a leftover: left, removed or failed (to be removed)",
    ),
    Field::new("backend", "of a command: the back end that it would use here; else null"),
    Field::new("detail", "what was found, or why not, and what to do; or null"),
    Field::new("id", "of a leftover: id of the program; else null"),
    Field::new("prog_type", "of a leftover: type of the program, such as sched_cls; else null"),
    Field::new(
        "held_by",
        "of a leftover: the filter, interface, cgroup, map or pin that keeps it loaded; else null",
    ),
    Field::new("age_s", "of a leftover: seconds since it was loaded; else null"),
];

const COMMAND_COLUMNS: [Column; 4] = [
    Column::left("COMMAND", "name", 11),
    Column::left("BACKEND", "backend", 10),
    Column::left("STATUS", "status", 11).alarming_if(is_bad),
    Column::left("WHY", "detail", 45),
];

const FACT_COLUMNS: [Column; 3] = [
    Column::left("FACT", "name", 16),
    Column::left("STATUS", "status", 9),
    Column::left("DETAIL", "detail", 53),
];

const LEFTOVER_COLUMNS: [Column; 6] = [
    Column::right("ID", "id", 5),
    Column::left("NAME", "name", 15),
    Column::left("TYPE", "prog_type", 9),
    Column::right("AGE", "age_s", 4).shown_by(age),
    Column::left("STATUS", "status", 7).alarming_if(is_bad),
    Column::left("HELD BY", "held_by", 35),
];

fn is_bad(value: &Value) -> bool {
    matches!(value, Value::Text(text) if matches!(text.as_str(), "unavailable" | "failed" | "left"))
}

/// The two largest units.
fn age(value: &Value) -> String {
    let Value::Unsigned(seconds) = value else {
        return value.text();
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

fn row(table: &str, name: &str, status: Option<&str>) -> Record {
    Record::new(Kind::Row).with("table", table).with("name", name).with("status", status)
}

fn without_program(record: Record) -> Record {
    record
        .with("id", None::<u32>)
        .with("prog_type", None::<&str>)
        .with("held_by", None::<&str>)
        .with("age_s", None::<u64>)
}

/// An empty text is nothing to tell.
fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn command_row(trial: &Trial) -> Record {
    let record = match &trial.outcome {
        Ok(works) => row("command", trial.name, Some("ok"))
            .with("backend", works.backend.as_str())
            .with("detail", text(&works.remarks.join("; "))),
        Err(error) => row("command", trial.name, Some(trial.failure()))
            .with("backend", None::<&str>)
            .with("detail", format!("{error:#}")),
    };
    without_program(record)
}

impl Trial {
    fn failure(&self) -> &'static str {
        if self.tried { "unavailable" } else { "not tried" }
    }
}

fn fact_row(fact: &Fact) -> Record {
    without_program(
        row("fact", fact.name, fact.answer.text())
            .with("backend", None::<&str>)
            .with("detail", text(&fact.detail)),
    )
}

/// `in_table`: the table has no column for the rare case that something can't be removed.
fn leftover_row(left: &Leftover, removal: Option<&Result<()>>, in_table: bool) -> Record {
    let mut held_by = left.held_by();
    let (status, detail) = match removal {
        None => ("left", None),
        Some(Ok(())) => ("removed", None),
        Some(Err(error)) => ("failed", Some(format!("{error:#}"))),
    };
    if in_table && let Some(reason) = &detail {
        held_by = format!("{held_by}: {reason}");
    }
    row("leftover", &left.name, Some(status))
        .with("backend", None::<&str>)
        .with("detail", detail)
        .with("id", left.id)
        .with("prog_type", left.kind.as_str())
        .with("held_by", held_by)
        .with("age_s", left.age.as_secs())
}

impl Doctor {
    pub(crate) fn run(self) -> Result<ExitCode> {
        log::collect(self.kernel.verbose > 1);
        let file = self.kernel.btf.as_deref();
        // A file that is no BTF is a slip; a kernel without any is a finding.
        if file.is_some() {
            BtfSource::new(file)?;
        }
        let mut sink = Sink::open(&self.output.sink(), Vec::new(), FIELDS)?;

        // First of all: what libbpf does to the memory limit for the first program is not to be told as a fact.
        let facts = facts::all(file)?;
        let commands: Vec<Trial> = COMMANDS.iter().map(|command| self.try_out(command)).collect();
        // What ran into a limit says nothing of the machine.
        let told = commands
            .iter()
            .filter_map(|trial| trial.outcome.as_ref().err().map(|error| format!("{error:#}")))
            .chain(facts.iter().map(|fact| fact.detail.clone()));
        if let Some(limit) = told.filter_map(|text| limits::named_in(&text)).next() {
            return Err(limited(limit));
        }
        let rows: Vec<Record> = commands.iter().map(command_row).collect();
        sink.section(&COMMAND_COLUMNS, &rows, "")?;
        let rows: Vec<Record> = facts.iter().map(fact_row).collect();
        sink.section(&FACT_COLUMNS, &rows, "")?;

        let mut totals = Totals::default();
        match leftovers::find() {
            Ok(left) => self.tell_leftovers(&left, &mut sink, &mut totals)?,
            Err(error) => {
                let reason = format!("{error:#}");
                sink.section(
                    &LEFTOVER_COLUMNS,
                    &[],
                    &format!("Leftovers were not looked for: {reason}"),
                )?;
                totals.not_looked = Some((reason, status_of(&error)));
            }
        }
        self.finish(&commands, &totals, &mut sink)
    }

    fn try_out(&self, command: &Command) -> Trial {
        let able = caps::require(command.trial_needs);
        let (tried, outcome) = match (caps::require(command.needs), able) {
            (Err(lacking), _) => (true, Err(lacking)),
            (Ok(()), Err(lacking)) => {
                (false, Err(lacking).context("cannot make a network namespace to try it in"))
            }
            (Ok(()), Ok(())) => (true, self.arm(command)),
        };
        Trial { name: command.name, tried, outcome }
    }

    fn arm(&self, command: &Command) -> Result<Works> {
        let works = (command.arm)(BtfSource::new(self.kernel.btf.as_deref())?)?;
        note(self.kernel.verbose, || {
            format!("{}: armed, back end {}", command.name, works.backend)
        });
        Ok(works)
    }

    fn tell_leftovers(
        &self,
        left: &[Leftover],
        sink: &mut Sink,
        totals: &mut Totals,
    ) -> Result<()> {
        let removals: Vec<Option<Result<()>>> =
            left.iter().map(|left| self.cleanup.then(|| left.remove())).collect();
        let rows: Vec<Record> = left
            .iter()
            .zip(&removals)
            .map(|(left, removal)| leftover_row(left, removal.as_ref(), sink.is_table()))
            .collect();
        totals.left = left.len() as u64;
        totals.removed = removals.iter().filter(|r| matches!(r, Some(Ok(())))).count() as u64;
        totals.failed = removals.iter().filter(|r| matches!(r, Some(Err(_)))).count() as u64;
        sink.section(&LEFTOVER_COLUMNS, &rows, "Nothing of bpftk was left behind.")
    }

    fn finish(&self, commands: &[Trial], totals: &Totals, sink: &mut Sink) -> Result<ExitCode> {
        let failures = |tried: bool| -> Vec<(&str, Status)> {
            let failed =
                |trial: &Trial| Some((trial.name, status_of(trial.outcome.as_ref().err()?)));
            commands.iter().filter(|trial| trial.tried == tried).filter_map(failed).collect()
        };
        let (unavailable, not_tried) = (failures(true), failures(false));
        let not_looked = totals.not_looked.as_ref();
        let record = Record::new(Kind::Summary)
            .with("command", "doctor")
            .with("commands", commands.len() as u64)
            .with("unavailable", unavailable.len() as u64)
            .with("not_tried", not_tried.len() as u64)
            .with("leftovers", not_looked.is_none().then_some(totals.left))
            .with("removed", totals.removed)
            .with("failed", totals.failed)
            .with("leftovers_unknown", not_looked.map(|(reason, _)| reason.as_str()));
        sink.summary(&record, &self.sentence(&unavailable, &not_tried, totals))?;

        if totals.failed > 0 {
            return Ok(Status::Failed.into());
        }
        // Asked to clean up, and not able to look.
        if let Some((_, status)) = not_looked.filter(|_| self.cleanup) {
            return Ok((*status).into());
        }
        let statuses: Vec<Status> =
            unavailable.iter().chain(&not_tried).map(|(_, status)| *status).collect();
        Ok(if statuses.is_empty() {
            ExitCode::SUCCESS
        } else if statuses.contains(&Status::NotPermitted) {
            // Until it may be tried, nobody knows what the kernel can do.
            Status::NotPermitted.into()
        } else {
            Status::Unsupported.into()
        })
    }

    fn sentence(
        &self,
        unavailable: &[(&str, Status)],
        not_tried: &[(&str, Status)],
        totals: &Totals,
    ) -> String {
        let mut parts = Vec::new();
        for (what, commands) in [("no back end for", unavailable), ("not tried:", not_tried)] {
            if !commands.is_empty() {
                let names: Vec<&str> = commands.iter().map(|(name, _)| *name).collect();
                parts.push(format!("{what} {}", names.join(", ")));
            }
        }
        if parts.is_empty() {
            parts.push("every command works here".to_string());
        }
        parts.push(match (&totals.not_looked, totals.left) {
            (Some(_), _) => "leftovers not looked for".to_string(),
            (None, 0) => "no leftovers".to_string(),
            (None, left) if self.cleanup => {
                format!("{left} leftovers, {} removed, {} not", totals.removed, totals.failed)
            }
            (None, 1) => "1 leftover; --cleanup removes it".to_string(),
            (None, left) => format!("{left} leftovers; --cleanup removes them"),
        });
        parts.join("; ")
    }
}

#[derive(Debug, Default)]
struct Totals {
    left: u64,
    removed: u64,
    failed: u64,
    /// Why it is not known what is left.
    not_looked: Option<(String, Status)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        for (seconds, text) in [(0_u64, "0s"), (61, "1m1s"), (3600, "1h0m"), (90_000, "1d1h")] {
            assert_eq!(age(&Value::Unsigned(seconds)), text);
        }
    }

    #[test]
    fn rows_have_the_schema() {
        let trial = |outcome| Trial { name: "x", tried: true, outcome };
        let works = trial(works(Ok(Chosen {
            backend: "b",
            armed: (),
            passed_over: vec![("a", "missing".to_string())],
        })));
        let failed = trial(Err(crate::error::unsupported("nothing works")));
        let fact = Fact { name: "JIT", answer: facts::Answer::Yes, detail: String::new() };
        for record in [command_row(&works), command_row(&failed), fact_row(&fact)] {
            let names: Vec<_> = record.fields.iter().map(|(name, _)| *name).collect();
            let schema: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
            assert_eq!(names, schema);
        }
        let record = command_row(&works);
        assert_eq!(record.get("detail").text(), "not a: missing");
        assert_eq!(record.get("backend").text(), "b");
    }
}
