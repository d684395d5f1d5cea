// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the verbs of `filter` have in common: where a filter comes from, and what it is shown as.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::error::usage;
use crate::filter::classic::check::{Invalid, check, check_with_loops};
use crate::filter::classic::forms;
use crate::filter::classic::insn::Insn;
use crate::filter::libpcap::{Link, Names, Packets, Source, compile};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LinkArg {
    /// An Ethernet header
    Ethernet,
    /// An IPv4 or IPv6 header, as on tun, wireguard and ppp
    Raw,
}

impl From<LinkArg> for Link {
    fn from(link: LinkArg) -> Self {
        match link {
            LinkArg::Ethernet => Self::Ethernet,
            LinkArg::Raw => Self::Raw,
        }
    }
}

/// How libpcap compiles an expression.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Filter")]
pub(super) struct CompilerArgs {
    /// Leave out libpcap's optimizer
    #[arg(long)]
    pub(super) unoptimized: bool,

    /// Let libpcap look up names of hosts and networks, by DNS if need be; without it they are refused
    #[arg(long)]
    pub(super) resolve: bool,
}

impl CompilerArgs {
    pub(super) fn compile(self, expression: &str, packets: Packets) -> Result<Vec<Insn>> {
        let optimize = !self.unoptimized;
        let names = if self.resolve {
            Names::LookedUp
        } else {
            Names::Refused("an address, or --resolve to have libpcap ask for it")
        };
        compile(&Source { expression, packets, optimize, names })
    }
}

/// The longest text that is read: a program of the most instructions, with room for comments.
const MOST_TEXT: u64 = 16 << 20;

/// A text from a file, or from standard input for `-`; with what messages call it.
pub(super) fn read_text(path: &Path) -> Result<(String, String)> {
    let mut bytes = Vec::new();
    let name = if path == Path::new("-") {
        std::io::stdin()
            .take(MOST_TEXT)
            .read_to_end(&mut bytes)
            .context("cannot read standard input")?;
        "standard input".to_string()
    } else {
        let name = path.display().to_string();
        let file =
            File::open(path).map_err(|error| usage(format!("cannot open {name}: {error}")))?;
        file.take(MOST_TEXT)
            .read_to_end(&mut bytes)
            .with_context(|| format!("cannot read {name}"))?;
        name
    };
    if bytes.len() as u64 == MOST_TEXT {
        return Err(usage(format!("{name}: longer than 16 MiB; expected a filter")));
    }
    let text = String::from_utf8(bytes).map_err(|_| {
        usage(format!(
            "{name}: not a text; expected assembly, or numbers as tcpdump -dd and -ddd print them"
        ))
    })?;
    Ok((name, text))
}

/// A classic program in any of its forms, that Linux would take.
pub(super) fn read_classic(path: &Path) -> Result<Vec<Insn>> {
    read_checked(path, check)
}

/// The same, but that it may jump backward, which only interpreters outside of the kernel take.
pub(super) fn read_classic_with_loops(path: &Path) -> Result<Vec<Insn>> {
    read_checked(path, check_with_loops)
}

fn read_checked(path: &Path, check: fn(&[Insn]) -> Result<(), Invalid>) -> Result<Vec<Insn>> {
    let (name, text) = read_text(path)?;
    let program = forms::read(&text).map_err(|error| usage(format!("{name}: {error}")))?;
    check(&program).map_err(|invalid| usage(format!("{name}: {invalid}")))?;
    Ok(program)
}

/// Words of the command line as one expression, as tcpdump takes them.
pub(super) fn join(words: &[String]) -> String {
    words.join(" ")
}
