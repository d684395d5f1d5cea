// SPDX-License-Identifier: MIT OR Apache-2.0

//! Classic BPF: the language that tcpdump's expressions compile to, and that sockets run.

pub(crate) mod insn;
