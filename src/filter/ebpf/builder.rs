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
    pub(super) fn network_order(&mut self, dst: Reg, bits: i32) {
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

    /// The instructions, with every jump filled in, and where those of `functions` start that are called. What can't be
    /// reached is left out: the kernel refuses a program that has such instructions.
    pub(super) fn finish(self, functions: &[Label]) -> Result<(Vec<Insn>, Vec<usize>), TooFar> {
        let place = |label: Label| self.labels[label.0].expect("a label that is used is bound");
        // By instruction: where its jump goes.
        let mut targets = vec![None; self.insns.len()];
        for &(from, label) in self.jumps.iter().chain(&self.calls) {
            targets[from] = Some(place(label));
        }
        let mut kept = self.reachable(&targets);
        // A jump to what comes next anyway. From the end, because such jumps may follow one another.
        let mut following = self.insns.len();
        for at in (0..self.insns.len()).rev().filter(|&at| kept[at]).collect::<Vec<_>>() {
            if self.insns[at].code == class::JMP | jmp::JA
                && targets[at].is_some_and(|to| to > at && to <= following)
            {
                kept[at] = false;
            } else {
                following = at;
            }
        }

        let mut moved = Vec::with_capacity(self.insns.len() + 1);
        let mut count = 0;
        for &kept in &kept {
            moved.push(count);
            count += usize::from(kept);
        }
        moved.push(count);
        let mut insns = Vec::with_capacity(count);
        for (at, mut insn) in self.insns.iter().copied().enumerate().filter(|&(at, _)| kept[at]) {
            if let Some(to) = targets[at] {
                let distance = moved[to] as i64 - moved[at] as i64 - 1;
                if insn.is_call() {
                    insn.imm = distance as i32;
                } else {
                    insn.off = i16::try_from(distance).map_err(|_| TooFar)?;
                }
            }
            insns.push(insn);
        }
        let functions = functions.iter().map(|&label| place(label));
        let starts = functions.filter(|&at| kept[at]).map(|at| moved[at]).collect();
        Ok((insns, starts))
    }

    fn reachable(&self, targets: &[Option<usize>]) -> Vec<bool> {
        let mut reachable = vec![false; self.insns.len()];
        let mut open = vec![0];
        while let Some(at) = open.pop() {
            if std::mem::replace(&mut reachable[at], true) {
                continue;
            }
            let insn = self.insns[at];
            let ends =
                matches!(insn.class(), class::JMP) && matches!(insn.op(), jmp::JA | jmp::EXIT);
            open.extend(targets[at]);
            if !ends {
                open.push(at + 1);
            }
        }
        reachable
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
