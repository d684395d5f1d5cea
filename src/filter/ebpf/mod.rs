// SPDX-License-Identifier: MIT OR Apache-2.0

//! eBPF: its instructions, and classic filters turned into them.

mod analysis;
pub(crate) mod asm;
mod builder;
pub(crate) mod disasm;
mod emit;
mod ext;
mod fast;
mod fold;
pub(crate) mod forms;
pub(crate) mod insn;
mod names;
pub(crate) mod readable;
mod slow;
pub(crate) mod splice;
pub(crate) mod translate;
