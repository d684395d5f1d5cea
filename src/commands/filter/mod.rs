// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk filter`: tcpdump's expressions, at every hook.

mod args;
mod capture;
mod check;
mod compile;
mod emit;
mod engines;
mod manual;
mod mechanism;
mod run;
mod steps;
mod texts;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

pub(crate) use self::manual::MANUAL;

/// Compile, read, write and check packet filters
#[derive(Args, Debug)]
pub(crate) struct Filter {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Compile(compile::Compile),
    Asm(texts::Asm),
    Disasm(texts::Disasm),
    Run(run::Run),
    Capture(capture::Capture),
    Check(check::Check),
}

impl Filter {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.verb {
            Verb::Compile(compile) => compile.run(),
            Verb::Asm(asm) => asm.run(),
            Verb::Disasm(disasm) => disasm.run(),
            Verb::Run(run) => run.run(),
            Verb::Capture(capture) => capture.run(),
            Verb::Check(check) => check.run(),
        }
    }
}
