// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's engines for a filter: a socket's classic filter, and the translation at XDP and tc. Each runs packets that
//! are given to it, attached to no interface.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use libbpf_rs::libbpf_sys;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};

use super::super::sys::filter as sys;
use crate::filter::classic;
use crate::filter::ebpf::insn::Insn;
use crate::filter::ebpf::translate::{Function, Hook, UNREADABLE};

/// What an engine says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// What the program returned; 0 is no match. A socket tells no more than the packet's length.
    Returned(u32),
    /// The kernel does not run this hook's programs on such a packet; why not.
    NotRun(&'static str),
}

/// Linux's own interpreter or JIT for classic filters, as a socket has it.
#[derive(Debug)]
pub(crate) struct SocketFilter {
    sender: OwnedFd,
    receiver: OwnedFd,
    buffer: Vec<u8>,
}

impl SocketFilter {
    /// A pair of sockets, one of which takes only what the filter lets through. Needs no privileges.
    pub(crate) fn attach(program: &[classic::insn::Insn]) -> Result<Self> {
        let (sender, receiver) = socketpair(
            AddressFamily::Unix,
            SockType::Datagram,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )
        .context("cannot make a pair of sockets")?;
        setsockopt(&sender, sockopt::SndBuf, &(1 << 20)).context("cannot enlarge a socket")?;
        sys::attach_classic(receiver.as_fd(), program)
            .context("the kernel does not take the classic filter")?;
        Ok(Self { sender, receiver, buffer: vec![0; 1 << 16] })
    }

    pub(crate) fn run(&mut self, packet: &[u8]) -> Result<Outcome> {
        if packet.is_empty() {
            return Ok(Outcome::NotRun("a socket filter gets no empty packet"));
        }
        match send(self.sender.as_raw_fd(), packet, MsgFlags::empty()) {
            Ok(sent) if sent == packet.len() => {}
            // As much as a socket may hold, or more pages than a packet has room for.
            Err(nix::errno::Errno::EMSGSIZE | nix::errno::Errno::ENOBUFS) => {
                return Ok(Outcome::NotRun("longer than a socket takes"));
            }
            Ok(_) => bail!("a socket took part of a packet"),
            Err(error) => return Err(error).context("cannot give a packet to the socket filter"),
        }
        match recv(self.receiver.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
            // The packet is cut to what the filter returns.
            Ok(received) => Ok(Outcome::Returned(received as u32)),
            Err(nix::errno::Errno::EAGAIN) => Ok(Outcome::Returned(0)),
            Err(error) => Err(error).context("cannot take a packet from the socket filter"),
        }
    }
}

/// Every kernel runs programs on packets as long as this: a page holds them, with what the kernel puts around them.
const LONG: usize = 3000;

/// A translated filter, loaded for a hook.
#[derive(Debug)]
pub(crate) struct HookFilter {
    program: OwnedFd,
    /// What the verifier wrote.
    pub(crate) log: String,
}

/// Why a filter was not loaded: the kernel's error, and the verifier's words.
#[derive(Debug)]
pub(crate) struct LoadError {
    pub(crate) error: io::Error,
    pub(crate) log: String,
}

impl LoadError {
    /// The verifier's reason: what it says last, before its statistics.
    pub(crate) fn complaint(&self) -> Option<&str> {
        let statistics = ["verification time ", "stack depth ", "processed "];
        let is_reason = |line: &&str| {
            !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start))
        };
        self.log.lines().map(str::trim).rfind(is_reason)
    }
}

/// What the kernel tells of a loaded program, as far as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Instructions that the verifier went through.
    pub(crate) verified: Option<u64>,
    /// Bytes of machine code.
    pub(crate) machine_code: Option<u64>,
    pub(crate) verifier_us: Option<u64>,
}

/// Whether XDP programs may take packets in several buffers. Linux 5.18.
pub(crate) fn xdp_takes_frags() -> bool {
    HookFilter::load(Hook::Xdp, true, &PASS).is_ok()
}

/// `r0 = 2; exit`
const PASS: [Insn; 2] = [Insn::new(0xb7, 0, 0, 0, 2), Insn::new(0x95, 0, 0, 0, 0)];

impl HookFilter {
    /// `frags`: takes packets in several buffers, at XDP.
    pub(crate) fn load(hook: Hook, frags: bool, insns: &[Insn]) -> Result<Self, LoadError> {
        let what = |bytes| sys::Instructions {
            name: c"bpftk_filter",
            prog_type: match hook {
                Hook::Xdp => libbpf_sys::BPF_PROG_TYPE_XDP,
                Hook::TcIngress | Hook::TcEgress => libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
            },
            flags: if frags { libbpf_sys::BPF_F_XDP_HAS_FRAGS } else { 0 },
            bytes,
        };
        let bytes: Vec<u8> = insns.iter().flat_map(|insn| insn.encode()).collect();
        match sys::load(what(&bytes), sys::Log::Totals) {
            (Ok(program), log) => Ok(Self { program, log }),
            // Once more, for the reason.
            (Err(error), _) => {
                let (_, log) = sys::load(what(&bytes), sys::Log::Everything);
                Err(LoadError { error, log })
            }
        }
    }

    /// What the kernel tells of it.
    pub(crate) fn figures(&self) -> Figures {
        let number = |after: &str| -> Option<u64> {
            let text = self.log.split(after).nth(1)?;
            text.split(' ').next()?.parse().ok()
        };
        let code = sys::machine_code(self.program.as_fd()).ok().filter(|&bytes| bytes > 0);
        Figures {
            verified: number("processed "),
            machine_code: code.map(u64::from),
            verifier_us: number("verification time "),
        }
    }

    pub(crate) fn run(&self, packet: &[u8]) -> Result<Outcome> {
        self.run_with(packet, &[])
    }

    /// With fields of the hook's context, as BPF_PROG_TEST_RUN takes them.
    pub(crate) fn run_with(&self, packet: &[u8], context: &[u8]) -> Result<Outcome> {
        match self.timed(packet, context, 1) {
            Ok(run) => Ok(Outcome::Returned(run.returned)),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINVAL) if packet.len() < 15 => {
                    Ok(Outcome::NotRun("shorter than an Ethernet header with a byte of payload"))
                }
                // As long as a page, as many pages as a packet may have (MAX_SKB_FRAGS), or what the call copies at
                // once.
                Some(libc::EINVAL | libc::ENOMEM | libc::E2BIG | libc::EMSGSIZE)
                    if packet.len() > LONG =>
                {
                    Ok(Outcome::NotRun("longer than the kernel runs a program on"))
                }
                Some(libc::EINVAL) => {
                    Ok(Outcome::NotRun("the kernel refuses to run a program on such a packet"))
                }
                _ => Err(error).context("cannot run the filter on a packet"),
            },
        }
    }

    /// Runs it many times; tells how long one takes.
    pub(crate) fn timed(
        &self,
        packet: &[u8],
        context: &[u8],
        repeat: u32,
    ) -> io::Result<sys::TestRun> {
        sys::test_run(self.program.as_fd(), packet, context, repeat)
    }
}

impl AsFd for HookFilter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// Whether the packet could not be read.
pub(crate) const fn is_unreadable(returned: u32) -> bool {
    returned == UNREADABLE as u32
}

/// A translation, loaded as a program of its own.
pub(crate) fn load(function: &Function, hook: Hook, frags: bool) -> Result<HookFilter, LoadError> {
    HookFilter::load(hook, frags, &function.insns)
}
