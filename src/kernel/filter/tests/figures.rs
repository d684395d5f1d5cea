// SPDX-License-Identifier: MIT OR Apache-2.0

//! `make bench`: nanoseconds a packet, and how long it takes from an expression to an attached filter. Figures, not tests: on
//! a busy machine they say little, so they don't fail.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use libbpf_rs::libbpf_sys;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};

use super::super::engine::load;
use super::super::inject::Injection;
use super::injected::REGISTRY;
use super::root;
use crate::filter::classic::insn::{BPF_K, BPF_RET, Insn, Op};
use crate::filter::ebpf::translate::{Hook, Options, translate};
use crate::filter::libpcap::{Link, Source, compile};
use crate::kernel::skel::filter_figures::FilterFiguresSkelBuilder;
use crate::kernel::sys::filter::{attach_classic, test_run};
use crate::kernel::sys::link_create;

const REPEAT: u32 = 100_000;
const ROUNDS: usize = 60;
const SENDS: u32 = 500;
const TURNS: u32 = 1500;
const STARTS: usize = 21;

fn classic(expression: &str) -> Vec<Insn> {
    let source = Source { expression, link: Link::Ethernet, optimize: true, resolve: false };
    compile(&source).unwrap()
}

/// Others can only add to what a run takes.
fn best(mut each: impl FnMut() -> f64) -> f64 {
    (0..ROUNDS).map(|_| each()).fold(f64::INFINITY, f64::min)
}

fn ns(program: BorrowedFd<'_>, packet: &[u8], expected: bool) -> f64 {
    best(|| {
        let run = test_run(program, packet, &[], REPEAT).unwrap();
        assert_eq!(run.returned != 0, expected);
        f64::from(run.ns)
    })
}

/// What it takes to send to a socket that has this filter and takes no packet.
fn sending(program: &[Insn], packet: &[u8]) -> f64 {
    let (sender, receiver) =
        socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_NONBLOCK).unwrap();
    attach_classic(receiver.as_fd(), program).unwrap();
    // In short turns, most of which nobody disturbs.
    let turn = || {
        let begin = Instant::now();
        for _ in 0..SENDS {
            send(sender.as_raw_fd(), packet, MsgFlags::empty()).unwrap();
        }
        begin.elapsed().as_nanos() as f64 / f64::from(SENDS)
    };
    (0..TURNS).map(|_| turn()).fold(f64::INFINITY, f64::min)
}

/// The kernel's JIT of the classic filter: by how much it makes a send longer than a filter that says no at once.
fn jited_classic(program: &[Insn], packet: &[u8]) -> f64 {
    let no = Insn::stmt(BPF_RET | BPF_K, 0);
    let all_no = |insn: &Insn| if matches!(insn.decode(), Some(Op::RetK(_))) { no } else { *insn };
    let program: Vec<Insn> = program.iter().map(all_no).collect();
    sending(&program, packet) - sending(&[no], packet)
}

#[test]
#[ignore = "a figure, of make bench"]
fn figures_ns_a_packet() {
    assert!(root());
    let _registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
    let start = || {
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(
            [10, 0, 0, 1],
            [10, 0, 0, 2],
            64,
        )
    };
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    start().tcp(40000, 80, 1, 1024).write(&mut tcp, &[0; 20]).unwrap();
    start().udp(40000, 53).write(&mut udp, &[0; 20]).unwrap();
    let mut arp = vec![0xff; 60];
    arp[12..14].copy_from_slice(&[8, 6]);

    println!(
        "{:<14} {:<6} {:>7} {:>7} {:>7} {:>7} {:>7} {:>8}",
        "FILTER", "PACKET", "HAND C", "XDP", "IN C", "TC", "CLASSIC", "IN C-HAND"
    );
    for (expression, packet_name, packet, expected) in [
        ("arp", "arp", &arp, true),
        ("arp", "tcp", &tcp, false),
        ("tcp port 80", "tcp 80", &tcp, true),
        ("tcp port 80", "udp", &udp, false),
        ("udp port 53", "udp 53", &udp, true),
        ("udp port 53", "tcp", &tcp, false),
    ] {
        let program = classic(expression);
        let of = |hook| translate(&[&program], &Options::new(hook, Link::Ethernet)).unwrap();
        let xdp = load(&of(Hook::Xdp), Hook::Xdp, false).unwrap();
        let tc = load(&of(Hook::TcIngress), Hook::TcIngress, false).unwrap();

        let injection = Injection::new(vec![of(Hook::Xdp)]).unwrap();
        let mut storage = MaybeUninit::uninit();
        let mut open = FilterFiguresSkelBuilder::default().open(&mut storage).unwrap();
        for mut program in open.open_object_mut().progs_mut() {
            program.set_autoload(program.name() == "bpftk_one");
        }
        let loaded = open.load().unwrap_or_else(|error| panic!("{:#}", injection.explain(error)));
        let in_c = ns(loaded.progs.bpftk_one.as_fd(), packet, expected);
        drop(injection);

        let mut storage = MaybeUninit::uninit();
        let mut open = FilterFiguresSkelBuilder::default().open(&mut storage).unwrap();
        for mut program in open.open_object_mut().progs_mut() {
            let name = program.name().to_string_lossy().into_owned();
            program
                .set_autoload(name.starts_with("bpftk_hand") || name.starts_with("bpftk_nothing"));
        }
        let by_hand = open.load().unwrap();
        let hand = match expression {
            "arp" => by_hand.progs.bpftk_hand_arp.as_fd(),
            "tcp port 80" => by_hand.progs.bpftk_hand_tcp.as_fd(),
            _ => by_hand.progs.bpftk_hand_udp.as_fd(),
        };
        let hand = ns(hand, packet, expected);
        let nothing = ns(by_hand.progs.bpftk_nothing.as_fd(), packet, false);
        let nothing_tc = ns(by_hand.progs.bpftk_nothing_tc.as_fd(), packet, false);
        let more = in_c - hand;
        println!(
            "{expression:<14} {packet_name:<6} {:>7.1} {:>7.1} {:>7.1} {:>7.1} {:>7.1} {more:>8.1}   at most 10: {}",
            hand - nothing,
            ns(xdp.as_fd(), packet, expected) - nothing,
            in_c - nothing,
            ns(tc.as_fd(), packet, expected) - nothing_tc,
            jited_classic(&program, packet),
            if more <= 10.0 { "PASS" } else { "OVER" }
        );
    }
}

/// From the expression's text to a filter at an interface.
fn start(hook: Hook) -> (Duration, OwnedFd) {
    const LOOPBACK: i32 = 1;
    let begin = Instant::now();
    let program = classic("tcp port 80");
    let function = translate(&[&program], &Options::new(hook, Link::Ethernet)).unwrap();
    let loaded = load(&function, hook, false).unwrap();
    let point = if hook == Hook::Xdp { libbpf_sys::BPF_XDP } else { libbpf_sys::BPF_TCX_INGRESS };
    let link = link_create(loaded.as_fd(), LOOPBACK, point).unwrap();
    (begin.elapsed(), link)
}

#[test]
#[ignore = "a figure, of make bench"]
fn figures_compile_to_attached() {
    assert!(root());
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for (name, hook) in [("XDP", Hook::Xdp), ("tcx", Hook::TcIngress)] {
            let mut times: Vec<Duration> = (0..STARTS).map(|_| start(hook).0).collect();
            times.sort();
            let median = times[STARTS / 2].as_secs_f64() * 1000.0;
            println!(
                "`tcp port 80` from text to attached at {name}: median {median:.2} ms (best {:.2}, first of all included)   at most 5: {}",
                times[0].as_secs_f64() * 1000.0,
                if median <= 5.0 { "PASS" } else { "OVER" }
            );
        }
    })
    .join()
    .unwrap();
}
