// SPDX-License-Identifier: MIT OR Apache-2.0

//! The assembler, in the syntax of the kernel's bpf_asm (Documentation/networking/filter.rst).

use super::insn::{
    BPF_A, BPF_ABS, BPF_ALU, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JMP, BPF_K, BPF_LD,
    BPF_LDX, BPF_LEN, BPF_MAXINSNS, BPF_MEM, BPF_MEMWORDS, BPF_MISC, BPF_MSH, BPF_NEG, BPF_RET,
    BPF_ST, BPF_STX, BPF_TAX, BPF_TXA, BPF_W, BPF_X, Ext, Insn,
};
use super::names::{ALU_NAMES, JUMP_NAMES};
use crate::filter::labels::{Jump, Labels};
use crate::filter::text::{Comments, Kind, Reader, TextError};

const MNEMONICS: &str =
    "an instruction such as ld, ldh, ldb, ldx, st, stx, jeq, jmp, add, ret or tax";

/// What of a jump gets the distance.
#[derive(Clone, Copy, Debug)]
enum Field {
    True,
    False,
    Always,
}

#[derive(Debug)]
struct Assembler {
    reader: Reader,
    program: Vec<Insn>,
    labels: Labels<Field>,
}

/// Assembles a text. What comes out has the syntax's meaning; whether Linux takes it is for `check` to say.
pub(crate) fn assemble(text: &str) -> Result<Vec<Insn>, TextError> {
    let reader = Reader::new(text, Comments::Kernel)?;
    let mut assembler = Assembler { reader, program: Vec::new(), labels: Labels::default() };
    while !assembler.reader.ended() {
        assembler.line()?;
    }
    if assembler.program.is_empty() {
        return assembler.reader.expected(MNEMONICS);
    }
    assembler.link()?;
    Ok(assembler.program)
}

fn is_reserved(word: &str) -> bool {
    const OTHERS: &[&str] = &[
        "ld", "ldh", "ldb", "ldi", "ldx", "ldxi", "ldxb", "st", "stx", "jmp", "ja", "neg", "ret",
        "tax", "txa", "x", "a", "m", "len", "pktlen", "vlan_pr",
    ];
    let lower = word.to_ascii_lowercase();
    OTHERS.contains(&lower.as_str())
        || JUMP_NAMES.iter().any(|(name, ..)| *name == lower)
        || ALU_NAMES.iter().any(|(name, _)| *name == lower)
        || extension(&lower).is_some()
}

fn extension(word: &str) -> Option<Ext> {
    if word.eq_ignore_ascii_case("vlan_pr") {
        return Some(Ext::VlanTagPresent);
    }
    Ext::ALL.into_iter().find(|ext| ext.name().eq_ignore_ascii_case(word))
}

impl Assembler {
    fn line(&mut self) -> Result<(), TextError> {
        let place = self.reader.place();
        let Kind::Word(word) = &self.reader.peek().kind else {
            return self.reader.expected(MNEMONICS);
        };
        let word = word.clone();
        if self.reader.peek_at(1).kind == Kind::Sign(':') && !is_reserved(&word) {
            self.reader.next();
            self.reader.next();
            self.labels.define(word, self.program.len(), place)?;
            if self.reader.ended() {
                return self.reader.expected("an instruction for the label before it");
            }
            return Ok(());
        }
        if self.program.len() == BPF_MAXINSNS {
            return Err(place.error(format!("Linux takes at most {BPF_MAXINSNS} instructions")));
        }
        self.instruction(&word.to_ascii_lowercase())
    }

    fn instruction(&mut self, name: &str) -> Result<(), TextError> {
        if let Some(&(_, code, inverted)) = JUMP_NAMES.iter().find(|(jump, ..)| *jump == name) {
            self.reader.next();
            return self.jump(code, inverted);
        }
        if let Some(&(_, code)) = ALU_NAMES.iter().find(|(alu, _)| *alu == name) {
            self.reader.next();
            let (source, k) = self.operand()?;
            return self.put(BPF_ALU | code | source, k);
        }
        let known = matches!(
            name,
            "ld" | "ldh"
                | "ldb"
                | "ldi"
                | "ldx"
                | "ldxb"
                | "ldxi"
                | "st"
                | "stx"
                | "jmp"
                | "ja"
                | "neg"
                | "ret"
                | "tax"
                | "txa"
        );
        if !known {
            return self.reader.expected(MNEMONICS);
        }
        self.reader.next();
        match name {
            "ld" => self.load(BPF_W),
            "ldh" => self.load(BPF_H),
            "ldb" => self.load(BPF_B),
            "ldx" => self.load_x(),
            "ldxb" => self.header_length(),
            "ldi" | "ldxi" => {
                self.reader.takes('#');
                let k = self.reader.word32("a number")?;
                self.put(if name == "ldi" { BPF_LD } else { BPF_LDX } | BPF_IMM, k)
            }
            "st" => self.memory(BPF_ST),
            "stx" => self.memory(BPF_STX),
            "jmp" | "ja" => {
                self.target(Field::Always)?;
                self.put(BPF_JMP | BPF_JA, 0)
            }
            "neg" => self.put(BPF_ALU | BPF_NEG, 0),
            "ret" => self.ret(),
            "tax" => self.put(BPF_MISC | BPF_TAX, 0),
            _ => self.put(BPF_MISC | BPF_TXA, 0),
        }
    }

    fn put(&mut self, code: u16, k: u32) -> Result<(), TextError> {
        self.program.push(Insn::stmt(code, k));
        Ok(())
    }

    /// `x` or `%x`
    fn takes_register(&mut self, name: &str) -> bool {
        if self.reader.is_sign('%') {
            let is = matches!(&self.reader.peek_at(1).kind,
                Kind::Word(word) if word.eq_ignore_ascii_case(name));
            if is {
                self.reader.next();
                self.reader.next();
            }
            return is;
        }
        self.reader.takes_word(name)
    }

    /// `#12` or `x`
    fn operand(&mut self) -> Result<(u16, u32), TextError> {
        if self.takes_register("x") {
            return Ok((BPF_X, 0));
        }
        if !self.reader.takes('#') {
            return self.reader.expected("`#` and a number, or `x`,");
        }
        Ok((BPF_K, self.reader.word32("a number")?))
    }

    fn load(&mut self, size: u16) -> Result<(), TextError> {
        let word = size == BPF_W;
        if self.reader.takes('[') {
            if self.takes_register("x") {
                if !self.reader.is_sign('-') {
                    self.reader.sign('+')?;
                }
                let k = self.reader.word32("a number")?;
                self.reader.sign(']')?;
                return self.put(BPF_LD | size | BPF_IND, k);
            }
            let k = self.reader.word32("an offset, or `x + ` and one,")?;
            self.reader.sign(']')?;
            return self.put(BPF_LD | size | BPF_ABS, k);
        }
        let hash = self.reader.takes('#');
        if let Kind::Word(name) = &self.reader.peek().kind {
            if word && (name.eq_ignore_ascii_case("len") || name.eq_ignore_ascii_case("pktlen")) {
                self.reader.next();
                return self.put(BPF_LD | BPF_W | BPF_LEN, 0);
            }
            if let Some(ext) = extension(name) {
                self.reader.next();
                return self.put(BPF_LD | size | BPF_ABS, ext.offset());
            }
            if word && !hash && name.eq_ignore_ascii_case("m") {
                return self.memory(BPF_LD | BPF_MEM);
            }
        }
        if word && hash {
            let k = self.reader.word32("a number, `len` or the name of an extension")?;
            return self.put(BPF_LD | BPF_IMM, k);
        }
        self.reader.expected(if word {
            "`[`, `#`, `M[` or the name of an extension"
        } else {
            "`[` or the name of an extension"
        })
    }

    fn load_x(&mut self) -> Result<(), TextError> {
        if let Kind::Number(_) = self.reader.peek().kind {
            return self.header_length();
        }
        let hash = self.reader.takes('#');
        if self.reader.takes_word("len") || self.reader.takes_word("pktlen") {
            return self.put(BPF_LDX | BPF_W | BPF_LEN, 0);
        }
        if hash {
            let k = self.reader.word32("a number or `len`")?;
            return self.put(BPF_LDX | BPF_IMM, k);
        }
        if matches!(&self.reader.peek().kind, Kind::Word(word) if word.eq_ignore_ascii_case("m")) {
            return self.memory(BPF_LDX | BPF_MEM);
        }
        self.reader.expected("`#`, `M[`, `len` or `4*([`")
    }

    /// `4*([14]&0xf)`
    fn header_length(&mut self) -> Result<(), TextError> {
        const FOUR: &str = "4 (as in `4*([14]&0xf)`)";
        self.reader.number(FOUR, 4, 4)?;
        for sign in ['*', '(', '['] {
            self.reader.sign(sign)?;
        }
        let k = self.reader.word32("an offset")?;
        self.reader.sign(']')?;
        self.reader.sign('&')?;
        self.reader.number("0xf", 0xf, 0xf)?;
        self.reader.sign(')')?;
        self.put(BPF_LDX | BPF_MSH | BPF_B, k)
    }

    /// `M[3]`
    fn memory(&mut self, code: u16) -> Result<(), TextError> {
        if !self.reader.takes_word("m") {
            return self.reader.expected("`M[`");
        }
        self.reader.sign('[')?;
        let most = BPF_MEMWORDS as i128 - 1;
        let k = self.reader.number("the number of a word of M", 0, most)? as u32;
        self.reader.sign(']')?;
        self.put(code, k)
    }

    fn ret(&mut self) -> Result<(), TextError> {
        if self.takes_register("a") {
            return self.put(BPF_RET | BPF_A, 0);
        }
        if !self.reader.takes('#') {
            return self.reader.expected("`#` and a number, or `a`,");
        }
        let k = self.reader.word32("a number")?;
        self.put(BPF_RET | BPF_K, k)
    }

    fn jump(&mut self, code: u16, inverted: bool) -> Result<(), TextError> {
        let (source, k) = self.operand()?;
        self.reader.sign(',')?;
        if inverted {
            self.target(Field::False)?;
        } else {
            self.target(Field::True)?;
            if self.reader.takes(',') {
                self.target(Field::False)?;
            }
        }
        self.put(BPF_JMP | code | source, k)
    }

    fn target(&mut self, field: Field) -> Result<(), TextError> {
        let token = self.reader.peek().clone();
        match token.kind {
            Kind::Word(label) if !is_reserved(&label) => {
                self.reader.next();
                let at = self.program.len();
                self.labels.refer(Jump { at, field, label, place: token.place });
                Ok(())
            }
            _ => self.reader.expected("a label"),
        }
    }

    fn link(&mut self) -> Result<(), TextError> {
        for found in self.labels.resolve() {
            let (Jump { at, field, label, place }, target) = found?;
            let Some(by) = target.checked_sub(at + 1) else {
                return Err(place.error(format!(
                    "`{label}` is before the jump; classic BPF only jumps forward"
                )));
            };
            let near = || {
                u8::try_from(by).map_err(|_| {
                    place.error(format!(
                        "`{label}` is {by} instructions away; a conditional jump reaches 255"
                    ))
                })
            };
            match field {
                Field::True => self.program[*at].jt = near()?,
                Field::False => self.program[*at].jf = near()?,
                Field::Always => self.program[*at].k = by as u32,
            }
        }
        Ok(())
    }
}
