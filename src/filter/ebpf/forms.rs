// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads a program as assembly or as a C array.

use super::asm::{MOST, assemble};
use super::insn::Insn;
use crate::filter::array;
use crate::filter::text::{Comments, Reader, TextError};

/// Tells the form by how it begins.
pub(crate) fn read(text: &str) -> Result<Vec<Insn>, TextError> {
    match Reader::new(text, Comments::C) {
        Ok(reader) if array::begins(&reader) => array::read(reader, MOST, insn),
        _ => assemble(text),
    }
}

fn insn(reader: &mut Reader) -> Result<Insn, TextError> {
    let code = field(reader, "code", 0, u8::MAX.into())? as u8;
    reader.sign(',')?;
    let dst = field(reader, "dst_reg", 0, 15)? as u8;
    reader.sign(',')?;
    let src = field(reader, "src_reg", 0, 15)? as u8;
    reader.sign(',')?;
    let off = field(reader, "off", i16::MIN.into(), i16::MAX.into())? as i16;
    reader.sign(',')?;
    let imm = field(reader, "imm", i32::MIN.into(), u32::MAX.into())? as i32;
    Ok(Insn::new(code, dst, src, off, imm))
}

/// `.off = 5`, or just the number.
fn field(reader: &mut Reader, name: &str, least: i128, most: i128) -> Result<i128, TextError> {
    if reader.takes('.') {
        if !reader.takes_word(name) {
            return reader.expected(&format!("`{name}`"));
        }
        reader.sign('=')?;
    }
    reader.number(name, least, most)
}

#[cfg(test)]
mod tests {
    use super::super::{disasm, readable};
    use super::*;

    #[test]
    fn every_form_says_the_same() {
        let program = assemble("lddw %r1, 0x1234567890\nldxw %r0, [%r1-4]\nexit").unwrap();
        let array = readable::c_array(&program);
        for text in [
            disasm::assembly(&program).unwrap(),
            array.clone(),
            format!("struct bpf_insn code[] = {{\n{array}}};"),
            "{0x18,1,0,0,0x34567890},{0,0,0,0,0x12},{0x61,0,1,-4,0},{0x95,0,0,0,0}".into(),
        ] {
            assert_eq!(read(&text).as_deref(), Ok(&program[..]), "{text}");
        }
        let error = read("{ .code = 1, .src_reg = 0").unwrap_err();
        assert_eq!(error.to_string(), "line 1, column 15: `src_reg` where `dst_reg` is expected");
    }
}
