// SPDX-License-Identifier: MIT OR Apache-2.0

//! eBPF: its instructions, and classic filters turned into them.

pub(crate) mod asm;
pub(crate) mod disasm;
pub(crate) mod forms;
pub(crate) mod insn;
mod names;
pub(crate) mod readable;
