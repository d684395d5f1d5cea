// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs as C arrays: `{ 0x28, 0, 0, 12 }, …`, with or without the declaration around them.

use super::text::{Kind, Reader, TextError};

/// Whether that is what the text is. No assembly begins so.
pub(super) fn begins(reader: &Reader) -> bool {
    match &reader.peek().kind {
        Kind::Sign('{') => true,
        Kind::Word(word) => matches!(word.as_str(), "struct" | "static" | "const"),
        _ => false,
    }
}

/// Reads the whole text. `insn` reads what is between an instruction's braces.
pub(super) fn read<T>(
    mut reader: Reader,
    most: usize,
    insn: impl Fn(&mut Reader) -> Result<T, TextError>,
) -> Result<Vec<T>, TextError> {
    // `static struct sock_filter code[] = {`: the last brace before a number is an instruction's.
    let declared = !reader.is_sign('{');
    while !reader.is_sign('{') {
        if reader.ended() {
            return reader.expected("`{`");
        }
        reader.next();
    }
    let nested = declared || reader.peek_at(1).kind == Kind::Sign('{');
    if nested {
        reader.next();
    }
    let mut program = Vec::new();
    while reader.is_sign('{') {
        if program.len() == most {
            return reader
                .expected(&format!("the end: Linux takes at most {most} instructions, so it"));
        }
        reader.sign('{')?;
        program.push(insn(&mut reader)?);
        reader.sign('}')?;
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
