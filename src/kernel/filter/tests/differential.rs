// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random programs on random packets: our interpreter, libpcap's, the kernel's socket filter, XDP and tc have to agree.

use std::time::Instant;

use super::{by_value, generate, here_or_guest, loaded, packets, root};
use crate::filter::classic::insn::{Insn, Op, SKF_LL_OFF, SKF_NET_OFF};
use crate::filter::classic::interp::{Packet, Rules, run, trace};
use crate::filter::ebpf::translate::Hook;
use crate::filter::libpcap;
use crate::kernel::filter::engine::{Outcome, SocketFilter};
use crate::random::seeded;

/// How many of each engine's verdicts were compared.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) programs: u64,
    verdicts: u64,
    matches: u64,
    not_run: u64,
    /// Verdicts of a socket that are not libpcap's, for a reason.
    rules_differ: u64,
}

pub(super) fn compare(name: &str, program: &[Insn], frames: &[Vec<u8>], tally: &mut Tally) {
    // What a socket's filter may take is limited: net.core.optmem_max.
    let mut socket = match SocketFilter::attach(program) {
        Ok(socket) => Some(socket),
        Err(error) if program.len() > 150 && format!("{error:#}").contains("os error 12") => None,
        Err(error) => panic!("{error:#}: {program:?}"),
    };
    let xdp = loaded(program, &by_value(Hook::Xdp));
    let tc = loaded(program, &by_value(Hook::TcIngress));
    let libpcap = libpcap::available().is_ok();
    tally.programs += 1;
    for frame in frames {
        let packet = Packet::new(frame);
        let expected = run(program, &packet, Rules::Libpcap).unwrap();
        // By `[x + k]` Linux also gets at headers, of which a packet between two sockets has none.
        let mut by_header = false;
        let linux = trace(program, &packet, Rules::Linux, |state| {
            if let Some(Op::LdInd(_, k)) = program[state.pc].decode() {
                let offset = state.x.wrapping_add(k);
                by_header |= [SKF_LL_OFF, SKF_NET_OFF]
                    .iter()
                    .any(|header| offset.wrapping_sub(*header) <= u16::MAX.into());
            }
        });
        let linux = linux.unwrap();
        tally.matches += u64::from(expected != 0);
        tally.rules_differ += u64::from(expected != linux);
        if libpcap {
            tally.verdicts += 1;
            let returned = libpcap::run(program, frame, frame.len() as u32).unwrap();
            assert_eq!(returned, expected, "libpcap: {name} {program:?} on {frame:02x?}");
        }
        for (engine, outcome) in [("XDP", xdp.run(frame)), ("tc", tc.run(frame))] {
            match outcome.unwrap() {
                Outcome::Returned(returned) => {
                    tally.verdicts += 1;
                    assert_eq!(returned, expected, "{engine}: {name} {program:?} on {frame:02x?}");
                }
                Outcome::NotRun(_) => tally.not_run += 1,
            }
        }
        let Some(socket) = socket.as_mut().filter(|_| !by_header) else {
            tally.not_run += 1;
            continue;
        };
        match socket.run(frame).unwrap() {
            Outcome::Returned(returned) => {
                tally.verdicts += 1;
                // A socket cuts the packet to what the filter returns.
                let expected = linux.min(frame.len() as u32);
                assert_eq!(returned, expected, "socket: {name} {program:?} on {frame:02x?}");
            }
            Outcome::NotRun(_) => tally.not_run += 1,
        }
    }
}

#[test]
fn random_programs() {
    if !root() {
        return;
    }
    let mut rng = seeded();
    let begin = Instant::now();
    let (programs, frames) = here_or_guest((2400, 160), (60, 40));
    let mut tally = Tally::default();
    for _ in 0..programs {
        let program = generate::program(&mut rng);
        let frames: Vec<Vec<u8>> = (0..frames).map(|_| packets::any(&mut rng)).collect();
        compare("", &program, &frames, &mut tally);
    }
    println!("{tally:?} in {:?}", begin.elapsed());
    assert!(tally.matches * 20 > tally.verdicts / 3, "too few matches to mean much: {tally:?}");
    assert!(tally.not_run * 10 < tally.verdicts, "{tally:?}");
}
