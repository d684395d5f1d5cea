// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk filter compile`: what becomes of an expression.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::args::{CompilerArgs, LinkArg, join};
use super::emit::{Classic, Emit, HookArg, print};
use crate::filter::libpcap::Link;

/// Compile an expression, and print what becomes of it
#[derive(Args, Debug)]
pub(crate) struct Compile {
    /// The expression, as tcpdump takes it; several words are joined
    #[arg(value_name = "EXPR", required = true)]
    expression: Vec<String>,

    /// What packets begin with
    #[arg(long, value_name = "LINK", default_value = "ethernet")]
    link: LinkArg,

    /// What to print
    #[arg(long, value_name = "FORM", default_value = "asm")]
    emit: Emit,

    /// Where the eBPF of --emit ebpf, ebpf-c, ebpf-asm and json is to run [default: xdp]
    #[arg(long, value_name = "HOOK")]
    hook: Option<HookArg>,

    #[command(flatten)]
    compiler: CompilerArgs,
}

impl Compile {
    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.hook.is_some() && !self.emit.is_ebpf() && self.emit != Emit::Json {
            return Err(crate::error::usage(
                "--hook: of eBPF only; expected --emit ebpf, ebpf-c, ebpf-asm or json with it",
            ));
        }
        let expression = join(&self.expression);
        let link = Link::from(self.link);
        let program = self.compiler.compile(&expression, link.into())?;
        let classic = Classic {
            program: &program,
            expression: Some(&expression),
            link,
            hook: self.hook.unwrap_or(HookArg::Xdp),
        };
        print(&classic.text(self.emit)?)?;
        Ok(ExitCode::SUCCESS)
    }
}
