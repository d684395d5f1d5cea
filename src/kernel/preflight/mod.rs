// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel side of `sockredir preflight`: which processes do with local TCP connections what redirection changes.

mod machine;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags};
use plain::Plain;

use self::machine::{Machine, ephemeral};
use super::btf::BtfSource;
use super::losses::Losses;
use super::ring::copy_from;
use super::signals::stop_requested;
use super::skel::preflight::{PreflightSkel, PreflightSkelBuilder, RELOCATED_TYPES, types};
use super::task_filter::{TaskFilter, configure_task_filter};
use super::{attach, log, probes};
use crate::error::unsupported;

/// What is done with a connection that redirection changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    Splice,
    ReceiveMap,
    Waitall,
    Oob,
    Trunc,
    Zerocopy,
    Rcvlowat,
    Rcvtimeo,
    Signals,
    Threads,
    Ulp,
    Mptcp,
    Repair,
    Fionread,
    TcpInfo,
    TcpInq,
    PeekOff,
    Timestamps,
    ZeroLength,
    SocketFilter,
    UnreadAtClose,
    Room,
    Blocking,
    IoUring,
    Abi32,
}

/// What is to be thought of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Unsafe,
    /// Right as long as it isn't stopped and gets no signals.
    Caution,
    Safe,
}

impl Reason {
    pub(crate) const ALL: [Self; COUNT] = [
        Self::Splice,
        Self::ReceiveMap,
        Self::Waitall,
        Self::Oob,
        Self::Trunc,
        Self::Zerocopy,
        Self::Rcvlowat,
        Self::Rcvtimeo,
        Self::Signals,
        Self::Threads,
        Self::Ulp,
        Self::Mptcp,
        Self::Repair,
        Self::Fionread,
        Self::TcpInfo,
        Self::TcpInq,
        Self::PeekOff,
        Self::Timestamps,
        Self::ZeroLength,
        Self::SocketFilter,
        Self::UnreadAtClose,
        Self::Room,
        Self::Blocking,
        Self::IoUring,
        Self::Abi32,
    ];

    fn number(self) -> types::preflight_reason {
        match self {
            Self::Splice => types::preflight_reason::PREFLIGHT_SPLICE,
            Self::ReceiveMap => types::preflight_reason::PREFLIGHT_RECEIVE_MAP,
            Self::Waitall => types::preflight_reason::PREFLIGHT_WAITALL,
            Self::Oob => types::preflight_reason::PREFLIGHT_OOB,
            Self::Trunc => types::preflight_reason::PREFLIGHT_TRUNC,
            Self::Zerocopy => types::preflight_reason::PREFLIGHT_ZEROCOPY,
            Self::Rcvlowat => types::preflight_reason::PREFLIGHT_RCVLOWAT,
            Self::Rcvtimeo => types::preflight_reason::PREFLIGHT_RCVTIMEO,
            Self::Signals => types::preflight_reason::PREFLIGHT_SIGNALS,
            Self::Threads => types::preflight_reason::PREFLIGHT_TWO_THREADS,
            Self::Ulp => types::preflight_reason::PREFLIGHT_ULP,
            Self::Mptcp => types::preflight_reason::PREFLIGHT_MPTCP,
            Self::Repair => types::preflight_reason::PREFLIGHT_REPAIR,
            Self::Fionread => types::preflight_reason::PREFLIGHT_FIONREAD,
            Self::TcpInfo => types::preflight_reason::PREFLIGHT_TCP_INFO,
            Self::TcpInq => types::preflight_reason::PREFLIGHT_TCP_INQ,
            Self::PeekOff => types::preflight_reason::PREFLIGHT_PEEK_OFF,
            Self::Timestamps => types::preflight_reason::PREFLIGHT_TIMESTAMPS,
            Self::ZeroLength => types::preflight_reason::PREFLIGHT_ZERO_LENGTH,
            Self::SocketFilter => types::preflight_reason::PREFLIGHT_SOCKET_FILTER,
            Self::UnreadAtClose => types::preflight_reason::PREFLIGHT_UNREAD_AT_CLOSE,
            Self::Room => types::preflight_reason::PREFLIGHT_ROOM,
            Self::Blocking => types::preflight_reason::PREFLIGHT_BLOCKING,
            Self::IoUring => types::preflight_reason::PREFLIGHT_IO_URING,
            Self::Abi32 => types::preflight_reason::PREFLIGHT_ABI32,
        }
    }
}

const COUNT: usize = types::preflight_reason::PREFLIGHT_REASONS.0 as usize;

/// bpf/preflight.h has room for twice as many.
const MANY_PROCESSES: usize = 4096;

/// For how long namespaces are looked into at a time, while it watches: signals wait meanwhile.
const AT_A_TIME: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(crate) struct Config {
    pub(crate) btf: BtfSource,
    pub(crate) tasks: TaskFilter,
}

/// The programs, attached. Dropping it detaches them.
pub(crate) struct Watch {
    /// Dropped before the programs that they attach.
    links: Vec<Link>,
    skel: PreflightSkel<'static>,
    machine: Machine,
    /// Ports that the program knows to be listened at.
    listening: BTreeSet<u16>,
    /// Every address that is in the kernel's set.
    addresses: BTreeSet<[u8; 16]>,
    /// Addresses for which the set had no room.
    addresses_lost: u64,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("addresses", &self.addresses.len()).finish_non_exhaustive()
    }
}

/// A process that used local TCP connections, or what can't be looked into.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// When it began, on CLOCK_BOOTTIME.
    pub(crate) start_ns: u64,
    pub(crate) comm: [u8; 16],
    pub(crate) uid: u32,
    pub(crate) cgroup_id: u64,
    /// Looked at on local TCP connections.
    pub(crate) calls: u64,
    /// What it does that redirection changes, and in how many calls. Nothing: it is safe.
    pub(crate) reasons: Vec<(Reason, u64)>,
    /// Ports that keep out the connections on which it was; empty if there is none to name.
    pub(crate) ports: Vec<u16>,
}

impl Process {
    pub(crate) fn verdict(&self) -> Verdict {
        match self.reasons.as_slice() {
            [] => Verdict::Safe,
            [(Reason::Blocking, _)] => Verdict::Caution,
            _ => Verdict::Unsafe,
        }
    }
}

/// What may be missing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Missing {
    /// Processes and ports for which a table had no room, as often as they came.
    pub(crate) table_full: u64,
    /// System calls for which the kernel did not run the program.
    pub(crate) skipped: u64,
    /// Network namespaces whose addresses and listeners are not known.
    pub(crate) namespaces: u64,
    /// Addresses of this machine that are not known to be its own.
    pub(crate) addresses: u64,
}

// SAFETY: integers and arrays of integers without hidden padding, as bpf/preflight.h asserts.
unsafe impl Plain for types::preflight_key {}
// SAFETY: the same.
unsafe impl Plain for types::preflight_process {}
// SAFETY: the same.
unsafe impl Plain for types::preflight_port {}

const _: () = assert!(size_of::<types::preflight_key>() == 16);
const _: () = assert!(size_of::<types::preflight_process>() == 8 + 8 * COUNT + 16 + 16);
const _: () = assert!(size_of::<types::preflight_port>() == 24);

impl Watch {
    pub(crate) fn arm(config: &Config) -> Result<Self> {
        probes::may_read_kernel()?;
        let mut builder = PreflightSkelBuilder::default();
        let _types = config.btf.apply(&mut builder.obj_builder, RELOCATED_TYPES, &[])?;
        log::clear();
        // The skeleton borrows this cell for as long as it lives; it is a pointer's size.
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = builder
            .open(cell)
            .map_err(|error| anyhow!("cannot open the program: {}", log::explain(error)))?;
        configure_task_filter!(open, &config.tasks);
        let rodata = open.maps.rodata_data.as_deref_mut().context("the object has no constants")?;
        let twice = probes::may_preempt_tracepoints();
        rodata.twice = twice;
        open.progs.bpftk_call2.set_autoload(twice);
        open.maps.looked_at.set_autocreate(twice).context("cannot leave out a map")?;
        // Everything is in tables.
        open.maps.events.set_autocreate(false).context("cannot leave out a map")?;
        log::clear();
        let skel = open.load().map_err(|error| {
            unsupported(format!("the kernel refuses the program: {}", log::explain(error)))
        })?;
        let maps = &skel.maps;
        config.tasks.fill(&maps.filter_pids, &maps.filter_uids, &maps.filter_cgroup)?;
        let mut watch = Self {
            links: Vec::new(),
            skel,
            machine: Machine::default(),
            listening: BTreeSet::new(),
            addresses: BTreeSet::new(),
            addresses_lost: 0,
        };
        watch.look(stop_requested, Duration::MAX)?;
        let progs = &watch.skel.progs;
        // The kernel runs those that came first first: with the second alone, it does it all.
        watch.links.push(attach::auto(&progs.bpftk_call)?);
        if twice {
            watch.links.push(attach::auto(&progs.bpftk_call2)?);
        }
        Ok(watch)
    }

    /// Tells the program what belongs to this machine now. What did once stays: a connection may be from then.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        self.look(stop_requested, AT_A_TIME)
    }

    /// Who began to listen just now. Whoever has sent a signal waits for it.
    pub(crate) fn refresh_at_the_end(&mut self) -> Result<()> {
        let begin = Instant::now();
        self.look(|| begin.elapsed() >= AT_A_TIME, AT_A_TIME)
    }

    fn look(&mut self, stop: impl Fn() -> bool, time: Duration) -> Result<()> {
        let machine = &mut self.machine;
        machine.look(stop, time);
        let maps = &self.skel.maps;
        for address in &machine.addresses {
            if !self.addresses.contains(address) {
                match maps.addresses.update(address, &[1], MapFlags::ANY) {
                    Ok(()) => {
                        self.addresses.insert(*address);
                    }
                    // It is tried anew at each look.
                    Err(_) => continue,
                }
            }
        }
        self.addresses_lost =
            machine.addresses.iter().filter(|it| !self.addresses.contains(*it)).count() as u64;
        let words = machine.listening_words();
        if !machine.listening.is_subset(&self.listening) {
            for (i, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
                let key = (i as u32).to_ne_bytes();
                let before = maps
                    .listening
                    .lookup(&key, MapFlags::ANY)
                    .ok()
                    .flatten()
                    .and_then(|bytes| bytes.try_into().ok())
                    .map_or(0, u64::from_ne_bytes);
                maps.listening
                    .update(&key, &(before | word).to_ne_bytes(), MapFlags::ANY)
                    .context("cannot tell the program who listens")?;
            }
        }
        self.listening.extend(&machine.listening);
        Ok(())
    }

    /// Nothing is counted from now on.
    pub(crate) fn detach(&mut self) {
        attach::detach_all(&mut self.links);
    }

    /// After `detach`: what was seen, the unsafe ones first.
    pub(crate) fn processes(&self) -> Result<Vec<Process>> {
        let maps = &self.skel.maps;
        let mut ports = self.ports();
        let mut found = Vec::new();
        for bytes in maps.processes.keys() {
            let key: types::preflight_key = copy_from(&bytes).context("a key of odd length")?;
            let value =
                maps.processes.lookup(&bytes, MapFlags::ANY).context("cannot read a table")?;
            // `make_room` deletes them.
            let Some(value) = value else { continue };
            let value: types::preflight_process =
                copy_from(&value).context("an entry of odd length")?;
            let reasons = Reason::ALL
                .into_iter()
                .map(|reason| (reason, value.counts[reason.number().0 as usize]))
                .filter(|(_, count)| *count > 0)
                .collect();
            found.push(Process {
                pid: key.pid,
                start_ns: key.start_ns,
                comm: value.comm,
                uid: value.uid,
                cgroup_id: value.cgroup_id,
                calls: value.calls,
                reasons,
                ports: ports.remove(&(key.pid, key.start_ns)).unwrap_or_default(),
            });
        }
        found.sort_by_key(|process| (process.verdict(), process.pid));
        Ok(found)
    }

    /// Forgets processes that have ended, when the table gets full. Returns whether it was full for one meanwhile.
    pub(crate) fn make_room(&mut self) -> Result<bool> {
        let ended = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
        let maps = &self.skel.maps;
        let processes: Vec<Vec<u8>> = maps.processes.keys().collect();
        if processes.len() > MANY_PROCESSES {
            for bytes in processes {
                let key: types::preflight_key = copy_from(&bytes).context("a key of odd length")?;
                if ended(key.pid) {
                    let _ = maps.processes.delete(&bytes);
                }
            }
            for bytes in maps.ports.keys().collect::<Vec<_>>() {
                let port: types::preflight_port =
                    copy_from(&bytes).context("a key of odd length")?;
                if ended(port.process.pid) {
                    let _ = maps.ports.delete(&bytes);
                }
            }
        }
        Ok(Losses::read(&maps.losses)?.table_full > 0)
    }

    /// Server ports of unsafe connections, by process.
    fn ports(&self) -> HashMap<(u32, u64), Vec<u16>> {
        let map = &self.skel.maps.ports;
        let mut all: HashMap<(u32, u64), BTreeMap<u16, bool>> = HashMap::new();
        for bytes in map.keys() {
            let Some(key) = copy_from::<types::preflight_port>(&bytes) else { continue };
            let role = map.lookup(&bytes, MapFlags::ANY).ok().flatten();
            let listening =
                types::preflight_port_role::PREFLIGHT_PORT_LISTENING.0.to_ne_bytes().to_vec();
            all.entry((key.process.pid, key.process.start_ns))
                .or_default()
                .insert(key.port, role == Some(listening));
        }
        let range = ephemeral();
        all.into_iter()
            .map(|(process, ports)| (process, server_ports(&ports, &self.listening, range)))
            .collect()
    }

    /// A call is missed when both programs were skipped for it.
    fn skipped(&self) -> u64 {
        let progs = &self.skel.progs;
        let first = attach::times_skipped(&progs.bpftk_call);
        if progs.bpftk_call2.autoload() {
            first.min(attach::times_skipped(&progs.bpftk_call2))
        } else {
            first
        }
    }

    pub(crate) fn missing(&self) -> Result<Missing> {
        Ok(Missing {
            table_full: Losses::read(&self.skel.maps.losses)?.table_full,
            skipped: self.skipped(),
            namespaces: self.machine.unseen,
            addresses: self.addresses_lost,
        })
    }
}

/// Of the ports of connections, those by which a later connection of the same kind can be told. `true`: the port was listened
/// at when it was seen. Of the others both ends' are there, and one of them is the server's.
fn server_ports(
    seen: &BTreeMap<u16, bool>,
    listening: &BTreeSet<u16>,
    (low, high): (u16, u16),
) -> Vec<u16> {
    seen.iter()
        .filter(|&(port, &known)| known || listening.contains(port) || !(low..=high).contains(port))
        .map(|(port, _)| *port)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_number() {
        let mut numbers: Vec<u32> = Reason::ALL.iter().map(|reason| reason.number().0).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..COUNT as u32).collect::<Vec<_>>());
    }

    #[test]
    fn clients_ports_are_left_out() {
        let seen = BTreeMap::from([(5432, false), (33000, false), (50000, true), (40001, false)]);
        let listening = BTreeSet::from([40001]);
        assert_eq!(server_ports(&seen, &listening, (32768, 60999)), [5432, 40001, 50000]);
    }
}
