// SPDX-License-Identifier: MIT OR Apache-2.0

//! The look-ups themselves, in the kernel, against a reference that works in another way.

use std::collections::{HashMap, HashSet};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, ProgramInput, ProgramMut};

use super::image::{FEW, Image, Line};
use super::{AddrSet, NewSet};
use crate::kernel::skel::addrset_probe::{AddrsetProbeSkel, AddrsetProbeSkelBuilder};
use crate::kernel::sys;
use crate::net::ranges::Ranges;
use crate::random::{here_or_guest, seeded};

/// tests/bpf/addrset_probe.h
const ADDRESSES: usize = 1 << 20;
const BATCH: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// IPv4 in the lower bits.
    fn net(self, address: u128, length: u8) -> IpNet {
        match self {
            Self::V4 => {
                Ipv4Net::new(Ipv4Addr::from(address as u32), length).unwrap().trunc().into()
            }
            Self::V6 => Ipv6Net::new(Ipv6Addr::from(address), length).unwrap().trunc().into(),
        }
    }
}

/// Prefixes, as they came: no merging, no order. An address is in the set if it is in one for some length.
#[derive(Default)]
struct Reference {
    by_length: HashMap<u8, HashSet<u128>>,
}

impl Reference {
    fn new(family: Family, nets: &[IpNet]) -> Self {
        let mut reference = Self::default();
        for net in nets {
            let prefix = first(net) >> (family.bits() - net.prefix_len()).min(127);
            let prefix = if net.prefix_len() == 0 { 0 } else { prefix };
            reference.by_length.entry(net.prefix_len()).or_default().insert(prefix);
        }
        reference
    }

    fn has(&self, family: Family, address: u128) -> bool {
        self.by_length.iter().any(|(&length, prefixes)| {
            length == 0 || prefixes.contains(&(address >> (family.bits() - length)))
        })
    }
}

fn first(net: &IpNet) -> u128 {
    match net {
        IpNet::V4(net) => net.network().to_bits().into(),
        IpNet::V6(net) => net.network().to_bits(),
    }
}

fn last(net: &IpNet) -> u128 {
    match net {
        IpNet::V4(net) => net.broadcast().to_bits().into(),
        IpNet::V6(net) => net.broadcast().to_bits(),
    }
}

/// Some of the address's bits, from the right, by chance.
fn low_bits(random: &mut Rng, bits: u8) -> u128 {
    if bits == 0 { 0 } else { random.u128(..) >> (128 - u32::from(bits)) }
}

/// Prefixes of all lengths from `shortest`. None of them covers more than a 64th of the space together with the others of its
/// length, so that the long ones count.
fn all_lengths(random: &mut Rng, family: Family, shortest: u8, count: usize) -> Vec<IpNet> {
    let bits = family.bits();
    let mut room: Vec<u128> = (0..=bits)
        .map(|length| 1_u128.checked_shl(length.saturating_sub(6).into()).unwrap_or(u128::MAX))
        .collect();
    let mut nets = Vec::with_capacity(count);
    while nets.len() < count {
        let length = random.u8(shortest..=bits);
        if room[usize::from(length)] == 0 {
            continue;
        }
        room[usize::from(length)] -= 1;
        let mut address = low_bits(random, bits);
        if family == Family::V6 && random.u8(..8) != 0 {
            // Where most addresses are, 2000::/3.
            address = address >> 3 | 1 << 125;
        }
        nets.push(family.net(address, length));
    }
    nets
}

/// Half of them in the set, most of these at the edge of a prefix; of the others half beside one.
fn questions(random: &mut Rng, family: Family, nets: &[IpNet], count: usize) -> Vec<u128> {
    let bits = family.bits();
    let most = if bits == 32 { u128::from(u32::MAX) } else { u128::MAX };
    (0..count)
        .map(|_| {
            if nets.is_empty() || random.u8(..4) == 0 {
                return low_bits(random, bits);
            }
            let net = &nets[random.usize(..nets.len())];
            match random.u8(..6) {
                0 => first(net),
                1 => last(net),
                2 => first(net).saturating_sub(1),
                3 => last(net).saturating_add(1).min(most),
                // One bit away: near, but elsewhere.
                4 => first(net) ^ 1 << random.u8(..bits),
                _ => first(net) | low_bits(random, bits - net.prefix_len()),
            }
        })
        .collect()
}

/// Who is asked.
#[derive(Clone, Copy)]
enum Asked {
    Nothing,
    Ours(Family),
    /// The kernel's own LPM trie.
    Trie(Family),
}

impl Asked {
    fn of<'a>(self, skel: &'a AddrsetProbeSkel<'static>) -> &'a ProgramMut<'static> {
        match self {
            Self::Nothing => &skel.progs.bpftk_nothing,
            Self::Ours(Family::V4) => &skel.progs.bpftk_v4,
            Self::Ours(Family::V6) => &skel.progs.bpftk_v6,
            Self::Trie(Family::V4) => &skel.progs.bpftk_lpm_v4,
            Self::Trie(Family::V6) => &skel.progs.bpftk_lpm_v6,
        }
    }
}

struct Probe {
    skel: AddrsetProbeSkel<'static>,
    set: AddrSet,
}

impl Probe {
    /// `lpm` is how many prefixes the kernel's own tries are to hold.
    fn new(lpm: u32) -> Self {
        crate::kernel::log::collect(false);
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = AddrsetProbeSkelBuilder::default().open(cell).unwrap();
        open.maps.lpm_v4.set_max_entries(lpm.max(1)).unwrap();
        open.maps.lpm_v6.set_max_entries(lpm.max(1)).unwrap();
        let skel =
            open.load().unwrap_or_else(|error| panic!("{}", crate::kernel::log::explain(error)));
        Self { skel, set: AddrSet::default() }
    }

    fn load(&mut self, nets: &[IpNet]) {
        let ranges: Ranges = nets.iter().copied().collect();
        self.set.replace(&self.skel.maps.addrsets, 0, &ranges).unwrap();
    }

    fn ask(&self, questions: &[u128]) {
        let mut memory =
            sys::maps::map_memory(self.skel.maps.addresses.as_fd(), ADDRESSES * 16).unwrap();
        for (place, question) in memory.bytes().as_chunks_mut::<16>().0.iter_mut().zip(questions) {
            place[..8].copy_from_slice(&((question >> 64) as u64).to_ne_bytes());
            place[8..].copy_from_slice(&(*question as u64).to_ne_bytes());
        }
    }

    /// Has `program` answer the first `count` questions. The time is the kernel's.
    fn run(&mut self, program: Asked, count: usize) -> Duration {
        let mut time = Duration::ZERO;
        for first in (0..count).step_by(BATCH) {
            self.skel.maps.bss_data.as_mut().unwrap().first = first as u32;
            let packet = [0; 64];
            let input = ProgramInput { data_in: Some(&packet), repeat: 1, ..Default::default() };
            time += program.of(&self.skel).test_run(input).unwrap().duration;
            assert_eq!(self.skel.maps.bss_data.as_ref().unwrap().answered, BATCH as u32);
        }
        time
    }

    fn answers(&self, count: usize) -> Vec<bool> {
        let mut memory =
            sys::maps::map_memory(self.skel.maps.answers.as_fd(), ADDRESSES * 8).unwrap();
        memory.bytes().as_chunks::<8>().0[..count].iter().map(|answer| answer[0] != 0).collect()
    }

    /// Which of the questions are answered wrongly, and how many are in the set.
    fn check(&mut self, family: Family, nets: &[IpNet], questions: &[u128]) -> (Vec<u128>, usize) {
        let reference = Reference::new(family, nets);
        self.ask(questions);
        self.run(Asked::Ours(family), questions.len());
        let mut inside = 0;
        let wrong = questions
            .iter()
            .zip(self.answers(questions.len()))
            .filter(|&(&question, answer)| {
                inside += usize::from(answer);
                answer != reference.has(family, question)
            })
            .map(|(&question, _)| question)
            .collect();
        (wrong, inside)
    }
}

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP needs root, to load BPF programs");
    }
    root
}

#[test]
fn a_million_addresses_as_the_reference_has_them() {
    if !root() {
        return;
    }
    let mut random = seeded();
    let mut probe = Probe::new(1);
    for family in FAMILIES {
        // Under emulation a part has to do.
        let (prefixes, addresses) = here_or_guest((200_000, ADDRESSES), (10_000, 4 * BATCH));
        let nets = all_lengths(&mut random, family, 8, prefixes);
        let questions = questions(&mut random, family, &nets, addresses);
        probe.load(&nets);
        let (wrong, inside) = probe.check(family, &nets, &questions);
        assert_eq!(wrong.len(), 0, "{family:?} {:x}", wrong[0]);
        assert!(inside > addresses / 4 && inside < addresses * 3 / 4, "{inside} in the set");
    }
}

/// Sets of every size at which the layout changes, and of every shape.
#[test]
fn small_sets_and_odd_ones() {
    if !root() {
        return;
    }
    let mut random = seeded();
    let mut probe = Probe::new(1);
    for family in FAMILIES {
        let bits = family.bits();
        let top = if bits == 32 { u128::from(u32::MAX) } else { u128::MAX };
        let middle = 1 << (bits - 1);
        let mut sets = vec![
            vec![],
            vec![family.net(0, 0)],
            vec![family.net(0, 1)],
            vec![family.net(middle, 1)],
            vec![family.net(0, bits)],
            vec![family.net(top, bits)],
            // To both sides of the place where the trees part.
            vec![family.net(middle - 1, bits), family.net(middle, bits)],
            // Every other address of some networks: as many boundaries as there can be, in one /64.
            (0..5000).map(|i| family.net((0x0a << (bits - 8)) + 2 * i, bits)).collect(),
        ];
        for count in [1, 7, 8, 9, 15, 16, 17, 135, 136, 137, 2047, 2048, 2049, 2312, 2320] {
            let length = random.u8(1..=bits);
            sets.push(
                (0..count).map(|_| family.net(low_bits(&mut random, bits), length)).collect(),
            );
            sets.push(all_lengths(&mut random, family, 8, count));
        }
        for nets in &sets {
            let questions =
                questions(&mut random, family, nets, here_or_guest(2 * BATCH, BATCH / 4));
            probe.load(nets);
            let (wrong, _) = probe.check(family, nets, &questions);
            assert_eq!(wrong.len(), 0, "{family:?}, {} prefixes: {:x}", nets.len(), wrong[0]);
        }
    }
}

/// A set of one family has nothing of the other, and no set at all has nothing.
#[test]
fn what_is_not_there_is_not_in_the_set() {
    if !root() {
        return;
    }
    let mut probe = Probe::new(1);
    let mut random = seeded();
    for family in FAMILIES {
        let questions = questions(&mut random, family, &[], BATCH);
        assert_eq!(probe.check(family, &[], &questions), (vec![], 0));
    }
    for (full, empty) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let nets = [full.net(0, 0)];
        probe.load(&nets);
        let asked = questions(&mut random, empty, &[], BATCH);
        assert_eq!(probe.check(empty, &[], &asked), (vec![], 0));
        let asked = questions(&mut random, full, &[], BATCH);
        assert_eq!(probe.check(full, &nets, &asked), (vec![], BATCH));
    }
}

/// While one thread asks, another replaces the set: what is in all of the sets is always in, what is in none is never.
#[test]
fn a_set_is_replaced_without_a_gap() {
    if !root() {
        return;
    }
    let mut random = seeded();
    let (replacements, least, most, batches) =
        here_or_guest((100, 3000, 30_000, 16), (30, 300, 3000, 1));
    for family in FAMILIES {
        let mut probe = Probe::new(1);
        let always = all_lengths(&mut random, family, 12, least);
        let some: Vec<Vec<IpNet>> = [0, 10, most]
            .map(|count| [always.clone(), all_lengths(&mut random, family, 12, count)].concat())
            .into();
        let references = [&always, &some[1], &some[2]].map(|nets| Reference::new(family, nets));
        let questions = questions(&mut random, family, &some[2], batches * BATCH);
        let possible: Vec<[bool; 3]> = questions
            .iter()
            .map(|&question| references.each_ref().map(|list| list.has(family, question)))
            .collect();
        probe.ask(&questions);
        probe.load(&always);

        let outer = libbpf_rs::MapHandle::try_from(&probe.skel.maps.addrsets).unwrap();
        let mut set = std::mem::take(&mut probe.set);
        let ranges: Vec<Ranges> = some.iter().map(|nets| nets.iter().copied().collect()).collect();
        let done = AtomicBool::new(false);
        let mut rounds = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..replacements {
                    set.replace(&outer, 0, &ranges[i % ranges.len()]).unwrap();
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                probe.run(Asked::Ours(family), questions.len());
                rounds += 1;
                let answers = probe.answers(questions.len());
                for ((question, possible), answer) in questions.iter().zip(&possible).zip(answers) {
                    assert!(
                        possible.contains(&answer),
                        "{family:?} {question:x}: {answer}, {possible:?}"
                    );
                }
            }
        });
        println!("{family:?}: {replacements} sets, {} questions", rounds * questions.len());
        assert!(rounds > 0);
    }
}

/// The comparison would see a layout that is wrong in one place.
#[test]
fn wrong_layouts_are_caught() {
    if !root() {
        return;
    }
    let mut random = seeded();
    let mut probe = Probe::new(1);
    type Spoil = fn(&mut [Line]);
    let wrong: [(Family, Spoil); 5] = [
        // The number of each block's first bitmap is missing.
        (Family::V4, |lines| {
            for line in &mut lines[1..1 + (1 << 15)] {
                for block in line.as_chunks_mut::<16>().0 {
                    block[8..12].fill(0);
                }
            }
        }),
        // Bitmaps start a line late.
        (Family::V4, |lines| lines[0][..4].copy_from_slice(&(2_u32 + (1 << 15)).to_ne_bytes())),
        // The lower halves of the boundaries are missing.
        (Family::V6, |lines| lines[1..].iter_mut().for_each(|line| line[128..].fill(0))),
        // One level is missing.
        (Family::V6, |lines| lines[0][8..12].copy_from_slice(&2_u32.to_ne_bytes())),
        // The first boundary of each node is missing.
        (Family::V6, |lines| lines[1..].iter_mut().for_each(|line| line.copy_within(8..128, 0))),
    ];
    let (many, few, batches) = here_or_guest((20_000, 2000, 16), (6000, 125, 1));
    for (i, (family, spoil)) in wrong.into_iter().enumerate() {
        let nets = all_lengths(&mut random, family, 8, many);
        let questions = questions(&mut random, family, &nets, batches * BATCH);
        let ranges: Ranges = nets.iter().copied().collect();
        let image = Image::new(&ranges, FEW);
        let outer = &probe.skel.maps.addrsets;
        let new = NewSet::by(image.lines(), |lines| image.write(lines)).unwrap();
        probe.set.put(outer, 0, new).unwrap();
        assert_eq!(probe.check(family, &nets, &questions).0.len(), 0);
        let outer = &probe.skel.maps.addrsets;
        let spoilt = NewSet::by(image.lines(), |lines| {
            image.write(lines);
            spoil(lines);
        });
        probe.set.put(outer, 0, spoilt.unwrap()).unwrap();
        assert_ne!(probe.check(family, &nets, &questions).0.len(), 0, "variant {i}");
    }
    // One address too few in one range of many, among questions at the edges.
    for family in FAMILIES {
        let nets = all_lengths(&mut random, family, 8, few);
        let questions = questions(&mut random, family, &nets, batches * BATCH);
        let mut fewer = nets.clone();
        let lost = fewer.swap_remove(random.usize(..fewer.len()));
        if fewer.iter().any(|net| net.contains(&lost)) {
            continue;
        }
        probe.load(&fewer);
        assert_ne!(probe.check(family, &nets, &questions).0.len(), 0, "{lost}");
    }
}

/// For `make bench`: look-ups beside the kernel's own trie, at a million prefixes.
#[test]
fn figures() {
    if !crate::random::figures_wanted() {
        return;
    }
    assert!(root());
    let mut random = seeded();
    let count = 1_000_000;
    for (family, shortest, limit) in [(Family::V4, 8, 0.3), (Family::V6, 16, 0.5)] {
        let nets = all_lengths(&mut random, family, shortest, count);
        let begin = Instant::now();
        let ranges: Ranges = nets.iter().copied().collect();
        let merged = begin.elapsed();
        let mut probe = Probe::new(count as u32);
        let begin = Instant::now();
        probe.set.replace(&probe.skel.maps.addrsets, 0, &ranges).unwrap();
        let loaded = begin.elapsed();
        let begin = Instant::now();
        fill_trie(&probe, family, &nets);
        println!(
            "{family:?}: {count} prefixes, {} ranges: sorted in {merged:.1?}, loaded in {loaded:.1?}, {}; into the kernel's trie in {:.1?}",
            ranges.v4().len() + ranges.v6().len(),
            super::mebibytes(probe.set.bytes()),
            begin.elapsed()
        );
        let inside: Vec<u128> = (0..ADDRESSES)
            .map(|_| {
                let net = &nets[random.usize(..nets.len())];
                first(net) | low_bits(&mut random, family.bits() - net.prefix_len())
            })
            .collect();
        let near: Vec<u128> =
            inside.iter().map(|a| a ^ 1 << random.u8(8..family.bits() - 8)).collect();
        let any: Vec<u128> = (0..ADDRESSES).map(|_| low_bits(&mut random, family.bits())).collect();
        for (what, questions) in [("in the set", inside), ("near it", near), ("anywhere", any)] {
            probe.ask(&questions);
            let mut best = [f64::INFINITY; 3];
            let mut has = [Vec::new(), Vec::new(), Vec::new()];
            for _ in 0..3 {
                for (i, program) in [Asked::Nothing, Asked::Ours(family), Asked::Trie(family)]
                    .into_iter()
                    .enumerate()
                {
                    let time = probe.run(program, ADDRESSES).as_nanos() as f64 / ADDRESSES as f64;
                    best[i] = best[i].min(time);
                    has[i] = probe.answers(ADDRESSES);
                }
            }
            assert!(has[1] == has[2], "the kernel's trie has other answers");
            let [nothing, ours, trie] = best;
            let (ours, trie) = (ours - nothing, trie - nothing);
            let ratio = ours / trie;
            let verdict = if ratio <= limit { "PASS" } else { "OVER" };
            println!(
                "{family:?} address {what}: {ours:.0} ns, the kernel's trie {trie:.0} ns, ratio {ratio:.2}   at most {limit}: {verdict}"
            );
        }
    }
}

fn fill_trie(probe: &Probe, family: Family, nets: &[IpNet]) {
    for nets in nets.chunks(1 << 16) {
        let (mut keys, values) = (Vec::new(), vec![1; nets.len()]);
        for net in nets {
            keys.extend(u32::from(net.prefix_len()).to_ne_bytes());
            match net {
                IpNet::V4(net) => keys.extend(net.network().octets()),
                IpNet::V6(net) => keys.extend(net.network().octets()),
            }
        }
        let maps = &probe.skel.maps;
        let count = nets.len() as u32;
        match family {
            Family::V4 => {
                maps.lpm_v4.update_batch(&keys, &values, count, MapFlags::ANY, MapFlags::ANY)
            }
            Family::V6 => {
                maps.lpm_v6.update_batch(&keys, &values, count, MapFlags::ANY, MapFlags::ANY)
            }
        }
        .unwrap();
    }
}
