// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk filter asm` and `bpftk filter disasm`: programs from one of their forms to another. The two differ in what they
//! print when nothing is asked for.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::args::{LinkArg, read_classic, read_text};
use super::emit::{Classic, Emit, HookArg, ebpf_text, print};
use crate::error::usage;
use crate::filter::ebpf::forms;

/// Assemble a program, and print its instructions as C
#[derive(Args, Debug)]
pub(crate) struct Asm {
    #[command(flatten)]
    text: TextArgs,
}

/// Print a program as assembly
#[derive(Args, Debug)]
pub(crate) struct Disasm {
    #[command(flatten)]
    text: TextArgs,
}

#[derive(Args, Debug)]
struct TextArgs {
    /// The program, `-` for standard input: assembly, or as tcpdump -dd and -ddd print it
    file: PathBuf,

    /// The program is eBPF: assembly in the mnemonics of ubpf and bpf_conformance, or a C array of struct bpf_insn
    #[arg(long)]
    ebpf: bool,

    /// What to print
    #[arg(long, value_name = "FORM")]
    emit: Option<Emit>,

    /// What packets begin with, where a classic program is translated to eBPF [default: ethernet]
    #[arg(long, value_name = "LINK", conflicts_with = "ebpf")]
    link: Option<LinkArg>,

    /// Where the eBPF that a classic program is translated to is to run [default: xdp]
    #[arg(long, value_name = "HOOK", conflicts_with = "ebpf")]
    hook: Option<HookArg>,
}

impl Asm {
    pub(crate) fn run(self) -> Result<ExitCode> {
        self.text.run(Emit::C, Emit::EbpfC)
    }
}

impl Disasm {
    pub(crate) fn run(self) -> Result<ExitCode> {
        self.text.run(Emit::Asm, Emit::EbpfAsm)
    }
}

impl TextArgs {
    fn run(self, classic: Emit, ebpf: Emit) -> Result<ExitCode> {
        if self.ebpf {
            let (name, text) = read_text(&self.file)?;
            let program = forms::read(&text).map_err(|error| usage(format!("{name}: {error}")))?;
            print(&ebpf_text(&program, self.emit.unwrap_or(ebpf))?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let emit = self.emit.unwrap_or(classic);
        let translates = emit.is_ebpf() || emit == Emit::Json;
        if (self.hook.is_some() || self.link.is_some()) && !translates {
            return Err(usage(
                "--hook, --link: of eBPF only; expected --emit ebpf, ebpf-c, ebpf-asm or json with them",
            ));
        }
        let program = read_classic(&self.file)?;
        let classic = Classic {
            program: &program,
            expression: None,
            link: self.link.unwrap_or(LinkArg::Ethernet).into(),
            hook: self.hook.unwrap_or(HookArg::Xdp),
        };
        print(&classic.text(emit)?)?;
        Ok(ExitCode::SUCCESS)
    }
}
