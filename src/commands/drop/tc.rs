// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk tc-drop`

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{Attaching, DropArgs};
use crate::commands::common::{closed_backend, note};
use crate::error::usage;
use crate::kernel::attach::tc::{Direction, Order, TcBackend};
use crate::kernel::backend;
use crate::kernel::drop::{Dropper, How, MOST_PLACES, Place};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Directions {
    /// What comes in
    Ingress,
    /// What goes out
    Egress,
    Both,
}

/// Drop packets at the traffic control hooks, in or out, and show how many
#[derive(Args, Debug)]
pub(crate) struct TcDrop {
    /// Interfaces to drop at, and behind them perhaps a tcpdump expression of what to drop, in one word or in several
    #[arg(required = true, value_name = "IFACE|EXPR")]
    interfaces: Vec<String>,

    /// Drop what comes in, what goes out, or both
    #[arg(long, value_name = "DIRECTION", default_value = "ingress")]
    direction: Directions,

    /// Stand before the programs of others; this is the default
    #[arg(long, conflicts_with = "last", help_heading = "Kernel")]
    first: bool,

    /// Stand behind the programs of others, and see only what they pass on
    #[arg(long, help_heading = "Kernel")]
    last: bool,

    /// Go on dropping when bpftk is killed or stopped, until `bpftk doctor --cleanup` or another start with this option: takes the back end clsact
    #[arg(long, help_heading = "Safety", conflicts_with = "dry_run")]
    fail_closed: bool,

    /// Use this way of attaching, instead of the first that works here
    #[arg(long, value_name = "BACKEND", help_heading = "Kernel")]
    backend: Option<TcBackend>,

    #[command(flatten)]
    common: DropArgs,
}

impl TcDrop {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let forced = closed_backend(self.fail_closed, self.backend)?;
        let mut prepared = self.common.prepare(&self.interfaces)?;
        prepared.config.fail_closed = self.fail_closed;
        let directions: &[Direction] = match self.direction {
            Directions::Ingress => &[Direction::Ingress],
            Directions::Egress => &[Direction::Egress],
            Directions::Both => &[Direction::Ingress, Direction::Egress],
        };
        let places: Vec<Place> = prepared
            .interfaces
            .iter()
            .cloned()
            .flat_map(|interface| {
                directions
                    .iter()
                    .map(move |&direction| Place { interface: interface.clone(), direction })
            })
            .collect();
        if places.len() > MOST_PLACES {
            return Err(usage(format!("more than {MOST_PLACES} interfaces and directions")));
        }
        let order = if self.last { Order::Last } else { Order::First };
        debug_assert!(!(self.first && self.last));
        let attaching = Attaching { mode: None, order };
        self.common.run("tc-drop", attaching, &prepared, |args| {
            // What the rules would do is no matter of the back end: asked once, and not taken for a reason to try the next.
            let mut refused = None;
            let chosen = backend::choose(&TcBackend::ORDER, forced, |backend| {
                let mut dropper =
                    Dropper::load(&prepared.config, How::Tc(backend), places.clone())?;
                if refused.is_none() {
                    refused = args.check(&dropper).err();
                }
                if refused.is_some() {
                    anyhow::bail!("refused");
                }
                dropper.attach(None, order)?;
                Ok(dropper)
            });
            if let Some(refused) = refused {
                return Err(refused);
            }
            let chosen = chosen?;
            for (backend, reason) in &chosen.passed_over {
                note(args.verbose, || format!("not {backend}: {reason}"));
            }
            Ok((How::Tc(chosen.backend), chosen.armed))
        })
    }
}
