// SPDX-License-Identifier: MIT OR Apache-2.0

//! The slow way through a filter: a function loads, through the kernel, what can't be got at directly. It knows packets in
//! several pieces, and puts the VLAN tag that the kernel keeps beside a packet back to where it was on the wire.

use super::analysis::{MAX_PACKET_OFF, NEVER, Program, Step};
use super::builder::{Label, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Reg};
use super::emit::{Emitter, Place, SLOW};
use super::ext::{Load, helper, skb, xdp_md};
use super::insn::{alu, jmp, size};
use super::translate::{Hook, UNREADABLE};
use crate::filter::classic::insn::Op;

/// What the loader returns instead of a value, which has 32 bits.
const OUT_OF_BOUNDS: i32 = -1;
const NOT_READ: i32 = -2;

/// Where the VLAN tag is on the wire: behind two addresses.
const TAG: i32 = 12;
const TAG_BYTES: i32 = 4;

/// No packet is as long as the offset that this is, and helpers take offsets as signed.
const REACH: u32 = i32::MAX as u32;

impl Emitter<'_> {
    /// `filters(ctx, number)`.
    pub(super) fn slow_function(&mut self, programs: &[Program]) {
        self.b.mov(SLOW.ctx, R1);
        if self.options.hook == Hook::Xdp {
            // In one piece: then the filter that ended too soon has had its say.
            let several = self.b.label();
            self.b.mov32(R7, R2);
            self.b.helper(helper::XDP_GET_BUFF_LEN);
            self.b.mov32(R0, R0);
            self.b.load(size::W, R1, SLOW.ctx, xdp_md::DATA);
            self.b.load(size::W, R3, SLOW.ctx, xdp_md::DATA_END);
            self.b.alu64(alu::ADD, R1, R0);
            self.b.mov32(R2, R7);
            self.b.jump(jmp::JGT, R1, R3, several);
            self.b.alu32_imm(alu::ADD, R2, 1);
            self.b.bind(several);
        }
        for number in 1..=programs.len() {
            self.b.jump32_imm(jmp::JEQ, R2, number as u32, self.slow_starts[number]);
        }
        for (number, program) in programs.iter().enumerate() {
            self.b.bind(self.slow_starts[number]);
            self.slow_way(number, program);
        }
        self.b.bind(self.slow_starts[programs.len()]);
        self.b.mov32_imm(R0, 0);
        self.b.exit();
    }

    /// Comes with the context in its register.
    fn slow_way(&mut self, number: usize, program: &Program) {
        let regs = SLOW;
        let no_match = self.slow_starts[number + 1];
        let (failed, unreadable) = (self.b.label(), self.b.label());
        let needed = program.needed(REACH);
        let reachable = program.reachable(|at| needed[at] == NEVER);
        let labels: Vec<Label> = program.steps.iter().map(|_| self.b.label()).collect();
        let as_on_wire = !program.asks_for_tag;
        let mut loads = false;

        if needed[0] != NEVER {
            self.zero(regs, program.read_first());
        }
        for (at, &step) in program.steps.iter().enumerate().filter(|&(at, _)| reachable[at]) {
            self.b.bind(labels[at]);
            if needed[at] == NEVER {
                self.b.goto(no_match);
                continue;
            }
            match step {
                Step::Load(Load::Ext(ext)) => self.extension(ext, regs),
                Step::Load(load) => {
                    loads = true;
                    self.call_loader(load, as_on_wire, failed);
                }
                Step::Op(Op::LdLen) => self.wire_length(regs.a, as_on_wire),
                Step::Op(Op::LdxLen) => self.wire_length(regs.x, as_on_wire),
                Step::Op(op) => self.op(op, regs, &Place { number, at, labels: &labels, no_match }),
            }
        }
        if loads {
            self.b.bind(failed);
            self.b.jump_imm(jmp::JEQ, R0, NOT_READ, unreadable);
            self.b.goto(no_match);
            self.b.bind(unreadable);
            self.b.mov64_imm(R0, UNREADABLE);
            self.b.exit();
        }
    }

    fn call_loader(&mut self, load: Load, as_on_wire: bool, failed: Label) {
        let regs = SLOW;
        let loader = self.slow.expect("this is the slow way").loader;
        let bytes = match load {
            Load::Abs { bytes, offset } => {
                self.b.mov32_imm(R2, offset);
                bytes
            }
            Load::Msh { offset } => {
                self.b.mov32_imm(R2, offset);
                1
            }
            Load::Ind { bytes, offset } => {
                self.b.mov32(R2, regs.x);
                // 64 bits, of which each takes 32: it doesn't wrap around.
                match i32::try_from(offset) {
                    Ok(0) => {}
                    Ok(offset) => self.b.alu64_imm(alu::ADD, R2, offset),
                    Err(_) => {
                        self.b.mov32_imm(R3, offset);
                        self.b.alu64(alu::ADD, R2, R3);
                    }
                }
                bytes
            }
            Load::Ext(_) => unreachable!("the kernel's knowledge is not loaded"),
        };
        self.b.mov(R1, regs.ctx);
        self.b.mov32_imm(R3, bytes);
        if self.options.tag_beside() {
            self.b.mov32_imm(R4, as_on_wire.into());
        }
        self.b.call(loader);
        self.b.jump_imm(jmp::JSLT, R0, 0, failed);
        match load {
            Load::Msh { .. } => {
                self.b.mov32(regs.x, R0);
                self.b.alu32_imm(alu::AND, regs.x, 0xf);
                self.b.alu32_imm(alu::LSH, regs.x, 2);
            }
            _ => self.b.mov32(regs.a, R0),
        }
    }

    fn wire_length(&mut self, dst: Reg, as_on_wire: bool) {
        let ctx = SLOW.ctx;
        if self.options.hook == Hook::Xdp {
            self.b.mov(R1, ctx);
            self.b.helper(helper::XDP_GET_BUFF_LEN);
            self.b.mov32(dst, R0);
            return;
        }
        self.b.load(size::W, dst, ctx, skb::LEN);
        if self.options.tag_beside() && as_on_wire {
            let untagged = self.b.label();
            self.b.load(size::W, R0, ctx, skb::VLAN_PRESENT);
            self.b.jump_imm(jmp::JEQ, R0, 0, untagged);
            self.b.alu32_imm(alu::ADD, dst, TAG_BYTES as u32);
            self.b.bind(untagged);
        }
    }

    /// `load(ctx, offset, bytes, as_on_wire)`: the bytes as a number, or `OUT_OF_BOUNDS`, or `NOT_READ`. The offset has up to
    /// 33 bits; the number of bytes is a constant to the verifier.
    pub(super) fn loader_function(&mut self) {
        let (ctx, offset, bytes, length) = (R6, R7, R8, R9);
        self.b.mov(ctx, R1);
        self.b.mov(offset, R2);
        self.b.mov(bytes, R3);
        let (plain, beyond) = (self.b.label(), self.b.label());
        if self.options.hook == Hook::Xdp {
            self.b.helper(helper::XDP_GET_BUFF_LEN);
            self.b.mov32(length, R0);
        } else {
            self.b.load(size::W, length, ctx, skb::LEN);
        }
        if self.options.tag_beside() {
            self.tagged(plain, beyond);
        }
        self.b.bind(plain);
        self.within(length, beyond);
        if self.options.hook == Hook::Xdp {
            let taken = self.b.label();
            self.b.jump_imm(jmp::JLE, offset, (MAX_PACKET_OFF - 4) as i32, taken);
            self.b.mov64_imm(R0, NOT_READ);
            self.b.exit();
            self.b.bind(taken);
        }
        self.read_bytes(offset, bytes);
        let not_read = self.b.label();
        self.b.jump_imm(jmp::JNE, R0, 0, not_read);
        // Zeros follow the bytes that were read: shifted out.
        self.b.load(size::W, R0, R10, BUFFER);
        self.b.network_order(R0, 32);
        self.shift_out(bytes, 32);
        self.b.exit();
        self.b.bind(not_read);
        self.b.mov64_imm(R0, NOT_READ);
        self.b.exit();
        self.b.bind(beyond);
        self.b.mov64_imm(R0, OUT_OF_BOUNDS);
        self.b.exit();
    }

    /// Goes on when `offset + bytes` is at most `length`.
    fn within(&mut self, length: Reg, beyond: Label) {
        let (offset, bytes) = (R7, R8);
        self.b.mov(R1, offset);
        self.b.alu64(alu::ADD, R1, bytes);
        self.b.jump(jmp::JGT, R1, length, beyond);
    }

    /// The packet's bytes with its tag between them; goes on with `plain` when it's about bytes before or behind it.
    fn tagged(&mut self, plain: Label, beyond: Label) {
        let (ctx, offset, bytes, length) = (R6, R7, R8, R9);
        let (before, inside) = (self.b.label(), self.b.label());
        self.b.jump_imm(jmp::JEQ, R4, 0, plain);
        self.b.load(size::W, R1, ctx, skb::VLAN_PRESENT);
        self.b.jump_imm(jmp::JEQ, R1, 0, plain);
        self.b.alu64_imm(alu::ADD, length, TAG_BYTES);
        self.within(length, beyond);
        self.b.alu64_imm(alu::SUB, length, TAG_BYTES);
        // R1 is where the bytes end.
        self.b.jump_imm(jmp::JLE, R1, TAG, plain);
        self.b.jump_imm(jmp::JLT, offset, TAG + TAG_BYTES, inside);
        self.b.alu64_imm(alu::SUB, offset, TAG_BYTES);
        self.b.goto(plain);

        // Some of the bytes are the tag's. With the four before it or the four behind it they are in eight in a row.
        self.b.bind(inside);
        let (shift, joined) = (self.b.label(), self.b.label());
        // The tag, as a number, instead of the length.
        self.b.load(size::W, R9, ctx, skb::VLAN_PROTO);
        self.b.network_order(R9, 16);
        self.b.alu64_imm(alu::LSH, R9, 16);
        self.b.load(size::W, R1, ctx, skb::VLAN_TCI);
        self.b.alu64(alu::OR, R9, R1);
        self.b.jump_imm(jmp::JLT, offset, TAG, before);
        // Behind it there may be less than four.
        self.b.alu64_imm(alu::SUB, offset, TAG);
        self.b.load(size::W, R4, ctx, skb::LEN);
        self.b.alu64_imm(alu::SUB, R4, TAG);
        let few = self.b.label();
        self.b.store_imm(size::W, R10, BUFFER, 0);
        self.b.jump_imm(jmp::JSLT, R4, 1, joined);
        self.b.jump_imm(jmp::JLE, R4, 4, few);
        self.b.mov64_imm(R4, 4);
        self.b.bind(few);
        self.b.mov(R1, ctx);
        self.b.mov32_imm(R2, TAG as u32);
        self.b.mov(R3, R10);
        self.b.alu64_imm(alu::ADD, R3, BUFFER.into());
        self.b.helper(helper::SKB_LOAD_BYTES);
        self.b.bind(joined);
        self.b.load(size::W, R0, R10, BUFFER);
        self.b.network_order(R0, 32);
        self.b.alu64_imm(alu::LSH, R9, 32);
        self.b.alu64(alu::OR, R0, R9);
        self.b.goto(shift);

        self.b.bind(before);
        self.b.alu64_imm(alu::SUB, offset, TAG - 4);
        self.b.store_imm(size::W, R10, BUFFER, 0);
        self.b.mov(R1, ctx);
        self.b.mov32_imm(R2, (TAG - 4) as u32);
        self.b.mov(R3, R10);
        self.b.alu64_imm(alu::ADD, R3, BUFFER.into());
        self.b.mov32_imm(R4, 4);
        self.b.helper(helper::SKB_LOAD_BYTES);
        self.b.load(size::W, R0, R10, BUFFER);
        self.b.network_order(R0, 32);
        self.b.alu64_imm(alu::LSH, R0, 32);
        self.b.alu64(alu::OR, R0, R9);

        // Off with what comes before `offset`, then with what comes behind.
        self.b.bind(shift);
        self.b.alu64_imm(alu::LSH, offset, 3);
        self.b.alu64(alu::LSH, R0, offset);
        self.shift_out(bytes, 64);
        self.b.exit();
    }

    /// Reads into the buffer; 0 when it worked.
    fn read_bytes(&mut self, offset: Reg, bytes: Reg) {
        self.b.store_imm(size::W, R10, BUFFER, 0);
        self.b.mov(R1, R6);
        self.b.mov(R2, offset);
        self.b.mov(R3, R10);
        self.b.alu64_imm(alu::ADD, R3, BUFFER.into());
        self.b.mov(R4, bytes);
        self.b.helper(if self.options.hook == Hook::Xdp {
            helper::XDP_LOAD_BYTES
        } else {
            helper::SKB_LOAD_BYTES
        });
    }

    /// Keeps the first `bytes` of the `bits` in R0.
    fn shift_out(&mut self, bytes: Reg, bits: i32) {
        self.b.alu64_imm(alu::LSH, bytes, 3);
        self.b.mov64_imm(R5, bits);
        self.b.alu64(alu::SUB, R5, bytes);
        self.b.alu64(alu::RSH, R0, R5);
    }
}

/// Four bytes on the loader's stack.
const BUFFER: i16 = -4;
