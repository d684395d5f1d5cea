// SPDX-License-Identifier: MIT OR Apache-2.0

//! Filters in the place of stubs.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use super::super::engine::is_unreadable;
use super::super::inject::Injection;
use super::{packets, root};
use crate::filter::classic::insn::*;
use crate::filter::classic::interp::{Packet, Rules, run};
use crate::filter::ebpf::translate::{Hook, Link, Options, translate};
use crate::kernel::skel::filter_figures::FilterFiguresSkelBuilder;
use crate::kernel::sys::filter::test_run;
use crate::random::seeded;

/// libbpf's registry of handlers is not for several threads.
pub(super) static REGISTRY: Mutex<()> = Mutex::new(());

/// `ether[offset:2] = value`
fn half_is(offset: u32, value: u32) -> Vec<Insn> {
    vec![
        Insn::stmt(BPF_LD | BPF_ABS | BPF_H, offset),
        Insn::new(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, value),
        Insn::stmt(BPF_RET | BPF_K, 262_144),
        Insn::stmt(BPF_RET | BPF_K, 0),
    ]
}

/// Several filters in each of two stubs: the first that matches counts.
#[test]
fn the_first_match_counts() {
    if !root() {
        return;
    }
    let _registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
    let mut rng = seeded();
    let kinds = [0x0806, 0x86dd, 0x8100];
    // The third never has a chance; the fourth looks beyond the end of short packets.
    let mut one: Vec<Vec<Insn>> = kinds.iter().map(|&kind| half_is(12, kind)).collect();
    one.insert(2, half_is(12, 0x0806));
    one.push(half_is(70, 0x5555));
    one.push(vec![
        Insn::stmt(BPF_LDX | BPF_B | BPF_MSH, 14),
        Insn::stmt(BPF_LD | BPF_IND | BPF_H, 16),
        Insn::new(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 53),
        Insn::stmt(BPF_RET | BPF_K, 1),
        Insn::stmt(BPF_RET | BPF_K, 0),
    ]);
    let two = [half_is(12, 0x0800)];
    for hook in [Hook::Xdp, Hook::TcIngress] {
        let options = Options::new(hook, Link::Ethernet);
        let function = |filters: &[Vec<Insn>]| {
            let filters: Vec<&[Insn]> = filters.iter().map(Vec::as_slice).collect();
            translate(&filters, &options).unwrap()
        };
        let injection = Injection::new(vec![function(&one), function(&two)]).unwrap();
        let mut storage = MaybeUninit::uninit();
        let mut open = FilterFiguresSkelBuilder::default().open(&mut storage).unwrap();
        let wanted = if hook == Hook::Xdp { "bpftk_two" } else { "bpftk_two_tc" };
        for mut program in open.open_object_mut().progs_mut() {
            program.set_autoload(program.name() == wanted);
        }
        let loaded = open.load().unwrap_or_else(|error| panic!("{:#}", injection.explain(error)));
        let program =
            if hook == Hook::Xdp { &loaded.progs.bpftk_two } else { &loaded.progs.bpftk_two_tc };
        let mut seen = [0_u32; 8];
        for _ in 0..3000 {
            let frame = packets::any(&mut rng);
            let first = |filters: &[Vec<Insn>]| {
                let matches = |filter: &Vec<Insn>| {
                    run(filter, &Packet::new(&frame), Rules::Libpcap).unwrap() != 0
                };
                filters.iter().position(matches).map_or(0, |at| at as u32 + 1)
            };
            let Ok(run) = test_run(program.as_fd(), &frame, &[], 1) else { continue };
            assert!(!is_unreadable(run.returned));
            assert_eq!(run.returned, first(&one) << 8 | first(&two), "{hook}: {frame:02x?}");
            seen[first(&one) as usize] += 1;
        }
        assert!(seen[3] == 0 && [0, 1, 2, 4, 5, 6].iter().all(|&n| seen[n] > 0), "{seen:?}");
    }
}

#[test]
fn a_program_without_the_stub_is_not_loaded() {
    if !root() {
        return;
    }
    let _registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
    let filter = half_is(12, 0x0806);
    let function = translate(&[&filter], &Options::new(Hook::Xdp, Link::Ethernet)).unwrap();
    let injection = Injection::new(vec![function]).unwrap();
    let mut storage = MaybeUninit::uninit();
    let mut open = FilterFiguresSkelBuilder::default().open(&mut storage).unwrap();
    for mut program in open.open_object_mut().progs_mut() {
        program.set_autoload(program.name() == "bpftk_nothing");
    }
    let error = open.load().map(|_| ()).unwrap_err();
    assert_eq!(
        format!("{:#}", injection.explain(error)),
        "cannot put a filter into a program: the program has no stub for filter 0"
    );
}
