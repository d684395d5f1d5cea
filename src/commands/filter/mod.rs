// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk filter`: tcpdump's expressions, at every hook.

mod check;
mod mechanism;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Compile, read, write and check packet filters
#[derive(Args, Debug)]
pub(crate) struct Filter {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(check::Check),
}

impl Filter {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.verb {
            Verb::Check(check) => check.run(),
        }
    }
}
