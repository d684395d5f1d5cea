// SPDX-License-Identifier: MIT OR Apache-2.0

//! eBPF: its instructions, and classic filters turned into them.

mod analysis;
mod builder;
mod emit;
mod ext;
mod fast;
pub(crate) mod insn;
mod slow;
pub(crate) mod splice;
pub(crate) mod translate;
