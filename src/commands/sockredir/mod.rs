// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk sockredir`

mod preflight;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Let local TCP connections bypass the network stack
#[derive(Args, Debug)]
pub(crate) struct Sockredir {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Preflight(preflight::Preflight),
}

impl Sockredir {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.verb {
            Verb::Preflight(preflight) => preflight.run(),
        }
    }
}
