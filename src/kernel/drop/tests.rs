// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packets of all kinds through the programs (BPF_PROG_TEST_RUN), and through a parser that has nothing in common with theirs.

use fastrand::Rng;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use libbpf_rs::ProgramInput;

use libbpf_rs::MapHandle;

use super::*;
use crate::filter::ebpf::translate::Link;
use crate::filter::libpcap::{Names, Source, compile};
use crate::kernel::attach::tc::TcBackend;
use crate::kernel::frames::{PROTOS, Seen, address4, address6, frame, seen, time};
use crate::kernel::skel::addrset_probe::AddrsetProbeSkelBuilder;
use crate::random::{here_or_guest, seeded};

fn nets(random: &mut Rng) -> Vec<IpNet> {
    // Few and many: they are looked for in different ways.
    (0..random.usize(1..16))
        .map(|_| {
            if random.bool() {
                Ipv4Net::new(address4(random), random.u8(8..=32)).unwrap().trunc().into()
            } else {
                Ipv6Net::new(address6(random), random.u8(32..=128)).unwrap().trunc().into()
            }
        })
        .collect()
}

fn listed(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

/// One set of options, as the command line would have it.
#[derive(Debug, Default)]
struct Options {
    protos: Option<Vec<u8>>,
    src: Option<Vec<IpNet>>,
    dst: Option<Vec<IpNet>>,
    sport: Option<Vec<u16>>,
    dport: Option<Vec<u16>>,
    spare_neighbours: bool,
    blocklist: Option<Vec<IpNet>>,
    /// For the figures; the reference knows none.
    matches: Vec<Vec<Insn>>,
}

impl Options {
    fn random(random: &mut Rng) -> Self {
        let ports = |random: &mut Rng| {
            let mut ports = vec![53, 80 << 8 | 53, 53 << 8 | 53];
            let first = random.u16(1..60_000);
            ports.extend(first..=first + random.u16(..5000));
            ports.extend((0..random.usize(..3)).map(|_| random.u16(1..)));
            ports.truncate(random.usize(1..=ports.len()));
            ports
        };
        let mut options = Self::default();
        let mut chosen = random.u8(1..64);
        if random.u8(..3) == 0 {
            // Each alone.
            chosen = 1 << random.u8(..6);
        }
        if chosen & 1 != 0 {
            options.protos =
                Some((0..random.usize(1..5)).map(|_| PROTOS[random.usize(..12)]).collect());
            options.spare_neighbours = random.bool();
        }
        options.src = (chosen & 2 != 0).then(|| nets(random));
        options.dst = (chosen & 4 != 0).then(|| nets(random));
        options.sport = (chosen & 8 != 0).then(|| ports(random));
        options.dport = (chosen & 16 != 0).then(|| ports(random));
        options.blocklist = (chosen & 32 != 0).then(|| nets(random));
        options
    }

    fn rules(&self) -> Rules {
        let ranges = |nets: &Option<Vec<IpNet>>| {
            nets.as_ref().map(|nets| nets.iter().copied().collect::<Ranges>())
        };
        let ports = |ports: &Option<Vec<u16>>| {
            ports.as_ref().map(|ports| {
                let mut words = vec![0_u64; 1024];
                for port in ports {
                    words[usize::from(port / 64)] |= 1 << (port % 64);
                }
                words
            })
        };
        let protos = self.protos.as_ref().map(|protos| {
            let mut words = [0; 4];
            for proto in protos {
                words[usize::from(proto / 64)] |= 1 << (proto % 64);
            }
            words
        });
        let any = self.combines().then(|| Combined {
            protos,
            src: ranges(&self.src),
            dst: ranges(&self.dst),
            sport: ports(&self.sport),
            dport: ports(&self.dport),
            spare_neighbours: self.spare_neighbours,
        });
        Rules {
            blocklist: ranges(&self.blocklist),
            combined: any,
            matches: self.matches.clone(),
            ..Rules::default()
        }
    }

    fn combines(&self) -> bool {
        self.protos.is_some()
            || self.src.is_some()
            || self.dst.is_some()
            || self.sport.is_some()
            || self.dport.is_some()
    }

    fn drop(&self, seen: &Seen, egress: bool) -> bool {
        let Some((src, dst)) = seen.addresses else {
            return false;
        };
        if let Some(list) = &self.blocklist
            && listed(list, if egress { dst } else { src })
        {
            return true;
        }
        let nd = seen.proto == Some(58)
            && src.is_ipv6()
            && seen.icmp.is_some_and(|kind| (133..=137).contains(&kind));
        self.combines()
            && self.protos.as_ref().is_none_or(|list| seen.proto.is_some_and(|p| list.contains(&p)))
            && self.src.as_ref().is_none_or(|list| listed(list, src))
            && self.dst.as_ref().is_none_or(|list| listed(list, dst))
            && self
                .sport
                .as_ref()
                .is_none_or(|list| seen.ports.is_some_and(|p| list.contains(&p.0)))
            && self
                .dport
                .as_ref()
                .is_none_or(|list| seen.ports.is_some_and(|p| list.contains(&p.1)))
            && !(self.spare_neighbours && nd)
    }
}

fn load(options: &Options, how: How, direction: Direction) -> Dropper {
    let interface = interfaces(&["lo".into()]).unwrap().swap_remove(0);
    let config = Config { rules: options.rules(), ..Config::default() };
    // Not attached: it only says what it would do.
    Dropper::load(&config, how, vec![Place { interface, direction }]).unwrap()
}

fn verdict(dropper: &Dropper, direction: Direction, frame: &[u8]) -> Option<bool> {
    let progs = &dropper.skel.progs;
    let (program, drop) = match (dropper.how, direction) {
        (How::Xdp, _) => (&progs.bpftk_xdp_drop, 1),
        (How::Tc(_), Direction::Ingress) => (&progs.bpftk_tc_in, 2),
        (How::Tc(_), Direction::Egress) => (&progs.bpftk_tc_out, 2),
    };
    let input = ProgramInput { data_in: Some(frame), repeat: 1, ..Default::default() };
    // The kernel itself refuses to make a packet of some: for tc, IP without an IP header.
    program.test_run(input).ok().map(|output| output.return_value == drop)
}

const WAYS: [(How, Direction); 3] = [
    (How::Xdp, Direction::Ingress),
    (How::Tc(TcBackend::Tcx), Direction::Ingress),
    (How::Tc(TcBackend::Tcx), Direction::Egress),
];

#[test]
fn few_ranges_and_many() {
    let words = |ports: &[u16]| {
        let mut words = vec![0_u64; 1024];
        ports.iter().for_each(|port| words[usize::from(port / 64)] |= 1 << (port % 64));
        words
    };
    let all: Vec<u16> = (0..=65535).collect();
    for (ports, expected) in [
        (vec![], vec![]),
        (vec![53], vec![(53, 53)]),
        (vec![63, 64, 65, 128, 65535], vec![(63, 65), (128, 128), (65535, 65535)]),
        (all, vec![(0, 65535)]),
    ] {
        assert_eq!(super::runs(Some(&words(&ports))).collect::<Vec<_>>(), expected);
    }
    assert_eq!(super::runs(None).count(), 0);
    let of = |count: u32| super::few((0..count).map(|i| (10 * i, 10 * i + 3)));
    let (ranges, count) = of(4);
    assert_eq!((count, ranges[3].first, ranges[3].span), (4, 30, 3));
    assert_eq!((of(5).1, of(0).1), (0, 0));
}

#[test]
fn a_million_verdicts_as_the_reference_has_them() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP needs root, to load BPF programs");
        return;
    }
    crate::kernel::log::collect(false);
    let mut random = seeded();
    // Under emulation a part has to do.
    let (rounds, frames) = here_or_guest((120, 3000), (12, 1000));
    let (mut verdicts, mut dropped, mut refused) = (0_u64, 0_u64, 0_u64);
    for round in 0..rounds {
        let options = Options::random(&mut random);
        let droppers = WAYS.map(|(how, direction)| load(&options, how, direction));
        for _ in 0..frames {
            let frame = frame(&mut random);
            let seen = seen(&frame);
            for (dropper, (how, direction)) in droppers.iter().zip(WAYS) {
                let egress = direction == Direction::Egress;
                let Some(drops) = verdict(dropper, direction, &frame) else {
                    refused += 1;
                    continue;
                };
                assert_eq!(
                    drops,
                    options.drop(&seen, egress),
                    "{round}: {how} {direction} {options:?} {seen:?} {frame:02x?}"
                );
                verdicts += 1;
                dropped += u64::from(drops);
            }
        }
    }
    println!(
        "{verdicts} verdicts, {dropped} of them to drop; {refused} frames refused by the kernel"
    );
    assert!(verdicts > frames * rounds * 2 && dropped > verdicts / 100 && dropped < verdicts / 2);
}

/// The comparison sees a parser that takes the first bytes of a later fragment for ports, and one that stops at extension headers.
#[test]
fn wrong_parsers_are_caught() {
    let mut random = seeded();
    let (mut fragments, mut extensions) = (0, 0);
    for _ in 0..20_000 {
        let frame = frame(&mut random);
        let right = seen(&frame);
        let mut whole = frame.clone();
        if frame[12..14] == [0x08, 0x00] && frame.len() > 34 {
            whole[20] &= 0xe0;
            whole[21] = 0;
            fragments += u32::from(seen(&whole).ports != right.ports);
        }
        if frame[12..14] == [0x86, 0xdd] && frame.len() > 54 {
            extensions += u32::from(right.proto.is_some_and(|proto| proto != frame[20]));
        }
    }
    assert!(fragments > 100 && extensions > 100, "{fragments}, {extensions}");
}

/// For `make bench`: what a packet costs.
#[test]
fn figures() {
    if !crate::random::figures_wanted() {
        return;
    }
    crate::kernel::log::collect(false);
    let mut random = seeded();
    let echo = [
        &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0][..],
        &[192, 0, 2, 1, 192, 0, 2, 2, 8, 0, 0, 0, 0, 0, 0, 0],
        &[0; 22],
    ]
    .concat();
    let mut list = |count: usize| -> Vec<IpNet> {
        (0..count)
            .map(|_| {
                Ipv4Net::new(random.u32(..).into(), random.u8(16..=32)).unwrap().trunc().into()
            })
            .collect()
    };
    let icmp = || Some(vec![1, 58]);
    // The packet is the last one's: all ten are asked.
    let ten: Vec<Vec<Insn>> = (1..10)
        .map(|i| format!("udp dst port {}", 1000 + i))
        .chain(["icmp".to_string()])
        .map(|expression| {
            let packets = Link::Ethernet.into();
            compile(&Source {
                expression: &expression,
                packets,
                optimize: true,
                names: Names::REFUSED,
            })
            .unwrap()
        })
        .collect();
    let million = list(1_000_000);
    let cases = [
        (
            "the default rule",
            Options { protos: icmp(), spare_neighbours: true, ..Options::default() },
        ),
        (
            "and a million prefixes",
            Options { protos: icmp(), blocklist: Some(million.clone()), ..Options::default() },
        ),
        ("ten rules", Options { matches: ten.clone(), ..Options::default() }),
        (
            "ten rules and a million prefixes",
            Options { matches: ten, blocklist: Some(million), ..Options::default() },
        ),
    ];
    let cell = Box::leak(Box::new(MaybeUninit::uninit()));
    let mut open = AddrsetProbeSkelBuilder::default().open(cell).unwrap();
    for map in [&mut open.maps.lpm_v4, &mut open.maps.lpm_v6] {
        map.set_max_entries(1).unwrap();
    }
    let bare = open.load().unwrap();
    println!(
        "xdp, a bare drop by one byte: {:.1} ns a packet",
        time(&bare.progs.bpftk_bare, &echo)
    );
    for (name, options) in cases {
        for (how, direction) in [WAYS[0], WAYS[1]] {
            let mut dropper = load(&options, how, direction);
            let bss = dropper.skel.maps.bss_data.as_deref_mut().unwrap();
            bss.probing = false;
            let map = MapHandle::try_from(&dropper.skel.maps.data_lifetime).unwrap();
            dropper.lifetime = Some(Lifetime::begin(map, None, false).unwrap());
            let progs = &dropper.skel.progs;
            let program = if how == How::Xdp { &progs.bpftk_xdp_drop } else { &progs.bpftk_tc_in };
            let best = time(program, &echo);
            println!("{how} {direction}, {name}: {best:.1} ns a packet");
        }
    }
}
