// SPDX-License-Identifier: MIT OR Apache-2.0

//! eBPF: its instructions, and classic filters turned into them.

pub(crate) mod insn;
