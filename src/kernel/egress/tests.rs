// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packets of all kinds through the programs (BPF_PROG_TEST_RUN), whose counts have to be those of a parser that has nothing in
//! common with theirs.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use ipnet::IpNet;
use libbpf_rs::{MapCore, MapFlags, ProgramInput, ProgramMut};

use super::*;
use crate::kernel::count::Count;
use crate::kernel::frames::{Seen, address4, address6, frame, seen, time, time_on_all};
use crate::kernel::skel::egress_peer::EgressPeerSkelBuilder;
use crate::kernel::sys::filter::test_run;
use crate::random::{here_or_guest, seeded};

pub(super) fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP needs root, to load BPF programs");
    }
    crate::kernel::log::collect(false);
    root
}

/// Loaded, but not attached.
pub(super) fn load(config: &Config) -> Counter {
    Counter::load(config, TcBackend::Tcx, interfaces(&["lo".into()]).unwrap()).unwrap()
}

pub(super) fn program(counter: &Counter) -> &ProgramMut<'static> {
    match counter.direction {
        Direction::Egress if counter.by.cookie => &counter.skel.progs.bpftk_own,
        Direction::Egress => &counter.skel.progs.bpftk_out,
        Direction::Ingress => &counter.skel.progs.bpftk_in,
    }
}

/// Whether the kernel itself takes it for a packet; its verdict is that the packet goes on.
fn run(counter: &Counter, frame: &[u8], times: u32) -> bool {
    let input = ProgramInput { data_in: Some(frame), repeat: times, ..Default::default() };
    match program(counter).test_run(input) {
        Ok(output) => {
            assert_eq!(output.return_value as i32, -1, "{frame:02x?}");
            true
        }
        Err(_) => false,
    }
}

/// What of a packet is counted where, as the reference has it.
fn place(seen: &Seen, ip: bool, config: &Config) -> Result<Key, &'static str> {
    let Some((src, dst)) = seen.addresses else {
        return Err(if ip { "malformed" } else { "not IP" });
    };
    let egress = config.direction == Direction::Egress;
    let addr = if egress { dst } else { src };
    let addr = config.by.addr.map(|(v4, v6)| {
        let bits = if addr.is_ipv4() { v4 } else { v6 };
        IpNet::new(addr, bits).unwrap().trunc().addr()
    });
    Ok(Key {
        addr,
        proto: seen.proto.filter(|_| config.by.proto),
        port: seen.ports.filter(|_| config.by.port).map(|(s, d)| if egress { d } else { s }),
        socket: None,
        rule: None,
    })
}

/// Whether its type says that it is IP.
fn is_ip(frame: &[u8]) -> bool {
    let mut rest = &frame[12..];
    for _ in 0..4 {
        match rest {
            [0x81 | 0x91, 0, ..] | [0x88, 0xa8, ..] => match rest.get(4..) {
                // Cut off in a tag: nobody knows.
                None | Some([] | [_]) => return true,
                Some(inner) => rest = inner,
            },
            _ => break,
        }
    }
    matches!(rest, [0x08, 0x00, ..] | [0x86, 0xdd, ..])
}

fn random_config(random: &mut Rng) -> Config {
    let addr = match random.u8(..4) {
        0 => None,
        1 => Some((32, 128)),
        _ => Some((random.u8(1..=32), random.u8(1..=128))),
    };
    Config {
        direction: [Direction::Egress, Direction::Ingress][random.usize(..2)],
        by: By { addr, proto: random.bool(), port: random.bool(), cookie: false },
        max_entries: 4096,
        ..Config::default()
    }
}

#[test]
fn keys_and_rows_are_those_of_the_reference() {
    if !root() {
        return;
    }
    let mut random = seeded();
    // Under emulation a part has to do.
    let (rounds, frames) = here_or_guest((40, 400), (6, 200));
    let (mut packets, mut refused) = (0_u64, 0_u64);
    for _ in 0..rounds {
        let config = random_config(&mut random);
        let counter = load(&config);
        for _ in 0..5 {
            let mut expected: HashMap<Key, u64> = HashMap::new();
            let mut fixed = Rows::default();
            for _ in 0..frames {
                let frame = frame(&mut random);
                let times = random.u32(1..4);
                if !run(&counter, &frame, times) {
                    refused += 1;
                    continue;
                }
                let times = u64::from(times);
                packets += times;
                fixed.total.packets += times;
                match place(&seen(&frame), is_ip(&frame), &config) {
                    Ok(key) => *expected.entry(key).or_default() += times,
                    Err("malformed") => fixed.malformed.packets += times,
                    Err(_) => fixed.not_ip.packets += times,
                }
            }
            let taken = counter.take().unwrap();
            let counted: HashMap<Key, u64> =
                taken.keys.iter().map(|(key, count)| (*key, count.packets)).collect();
            assert_eq!(counted.len(), taken.keys.len(), "each key is there once");
            let wrong: Vec<_> = expected
                .iter()
                .filter(|(key, count)| counted.get(key) != Some(count))
                .map(|(key, count)| (key, count, counted.get(key)))
                .collect();
            assert!(wrong.is_empty() && counted.len() == expected.len(), "{config:?} {wrong:?}");
            let packets_of =
                |rows: &Rows| [rows.total, rows.malformed, rows.not_ip].map(|count| count.packets);
            assert_eq!(packets_of(&taken.rows), packets_of(&fixed), "{config:?}");
            assert_eq!(taken.rows.not_stored(), Count::default());
        }
    }
    println!("{packets} packets; {refused} frames refused by the kernel");
    assert!(packets > 5 * frames / 2 * rounds);
}

/// The shortest frames with these destinations.
fn to_v4(addr: u32) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1]);
    frame.extend(addr.to_be_bytes());
    frame.extend([0x30, 0x39, 0, 53, 0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}

fn to_v6(addr: Ipv6Addr) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, 12, 17, 64, 0x20, 1, 0xd, 0xb8]);
    frame.resize(38, 0);
    frame.extend(addr.octets());
    frame.extend([0x30, 0x39, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

fn key_of(addr: IpAddr) -> Key {
    Key { addr: Some(addr), proto: None, port: None, socket: None, rule: None }
}

#[test]
fn a_table_of_sixteen_is_exact() {
    if !root() {
        return;
    }
    let config = Config { max_entries: 16, direction: Direction::Ingress, ..Config::default() };
    let counter = load(&Config { direction: Direction::Egress, ..config.clone() });
    for round in 0..4 {
        let several = 1000 + 2 * (RECENT_KEYS * libbpf_rs::num_possible_cpus().unwrap()) as u32;
        for i in 0..several {
            assert!(run(&counter, &to_v4(0x0a00_0000 + i), 2));
        }
        let taken = counter.take().unwrap();
        let counted: u64 = taken.keys.iter().map(|(_, count)| count.packets).sum();
        // Beside the table, each CPU has its recent keys.
        let most = 16 + RECENT_KEYS * libbpf_rs::num_possible_cpus().unwrap();
        // One CPU's at least, but for places that no key has.
        let least = 16 + RECENT_KEYS / 2;
        assert!((least..=most).contains(&taken.keys.len()), "{round}: {}", taken.keys.len());
        assert!(taken.rows.full.packets > 0, "{round}");
        assert_eq!(taken.rows.total.packets, u64::from(2 * several));
        assert_eq!(counted + taken.rows.not_stored().packets, u64::from(2 * several));
        assert_eq!(taken.rows.full, taken.rows.not_stored());
        // The room is there again, and what was in it before is not.
        assert!(run(&counter, &to_v4(0x0b00_0000), 3));
        let taken = counter.take().unwrap();
        let address = IpAddr::from(Ipv4Addr::new(11, 0, 0, 0));
        assert_eq!(taken.keys.len(), 1);
        assert_eq!((taken.keys[0].0, taken.keys[0].1.packets), (key_of(address), 3));
    }
}

/// On every CPU in turn, trains of packets to few destinations and to more than a CPU has room for beside the table: a key may be in
/// the table, with a CPU, with several, or with all of them, make room for another there, and stay the same from one interval to the
/// next. Each packet is counted once, in its interval.
#[test]
fn trains_of_packets_are_counted_once() {
    if !root() {
        return;
    }
    let mut random = seeded();
    let counter = load(&Config { max_entries: 4096, ..Config::default() });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let whole = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    for interval in 0..50 {
        let mut expected: HashMap<Key, u64> = HashMap::new();
        let (trains, destinations) = [(30, 4), (300, 300), (300, 4000)][interval % 3];
        for _ in 0..random.usize(..trains) {
            let mut only = nix::sched::CpuSet::new();
            only.set(random.usize(..cpus)).unwrap();
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only).unwrap();
            let addr = 0x0a00_0000 + random.u32(..destinations);
            let packets = random.u32(1..4);
            assert!(run(&counter, &to_v4(addr), packets));
            *expected.entry(key_of(Ipv4Addr::from(addr).into())).or_default() += u64::from(packets);
        }
        let taken = counter.take().unwrap();
        let counted: HashMap<Key, u64> =
            taken.keys.iter().map(|(key, count)| (*key, count.packets)).collect();
        assert_eq!(counted, expected, "{interval}");
        assert_eq!(taken.keys.len(), expected.len(), "{interval}: a key twice");
        assert_eq!(taken.rows.total.packets, expected.values().sum::<u64>(), "{interval}");
    }
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &whole).unwrap();
}

/// struct __sk_buff, as much as BPF_PROG_TEST_RUN takes.
fn context(wire_len: u32, gso_segs: u32, gso_size: u32) -> Vec<u8> {
    let mut context = vec![0; 192];
    for (at, word) in [(160, wire_len), (164, gso_segs), (176, gso_size)] {
        context[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    context
}

#[test]
fn large_packets_are_their_segments() {
    if !root() {
        return;
    }
    let mut frame = to_v4(0x0a00_0001);
    frame.resize(14 + 20 + 20 + 2500, 0);
    for (direction, context, expected) in [
        (Direction::Egress, context(2662, 3, 1000), (3, 2662)),
        (Direction::Egress, context(2554, 0, 0), (1, 2554)),
        // A virtual machine's: the number is computed.
        (Direction::Egress, context(2662, 0, 1000), (3, 2662)),
        (Direction::Egress, context(2608, 0, 1250), (2, 2608)),
        (Direction::Egress, context(2554, 0, 2500), (1, 2554)),
        (Direction::Ingress, context(9999, 3, 1000), (3, 2554)),
    ] {
        let counter = load(&Config { direction, max_entries: 64, ..Config::default() });
        test_run(program(&counter).as_fd(), &frame, &context, 1).unwrap();
        let taken = counter.take().unwrap();
        let count = taken.keys[0].1;
        assert_eq!((count.packets, count.bytes), expected, "{direction}");
        assert_eq!(taken.rows.total, count);
    }
}

/// Many at once, on all processors, while counts are taken again and again: each is in one of them, once.
#[test]
fn nothing_is_lost_between_intervals() {
    if !root() {
        return;
    }
    for max_entries in [4096, 64] {
        let counter = load(&Config { max_entries, ..Config::default() });
        let sent = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let program = program(&counter).as_fd();
        let frames: Vec<Vec<u8>> = (0..300).map(|i| to_v4(0x0a00_0000 + i * 7)).collect();
        let (mut keys, mut rows, mut takes) = (0, Rows::default(), 0);
        let mut per_key: HashMap<Key, u64> = HashMap::new();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut i = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let frame = &frames[i % frames.len()];
                        test_run(program, frame, &[], 1000).unwrap();
                        sent.fetch_add(1000, Ordering::Relaxed);
                        i += 1;
                    }
                });
            }
            let begin = Instant::now();
            let enough = Duration::from_millis(here_or_guest(1500, 500));
            while begin.elapsed() < enough || takes < 4 {
                let taken = counter.take().unwrap();
                for (key, count) in &taken.keys {
                    keys += count.packets;
                    *per_key.entry(*key).or_default() += count.packets;
                }
                rows = rows + taken.rows;
                takes += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        let last = counter.take().unwrap();
        keys += last.keys.iter().map(|(_, count)| count.packets).sum::<u64>();
        rows = rows + last.rows;
        let sent = sent.load(Ordering::Relaxed);
        println!("{sent} packets, {takes} takes");
        assert_eq!(rows.total.packets, sent);
        assert_eq!(keys + rows.not_stored().packets, sent);
        assert!(takes > 3 && per_key.len() <= 300);
    }
}

#[test]
fn what_is_excluded_is_what_a_list_says() {
    if !root() {
        return;
    }
    let mut random = seeded();
    for _ in 0..here_or_guest(30, 5) {
        let mut net = || -> IpNet {
            if random.bool() {
                IpNet::new(address4(&mut random).into(), random.u8(8..=32)).unwrap().trunc()
            } else {
                IpNet::new(address6(&mut random).into(), random.u8(32..=128)).unwrap().trunc()
            }
        };
        let (exclude, only): (Vec<IpNet>, Vec<IpNet>) =
            ((0..20).map(|_| net()).collect(), (0..20).map(|_| net()).collect());
        let uses_only = random.bool();
        let mut excluded: Ranges = exclude.iter().copied().collect();
        if uses_only {
            excluded = excluded.with(&Ranges::all().without(&only.iter().copied().collect()));
        }
        let max_entries = 1024;
        let counter = load(&Config { excluded: Some(excluded), max_entries, ..Config::default() });
        let mut expected: HashMap<Key, u64> = HashMap::new();
        let mut left_out = 0;
        for _ in 0..500 {
            let addr: IpAddr = if random.bool() {
                address4(&mut random).into()
            } else {
                address6(&mut random).into()
            };
            let frame = match addr {
                IpAddr::V4(addr) => to_v4(addr.to_bits()),
                IpAddr::V6(addr) => to_v6(addr),
            };
            assert!(run(&counter, &frame, 1));
            let listed = |list: &[IpNet]| list.iter().any(|net| net.contains(&addr));
            if listed(&exclude) || uses_only && !listed(&only) {
                left_out += 1;
            } else {
                *expected.entry(key_of(addr)).or_default() += 1;
            }
        }
        let taken = counter.take().unwrap();
        let counted: HashMap<Key, u64> =
            taken.keys.iter().map(|(key, count)| (*key, count.packets)).collect();
        assert_eq!(taken.rows.excluded.packets, left_out);
        assert_eq!(counted, expected, "{exclude:?} {only:?} {uses_only}");
    }
}

/// For `make bench`: what a packet costs, and an interval.
#[test]
fn figures() {
    if !crate::random::figures_wanted() {
        return;
    }
    crate::kernel::log::collect(false);
    let mut random = seeded();
    let cell = Box::leak(Box::new(MaybeUninit::uninit()));
    let mut peer = EgressPeerSkelBuilder::default().open(cell).unwrap().load().unwrap();
    let variables = peer.maps.bss_data.take().unwrap();
    let thousand: Ranges = (0..1000)
        .map(|_| {
            let net = IpNet::new(Ipv4Addr::from(random.u32(..)).into(), random.u8(16..=32));
            net.unwrap().trunc()
        })
        // One that is looked for, and never the one that is counted.
        .filter(|net| !net.contains(&IpAddr::from([198, 51, 100, 1])))
        .chain(["192.168.0.0/16".parse().unwrap()])
        .collect();
    let (counted, excluded) = (to_v4(0xc633_6401), to_v4(0xc0a8_0001));
    let by = By { addr: Some((32, 128)), ..By::default() };
    let whole = By { proto: true, port: true, cookie: true, ..by };
    let nothing = time(&peer.progs.bpftk_nothing, &counted);
    println!("egress, a program that does nothing: {nothing:.1} ns a packet");
    // In turns, the best of each: a machine is seldom as fast twice.
    let counter = load(&Config::default());
    for (what, peer) in [
        ("IPv4 packets", &peer.progs.bpftk_peer),
        ("packets and bytes of both families, as bpftk", &peer.progs.bpftk_peer_both),
    ] {
        let turns = (0..15).map(|_| (time(peer, &counted), time(program(&counter), &counted)));
        let (theirs, ours) =
            turns.reduce(|best, turn| (best.0.min(turn.0), best.1.min(turn.1))).unwrap();
        println!(
            "egress, packets to one destination, BCC style ({what}): {theirs:.1} ns a packet; count by dst beside it: {ours:.1} ns, {:.2} of it; without what nothing takes {:.2}",
            ours / theirs,
            (ours - nothing) / (theirs - nothing)
        );
    }
    // A program in front of both sends each packet elsewhere than the one before.
    let next = |program: &ProgramMut<'_>| {
        let fd = program.as_fd().as_raw_fd().to_ne_bytes();
        peer.maps.next.update(&0_u32.to_ne_bytes(), &fd, MapFlags::ANY).unwrap();
        time(&peer.progs.bpftk_vary, &counted)
    };
    for destinations in [1_u32, 16, 64, 256, 1024, 8192] {
        variables.last_destination = destinations - 1;
        let alone = next(&peer.progs.bpftk_nothing);
        let least = |all: [f64; 3], turn: [f64; 3]| std::array::from_fn(|i| all[i].min(turn[i]));
        let [theirs, both, ours] = (0..7)
            .map(|_| {
                [&peer.progs.bpftk_peer, &peer.progs.bpftk_peer_both, program(&counter)].map(next)
            })
            .reduce(least)
            .unwrap();
        println!(
            "egress, packets to {destinations} destinations in turn: BCC style (IPv4 packets) {theirs:.1} ns a packet, BCC style (packets and bytes of both families) {both:.1}, count by dst {ours:.1}: {:.2} and {:.2} of them; without what nothing takes {:.2} and {:.2}",
            ours / theirs,
            ours / both,
            (ours - alone) / (theirs - alone),
            (ours - alone) / (both - alone)
        );
    }
    let all = time_on_all(&peer.progs.bpftk_peer, &counted);
    let ours = time_on_all(program(&counter), &counted);
    println!(
        "egress, on all processors at once, BCC style (IPv4 packets): {all:.1} ns a packet; count by dst: {ours:.1} ns, {:.2} of it",
        ours / all
    );
    for (name, by, list, packet) in [
        ("count by dst, IPv6", by, None, &to_v6("2001:db8::7".parse().unwrap())),
        ("1000 excludes, count by dst", by, Some(&thousand), &counted),
        ("1000 excludes, cookie, count by dst,proto,port", whole, Some(&thousand), &counted),
        ("1000 excludes, excluded", whole, Some(&thousand), &excluded),
    ] {
        let counter = load(&Config { by, excluded: list.cloned(), ..Config::default() });
        let best = time(program(&counter), packet);
        println!("egress, {name}: {best:.1} ns a packet");
    }

    let counter = load(&Config::default());
    for _ in 0..3 {
        for i in 0..65536 {
            assert!(run(&counter, &to_v4(0x0a00_0000 + i), 1));
        }
        let begin = Instant::now();
        let taken = counter.take().unwrap();
        let time = begin.elapsed();
        assert_eq!(taken.keys.len(), 65536);
        println!("egress, an interval with 65536 keys taken: {time:?}");
        let begin = Instant::now();
        counter.take().unwrap();
        println!("egress, an interval without any: {:?}", begin.elapsed());
    }
}
