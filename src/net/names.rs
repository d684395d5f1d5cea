// SPDX-License-Identifier: MIT OR Apache-2.0

//! What addresses are called, by what this machine asked for and said itself. Never a reverse look-up: what an address is
//! called in some zone says nothing of what was asked for.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// Addresses and sockets that are remembered; the oldest go first.
const MOST_KEYS: usize = 16_384;
/// Names of one of them; the oldest go first.
const MOST_NAMES: usize = 8;
/// A name is remembered for its time to live, but at least for so long: connections outlive it.
const AT_LEAST: Duration = Duration::from_secs(600);
/// And at most for so long, whatever an answer says.
const AT_MOST: Duration = Duration::from_secs(86_400);
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

/// A socket's network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Netns {
    /// The inode number.
    pub(crate) inode: u32,
    /// It belongs to another user namespace than the initial one: any user may have made it, and be root there.
    pub(crate) anybodys: bool,
}

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
    /// The network namespace: its inode number.
    pub(crate) netns: u32,
    /// It may come from another network namespace, of those that root made.
    pub(crate) passed_on: bool,
    /// Names that nobody could have made up are all that is wanted.
    pub(crate) believed: bool,
}

/// From whom a name is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Learnt {
    pub(crate) netns: Netns,
    pub(crate) asker: Option<Asker>,
    /// A resolver that this machine is set to said so.
    pub(crate) believed: bool,
}

/// Who is called what. What one kind of names says takes no room from another, and no doubt is cast on the first by the others.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// What resolvers said that this machine is set to.
    believed: Shelves,
    /// What was said in network namespaces that root made.
    roots: Shelves,
    /// What any user may have made up, in a network namespace of their own, where it stays.
    anybodys: Shelves,
}

#[derive(Debug, Default)]
struct Shelves {
    answers: Shelf<(IpAddr, u32)>,
    services: Shelf<(IpAddr, u32)>,
    sockets: Shelf<u64>,
}

impl Names {
    /// An answer gave `addr` as the address of `name`.
    pub(crate) fn answered(
        &mut self,
        addr: IpAddr,
        name: String,
        ttl: Duration,
        learnt: Learnt,
        now: Instant,
    ) {
        let Learnt { netns, asker, .. } = learnt;
        let until = now + ttl.clamp(AT_LEAST, AT_MOST);
        let known = Known { name, source: Source::Dns, port: None, asker, until };
        self.shelves_mut(learnt).answers.insert((addr, netns.inode), known);
    }

    /// A connection to `addr` asked for `name`.
    pub(crate) fn asked_for(
        &mut self,
        addr: IpAddr,
        port: u16,
        cookie: u64,
        name: &Name,
        learnt: Learnt,
        now: Instant,
    ) {
        let Name { text: name, source } = name.clone();
        let Learnt { netns, asker, .. } = learnt;
        let until = now + WITHOUT_TTL;
        let known = Known { name, source, port: Some(port), asker, until };
        let shelves = self.shelves_mut(learnt);
        if cookie != 0 {
            shelves.sockets.insert(cookie, known.clone());
        }
        shelves.services.insert((addr, netns.inode), known);
    }

    fn shelves_mut(&mut self, learnt: Learnt) -> &mut Shelves {
        match learnt {
            Learnt { netns: Netns { anybodys: true, .. }, .. } => &mut self.anybodys,
            Learnt { believed: true, .. } => &mut self.believed,
            Learnt { .. } => &mut self.roots,
        }
    }

    /// Every name that the packet's destination may be meant by, the most likely first: what the same connection asked for,
    /// what the same process asked for, what others did in the same network namespace, and then in others; the latest before earlier
    /// ones.
    pub(crate) fn of(&self, packet: &Packet, now: Instant) -> Vec<Name> {
        let Packet { addr, port, cookie, asker, netns, passed_on, believed } = *packet;
        let own = |known: &&Known| asker.is_some() && known.asker == asker;
        let same_port = move |known: &&Known| port.is_none() || known.port == port;
        let here = || (addr, netns)..=(addr, netns);
        let kinds: &[&Shelves] = if believed {
            &[&self.believed]
        } else {
            &[&self.believed, &self.roots, &self.anybodys]
        };
        let answers = || kinds.iter().flat_map(|kind| kind.answers.get(here(), now));
        let services = || kinds.iter().flat_map(|kind| kind.services.get(here(), now));
        let elsewhere = (passed_on && !believed).then_some((addr, 0)..=(addr, u32::MAX));
        let others = elsewhere.into_iter().flat_map(|range| {
            let Shelves { answers, services, .. } = &self.roots;
            answers.get(range.clone(), now).chain(services.get(range, now).filter(same_port))
        });
        let mut names: Vec<Name> = Vec::new();
        kinds
            .iter()
            .flat_map(|kind| kind.sockets.get(cookie..=cookie, now))
            .chain(answers().filter(own))
            .chain(services().filter(same_port).filter(own))
            .chain(answers())
            .chain(services().filter(same_port))
            .chain(others)
            .for_each(|known| {
                if !names.iter().any(|name| name.text == known.name) {
                    names.push(Name { text: known.name.clone(), source: known.source });
                }
            });
        names
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
    names: BTreeMap<K, VecDeque<Known>>,
    /// In the order in which they were first named.
    order: VecDeque<K>,
}

impl<K> Default for Shelf<K> {
    fn default() -> Self {
        Self { names: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<K: Copy + Ord> Shelf<K> {
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

    /// Of each key the latest first.
    fn get(&self, keys: RangeInclusive<K>, now: Instant) -> impl Iterator<Item = &Known> {
        let names = self.names.range(keys).flat_map(|(_, names)| names);
        names.filter(move |known| known.until > now)
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

    const HERE: Netns = Netns { inode: 1, anybodys: false };
    const ELSEWHERE: Netns = Netns { inode: 2, anybodys: false };
    const ANYBODYS: Netns = Netns { inode: 3, anybodys: true };

    fn learnt(asker: Option<Asker>) -> Learnt {
        Learnt { netns: HERE, asker, believed: false }
    }

    fn packet(addr: IpAddr) -> Packet {
        Packet {
            addr,
            port: None,
            cookie: 0,
            asker: None,
            netns: HERE.inode,
            passed_on: false,
            believed: false,
        }
    }

    fn all(names: &Names, addr: IpAddr, now: Instant) -> Vec<String> {
        names.of(&packet(addr), now).into_iter().map(|name| name.text).collect()
    }

    #[test]
    fn all_names_of_an_address_are_kept_the_latest_first() {
        let (mut names, now) = (Names::default(), Instant::now());
        for name in ["a.example", "b.example", "a.example"] {
            names.answered(addr("192.0.2.1"), name.into(), TTL, learnt(None), now);
        }
        assert_eq!(all(&names, addr("192.0.2.1"), now), ["a.example", "b.example"]);
    }

    #[test]
    fn what_one_process_asked_for_is_not_another_ones_first_name() {
        let (mut names, now) = (Names::default(), Instant::now());
        let (ping, firefox) = ((1, 1), (2, 2));
        let at = addr("192.0.2.1");
        names.answered(at, "ping.example".into(), TTL, learnt(Some(ping)), now);
        names.answered(at, "fox.example".into(), TTL, learnt(Some(firefox)), now);
        names.answered(at, "stub.example".into(), TTL, learnt(None), now);
        let packet = |asker, cookie| Packet { port: Some(443), cookie, asker, ..packet(at) };
        let first = |asker| names.of(&packet(asker, 0), now)[0].text.clone();
        assert_eq!(first(Some(ping)), "ping.example");
        assert_eq!(first(Some(firefox)), "fox.example");
        assert_eq!(first(None), "stub.example");
        assert_eq!(names.of(&packet(Some(ping), 0), now).len(), 3);

        // The connection's own word is the best, and is for other ports no word at all.
        let name = Name { text: "api.example".into(), source: Source::Sni };
        names.asked_for(at, 443, 7, &name, learnt(Some(ping)), now);
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
    fn names_stay_in_their_network_namespace() {
        let (mut names, now) = (Names::default(), Instant::now());
        let at = addr("192.0.2.1");
        for (netns, name) in
            [(HERE, "here.example"), (ELSEWHERE, "there.example"), (ANYBODYS, "user.example")]
        {
            names.answered(at, name.into(), TTL, Learnt { netns, ..learnt(None) }, now);
        }
        let of = |netns: Netns, passed_on| {
            let found = names.of(&Packet { netns: netns.inode, passed_on, ..packet(at) }, now);
            found.into_iter().map(|name| name.text).collect::<Vec<_>>()
        };
        assert_eq!(of(HERE, false), ["here.example"]);
        assert_eq!(of(ANYBODYS, false), ["user.example"]);
        // Packets that are passed on come from containers, whose namespaces root made.
        assert_eq!(of(HERE, true), ["here.example", "there.example"]);
        assert_eq!(of(Netns { inode: 9, anybodys: false }, false), Vec::<String>::new());
    }

    #[test]
    fn what_nobody_could_make_up_is_a_resolvers_word() {
        let (mut names, now) = (Names::default(), Instant::now());
        let at = addr("192.0.2.1");
        let believed = Learnt { believed: true, ..learnt(None) };
        names.answered(at, "true.example".into(), TTL, believed, now);
        names.answered(at, "own.example".into(), TTL, learnt(None), now);
        let user = Learnt { netns: Netns { anybodys: true, ..HERE }, ..believed };
        names.answered(at, "user.example".into(), TTL, user, now);
        let name = Name { text: "sni.example".into(), source: Source::Sni };
        names.asked_for(at, 443, 7, &name, learnt(None), now);
        let of = |believed| {
            let found =
                names.of(&Packet { believed, passed_on: true, cookie: 7, ..packet(at) }, now);
            found.into_iter().map(|name| name.text).collect::<Vec<_>>()
        };
        assert_eq!(of(true), ["true.example"]);
        assert_eq!(of(false).len(), 4);
        // Nor can it be pushed out.
        for i in 0..2 * MOST_KEYS as u32 {
            names.answered(IpAddr::V4(i.into()), format!("n{i}"), TTL, learnt(None), now);
            names.answered(at, format!("n{}", i % 100), TTL, learnt(None), now);
        }
        let found = names.of(&Packet { believed: true, ..packet(at) }, now);
        assert_eq!(texts(&found), [("true.example", Source::Dns)]);
    }

    #[test]
    fn names_last_for_their_time_and_not_less_than_connections_do() {
        let (mut names, now) = (Names::default(), Instant::now());
        let at = addr("192.0.2.1");
        names.answered(at, "short.example".into(), Duration::ZERO, learnt(None), now);
        names.answered(at, "long.example".into(), 3 * AT_LEAST, learnt(None), now);
        let later = |times| all(&names, at, now + times * AT_LEAST - TTL);
        assert_eq!(later(1), ["long.example", "short.example"]);
        assert_eq!(later(2), ["long.example"]);
        assert!(later(4).is_empty());
        // As much as a message may say is too much.
        let most = Duration::from_secs(u32::MAX.into());
        names.answered(at, "x".into(), most, learnt(None), now);
        assert_eq!(all(&names, at, now + AT_MOST - TTL), ["x"]);
        assert!(all(&names, at, now + AT_MOST + TTL).is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let (mut names, now) = (Names::default(), Instant::now());
        for i in 0..MOST_KEYS as u32 + 100 {
            names.answered(IpAddr::V4(i.into()), format!("n{i}"), TTL, learnt(None), now);
        }
        assert_eq!(names.roots.answers.names.len(), MOST_KEYS);
        assert!(all(&names, IpAddr::V4(0.into()), now).is_empty());
        for i in 0..20 {
            names.answered(addr("192.0.2.1"), format!("n{i}"), TTL, learnt(None), now);
        }
        assert_eq!(all(&names, addr("192.0.2.1"), now).len(), MOST_NAMES);
    }
}
