// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random programs and random texts. Nothing here needs privileges. `BPFTK_SEED` repeats a run.

use fastrand::Rng;

use super::classic::check::{check, check_with_loops, has_loop};
use super::classic::insn::Insn;
use super::classic::interp::{self, Rules};
use super::classic::{disasm, forms};
use super::{ebpf, libpcap};
use crate::random::{rounds, seeded};

const STATEMENTS: &[u16] = &[
    0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x80, 0x00, 0x60, 0x81, 0x01, 0x61, 0xb1, 0x02, 0x03, 0x04,
    0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, 0x84,
    0x94, 0x9c, 0xa4, 0xac, 0x07, 0x87,
];
const JUMPS: &[u16] = &[0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d];

fn number(rng: &mut Rng) -> u32 {
    match rng.u8(..8) {
        0 => rng.u32(..),
        1 => u32::MAX - rng.u32(..4),
        2 => 0x8000_0000 - 2 + rng.u32(..4),
        3 => 1 << rng.u32(..32),
        _ => rng.u32(..48),
    }
}

/// A program that Linux takes, with nothing in fields that are not used.
fn program(rng: &mut Rng) -> Vec<Insn> {
    loop {
        let length = rng.usize(1..24);
        let mut program = Vec::new();
        for at in 0..length - 1 {
            let left = length - at - 2;
            program.push(match rng.u8(..10) {
                0 => Insn::stmt(0x05, rng.u32(..=left as u32)),
                1..=3 => {
                    let code = *rng.choice(JUMPS).unwrap();
                    let k = if code & 8 == 0 { number(rng) } else { 0 };
                    let (jt, jf) = (rng.usize(..=left), rng.usize(..=left));
                    Insn::new(code, jt as u8, jf as u8, k)
                }
                _ => {
                    let code = *rng.choice(STATEMENTS).unwrap();
                    let k = match code {
                        0x80 | 0x81 | 0x07 | 0x87 | 0x84 => 0,
                        _ if code & 0xf == 0xc => 0,
                        0x60 | 0x61 | 0x02 | 0x03 => rng.u32(..3),
                        0x64 | 0x74 => rng.u32(..32),
                        0x20 | 0x28 | 0x30 => rng.u32(..70),
                        _ => number(rng),
                    };
                    Insn::stmt(code, k)
                }
            });
        }
        let ret = if rng.bool() { Insn::stmt(0x16, 0) } else { Insn::stmt(0x06, number(rng)) };
        program.push(ret);
        if check(&program).is_ok() {
            return program;
        }
    }
}

#[test]
fn the_interpreter_agrees_with_libpcaps() {
    if let Err(error) = libpcap::available() {
        println!("SKIP {error}");
        return;
    }
    let mut rng = seeded();
    let (mut verdicts, mut matches) = (0_u64, 0_u64);
    for _ in 0..rounds(20_000) {
        let program = program(&mut rng);
        for _ in 0..5 {
            let mut data = vec![0; rng.usize(..64)];
            rng.fill(&mut data);
            let length = data.len() as u32 + rng.u32(..2) * 1000;
            let packet = interp::Packet { length, ..interp::Packet::new(&data) };
            let ours = interp::run(&program, &packet, Rules::Libpcap).unwrap();
            let theirs = libpcap::run(&program, &data, length).unwrap();
            assert_eq!(ours, theirs, "{} on {data:02x?}", disasm::listing(&program));
            verdicts += 1;
            matches += u64::from(ours != 0);
        }
    }
    println!("{verdicts} verdicts, {matches} of them matches");
    assert!(matches > verdicts / 20 && matches < verdicts, "one-sided");
}

/// `protochain` is a loop from header to header: both interpreters go round it, and come to the same.
#[test]
fn loops_agree_with_libpcaps() {
    if let Err(error) = libpcap::available() {
        println!("SKIP {error}");
        return;
    }
    let mut rng = seeded();
    let (mut verdicts, mut matches) = (0_u64, 0_u64);
    for expression in [
        "ip6 protochain 58",
        "ip protochain 17",
        "protochain 6 or ip6 protochain 17",
        "not ip6 protochain 0",
    ] {
        for optimize in [true, false] {
            let names = libpcap::Names::REFUSED;
            let packets = libpcap::Link::Raw.into();
            let program =
                libpcap::compile(&libpcap::Source { expression, packets, optimize, names })
                    .unwrap();
            assert!(has_loop(&program) && check(&program).is_err(), "{expression}");
            check_with_loops(&program).unwrap();
            for _ in 0..rounds(400) {
                // Headers that name another of these, and say how long they are.
                let next =
                    |rng: &mut Rng| *rng.choice(&[0, 6, 17, 43, 44, 51, 58, 59, 60]).unwrap();
                let mut data = vec![0x60, 0, 0, 0, 0, 0, next(&mut rng), 64];
                data.extend([1; 32]);
                for _ in 0..rng.usize(..40) {
                    let length = rng.u8(..3);
                    data.extend([next(&mut rng), length]);
                    data.extend(vec![0; 6 + usize::from(length) * 8]);
                }
                if rng.bool() {
                    data.truncate(rng.usize(..=data.len()));
                }
                if rng.bool() && !data.is_empty() {
                    data[0] = 0x45;
                }
                let packet = interp::Packet::new(&data);
                let ours = interp::run(&program, &packet, Rules::Libpcap).unwrap();
                let theirs = libpcap::run(&program, &data, data.len() as u32).unwrap();
                assert_eq!(ours, theirs, "{expression} on {data:02x?}");
                verdicts += 1;
                matches += u64::from(ours != 0);
            }
        }
    }
    println!("{verdicts} verdicts, {matches} of them matches");
    assert!(matches > verdicts / 20 && matches < verdicts, "one-sided");
}

#[test]
fn fuzz_forms_of_a_program() {
    let mut rng = seeded();
    for _ in 0..rounds(5_000) {
        let program = program(&mut rng);
        let assembly = disasm::assembly(&program).unwrap();
        for text in [assembly, disasm::c_array(&program), disasm::decimal(&program)] {
            assert_eq!(forms::read(&text).as_deref(), Ok(&program[..]), "{text}");
        }
    }
}

#[test]
fn fuzz_ebpf_both_ways() {
    let mut rng = seeded();
    let mut said = 0;
    let rounds = rounds(200_000);
    for _ in 0..rounds {
        let (wide, imm) = (rng.u8(..20) == 0, number(&mut rng) as i32);
        let code = if wide { 0x18 } else { rng.u8(..) };
        let off = if rng.bool() { 0 } else { rng.i16(-4..40) };
        let src = if rng.bool() { 0 } else { rng.u8(..12) };
        let mut program = vec![ebpf::insn::Insn::new(
            code,
            rng.u8(..12),
            src,
            off,
            if rng.bool() { 0 } else { imm },
        )];
        if wide {
            program.push(ebpf::insn::Insn::new(0, 0, 0, 0, number(&mut rng) as i32));
        }
        // What has no text is refused, and never becomes another instruction.
        if let Ok(text) = ebpf::disasm::assembly(&program) {
            assert_eq!(ebpf::asm::assemble(&text).as_deref(), Ok(&program[..]), "{text}");
            said += 1;
        }
        let array = ebpf::readable::c_array(&program);
        assert_eq!(ebpf::forms::read(&array).as_deref(), Ok(&program[..]), "{array}");
        assert!(!ebpf::readable::listing(&program).is_empty());
    }
    assert!(said > rounds / 100, "{said} have a text");
}

/// A text made of pieces of texts that are right, with bytes changed.
fn mutated(rng: &mut Rng, seeds: &[&str]) -> String {
    let mut bytes = Vec::new();
    let whole = rng.bool();
    for _ in 0..rng.usize(1..4) {
        let seed = rng.choice(seeds).unwrap().as_bytes();
        if whole {
            bytes.extend(seed);
            break;
        }
        let (from, to) = (rng.usize(..=seed.len()), rng.usize(..=seed.len()));
        bytes.extend(&seed[from.min(to)..from.max(to)]);
    }
    for _ in 0..if whole { rng.usize(..3) } else { rng.usize(..6) } {
        let byte = match rng.u8(..3) {
            0 => rng.u8(..),
            1 => *rng.choice(b"#[]{}(),:;%x-+*&/0M\n ".as_slice()).unwrap(),
            _ => b'9',
        };
        let at = rng.usize(..=bytes.len());
        if rng.bool() || at == bytes.len() { bytes.insert(at, byte) } else { bytes[at] = byte }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn fuzz_assemblers() {
    let classic = "start: ldh [12]\n jne #0x806, drop ; no\n ldx 4*([14]&0xf)\n ld [x + 4]\n\
                   st M[3]\n jset #3, a1, drop\na1: ld #vlan_tci\n add x\n ret #-1\ndrop: ret #0\n";
    let array =
        "static struct sock_filter code[] = {\n{ 0x28, 0, 0, 0x0000000c },\n{ 6, 0, 0, 1 },\n};";
    let words = "mov32 %r0, -5\nL1: lddw %r1, map_value(3, 4)\nldxsw %r2, [%r10-8]\n\
                 lock fetch add32 [%r1+4], %r2\njsle32 %r1, %r2, L1\ncall local L1\nbe16 %r1\nexit";
    let initialisers = "{ .code = 0x18, .dst_reg = 1, .src_reg = 0, .off = -1, .imm = 4 },";
    let seeds =
        [classic, array, "2\n40 0 0 12\n6 0 0 1\n", "1,6 0 0 1,", words, initialisers, "/* */"];
    let mut rng = seeded();
    let mut taken = 0;
    let rounds = rounds(100_000);
    for _ in 0..rounds {
        let text = mutated(&mut rng, &seeds);
        let read = forms::read(&text);
        if let Ok(program) = &read {
            taken += 1;
            let _ = check(program);
            disasm::listing(program);
            if let Ok(again) = disasm::assembly(program) {
                assert_eq!(forms::read(&again).as_deref(), Ok(&program[..]), "{text}\n{again}");
            }
        }
        if let Ok(program) = ebpf::forms::read(&text) {
            taken += 1;
            ebpf::readable::listing(&program);
            if let Ok(again) = ebpf::disasm::assembly(&program) {
                assert_eq!(ebpf::asm::assemble(&again).as_deref(), Ok(&program[..]), "{again}");
            }
        }
        for error in [read.err(), ebpf::forms::read(&text).err()].into_iter().flatten() {
            let message = error.to_string();
            assert!(!message.chars().any(char::is_control), "{message:?}");
            assert!(error.line >= 1 && error.column >= 1);
        }
    }
    assert!(taken > rounds / 100, "{taken} texts were taken");
}

#[test]
fn fuzz_expressions() {
    let seeds = [
        "tcp port http and not host 192.0.2.1 or (src net 10.0.0.0/8 and ether proto \\ip)",
        "ether host 00:11:22:33:44:55 or ip6 host fe80::1 and tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
        "portrange 1-é\u{202e} \\",
    ];
    let mut rng = seeded();
    let here = libpcap::available().is_ok();
    for _ in 0..rounds(20_000) {
        let text = mutated(&mut rng, &seeds);
        if here {
            // Refused or compiled; with names refused, it asks nobody.
            let source = libpcap::Source {
                expression: &text,
                packets: libpcap::Link::Ethernet.into(),
                optimize: rng.bool(),
                names: libpcap::Names::REFUSED,
            };
            if let Err(error) = libpcap::compile(&source) {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }
}
