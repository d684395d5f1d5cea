// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random packets for tests, a parser that was written from the standards and has nothing in common with the programs', and
//! what a packet costs a program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use libbpf_rs::{ProgramInput, ProgramMut};

pub(super) const PROTOS: [u8; 12] = [0, 1, 6, 17, 33, 43, 47, 50, 58, 132, 136, 255];
const EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

/// What a packet is; `None` for what can't be told.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) addresses: Option<(IpAddr, IpAddr)>,
    pub(super) proto: Option<u8>,
    pub(super) ports: Option<(u16, u16)>,
    pub(super) icmp: Option<u8>,
}

pub(super) fn seen(frame: &[u8]) -> Seen {
    let mut rest = &frame[12..];
    for _ in 0..4 {
        match rest {
            [0x81 | 0x91, 0, ..] | [0x88, 0xa8, ..] if rest.len() >= 6 => rest = &rest[4..],
            _ => break,
        }
    }
    match rest {
        [0x08, 0x00, packet @ ..] => v4(packet).unwrap_or_default(),
        [0x86, 0xdd, packet @ ..] => v6(packet).unwrap_or_default(),
        _ => Seen::default(),
    }
}

fn v4(packet: &[u8]) -> Option<Seen> {
    let header = packet.get(..20)?;
    let words = usize::from(header[0] & 15);
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || words < 5 || total < 4 * words {
        return None;
    }
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&header[at..at + 4]).unwrap());
    let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    let rest = if first { packet.get(4 * words..) } else { None };
    Some(transport((address(12), address(16)), header[9], rest))
}

fn v6(packet: &[u8]) -> Option<Seen> {
    let header = packet.get(..40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&header[at..at + 16]).unwrap());
    let addresses = (address(8), address(24));
    let (mut next, mut rest) = (header[6], &packet[40..]);
    for _ in 0..=8 {
        if !EXTENSIONS.contains(&next) {
            return Some(transport(addresses, next, Some(rest)));
        }
        let unknown = Seen { addresses: Some(addresses), ..Seen::default() };
        if rest.len() < 8 {
            return Some(unknown);
        }
        let length = match next {
            44 => 8,
            51 => (usize::from(rest[1]) + 2) * 4,
            _ => (usize::from(rest[1]) + 1) * 8,
        };
        if next == 44 && u16::from_be_bytes([rest[2], rest[3]]) >> 3 != 0 {
            return Some(transport(addresses, rest[0], None));
        }
        next = rest[0];
        // What goes on behind the packet's end is too short for anything.
        rest = rest.get(length..).unwrap_or(&[]);
    }
    Some(Seen { addresses: Some(addresses), ..Seen::default() })
}

fn transport(addresses: (IpAddr, IpAddr), proto: u8, rest: Option<&[u8]>) -> Seen {
    let mut seen = Seen { addresses: Some(addresses), proto: Some(proto), ..Seen::default() };
    if let Some(rest) = rest {
        match (proto, rest) {
            (6 | 17 | 33 | 132 | 136, [a, b, c, d, ..]) => {
                seen.ports = Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])));
            }
            (1 | 58, [kind, ..]) => seen.icmp = Some(*kind),
            _ => {}
        }
    }
    seen
}

/// A frame that means something, more or less; cut and spoiled now and then.
pub(super) fn frame(random: &mut Rng) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for _ in 0..[0, 0, 0, 1, 1, 2, 4, 5][random.usize(..8)] {
        frame.extend([[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]][random.usize(..3)]);
        frame.extend([0, 7]);
    }
    let mut proto = PROTOS[random.usize(..PROTOS.len())];
    let mut inner = Vec::new();
    for _ in 0..random.usize(4..40) {
        // Few ports and ICMP types, so that rules meet them.
        inner.push([0, 53, 80, 135, random.u8(..)][random.usize(..5)]);
    }
    match random.u8(..8) {
        0 => {
            frame.extend([[0x08, 0x06], [0x88, 0xcc], [0, 60]][random.usize(..3)]);
            frame.extend(inner);
        }
        1..=3 => {
            let options = if random.bool() { 0 } else { random.u8(..=10) };
            let total = 20 + 4 * u16::from(options) + inner.len() as u16;
            frame.extend([0x08, 0x00, 0x45 + options, 0]);
            frame.extend(total.to_be_bytes());
            let fragment: u16 = [0, 0, 0x4000, 0x2000, 0x2001, 0x1fff][random.usize(..6)];
            frame.extend([0, 1]);
            frame.extend(fragment.to_be_bytes());
            frame.extend([64, proto, 0, 0]);
            frame.extend(address4(random).octets());
            frame.extend(address4(random).octets());
            frame.resize(frame.len() + 4 * usize::from(options), 1);
            frame.extend(inner);
        }
        _ => {
            let mut packet = inner;
            for _ in 0..[0, 0, 1, 1, 2, 3, 8, 9, 10][random.usize(..9)] {
                let kind = EXTENSIONS[random.usize(..EXTENSIONS.len())];
                let units: u8 = if random.u8(..4) == 0 { random.u8(..6) } else { 0 };
                let length = match kind {
                    44 => 8,
                    51 => (usize::from(units) + 2) * 4,
                    _ => (usize::from(units) + 1) * 8,
                };
                let mut header = vec![0; length];
                header[0] = proto;
                header[1] = units;
                if kind == 44 && random.u8(..3) == 0 {
                    header[2] = random.u8(..);
                }
                header[3] = random.u8(..) & 0xf9;
                header.extend(packet);
                packet = header;
                proto = kind;
            }
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((packet.len() as u16).to_be_bytes());
            frame.extend([proto, 64]);
            frame.extend(address6(random).octets());
            frame.extend(address6(random).octets());
            frame.extend(packet);
        }
    }
    match random.u8(..8) {
        0 => frame.truncate(random.usize(14..=frame.len())),
        1 => {
            let at = random.usize(12..frame.len());
            frame[at] = random.u8(..);
        }
        _ => {}
    }
    frame
}

pub(super) fn address4(random: &mut Rng) -> Ipv4Addr {
    Ipv4Addr::new(10, random.u8(..4), random.u8(..4), random.u8(..))
}

pub(super) fn address6(random: &mut Rng) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, random.u16(..4), 0, 0, 0, random.u16(..4), random.u16(..))
}

/// What one packet costs on one processor, in nanoseconds: the best of seven rounds.
pub(super) fn time(program: &ProgramMut<'_>, packet: &[u8]) -> f64 {
    time_on(1, program, packet)
}

/// The same while every processor runs it: what they share is not cheap then.
pub(super) fn time_on_all(program: &ProgramMut<'_>, packet: &[u8]) -> f64 {
    time_on(std::thread::available_parallelism().map_or(1, usize::from), program, packet)
}

/// By the clock: the kernel's own average is in whole nanoseconds.
fn time_on(processors: usize, program: &ProgramMut<'_>, packet: &[u8]) -> f64 {
    const REPEAT: u32 = 1_000_000;
    struct Shared<'a>(&'a ProgramMut<'a>);
    // SAFETY: a test run reads the program's descriptor, and changes nothing of it.
    unsafe impl Sync for Shared<'_> {}
    let shared = &Shared(program);
    let begin = &std::sync::Barrier::new(processors);
    let run = |processor: usize| {
        let Shared(program) = shared;
        let mut only = nix::sched::CpuSet::new();
        only.set(processor).unwrap();
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only).unwrap();
        let input = ProgramInput { data_in: Some(packet), repeat: REPEAT, ..Default::default() };
        begin.wait();
        let begin = std::time::Instant::now();
        program.test_run(input).unwrap();
        begin.elapsed().as_nanos() as f64 / f64::from(REPEAT)
    };
    let round = || {
        std::thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> =
                (0..processors).map(|processor| scope.spawn(move || run(processor))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).fold(0.0, f64::max)
        })
    };
    (0..7).map(|_| round()).fold(f64::INFINITY, f64::min)
}
