// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel side of `sockredir preflight`: which processes do with local TCP connections what redirection changes.

mod machine;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags};
use nix::time::{ClockId, clock_getres};
use plain::Plain;

use self::machine::{Machine, ephemeral};
use super::btf::BtfSource;
use super::losses::Losses;
use super::ring::copy_from;
use super::signals::stop_requested;
use super::skel::preflight::{PreflightSkel, PreflightSkelBuilder, RELOCATED_TYPES, types};
use super::task_filter::{TaskFilter, configure_task_filter};
use super::{attach, log, probes};
use crate::error::{Status, status_of, unsupported};
use crate::kernel::refusal;

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
    HalfClose,
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
        Self::HalfClose,
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
            Self::HalfClose => types::preflight_reason::PREFLIGHT_HALF_CLOSE,
            Self::Room => types::preflight_reason::PREFLIGHT_ROOM,
            Self::Blocking => types::preflight_reason::PREFLIGHT_BLOCKING,
            Self::IoUring => types::preflight_reason::PREFLIGHT_IO_URING,
            Self::Abi32 => types::preflight_reason::PREFLIGHT_ABI32,
        }
    }
}

const LISTENING: u32 = types::preflight_port_role::PREFLIGHT_PORT_LISTENING.0;

/// Of a set of ports, one bit each.
const WORDS: usize = 65536 / 64;

const COUNT: usize = types::preflight_reason::PREFLIGHT_REASONS.0 as usize;

/// bpf/preflight.h has room for twice as many.
const MANY_PROCESSES: usize = 4096;
const MANY_PORTS: usize = 8192;

/// For how long namespaces are looked into at a time, while it watches: signals wait meanwhile.
const AT_A_TIME: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(crate) struct Config {
    pub(crate) btf: BtfSource,
    pub(crate) tasks: TaskFilter,
    /// It is to keep programs out while connections are redirected.
    pub(crate) guard: bool,
    /// For how long the guard watches programs at work before it lets them in.
    pub(crate) learn: Duration,
}

/// Maps that the programs of sockredir use, too: bpf/guard.bpf.h.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared<'a> {
    pub(crate) processes: BorrowedFd<'a>,
    pub(crate) unsafe_ports: BorrowedFd<'a>,
    pub(crate) listening: BorrowedFd<'a>,
    pub(crate) kept_out: BorrowedFd<'a>,
    pub(crate) news: BorrowedFd<'a>,
    pub(crate) programs: BorrowedFd<'a>,
    pub(crate) servers: BorrowedFd<'a>,
    /// A tenth of the time to learn, in jiffies.
    pub(crate) learn_tenth: u64,
}

/// A process by its id and when it began, on CLOCK_BOOTTIME.
pub(crate) type ProcessKey = (u32, u64);

/// What the guard's programs tell at once: that a process is unsafe, or a port on which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) process: ProcessKey,
    pub(crate) port: Option<u16>,
}

impl News {
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let news: types::preflight_news = copy_from(bytes)?;
        let port = (news.port != 0).then_some(news.port);
        Some(Self { process: (news.process.pid, news.process.start_ns), port })
    }
}

/// The programs, attached. Dropping it detaches them.
pub(crate) struct Watch {
    /// Dropped before the programs that they attach.
    links: Vec<Link>,
    skel: PreflightSkel<'static>,
    machine: Machine,
    guard: bool,
    learn_tenth: u64,
    /// Ports that somebody listens at, one bit each, as the kernel's side had them after the last look.
    listening: Vec<u64>,
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
    pub(crate) fn key(&self) -> ProcessKey {
        (self.pid, self.start_ns)
    }

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
// SAFETY: the same.
unsafe impl Plain for types::preflight_news {}

const _: () = assert!(size_of::<types::preflight_key>() == 16);
const _: () = assert!(size_of::<types::preflight_process>() == 8 + 8 * COUNT + 16 + 16 + 24);
const _: () = assert!(size_of::<types::preflight_port>() == 24);
const _: () = assert!(size_of::<types::preflight_news>() == 24);

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
        rodata.guard = config.guard;
        let learn_tenth = jiffies(config.learn / 10)?;
        rodata.learn_tenth = learn_tenth;
        let (low, high) = ephemeral();
        rodata.ephemeral_first = low;
        rodata.ephemeral_count = u32::from(high) + 1 - u32::from(low.min(high));
        open.progs.bpftk_call2.set_autoload(twice);
        open.maps.looked_at.set_autocreate(twice).context("cannot leave out a map")?;
        // Everything is in tables.
        open.maps.events.set_autocreate(false).context("cannot leave out a map")?;
        let maps = &mut open.maps;
        for map in [&mut maps.news, &mut maps.kept_out, &mut maps.programs, &mut maps.servers] {
            map.set_autocreate(config.guard).context("cannot leave out a map")?;
        }
        maps.half_closes.set_autocreate(config.guard).context("cannot leave out a map")?;
        log::clear();
        let skel = open.load().map_err(|error| {
            let error = refusal::of_load("the kernel refuses the program", error);
            if status_of(&error) == Status::Failed {
                unsupported(format!("{error:#}"))
            } else {
                error
            }
        })?;
        let maps = &skel.maps;
        config.tasks.fill(&maps.filter_pids, &maps.filter_uids, &maps.filter_cgroup)?;
        let mut watch = Self {
            links: Vec::new(),
            skel,
            machine: Machine::default(),
            guard: config.guard,
            learn_tenth,
            listening: vec![0; WORDS],
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

    /// With `guard`: what sockredir's programs are to use.
    pub(crate) fn shared(&self) -> Shared<'_> {
        let maps = &self.skel.maps;
        Shared {
            processes: maps.processes.as_fd(),
            unsafe_ports: maps.unsafe_ports.as_fd(),
            listening: maps.listening.as_fd(),
            kept_out: maps.kept_out.as_fd(),
            news: maps.news.as_fd(),
            programs: maps.programs.as_fd(),
            servers: maps.servers.as_fd(),
            learn_tenth: self.learn_tenth,
        }
    }

    /// Tells the program what belongs to this machine now.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        self.look(stop_requested, AT_A_TIME)
    }

    /// Who began to listen just now. Whoever has sent a signal waits for it.
    pub(crate) fn refresh_at_the_end(&mut self) -> Result<()> {
        let begin = Instant::now();
        self.look(|| begin.elapsed() >= AT_A_TIME, AT_A_TIME)
    }

    fn look(&mut self, stop: impl Fn() -> bool, time: Duration) -> Result<()> {
        self.machine.look(stop, time);
        self.tell_addresses();
        self.tell_listeners()?;
        self.settle_guesses()
    }

    fn tell_addresses(&mut self) {
        let map = &self.skel.maps.addresses;
        let now = self.machine.addresses();
        // First those that are gone: they make room.
        self.addresses.retain(|it| now.contains(it) || map.delete(it).is_err());
        for address in &now {
            // Where there is no room it is tried anew at each look.
            if !self.addresses.contains(address) && map.update(address, &[1], MapFlags::ANY).is_ok()
            {
                self.addresses.insert(*address);
            }
        }
        self.addresses_lost = now.difference(&self.addresses).count() as u64;
    }

    fn tell_listeners(&mut self) -> Result<()> {
        let map = &self.skel.maps.listening;
        // With the guard, the kernel's side adds ports itself.
        let now = if self.guard { read_words(map)? } else { self.listening.clone() };
        let found = words(&self.machine.listening());
        let complete = self.machine.is_complete();
        let next = listeners(&self.listening, &now, &found, complete);
        for (i, (next, _)) in next.iter().zip(&now).enumerate().filter(|(_, (a, b))| a != b) {
            map.update(&(i as u32).to_ne_bytes(), &next.to_ne_bytes(), MapFlags::ANY)
                .context("cannot tell the program who listens")?;
        }
        self.listening = next;
        Ok(())
    }

    /// A port of which the program did not know whose it is may be listened at by now, and not any more when it is
    /// asked for.
    fn settle_guesses(&self) -> Result<()> {
        let map = &self.skel.maps.unsafe_ports;
        for bytes in map.keys() {
            let Some(key) = copy_from::<types::preflight_port>(&bytes) else { continue };
            let port = usize::from(key.port);
            if self.listening[port / 64] & 1 << (port % 64) != 0 {
                // It may be deleted meanwhile, and is not to come again.
                match map.update(&bytes, &LISTENING.to_ne_bytes(), MapFlags::EXIST) {
                    Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => {
                        return Err(error).context("cannot change a table");
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Nothing is counted from now on.
    pub(crate) fn detach(&mut self) {
        attach::detach_all(&mut self.links);
    }

    /// What was seen until now, the unsafe ones first.
    pub(crate) fn processes(&self) -> Result<Vec<Process>> {
        let mut found = Vec::new();
        for bytes in self.skel.maps.processes.keys() {
            // `make_room` deletes them.
            found.extend(self.read_process(&bytes)?);
        }
        // After the processes: the programs note a port before anything says that the process is unsafe.
        let mut ports = self.ports();
        for process in &mut found {
            process.ports = ports.remove(&process.key()).unwrap_or_default();
        }
        found.sort_by_key(|process| (process.verdict(), process.pid));
        Ok(found)
    }

    /// One of them, without its ports.
    pub(crate) fn process(&self, (pid, start_ns): ProcessKey) -> Result<Option<Process>> {
        let key = types::preflight_key { start_ns, pid, pad: 0 };
        // SAFETY: without hidden padding, as above.
        self.read_process(unsafe { plain::as_bytes(&key) })
    }

    fn read_process(&self, bytes: &[u8]) -> Result<Option<Process>> {
        let key: types::preflight_key = copy_from(bytes).context("a key of odd length")?;
        let value = self.skel.maps.processes.lookup(bytes, MapFlags::ANY);
        let Some(value) = value.context("cannot read a table")? else { return Ok(None) };
        let value: types::preflight_process =
            copy_from(&value).context("an entry of odd length")?;
        let reasons = Reason::ALL
            .into_iter()
            .map(|reason| (reason, value.counts[reason.number().0 as usize]))
            .filter(|(_, count)| *count > 0)
            .collect();
        Ok(Some(Process {
            pid: key.pid,
            start_ns: key.start_ns,
            comm: value.comm,
            uid: value.uid,
            cgroup_id: value.cgroup_id,
            calls: value.calls,
            reasons,
            ports: Vec::new(),
        }))
    }

    /// Forgets processes that have ended, when the table gets full. Returns whether it was full for one meanwhile.
    pub(crate) fn make_room(&mut self) -> Result<bool> {
        let ended = |pid: u32| !Path::new(&format!("/proc/{pid}")).exists();
        let maps = &self.skel.maps;
        let processes: Vec<Vec<u8>> = maps.processes.keys().collect();
        let many_ports = maps.unsafe_ports.keys().count() > MANY_PORTS;
        if processes.len() > MANY_PROCESSES || many_ports {
            for bytes in processes {
                let key: types::preflight_key = copy_from(&bytes).context("a key of odd length")?;
                if ended(key.pid) {
                    let _ = maps.processes.delete(&bytes);
                }
            }
            for bytes in maps.unsafe_ports.keys().collect::<Vec<_>>() {
                let port: types::preflight_port =
                    copy_from(&bytes).context("a key of odd length")?;
                if ended(port.process.pid) {
                    let _ = maps.unsafe_ports.delete(&bytes);
                }
            }
        }
        Ok(Losses::read(&maps.losses)?.table_full > 0)
    }

    /// Server ports of unsafe connections, by process.
    fn ports(&self) -> HashMap<ProcessKey, Vec<u16>> {
        let map = &self.skel.maps.unsafe_ports;
        let mut all: HashMap<ProcessKey, BTreeMap<u16, bool>> = HashMap::new();
        for bytes in map.keys() {
            let Some(key) = copy_from::<types::preflight_port>(&bytes) else { continue };
            let role = map.lookup(&bytes, MapFlags::ANY).ok().flatten();
            all.entry((key.process.pid, key.process.start_ns))
                .or_default()
                .insert(key.port, role.is_some_and(|role| role == LISTENING.to_ne_bytes()));
        }
        let range = ephemeral();
        all.into_iter().map(|(process, ports)| (process, server_ports(&ports, range))).collect()
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

/// Of the ports of connections, those by which a later connection of the same kind can be told. `true`: the port was
/// listened at when it was seen, or later. Of the others both ends' are there, and one of them is the server's.
fn server_ports(seen: &BTreeMap<u16, bool>, (low, high): (u16, u16)) -> Vec<u16> {
    seen.iter()
        .filter(|&(port, &known)| known || !(low..=high).contains(port))
        .map(|(port, _)| *port)
        .collect()
}

/// In the kernel's unit of time: the resolution of its coarse clocks. Some, if there is to be any.
fn jiffies(time: Duration) -> Result<u64> {
    let jiffy =
        clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("the kernel has no coarse clock")?;
    let jiffy = Duration::from(jiffy).as_nanos().max(1);
    Ok(u64::try_from(time.as_nanos().div_ceil(jiffy)).unwrap_or(u64::MAX))
}

/// One bit a port.
fn words(ports: &BTreeSet<u16>) -> Vec<u64> {
    let mut words = vec![0_u64; WORDS];
    for &port in ports {
        words[usize::from(port) / 64] |= 1 << (port % 64);
    }
    words
}

fn read_words(map: &impl MapCore) -> Result<Vec<u64>> {
    let word = |i: usize| {
        let bytes = map.lookup(&(i as u32).to_ne_bytes(), MapFlags::ANY);
        let bytes = bytes.context("cannot read who listens")?.unwrap_or_default();
        Ok(bytes.as_slice().try_into().map_or(0, u64::from_ne_bytes))
    };
    (0..WORDS).map(word).collect()
}

/// Who listens, after a look that found this: what was there `before` it and was not found is gone, if the look was at
/// everything. What the kernel's side has added since then (it is there `now`) is for the next look.
fn listeners(before: &[u64], now: &[u64], found: &[u64], complete: bool) -> Vec<u64> {
    before
        .iter()
        .zip(now)
        .zip(found)
        .map(|((before, now), found)| found | if complete { now & !before } else { *now })
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
        let seen = BTreeMap::from([(5432, false), (33000, false), (50000, true)]);
        assert_eq!(server_ports(&seen, (32768, 60999)), [5432, 50000]);
    }

    #[test]
    fn who_does_not_listen_any_more_is_forgotten() {
        let (gone, stays, begins, sees) = (1, 2, 4, 8);
        // Only the kernel's side has seen the last one, during the look.
        let (before, now, found) = ([gone | stays], [gone | stays | sees], [stays | begins]);
        assert_eq!(listeners(&before, &now, &found, true), [stays | begins | sees]);
        // The next look finds nobody there.
        let after = listeners(&[stays | begins | sees], &[stays | begins | sees], &found, true);
        assert_eq!(after, [stays | begins]);
        // Nobody is given up by a look that was not at everything.
        let all = gone | stays | begins | sees;
        assert_eq!(listeners(&before, &now, &found, false), [all]);
        assert_eq!(words(&BTreeSet::from([0, 65, 65535]))[..2], [1, 2]);
        assert_eq!(words(&BTreeSet::from([65535]))[WORDS - 1], 1 << 63);
    }
}
