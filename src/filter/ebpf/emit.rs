// SPDX-License-Identifier: MIT OR Apache-2.0

//! The function as a whole, and what the two ways through a filter have in common: arithmetic, scratch memory, jumps.

use super::analysis::{A, Program, X, word};
use super::builder::{Builder, Label, R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Reg};
use super::ext::{helper, skb, xdp_md};
use super::insn::{alu, jmp, size};
#[cfg(test)]
use super::translate::Fault;
use super::translate::{Hook, Options, Returns};
use crate::filter::classic::insn::{Alu, BPF_MEMWORDS, Cond, Ext, Op, Src};

/// Where a way through a filter has its values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    pub(super) ctx: Reg,
    pub(super) a: Reg,
    pub(super) x: Reg,
    pub(super) tmp: Reg,
    /// Of the fast way only.
    pub(super) data: Reg,
    pub(super) end: Reg,
}

/// Nothing is called: no register has to be saved.
const SCRATCH: Registers = Registers { ctx: R1, a: R0, x: R2, data: R3, end: R4, tmp: R5 };
/// Helpers are called. They leave `end` and `tmp` undefined.
const SAVED: Registers = Registers { ctx: R6, a: R7, x: R8, data: R9, end: R4, tmp: R5 };
/// The slow way: all that it loads, it calls for.
pub(super) const SLOW: Registers = SAVED;

/// Functions of the slow way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slow {
    /// `filters(ctx, number)` goes through the filters from that one on.
    pub(super) filters: Label,
    /// `load(ctx, offset, bytes, as_on_wire)` loads what can't be got at directly.
    pub(super) loader: Label,
}

#[derive(Debug)]
pub(super) struct Emitter<'a> {
    pub(super) b: Builder,
    pub(super) options: &'a Options,
    /// Of the fast way.
    pub(super) fast: Registers,
    /// The functions of the slow way, where it may be needed.
    pub(super) slow: Option<Slow>,
    /// By filter: where each way begins. The last is where none has matched.
    pub(super) fast_starts: Vec<Label>,
    pub(super) slow_starts: Vec<Label>,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(programs: &[Program], options: &'a Options) -> Self {
        let mut b = Builder::default();
        let mut starts = || -> Vec<Label> { (0..=programs.len()).map(|_| b.label()).collect() };
        let (fast_starts, slow_starts) = (starts(), starts());
        let calls = programs.iter().any(|program| {
            program.calls_helper || program.uses_len && options.hook == Hook::Xdp && options.frags
        });
        let slow = options.has_slow_way().then(|| Slow { filters: b.label(), loader: b.label() });
        let fast = if calls { SAVED } else { SCRATCH };
        Self { b, options, fast, slow, fast_starts, slow_starts }
    }

    /// Returns the labels of the functions, too.
    pub(super) fn emit(mut self, programs: &[Program]) -> (Builder, Vec<Label>) {
        let filter = self.b.label();
        self.b.bind(filter);
        self.prologue(programs);
        for (number, program) in programs.iter().enumerate() {
            self.b.bind(self.fast_starts[number]);
            let out_of_bounds = self.fast_way(number, program);
            if self.slow.is_some() {
                self.ways_part(number, out_of_bounds);
            }
        }
        self.b.bind(self.fast_starts[programs.len()]);
        self.b.mov32_imm(R0, 0);
        self.b.exit();
        let mut functions = vec![filter];
        if let Some(slow) = self.slow {
            functions.extend([slow.filters, slow.loader]);
            self.b.bind(slow.filters);
            self.slow_function(programs);
            self.b.bind(slow.loader);
            self.loader_function();
        }
        (self.b, functions)
    }

    fn prologue(&mut self, programs: &[Program]) {
        let regs = self.fast;
        if regs.ctx != R1 {
            self.b.mov(regs.ctx, R1);
        }
        #[cfg(test)]
        let ignored = self.options.has(Fault::TagIgnored);
        #[cfg(not(test))]
        let ignored = false;
        // A packet whose tag is beside it is not what was on the wire.
        if self.options.tag_beside()
            && !ignored
            && programs.iter().any(|program| !program.asks_for_tag)
        {
            self.b.load(size::W, regs.tmp, regs.ctx, skb::VLAN_PRESENT);
            let untagged = self.b.label();
            self.b.jump_imm(jmp::JEQ, regs.tmp, 0, untagged);
            self.call_slow_way(0);
            self.b.bind(untagged);
        }
        let (data, end) = self.data_fields();
        self.b.load(size::W, regs.data, regs.ctx, data);
        self.b.load(size::W, regs.end, regs.ctx, end);
    }

    pub(super) fn data_fields(&self) -> (i16, i16) {
        match self.options.hook {
            Hook::Xdp => (xdp_md::DATA, xdp_md::DATA_END),
            Hook::TcIngress | Hook::TcEgress => (skb::DATA, skb::DATA_END),
        }
    }

    /// Goes through the filter `number`, and those behind it, on the slow way.
    fn call_slow_way(&mut self, number: usize) {
        let slow = self.slow.expect("asked for only where there is one");
        if self.fast.ctx != R1 {
            self.b.mov(R1, self.fast.ctx);
        }
        self.b.mov32_imm(R2, number as u32);
        self.b.call(slow.filters);
        self.b.exit();
    }

    /// A filter found the packet too short. If there is more of it elsewhere, the slow way has the answer; else it is the
    /// next filter's turn.
    fn ways_part(&mut self, number: usize, out_of_bounds: Label) {
        self.b.bind(out_of_bounds);
        let (regs, next) = (self.fast, self.fast_starts[number + 1]);
        #[cfg(test)]
        if self.options.has(Fault::FirstPieceOnly) {
            self.b.goto(next);
            return;
        }
        if self.options.hook != Hook::Xdp {
            // A and X are of no more use.
            self.b.load(size::W, regs.x, regs.ctx, skb::LEN);
            self.b.mov(regs.tmp, regs.data);
            self.b.alu64(alu::ADD, regs.tmp, regs.x);
            self.b.jump(jmp::JLE, regs.tmp, regs.end, next);
        }
        // At XDP only a helper tells, and no register would be left: the slow way asks.
        self.call_slow_way(number);
    }

    /// Classic BPF starts with zeros. Only what is read needs to be written.
    pub(super) fn zero(&mut self, regs: Registers, read: u32) {
        if read & A != 0 {
            self.b.mov32_imm(regs.a, 0);
        }
        if read & X != 0 {
            self.b.mov32_imm(regs.x, 0);
        }
        for n in (0..BPF_MEMWORDS as u32).filter(|&n| read & word(n) != 0) {
            #[cfg(test)]
            if self.options.has(Fault::ScratchNotZeroed) {
                self.b.store_imm(size::W, R10, scratch(n), 1);
                continue;
            }
            self.b.store_imm(size::W, R10, scratch(n), 0);
        }
    }

    /// What both ways do alike: all but loads.
    pub(super) fn op(&mut self, op: Op, regs: Registers, place: &Place<'_>) {
        let Registers { a, x, .. } = regs;
        let &Place { number, at, labels, no_match } = place;
        match op {
            Op::Ja(0) => {}
            Op::Ja(k) => self.b.goto(labels[at + 1 + k as usize]),
            Op::Jump { cond, src, jt, jf } => {
                let ways = Ways {
                    holds: labels[at + 1 + usize::from(jt)],
                    fails: labels[at + 1 + usize::from(jf)],
                    next: labels[at + 1],
                };
                self.branch(cond, src, regs, ways);
            }
            Op::RetK(k) => self.ret(number, Some(k), a, no_match),
            Op::RetA => self.ret(number, None, a, no_match),
            Op::LdImm(k) => self.b.mov32_imm(a, k),
            Op::LdxImm(k) => self.b.mov32_imm(x, k),
            Op::LdMem(k) => self.b.load(size::W, a, R10, scratch(k)),
            Op::LdxMem(k) => self.b.load(size::W, x, R10, scratch(k)),
            Op::St(k) => self.b.store(size::W, R10, scratch(k), a),
            Op::Stx(k) => self.b.store(size::W, R10, scratch(k), x),
            Op::Alu(operation, src) => self.arithmetic(operation, src, regs, no_match),
            Op::Neg => self.b.neg32(a),
            Op::Tax => self.b.mov32(x, a),
            Op::Txa => self.b.mov32(a, x),
            Op::LdAbs(..) | Op::LdInd(..) | Op::LdxMsh(_) | Op::LdLen | Op::LdxLen => {
                unreachable!("each way does these itself")
            }
        }
    }

    fn arithmetic(&mut self, operation: Alu, src: Src, regs: Registers, no_match: Label) {
        let code = match operation {
            Alu::Add => alu::ADD,
            Alu::Sub => alu::SUB,
            Alu::Mul => alu::MUL,
            Alu::Div => alu::DIV,
            Alu::Mod => alu::MOD,
            Alu::And => alu::AND,
            Alu::Or => alu::OR,
            Alu::Xor => alu::XOR,
            Alu::Lsh => alu::LSH,
            Alu::Rsh => alu::RSH,
        };
        match (operation, src) {
            (Alu::Div | Alu::Mod, Src::K(0)) => self.b.goto(no_match),
            (Alu::Lsh | Alu::Rsh, Src::K(32..)) => self.b.mov32_imm(regs.a, 0),
            (_, Src::K(k)) => self.b.alu32_imm(code, regs.a, k),
            (Alu::Div | Alu::Mod, Src::X) => {
                // eBPF goes on, with 0 or the dividend.
                #[cfg(test)]
                if self.options.has(Fault::DivisionByZeroGoesOn) {
                    self.b.alu32(code, regs.a, regs.x);
                    return;
                }
                self.b.jump32_imm(jmp::JEQ, regs.x, 0, no_match);
                self.b.alu32(code, regs.a, regs.x);
            }
            (Alu::Lsh | Alu::Rsh, Src::X) => {
                #[cfg(test)]
                if self.options.has(Fault::ShiftMasked) {
                    self.b.alu32(code, regs.a, regs.x);
                    return;
                }
                // eBPF takes the low five bits of the distance.
                let (small, done) = (self.b.label(), self.b.label());
                self.b.jump32_imm(jmp::JLT, regs.x, 32, small);
                self.b.mov32_imm(regs.a, 0);
                self.b.goto(done);
                self.b.bind(small);
                self.b.alu32(code, regs.a, regs.x);
                self.b.bind(done);
            }
            (_, Src::X) => self.b.alu32(code, regs.a, regs.x),
        }
    }

    /// A conditional jump. What comes next in the function is at `next`.
    fn branch(&mut self, cond: Cond, src: Src, regs: Registers, ways: Ways) {
        let Ways { holds, fails, next } = ways;
        if holds == fails {
            if holds != next {
                self.b.goto(holds);
            }
            return;
        }
        let (code, inverse) = match cond {
            Cond::Eq => (jmp::JEQ, Some(jmp::JNE)),
            Cond::Gt => (jmp::JGT, Some(jmp::JLE)),
            Cond::Ge => (jmp::JGE, Some(jmp::JLT)),
            Cond::Set => (jmp::JSET, None),
        };
        #[cfg(test)]
        let (code, inverse) = match cond {
            Cond::Gt if self.options.has(Fault::SignedCompare) => (jmp::JSGT, Some(jmp::JSLE)),
            _ => (code, inverse),
        };
        let mut jump = |code, label| match src {
            Src::K(k) => self.b.jump32_imm(code, regs.a, k, label),
            Src::X => self.b.jump32(code, regs.a, regs.x, label),
        };
        match inverse {
            Some(inverse) if holds == next => jump(inverse, fails),
            _ => {
                jump(code, holds);
                if fails != next {
                    self.b.goto(fails);
                }
            }
        }
    }

    /// The end of a filter. `no_match` is the next filter.
    fn ret(&mut self, number: usize, value: Option<u32>, a: Reg, no_match: Label) {
        let matched = number as u32 + 1;
        match (self.options.returns, value) {
            (_, Some(0)) => {
                self.b.goto(no_match);
                return;
            }
            (Returns::Number, Some(_)) => self.b.mov32_imm(R0, matched),
            (Returns::Value, Some(value)) => self.b.mov32_imm(R0, value),
            (Returns::Number, None) => {
                self.b.jump32_imm(jmp::JEQ, a, 0, no_match);
                self.b.mov32_imm(R0, matched);
            }
            (Returns::Value, None) => {
                self.b.jump32_imm(jmp::JEQ, a, 0, no_match);
                if a != R0 {
                    self.b.mov32(R0, a);
                }
            }
        }
        self.b.exit();
    }

    /// A = what the kernel knows. All but the packet's registers and A and X are left undefined by a helper.
    pub(super) fn extension(&mut self, ext: Ext, regs: Registers) {
        let Registers { ctx, a, x, .. } = regs;
        let egress = self.options.hook == Hook::TcEgress;
        let xdp = self.options.hook == Hook::Xdp;
        match ext {
            Ext::AluXorX => self.b.alu32(alu::XOR, a, x),
            // As a socket sees what is sent (dev_queue_xmit_nit); the packet itself isn't marked so.
            Ext::PktType if egress => self.b.mov32_imm(a, PACKET_OUTGOING),
            Ext::PktType => self.b.load(size::W, a, ctx, skb::PKT_TYPE),
            Ext::Ifindex if xdp => self.b.load(size::W, a, ctx, xdp_md::INGRESS_IFINDEX),
            Ext::Ifindex => self.b.load(size::W, a, ctx, skb::IFINDEX),
            Ext::Mark => self.b.load(size::W, a, ctx, skb::MARK),
            Ext::Queue if xdp => {
                // A packet's queue is recorded as its number and one (skb_record_rx_queue).
                self.b.load(size::W, a, ctx, xdp_md::RX_QUEUE_INDEX);
                self.b.alu32_imm(alu::ADD, a, 1);
            }
            Ext::Queue => self.b.load(size::W, a, ctx, skb::QUEUE_MAPPING),
            Ext::RxHash => self.b.load(size::W, a, ctx, skb::HASH),
            Ext::Protocol => {
                self.b.load(size::W, a, ctx, skb::PROTOCOL);
                self.b.network_order(a, 16);
            }
            Ext::VlanTag => self.b.load(size::W, a, ctx, skb::VLAN_TCI),
            Ext::VlanTagPresent => self.b.load(size::W, a, ctx, skb::VLAN_PRESENT),
            Ext::VlanTpid => {
                self.b.load(size::W, a, ctx, skb::VLAN_PROTO);
                self.b.network_order(a, 16);
            }
            Ext::Cpu | Ext::Random => {
                self.b.helper(if ext == Ext::Cpu {
                    helper::GET_SMP_PROCESSOR_ID
                } else {
                    helper::GET_PRANDOM_U32
                });
                self.b.mov32(a, R0);
            }
            Ext::Nlattr | Ext::NlattrNest | Ext::HaType | Ext::PayOffset => {
                unreachable!("refused when the filter was taken in")
            }
        }
    }
}

/// include/uapi/linux/if_packet.h
const PACKET_OUTGOING: u32 = 4;

/// An instruction's place in a way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Of the filter, from 0.
    pub(super) number: usize,
    pub(super) at: usize,
    /// By instruction.
    pub(super) labels: &'a [Label],
    /// The next filter.
    pub(super) no_match: Label,
}

/// Where a conditional jump goes, and what comes after it.
#[derive(Clone, Copy, Debug)]
struct Ways {
    holds: Label,
    fails: Label,
    next: Label,
}

/// M[n] on the stack.
fn scratch(n: u32) -> i16 {
    -4 * (n as i16 + 1)
}
