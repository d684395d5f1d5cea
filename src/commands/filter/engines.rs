// SPDX-License-Identifier: MIT OR Apache-2.0

//! The engines that can run a filter on a packet of a file.

use std::borrow::Cow;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::error::usage;
use crate::filter::classic::check::{check, check_with_loops};
use crate::filter::classic::insn::{Ext, Insn, Op};
use crate::filter::classic::interp::{self, Rules, Stuck};
use crate::filter::ebpf::translate::{Hook, Link, Options, translate};
use crate::filter::libpcap;
use crate::filter::savefile::Captured;
use crate::kernel::filter::engine::{self, HookFilter, SocketFilter, is_unreadable};
use crate::net::linktype::LinkType;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The program matches, and what it returns where that is known.
    Match(Option<u32>),
    NoMatch,
    /// Why the engine can't be given this packet.
    NotRun(Cow<'static, str>),
}

impl Verdict {
    pub(super) fn matches(&self) -> Option<bool> {
        match self {
            Self::Match(_) => Some(true),
            Self::NoMatch => Some(false),
            Self::NotRun(_) => None,
        }
    }

    pub(super) fn name(&self) -> &'static str {
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
    /// It can't run this program; why.
    None(String),
}

impl Engine {
    /// The engines that were asked for. One that can't run the program runs nothing, and says why.
    pub(super) fn all(which: &[EngineArg], program: &[Insn], link: LinkType) -> Result<Vec<Self>> {
        which.iter().map(|&which| Self::new(which, program, Link::of(link))).collect()
    }

    fn new(which: EngineArg, program: &[Insn], link: Link) -> Result<Self> {
        Ok(match which {
            EngineArg::Interp | EngineArg::All => Self::Interp(program.to_vec()),
            EngineArg::Libpcap => {
                libpcap::available()?;
                match extension(program) {
                    Some((at, ext)) => Self::None(format!(
                        "libpcap can't run this filter: instruction {at} asks for `#{}`, which only Linux has",
                        ext.name()
                    )),
                    None => Self::Libpcap(program.to_vec()),
                }
            }
            EngineArg::Kernel => match check(program) {
                Ok(()) => Self::Kernel(SocketFilter::attach(program)?),
                Err(why) => Self::None(format!("the kernel can't run this filter: {why}")),
            },
            EngineArg::Xdp => Self::hook(Hook::Xdp, program, link)?,
            EngineArg::Tc => Self::hook(Hook::TcIngress, program, link)?,
        })
    }

    fn hook(hook: Hook, program: &[Insn], link: Link) -> Result<Self> {
        // A program that takes no packets in several pieces would be given the first piece alone, as if that were all.
        let frags = hook == Hook::Xdp && engine::xdp_takes_frags();
        let function = match translate(&[program], &Options { frags, ..Options::new(hook, link) }) {
            Ok(function) => function,
            Err(refused) => {
                return Ok(Self::None(format!("{hook} can't run this filter: {refused}")));
            }
        };
        let loaded = engine::load(&function, hook, frags)
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
                    Err(stuck) => Err(usage(format!("packet {}: {stuck}", packet.number))),
                };
            }
            Self::Libpcap(program) => {
                let value = libpcap::run(program, &packet.data, packet.length)?;
                return Ok(Verdict::returned(value, true));
            }
            Self::None(why) => return Ok(Verdict::NotRun(why.clone().into())),
            Self::Kernel(_) | Self::Hook(_) if packet.data.len() != packet.length as usize => {
                return Ok(Verdict::NotRun("cut short in the file".into()));
            }
            Self::Kernel(filter) => filter.run(&packet.data)?,
            Self::Hook(filter) => filter.run(&packet.data)?,
        };
        Ok(match outcome {
            engine::Outcome::NotRun(why) => Verdict::NotRun(why.into()),
            engine::Outcome::Returned(value) if is_unreadable(value) => {
                Verdict::NotRun("the program could not read the packet".into())
            }
            engine::Outcome::Returned(value) => Verdict::returned(value, false),
        })
    }
}

/// The first of Linux's extensions that the program asks for.
fn extension(program: &[Insn]) -> Option<(usize, Ext)> {
    program.iter().enumerate().find_map(|(at, insn)| match insn.decode() {
        Some(Op::LdAbs(_, k)) => Some((at, Ext::at(k)?)),
        _ => None,
    })
}

/// Refuses a program that no engine takes, and one that asks for what only the kernel knows of a live packet.
pub(super) fn needs_only_bytes(program: &[Insn]) -> Result<()> {
    check_with_loops(program)
        .map_err(|why| usage(format!("Linux does not take this filter: {why}")))?;
    for (at, op) in program.iter().enumerate().filter_map(|(at, insn)| Some((at, insn.decode()?))) {
        if let Op::LdAbs(_, k) = op
            && let Some(ext) = Ext::at(k)
            && !matches!(ext, Ext::AluXorX | Ext::Nlattr | Ext::NlattrNest)
        {
            let stuck = Stuck::Unknown(ext);
            return Err(usage(format!("instruction {at}: {stuck}")));
        }
        // libpcap has no such offsets, and a packet between two sockets no headers: each engine would say something
        // else.
        if op.loads_by_header() {
            return Err(usage(format!(
                "instruction {at}: loads by the place of a header, which only a live packet has; \
                 expected an offset from the packet's start"
            )));
        }
    }
    Ok(())
}
