// SPDX-License-Identifier: MIT OR Apache-2.0

//! What addresses are called, by what this machine asked for and said itself. Never a reverse look-up: what an address is
//! called in some zone says nothing of what was asked for.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Addresses and sockets that are remembered; the oldest go first.
const MOST_KEYS: usize = 16_384;
/// Names of one of them; the oldest go first.
const MOST_NAMES: usize = 8;
/// A name is remembered for its time to live, but at least for so long: connections outlive it.
const AT_LEAST: Duration = Duration::from_secs(600);
/// A name that has no time to live.
const WITHOUT_TTL: Duration = Duration::from_secs(3600);

/// What says that an address has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Source {
    /// An answer to a question for the name
    Dns,
    /// The server name that a TLS client asks for
    Sni,
    /// The host that an HTTP client asks for
    Host,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "dns",
            Self::Sni => "sni",
            Self::Host => "host",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name {
    pub(crate) text: String,
    pub(crate) source: Source,
}

/// A process, by its id and start time: two that had the same id are two.
pub(crate) type Asker = (u32, u64);

/// What a packet is known by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) addr: IpAddr,
    /// Any, where it isn't known.
    pub(crate) port: Option<u16>,
    /// Of its socket; 0 is none.
    pub(crate) cookie: u64,
    /// Who owns that.
    pub(crate) asker: Option<Asker>,
}

/// Who is called what.
#[derive(Debug, Default)]
pub(crate) struct Names {
    answers: Shelf<IpAddr>,
    services: Shelf<IpAddr>,
    sockets: Shelf<u64>,
}

impl Names {
    /// An answer gave `addr` as the address of `name`.
    pub(crate) fn answered(
        &mut self,
        addr: IpAddr,
        name: String,
        ttl: Duration,
        asker: Option<Asker>,
        now: Instant,
    ) {
        let until = now + ttl.max(AT_LEAST);
        self.answers.insert(addr, Known { name, source: Source::Dns, port: None, asker, until });
    }

    /// A connection to `packet` asked for `name`.
    pub(crate) fn asked_for(&mut self, packet: &Packet, name: &Name, now: Instant) {
        let Name { text, source } = name.clone();
        let Packet { port, asker, .. } = *packet;
        let known = Known { name: text, source, port, asker, until: now + WITHOUT_TTL };
        if packet.cookie != 0 {
            self.sockets.insert(packet.cookie, known.clone());
        }
        self.services.insert(packet.addr, known);
    }

    /// Every name that the packet's destination may be meant by, the most likely first: what the same connection asked for,
    /// what the same process asked for, what others did; the latest before earlier ones.
    pub(crate) fn of(&self, packet: &Packet, now: Instant) -> Vec<Name> {
        let Packet { addr, port, cookie, asker } = *packet;
        let own = |known: &&Known| asker.is_some() && known.asker == asker;
        let answers = || self.answers.get(addr, now);
        let same_port = move |known: &&Known| port.is_none() || known.port == port;
        let services = || self.services.get(addr, now).filter(same_port);
        let mut names: Vec<Name> = Vec::new();
        self.sockets
            .get(cookie, now)
            .chain(answers().filter(own))
            .chain(services().filter(own))
            .chain(answers())
            .chain(services())
            .for_each(|known| {
                if !names.iter().any(|name| name.text == known.name) {
                    names.push(Name { text: known.name.clone(), source: known.source });
                }
            });
        names
    }

    /// All names of an address, the latest first.
    pub(crate) fn all(&self, addr: IpAddr, now: Instant) -> Vec<String> {
        let packet = Packet { addr, port: None, cookie: 0, asker: None };
        self.of(&packet, now).into_iter().map(|name| name.text).collect()
    }
}

#[derive(Clone, Debug)]
struct Known {
    name: String,
    source: Source,
    port: Option<u16>,
    asker: Option<Asker>,
    until: Instant,
}

#[derive(Debug)]
struct Shelf<K> {
    names: HashMap<K, VecDeque<Known>>,
    /// In the order in which they were first named.
    order: VecDeque<K>,
}

impl<K> Default for Shelf<K> {
    fn default() -> Self {
        Self { names: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Copy + Eq + Hash> Shelf<K> {
    fn insert(&mut self, key: K, new: Known) {
        let names = self.names.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            VecDeque::new()
        });
        names.retain(|known| {
            (&known.name, known.port, known.asker) != (&new.name, new.port, new.asker)
        });
        names.push_front(new);
        names.truncate(MOST_NAMES);
        if self.order.len() > MOST_KEYS
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }

    /// The latest first.
    fn get(&self, key: K, now: Instant) -> impl Iterator<Item = &Known> {
        self.names.get(&key).into_iter().flatten().filter(move |known| known.until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn texts(names: &[Name]) -> Vec<(&str, Source)> {
        names.iter().map(|name| (name.text.as_str(), name.source)).collect()
    }

    #[test]
    fn all_names_of_an_address_are_kept_the_latest_first() {
        let (mut names, now) = (Names::default(), Instant::now());
        for name in ["a.example", "b.example", "a.example"] {
            names.answered(addr("192.0.2.1"), name.into(), TTL, None, now);
        }
        assert_eq!(names.all(addr("192.0.2.1"), now), ["a.example", "b.example"]);
    }

    #[test]
    fn what_one_process_asked_for_is_not_another_ones_first_name() {
        let (mut names, now) = (Names::default(), Instant::now());
        let (ping, firefox) = ((1, 1), (2, 2));
        names.answered(addr("192.0.2.1"), "ping.example".into(), TTL, Some(ping), now);
        names.answered(addr("192.0.2.1"), "fox.example".into(), TTL, Some(firefox), now);
        names.answered(addr("192.0.2.1"), "stub.example".into(), TTL, None, now);
        let packet =
            |asker, cookie| Packet { addr: addr("192.0.2.1"), port: Some(443), cookie, asker };
        let first = |asker| names.of(&packet(asker, 0), now)[0].text.clone();
        assert_eq!(first(Some(ping)), "ping.example");
        assert_eq!(first(Some(firefox)), "fox.example");
        assert_eq!(first(None), "stub.example");
        assert_eq!(names.of(&packet(Some(ping), 0), now).len(), 3);

        // The connection's own word is the best, and is for other ports no word at all.
        let name = Name { text: "api.example".into(), source: Source::Sni };
        names.asked_for(&packet(Some(ping), 7), &name, now);
        assert_eq!(
            texts(&names.of(&packet(Some(firefox), 7), now))[0],
            ("api.example", Source::Sni)
        );
        assert_eq!(names.of(&packet(Some(firefox), 0), now)[0].text, "fox.example");
        let elsewhere = Packet { port: Some(80), ..packet(Some(firefox), 0) };
        assert_eq!(names.of(&elsewhere, now).len(), 3);
        let anywhere = Packet { port: None, ..elsewhere };
        assert_eq!(names.of(&anywhere, now).len(), 4);
        assert_eq!(names.of(&packet(None, 0), now).len(), 4);
    }

    #[test]
    fn names_last_for_their_time_and_not_less_than_connections_do() {
        let (mut names, now) = (Names::default(), Instant::now());
        let at = addr("192.0.2.1");
        names.answered(at, "short.example".into(), Duration::ZERO, None, now);
        names.answered(at, "long.example".into(), 3 * AT_LEAST, None, now);
        let later = |times| names.all(at, now + times * AT_LEAST - TTL);
        assert_eq!(later(1), ["long.example", "short.example"]);
        assert_eq!(later(2), ["long.example"]);
        assert!(later(4).is_empty());
        // As much as a message may say.
        names.answered(at, "x".into(), Duration::from_secs(u32::MAX.into()), None, now);
    }

    #[test]
    fn memory_is_bounded() {
        let (mut names, now) = (Names::default(), Instant::now());
        for i in 0..MOST_KEYS as u32 + 100 {
            names.answered(IpAddr::V4(i.into()), format!("n{i}"), TTL, None, now);
        }
        assert_eq!(names.answers.names.len(), MOST_KEYS);
        assert!(names.all(IpAddr::V4(0.into()), now).is_empty());
        for i in 0..20 {
            names.answered(addr("192.0.2.1"), format!("n{i}"), TTL, None, now);
        }
        assert_eq!(names.all(addr("192.0.2.1"), now).len(), MOST_NAMES);
    }
}
