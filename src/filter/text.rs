// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the assemblers share: tokens with their places, and errors that name one.

use std::fmt;

/// What is wrong in a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextError {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) message: String,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for TextError {}

/// A place in a text, both from 1; columns are characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Place {
    pub(crate) fn error(self, message: impl Into<String>) -> TextError {
        TextError { line: self.line, column: self.column, message: message.into() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A name: letters, digits and `_`, not beginning with a digit.
    Word(String),
    /// Digits as they stand: of which base they are depends on who reads them.
    Number(String),
    Sign(char),
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            // The file is somebody else's: an error message must stay one line of text.
            Kind::Word(text) | Kind::Number(text) => write!(f, "`{}`", shorten(text)),
            Kind::Sign(sign) => write!(f, "`{}`", sign.escape_debug()),
            Kind::End => f.write_str("the end"),
        }
    }
}

fn shorten(text: &str) -> String {
    const MOST: usize = 40;
    if text.chars().count() <= MOST {
        return text.into();
    }
    text.chars().take(MOST).chain("…".chars()).collect()
}

/// What begins a comment that goes to the end of its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comments {
    /// `;` anywhere and `#` at the beginning of a line: the kernel's bpf_asm
    Kernel,
    /// `#` and `//` anywhere: eBPF's texts
    Hash,
    /// `//` anywhere, `#` at the beginning of a line (the preprocessor's): C
    C,
}

/// Splits a text into tokens; the last is `Kind::End`. `/* */` is a comment everywhere.
pub(crate) fn tokens(text: &str, comments: Comments) -> Result<Vec<Token>, TextError> {
    let mut tokens = Vec::new();
    let mut scanner = Scanner { rest: text, place: Place { line: 1, column: 1 }, fresh: true };
    while let Some(c) = scanner.peek() {
        let place = scanner.place;
        let fresh = scanner.fresh;
        if c.is_whitespace() {
            scanner.take();
        } else if scanner.rest.starts_with("/*") {
            let Some(length) = scanner.rest[2..].find("*/") else {
                return Err(place.error("this comment has no end; expected `*/`"));
            };
            let end = scanner.rest.len() - (2 + length + 2);
            while scanner.rest.len() > end {
                scanner.take();
            }
        } else if match comments {
            Comments::Kernel => c == ';' || (c == '#' && fresh),
            Comments::Hash => c == '#' || scanner.rest.starts_with("//"),
            Comments::C => (c == '#' && fresh) || scanner.rest.starts_with("//"),
        } {
            while scanner.peek().is_some_and(|c| c != '\n') {
                scanner.take();
            }
        } else if c.is_ascii_alphabetic() || c == '_' {
            tokens.push(Token { kind: Kind::Word(scanner.word()), place });
        } else if c.is_ascii_digit() {
            tokens.push(Token { kind: Kind::Number(scanner.word()), place });
        } else {
            scanner.take();
            tokens.push(Token { kind: Kind::Sign(c), place });
        }
    }
    tokens.push(Token { kind: Kind::End, place: scanner.place });
    Ok(tokens)
}

struct Scanner<'a> {
    rest: &'a str,
    place: Place,
    /// Nothing but white space stands before, on this line.
    fresh: bool,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.place = Place { line: self.place.line + 1, column: 1 };
            self.fresh = true;
        } else {
            self.place.column += 1;
            self.fresh &= c.is_whitespace();
        }
        Some(c)
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self.peek().filter(|&c| c.is_ascii_alphanumeric() || c == '_') {
            word.push(c);
            self.take();
        }
        word
    }
}

/// Reads tokens one after the other.
#[derive(Debug)]
pub(crate) struct Reader {
    tokens: Vec<Token>,
    at: usize,
}

impl Reader {
    pub(crate) fn new(text: &str, comments: Comments) -> Result<Self, TextError> {
        Ok(Self { tokens: tokens(text, comments)?, at: 0 })
    }

    pub(crate) fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    /// The token `ahead` behind the next.
    pub(crate) fn peek_at(&self, ahead: usize) -> &Token {
        &self.tokens[(self.at + ahead).min(self.tokens.len() - 1)]
    }

    pub(crate) fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    pub(crate) fn ended(&self) -> bool {
        self.peek().kind == Kind::End
    }

    pub(crate) fn place(&self) -> Place {
        self.peek().place
    }

    /// The next token isn't what it would have to be.
    pub(crate) fn expected<T>(&self, what: &str) -> Result<T, TextError> {
        let token = self.peek();
        Err(token.place.error(format!("{token} where {what} is expected")))
    }

    pub(crate) fn is_sign(&self, sign: char) -> bool {
        self.peek().kind == Kind::Sign(sign)
    }

    /// Takes `sign` if it is next.
    pub(crate) fn takes(&mut self, sign: char) -> bool {
        let is = self.is_sign(sign);
        self.at += usize::from(is);
        is
    }

    /// Takes `word` if it is next, in upper or lower case.
    pub(crate) fn takes_word(&mut self, word: &str) -> bool {
        let is = matches!(&self.peek().kind, Kind::Word(text) if text.eq_ignore_ascii_case(word));
        self.at += usize::from(is);
        is
    }

    pub(crate) fn sign(&mut self, sign: char) -> Result<(), TextError> {
        if self.takes(sign) { Ok(()) } else { self.expected(&format!("`{sign}`")) }
    }

    /// A number with an optional sign, from `least` to `most`.
    pub(crate) fn number(
        &mut self,
        what: &str,
        least: i128,
        most: i128,
    ) -> Result<i128, TextError> {
        let place = self.place();
        let negative = self.is_sign('-');
        let signed = negative || self.is_sign('+');
        let Kind::Number(text) = &self.peek_at(usize::from(signed)).kind else {
            return self.expected(what);
        };
        let Some(value) = parse_number(text) else {
            return Err(place.error(format!("`{}` is no number", shorten(text))));
        };
        let value = if negative { -value } else { value };
        if value < least || value > most {
            let message = format!("{value} is out of range: {least} to {most} is expected");
            return Err(place.error(message));
        }
        self.at += 1 + usize::from(signed);
        Ok(value)
    }

    /// A number of 32 bits, with or without a sign.
    pub(crate) fn word32(&mut self, what: &str) -> Result<u32, TextError> {
        Ok(self.number(what, i32::MIN.into(), u32::MAX.into())? as u32)
    }
}

/// 12, 0x0c, 014 and 0b1100.
fn parse_number(text: &str) -> Option<i128> {
    let lower = text.to_ascii_lowercase();
    let (digits, base) = if let Some(digits) = lower.strip_prefix("0x") {
        (digits, 16)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (digits, 2)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (&lower[1..], 8)
    } else {
        (lower.as_str(), 10)
    };
    // 64 bits are the most that anything here has.
    u64::from_str_radix(digits, base).ok().map(i128::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_of_lines_and_characters() {
        let tokens = tokens("é ab\n\t; no\n  0x1f,", Comments::Kernel).unwrap();
        let places: Vec<_> =
            tokens.iter().map(|token| (token.place.line, token.place.column)).collect();
        assert_eq!(places, [(1, 1), (1, 3), (3, 3), (3, 7), (3, 8)]);
    }

    #[test]
    fn comments() {
        let count = |text, comments| tokens(text, comments).unwrap().len() - 1;
        assert_eq!(count("# all\n  # all\nret #1 ; rest", Comments::Kernel), 3);
        assert_eq!(count("exit # rest\n// all", Comments::Hash), 1);
        assert_eq!(count("a /* b\nc */ d", Comments::C), 2);
        let error = tokens("a\n /* b", Comments::C).unwrap_err();
        assert_eq!(error.to_string(), "line 2, column 2: this comment has no end; expected `*/`");
    }

    #[test]
    fn numbers() {
        let read = |text| Reader::new(text, Comments::C).unwrap().word32("a number");
        assert_eq!(read("010").unwrap(), 8);
        assert_eq!(read("0XfF").unwrap(), 255);
        assert_eq!(read("-1").unwrap(), u32::MAX);
        assert_eq!(read("0b11").unwrap(), 3);
        for bad in
            ["4294967296", "-2147483649", "0x", "09", "1a", "x", "", "0b2", "99999999999999999999"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
