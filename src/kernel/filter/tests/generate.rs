// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random classic programs that the kernel takes: all arithmetic, scratch memory, indirect loads, all jumps, and numbers at
//! which something is likely to be wrong.

use fastrand::Rng;

use crate::filter::classic::check::check;
use crate::filter::classic::insn::*;

const ODD: [u32; 19] = [
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    33,
    255,
    256,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xffff_fffe,
    0xffff_ffff,
];

fn number(rng: &mut Rng) -> u32 {
    match rng.u8(0..4) {
        0 => ODD[rng.usize(0..ODD.len())],
        1 => rng.u32(0..64),
        2 => rng.u32(..) >> rng.u32(0..32),
        _ => *rng.choice(&[0x800, 0x806, 0x86dd, 0x8100, 6, 17, 80, 53, 0x0a00_0001]).unwrap(),
    }
}

/// Mostly where a packet has bytes.
fn offset(rng: &mut Rng) -> u32 {
    match rng.u8(0..40) {
        0 => ODD[rng.usize(0..ODD.len())] & 0x7fff_ffff,
        1 => rng.u32(0..2000),
        2..12 => *rng.choice(&[0, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 23, 26, 30]).unwrap(),
        _ => rng.u32(0..40),
    }
}

fn statement(rng: &mut Rng) -> Insn {
    let size = *rng.choice(&[BPF_W, BPF_H, BPF_B]).unwrap();
    match rng.u8(0..24) {
        0..5 => Insn::stmt(BPF_LD | BPF_ABS | size, offset(rng)),
        5..8 => Insn::stmt(BPF_LD | BPF_IND | size, offset(rng)),
        // What expressions such as `ip[ip[8] - 1]` make.
        8 => Insn::stmt(BPF_LD | BPF_IND | size, rng.u32(0xffff_fff0..=u32::MAX)),
        9 => Insn::stmt(BPF_LD | BPF_IMM, number(rng)),
        10 => Insn::stmt(BPF_LDX | BPF_IMM, if rng.bool() { rng.u32(0..64) } else { number(rng) }),
        11 => Insn::stmt(BPF_LDX | BPF_B | BPF_MSH, offset(rng)),
        12 => Insn::stmt(if rng.bool() { BPF_LD } else { BPF_LDX } | BPF_W | BPF_LEN, 0),
        13 => Insn::stmt(if rng.bool() { BPF_LD } else { BPF_LDX } | BPF_MEM, rng.u32(0..16)),
        14 => Insn::stmt(if rng.bool() { BPF_ST } else { BPF_STX }, rng.u32(0..16)),
        15..17 => Insn::stmt(BPF_MISC | if rng.bool() { BPF_TAX } else { BPF_TXA }, 0),
        17 => Insn::stmt(BPF_ALU | BPF_NEG, 0),
        18 => {
            Insn::stmt(BPF_ALU | BPF_AND | BPF_K, *rng.choice(&[1, 0xf, 0x1f, 0x3f, 0xff]).unwrap())
        }
        _ => {
            let operation = *rng
                .choice(&[
                    BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_MOD, BPF_OR, BPF_AND, BPF_XOR, BPF_LSH,
                    BPF_RSH,
                ])
                .unwrap();
            if rng.bool() {
                return Insn::stmt(BPF_ALU | operation | BPF_X, 0);
            }
            let k = match operation {
                BPF_LSH | BPF_RSH => rng.u32(0..32),
                BPF_DIV | BPF_MOD => number(rng).max(1),
                _ => number(rng),
            };
            Insn::stmt(BPF_ALU | operation | BPF_K, k)
        }
    }
}

/// How far from `at`, in a program of `length` instructions. Mostly near: far jumps skip what is to be tested.
fn distance(rng: &mut Rng, at: usize, length: usize) -> u8 {
    let most = (length - at - 2).min(255);
    let near = if rng.u8(0..4) == 0 { most } else { most.min(3) };
    rng.usize(0..=near) as u8
}

pub(super) fn program(rng: &mut Rng) -> Vec<Insn> {
    loop {
        let program = attempt(rng);
        if check(&program).is_ok() {
            return program;
        }
    }
}

fn attempt(rng: &mut Rng) -> Vec<Insn> {
    let length = match rng.u8(0..20) {
        0 => rng.usize(2..6),
        1 => rng.usize(200..600),
        _ => rng.usize(4..40),
    };
    let mut insns: Vec<Insn> = Vec::new();
    // With all words written, every read is allowed.
    let mut written = [false; BPF_MEMWORDS];
    if rng.u8(0..3) == 0 {
        for n in 0..BPF_MEMWORDS as u32 {
            insns.push(Insn::stmt(BPF_LD | BPF_IMM, number(rng)));
            insns.push(Insn::stmt(BPF_ST, n));
        }
        written = [true; BPF_MEMWORDS];
    }
    let length = length + insns.len();
    while insns.len() + 1 < length {
        let at = insns.len();
        let insn = match rng.u8(0..12) {
            0..3 => {
                let cond = *rng.choice(&[BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET]).unwrap();
                let operand = if rng.u8(0..3) == 0 { BPF_X } else { BPF_K };
                let k = if operand == BPF_X { 0 } else { number(rng) };
                let (jt, jf) = (distance(rng, at, length), distance(rng, at, length));
                Insn::new(BPF_JMP | cond | operand, jt, jf, k)
            }
            3 if rng.u8(0..4) == 0 => {
                Insn::stmt(BPF_JMP | BPF_JA, u32::from(distance(rng, at, length)))
            }
            // Behind a conditional jump, so that something follows.
            4 if rng.bool()
                && at > 0
                && insns[at - 1].class() == BPF_JMP
                && insns[at - 1].jf > 0 =>
            {
                ending(rng)
            }
            _ => statement(rng),
        };
        // The start is always gone through.
        match insn.decode() {
            Some(Op::LdMem(k) | Op::LdxMem(k)) if !written[k as usize] => continue,
            Some(Op::St(k) | Op::Stx(k))
                if insns.iter().all(|i| !matches!(i.class(), BPF_JMP | BPF_RET)) =>
            {
                written[k as usize] = true;
            }
            _ => {}
        }
        insns.push(insn);
    }
    insns.push(ending(rng));
    insns
}

fn ending(rng: &mut Rng) -> Insn {
    match rng.u8(0..5) {
        0 => Insn::stmt(BPF_RET | BPF_K, 0),
        1 => Insn::stmt(BPF_RET | BPF_K, number(rng)),
        _ => Insn::stmt(BPF_RET | BPF_A, 0),
    }
}
