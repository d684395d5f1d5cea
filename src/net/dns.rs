// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names of addresses, from the DNS answers that this machine received. Never a reverse look-up: what an address is
//! called in some zone says nothing of what was asked for.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Packet, PacketFlag, RCODE};

/// Addresses that are remembered; the oldest go first.
const MAX_ADDRESSES: usize = 16_384;
/// Names of one address; the oldest go first.
const MAX_NAMES: usize = 8;
/// TCP connections to resolvers that are followed at a time.
const MAX_STREAMS: usize = 256;
/// A DNS message over TCP is at most this long, with its length.
const MAX_MESSAGE: usize = 65_535 + 2;

/// Who is called what.
#[derive(Debug, Default)]
pub(crate) struct Names {
    names: HashMap<IpAddr, VecDeque<String>>,
    /// In the order in which addresses were first named.
    order: VecDeque<IpAddr>,
}

impl Names {
    /// Every name that was asked for and answered with this address, the latest first.
    pub(crate) fn of(&self, addr: IpAddr) -> Vec<String> {
        self.names.get(&addr).map(|names| names.iter().cloned().collect()).unwrap_or_default()
    }

    /// Learns from one DNS message, if it is an answer. Bytes that are no DNS message teach nothing.
    pub(crate) fn learn(&mut self, message: &[u8]) {
        for (addr, name) in answers(message) {
            self.insert(addr, name);
        }
    }

    fn insert(&mut self, addr: IpAddr, name: String) {
        let names = self.names.entry(addr).or_insert_with(|| {
            self.order.push_back(addr);
            VecDeque::new()
        });
        names.retain(|known| *known != name);
        names.push_front(name);
        names.truncate(MAX_NAMES);
        if self.order.len() > MAX_ADDRESSES
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }
}

/// The addresses in an answer, each with the name that was asked: a chain of CNAMEs leads from it to them.
fn answers(message: &[u8]) -> Vec<(IpAddr, String)> {
    let Ok(packet) = Packet::parse(message) else {
        return Vec::new();
    };
    let [question] = packet.questions.as_slice() else {
        return Vec::new();
    };
    if !packet.has_flags(PacketFlag::RESPONSE) || packet.rcode() != RCODE::NoError {
        return Vec::new();
    }
    let mut chain = vec![key(&question.qname.to_string())];
    // Resolvers may send a chain in any order.
    let aliases: BTreeMap<String, String> = packet
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            RData::CNAME(target) => {
                Some((key(&record.name.to_string()), key(&target.0.to_string())))
            }
            _ => None,
        })
        .collect();
    while let Some(next) = chain.last().and_then(|last| aliases.get(last)) {
        if chain.contains(next) {
            break;
        }
        chain.push(next.clone());
    }
    let name = display(&question.qname.to_string());
    packet
        .answers
        .iter()
        .filter(|record| {
            record.class == CLASS::IN && chain.contains(&key(&record.name.to_string()))
        })
        .filter_map(|record| match &record.rdata {
            RData::A(a) => Some(IpAddr::V4(a.address.into())),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.address.into())),
            _ => None,
        })
        .map(|addr| (addr.to_canonical(), name.clone()))
        .collect()
}

/// DNS names differ in case and a final dot without being different.
fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn display(name: &str) -> String {
    let name = key(name);
    if name.is_empty() { ".".into() } else { name }
}

/// Which conversation a packet belongs to: resolver, client, client's port.
pub(crate) type Flow = (IpAddr, IpAddr, u16);

/// Puts messages together from the pieces in which packets and streams come.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    datagrams: HashMap<Flow, Vec<u8>>,
    streams: HashMap<Flow, Stream>,
}

/// One direction of a TCP connection, from the first segment that we see.
#[derive(Debug, Default)]
struct Stream {
    /// The sequence number of the first byte of `ready`'s end.
    next: u32,
    ready: Vec<u8>,
    /// Segments that came before those in front of them, by sequence number.
    early: Vec<(u32, Vec<u8>)>,
}

impl Reassembly {
    /// A piece of a UDP datagram's payload. Returns the datagram when it is whole.
    pub(crate) fn datagram(
        &mut self,
        flow: Flow,
        offset: u32,
        total: u32,
        data: &[u8],
    ) -> Option<Vec<u8>> {
        if offset == 0 && data.len() == total as usize {
            return Some(data.to_vec());
        }
        if offset == 0 {
            if self.datagrams.len() >= MAX_STREAMS {
                self.datagrams.clear();
            }
            self.datagrams.insert(flow, data.to_vec());
            return None;
        }
        let begun = self.datagrams.get_mut(&flow)?;
        if begun.len() != offset as usize {
            self.datagrams.remove(&flow);
            return None;
        }
        begun.extend_from_slice(data);
        if begun.len() < total as usize {
            return None;
        }
        self.datagrams.remove(&flow)
    }

    /// A piece of a TCP stream. Returns the messages that it completes.
    pub(crate) fn segment(&mut self, flow: Flow, seq: u32, data: &[u8]) -> Vec<Vec<u8>> {
        if self.streams.len() >= MAX_STREAMS && !self.streams.contains_key(&flow) {
            self.streams.clear();
        }
        let stream =
            self.streams.entry(flow).or_insert_with(|| Stream { next: seq, ..Stream::default() });
        // A new connection with the old one's ports: nothing near what was expected.
        if (seq.wrapping_sub(stream.next) as i32).unsigned_abs() > 1 << 20 {
            *stream = Stream { next: seq, ..Stream::default() };
        }
        stream.early.push((seq, data.to_vec()));
        stream.advance();
        let messages = stream.messages();
        if stream.ready.len() > MAX_MESSAGE || stream.early.len() > 64 {
            self.streams.remove(&flow);
        }
        messages
    }

    /// The connection began or ended with this packet: what was open is no more.
    pub(crate) fn forget(&mut self, flow: Flow) {
        self.streams.remove(&flow);
    }
}

impl Stream {
    /// Moves what follows on to `ready`; what was there before (a retransmission) is dropped.
    fn advance(&mut self) {
        while let Some(at) =
            self.early.iter().position(|(seq, _)| self.next.wrapping_sub(*seq) as i32 >= 0)
        {
            let (seq, data) = self.early.swap_remove(at);
            let known = self.next.wrapping_sub(seq) as usize;
            if let Some(new) = data.get(known..) {
                self.ready.extend_from_slice(new);
                self.next = self.next.wrapping_add(new.len() as u32);
            }
        }
    }

    /// RFC 1035, 4.2.2: each message is preceded by its length in two bytes.
    fn messages(&mut self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        while let Some(&[high, low]) = self.ready.first_chunk::<2>() {
            let end = 2 + usize::from(u16::from_be_bytes([high, low]));
            if self.ready.len() < end {
                break;
            }
            messages.push(self.ready[2..end].to_vec());
            self.ready.drain(..end);
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::rdata::{A, AAAA, CNAME};
    use simple_dns::{Name, QCLASS, QTYPE, Question, ResourceRecord, TYPE};

    fn name(text: &str) -> Name<'_> {
        Name::new_unchecked(text)
    }

    fn reply<'a>(asked: &'a str, records: Vec<(&'a str, RData<'a>)>) -> Vec<u8> {
        let mut packet = Packet::new_reply(7);
        packet.questions.push(Question::new(
            name(asked),
            QTYPE::TYPE(TYPE::A),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        for (owner, rdata) in records {
            packet.answers.push(ResourceRecord::new(name(owner), CLASS::IN, 60, rdata));
        }
        packet.build_bytes_vec_compressed().unwrap()
    }

    fn a(text: &str) -> RData<'static> {
        RData::A(A { address: text.parse::<std::net::Ipv4Addr>().unwrap().into() })
    }

    fn aaaa(text: &str) -> RData<'static> {
        RData::AAAA(AAAA { address: text.parse::<std::net::Ipv6Addr>().unwrap().into() })
    }

    fn cname(text: &str) -> RData<'_> {
        RData::CNAME(CNAME(name(text)))
    }

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_chain_is_known_by_its_question_in_any_order() {
        let mut names = Names::default();
        names.learn(&reply(
            "WWW.Example.org",
            vec![
                ("edge.cdn.example", a("192.0.2.1")),
                ("cdn.example", cname("edge.cdn.example")),
                ("www.example.org", cname("cdn.example")),
                ("edge.cdn.example", aaaa("2001:db8::1")),
                ("unrelated.example", a("192.0.2.9")),
            ],
        ));
        assert_eq!(names.of(addr("192.0.2.1")), ["www.example.org"]);
        assert_eq!(names.of(addr("2001:db8::1")), ["www.example.org"]);
        assert!(names.of(addr("192.0.2.9")).is_empty());
    }

    #[test]
    fn all_names_of_an_address_are_kept_the_latest_first() {
        let mut names = Names::default();
        for asked in ["a.example", "b.example", "a.example"] {
            names.learn(&reply(asked, vec![(asked, a("192.0.2.1"))]));
        }
        assert_eq!(names.of(addr("192.0.2.1")), ["a.example", "b.example"]);
    }

    #[test]
    fn a_loop_of_cnames_ends() {
        let mut names = Names::default();
        names.learn(&reply(
            "a.example",
            vec![("a.example", cname("b.example")), ("b.example", cname("a.example"))],
        ));
        assert!(names.names.is_empty());
    }

    #[test]
    fn queries_and_junk_teach_nothing() {
        let mut names = Names::default();
        let good = reply("a.example", vec![("a.example", a("192.0.2.1"))]);
        let mut query = good.clone();
        query[2] &= 0x7f;
        names.learn(&query);
        assert!(names.names.is_empty());
        // Every cut and every flipped byte: whatever it teaches, it must not panic.
        for len in 0..good.len() {
            names.learn(&good[..len]);
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                Names::default().learn(&bad);
            }
        }
        let mut seed = 1_u64;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..64)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 56) as u8
                })
                .collect();
            Names::default().learn(&bytes);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut names = Names::default();
        for i in 0..MAX_ADDRESSES as u32 + 100 {
            names.insert(IpAddr::V4(i.into()), format!("n{i}"));
        }
        assert_eq!(names.names.len(), MAX_ADDRESSES);
        assert!(names.of(IpAddr::V4(0.into())).is_empty());
        for i in 0..20 {
            names.insert(addr("192.0.2.1"), format!("n{i}"));
        }
        assert_eq!(names.of(addr("192.0.2.1")).len(), MAX_NAMES);
    }

    #[test]
    fn streams_are_put_together_from_any_pieces() {
        let flow = (addr("192.0.2.53"), addr("192.0.2.2"), 4000);
        let mut wire = Vec::new();
        for text in ["first", "second message"] {
            wire.extend_from_slice(&(text.len() as u16).to_be_bytes());
            wire.extend_from_slice(text.as_bytes());
        }
        let expected = [b"first".to_vec(), b"second message".to_vec()];
        // Across the wrap of sequence numbers, in pieces of every size.
        for size in 1..=wire.len() {
            let mut reassembly = Reassembly::default();
            let mut messages = Vec::new();
            for (i, piece) in wire.chunks(size).enumerate() {
                let seq = 0xffff_fff8_u32.wrapping_add((i * size) as u32);
                messages.extend(reassembly.segment(flow, seq, piece));
                // A retransmission adds nothing.
                messages.extend(reassembly.segment(flow, seq, piece));
            }
            assert_eq!(messages, expected, "pieces of {size}");
        }
        // Out of order.
        let mut reassembly = Reassembly::default();
        let mut messages = reassembly.segment(flow, 100, &wire[..3]);
        messages.extend(reassembly.segment(flow, 110, &wire[10..]));
        messages.extend(reassembly.segment(flow, 103, &wire[3..10]));
        assert_eq!(messages, expected);
    }

    #[test]
    fn datagrams_are_put_together() {
        let flow = (addr("192.0.2.53"), addr("192.0.2.2"), 4000);
        let mut reassembly = Reassembly::default();
        assert_eq!(reassembly.datagram(flow, 0, 3, b"abc").unwrap(), b"abc");
        assert_eq!(reassembly.datagram(flow, 0, 5, b"abc"), None);
        assert_eq!(reassembly.datagram(flow, 3, 5, b"de").unwrap(), b"abcde");
        assert_eq!(reassembly.datagram(flow, 3, 5, b"de"), None);
    }
}
