// SPDX-License-Identifier: MIT OR Apache-2.0

//! How connections begin, and what that says of the server's name: TLS's server name indication, HTTP/1's Host.

use std::collections::HashMap;
use std::net::IpAddr;

use tls_parser::{
    Err as TlsError, TlsExtension, TlsMessage, TlsMessageHandshake, TlsRecordType,
    parse_tls_client_hello_extensions, parse_tls_message_handshake, parse_tls_raw_record,
};

use super::names::{Name, Source};

/// Connections whose beginning is being put together.
const MOST_OPEN: usize = 1024;
/// A TLS record, and its header. An HTTP client that has not named its host by then does not.
const MOST_BYTES: usize = 16_384 + 5;
/// Fields of an HTTP request before its host is known.
const MOST_FIELDS: usize = 64;

/// What the first bytes of a connection say.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Name(Name),
    /// Not yet.
    More,
    Nothing,
}

/// Puts beginnings together from segments.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    open: HashMap<u64, Opening>,
}

#[derive(Debug)]
struct Opening {
    /// The sequence number of what comes next.
    next: u32,
    bytes: Vec<u8>,
}

impl Openings {
    /// A piece of what the socket of `cookie` sends. Returns the name that it completes.
    pub(crate) fn segment(&mut self, cookie: u64, seq: u32, data: &[u8]) -> Option<Name> {
        if self.open.len() >= MOST_OPEN && !self.open.contains_key(&cookie) {
            self.open.clear();
        }
        let opening =
            self.open.entry(cookie).or_insert_with(|| Opening { next: seq, bytes: Vec::new() });
        // What was sent before is sent again; what comes too early is left to that.
        let known = opening.next.wrapping_sub(seq) as i32;
        let new = data.get(usize::try_from(known).ok()?..)?;
        opening.bytes.extend_from_slice(new);
        opening.next = opening.next.wrapping_add(new.len() as u32);
        match said(&opening.bytes) {
            Said::More if opening.bytes.len() < MOST_BYTES => None,
            Said::Name(name) => {
                self.open.remove(&cookie);
                Some(name)
            }
            Said::More | Said::Nothing => {
                self.open.remove(&cookie);
                None
            }
        }
    }
}

fn said(bytes: &[u8]) -> Said {
    match bytes.first() {
        Some(22) => server_name(bytes),
        Some(b'A'..=b'Z') => host(bytes),
        Some(_) => Said::Nothing,
        None => Said::More,
    }
}

/// RFC 6066, 3: the name in a ClientHello. RFC 8446, 5.1: which may be spread over several records.
fn server_name(bytes: &[u8]) -> Said {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        match parse_tls_message_handshake(&message) {
            Ok((_, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) => {
                return name_in(hello.ext);
            }
            Err(TlsError::Incomplete(_)) => {}
            Ok(_) | Err(_) => return Said::Nothing,
        }
        match parse_tls_raw_record(rest) {
            Ok((next, record))
                if record.hdr.record_type == TlsRecordType::Handshake
                    && !record.data.is_empty() =>
            {
                message.extend_from_slice(record.data);
                rest = next;
            }
            Err(TlsError::Incomplete(_)) => return Said::More,
            Ok(_) | Err(_) => return Said::Nothing,
        }
    }
}

fn name_in(extensions: Option<&[u8]>) -> Said {
    let Some(Ok((_, extensions))) = extensions.map(parse_tls_client_hello_extensions) else {
        return Said::Nothing;
    };
    extensions
        .iter()
        .find_map(|extension| match extension {
            // Names of hosts are the only kind that was ever defined.
            TlsExtension::SNI(names) => names.iter().find(|(kind, _)| kind.0 == 0),
            _ => None,
        })
        .and_then(|(_, name)| std::str::from_utf8(name).ok())
        .map_or(Said::Nothing, |name| named(name, Source::Sni))
}

/// RFC 9112, 3.2: a request's Host field.
fn host(bytes: &[u8]) -> Said {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let whole = match request.parse(bytes) {
        Ok(status) => status.is_complete(),
        Err(_) => return Said::Nothing,
    };
    let host = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("host"));
    match host.map(|field| std::str::from_utf8(field.value)) {
        Some(Ok(value)) => named(without_port(value.trim()), Source::Host),
        Some(Err(_)) => Said::Nothing,
        None if whole => Said::Nothing,
        None => Said::More,
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// What looks like a host's name. An address is none: it says what is known anyway.
fn named(text: &str, source: Source) -> Said {
    let text = text.trim_end_matches('.').to_ascii_lowercase();
    let is_name = !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        && text.parse::<IpAddr>().is_err();
    if is_name { Said::Name(Name { text, source }) } else { Said::Nothing }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{rounds, seeded};

    /// A ClientHello by hand: what is parsed must not come from the library that it is parsed with.
    fn hello(name: Option<&str>, padding: usize) -> Vec<u8> {
        let with_length = |bytes: Vec<u8>| {
            let mut all = (bytes.len() as u16).to_be_bytes().to_vec();
            all.extend(bytes);
            all
        };
        let mut extensions = vec![0, 21];
        extensions.extend(with_length(vec![0; padding]));
        if let Some(name) = name {
            let mut entry = vec![0];
            entry.extend(with_length(name.as_bytes().to_vec()));
            extensions.extend([0, 0]);
            extensions.extend(with_length(with_length(entry)));
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend([0, 2, 0x13, 0x01, 1, 0]);
        body.extend(with_length(extensions));
        let mut handshake = vec![1, 0];
        handshake.extend(with_length(body));
        let mut record = vec![22, 3, 1];
        record.extend(with_length(handshake));
        record
    }

    fn name(text: &str, source: Source) -> Option<Name> {
        Some(Name { text: text.into(), source })
    }

    fn first(bytes: &[u8]) -> Option<Name> {
        Openings::default().segment(1, 0, bytes)
    }

    #[test]
    fn a_tls_client_names_its_server() {
        assert_eq!(first(&hello(Some("Www.Example.org"), 0)), name("www.example.org", Source::Sni));
        assert_eq!(first(&hello(Some("a.example"), 9000)), name("a.example", Source::Sni));
        assert_eq!(first(&hello(None, 10)), None);
        for bad in ["", "192.0.2.1", "a b", "a\u{1b}[31m", "ü.example"] {
            assert_eq!(first(&hello(Some(bad), 0)), None, "{bad}");
        }
    }

    /// The same in records of `size` bytes.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        let record = |data: &[u8]| [&[22, 3, 1, 0, data.len() as u8][..], data].concat();
        hello[5..].chunks(size).flat_map(record).collect()
    }

    #[test]
    fn a_client_hello_may_be_in_several_records() {
        let whole = hello(Some("records.example"), 100);
        for size in 1..255 {
            let records = in_records(&whole, size);
            assert_eq!(first(&records), name("records.example", Source::Sni), "{size}");
            let mut openings = Openings::default();
            let found: Vec<Name> = records
                .chunks(7)
                .enumerate()
                .filter_map(|(i, piece)| openings.segment(1, 7 * i as u32, piece))
                .collect();
            assert_eq!(found.first(), name("records.example", Source::Sni).as_ref(), "{size}");
        }
        // Something else in between, and records without anything.
        let mut records = in_records(&whole, 50);
        records[55] = 23;
        assert_eq!(first(&records), None);
        assert_eq!(first(&[22, 3, 1, 0, 0].repeat(100)), None);
    }

    #[test]
    fn an_http_client_names_its_host() {
        let request = |host: &str| format!("GET / HTTP/1.1\r\nAccept: */*\r\nhOsT: {host}\r\n\r\n");
        for (host, expected) in [
            ("Example.org", Some("example.org")),
            ("example.org:8080", Some("example.org")),
            ("192.0.2.1:80", None),
            ("[2001:db8::1]:80", None),
            ("[2001:db8::1]", None),
            ("", None),
        ] {
            let found = first(request(host).as_bytes());
            assert_eq!(found, expected.and_then(|text| name(text, Source::Host)), "{host}");
        }
        assert_eq!(first(b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n"), None);
        assert_eq!(first(b"HELO mail.example\r\n"), None);
        // The first word is enough, whatever follows.
        let begun = b"POST /upload HTTP/1.1\r\nHost: up.example\r\nContent-Le";
        assert_eq!(first(begun), name("up.example", Source::Host));
    }

    #[test]
    fn a_beginning_may_come_in_any_pieces() {
        for whole in [
            hello(Some("split.example"), 300),
            b"GET / HTTP/1.1\r\nHost: split.example\r\n\r\n".to_vec(),
        ] {
            for size in 1..60 {
                let mut openings = Openings::default();
                let mut found = Vec::new();
                for (i, piece) in whole.chunks(size).enumerate() {
                    let seq = 0xffff_fff0_u32.wrapping_add((i * size) as u32);
                    found.extend(openings.segment(5, seq, piece));
                    // Sent again.
                    if found.is_empty() {
                        found.extend(openings.segment(5, seq, piece));
                    }
                }
                let names: Vec<&str> = found.iter().map(|name| name.text.as_str()).collect();
                assert!(names.first() == Some(&"split.example"), "pieces of {size}: {names:?}");
            }
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut openings = Openings::default();
        for cookie in 0..3 * MOST_OPEN as u64 {
            openings.segment(cookie, 0, &[22, 3, 1, 0x40, 0]);
        }
        assert!(openings.open.len() <= MOST_OPEN);
        let mut seq = 0;
        for _ in 0..100 {
            openings.segment(
                9,
                seq,
                b"GET / HTTP/1.1\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy",
            );
            seq += 60;
        }
        assert!(openings.open.values().all(|opening| opening.bytes.len() < 2 * MOST_BYTES));
    }

    #[test]
    fn fuzz_openings() {
        let mut random = seeded();
        let seeds = [
            hello(Some("fuzz.example"), 40),
            hello(None, 0),
            in_records(&hello(Some("fuzz.example"), 40), 30),
            b"GET /x HTTP/1.1\r\nHost: fuzz.example:80\r\nA: b\r\n\r\n".to_vec(),
        ];
        for _ in 0..rounds(20_000) {
            let mut bytes = seeds[random.usize(..seeds.len())].clone();
            for _ in 0..random.usize(..6) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(..=bytes.len()));
            // In random pieces, some twice, some lost. Whatever it says, it must be a name.
            let mut openings = Openings::default();
            let mut at = 0;
            while at < bytes.len() {
                let end = (at + random.usize(1..=bytes.len())).min(bytes.len());
                if let Some(name) = openings.segment(1, at as u32, &bytes[at..end]) {
                    assert!(
                        matches!(named(&name.text, name.source), Said::Name(same) if same == name)
                    );
                }
                if random.u8(..4) != 0 {
                    at = end;
                } else if random.bool() {
                    at += 1;
                }
            }
        }
    }
}
