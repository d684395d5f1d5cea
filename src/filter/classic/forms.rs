// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads a program in any of its forms: assembly, `-dd`, `-ddd`, and the one line that bpf_asm prints and iptables'
//! bpf match takes.

use super::asm::assemble;
use super::insn::{BPF_MAXINSNS, Insn};
use crate::filter::text::{Comments, Kind, Reader, TextError};

/// Tells the form by how it begins.
pub(crate) fn read(text: &str) -> Result<Vec<Insn>, TextError> {
    // Digits begin no assembly, and neither does a brace. What C says around the array is passed over.
    let begin = text.trim_start();
    if begin.starts_with(|c: char| c.is_ascii_digit()) {
        return decimal(text);
    }
    match Reader::new(text, Comments::C) {
        Ok(reader) if is_c(&reader) => c_array(reader),
        _ => assemble(text),
    }
}

fn is_c(reader: &Reader) -> bool {
    match &reader.peek().kind {
        Kind::Sign('{') => true,
        Kind::Word(word) => matches!(word.as_str(), "struct" | "static" | "const"),
        _ => false,
    }
}

fn c_array(mut reader: Reader) -> Result<Vec<Insn>, TextError> {
    // `static struct sock_filter code[] = {`: the last brace before a number is an instruction's.
    let declared = !reader.is_sign('{');
    if declared {
        while !reader.is_sign('{') {
            if reader.ended() {
                return reader.expected("`{`");
            }
            reader.next();
        }
    }
    let nested = reader.peek_at(1).kind == Kind::Sign('{') || declared;
    if nested {
        reader.next();
    }
    let mut program = Vec::new();
    while reader.is_sign('{') {
        if program.len() == BPF_MAXINSNS {
            return reader.expected(&format!(
                "the end: Linux takes at most {BPF_MAXINSNS} instructions, so it"
            ));
        }
        reader.sign('{')?;
        let code = reader.number("the code", 0, u16::MAX.into())? as u16;
        reader.sign(',')?;
        let jt = reader.number("jt", 0, u8::MAX.into())? as u8;
        reader.sign(',')?;
        let jf = reader.number("jf", 0, u8::MAX.into())? as u8;
        reader.sign(',')?;
        let k = reader.word32("k")?;
        reader.sign('}')?;
        program.push(Insn::new(code, jt, jf, k));
        if !reader.takes(',') {
            break;
        }
    }
    if nested {
        reader.sign('}')?;
        reader.takes(';');
    }
    if !reader.ended() {
        return reader.expected("`{` or the end");
    }
    if program.is_empty() {
        return reader.expected("`{` and an instruction");
    }
    Ok(program)
}

fn decimal(text: &str) -> Result<Vec<Insn>, TextError> {
    let mut reader = Reader::new(text, Comments::Kernel)?;
    let most = BPF_MAXINSNS as i128;
    let count = reader.number("the number of instructions", 1, most)?;
    reader.takes(',');
    let mut program = Vec::new();
    for _ in 0..count {
        let code = reader.number("an instruction's code", 0, u16::MAX.into())? as u16;
        let jt = reader.number("jt", 0, u8::MAX.into())? as u8;
        let jf = reader.number("jf", 0, u8::MAX.into())? as u8;
        let k = reader.word32("k")?;
        program.push(Insn::new(code, jt, jf, k));
        reader.takes(',');
    }
    if !reader.ended() {
        return reader.expected(&format!("the end, after {count} instructions,"));
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::super::disasm;
    use super::*;

    #[test]
    fn every_form_says_the_same() {
        let program = assemble("ldh [12]\njne #0x806, drop\nret #-1\ndrop: ret #0").unwrap();
        let array = disasm::c_array(&program);
        for text in [
            disasm::assembly(&program).unwrap(),
            disasm::decimal(&program),
            array.clone(),
            format!("/* arp */\n{array}"),
            format!(
                "#include <linux/filter.h>\nstatic struct sock_filter code[] = {{\n{array}}};\n"
            ),
            format!("{{{array}}}"),
            "4,40 0 0 12,21 0 1 2054,6 0 0 4294967295,6 0 0 0,".into(),
        ] {
            assert_eq!(read(&text).as_deref(), Ok(&program[..]), "{text}");
        }
    }

    #[test]
    fn errors_name_the_place_and_what_is_expected() {
        for (text, place, part) in [
            ("", (1, 1), "an instruction such as ld"),
            ("ldh [12]\n  jeg #1, l1", (2, 3), "`jeg` where an instruction"),
            ("ldh 12", (1, 5), "`[` or the name of an extension"),
            ("ldh [12\nret #0", (2, 1), "`]`"),
            ("jeq 1, l1", (1, 5), "`#` and a number, or `x`"),
            ("jeq #1", (1, 7), "the end where `,`"),
            ("jeq #1, l1\nret #0", (1, 9), "no label `l1`"),
            ("l1: ret #0\njeq #1, l1\nret #0", (2, 9), "only jumps forward"),
            ("l1: ret #0\nl1: ret #0", (2, 1), "second time"),
            ("ret #0\nl1:", (2, 4), "an instruction for the label"),
            ("ret 0", (1, 5), "`#` and a number, or `a`"),
            ("ret x", (1, 5), "`x` where"),
            ("ret #0x1ffffffff", (1, 6), "out of range"),
            ("st M[16]", (1, 6), "0 to 15"),
            ("ldx 5*([14]&0xf)", (1, 5), "4 to 4"),
            (
                "ld #nope\nret #0",
                (1, 5),
                "`nope` where a number, `len` or the name of an extension",
            ),
            ("{ 1, 2, 3 }", (1, 11), "`,`"),
            ("{ 1, 256, 3, 4 }", (1, 6), "0 to 255"),
            ("{ 6, 0, 0, 1 } x", (1, 16), "the end"),
            ("2\n6 0 0 0\n", (3, 1), "an instruction's code"),
            ("1\n6 0 0 0\n6", (3, 1), "the end, after 1 instructions"),
            ("0", (1, 1), "1 to 4096"),
            ("\u{1b}[31m", (1, 1), "`\\u{1b}`"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!((error.line, error.column), place, "{text}: {error}");
            assert!(error.message.contains(part), "{text}: {error}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}
