// SPDX-License-Identifier: MIT OR Apache-2.0

//! A run of a command that follows events: from its options to its last line.

use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::common::{interval, note, take_signals};
use crate::cli::{KernelArgs, OutputArgs, StreamArgs};
use crate::kernel::backend::Chosen;
use crate::kernel::caps::{self, Cap};
use crate::kernel::cgroup::Watched;
use crate::kernel::run::{Flow, Timing, Tracing, Turn, follow};
use crate::output::{Column, Field, Sink};

/// What a command makes of the events.
pub(crate) trait Session<T: Tracing> {
    /// Stops when there have been as many rows as were asked for; rows beyond are not printed.
    fn event(&mut self, event: T::Event, sink: &mut Sink) -> Result<Flow>;

    /// After events, when all that had arrived were handed over.
    fn rest(&mut self, _tracer: &T) -> Result<()> {
        Ok(())
    }

    /// Once an interval.
    fn tick(&mut self, tracer: &T, sink: &mut Sink) -> Result<()>;

    /// After the last event: what was left undecided, totals, losses.
    fn finish(&mut self, tracer: &T, undecodable: u64, sink: &mut Sink) -> Result<()>;
}

/// The options that say how to run.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) stream: &'a StreamArgs,
    pub(crate) output: &'a OutputArgs,
    pub(crate) kernel: &'a KernelArgs,
    pub(crate) needed: &'a [Cap],
    pub(crate) columns: Vec<Column>,
    pub(crate) fields: &'static [Field],
    /// Tables each interval instead of rows as they come.
    pub(crate) tables: bool,
    pub(crate) interval: Option<Duration>,
    /// Of which all is that is followed.
    pub(crate) cgroup: Option<Watched>,
    /// Whether rows that come in quick succession may come some milliseconds later.
    pub(crate) gather: bool,
}

/// Arms, follows until the end, detaches, and prints what is left to be said.
pub(crate) fn run<B: Display + Copy, T: Tracing, S: Session<T>>(
    plan: Plan<'_>,
    arm: impl FnOnce() -> Result<Chosen<B, T>>,
    session: impl FnOnce(B) -> S,
) -> Result<ExitCode> {
    let timing = Timing {
        duration: plan.stream.duration,
        interval: match plan.interval {
            None if !plan.tables => None,
            asked => Some(interval(asked)?),
        },
        look: plan.cgroup.is_some(),
        to_stdout: plan.output.output.is_none(),
        gather: plan.gather,
    };
    caps::require(plan.needed)?;
    let cgroup = plan.cgroup;
    let mut removed = false;
    // Before anything is in the kernel: a file that can't be opened, a signal that comes early.
    let mut sink = Sink::open(&plan.output.sink(), plan.columns, plan.fields)?;
    let mut signals = take_signals(plan.output.output.is_some())?;

    let Chosen { backend, armed: mut tracer, passed_over } = arm()?;
    for (backend, reason) in &passed_over {
        note(plan.kernel.verbose, || format!("not {backend}: {reason}"));
    }
    note(plan.kernel.verbose, || format!("armed, back end {backend}"));
    let mut session = session(backend);
    if !plan.tables {
        sink.start()?;
    }
    sink.hold_rows();
    let ring = tracer.events()?;
    let outcome = follow(&ring, &mut signals, timing, |turn| match turn {
        Turn::Event(event) => session.event(event, &mut sink),
        Turn::Rest => {
            session.rest(&tracer)?;
            sink.flush().map(|()| Flow::Continue)
        }
        Turn::Tick => session.tick(&tracer, &mut sink).map(|()| Flow::Continue),
        Turn::Look => {
            removed = cgroup.as_ref().is_some_and(Watched::is_removed);
            Ok(if removed { Flow::Stop } else { Flow::Continue })
        }
        Turn::Reopen => sink.reopen().map(|()| Flow::Continue),
    })
    // Detaching takes its time.
    .and_then(|()| sink.flush());
    let mut undecodable = ring.undecodable();
    drop(ring);
    tracer.detach()?;
    outcome?;

    let ring = tracer.events()?;
    while ring.fill()? {
        while let Some(event) = ring.next() {
            session.event(event, &mut sink)?;
        }
    }
    undecodable += ring.undecodable();
    drop(ring);
    session.finish(&tracer, undecodable, &mut sink)?;
    match cgroup {
        Some(cgroup) if removed => Err(anyhow!(
            "the cgroup {} was removed, so nothing more can come",
            cgroup.path().display()
        )),
        _ => Ok(ExitCode::SUCCESS),
    }
}
