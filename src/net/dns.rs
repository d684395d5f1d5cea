// SPDX-License-Identifier: MIT OR Apache-2.0

//! DNS: questions and answers, put together from what was sent and received, and taken apart.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use simple_dns::rdata::{RData, SVCB, SVCParam};
use simple_dns::{CLASS, Packet, PacketFlag, RCODE};

/// TCP connections to resolvers that are followed at a time, each way, and datagrams that come in pieces.
const MAX_STREAMS: usize = 256;
/// Bytes of them that are kept at a time; of the datagrams as many again.
const MAX_BYTES: usize = 16 << 20;
/// A DNS message over TCP is at most this long, with its length.
const MAX_MESSAGE: usize = 65_535 + 2;
/// Segments that wait for one before them. Processors that a sender changes between may deliver a whole window later.
const MAX_EARLY: usize = 1024;
/// Aliases that lead from a name to its address. Resolvers give up after a dozen or so.
const MAX_CHAIN: usize = 32;
/// Questions that are open at a time; the oldest go first.
const MAX_QUESTIONS: usize = 16_384;
/// How long an answer may take: longer than programs wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked for: what an answer has to repeat.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    id: u16,
    name: String,
    kind: u16,
    class: u16,
}

/// A message's only question, and whether the message answers it. Nothing for what is no DNS message.
fn question(packet: &Packet<'_>) -> Option<Question> {
    let [question] = packet.questions.as_slice() else { return None };
    Some(Question {
        id: packet.id(),
        name: key(&question.qname.to_string()),
        kind: question.qtype.into(),
        class: question.qclass.into(),
    })
}

/// The question that a client asks with this message.
pub(crate) fn asked(message: &[u8]) -> Option<Question> {
    let packet = Packet::parse(message).ok()?;
    if packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    question(&packet)
}

/// An address that was given for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) addr: IpAddr,
    pub(crate) name: String,
    pub(crate) ttl: Duration,
}

/// The question that a message answers, and the addresses in it: a chain of CNAMEs leads from the name that was asked for to them.
/// Nothing for bytes that are no DNS answer.
pub(crate) fn answers(message: &[u8]) -> Option<(Question, Vec<Answer>)> {
    let packet = Packet::parse(message).ok()?;
    if !packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    let question = question(&packet)?;
    if packet.rcode() != RCODE::NoError {
        return Some((question, Vec::new()));
    }
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
    let mut last = &question.name;
    let mut chain = HashSet::from([last]);
    while chain.len() < MAX_CHAIN
        && let Some(next) = aliases.get(last)
        && chain.insert(next)
    {
        last = next;
    }
    let name = display(&question.name);
    let mut answers = Vec::new();
    for record in &packet.answers {
        if record.class != CLASS::IN || !chain.contains(&key(&record.name.to_string())) {
            continue;
        }
        let addresses: Vec<IpAddr> = match &record.rdata {
            RData::A(a) => vec![IpAddr::V4(a.address.into())],
            RData::AAAA(aaaa) => vec![IpAddr::V6(aaaa.address.into())],
            RData::HTTPS(service) => hints(service),
            _ => continue,
        };
        answers.extend(addresses.into_iter().map(|addr| Answer {
            addr: addr.to_canonical(),
            name: name.clone(),
            ttl: Duration::from_secs(record.ttl.into()),
        }));
    }
    Some((question, answers))
}

/// Who asks whom: a socket, the resolver's address and port, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    /// The inode number of the network namespace.
    pub(crate) netns: u32,
    pub(crate) cookie: u64,
    pub(crate) client: (IpAddr, u16),
    pub(crate) resolver: (IpAddr, u16),
    pub(crate) tcp: bool,
    /// From the client to the resolver.
    pub(crate) question: bool,
}

/// Who asked what: a socket of a network namespace. Its address and the resolver's are no part of it: a question is seen behind address
/// translation, and its answer in front of it.
type Asked = (u32, u64, bool, Question);

fn key_of(flow: Flow, question: Question) -> Asked {
    (flow.netns, flow.cookie, flow.tcp, question)
}

/// Questions that were asked and not answered.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    /// When, and of which resolver.
    open: HashMap<Asked, (Instant, IpAddr)>,
    /// In the order in which they were asked.
    order: VecDeque<(Instant, Asked)>,
}

impl Questions {
    pub(crate) fn ask(&mut self, flow: Flow, question: Question, now: Instant) {
        let key = key_of(flow, question);
        self.open.insert(key.clone(), (now, flow.resolver.0));
        self.order.push_back((now, key));
        while let Some((then, _)) = self.order.front()
            && (self.order.len() > MAX_QUESTIONS || now.saturating_duration_since(*then) > PATIENCE)
            && let Some((then, key)) = self.order.pop_front()
        {
            // What was asked again since waits on.
            if self.open.get(&key).is_some_and(|(asked, _)| *asked == then) {
                self.open.remove(&key);
            }
        }
    }

    /// Of which resolver this socket asked just this, a moment ago; nothing if it did not. An answer is taken once.
    pub(crate) fn answer(
        &mut self,
        flow: Flow,
        question: Question,
        now: Instant,
    ) -> Option<IpAddr> {
        let (then, resolver) = self.open.remove(&key_of(flow, question))?;
        (now.saturating_duration_since(then) <= PATIENCE).then_some(resolver)
    }
}

/// RFC 9460, 7.3: addresses that a client may use without asking for them.
fn hints(service: &SVCB<'_>) -> Vec<IpAddr> {
    service
        .iter_params()
        .flat_map(|param| match param {
            SVCParam::Ipv4Hint(hints) => hints.iter().map(|&v4| IpAddr::V4(v4.into())).collect(),
            SVCParam::Ipv6Hint(hints) => hints.iter().map(|&v6| IpAddr::V6(v6.into())).collect(),
            _ => Vec::new(),
        })
        .collect()
}

/// DNS names differ in case and a final dot without being different.
fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The name of the host. A service's has labels before it that say which (RFC 9460, 2.3).
fn display(name: &str) -> String {
    let mut name = key(name);
    while name.starts_with('_')
        && let Some((_, host)) = name.split_once('.')
    {
        name = host.to_string();
    }
    if name.is_empty() { ".".into() } else { name }
}

/// Puts messages together from the pieces in which packets and streams come.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    datagrams: HashMap<Flow, Vec<u8>>,
    streams: HashMap<Flow, Stream>,
    /// What the streams hold.
    bytes: usize,
}

/// One direction of a TCP connection, from the first segment that we see.
#[derive(Debug, Default)]
struct Stream {
    /// The sequence number of the first byte of `ready`'s end.
    next: u32,
    ready: Vec<u8>,
    /// Segments that came before those in front of them, by sequence number.
    early: Vec<(u32, Vec<u8>)>,
    early_bytes: usize,
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
        let many = self.streams.len() >= MAX_STREAMS && !self.streams.contains_key(&flow);
        if many || self.bytes + data.len() > MAX_BYTES {
            self.streams.clear();
            self.bytes = 0;
        }
        let stream =
            self.streams.entry(flow).or_insert_with(|| Stream { next: seq, ..Stream::default() });
        self.bytes -= stream.bytes();
        // A new connection with the old one's ports: nothing near what was expected.
        if (seq.wrapping_sub(stream.next) as i32).unsigned_abs() > 1 << 20 {
            *stream = Stream { next: seq, ..Stream::default() };
        }
        stream.early_bytes += data.len();
        stream.early.push((seq, data.to_vec()));
        stream.advance();
        let messages = stream.messages();
        if stream.ready.len() > MAX_MESSAGE || stream.early.len() > MAX_EARLY {
            self.streams.remove(&flow);
        } else {
            self.bytes += stream.bytes();
        }
        messages
    }

    /// The connection began or ended with this packet: what was open is no more, unless there is something to come that was before it.
    pub(crate) fn ended(&mut self, flow: Flow) {
        if self.streams.get(&flow).is_some_and(|stream| stream.early.is_empty())
            && let Some(stream) = self.streams.remove(&flow)
        {
            self.bytes -= stream.bytes();
        }
    }
}

impl Stream {
    fn bytes(&self) -> usize {
        self.ready.len() + self.early_bytes
    }

    /// Moves what follows on to `ready`; what was there before (a retransmission) is dropped.
    fn advance(&mut self) {
        while let Some(at) =
            self.early.iter().position(|(seq, _)| self.next.wrapping_sub(*seq) as i32 >= 0)
        {
            let (seq, data) = self.early.swap_remove(at);
            self.early_bytes -= data.len();
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
    use crate::random::{rounds, seeded};
    use simple_dns::rdata::{A, AAAA, CNAME, HTTPS};
    use simple_dns::{Name, QCLASS, QTYPE, ResourceRecord, TYPE};

    fn name(text: &str) -> Name<'_> {
        Name::new_unchecked(text)
    }

    fn reply<'a>(asked: &'a str, records: Vec<(&'a str, RData<'a>)>) -> Vec<u8> {
        let mut packet = Packet::new_reply(7);
        packet.questions.push(simple_dns::Question::new(
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

    fn https(target: &str) -> RData<'_> {
        let mut service = SVCB::new(1, name(target));
        service.set_ipv4hint(&[0xc000_0207]);
        service.set_ipv6hint(&[0x2001_0db8 << 96 | 7]);
        RData::HTTPS(HTTPS(service))
    }

    fn given(message: &[u8]) -> Vec<Answer> {
        answers(message).map(|(_, answers)| answers).unwrap_or_default()
    }

    fn flow() -> Flow {
        Flow {
            netns: 1,
            cookie: 7,
            client: (addr("192.0.2.2"), 4000),
            resolver: (addr("192.0.2.53"), 53),
            tcp: false,
            question: false,
        }
    }

    fn named(message: &[u8]) -> Vec<(IpAddr, String)> {
        given(message).into_iter().map(|answer| (answer.addr, answer.name)).collect()
    }

    #[test]
    fn an_end_that_comes_before_the_middle_ends_nothing() {
        let message = reply("late.example", vec![("late.example", a("192.0.2.7"))]);
        let mut wire = (message.len() as u16).to_be_bytes().to_vec();
        wire.extend(&message);
        let flow = flow();
        let pieces: Vec<(u32, &[u8])> =
            wire.chunks(1).enumerate().map(|(at, piece)| (at as u32, piece)).collect();
        let (first, rest) = pieces.split_first().unwrap();
        let mut reassembly = Reassembly::default();
        assert!(reassembly.segment(flow, first.0, first.1).is_empty());
        // The last is the end of the connection, and comes first of the rest.
        let mut messages = Vec::new();
        for (at, piece) in rest.iter().rev() {
            messages.extend(reassembly.segment(flow, *at, piece));
            if *at == rest.len() as u32 {
                reassembly.ended(flow);
            }
        }
        assert_eq!(messages, [message]);
        reassembly.ended(flow);
        assert!(reassembly.streams.is_empty());
    }

    #[test]
    fn a_chain_is_known_by_its_question_in_any_order() {
        let message = reply(
            "WWW.Example.org",
            vec![
                ("edge.cdn.example", a("192.0.2.1")),
                ("cdn.example", cname("edge.cdn.example")),
                ("www.example.org", cname("cdn.example")),
                ("edge.cdn.example", aaaa("2001:db8::1")),
                ("unrelated.example", a("192.0.2.9")),
            ],
        );
        let www = "www.example.org".to_string();
        assert_eq!(named(&message), [(addr("192.0.2.1"), www.clone()), (addr("2001:db8::1"), www)]);
        assert!(given(&message).iter().all(|answer| answer.ttl == Duration::from_secs(60)));
    }

    #[test]
    fn hints_of_a_service_are_addresses_of_its_host() {
        let message =
            reply("_8443._https.shop.example", vec![("_8443._https.shop.example", https("."))]);
        let shop = "shop.example".to_string();
        assert_eq!(
            named(&message),
            [(addr("192.0.2.7"), shop.clone()), (addr("2001:db8::7"), shop)]
        );
    }

    #[test]
    fn a_loop_of_cnames_ends() {
        let message = reply(
            "a.example",
            vec![("a.example", cname("b.example")), ("b.example", cname("a.example"))],
        );
        assert!(given(&message).is_empty());
    }

    #[test]
    fn queries_and_junk_teach_nothing() {
        let mut query = reply("a.example", vec![("a.example", a("192.0.2.1"))]);
        assert_eq!(given(&query).len(), 1);
        query[2] &= 0x7f;
        assert!(answers(&query).is_none());
        assert!(asked(&query).is_some());
        assert!(asked(&query[..20]).is_none());
    }

    #[test]
    fn an_answer_is_one_to_a_question_that_was_asked() {
        let message = reply("A.example", vec![("a.example", a("192.0.2.1"))]);
        let mut query = message.clone();
        query[2] &= 0x7f;
        let (answered, _) = answers(&message).unwrap();
        let (now, later) = (Instant::now(), Duration::from_secs(1));
        let asks = || {
            let mut questions = Questions::default();
            questions.ask(Flow { question: true, ..flow() }, asked(&query).unwrap(), now);
            questions
        };
        let resolver = Some(flow().resolver.0);
        assert_eq!(asks().answer(flow(), answered.clone(), now + later), resolver);
        // Seen in front of address translation.
        let translated =
            Flow { client: (addr("10.0.0.2"), 5000), resolver: (addr("10.0.0.53"), 53), ..flow() };
        assert_eq!(asks().answer(translated, answered.clone(), now), resolver);
        // Once, in time, by the same socket, with the same number, name and kind.
        let mut questions = asks();
        assert!(questions.answer(flow(), answered.clone(), now).is_some());
        assert!(questions.answer(flow(), answered.clone(), now).is_none());
        assert!(asks().answer(flow(), answered.clone(), now + PATIENCE + later).is_none());
        for other in [
            Flow { netns: 2, ..flow() },
            Flow { cookie: 8, ..flow() },
            Flow { tcp: true, ..flow() },
        ] {
            assert!(asks().answer(other, answered.clone(), now).is_none(), "{other:?}");
        }
        for other in [
            Question { id: 8, ..answered.clone() },
            Question { name: "b.example".into(), ..answered.clone() },
            Question { kind: 28, ..answered.clone() },
            Question { class: 3, ..answered.clone() },
        ] {
            assert!(asks().answer(flow(), other.clone(), now).is_none(), "{other:?}");
        }
        assert!(Questions::default().answer(flow(), answered.clone(), now).is_none());
    }

    #[test]
    fn open_questions_are_bounded() {
        let mut questions = Questions::default();
        let (question, now) = (
            asked(&{
                let mut query = reply("a.example", vec![]);
                query[2] &= 0x7f;
                query
            }),
            Instant::now(),
        );
        for cookie in 0..MAX_QUESTIONS as u64 + 10 {
            questions.ask(Flow { cookie, ..flow() }, question.clone().unwrap(), now);
        }
        assert_eq!((questions.open.len(), questions.order.len()), (MAX_QUESTIONS, MAX_QUESTIONS));
        let later = now + 2 * PATIENCE;
        questions.ask(flow(), question.clone().unwrap(), later);
        assert_eq!((questions.open.len(), questions.order.len()), (1, 1));
    }

    /// As long a chain as a message holds, which is none that resolvers make.
    #[test]
    fn long_chains_are_not_walked_to_their_end() {
        let names: Vec<String> = (0..3000).map(|i| format!("n{i}.e")).collect();
        let mut records: Vec<(&str, RData<'_>)> =
            names.windows(2).map(|pair| (pair[0].as_str(), cname(pair[1].as_str()))).collect();
        records.push(("n20.e", a("192.0.2.20")));
        records.push(("n2999.e", a("192.0.2.1")));
        let message = reply("n0.e", records);
        assert_eq!(named(&message), [(addr("192.0.2.20"), "n0.e".to_string())]);
    }

    #[test]
    fn streams_hold_so_much_and_no_more() {
        let mut reassembly = Reassembly::default();
        let segment = vec![0; 60_000];
        for cookie in 0..200 {
            // What comes first is missing, so nothing is ever whole.
            reassembly.segment(Flow { cookie, ..flow() }, 0, &[]);
            for i in 0..10 {
                reassembly.segment(Flow { cookie, ..flow() }, 100_000 + i * 60_000, &segment);
                let held: usize = reassembly.streams.values().map(Stream::bytes).sum();
                assert_eq!(held, reassembly.bytes);
                assert!(held <= MAX_BYTES, "{held}");
            }
        }
    }

    /// Whatever it teaches, it must not panic, nor take for ever.
    #[test]
    fn fuzz_dns_answers() {
        let good = reply(
            "a.example",
            vec![
                ("a.example", cname("b.example")),
                ("b.example", a("192.0.2.1")),
                ("b.example", aaaa("2001:db8::1")),
                ("b.example", https("c.example")),
            ],
        );
        for len in 0..good.len() {
            answers(&good[..len]);
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                answers(&bad);
            }
        }
        let mut random = seeded();
        for _ in 0..rounds(20_000) {
            let mut bytes = if random.bool() {
                good.clone()
            } else {
                (0..random.usize(..80)).map(|_| random.u8(..)).collect()
            };
            for _ in 0..random.usize(..6).min(bytes.len()) {
                let at = random.usize(..bytes.len());
                // Compressed names that point anywhere, themselves included.
                bytes[at] = if random.bool() { 0xc0 } else { random.u8(..) };
            }
            answers(&bytes);
        }
    }

    #[test]
    fn streams_are_put_together_from_any_pieces() {
        let flow = flow();
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
        let flow = flow();
        let mut reassembly = Reassembly::default();
        assert_eq!(reassembly.datagram(flow, 0, 3, b"abc").unwrap(), b"abc");
        assert_eq!(reassembly.datagram(flow, 0, 5, b"abc"), None);
        assert_eq!(reassembly.datagram(flow, 3, 5, b"de").unwrap(), b"abcde");
        assert_eq!(reassembly.datagram(flow, 3, 5, b"de"), None);
    }
}
