// SPDX-License-Identifier: MIT OR Apache-2.0

use super::*;
use crate::random::{rounds, seeded};

const EXIT: Insn = Insn::new(class::JMP | jmp::EXIT, 0, 0, 0, 0);
/// The descriptor of the one map of constants, and what is in it.
const MAP: i32 = 7;
const CONSTANTS: [u8; 16] = [1, 0, 2, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 0, 0, 0x80];

fn constant(map: i32, offset: i32, size: usize) -> Option<u64> {
    let at = usize::try_from(offset).ok()?;
    let bytes = (map == MAP).then(|| CONSTANTS.get(at..at + size)).flatten()?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

fn mov(dst: u8, imm: i32) -> Insn {
    Insn::new(class::ALU64 | alu::MOV | K, dst, 0, 0, imm)
}

fn number(dst: u8, imm: i32) -> Insn {
    Insn::new(class::ALU | alu::MOV | K, dst, 0, 0, imm)
}

fn place(dst: u8, map: i32, offset: i32) -> [Insn; 2] {
    [Insn::new(0x18, dst, pseudo::MAP_VALUE, 0, map), Insn::new(0, 0, 0, 0, offset)]
}

fn load(dst: u8, src: u8, size: u8, off: i16) -> Insn {
    Insn::new(class::LDX | size | mode::MEM, dst, src, off, 0)
}

fn branch(op: u8, dst: u8, off: i16, imm: i32) -> Insn {
    Insn::new(class::JMP | op | K, dst, 0, off, imm)
}

fn call(distance: i32) -> Insn {
    Insn::new(class::JMP | jmp::CALL, 0, pseudo::CALL, 0, distance)
}

fn folded(insns: &[&[Insn]], functions: &[u32], lines: &[u32]) -> Loadable {
    let mut loadable = Loadable {
        insns: insns.concat(),
        functions: functions.iter().map(|&at| [at, 100 + at]).collect(),
        lines: lines.iter().map(|&at| [at, 1, 1, at]).collect(),
    };
    loadable.fold(constant);
    loadable
}

#[test]
fn what_a_constant_decides_goes() {
    // if (constant) r0 = f(r1); else r0 = g(r1);
    let program = folded(
        &[
            &place(7, MAP, 0),
            &[load(8, 7, size::B, 2), branch(jmp::JNE, 8, 2, 2), call(3), EXIT],
            &[call(3), EXIT],
            &[mov(0, 1), EXIT],
            &[mov(0, 2), EXIT],
        ],
        &[0, 8, 10],
        &[0, 2, 3, 4, 6, 8, 9, 10, 11],
    );
    assert_eq!(program.insns, [call(1), EXIT, number(0, 1), EXIT]);
    assert_eq!(program.functions, [[0, 100], [2, 108]]);
    // The last of those that were before the call is the call's.
    assert_eq!(program.lines, [[0, 1, 1, 4], [2, 1, 1, 8], [3, 1, 1, 9]]);
}

#[test]
fn a_function_that_nobody_calls_goes_though_it_has_a_loop() {
    let program = folded(
        &[
            &place(7, MAP, 0),
            &[load(8, 7, size::B, 1), branch(jmp::JEQ, 8, 1, 0), call(2), number(0, 5), EXIT],
            &[branch(jmp::JEQ, 1, -1, 0), mov(0, 1), EXIT],
        ],
        &[0, 7],
        &[0, 4, 5, 7],
    );
    assert_eq!(program.insns, [number(0, 5), EXIT]);
    assert_eq!(program.functions, [[0, 100]]);
    assert_eq!(program.lines, [[0, 1, 1, 5]]);
}

#[test]
fn what_may_change_stays() {
    for insns in [
        // Of a map that can be written to, or behind its end.
        [&place(2, MAP + 1, 0)[..], &[load(0, 2, size::W, 0), EXIT]].concat(),
        [&place(2, MAP, 16)[..], &[load(0, 2, size::W, 0), EXIT]].concat(),
        // More than a number of 32 bits.
        [&place(2, MAP, 8)[..], &[load(0, 2, size::DW, 0), EXIT]].concat(),
        // A register that a loop changes.
        vec![
            number(0, 0),
            Insn::new(class::ALU64 | K, 0, 0, 0, 1),
            branch(jmp::JLT, 0, -2, 9),
            EXIT,
        ],
        // What a call brings.
        vec![
            mov(1, 3),
            Insn::new(class::JMP | jmp::CALL, 0, 0, 0, 6),
            branch(jmp::JEQ, 0, -2, 0),
            EXIT,
        ],
    ] {
        let program = folded(&[&insns], &[0], &[0]);
        let same = |insn: &Insn| Insn { code: insn.code | 0x03, ..*insn };
        assert_eq!(
            program.insns.iter().map(same).collect::<Vec<_>>(),
            insns.iter().map(same).collect::<Vec<_>>()
        );
    }
}

#[test]
fn what_a_call_does_not_read_goes() {
    // map_lookup_elem has two arguments.
    let lookup = Insn::new(class::JMP | jmp::CALL, 0, 0, 0, 1);
    let program = folded(&[&[mov(1, 1), mov(2, 2), mov(3, 3), lookup, EXIT]], &[0], &[0]);
    assert_eq!(program.insns, [number(1, 1), number(2, 2), lookup, EXIT]);
}

#[test]
fn a_jump_to_a_jump_goes_to_its_end() {
    let program = folded(
        &[&[
            branch(jmp::JEQ, 1, 2, 0),
            number(0, 1),
            EXIT,
            branch(jmp::JA, 0, 1, 0),
            EXIT,
            number(0, 3),
            EXIT,
        ]],
        &[0],
        &[0, 3],
    );
    assert_eq!(program.insns, [branch(jmp::JEQ, 1, 2, 0), number(0, 1), EXIT, number(0, 3), EXIT]);
}

/// What r0 is at the end. Memory is the map of constants only.
fn run(insns: &[Insn], at: usize, registers: &mut [u64; REGISTERS], steps: &mut usize) -> u64 {
    let mut at = at;
    loop {
        *steps += 1;
        let insn = insns[at];
        let (dst, src) = (usize::from(insn.dst), usize::from(insn.src));
        let imm = i64::from(insn.imm) as u64;
        let second = if insn.code & X == X { registers[src] } else { imm };
        at += 1;
        match insn.class() {
            class::LD => {
                let high = insns[at].imm as u32;
                registers[dst] = match insn.src {
                    0 => u64::from(high) << 32 | u64::from(insn.imm as u32),
                    _ => u64::from(high),
                };
                at += 1;
            }
            class::LDX => {
                let offset = registers[src] as i32 + i32::from(insn.off);
                registers[dst] = constant(MAP, offset, bytes(insn)).unwrap();
            }
            class::ALU | class::ALU64 => {
                let wide = insn.class() == class::ALU64;
                let (mask, bits) = if wide { (u64::MAX, 64) } else { (u64::from(u32::MAX), 32) };
                let (one, two) = (registers[dst] & mask, second & mask);
                let shift = (two % bits) as u32;
                let result = match insn.op() {
                    alu::ADD => one.wrapping_add(two),
                    alu::SUB => one.wrapping_sub(two),
                    alu::MUL => one.wrapping_mul(two),
                    alu::DIV => one.checked_div(two).unwrap_or(0),
                    alu::MOD => one.checked_rem(two).unwrap_or(one),
                    alu::OR => one | two,
                    alu::AND => one & two,
                    alu::XOR => one ^ two,
                    alu::LSH => one << shift,
                    alu::RSH => one >> shift,
                    alu::ARSH if wide => (one as i64 >> shift) as u64,
                    alu::ARSH => (one as i32 >> shift) as u32 as u64,
                    alu::NEG => one.wrapping_neg(),
                    alu::MOV => two,
                    op => panic!("operation {op:#x}"),
                };
                registers[dst] = result & mask;
            }
            _ if insn.is_exit() => return registers[0],
            _ if insn.is_call() => {
                let saved = *registers;
                let result =
                    run(insns, (at as i64 + i64::from(insn.imm)) as usize, registers, steps);
                *registers = saved;
                registers[..6].fill(0xdead);
                registers[0] = result;
            }
            kind => {
                let (one, two) = match kind {
                    class::JMP => (registers[dst], second),
                    _ => (registers[dst] & 0xffff_ffff, second & 0xffff_ffff),
                };
                let signed = match kind {
                    class::JMP => (one as i64, two as i64),
                    _ => (i64::from(one as i32), i64::from(two as i32)),
                };
                let taken = match insn.op() {
                    jmp::JA => true,
                    jmp::JEQ => one == two,
                    jmp::JNE => one != two,
                    jmp::JGT => one > two,
                    jmp::JGE => one >= two,
                    jmp::JLT => one < two,
                    jmp::JLE => one <= two,
                    jmp::JSET => one & two != 0,
                    jmp::JSGT => signed.0 > signed.1,
                    jmp::JSGE => signed.0 >= signed.1,
                    jmp::JSLT => signed.0 < signed.1,
                    jmp::JSLE => signed.0 <= signed.1,
                    op => panic!("jump {op:#x}"),
                };
                if taken {
                    at = (at as i64 + i64::from(insn.off)) as usize;
                }
            }
        }
    }
}

/// A function that only jumps ahead, and to the beginnings of instructions.
fn function(rng: &mut fastrand::Rng, callees: &[i32], begin: i32) -> Vec<Insn> {
    const OPS: [u8; 14] = [
        alu::ADD,
        alu::SUB,
        alu::MUL,
        alu::DIV,
        alu::OR,
        alu::AND,
        alu::LSH,
        alu::RSH,
        alu::NEG,
        alu::MOD,
        alu::XOR,
        alu::MOV,
        alu::MOV,
        alu::ARSH,
    ];
    const JUMPS: [u8; 12] = [
        jmp::JA,
        jmp::JEQ,
        jmp::JGT,
        jmp::JGE,
        jmp::JSET,
        jmp::JNE,
        jmp::JSGT,
        jmp::JSGE,
        jmp::JLT,
        jmp::JLE,
        jmp::JSLT,
        jmp::JSLE,
    ];
    const NUMBERS: [i32; 8] = [0, 1, 2, 31, 0xffff, i32::MAX, i32::MIN, -1];
    // What a function returns it has to write: the verifier sees to that.
    let mut insns = vec![mov(0, 0)];
    let mut jumps = Vec::new();
    let mut begins = Vec::new();
    for _ in 0..rng.usize(1..40) {
        begins.push(insns.len());
        let (dst, src) = (rng.u8(0..6), rng.u8(0..6));
        let imm = NUMBERS[rng.usize(..NUMBERS.len())];
        let source = if rng.bool() { X } else { K };
        match rng.u8(0..8) {
            0 => insns
                .extend([Insn::new(0x18, dst, 0, 0, imm), Insn::new(0, 0, 0, 0, rng.i32(-1..2))]),
            1 | 2 => {
                let size = [size::B, size::H, size::W, size::DW][rng.usize(..4)];
                insns.extend(place(dst, MAP, rng.i32(0..5)));
                insns.push(load(src, dst, size, rng.i16(0..4)));
                // What is left of the address is no number that could be compared.
                insns.push(mov(dst, 4));
            }
            3 if !callees.is_empty() => {
                let callee = callees[rng.usize(..callees.len())];
                insns.push(call(callee - (begin + insns.len() as i32) - 1));
            }
            3..=5 => {
                let op = OPS[rng.usize(..OPS.len())];
                let source = if op == alu::NEG { K } else { source };
                let kind = if rng.bool() { class::ALU } else { class::ALU64 };
                let imm = if op & 0xf0 == alu::NEG { 0 } else { imm };
                let src = if source == X { src } else { 0 };
                insns.push(Insn::new(
                    kind | op | source,
                    dst,
                    src,
                    0,
                    if source == X { 0 } else { imm },
                ));
            }
            _ => {
                let op = JUMPS[rng.usize(..JUMPS.len())];
                let (kind, source) = match op {
                    jmp::JA => (class::JMP, K),
                    _ => (if rng.bool() { class::JMP } else { class::JMP32 }, source),
                };
                let src = if source == X { src } else { 0 };
                jumps.push(insns.len());
                insns.push(Insn::new(
                    kind | op | source,
                    dst,
                    src,
                    0,
                    if source == X { 0 } else { imm },
                ));
            }
        }
    }
    begins.push(insns.len());
    insns.push(EXIT);
    for at in jumps {
        let ahead: Vec<usize> = begins.iter().copied().filter(|&begin| begin > at).collect();
        insns[at].off = (ahead[rng.usize(..ahead.len())] - at - 1) as i16;
    }
    insns
}

#[test]
fn fuzz_folded_programs_give_the_same() {
    let mut rng = seeded();
    let (mut before, mut after) = (0, 0);
    for _ in 0..rounds(5_000) {
        // Lengths first: main calls what is behind it.
        let last = function(&mut rng, &[], 0);
        let seed = rng.u64(..);
        let length = function(&mut fastrand::Rng::with_seed(seed), &[0], 0).len() as i32;
        let main = function(&mut fastrand::Rng::with_seed(seed), &[length], 0);
        let insns = [main, last].concat();
        let mut loadable = Loadable {
            insns: insns.clone(),
            functions: vec![[0, 1], [length as u32, 2]],
            lines: vec![],
        };
        loadable.fold(constant);
        assert!(loadable.insns.len() <= insns.len());
        let calls = (0..loadable.insns.len()).any(|at| loadable.callee(at).is_some());
        assert_eq!(loadable.functions.len(), 1 + usize::from(calls), "{insns:?}");
        for _ in 0..4 {
            let registers: [u64; REGISTERS] =
                std::array::from_fn(|_| if rng.bool() { rng.u64(..4) } else { rng.u64(..) });
            let expected = run(&insns, 0, &mut registers.clone(), &mut before);
            let result = run(&loadable.insns, 0, &mut registers.clone(), &mut after);
            assert_eq!(result, expected, "{insns:?}\n{:?}", loadable.insns);
        }
    }
    // It is worth it.
    println!("{before} steps before, {after} after");
    assert!(after * 10 < before * 9);
}
