// SPDX-License-Identifier: MIT OR Apache-2.0

//! Mnemonics.

use super::insn::{
    Alu, BPF_ADD, BPF_AND, BPF_DIV, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JSET, BPF_LSH, BPF_MOD, BPF_MUL,
    BPF_OR, BPF_RSH, BPF_SUB, BPF_XOR, Cond,
};

/// Conditional jumps: the name, the test, and whether it jumps when that does not hold.
pub(super) const JUMP_NAMES: &[(&str, u16, bool)] = &[
    ("jeq", BPF_JEQ, false),
    ("jgt", BPF_JGT, false),
    ("jge", BPF_JGE, false),
    ("jset", BPF_JSET, false),
    ("jne", BPF_JEQ, true),
    ("jneq", BPF_JEQ, true),
    ("jlt", BPF_JGE, true),
    ("jle", BPF_JGT, true),
];

pub(super) const ALU_NAMES: &[(&str, u16)] = &[
    ("add", BPF_ADD),
    ("sub", BPF_SUB),
    ("mul", BPF_MUL),
    ("div", BPF_DIV),
    ("mod", BPF_MOD),
    ("and", BPF_AND),
    ("or", BPF_OR),
    ("xor", BPF_XOR),
    ("lsh", BPF_LSH),
    ("rsh", BPF_RSH),
];

impl Alu {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::Mod => "mod",
            Self::And => "and",
            Self::Or => "or",
            Self::Xor => "xor",
            Self::Lsh => "lsh",
            Self::Rsh => "rsh",
        }
    }
}

impl Cond {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Eq => "jeq",
            Self::Gt => "jgt",
            Self::Ge => "jge",
            Self::Set => "jset",
        }
    }

    /// The name of the jump for when it doesn't hold, where there is one.
    pub(crate) const fn inverted_name(self) -> Option<&'static str> {
        match self {
            Self::Eq => Some("jne"),
            Self::Gt => Some("jle"),
            Self::Ge => Some("jlt"),
            Self::Set => None,
        }
    }
}
