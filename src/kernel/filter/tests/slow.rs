// SPDX-License-Identifier: MIT OR Apache-2.0

//! The slow way: VLAN tags beside the packet, and packets in several pieces.

use super::super::engine::{HookFilter, Outcome};
use super::{by_value, generate, here_or_guest, packets, root};
use crate::filter::classic::insn::*;
use crate::filter::classic::interp::{Packet, Rules, run};
use crate::filter::ebpf::insn::{Insn as Ebpf, class, jmp, mode, pseudo, size};
use crate::filter::ebpf::translate::{Function, Hook, Options, translate};
use crate::random::seeded;

/// `struct __sk_buff` as far as BPF_PROG_TEST_RUN takes it.
const SKB_BYTES: usize = 192;
const MARK: usize = 8;
const DATA_END: usize = 80;

/// The function behind one that gives the packet a tag first, out of band as a driver does: EtherType and tag are in the
/// mark; no mark, no tag.
pub(super) fn tagging(function: &Function) -> Vec<Ebpf> {
    const SKB_VLAN_PUSH: i32 = 18;
    const VLAN_PRESENT: i16 = 20;
    let mut insns = vec![
        Ebpf::new(class::ALU64 | 0xb8, 6, 1, 0, 0), // r6 = ctx
        Ebpf::new(class::LDX | size::W | mode::MEM, 3, 1, MARK as i16, 0),
        Ebpf::new(class::JMP | jmp::JEQ, 3, 0, 7, 0),
        // When the same packet comes again, it has one.
        Ebpf::new(class::LDX | size::W | mode::MEM, 2, 1, VLAN_PRESENT, 0),
        Ebpf::new(class::JMP | jmp::JNE, 2, 0, 5, 0),
        Ebpf::new(class::ALU | 0xb8, 2, 3, 0, 0),
        Ebpf::new(class::ALU | 0x70, 2, 0, 0, 16),
        Ebpf::new(class::ALU | 0xdc, 2, 0, 0, 16), // in network order
        Ebpf::new(class::ALU | 0x50, 3, 0, 0, 0xffff),
        Ebpf::new(class::JMP | jmp::CALL, 0, 0, 0, SKB_VLAN_PUSH),
        Ebpf::new(class::ALU64 | 0xb8, 1, 6, 0, 0),
        Ebpf::new(class::JMP | jmp::CALL, 0, pseudo::CALL, 0, 1),
        Ebpf::new(class::JMP | jmp::EXIT, 0, 0, 0, 0),
    ];
    insns.extend(&function.insns);
    insns
}

fn tc(program: &[Insn], options: &Options) -> HookFilter {
    let function = translate(&[program], options).unwrap();
    HookFilter::load(options.hook, false, &tagging(&function))
        .unwrap_or_else(|failed| panic!("{}\n{program:?}\n{}", failed.error, failed.log))
}

pub(super) fn context(kind: u16, tag: u16) -> Vec<u8> {
    let mut context = vec![0; SKB_BYTES];
    context[MARK..MARK + 4]
        .copy_from_slice(&(u32::from(kind) << 16 | u32::from(tag)).to_ne_bytes());
    context
}

#[test]
fn tags_beside_the_packet_are_where_they_were() {
    if !root() {
        return;
    }
    let mut rng = seeded();
    let (programs, count) = here_or_guest((1200, 60), (60, 20));
    let mut verdicts = 0_u32;
    for _ in 0..programs {
        let program = generate::program(&mut rng);
        let loaded = tc(&program, &by_value(Hook::TcIngress));
        for _ in 0..count {
            let frame = packets::any(&mut rng);
            let expected = run(&program, &Packet::new(&frame), Rules::Libpcap).unwrap();
            let outcome = match packets::untag(&frame) {
                Some((bytes, kind, tag)) => loaded.run_with(&bytes, &context(kind, tag)),
                None => loaded.run(&frame),
            };
            if let Outcome::Returned(returned) = outcome.unwrap() {
                verdicts += 1;
                assert_eq!(returned, expected, "{program:?} on {frame:02x?}");
            }
        }
    }
    println!("{verdicts} verdicts");
    assert!(verdicts > programs * count / 2);
}

/// Each load of each size at each offset around the tag, on frames that end around it.
#[test]
fn every_load_around_a_tag() {
    if !root() {
        return;
    }
    let frame: Vec<u8> = (0..12)
        .chain([0x88, 0xa8, 0x1f, 0xff, 0x81, 0x00, 0x20, 0x2a, 0x08, 0x00])
        .chain(0x45..0x65)
        .collect();
    let mut inside = 0;
    for bytes in [BPF_B, BPF_H, BPF_W] {
        for offset in 4..24 {
            let abs =
                [Insn::stmt(BPF_LD | BPF_ABS | bytes, offset), Insn::stmt(BPF_RET | BPF_A, 0)];
            let ind = [
                Insn::stmt(BPF_LDX | BPF_IMM, offset - 3),
                Insn::stmt(BPF_LD | BPF_IND | bytes, 3),
                Insn::stmt(BPF_RET | BPF_A, 0),
            ];
            for program in [&abs[..], &ind[..]] {
                let loaded = tc(program, &by_value(Hook::TcEgress));
                for length in [19, 20, 21, 22, frame.len()] {
                    let frame = &frame[..length];
                    let (short, kind, tag) = packets::untag(frame).unwrap();
                    let expected = run(program, &Packet::new(frame), Rules::Libpcap).unwrap();
                    match loaded.run_with(&short, &context(kind, tag)).unwrap() {
                        Outcome::Returned(returned) => {
                            inside += 1;
                            assert_eq!(returned, expected, "{program:?} on {frame:02x?}");
                        }
                        Outcome::NotRun(reason) => panic!("{length}: {reason}"),
                    }
                }
            }
        }
    }
    assert_eq!(inside, 3 * 20 * 2 * 5);
}

/// What a filter asks the kernel for itself, as one made for a live interface does: it sees the packet without the tag.
#[test]
fn a_filter_that_asks_for_the_tag_sees_none_in_the_packet() {
    if !root() {
        return;
    }
    let frame: Vec<u8> =
        (0..12).chain([0x81, 0x00, 0x20, 0x2a, 0x08, 0x00]).chain(0x45..0x65).collect();
    let (short, kind, tag) = packets::untag(&frame).unwrap();
    let ld = |size, k| Insn::stmt(BPF_LD | BPF_ABS | size, k);
    for (ext, expected) in
        [(Ext::VlanTagPresent, 1), (Ext::VlanTag, 0x202a), (Ext::VlanTpid, 0x8100)]
    {
        let asks = [ld(BPF_H, ext.offset()), Insn::stmt(BPF_RET | BPF_A, 0)];
        let asks_and_looks =
            [ld(BPF_H, ext.offset()), ld(BPF_H, 12), Insn::stmt(BPF_RET | BPF_A, 0)];
        for (program, expected) in [(&asks[..], expected), (&asks_and_looks[..], 0x0800)] {
            let loaded = tc(program, &by_value(Hook::TcIngress));
            let outcome = loaded.run_with(&short, &context(kind, tag)).unwrap();
            assert_eq!(outcome, Outcome::Returned(expected), "{ext:?}");
        }
    }
    // The length is the wire's for one that looks at the packet, and the kernel's for one that asks.
    for (program, expected) in [
        (vec![Insn::stmt(BPF_LD | BPF_W | BPF_LEN, 0)], frame.len()),
        (
            vec![ld(BPF_W, Ext::VlanTag.offset()), Insn::stmt(BPF_LD | BPF_W | BPF_LEN, 0)],
            short.len(),
        ),
    ] {
        let program = [program, vec![Insn::stmt(BPF_RET | BPF_A, 0)]].concat();
        let loaded = tc(&program, &by_value(Hook::TcIngress));
        let outcome = loaded.run_with(&short, &context(kind, tag)).unwrap();
        assert_eq!(outcome, Outcome::Returned(expected as u32));
    }
}

/// Programs whose loads go all over a long packet.
fn far(rng: &mut fastrand::Rng, length: u32) -> Vec<Insn> {
    let mut program = generate::program(rng);
    for insn in &mut program {
        if insn.class() == BPF_LD && insn.code & 0xe0 == BPF_ABS && rng.u8(0..3) > 0 {
            insn.k = rng.u32(0..length + 2);
        }
    }
    program
}

#[test]
fn packets_in_several_buffers_at_xdp() {
    if !root() {
        return;
    }
    let mut rng = seeded();
    let options = Options { frags: true, ..by_value(Hook::Xdp) };
    let (programs, count) = here_or_guest((600, 30), (30, 10));
    let (mut verdicts, mut split) = (0_u32, 0_u32);
    for _ in 0..programs {
        let length = *rng.choice(&[64, 200, 5000, 9000]).unwrap();
        let program = far(&mut rng, length);
        let function = translate(&[&program], &options).unwrap();
        let loaded = match HookFilter::load(Hook::Xdp, true, &function.insns) {
            Ok(loaded) => loaded,
            // BPF_F_XDP_HAS_FRAGS is of Linux 5.18.
            Err(failed)
                if failed.error.raw_os_error() == Some(libc::EINVAL) && failed.log.is_empty() =>
            {
                println!("SKIP this kernel has no XDP programs for several buffers");
                return;
            }
            Err(failed) => panic!("{}\n{program:?}\n{}", failed.error, failed.log),
        };
        for _ in 0..count {
            let mut frame = packets::well_formed(&mut rng);
            frame.resize_with(length as usize, || rng.u8(..));
            let expected = run(&program, &Packet::new(&frame), Rules::Libpcap).unwrap();
            // Since Linux 6.18 one may say how much comes in one piece.
            let mut context = [0_u8; 24];
            let linear = rng.u32(14..length.min(2000));
            context[4..8].copy_from_slice(&linear.to_ne_bytes());
            let outcome = match loaded.run_with(&frame, &context).unwrap() {
                Outcome::NotRun(_) => loaded.run(&frame).unwrap(),
                outcome => {
                    split += 1;
                    outcome
                }
            };
            if let Outcome::Returned(returned) = outcome {
                verdicts += 1;
                assert_eq!(returned, expected, "{program:?} on {frame:02x?}");
            }
        }
    }
    println!("{verdicts} verdicts, of packets cut anywhere: {split}");
    assert!(verdicts > programs * count * 9 / 10, "{verdicts}");
}

#[test]
fn packets_in_several_pieces_at_tc() {
    if !root() {
        return;
    }
    let mut rng = seeded();
    let programs = here_or_guest(600, 30);
    let mut verdicts = 0;
    for _ in 0..programs {
        let program = far(&mut rng, 200);
        let loaded = tc(&program, &by_value(Hook::TcIngress));
        for _ in 0..20 {
            let mut frame = packets::well_formed(&mut rng);
            frame.resize_with(200, || rng.u8(..));
            let mut context = context(0, 0);
            let linear = rng.u32(14..200);
            context[DATA_END..DATA_END + 4].copy_from_slice(&linear.to_ne_bytes());
            match loaded.run_with(&frame, &context).unwrap() {
                Outcome::Returned(returned) => {
                    verdicts += 1;
                    let expected = run(&program, &Packet::new(&frame), Rules::Libpcap).unwrap();
                    assert_eq!(returned, expected, "{linear}: {program:?} on {frame:02x?}");
                }
                Outcome::NotRun(_) if verdicts == 0 => {
                    println!("SKIP this kernel runs programs on packets in one piece only");
                    return;
                }
                // The first piece has to hold the headers that the kernel looks at.
                Outcome::NotRun(_) => {}
            }
        }
    }
    println!("{verdicts} verdicts");
    assert!(verdicts > programs * 20 / 2);
}

/// Whether `vlan` matches a packet with a tag beside it.
pub(super) fn tag_is_seen(options: &Options) -> bool {
    let program = [
        Insn::stmt(BPF_LD | BPF_ABS | BPF_H, 12),
        Insn::new(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0x8100),
        Insn::stmt(BPF_RET | BPF_K, 1),
        Insn::stmt(BPF_RET | BPF_K, 0),
    ];
    let outcome = tc(&program, options).run_with(&[0; 60], &context(0x8100, 5)).unwrap();
    outcome == Outcome::Returned(1)
}
