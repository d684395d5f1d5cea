// SPDX-License-Identifier: MIT OR Apache-2.0

//! The assembler, for the mnemonics of ubpf and bpf_conformance.

use super::insn::{Insn, K, X, alu, atomic, class, jmp, mode, pseudo, size};
use super::names::{ALU, ATOMICS, JUMPS, PSEUDO, SIZES, number};
use crate::filter::labels::{Jump, Labels};
use crate::filter::text::{Comments, Kind, Reader, TextError};

const MNEMONICS: &str =
    "an instruction such as mov, add32, ldxw, stxdw, lddw, jeq, ja, call, lock or exit";

/// What Linux takes from the privileged (include/linux/bpf.h, BPF_COMPLEXITY_LIMIT_INSNS).
pub(super) const MOST: usize = 1_000_000;

#[derive(Clone, Copy, Debug)]
enum Field {
    Off,
    Imm,
}

#[derive(Debug)]
struct Assembler {
    reader: Reader,
    program: Vec<Insn>,
    labels: Labels<Field>,
    /// Where the first `exit` is, which the label `exit` means.
    first_exit: Option<usize>,
}

/// Assembles a text. What comes out has the syntax's meaning; whether Linux takes it is for its verifier to say.
pub(crate) fn assemble(text: &str) -> Result<Vec<Insn>, TextError> {
    let reader = Reader::new(text, Comments::Hash)?;
    let mut assembler =
        Assembler { reader, program: Vec::new(), labels: Labels::default(), first_exit: None };
    while !assembler.reader.ended() {
        assembler.line()?;
    }
    if assembler.program.is_empty() {
        return assembler.reader.expected(MNEMONICS);
    }
    assembler.link()?;
    Ok(assembler.program)
}

impl Assembler {
    fn line(&mut self) -> Result<(), TextError> {
        let place = self.reader.place();
        if self.reader.takes(';') {
            return Ok(());
        }
        let colon = self.reader.peek_at(1).kind == Kind::Sign(':');
        match &self.reader.peek().kind {
            // The numbers of a listing.
            Kind::Number(_) if colon => {
                self.reader.next();
                self.reader.next();
                Ok(())
            }
            Kind::Word(label) if colon => {
                let label = label.clone();
                self.reader.next();
                self.reader.next();
                self.labels.define(label, self.program.len(), place)
            }
            Kind::Word(_) if self.program.len() >= MOST => {
                Err(place.error(format!("Linux takes at most {MOST} instructions")))
            }
            Kind::Word(name) => {
                let name = name.to_ascii_lowercase();
                self.instruction(&name)
            }
            _ => self.reader.expected(MNEMONICS),
        }
    }

    fn instruction(&mut self, name: &str) -> Result<(), TextError> {
        let (stem, narrow) = match name.strip_suffix("32") {
            Some(stem) => (stem, true),
            None => (name, false),
        };
        let arithmetic = if narrow { class::ALU } else { class::ALU64 };
        let jumping = if narrow { class::JMP32 } else { class::JMP };
        if let Some(op) = number(ALU, stem) {
            self.reader.next();
            return self.binary(arithmetic | op, 0);
        }
        if let Some(op) = number(&[("sdiv", alu::DIV), ("smod", alu::MOD)], stem) {
            self.reader.next();
            return self.binary(arithmetic | op, 1);
        }
        if stem == "neg" {
            self.reader.next();
            let dst = self.register()?;
            return self.put(arithmetic | alu::NEG, dst, 0, 0, 0);
        }
        if let Some(op) = number(JUMPS, stem) {
            self.reader.next();
            return self.jump(jumping | op);
        }
        match name {
            "ja" | "ja32" => {
                self.reader.next();
                let field = if narrow { Field::Imm } else { Field::Off };
                let by = self.target(field)?;
                let (off, imm) = if narrow { (0, by) } else { (by as i16, 0) };
                return self.put(jumping | jmp::JA, 0, 0, off, imm);
            }
            "exit" => {
                self.reader.next();
                self.first_exit.get_or_insert(self.program.len());
                return self.put(class::JMP | jmp::EXIT, 0, 0, 0, 0);
            }
            "call" => {
                self.reader.next();
                return self.call();
            }
            "callx" => {
                self.reader.next();
                let dst = self.register()?;
                return self.put(class::JMP | jmp::CALL | X, dst, 0, 0, 0);
            }
            "lddw" => {
                self.reader.next();
                return self.wide();
            }
            "lock" => {
                self.reader.next();
                return self.atomic();
            }
            _ => {}
        }
        if self.swap(name)? || self.extend(name)? || self.memory(name)? {
            return Ok(());
        }
        self.reader.expected(MNEMONICS)
    }

    fn put(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Result<(), TextError> {
        self.program.push(Insn::new(code, dst, src, off, imm));
        Ok(())
    }

    /// `%r1` or `r1`, if that is next.
    fn takes_register(&mut self) -> Option<u8> {
        let percent = usize::from(self.reader.is_sign('%'));
        let Kind::Word(word) = &self.reader.peek_at(percent).kind else { return None };
        let digits = word.strip_prefix(['r', 'R'])?;
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let register = digits.parse::<u8>().ok().filter(|&number| plain && number <= 10)?;
        for _ in 0..=percent {
            self.reader.next();
        }
        Some(register)
    }

    fn register(&mut self) -> Result<u8, TextError> {
        match self.takes_register() {
            Some(register) => Ok(register),
            None => self.reader.expected("a register, %r0 to %r10,"),
        }
    }

    fn immediate(&mut self) -> Result<i32, TextError> {
        Ok(self.reader.word32("a number")? as i32)
    }

    /// `, %r1` or `, 12`
    fn source(&mut self) -> Result<(u8, u8, i32), TextError> {
        self.reader.sign(',')?;
        if let Some(src) = self.takes_register() {
            return Ok((X, src, 0));
        }
        Ok((K, 0, self.reader.word32("a register or a number")? as i32))
    }

    fn binary(&mut self, code: u8, off: i16) -> Result<(), TextError> {
        let dst = self.register()?;
        let (from, src, imm) = self.source()?;
        self.put(code | from, dst, src, off, imm)
    }

    fn jump(&mut self, code: u8) -> Result<(), TextError> {
        let dst = self.register()?;
        let (from, src, imm) = self.source()?;
        self.reader.sign(',')?;
        let off = self.target(Field::Off)? as i16;
        self.put(code | from, dst, src, off, imm)
    }

    /// `+5`, or a label, which is filled in at the end.
    fn target(&mut self, field: Field) -> Result<i32, TextError> {
        let token = self.reader.peek().clone();
        if let Kind::Word(label) = token.kind {
            self.reader.next();
            let at = self.program.len();
            self.labels.refer(Jump { at, field, label, place: token.place });
            return Ok(0);
        }
        let (least, most) = match field {
            Field::Off => (i16::MIN.into(), i16::MAX.into()),
            Field::Imm => (i32::MIN.into(), i32::MAX.into()),
        };
        Ok(self.reader.number("a label, or `+` and a number,", least, most)? as i32)
    }

    /// `call 5`, `call helper 5`, `call local LABEL`, `call runtime 5`; `call %r5` is `callx %r5`
    fn call(&mut self) -> Result<(), TextError> {
        let code = class::JMP | jmp::CALL;
        if self.reader.takes_word("local") {
            let by = self.target(Field::Imm)?;
            return self.put(code, 0, pseudo::CALL, 0, by);
        }
        let src = if self.reader.takes_word("runtime") {
            pseudo::KFUNC_CALL
        } else {
            self.reader.takes_word("helper");
            if let Some(dst) = self.takes_register() {
                return self.put(code | X, dst, 0, 0, 0);
            }
            0
        };
        let imm =
            self.reader.word32("a number, a register, `helper`, `local` or `runtime`")? as i32;
        self.put(code, 0, src, 0, imm)
    }

    fn wide(&mut self) -> Result<(), TextError> {
        let dst = self.register()?;
        self.reader.sign(',')?;
        let kind = match &self.reader.peek().kind {
            Kind::Word(word) => number(PSEUDO, &word.to_ascii_lowercase()),
            _ => None,
        };
        let (src, low, high) = match kind {
            Some(src) => {
                self.reader.next();
                self.reader.sign('(')?;
                let low = self.immediate()?;
                let high = if self.reader.takes(',') { self.immediate()? } else { 0 };
                self.reader.sign(')')?;
                (src, low, high)
            }
            None => {
                let what = "a number of 64 bits, or map_fd(N), map_value(N, OFFSET) or the like,";
                let value = self.reader.number(what, i64::MIN.into(), u64::MAX.into())? as u64;
                (0, value as i32, (value >> 32) as i32)
            }
        };
        self.put(class::LD | mode::IMM | size::DW, dst, src, 0, low)?;
        self.put(0, 0, 0, 0, high)
    }

    /// `[%r1+8]`
    fn place(&mut self) -> Result<(u8, i16), TextError> {
        self.reader.sign('[')?;
        let register = self.register()?;
        let off = if self.reader.is_sign(']') {
            0
        } else if self.reader.is_sign('+') || self.reader.is_sign('-') {
            self.reader.number("an offset", i16::MIN.into(), i16::MAX.into())? as i16
        } else {
            return self.reader.expected("`+`, `-` or `]`");
        };
        self.reader.sign(']')?;
        Ok((register, off))
    }

    /// `lock [fetch] add[32] [%r1+8], %r2`
    fn atomic(&mut self) -> Result<(), TextError> {
        let fetch = self.reader.takes_word("fetch");
        let what = "add, or, and, xor, xchg or cmpxchg";
        let Kind::Word(word) = &self.reader.peek().kind else { return self.reader.expected(what) };
        let lower = word.to_ascii_lowercase();
        let (stem, width) = match lower.strip_suffix("32") {
            Some(stem) => (stem, size::W),
            None => (lower.as_str(), size::DW),
        };
        let imm = match (number(ATOMICS, stem), stem, fetch) {
            (Some(op), _, true) => op | atomic::FETCH,
            (Some(op), _, false) => op,
            // These always leave the old value.
            (None, "xchg", _) => atomic::XCHG,
            (None, "cmpxchg", _) => atomic::CMPXCHG,
            _ => return self.reader.expected(what),
        };
        self.reader.next();
        let (dst, off) = self.place()?;
        self.reader.sign(',')?;
        let src = self.register()?;
        self.put(class::STX | mode::ATOMIC | width, dst, src, off, imm)
    }

    /// `be16 %r1`
    fn swap(&mut self, name: &str) -> Result<bool, TextError> {
        let bits = match name.get(name.len().saturating_sub(2)..) {
            Some("16") => 16,
            Some("32") => 32,
            Some("64") => 64,
            _ => return Ok(false),
        };
        let code = match &name[..name.len() - 2] {
            "le" => class::ALU | alu::END | K,
            "be" => class::ALU | alu::END | X,
            "bswap" | "swap" => class::ALU64 | alu::END | K,
            _ => return Ok(false),
        };
        self.reader.next();
        let dst = self.register()?;
        self.put(code, dst, 0, 0, bits)?;
        Ok(true)
    }

    /// `movsx864 %r1, %r2`: from 8 bits to 64
    fn extend(&mut self, name: &str) -> Result<bool, TextError> {
        let (bits, class) = match name {
            "movsx832" => (8, class::ALU),
            "movsx1632" => (16, class::ALU),
            "movsx864" => (8, class::ALU64),
            "movsx1664" => (16, class::ALU64),
            "movsx3264" => (32, class::ALU64),
            _ => return Ok(false),
        };
        self.reader.next();
        let dst = self.register()?;
        self.reader.sign(',')?;
        let src = self.register()?;
        self.put(class | alu::MOV | X, dst, src, bits, 0)?;
        Ok(true)
    }

    /// `ldxw`, `ldxsw`, `stw`, `stxw`, and the classic `ldabsw` and `ldindw`
    fn memory(&mut self, name: &str) -> Result<bool, TextError> {
        let of = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| number(SIZES, rest));
        let narrow = |width: &u8| *width != size::DW;
        if let Some(width) = of("ldabs").filter(narrow) {
            self.reader.next();
            let imm = self.immediate()?;
            self.put(class::LD | mode::ABS | width, 0, 0, 0, imm)?;
        } else if let Some(width) = of("ldind").filter(narrow) {
            self.reader.next();
            let src = self.register()?;
            self.reader.sign(',')?;
            let imm = self.immediate()?;
            self.put(class::LD | mode::IND | width, 0, src, 0, imm)?;
        } else if let Some((width, mode)) = of("ldx")
            .map(|width| (width, mode::MEM))
            .or_else(|| of("ldxs").filter(narrow).map(|width| (width, mode::MEMSX)))
        {
            self.reader.next();
            let dst = self.register()?;
            self.reader.sign(',')?;
            let (src, off) = self.place()?;
            self.put(class::LDX | mode | width, dst, src, off, 0)?;
        } else if let Some(width) = of("stx") {
            self.reader.next();
            let (dst, off) = self.place()?;
            self.reader.sign(',')?;
            let src = self.register()?;
            self.put(class::STX | mode::MEM | width, dst, src, off, 0)?;
        } else if let Some(width) = of("st") {
            self.reader.next();
            let (dst, off) = self.place()?;
            self.reader.sign(',')?;
            let imm = self.immediate()?;
            self.put(class::ST | mode::MEM | width, dst, 0, off, imm)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn link(&mut self) -> Result<(), TextError> {
        // As bpf_conformance has it, where the text has no such label.
        if let Some(exit) = self.first_exit {
            self.labels.imply("exit", exit);
        }
        for found in self.labels.resolve() {
            let (Jump { at, field, label, place }, target) = found?;
            let by = target as i64 - *at as i64 - 1;
            match field {
                Field::Off => {
                    self.program[*at].off = i16::try_from(by).map_err(|_| {
                        place.error(format!(
                            "`{label}` is {by} instructions away; a jump reaches 32767"
                        ))
                    })?;
                }
                // The labels are fewer than MOST apart.
                Field::Imm => self.program[*at].imm = by as i32,
            }
        }
        Ok(())
    }
}
