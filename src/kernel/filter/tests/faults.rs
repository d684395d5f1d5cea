// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tests find what is wrong: a translator with one mistake doesn't get through them.

use super::super::engine::{HookFilter, Outcome, load};
use super::{by_value, generate, here_or_guest, packets, root};
use crate::filter::classic::insn::*;
use crate::filter::classic::interp::{Packet, Rules, run};
use crate::filter::ebpf::translate::{Fault, Hook, Options, translate};
use fastrand::Rng;

/// What finding a mistake took.
#[derive(Debug)]
enum Found {
    Verdict,
    /// The verifier didn't take the program.
    Load,
}

fn differs(program: &[Insn], options: &Options, frames: &[Vec<u8>]) -> Option<Found> {
    let function = translate(&[program], options).unwrap();
    let Ok(loaded) = load(&function, options.hook, options.frags) else { return Some(Found::Load) };
    frames.iter().find_map(|frame| {
        let expected = run(program, &Packet::new(frame), Rules::Libpcap).unwrap();
        match loaded.run(frame).unwrap() {
            Outcome::Returned(returned) if returned != expected => Some(Found::Verdict),
            _ => None,
        }
    })
}

/// Far fewer programs than the differential test has, and always the same.
fn search(options: &Options, programs: usize) -> Option<Found> {
    let mut rng = Rng::with_seed(7);
    (0..programs).find_map(|_| {
        let program = generate::program(&mut rng);
        let frames: Vec<Vec<u8>> = (0..60).map(|_| packets::any(&mut rng)).collect();
        differs(&program, options, &frames)
    })
}

#[test]
fn every_mistake_is_found() {
    if !root() {
        return;
    }
    let none = search(&by_value(Hook::Xdp), here_or_guest(400, 60));
    assert!(none.is_none(), "without a mistake nothing is found");
    for fault in [
        Fault::GuardTooFar,
        Fault::GuardTooNear,
        Fault::HostOrder,
        Fault::SignedCompare,
        Fault::ShiftMasked,
        Fault::DivisionByZeroGoesOn,
        Fault::OffsetWraps,
    ] {
        let options = Options { fault: Some(fault), ..by_value(Hook::Xdp) };
        let found = search(&options, 400);
        println!("{fault:?}: {found:?}");
        match fault {
            Fault::GuardTooNear => assert!(matches!(found, Some(Found::Load)), "{fault:?}"),
            _ => assert!(matches!(found, Some(Found::Verdict)), "{fault:?}"),
        }
    }
}

/// Linux takes no program that reads what it didn't write; libpcap does, and finds zeros.
#[test]
fn scratch_memory_starts_as_zeros() {
    if !root() {
        return;
    }
    let program = [
        Insn::stmt(BPF_LD | BPF_MEM, 15),
        Insn::stmt(BPF_LDX | BPF_MEM, 0),
        Insn::stmt(BPF_ALU | BPF_ADD | BPF_X, 0),
        Insn::stmt(BPF_RET | BPF_A, 0),
    ];
    let frames = [vec![0; 60]];
    let right = by_value(Hook::TcIngress);
    assert!(differs(&program, &right, &frames).is_none());
    let wrong = Options { fault: Some(Fault::ScratchNotZeroed), ..right };
    assert!(matches!(differs(&program, &wrong, &frames), Some(Found::Verdict)));
}

/// `super::slow` compares with the same reference; without the slow way it would not pass.
#[test]
fn the_slow_way_is_needed() {
    if !root() {
        return;
    }
    let last = 8999;
    let program = [Insn::stmt(BPF_LD | BPF_ABS | BPF_B, last), Insn::stmt(BPF_RET | BPF_A, 0)];
    let frame = vec![0x5a; last as usize + 1];
    let right = Options { frags: true, ..by_value(Hook::Xdp) };
    let wrong = Options { fault: Some(Fault::FirstPieceOnly), ..right };
    for (options, expected) in [(right, 0x5a), (wrong, 0)] {
        let function = translate(&[&program], &options).unwrap();
        match HookFilter::load(Hook::Xdp, true, &function.insns) {
            Ok(loaded) => {
                assert_eq!(loaded.run(&frame).unwrap(), Outcome::Returned(expected), "{options:?}");
            }
            Err(_) => println!("SKIP this kernel has no XDP programs for several buffers"),
        }
    }
    assert!(super::slow::tag_is_seen(&by_value(Hook::TcIngress)));
    let wrong = Options { fault: Some(Fault::TagIgnored), ..by_value(Hook::TcIngress) };
    assert!(!super::slow::tag_is_seen(&wrong));
}

/// Kernels before 6.8 don't see that 2054 is never at most a byte, and know of no value for X where it would be.
#[test]
fn ways_that_cannot_be_gone_load() {
    if !root() {
        return;
    }
    let program = [
        Insn::stmt(BPF_LD | BPF_ABS | BPF_B, 0),
        Insn::stmt(BPF_MISC | BPF_TAX, 0),
        Insn::stmt(BPF_LD | BPF_IMM, 2054),
        Insn::new(BPF_JMP | BPF_JGT | BPF_X, 2, 0, 0),
        Insn::stmt(BPF_LD | BPF_IND | BPF_W, 30),
        Insn::stmt(BPF_RET | BPF_A, 0),
        Insn::stmt(BPF_LD | BPF_IND | BPF_B, 0),
        Insn::stmt(BPF_RET | BPF_A, 0),
    ];
    for hook in [Hook::Xdp, Hook::TcIngress, Hook::TcEgress] {
        assert!(differs(&program, &by_value(hook), &[vec![7; 60]]).is_none(), "{hook}");
    }
}
