// SPDX-License-Identifier: MIT OR Apache-2.0

//! bpftk traces and steers a live Linux machine with eBPF.

mod cli;
mod commands;
mod error;
mod filter;
mod kernel;
mod net;
mod output;
#[cfg(test)]
mod random;
mod values;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    kernel::limits::survive_file_size();
    kernel::limits::raise_open_files();
    // What it has to say is said by us.
    kernel::log::collect(false);
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::explain(&error),
    };
    match cli.command.run() {
        Ok(code) => code,
        Err(error) if error::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let error = kernel::limits::named(&error).unwrap_or(error);
            // A closed standard error must not turn the status into a panic's.
            let _ = writeln!(std::io::stderr(), "bpftk: {error:#}");
            error::status_of(&error).into()
        }
    }
}
