// SPDX-License-Identifier: MIT OR Apache-2.0

//! `make bench`: nanoseconds a packet, and how long it takes from an expression to an attached filter. Figures, not tests: on
//! a busy machine they say little, so they don't fail.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use libbpf_rs::libbpf_sys;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use nix::sched::{CloneFlags, setns, unshare};

use super::super::engine::{HookFilter, load};
use super::super::inject::Injection;
use super::injected::REGISTRY;
use super::root;
use super::slow::{context, tagging};
use crate::filter::classic::insn::{Cond, Insn, Op, Src};
use crate::filter::ebpf::insn::{Insn as Ebpf, X, alu, class, jmp, mode, size};
use crate::filter::ebpf::translate::{Hook, Options, translate};
use crate::filter::libpcap::{Link, Names, Source, compile};
use crate::kernel::skel::filter_figures::FilterFiguresSkelBuilder;
use crate::kernel::sys::filter::test_run;
use crate::kernel::sys::link_create;

const REPEAT: u32 = 100_000;
const ROUNDS: usize = 60;
const STARTS: usize = 21;

fn classic(expression: &str) -> Vec<Insn> {
    let source = Source {
        expression,
        packets: Link::Ethernet.into(),
        optimize: true,
        names: Names::REFUSED,
    };
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

/// What the kernel makes of a classic filter before it is JITed (net/core/filter.c, bpf_convert_filter), as far as the
/// expressions here need it: LD_ABS and LD_IND in their places, A in r0, X in r7. A socket's filter can't be timed alone.
fn as_the_kernel_converts(program: &[Insn]) -> Vec<Ebpf> {
    let mov = |dst, src| Ebpf::new(class::ALU | alu::MOV | X, dst, src, 0, 0);
    let imm = |op, dst, imm| Ebpf::new(class::ALU | op, dst, 0, 0, imm);
    let mut insns = vec![
        imm(alu::MOV, 0, 0),
        imm(alu::MOV, 7, 0),
        Ebpf::new(class::ALU64 | alu::MOV | X, 6, 1, 0, 0),
    ];
    let (mut starts, mut jumps) = (Vec::new(), Vec::new());
    for (at, insn) in program.iter().enumerate() {
        starts.push(insns.len());
        match insn.decode().unwrap() {
            // Same code, by design.
            Op::LdAbs(_, k) => insns.push(Ebpf::new(insn.code as u8, 0, 0, 0, k as i32)),
            Op::LdInd(_, k) => insns.push(Ebpf::new(insn.code as u8, 0, 7, 0, k as i32)),
            Op::LdxMsh(k) => insns.extend([
                mov(8, 0),
                Ebpf::new(class::LD | size::B | mode::ABS, 0, 0, 0, k as i32),
                imm(alu::AND, 0, 0xf),
                imm(alu::LSH, 0, 2),
                mov(7, 0),
                mov(0, 8),
            ]),
            Op::Jump { cond, src: Src::K(k), jt, jf } => {
                let op = match cond {
                    Cond::Eq => jmp::JEQ,
                    Cond::Set => jmp::JSET,
                    Cond::Gt => jmp::JGT,
                    Cond::Ge => jmp::JGE,
                };
                jumps.push((insns.len(), at + 1 + usize::from(jt)));
                insns.push(Ebpf::new(class::JMP32 | op, 0, 0, 0, k as i32));
                jumps.push((insns.len(), at + 1 + usize::from(jf)));
                insns.push(Ebpf::new(class::JMP | jmp::JA, 0, 0, 0, 0));
            }
            Op::RetK(k) => insns.extend([
                imm(alu::MOV, 0, k as i32),
                Ebpf::new(class::JMP | jmp::EXIT, 0, 0, 0, 0),
            ]),
            other => panic!("{other:?} is in none of the expressions"),
        }
    }
    for (from, to) in jumps {
        insns[from].off = (starts[to] - from - 1) as i16;
    }
    insns
}

#[test]
fn figures_ns_a_packet() {
    if !crate::random::figures_wanted() {
        return;
    }
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

        let converted = as_the_kernel_converts(&program);
        let classic = HookFilter::load(Hook::TcIngress, false, &converted).unwrap();

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
            ns(classic.as_fd(), packet, expected) - nothing_tc,
            if more <= 10.0 { "PASS" } else { "OVER" }
        );
    }
}

#[test]
fn figures_ns_with_a_tag() {
    if !crate::random::figures_wanted() {
        return;
    }
    assert!(root());
    let mut packet = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(40000, 80, 1, 1024)
        .write(&mut packet, &[0; 20])
        .unwrap();
    for expression in ["tcp port 80", "vlan and tcp port 80"] {
        let program = classic(expression);
        let options = Options::new(Hook::TcIngress, Link::Ethernet);
        let insns = tagging(&translate(&[&program], &options).unwrap());
        let loaded = HookFilter::load(Hook::TcIngress, false, &insns).unwrap();
        let time =
            |context: &[u8]| best(|| f64::from(loaded.timed(&packet, context, REPEAT).unwrap().ns));
        println!(
            "`{expression}` at tc: {:.0} ns more for a packet with a VLAN tag beside it than for one without",
            time(&context(0x8100, 5)) - time(&context(0, 0))
        );
    }
}

/// What attaching takes for a program that does nothing: the kernel waits for a grace period of RCU.
fn attach_nothing(hook: Hook, ifindex: i32) -> Duration {
    let pass = [Ebpf::new(0xb7, 0, 0, 0, 2), Ebpf::new(0x95, 0, 0, 0, 0)];
    let loaded = HookFilter::load(hook, false, &pass).unwrap();
    let begin = Instant::now();
    let _link = link_create(loaded.as_fd(), ifindex, attach_point(hook)).unwrap();
    begin.elapsed()
}

fn attach_point(hook: Hook) -> libbpf_sys::bpf_attach_type {
    if hook == Hook::Xdp { libbpf_sys::BPF_XDP } else { libbpf_sys::BPF_TCX_INGRESS }
}

/// From the expression's text to a loaded filter, and from there to one at an interface.
fn start(hook: Hook, ifindex: i32) -> (Duration, Duration, OwnedFd) {
    let begin = Instant::now();
    let program = classic("tcp port 80");
    let function = translate(&[&program], &Options::new(hook, Link::Ethernet)).unwrap();
    let loaded = load(&function, hook, false).unwrap();
    let ready = begin.elapsed();
    let link = link_create(loaded.as_fd(), ifindex, attach_point(hook)).unwrap();
    (ready, begin.elapsed(), link)
}

#[test]
fn figures_compile_to_attached() {
    if !crate::random::figures_wanted() {
        return;
    }
    assert!(root());
    const LOOPBACK: i32 = 1;
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1000.0
    };
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let other = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let ours = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        for (name, hook) in [("XDP", Hook::Xdp), ("tcx", Hook::TcIngress)] {
            // The kernel patches its code for the first filter of a kind on the machine, and back after the last.
            for first in [true, false] {
                setns(&other, CloneFlags::CLONE_NEWNET).unwrap();
                let _other = (!first).then(|| start(hook, LOOPBACK).2);
                setns(&ours, CloneFlags::CLONE_NEWNET).unwrap();
                let (mut ready, mut attached, mut nothing) = (Vec::new(), Vec::new(), Vec::new());
                for _ in 0..STARTS {
                    let (loaded, all, link) = start(hook, LOOPBACK);
                    ready.push(loaded);
                    attached.push(all);
                    drop(link);
                    nothing.push(attach_nothing(hook, LOOPBACK));
                }
                let (ready, attached, nothing) =
                    (median(ready), median(attached), median(nothing));
                println!(
                    "`tcp port 80` at {name}, {}: loaded after {ready:.2} ms, attached after {attached:.2} ms, of which attaching any program takes {nothing:.2} (medians)   at most 5: {}",
                    if first { "the machine's only one" } else { "beside another" },
                    if attached <= 5.0 { "PASS" } else { "OVER" }
                );
            }
        }
    })
    .join()
    .unwrap();
}
