// SPDX-License-Identifier: MIT OR Apache-2.0

//! The fast way through a filter: loads straight from the packet, behind comparisons with its end that the verifier asks for.

use super::analysis::{MAX_PACKET_OFF, NEVER, Program, Step};
use super::builder::{Label, R0, R1, width};
use super::emit::{Emitter, Place};
use super::ext::{Load, helper, is_helper, skb};
use super::insn::{alu, jmp, size};
#[cfg(test)]
use super::translate::Fault;
use super::translate::Hook;
use crate::filter::classic::insn::Op;

impl Emitter<'_> {
    /// Returns where control goes when a load is beyond the packet's end.
    pub(super) fn fast_way(&mut self, number: usize, program: &Program) -> Label {
        let regs = self.fast;
        let no_match = self.fast_starts[number + 1];
        let out_of_bounds = if self.slow.is_some() { self.b.label() } else { no_match };
        let needed = program.needed(MAX_PACKET_OFF);
        // From here on only the slow way could find a match.
        let reachable = program.reachable(|at| needed[at] == NEVER);
        let guarded = guarded(program, &needed, &reachable);
        let labels: Vec<Label> = program.steps.iter().map(|_| self.b.label()).collect();

        if needed[0] != NEVER {
            self.zero(regs, program.read_first());
        }
        for (at, &step) in program.steps.iter().enumerate().filter(|&(at, _)| reachable[at]) {
            self.b.bind(labels[at]);
            if needed[at] == NEVER {
                let returns = matches!(step, Step::Op(Op::RetK(0)));
                self.b.goto(if returns { no_match } else { out_of_bounds });
                continue;
            }
            match step {
                Step::Load(load) => {
                    if let Some(end) = load.end()
                        && guarded[at] < end
                    {
                        self.guard(needed[at], out_of_bounds);
                    }
                    self.load(load, out_of_bounds);
                }
                Step::Op(Op::LdLen) => self.length(regs.a),
                Step::Op(Op::LdxLen) => self.length(regs.x),
                Step::Op(op) => self.op(op, regs, &Place { number, at, labels: &labels, no_match }),
            }
        }
        out_of_bounds
    }

    /// Goes on only with packets of at least `bytes`.
    fn guard(&mut self, bytes: u32, out_of_bounds: Label) {
        #[cfg(test)]
        let bytes = match self.options.fault {
            Some(Fault::GuardTooFar) => bytes + 1,
            Some(Fault::GuardTooNear) => bytes - 1,
            _ => bytes,
        };
        let regs = self.fast;
        self.b.mov(regs.tmp, regs.data);
        self.b.alu64_imm(alu::ADD, regs.tmp, bytes as i32);
        self.b.jump(jmp::JGT, regs.tmp, regs.end, out_of_bounds);
    }

    fn load(&mut self, load: Load, out_of_bounds: Label) {
        let regs = self.fast;
        match load {
            Load::Abs { bytes, offset } => {
                self.take(bytes, regs.a, offset);
                self.swap(regs.a, bytes);
            }
            Load::Msh { offset } => {
                self.take(1, regs.x, offset);
                self.b.alu32_imm(alu::AND, regs.x, 0xf);
                self.b.alu32_imm(alu::LSH, regs.x, 2);
            }
            Load::Ind { bytes, offset } => {
                self.b.mov32(regs.tmp, regs.x);
                // Twice, so that the verifier forgets what it knows of X: on a way that can't be gone, kernels before 6.8
                // may know of no value that it could have, and then take the sum for no pointer.
                self.b.neg32(regs.tmp);
                self.b.neg32(regs.tmp);
                if offset > 0 {
                    #[cfg(test)]
                    if self.options.has(Fault::OffsetWraps) {
                        self.b.alu32_imm(alu::ADD, regs.tmp, offset);
                    } else {
                        self.b.alu64_imm(alu::ADD, regs.tmp, offset as i32);
                    }
                    // 64 bits, of which X takes 32: it doesn't wrap around.
                    #[cfg(not(test))]
                    self.b.alu64_imm(alu::ADD, regs.tmp, offset as i32);
                }
                let farthest = MAX_PACKET_OFF - bytes;
                self.b.jump_imm(jmp::JGT, regs.tmp, farthest as i32, out_of_bounds);
                self.b.alu64(alu::ADD, regs.tmp, regs.data);
                self.b.alu64_imm(alu::ADD, regs.tmp, bytes as i32);
                self.b.jump(jmp::JGT, regs.tmp, regs.end, out_of_bounds);
                self.b.load(width(bytes), regs.a, regs.tmp, -(bytes as i16));
                self.swap(regs.a, bytes);
            }
            Load::Ext(ext) => {
                self.extension(ext, regs);
                if is_helper(ext) {
                    self.reload_end();
                }
            }
        }
    }

    /// Takes from a constant offset.
    fn take(&mut self, bytes: u32, dst: u8, offset: u32) {
        let regs = self.fast;
        match i16::try_from(offset) {
            Ok(offset) => self.b.load(width(bytes), dst, regs.data, offset),
            Err(_) => {
                self.b.mov(regs.tmp, regs.data);
                self.b.alu64_imm(alu::ADD, regs.tmp, offset as i32);
                self.b.load(width(bytes), dst, regs.tmp, 0);
            }
        }
    }

    fn swap(&mut self, dst: u8, bytes: u32) {
        #[cfg(test)]
        if self.options.has(Fault::HostOrder) {
            return;
        }
        if bytes > 1 {
            self.b.network_order(dst, bytes as i32 * 8);
        }
    }

    fn length(&mut self, dst: u8) {
        let regs = self.fast;
        match self.options.hook {
            Hook::TcIngress | Hook::TcEgress => self.b.load(size::W, dst, regs.ctx, skb::LEN),
            Hook::Xdp if self.options.frags => {
                self.b.mov(R1, regs.ctx);
                self.b.helper(helper::XDP_GET_BUFF_LEN);
                self.b.mov32(dst, R0);
                self.reload_end();
            }
            Hook::Xdp => {
                self.b.mov(dst, regs.end);
                self.b.alu64(alu::SUB, dst, regs.data);
            }
        }
    }

    fn reload_end(&mut self) {
        let (_, end) = self.data_fields();
        self.b.load(size::W, self.fast.end, self.fast.ctx, end);
    }
}

/// By instruction: so many bytes are known to be there when control comes to it, on every way.
fn guarded(program: &Program, needed: &[u32], reachable: &[bool]) -> Vec<u32> {
    let mut guarded = vec![NEVER; program.steps.len()];
    guarded[0] = 0;
    for at in (0..program.steps.len()).filter(|&at| reachable[at] && needed[at] != NEVER) {
        let mut after = guarded[at];
        if let Step::Load(load) = program.steps[at]
            && load.end().is_some_and(|end| end > after)
        {
            after = needed[at];
        }
        for next in program.successors(at).into_iter().flatten() {
            guarded[next] = guarded[next].min(after);
        }
    }
    guarded
}
