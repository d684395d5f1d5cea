// SPDX-License-Identifier: MIT OR Apache-2.0

//! The engines that can run a filter on a packet of a file.

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::error::{unsupported, usage};
use crate::filter::classic::check::check;
use crate::filter::classic::insn::{Ext, Insn, Op, SKF_LL_OFF};
use crate::filter::classic::interp::{self, Rules};
use crate::filter::ebpf::translate::{Hook, Link, Options, translate};
use crate::filter::libpcap;
use crate::filter::savefile::Captured;
use crate::kernel::filter::engine::{self, HookFilter, SocketFilter, is_unreadable};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum EngineArg {
    /// bpftk's interpreter of classic BPF
    Interp,
    /// libpcap's interpreter, which tcpdump -r uses
    Libpcap,
    /// The kernel's socket filter
    Kernel,
    /// The translation to eBPF, as an XDP program
    Xdp,
    /// The translation to eBPF, as a tc program
    Tc,
    /// Every one of these; fails where they differ
    All,
}

impl EngineArg {
    /// One after the other, in the order of their columns.
    pub(super) fn engines(self) -> Vec<Self> {
        match self {
            Self::All => vec![Self::Interp, Self::Libpcap, Self::Kernel, Self::Xdp, Self::Tc],
            one => vec![one],
        }
    }

    pub(super) fn loads_ebpf(self) -> bool {
        matches!(self, Self::Xdp | Self::Tc | Self::All)
    }
}

/// What an engine says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The program matches, and what it returns where that is known.
    Match(Option<u32>),
    NoMatch,
    /// Why the engine can't be given this packet.
    NotRun(&'static str),
}

impl Verdict {
    pub(super) fn matches(self) -> Option<bool> {
        match self {
            Self::Match(_) => Some(true),
            Self::NoMatch => Some(false),
            Self::NotRun(_) => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Match(_) => "match",
            Self::NoMatch => "no match",
            Self::NotRun(_) => "not run",
        }
    }

    fn returned(value: u32, exact: bool) -> Self {
        match value {
            0 => Self::NoMatch,
            value => Self::Match(exact.then_some(value)),
        }
    }
}

/// An engine with its program.
#[derive(Debug)]
pub(super) enum Engine {
    Interp(Vec<Insn>),
    Libpcap(Vec<Insn>),
    Kernel(SocketFilter),
    Hook(HookFilter),
}

impl Engine {
    pub(super) fn new(which: EngineArg, program: &[Insn], link: Link) -> Result<Self> {
        Ok(match which {
            EngineArg::Interp | EngineArg::All => Self::Interp(program.to_vec()),
            EngineArg::Libpcap => {
                libpcap::available()?;
                Self::Libpcap(program.to_vec())
            }
            EngineArg::Kernel => Self::Kernel(SocketFilter::attach(program)?),
            EngineArg::Xdp => Self::hook(Hook::Xdp, program, link)?,
            EngineArg::Tc => Self::hook(Hook::TcIngress, program, link)?,
        })
    }

    fn hook(hook: Hook, program: &[Insn], link: Link) -> Result<Self> {
        let function = translate(&[program], &Options::new(hook, link))
            .map_err(|refused| unsupported(format!("{hook} can't run this filter: {refused}")))?;
        let loaded = engine::load(&function, hook, false)
            .map_err(|failed| failed.error)
            .with_context(|| format!("the kernel does not take the filter for {hook}"))?;
        Ok(Self::Hook(loaded))
    }

    pub(super) fn run(&mut self, packet: &Captured) -> Result<Verdict> {
        let outcome = match self {
            Self::Interp(program) => {
                let known =
                    interp::Packet { length: packet.length, ..interp::Packet::new(&packet.data) };
                return match interp::run(program, &known, Rules::Libpcap) {
                    Ok(value) => Ok(Verdict::returned(value, true)),
                    Err(unknown) => Err(usage(unknown_sentence(unknown.0))),
                };
            }
            Self::Libpcap(program) => {
                let value = libpcap::run(program, &packet.data, packet.length)?;
                return Ok(Verdict::returned(value, true));
            }
            Self::Kernel(_) | Self::Hook(_) if packet.data.len() != packet.length as usize => {
                return Ok(Verdict::NotRun("cut short in the file"));
            }
            Self::Kernel(filter) => filter.run(&packet.data)?,
            Self::Hook(filter) => filter.run(&packet.data)?,
        };
        Ok(match outcome {
            engine::Outcome::NotRun(why) => Verdict::NotRun(why),
            engine::Outcome::Returned(value) if is_unreadable(value) => {
                Verdict::NotRun("the program could not read the packet")
            }
            engine::Outcome::Returned(value) => Verdict::returned(value, false),
        })
    }
}

fn unknown_sentence(ext: Ext) -> String {
    format!("the filter asks for `#{}`, which no capture file tells", ext.name())
}

/// Refuses a program that Linux does not take, such as the loop that `protochain` makes, and one that asks for what only
/// the kernel knows of a live packet.
pub(super) fn needs_only_bytes(program: &[Insn]) -> Result<()> {
    check(program).map_err(|why| usage(format!("Linux does not take this filter: {why}")))?;
    for (at, insn) in program.iter().enumerate() {
        let Some(Op::LdAbs(_, k)) = insn.decode() else { continue };
        match Ext::at(k) {
            Some(Ext::AluXorX | Ext::Nlattr | Ext::NlattrNest) => {}
            Some(ext) => {
                return Err(usage(format!("instruction {at}: {}", unknown_sentence(ext))));
            }
            None if k >= SKF_LL_OFF => {
                return Err(usage(format!(
                    "instruction {at}: loads by the place of a header, which only a live packet has; \
                     expected an offset from the packet's start"
                )));
            }
            None => {}
        }
    }
    Ok(())
}
