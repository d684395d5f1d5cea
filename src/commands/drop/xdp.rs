// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk xdp-drop`

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{Attaching, DropArgs};
use crate::error::usage;
use crate::kernel::attach::tc::{Direction, Order};
use crate::kernel::attach::xdp::XdpMode;
use crate::kernel::drop::{Dropper, How, MOST_PLACES, Place};

/// Drop packets where the kernel gets them first, and show how many
#[derive(Args, Debug)]
pub(crate) struct XdpDrop {
    /// Interfaces to drop at, and behind them perhaps a tcpdump expression of what to drop, in one word or in several
    #[arg(required = true, value_name = "IFACE|EXPR")]
    interfaces: Vec<String>,

    /// Insist on this mode, instead of the best that works
    #[arg(long, value_name = "MODE", help_heading = "Kernel")]
    mode: Option<XdpMode>,

    #[command(flatten)]
    common: DropArgs,
}

impl XdpDrop {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let prepared = self.common.prepare(&self.interfaces)?;
        let places: Vec<Place> = prepared
            .interfaces
            .iter()
            .cloned()
            .map(|interface| Place { interface, direction: Direction::Ingress })
            .collect();
        if places.len() > MOST_PLACES {
            return Err(usage(format!("more than {MOST_PLACES} interfaces")));
        }
        let attaching = Attaching { mode: self.mode, order: Order::First };
        self.common.run("xdp-drop", attaching, &prepared, |args| {
            let mut dropper = Dropper::load(&prepared.config, How::Xdp, places)?;
            args.check(&dropper)?;
            dropper.attach(attaching.mode, attaching.order)?;
            Ok((How::Xdp, dropper))
        })
    }
}
