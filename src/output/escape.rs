// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names that come from elsewhere, made safe to print: a process can call itself an escape sequence.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a terminal would act on `c` instead of showing it, or show it where it does not belong.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Direction marks and overrides, line and paragraph separators, the byte order mark.
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// `text` with unsafe characters, and the backslash that would make them ambiguous, escaped.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| is_unsafe(c) || c == '\\') {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\\' => safe.push_str("\\\\"),
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            c if is_unsafe(c) && (c as u32) < 0x100 => {
                let _ = write!(safe, "\\x{:02x}", c as u32);
            }
            c if is_unsafe(c) => {
                let _ = write!(safe, "\\u{{{:x}}}", c as u32);
            }
            c => safe.push(c),
        }
    }
    safe.into()
}

/// A C string from the kernel: up to its first NUL; bytes that are no UTF-8 become U+FFFD.
pub(crate) fn bytes_to_string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_stay_text() {
        assert_eq!(printable("\x1b[31mred"), "\\x1b[31mred");
        assert_eq!(printable("a\nb\tc\r"), "a\\nb\\tc\\r");
        assert_eq!(printable("\u{202e}gpj"), "\\u{202e}gpj");
        assert_eq!(printable("\u{9b}31m"), "\\x9b31m");
        assert_eq!(printable("C:\\x1b"), "C:\\\\x1b");
        assert!(matches!(printable("kworker/0:1"), Cow::Borrowed(_)));
    }

    #[test]
    fn kernel_strings_end_at_nul() {
        assert_eq!(bytes_to_string(b"curl\0\0stale"), "curl");
        assert_eq!(bytes_to_string(b"0123456789abcdef"), "0123456789abcdef");
        assert_eq!(bytes_to_string(b"\xff\0"), "\u{fffd}");
    }
}
