// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs as bpftool and the kernel's verifier print them, for people; and as C.

use std::fmt::Write;

use super::insn::{Insn, X, alu, atomic, class, jmp, mode, pseudo, size};
use super::names::{PSEUDO, name};

/// A listing: the number of the instruction, its code in hexadecimal, and what it does.
pub(crate) fn listing(program: &[Insn]) -> String {
    let mut text = String::new();
    let mut at = 0;
    while at < program.len() {
        let insn = program[at];
        let what = match program.get(at + 1) {
            Some(second) if insn.is_wide() => wide(insn, *second),
            _ => line(insn),
        };
        let _ = writeln!(text, "{at:4}: ({:02x}) {what}", insn.code);
        at += if insn.is_wide() { 2 } else { 1 };
    }
    text
}

/// Initialisers of an array of struct bpf_insn.
pub(crate) fn c_array(program: &[Insn]) -> String {
    let mut text = String::new();
    for Insn { code, dst, src, off, imm } in program {
        let _ = writeln!(
            text,
            "{{ .code = 0x{code:02x}, .dst_reg = {dst}, .src_reg = {src}, .off = {off}, .imm = {imm} }},"
        );
    }
    text
}

fn wide(insn: Insn, second: Insn) -> String {
    let Insn { dst, src, imm, .. } = insn;
    match (src, name(PSEUDO, src)) {
        (pseudo::MAP_FD, _) => format!("r{dst} = map[fd:{imm}]"),
        (pseudo::MAP_VALUE, _) => format!("r{dst} = map[fd:{imm}][0]+{}", second.imm),
        (0, _) | (_, None) => {
            let value = u64::from(imm as u32) | u64::from(second.imm as u32) << 32;
            format!("r{dst} = {value:#x}")
        }
        (_, Some(kind)) => format!("r{dst} = {kind}[{imm}]+{}", second.imm),
    }
}

fn line(insn: Insn) -> String {
    let known = match insn.class() {
        class::ALU | class::ALU64 => arithmetic(insn),
        class::JMP | class::JMP32 => jump(insn),
        _ => memory(insn),
    };
    known.unwrap_or_else(|| format!("BUG_{:02x}", insn.code))
}

fn arithmetic(insn: Insn) -> Option<String> {
    let Insn { dst, src, off, imm, .. } = insn;
    let narrow = insn.class() == class::ALU;
    let r = if narrow { 'w' } else { 'r' };
    let register = insn.code & X != 0;
    let operand = if register { format!("{r}{src}") } else { imm.to_string() };
    let sign = match insn.op() {
        alu::NEG => return Some(format!("{r}{dst} = -{r}{dst}")),
        alu::END => {
            let order = match (narrow, register) {
                (true, false) => "le",
                (true, true) => "be",
                _ => "bswap",
            };
            return Some(format!("r{dst} = {order}{imm} r{dst}"));
        }
        alu::MOV if register && off != 0 => {
            return Some(format!("{r}{dst} = (s{off}){r}{src}"));
        }
        alu::ADD => "+=",
        alu::SUB => "-=",
        alu::MUL => "*=",
        alu::DIV if off == 1 => "s/=",
        alu::DIV => "/=",
        alu::MOD if off == 1 => "s%=",
        alu::MOD => "%=",
        alu::OR => "|=",
        alu::AND => "&=",
        alu::XOR => "^=",
        alu::LSH => "<<=",
        alu::RSH => ">>=",
        alu::ARSH => "s>>=",
        alu::MOV => "=",
        _ => return None,
    };
    Some(format!("{r}{dst} {sign} {operand}"))
}

fn jump(insn: Insn) -> Option<String> {
    let Insn { dst, src, off, imm, .. } = insn;
    let narrow = insn.class() == class::JMP32;
    let r = if narrow { 'w' } else { 'r' };
    let register = insn.code & X != 0;
    let sign = match insn.op() {
        jmp::JA if narrow => return Some(format!("gotol pc{imm:+}")),
        jmp::JA => return Some(format!("goto pc{off:+}")),
        jmp::EXIT => return Some("exit".into()),
        jmp::CALL => {
            return Some(match (register, src) {
                (true, _) => format!("callx r{dst}"),
                (false, pseudo::CALL) => format!("call pc{imm:+}"),
                (false, pseudo::KFUNC_CALL) => format!("call kernel-function#{imm}"),
                (false, _) => format!("call helper#{imm}"),
            });
        }
        jmp::JEQ => "==",
        jmp::JGT => ">",
        jmp::JGE => ">=",
        jmp::JSET => "&",
        jmp::JNE => "!=",
        jmp::JSGT => "s>",
        jmp::JSGE => "s>=",
        jmp::JLT => "<",
        jmp::JLE => "<=",
        jmp::JSLT => "s<",
        jmp::JSLE => "s<=",
        _ => return None,
    };
    let operand = if register { format!("{r}{src}") } else { format!("{imm:#x}") };
    Some(format!("if {r}{dst} {sign} {operand} goto pc{off:+}"))
}

fn memory(insn: Insn) -> Option<String> {
    let Insn { code, dst, src, off, imm } = insn;
    let bits = match code & 0x18 {
        size::B => 8,
        size::H => 16,
        size::W => 32,
        _ => 64,
    };
    Some(match (insn.class(), code & 0xe0) {
        (class::LD, mode::ABS) => format!("r0 = *(u{bits} *)skb[{imm}]"),
        (class::LD, mode::IND) => format!("r0 = *(u{bits} *)skb[r{src} + {imm}]"),
        (class::LDX, mode::MEM) => format!("r{dst} = *(u{bits} *)(r{src} {off:+})"),
        (class::LDX, mode::MEMSX) => format!("r{dst} = *(s{bits} *)(r{src} {off:+})"),
        (class::ST, mode::MEM) => format!("*(u{bits} *)(r{dst} {off:+}) = {imm}"),
        (class::STX, mode::MEM) => format!("*(u{bits} *)(r{dst} {off:+}) = r{src}"),
        (class::STX, mode::ATOMIC) => {
            let place = format!("(u{bits} *)(r{dst} {off:+})");
            let width = if bits == 64 { "64" } else { "" };
            let (verb, sign) = match imm & !atomic::FETCH {
                atomic::ADD => ("add", "+="),
                atomic::OR => ("or", "|="),
                atomic::AND => ("and", "&="),
                atomic::XOR => ("xor", "^="),
                _ if imm == atomic::XCHG => {
                    return Some(format!("r{src} = atomic{width}_xchg({place}, r{src})"));
                }
                _ if imm == atomic::CMPXCHG => {
                    return Some(format!("r0 = atomic{width}_cmpxchg({place}, r0, r{src})"));
                }
                _ => return None,
            };
            if imm & atomic::FETCH == 0 {
                format!("lock *{place} {sign} r{src}")
            } else {
                format!("r{src} = atomic{width}_fetch_{verb}({place}, r{src})")
            }
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::asm::assemble;
    use super::*;

    #[test]
    fn as_the_kernel_prints_it() {
        let text = "mov %r6, %r1\nmov32 %r0, -1\nldxw %r2, [%r1+76]\nadd %r2, 14\njgt %r2, %r3, +2\n\
                    be16 %r0\nsmod32 %r1, %r2\njne32 %r0, 0x806, -3\nlddw %r1, map_fd(4)\n\
                    lock fetch add [%r10-8], %r1\nstb [%r10-1], 7\nldabsh 12\ncall 1\nneg %r1\nexit";
        let program = assemble(text).unwrap();
        assert_eq!(
            listing(&program),
            "   0: (bf) r6 = r1
   1: (b4) w0 = -1
   2: (61) r2 = *(u32 *)(r1 +76)
   3: (07) r2 += 14
   4: (2d) if r2 > r3 goto pc+2
   5: (dc) r0 = be16 r0
   6: (9c) w1 s%= w2
   7: (56) if w0 != 0x806 goto pc-3
   8: (18) r1 = map[fd:4]
  10: (db) r1 = atomic64_fetch_add((u64 *)(r10 -8), r1)
  11: (72) *(u8 *)(r10 -1) = 7
  12: (28) r0 = *(u16 *)skb[12]
  13: (85) call helper#1
  14: (87) r1 = -r1
  15: (95) exit
"
        );
        assert_eq!(
            c_array(&program[..1]),
            "{ .code = 0xbf, .dst_reg = 6, .src_reg = 1, .off = 0, .imm = 0 },\n"
        );
    }
}
