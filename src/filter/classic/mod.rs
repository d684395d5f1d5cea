// SPDX-License-Identifier: MIT OR Apache-2.0

//! Classic BPF: the language that tcpdump's expressions compile to, and that sockets run.

pub(crate) mod asm;
pub(crate) mod check;
pub(crate) mod disasm;
pub(crate) mod forms;
pub(crate) mod insn;
pub(crate) mod interp;
mod names;
