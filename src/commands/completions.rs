// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk completions`: what a shell needs to complete a command line.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use clap_complete::{Shell, generate};

use crate::cli::definition;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    Bash,
    Zsh,
    Fish,
}

/// Print a shell's completion script
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  bpftk completions bash > /etc/bash_completion.d/bpftk
  bpftk completions zsh > ~/.zfunc/_bpftk
  bpftk completions fish > ~/.config/fish/completions/bpftk.fish")]
pub(crate) struct Completions {
    /// Which shell
    shell: Target,
}

impl Completions {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let shell = match self.shell {
            Target::Bash => Shell::Bash,
            Target::Zsh => Shell::Zsh,
            Target::Fish => Shell::Fish,
        };
        // The generator panics where it can't write: it gets memory, and the pipe that may close gets one write.
        let mut script = Vec::new();
        generate(shell, &mut definition(), "bpftk", &mut script);
        std::io::stdout().write_all(&script).context("cannot write to standard output")?;
        Ok(ExitCode::SUCCESS)
    }
}
