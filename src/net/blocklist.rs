// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files of addresses: one address or CIDR a line, IPv4 and IPv6, blank lines, comments from `#` or `;` to the line's end.
//! Entries may repeat and overlap each other.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::Result;
use ipnet::IpNet;

use super::ranges::Ranges;
use crate::error::usage;
use crate::output::printable;
use crate::values::parse_cidr;

/// No entry is this long, with whatever comment behind it: what is longer is another kind of file.
const LONGEST_LINE: usize = 4096;
/// Of entries. Sixteen times what there should be: an end for a file that has none.
const MOST_ENTRIES: usize = 16 << 20;
/// Lines after which the caller is told how far it is.
const STRIDE: usize = 1 << 14;

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocklist {
    pub(crate) ranges: Ranges,
    /// Lines with an address, repeated ones too.
    pub(crate) entries: usize,
}

/// Reads a file, which errors call `what`. `progress` is told the share of it that is read.
pub(crate) fn read(what: &str, path: &Path, mut progress: impl FnMut(f64)) -> Result<Blocklist> {
    let shown = path.to_string_lossy();
    let shown = printable(&shown);
    let failed = |error: io::Error| usage(format!("cannot read {what} {shown}: {error}"));
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    // 0 of a pipe.
    let size = metadata.len();
    parse(BufReader::with_capacity(1 << 16, file), |bytes| {
        if size > 0 {
            progress((bytes as f64 / size as f64).min(1.0));
        }
    })
    .map_err(|error| match error {
        Error::Read(error) => failed(error),
        Error::Line(line, cause) => usage(format!("{shown}:{line}: {cause}")),
    })
}

#[derive(Debug)]
enum Error {
    Read(io::Error),
    /// With its number.
    Line(usize, String),
}

fn parse(mut reader: impl BufRead, mut progress: impl FnMut(u64)) -> Result<Blocklist, Error> {
    let mut nets = Vec::new();
    let mut line = Vec::new();
    let (mut number, mut bytes) = (0, 0);
    loop {
        line.clear();
        let length = Read::take(&mut reader, LONGEST_LINE as u64 + 1)
            .read_until(b'\n', &mut line)
            .map_err(Error::Read)?;
        if length == 0 {
            return Ok(Blocklist { entries: nets.len(), ranges: nets.into_iter().collect() });
        }
        number += 1;
        bytes += length as u64;
        if length > LONGEST_LINE {
            let cause = format!("longer than {LONGEST_LINE} bytes; expected one CIDR a line");
            return Err(Error::Line(number, cause));
        }
        let text =
            if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
        if let Some(net) = entry(text).map_err(|cause| Error::Line(number, cause))? {
            if nets.len() == MOST_ENTRIES {
                return Err(Error::Line(number, format!("more than {MOST_ENTRIES} entries")));
            }
            nets.push(net);
        }
        if number % STRIDE == 0 {
            progress(bytes);
        }
    }
}

/// The entry of a line, if it has one.
fn entry(line: &[u8]) -> Result<Option<IpNet>, String> {
    let end = line.iter().position(|byte| matches!(byte, b'#' | b';')).unwrap_or(line.len());
    let text = line[..end].trim_ascii();
    if text.is_empty() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(text);
    match parse_cidr(&text) {
        Ok(net) => Ok(Some(net)),
        Err(cause) => {
            let shown: String = text.chars().take(60).collect();
            let dots = if shown.len() < text.len() { "…" } else { "" };
            let what = if cause.starts_with("has ") { " " } else { ": " };
            Err(format!("`{}{dots}`{what}{cause}", printable(&shown)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::{Ipv4Net, Ipv6Net};

    fn parsed(text: &[u8]) -> Result<Blocklist, Error> {
        parse(text, |_| {})
    }

    fn cause(text: &[u8]) -> (usize, String) {
        match parsed(text) {
            Err(Error::Line(line, cause)) => (line, cause),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lines_of_every_kind() {
        let text = b"\xef\xbb\xbf# a feed\r\n\r\n10.0.0.0/8\r\n  192.0.2.1\t# a host\n10.1.2.3 ; covered\n\
            2001:db8::/32;SBL1\n\t\n#\xff\xfe no text\n::ffff:198.51.100.0/120\n2001:db8::1";
        let list = parsed(text).unwrap();
        assert_eq!(list.entries, 6);
        let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap().to_bits();
        let expected = [
            (v4("10.0.0.0"), v4("10.255.255.255")),
            (v4("192.0.2.1"), v4("192.0.2.1")),
            (v4("198.51.100.0"), v4("198.51.100.255")),
        ];
        assert_eq!(list.ranges.v4(), expected);
        assert_eq!(list.ranges.v6().len(), 1);
        assert_eq!(parsed(b"").unwrap().entries, 0);
        assert_eq!(parsed(b"# nothing").unwrap().entries, 0);
    }

    #[test]
    fn errors_name_the_line_and_what_is_wrong() {
        let (line, text) = cause(b"10.0.0.0/8\n\n10.0.0.1/8 # slip\n");
        assert_eq!(line, 3);
        assert_eq!(text, "`10.0.0.1/8` has bits behind its prefix; did you mean 10.0.0.0/8?");
        for bad in [
            "10.0.0.0/33",
            "10.0.0",
            "example.org",
            "10.0.0.0/8 10.0.0.1",
            "10.0.0.0-9",
            "::/129",
            "1.2.3.4:80",
        ] {
            let (line, text) = cause(bad.as_bytes());
            assert_eq!((line, text.contains(bad)), (1, true), "{text}");
            assert!(text.contains("expected an address or a CIDR"), "{text}");
        }
        // What a terminal would act on is shown, not sent.
        let (_, text) = cause(b"\x1b[2J\xff");
        assert!(text.contains("\\x1b[2J") && !text.contains('\x1b'), "{text}");
        let (line, text) = cause(&[b"::1\n".to_vec(), vec![b'#'; LONGEST_LINE + 1]].concat());
        assert!(line == 2 && text.contains("longer than"), "{text}");
        assert!(parsed(&[vec![b'#'; LONGEST_LINE - 1], b"\n::1".to_vec()].concat()).is_ok());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        for (path, expected) in [("/no/such/list", "No such file"), ("/", "directory")] {
            let error = read("the list", Path::new(path), |_| {}).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains(expected), "{error}");
        }
    }

    /// Whatever the bytes are, there is an answer; and a list that was written as a list is read as one.
    #[test]
    fn fuzz_block_lists() {
        let mut random = crate::random::seeded();
        let pieces: [&[u8]; 16] = [
            b"10.0.0.0/8",
            b"::1",
            b"2001:db8::/32",
            b"\n",
            b"\r\n",
            b"#",
            b";",
            b"/",
            b".",
            b":",
            b"255",
            b"\xff",
            b" ",
            b"\0",
            b"::ffff:1.2.3.4",
            b"\xef\xbb\xbf",
        ];
        let (mut good, mut bad) = (0_u32, 0_u32);
        let rounds = crate::random::rounds(200_000);
        for round in 0..rounds {
            let mut text = Vec::new();
            for _ in 0..random.usize(..12) {
                match random.u8(..8) {
                    0 => text.push(random.u8(..)),
                    _ => text.extend_from_slice(pieces[random.usize(..pieces.len())]),
                }
            }
            match parsed(&text) {
                Ok(list) => {
                    good += 1;
                    assert!(
                        list.ranges.v4().len() + list.ranges.v6().len() <= list.entries,
                        "{round}: {text:?}"
                    );
                }
                Err(Error::Line(line, _)) => {
                    bad += 1;
                    assert!(
                        line >= 1 && line <= 1 + text.iter().filter(|&&b| b == b'\n').count(),
                        "{text:?}"
                    );
                }
                Err(Error::Read(error)) => panic!("{error}"),
            }
        }
        let few = rounds as u32 / 200;
        assert!(good > few && bad > few, "{good} good, {bad} bad");
    }

    #[test]
    fn what_is_written_is_read() {
        let mut random = crate::random::seeded();
        let mut text = String::new();
        let nets: Vec<IpNet> = (0..10_000)
            .map(|_| {
                let net = if random.bool() {
                    IpNet::V4(
                        Ipv4Net::new(Ipv4Addr::from(random.u32(..)), random.u8(..=32)).unwrap(),
                    )
                } else {
                    IpNet::V6(
                        Ipv6Net::new(Ipv6Addr::from(random.u128(..)), random.u8(8..=128)).unwrap(),
                    )
                };
                net.trunc()
            })
            .collect();
        for net in &nets {
            text.push_str(&net.to_string());
            text.push_str(["\n", "\r\n", " # x\n", "\n\n"][random.usize(..4)]);
        }
        let list = parsed(text.as_bytes()).unwrap();
        assert_eq!(list.entries, nets.len());
        let expected: Ranges = nets.into_iter().collect();
        assert_eq!((list.ranges.v4(), list.ranges.v6()), (expected.v4(), expected.v6()));
    }
}
