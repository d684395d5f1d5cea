// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs in the mnemonics of ubpf and bpf_conformance.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::insn::{Insn, X, alu, atomic, class, jmp, mode, pseudo, size};
use super::names::{ALU, ATOMICS, JUMPS, PSEUDO, SIZES, name};
use crate::filter::classic::check::Invalid;

/// Assembly that [`super::asm::assemble`] makes the same bytes of. Refuses what the syntax cannot say: no code, and
/// something in a field that the instruction doesn't use.
pub(crate) fn assembly(program: &[Insn]) -> Result<String, Invalid> {
    let mut labels = BTreeSet::new();
    let mut lines = Vec::new();
    let mut at = 0;
    while at < program.len() {
        let insn = program[at];
        let target = |by: i64| {
            usize::try_from(at as i64 + 1 + by).ok().filter(|&target| target < program.len())
        };
        let mut label = |by: i64| match target(by) {
            Some(target) => {
                labels.insert(target);
                format!("L{target}")
            }
            None => format!("{by:+}"),
        };
        let invalid = |why: String| Invalid { at: Some(at), why };
        let line = if insn.is_wide() {
            let second = program
                .get(at + 1)
                .ok_or_else(|| invalid("lddw without its second half".into()))?;
            wide(insn, *second).map_err(invalid)?
        } else {
            line(insn, &mut label).map_err(invalid)?
        };
        lines.push((at, line));
        at += if insn.is_wide() { 2 } else { 1 };
    }
    // A jump into the middle of lddw has no line to land on.
    let starts: BTreeSet<usize> = lines.iter().map(|(at, _)| *at).collect();
    if let Some(lost) = labels.difference(&starts).next() {
        let why = "is the second half of lddw, and a jump leads here".into();
        return Err(Invalid { at: Some(*lost), why });
    }
    let mut text = String::new();
    for (at, line) in lines {
        if labels.contains(&at) {
            let _ = writeln!(text, "L{at}:");
        }
        let _ = writeln!(text, "    {line}");
    }
    Ok(text)
}

fn immediate(imm: i32) -> String {
    if imm < 0 { imm.to_string() } else { format!("{imm:#x}") }
}

fn place(register: u8, off: i16) -> String {
    if off == 0 { format!("[%r{register}]") } else { format!("[%r{register}{off:+}]") }
}

fn wide(insn: Insn, second: Insn) -> Result<String, String> {
    used(insn, "dsi")?;
    if second != Insn::new(0, 0, 0, 0, second.imm) {
        return Err("the second half of lddw has more than a value".into());
    }
    if insn.src == 0 {
        let value = u64::from(insn.imm as u32) | u64::from(second.imm as u32) << 32;
        return Ok(format!("lddw %r{}, {value:#x}", insn.dst));
    }
    let kind = name(PSEUDO, insn.src).ok_or_else(|| unknown(insn))?;
    let offset = if second.imm == 0 { String::new() } else { format!(", {}", second.imm) };
    Ok(format!("lddw %r{}, {kind}({}{offset})", insn.dst, insn.imm))
}

fn unknown(insn: Insn) -> String {
    format!("there is no instruction of code {:#04x}", insn.code)
        + if insn.src > 0 || insn.off != 0 { " with these fields" } else { "" }
}

/// Checks that only the fields named (dst, src, off, imm by their first letters) are used, and registers exist.
fn used(insn: Insn, fields: &str) -> Result<(), String> {
    for (field, letter, value) in [
        ("dst", 'd', i64::from(insn.dst)),
        ("src", 's', i64::from(insn.src)),
        ("off", 'o', i64::from(insn.off)),
        ("imm", 'i', i64::from(insn.imm)),
    ] {
        if value != 0 && !fields.contains(letter) {
            return Err(format!("has {value:#x} in {field}, which it does not use"));
        }
    }
    match [insn.dst, insn.src].iter().find(|&&register| register > 10) {
        Some(register) => Err(format!("there is no register %r{register}")),
        None => Ok(()),
    }
}

fn line(insn: Insn, label: &mut impl FnMut(i64) -> String) -> Result<String, String> {
    match insn.class() {
        class::ALU | class::ALU64 => arithmetic(insn),
        class::JMP | class::JMP32 => jump(insn, label),
        _ => memory(insn),
    }
}

fn arithmetic(insn: Insn) -> Result<String, String> {
    let Insn { dst, src, off, imm, .. } = insn;
    let narrow = insn.class() == class::ALU;
    let width = if narrow { "32" } else { "" };
    let register = insn.code & X != 0;
    match insn.op() {
        alu::END => {
            used(insn, "di")?;
            let order = match (narrow, register) {
                (true, false) => "le",
                (true, true) => "be",
                (false, false) => "bswap",
                (false, true) => return Err(unknown(insn)),
            };
            return match imm {
                16 | 32 | 64 => Ok(format!("{order}{imm} %r{dst}")),
                _ => Err(format!("{order} of {imm} bits; expected 16, 32 or 64")),
            };
        }
        alu::NEG if !register => {
            used(insn, "d")?;
            return Ok(format!("neg{width} %r{dst}"));
        }
        alu::MOV if register && off != 0 => {
            used(insn, "dso")?;
            let bits = if narrow { 32 } else { 64 };
            return match (off, bits) {
                (8 | 16, _) | (32, 64) => Ok(format!("movsx{off}{bits} %r{dst}, %r{src}")),
                _ => Err(unknown(insn)),
            };
        }
        _ => {}
    }
    let signed = match (insn.op(), off) {
        (alu::DIV | alu::MOD, 1) => "s",
        (_, 0) => "",
        _ => return Err(unknown(insn)),
    };
    let name = name(ALU, insn.op()).ok_or_else(|| unknown(insn))?;
    used(insn, if register { "dso" } else { "doi" })?;
    let operand = if register { format!("%r{src}") } else { immediate(imm) };
    Ok(format!("{signed}{name}{width} %r{dst}, {operand}"))
}

fn jump(insn: Insn, label: &mut impl FnMut(i64) -> String) -> Result<String, String> {
    let Insn { code, dst, src, off, imm } = insn;
    const JA: u8 = class::JMP | jmp::JA;
    const JA32: u8 = class::JMP32 | jmp::JA;
    const CALL: u8 = class::JMP | jmp::CALL;
    const CALLX: u8 = class::JMP | jmp::CALL | X;
    const EXIT: u8 = class::JMP | jmp::EXIT;
    match code {
        JA => {
            used(insn, "o")?;
            return Ok(format!("ja {}", label(off.into())));
        }
        JA32 => {
            used(insn, "i")?;
            return Ok(format!("ja32 {}", label(imm.into())));
        }
        CALL => {
            used(insn, "si")?;
            return match src {
                0 => Ok(format!("call {}", immediate(imm))),
                pseudo::CALL => Ok(format!("call local {}", label(imm.into()))),
                pseudo::KFUNC_CALL => Ok(format!("call runtime {}", immediate(imm))),
                _ => Err(unknown(insn)),
            };
        }
        CALLX => {
            used(insn, "d")?;
            return Ok(format!("callx %r{dst}"));
        }
        EXIT => {
            used(insn, "")?;
            return Ok("exit".into());
        }
        _ => {}
    }
    let name = name(JUMPS, insn.op()).ok_or_else(|| unknown(insn))?;
    let width = if insn.class() == class::JMP32 { "32" } else { "" };
    let register = code & X != 0;
    used(insn, if register { "dso" } else { "doi" })?;
    let operand = if register { format!("%r{src}") } else { immediate(imm) };
    Ok(format!("{name}{width} %r{dst}, {operand}, {}", label(off.into())))
}

fn memory(insn: Insn) -> Result<String, String> {
    let Insn { code, dst, src, off, imm } = insn;
    let (width, mode) = (code & 0x18, code & 0xe0);
    let letter = name(SIZES, width).ok_or_else(|| unknown(insn))?;
    let narrow = width != size::DW;
    match (insn.class(), mode) {
        (class::LD, mode::ABS) if narrow => {
            used(insn, "i")?;
            Ok(format!("ldabs{letter} {}", immediate(imm)))
        }
        (class::LD, mode::IND) if narrow => {
            used(insn, "si")?;
            Ok(format!("ldind{letter} %r{src}, {}", immediate(imm)))
        }
        (class::LDX, mode::MEM) => {
            used(insn, "dso")?;
            Ok(format!("ldx{letter} %r{dst}, {}", place(src, off)))
        }
        (class::LDX, mode::MEMSX) if narrow => {
            used(insn, "dso")?;
            Ok(format!("ldxs{letter} %r{dst}, {}", place(src, off)))
        }
        (class::ST, mode::MEM) => {
            used(insn, "doi")?;
            Ok(format!("st{letter} {}, {}", place(dst, off), immediate(imm)))
        }
        (class::STX, mode::MEM) => {
            used(insn, "dso")?;
            Ok(format!("stx{letter} {}, %r{src}", place(dst, off)))
        }
        (class::STX, mode::ATOMIC) if matches!(width, size::W | size::DW) => {
            used(insn, "dsoi")?;
            let bits = if width == size::W { "32" } else { "" };
            let op = match imm {
                atomic::XCHG => "xchg".to_string() + bits,
                atomic::CMPXCHG => "cmpxchg".to_string() + bits,
                _ => {
                    let fetch = if imm & atomic::FETCH != 0 { "fetch " } else { "" };
                    let op = name(ATOMICS, imm & !atomic::FETCH).ok_or_else(|| unknown(insn))?;
                    format!("{fetch}{op}{bits}")
                }
            };
            Ok(format!("lock {op} {}, %r{src}", place(dst, off)))
        }
        _ => Err(unknown(insn)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::asm::assemble;
    use super::*;

    /// Every instruction that there is, in the spelling of the output.
    const ALL: &str = "mov %r0, 0x1
add32 %r9, -5
arsh %r1, %r10
sdiv32 %r1, %r2
smod %r1, 0x3
neg %r3
neg32 %r4
le16 %r0
be64 %r1
bswap32 %r2
movsx832 %r0, %r1
movsx3264 %r0, %r1
lddw %r1, 0x123456789abcdef0
lddw %r2, map_fd(5)
lddw %r2, map_value(5, 8)
ldxb %r1, [%r2]
ldxdw %r1, [%r2+4]
ldxsh %r1, [%r10-8]
stw [%r10-4], 0x7f
stxh [%r1+32767], %r2
lock add [%r10-8], %r1
lock fetch or32 [%r10-8], %r1
lock cmpxchg [%r1], %r2
lock xchg32 [%r1], %r2
ldabsh 0xc
ldindb %r6, -1
jeq %r1, 0x5, L0
jset32 %r1, %r2, L0
jsle %r1, -1, -32768
ja L0
ja32 L0
call 0x6
call local L0
call runtime 0x7
callx %r5
exit
";

    #[test]
    fn every_instruction_both_ways() {
        let program = assemble(&format!("L0: {ALL}")).unwrap();
        let text = assembly(&program).unwrap();
        let lines: String =
            text.lines().skip(1).map(|line| line.trim().to_string() + "\n").collect();
        assert_eq!(lines, ALL);
        assert!(text.starts_with("L0:\n"));
        assert_eq!(assemble(&text).unwrap(), program);
    }

    #[test]
    fn other_spellings() {
        for (text, same) in [
            ("add r1, r2", "add %r1, %r2"),
            ("MOV %R0, 10; exit", "mov %r0, 0xa\nexit"),
            ("swap16 %r1", "bswap16 %r1"),
            ("call helper 6", "call 6"),
            ("0: ldxw %r1, [%r2+0x10] # comment\n1: exit", "ldxw %r1, [%r2+16]\nexit"),
            ("jne %r1, 0, exit\nmov %r0, 1\nexit: exit", "jne %r1, 0, +1\nmov %r0, 1\nexit"),
            ("jne %r1, 0, exit\nmov %r0, 1\nexit\nexit", "jne %r1, 0, +1\nmov %r0, 1\nexit\nexit"),
            ("exit\nja exit", "exit\nja -2"),
            ("ja exit\nexit: mov %r0, 1\nexit", "ja +0\nmov %r0, 1\nexit"),
            ("call %r2", "callx %r2"),
            ("call helper r2", "callx %r2"),
            ("lddw %r1, -1", "lddw %r1, 0xffffffffffffffff"),
            ("mov %r1, 0xffffffff", "mov %r1, -1"),
        ] {
            assert_eq!(assemble(text).unwrap(), assemble(same).unwrap(), "{text}");
        }
    }

    #[test]
    fn errors_name_the_place_and_what_is_expected() {
        for (text, place, part) in [
            ("", (1, 1), "an instruction such as mov"),
            ("mov %r0 1", (1, 9), "`,`"),
            ("exit\n  mvo %r0, 1", (2, 3), "`mvo` where an instruction"),
            ("mov %r11, 1", (1, 5), "`%` where a register"),
            ("mov %r0, %r1, %r2", (1, 13), "an instruction"),
            ("ldxw %r1, [%r2", (1, 15), "`+`, `-` or `]`"),
            ("ldxw %r1, [%r2+32768]", (1, 15), "out of range"),
            ("ldxw %r1, [%r2 8]", (1, 16), "`+`, `-` or `]`"),
            ("jeq %r1, 1, nowhere", (1, 13), "no label `nowhere`"),
            ("ja", (1, 3), "a label"),
            ("lddw %r1, 0x10000000000000000", (1, 11), "no number"),
            ("lock nand [%r1], %r2", (1, 6), "add, or"),
            ("mov32 %r1, 4294967296", (1, 12), "out of range"),
            ("a: a: exit", (1, 4), "second time"),
            ("ja exit", (1, 4), "no label `exit`"),
            ("call %r11", (1, 6), "a number, a register"),
            ("ldabsdw 1", (1, 1), "an instruction"),
        ] {
            let error = assemble(text).unwrap_err();
            assert_eq!((error.line, error.column), place, "{text}: {error}");
            assert!(error.message.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_the_syntax_cannot_say_is_refused() {
        for (insn, part) in [
            (Insn::new(0xb7, 0, 1, 0, 0), "0x1 in src"),
            (Insn::new(0xb7, 0, 0, 1, 0), "code 0xb7"),
            (Insn::new(0x95, 0, 0, 0, 1), "0x1 in imm"),
            (Insn::new(0xbf, 11, 0, 0, 0), "no register %r11"),
            (Insn::new(0xff, 0, 0, 0, 0), "code 0xff"),
            (Insn::new(0x18, 0, 0, 0, 0), "second half"),
            (Insn::new(0xdc, 0, 0, 0, 17), "17 bits"),
            (Insn::new(0xdb, 0, 0, 0, 2), "code 0xdb"),
            (Insn::new(0x18, 0, 9, 0, 0), "second half"),
        ] {
            let error = assembly(&[insn]).unwrap_err().to_string();
            assert!(error.starts_with("instruction 0: ") && error.contains(part), "{error}");
        }
    }
}
