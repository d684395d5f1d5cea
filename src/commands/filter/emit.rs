// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a filter is printed as.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::error::usage;
use crate::filter::classic::insn::Insn;
use crate::filter::classic::{self, check};
use crate::filter::ebpf;
use crate::filter::ebpf::translate::{Hook, Options, translate};
use crate::filter::libpcap::{self, Link};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Emit {
    /// Assembly, in the syntax of the kernel's bpf_asm
    Asm,
    /// A listing, as tcpdump -d prints it
    Tcpdump,
    /// Initialisers of a C array, as tcpdump -dd prints them
    C,
    /// Decimal numbers, as tcpdump -ddd prints them
    Dec,
    /// eBPF, as bpftool prints it
    Ebpf,
    /// eBPF, as initialisers of a C array of struct bpf_insn
    EbpfC,
    /// eBPF assembly, in the mnemonics of ubpf and bpf_conformance
    EbpfAsm,
    /// All of these, as a line of JSON
    Json,
}

impl Emit {
    pub(super) fn is_ebpf(self) -> bool {
        matches!(self, Self::Ebpf | Self::EbpfC | Self::EbpfAsm)
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }
}

/// The hook that a filter is translated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum HookArg {
    Xdp,
    /// tc ingress and egress
    Tc,
}

/// A classic program and what it came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Classic<'a> {
    pub(super) program: &'a [Insn],
    pub(super) expression: Option<&'a str>,
    pub(super) link: Link,
    pub(super) hook: HookArg,
}

impl Classic<'_> {
    pub(super) fn text(&self, emit: Emit) -> Result<String> {
        let program = self.program;
        Ok(match emit {
            Emit::Asm => classic::disasm::assembly(program)
                .map_err(|invalid| usage(format!("not to be written as assembly: {invalid}")))?,
            Emit::Tcpdump => classic::disasm::listing(program),
            Emit::C => classic::disasm::c_array(program),
            Emit::Dec => classic::disasm::decimal(program),
            Emit::Ebpf | Emit::EbpfC | Emit::EbpfAsm => {
                let translated = self.translated().map_err(usage)?;
                ebpf_text(&translated, emit)?
            }
            Emit::Json => self.json().to_string() + "\n",
        })
    }

    /// The eBPF of the chosen hook, or why there is none.
    fn translated(&self) -> Result<Vec<ebpf::insn::Insn>, String> {
        let hook = match self.hook {
            HookArg::Xdp => Hook::Xdp,
            HookArg::Tc => Hook::TcIngress,
        };
        let function = translate(&[self.program], &Options::new(hook, self.link));
        function.map(|function| function.insns).map_err(|refused| format!("for {hook}: {refused}"))
    }

    fn json(&self) -> Value {
        let insns: Vec<Value> = self
            .program
            .iter()
            .enumerate()
            .map(|(at, insn)| {
                let text = classic::disasm::image(*insn, at);
                // Without the number in parentheses.
                let text = text.split_once(' ').map_or("", |(_, text)| text);
                let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
                json!({ "code": insn.code, "jt": insn.jt, "jf": insn.jf, "k": insn.k, "text": text })
            })
            .collect();
        let translated = self.translated();
        json!({
            "type": "row",
            "expression": self.expression,
            "libpcap": self.expression.and_then(|_| libpcap::version().ok()),
            "link": match self.link { Link::Ethernet => "ethernet", Link::Raw => "raw" },
            "instructions": self.program.len(),
            "insns": insns,
            "asm": classic::disasm::assembly(self.program).ok(),
            "linux": check::check(self.program).err().map_or_else(|| "ok".to_string(), |invalid| invalid.to_string()),
            "hook": match self.hook { HookArg::Xdp => "xdp", HookArg::Tc => "tc" },
            "ebpf": translated.as_deref().ok().map(ebpf_json),
            "ebpf_refused": translated.as_ref().err(),
        })
    }
}

fn ebpf_json(program: &[ebpf::insn::Insn]) -> Value {
    let insns: Vec<Value> = program
        .iter()
        .map(|insn| {
            json!({ "code": insn.code, "dst": insn.dst, "src": insn.src, "off": insn.off, "imm": insn.imm })
        })
        .collect();
    json!({
        "instructions": program.len(),
        "insns": insns,
        "listing": ebpf::readable::listing(program).lines().collect::<Vec<_>>(),
    })
}

/// An eBPF program that was given as such.
pub(super) fn ebpf_text(program: &[ebpf::insn::Insn], emit: Emit) -> Result<String> {
    Ok(match emit {
        Emit::Ebpf => ebpf::readable::listing(program),
        Emit::EbpfC => ebpf::readable::c_array(program),
        Emit::EbpfAsm => ebpf::disasm::assembly(program)
            .map_err(|invalid| usage(format!("not to be written as assembly: {invalid}")))?,
        Emit::Json => {
            let mut text = String::new();
            let _ = writeln!(text, "{}", json!({ "type": "row", "ebpf": ebpf_json(program) }));
            text
        }
        Emit::Asm | Emit::Tcpdump | Emit::C | Emit::Dec => {
            return Err(usage(format!(
                "--emit {}: of classic BPF, and the program is eBPF; expected ebpf, ebpf-c, ebpf-asm or json",
                emit.name()
            )));
        }
    })
}

pub(super) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}
