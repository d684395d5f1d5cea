// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writes eBPF instructions whose jumps go to labels.

use super::insn::{Insn, K, X, alu, class, jmp, mode, pseudo, size};

/// A place to jump to, which may still have to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

pub(super) type Reg = u8;
pub(super) const R0: Reg = 0;
pub(super) const R1: Reg = 1;
pub(super) const R2: Reg = 2;
pub(super) const R3: Reg = 3;
pub(super) const R4: Reg = 4;
pub(super) const R5: Reg = 5;
pub(super) const R6: Reg = 6;
pub(super) const R7: Reg = 7;
pub(super) const R8: Reg = 8;
pub(super) const R9: Reg = 9;
pub(super) const R10: Reg = 10;

/// What a jump is further than: 16 bits, signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooFar;

#[derive(Debug, Default)]
pub(super) struct Builder {
    insns: Vec<Insn>,
    /// By label: where it is.
    labels: Vec<Option<usize>>,
    /// Instructions whose jump is to be filled in.
    jumps: Vec<(usize, Label)>,
    calls: Vec<(usize, Label)>,
}

impl Builder {
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    pub(super) fn bind(&mut self, label: Label) {
        debug_assert!(self.labels[label.0].is_none(), "a label is in one place");
        self.labels[label.0] = Some(self.insns.len());
    }

    pub(super) fn len(&self) -> usize {
        self.insns.len()
    }

    fn push(&mut self, code: u8, dst: Reg, src: Reg, off: i16, imm: i32) {
        self.insns.push(Insn::new(code, dst, src, off, imm));
    }

    pub(super) fn mov(&mut self, dst: Reg, src: Reg) {
        self.push(class::ALU64 | alu::MOV | X, dst, src, 0, 0);
    }

    pub(super) fn mov32(&mut self, dst: Reg, src: Reg) {
        self.push(class::ALU | alu::MOV | X, dst, src, 0, 0);
    }

    pub(super) fn mov32_imm(&mut self, dst: Reg, imm: u32) {
        self.push(class::ALU | alu::MOV | K, dst, 0, 0, imm as i32);
    }

    pub(super) fn mov64_imm(&mut self, dst: Reg, imm: i32) {
        self.push(class::ALU64 | alu::MOV | K, dst, 0, 0, imm);
    }

    pub(super) fn alu32(&mut self, op: u8, dst: Reg, src: Reg) {
        self.push(class::ALU | op | X, dst, src, 0, 0);
    }

    pub(super) fn alu32_imm(&mut self, op: u8, dst: Reg, imm: u32) {
        self.push(class::ALU | op | K, dst, 0, 0, imm as i32);
    }

    pub(super) fn alu64(&mut self, op: u8, dst: Reg, src: Reg) {
        self.push(class::ALU64 | op | X, dst, src, 0, 0);
    }

    pub(super) fn alu64_imm(&mut self, op: u8, dst: Reg, imm: i32) {
        self.push(class::ALU64 | op | K, dst, 0, 0, imm);
    }

    pub(super) fn neg32(&mut self, dst: Reg) {
        self.push(class::ALU | alu::NEG | K, dst, 0, 0, 0);
    }

    /// From network order, and the upper bits zero.
    pub(super) fn from_be(&mut self, dst: Reg, bits: i32) {
        self.push(class::ALU | alu::END | X, dst, 0, 0, bits);
    }

    pub(super) fn load(&mut self, width: u8, dst: Reg, src: Reg, off: i16) {
        self.push(class::LDX | width | mode::MEM, dst, src, off, 0);
    }

    pub(super) fn store(&mut self, width: u8, dst: Reg, off: i16, src: Reg) {
        self.push(class::STX | width | mode::MEM, dst, src, off, 0);
    }

    pub(super) fn store_imm(&mut self, width: u8, dst: Reg, off: i16, imm: i32) {
        self.push(class::ST | width | mode::MEM, dst, 0, off, imm);
    }

    pub(super) fn goto(&mut self, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.push(class::JMP | jmp::JA, 0, 0, 0, 0);
    }

    /// Compares 64 bits.
    pub(super) fn jump(&mut self, op: u8, dst: Reg, src: Reg, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.push(class::JMP | op | X, dst, src, 0, 0);
    }

    pub(super) fn jump_imm(&mut self, op: u8, dst: Reg, imm: i32, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.push(class::JMP | op | K, dst, 0, 0, imm);
    }

    /// Compares 32 bits. Linux 5.1.
    pub(super) fn jump32(&mut self, op: u8, dst: Reg, src: Reg, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.push(class::JMP32 | op | X, dst, src, 0, 0);
    }

    pub(super) fn jump32_imm(&mut self, op: u8, dst: Reg, imm: u32, label: Label) {
        self.jumps.push((self.insns.len(), label));
        self.push(class::JMP32 | op | K, dst, 0, 0, imm as i32);
    }

    /// Calls one of the kernel's helpers.
    pub(super) fn helper(&mut self, number: i32) {
        self.push(class::JMP | jmp::CALL, 0, 0, 0, number);
    }

    /// Calls a function of this program.
    pub(super) fn call(&mut self, label: Label) {
        self.calls.push((self.insns.len(), label));
        self.push(class::JMP | jmp::CALL, 0, pseudo::CALL, 0, 0);
    }

    pub(super) fn exit(&mut self) {
        self.push(class::JMP | jmp::EXIT, 0, 0, 0, 0);
    }

    /// The instructions, with every jump filled in.
    pub(super) fn finish(mut self) -> Result<Vec<Insn>, TooFar> {
        let distance = |labels: &[Option<usize>], from: usize, label: Label| {
            let to = labels[label.0].expect("a label that is used is bound");
            to as i64 - from as i64 - 1
        };
        for (from, label) in self.jumps {
            let distance = distance(&self.labels, from, label);
            self.insns[from].off = i16::try_from(distance).map_err(|_| TooFar)?;
        }
        for (from, label) in self.calls {
            self.insns[from].imm = distance(&self.labels, from, label) as i32;
        }
        Ok(self.insns)
    }
}

/// The load of so many bytes.
pub(super) const fn width(bytes: u32) -> u8 {
    match bytes {
        1 => size::B,
        2 => size::H,
        _ => size::W,
    }
}
