// SPDX-License-Identifier: MIT OR Apache-2.0

//! Mnemonics, as ubpf and bpf_conformance have them.

use super::insn::{alu, atomic, jmp, pseudo, size};

/// Arithmetic of two operands.
pub(super) const ALU: &[(&str, u8)] = &[
    ("add", alu::ADD),
    ("sub", alu::SUB),
    ("mul", alu::MUL),
    ("div", alu::DIV),
    ("or", alu::OR),
    ("and", alu::AND),
    ("lsh", alu::LSH),
    ("rsh", alu::RSH),
    ("mod", alu::MOD),
    ("xor", alu::XOR),
    ("mov", alu::MOV),
    ("arsh", alu::ARSH),
];

/// Conditional jumps.
pub(super) const JUMPS: &[(&str, u8)] = &[
    ("jeq", jmp::JEQ),
    ("jgt", jmp::JGT),
    ("jge", jmp::JGE),
    ("jset", jmp::JSET),
    ("jne", jmp::JNE),
    ("jsgt", jmp::JSGT),
    ("jsge", jmp::JSGE),
    ("jlt", jmp::JLT),
    ("jle", jmp::JLE),
    ("jslt", jmp::JSLT),
    ("jsle", jmp::JSLE),
];

pub(super) const SIZES: &[(&str, u8)] =
    &[("b", size::B), ("h", size::H), ("w", size::W), ("dw", size::DW)];

/// Atomic operations that leave the old value or not.
pub(super) const ATOMICS: &[(&str, i32)] =
    &[("add", atomic::ADD), ("or", atomic::OR), ("and", atomic::AND), ("xor", atomic::XOR)];

/// What the immediate value of `lddw` stands for, when it isn't a number. Ours: the others have no words for it.
pub(super) const PSEUDO: &[(&str, u8)] = &[
    ("map_fd", pseudo::MAP_FD),
    ("map_value", pseudo::MAP_VALUE),
    ("btf_id", pseudo::BTF_ID),
    ("func", pseudo::FUNC),
    ("map_idx", pseudo::MAP_IDX),
    ("map_idx_value", pseudo::MAP_IDX_VALUE),
];

/// The name of a number.
pub(super) fn name<T: PartialEq>(table: &[(&'static str, T)], number: T) -> Option<&'static str> {
    table.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}

/// The number of a name.
pub(super) fn number<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}
