// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is known of a classic program before it is translated: which instructions can be reached, what is read before it is
//! written, and how long a packet must be at least for a match. Jumps only go forward, so one pass each is enough.

use super::ext::{self, Load};
use super::translate::{Options, Refused};
use crate::filter::classic::insn::{Alu, BPF_MEMWORDS, Insn, Op, Src};

/// The verifier knows offsets into a packet up to here (MAX_PACKET_OFF).
pub(super) const MAX_PACKET_OFF: u32 = 0xffff;

/// No match is possible.
pub(super) const NEVER: u32 = u32::MAX;

/// Registers and scratch memory, a bit each.
pub(super) const A: u32 = 1 << 16;
pub(super) const X: u32 = 1 << 17;

pub(super) const fn word(n: u32) -> u32 {
    1 << n
}

/// One instruction, with what the hook makes of it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Op(Op),
    /// A load from the packet, at an offset that is an offset.
    Load(Load),
}

/// A program that the translator takes.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) steps: Vec<Step>,
    /// Whether it asks the kernel for the VLAN tag. Then it doesn't look for it among the bytes.
    pub(super) asks_for_tag: bool,
    pub(super) uses_len: bool,
    pub(super) calls_helper: bool,
}

impl Program {
    pub(super) fn new(insns: &[Insn], options: &Options) -> Result<Self, Refused> {
        if insns.is_empty() {
            return Err(Refused::Empty);
        }
        let mut program = Self {
            steps: Vec::with_capacity(insns.len()),
            asks_for_tag: false,
            uses_len: false,
            calls_helper: false,
        };
        for (at, insn) in insns.iter().enumerate() {
            let op = insn.decode().ok_or(Refused::Unknown { at, code: insn.code })?;
            let last = insns.len() - 1;
            check_jump(at, last, op)?;
            match op {
                Op::St(k) | Op::Stx(k) | Op::LdMem(k) | Op::LdxMem(k)
                    if k as usize >= BPF_MEMWORDS =>
                {
                    return Err(Refused::NoSuchWord { at, word: k });
                }
                _ => {}
            }
            let step = match ext::load(op, options, at)? {
                Some(load) => {
                    if let Load::Ext(ext) = load {
                        program.asks_for_tag |= ext::is_tag(ext);
                        program.calls_helper |= ext::is_helper(ext);
                    }
                    Step::Load(load)
                }
                None => Step::Op(op),
            };
            program.uses_len |= matches!(op, Op::LdLen | Op::LdxLen);
            program.steps.push(step);
        }
        Ok(program)
    }

    /// Where control goes from `at`. At most two places.
    pub(super) fn successors(&self, at: usize) -> [Option<usize>; 2] {
        match self.steps[at] {
            Step::Op(Op::RetK(_) | Op::RetA) => [None, None],
            Step::Op(Op::Ja(k)) => [Some(at + 1 + k as usize), None],
            Step::Op(Op::Jump { jt, jf, .. }) => {
                let (t, f) = (at + 1 + jt as usize, at + 1 + jf as usize);
                [Some(t), (t != f).then_some(f)]
            }
            _ => [Some(at + 1), None],
        }
    }

    /// By instruction: how many bytes every packet has that gets a match from here on. `NEVER` where none gets one.
    ///
    /// `reach` is the first offset that a load can't get at.
    pub(super) fn needed(&self, reach: u32) -> Vec<u32> {
        let mut needed = vec![0; self.steps.len()];
        for at in (0..self.steps.len()).rev() {
            let after = self
                .successors(at)
                .into_iter()
                .flatten()
                .map(|next| needed[next])
                .min()
                .unwrap_or(0);
            needed[at] = match self.steps[at] {
                Step::Op(Op::RetK(0)) => NEVER,
                Step::Op(Op::Alu(Alu::Div | Alu::Mod, Src::K(0))) => NEVER,
                Step::Load(Load::Ind { offset, .. }) if offset > reach => NEVER,
                Step::Load(load) => match load.end() {
                    Some(end) if end > reach => NEVER,
                    Some(end) => after.max(end),
                    None => after,
                },
                Step::Op(_) => after,
            };
        }
        needed
    }

    /// By instruction: whether control gets there. Where `dead_end`, it goes no further.
    pub(super) fn reachable(&self, dead_end: impl Fn(usize) -> bool) -> Vec<bool> {
        let mut reachable = vec![false; self.steps.len()];
        reachable[0] = true;
        for at in 0..self.steps.len() {
            if reachable[at] && !dead_end(at) {
                for next in self.successors(at).into_iter().flatten() {
                    reachable[next] = true;
                }
            }
        }
        reachable
    }

    /// What is read before it is written, on some way from the start. Classic BPF starts with zeros.
    pub(super) fn read_first(&self) -> u32 {
        let mut live = vec![0; self.steps.len()];
        for at in (0..self.steps.len()).rev() {
            let after =
                self.successors(at).into_iter().flatten().fold(0, |after, next| after | live[next]);
            let (reads, writes) = self.steps[at].uses();
            live[at] = after & !writes | reads;
        }
        live[0]
    }
}

impl Step {
    /// What it reads and what it writes.
    fn uses(self) -> (u32, u32) {
        let operand = |src| if src == Src::X { X } else { 0 };
        match self {
            Self::Load(load) => load.uses(),
            Self::Op(op) => match op {
                Op::LdLen | Op::LdImm(_) | Op::LdAbs(..) => (0, A),
                Op::LdInd(..) => (X, A),
                Op::LdMem(k) => (word(k), A),
                Op::LdxLen | Op::LdxImm(_) | Op::LdxMsh(_) => (0, X),
                Op::LdxMem(k) => (word(k), X),
                Op::St(k) => (A, word(k)),
                Op::Stx(k) => (X, word(k)),
                Op::Alu(_, src) => (A | operand(src), A),
                Op::Neg => (A, A),
                Op::Ja(_) | Op::RetK(_) => (0, 0),
                Op::Jump { src, .. } => (A | operand(src), 0),
                Op::RetA => (A, 0),
                Op::Tax => (A, X),
                Op::Txa => (X, A),
            },
        }
    }
}

/// Every way has to end in a return.
fn check_jump(at: usize, last: usize, op: Op) -> Result<(), Refused> {
    let room = last - at;
    match op {
        // A negative distance: libpcap's `protochain` is a loop.
        Op::Ja(k) if (k as i32) < 0 => Err(Refused::Backward { at }),
        Op::Ja(k) if k as usize >= room => Err(Refused::OffTheEnd { at }),
        Op::Jump { jt, jf, .. } if usize::from(jt.max(jf)) >= room => {
            Err(Refused::OffTheEnd { at })
        }
        Op::RetK(_) | Op::RetA => Ok(()),
        _ if room == 0 => Err(Refused::OffTheEnd { at }),
        _ => Ok(()),
    }
}
