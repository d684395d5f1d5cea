// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel side of `sockredir`: its programs, attached to a cgroup and a map of sockets, and what they count.

mod model;
mod settling;

use std::fmt;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, ProgramInput, ProgramMut, libbpf_sys};
use nix::unistd::{SysconfVar, sysconf};

use self::model::look;
pub(crate) use self::model::{End, Key, Reason, State, Totals};
pub(crate) use self::settling::Settling;
use super::backend::{self, Chosen};
use super::btf::BtfSource;
use super::cgroup::Root;
use super::losses::Losses;
use super::preflight::{News, Shared};
use super::ring::{Decode, EventRing, copy_from};
use super::run::Tracing;
use super::skel::sockredir::{RELOCATED_TYPES, SockredirSkel, SockredirSkelBuilder, types};
use super::{log, probes, sys};
use crate::error::not_permitted;
use crate::kernel::refusal;

/// What sockets in the map run for each message that they send.
pub(super) const MESSAGE_PROGRAM: &str = "bpftk_sk_msg";

/// bpf/sockredir.h
pub(crate) const MOST_COMMS: usize = 8;

/// bpf/sockredir.h, SOCKREDIR_PACKET_HEADER
const PACKET_HEADER: usize = 14;

/// Of a set of ports, one bit each.
const WORDS: u32 = 65536 / 64;

/// There is but one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sockmap;

impl fmt::Display for Sockmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sockmap")
    }
}

/// What the programs are told before they are loaded.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) btf: BtfSource,
    /// One bit a port of a server; all without.
    pub(crate) ports: Option<Vec<u64>>,
    pub(crate) excluded_ports: Option<Vec<u64>>,
    /// Connections between network namespaces, too.
    pub(crate) across_namespaces: bool,
    /// Names of senders; all without.
    pub(crate) comms: Vec<[u8; 16]>,
    /// Of one direction, in bytes and in messages.
    pub(crate) max_queue: u64,
    pub(crate) max_messages: u32,
    /// Of all directions together, a message counting for more than its bytes.
    pub(crate) max_memory: u64,
    /// Ends of connections in the map.
    pub(crate) max_ends: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            btf: BtfSource::default(),
            ports: None,
            excluded_ports: None,
            across_namespaces: false,
            comms: Vec::new(),
            max_queue: 4 << 20,
            max_messages: 1024,
            max_memory: 256 << 20,
            max_ends: 65536,
        }
    }
}

/// The programs, attached. Dropping it stops new connections from being taken; sockets that were taken keep the map and
/// the program until they close.
pub(crate) struct Redirector {
    /// The socket operations' program on its cgroup: gone with this process, however it ends.
    link: Option<OwnedFd>,
    /// The same of the program that bounds what TCP brings, where TCP does not.
    room: Option<OwnedFd>,
    skel: SockredirSkel<'static>,
    guard: bool,
}

/// What the programs tell as it happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// An end of a connection is closed.
    Closed(End),
    /// The guard's program has seen something.
    News(News),
}

impl fmt::Debug for Redirector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirector").field("link", &self.link).finish_non_exhaustive()
    }
}

/// Attaches to `cgroup`; from `begin` on, its new connections are redirected.
pub(crate) fn arm(
    config: &Config,
    guard: Option<Shared<'_>>,
    cgroup: &File,
) -> Result<Chosen<Sockmap, Redirector>> {
    backend::choose(&[Sockmap], None, |_| {
        let mut redirector = Redirector::load(config, guard)?;
        redirector.attach(cgroup)?;
        Ok(redirector)
    })
}

/// For `doctor`: all is attached, and takes no connection.
pub(crate) fn try_out(btf: BtfSource) -> Result<Chosen<Sockmap, Redirector>> {
    let root = Root::open()?.into_dir();
    backend::choose(&[Sockmap], None, |_| {
        let config = Config { btf: btf.clone(), ..Config::default() };
        let mut redirector = Redirector::load(&config, None)?;
        redirector.attach(&root)?;
        Ok(redirector)
    })
}

/// How many pages processors may have taken for TCP that are not in the sum yet which the kernel compares with tcp_mem.
fn tcp_memory_held_back() -> u64 {
    let number = |variable| sysconf(variable).ok().flatten().and_then(|n| u64::try_from(n).ok());
    let page = number(SysconfVar::PAGE_SIZE).unwrap_or(4096).max(1);
    // net.core.mem_pcpu_rsv is there since 6.5, and in the first network namespace only. Before it was what it is by
    // default.
    let each = fs::read_to_string("/proc/sys/net/core/mem_pcpu_rsv")
        .ok()
        .and_then(|pages| pages.trim().parse().ok())
        .unwrap_or((1 << 20) / page);
    each * number(SysconfVar::_NPROCESSORS_ONLN).unwrap_or(1)
}

/// What a table has of each end.
fn read(
    map: &impl MapCore,
    decode: impl Fn(&types::sockredir_key, &[u8]) -> Option<End>,
) -> Result<Vec<End>> {
    let mut ends = Vec::new();
    for bytes in map.keys() {
        // It may be closed meanwhile.
        let Some(value) = map.lookup(&bytes, MapFlags::ANY).context("cannot read a table")? else {
            continue;
        };
        let key: Option<types::sockredir_key> = copy_from(&bytes);
        ends.extend(key.and_then(|key| decode(&key, &value)));
    }
    Ok(ends)
}

impl Redirector {
    fn load(config: &Config, guard: Option<Shared<'_>>) -> Result<Self> {
        probes::may_read_kernel()?;
        let mut builder = SockredirSkelBuilder::default();
        let _types = config.btf.apply(&mut builder.obj_builder, RELOCATED_TYPES, &[])?;
        log::clear();
        // The skeleton borrows this cell for as long as it lives; it is a pointer's size.
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = builder
            .open(cell)
            .map_err(|error| anyhow!("cannot open the programs: {}", log::explain(error)))?;
        let rodata = open.maps.rodata_data.as_deref_mut().context("the object has no constants")?;
        rodata.max_queue = config.max_queue;
        rodata.max_messages = config.max_messages;
        rodata.max_memory = config.max_memory;
        rodata.tcp_memory_held_back = tcp_memory_held_back();
        rodata.by_port = config.ports.is_some();
        rodata.by_excluded_port = config.excluded_ports.is_some();
        rodata.guard = guard.is_some();
        rodata.learn_tenth = guard.map_or(0, |shared| shared.learn_tenth);
        rodata.across_namespaces = config.across_namespaces;
        rodata.comms = config.comms.len() as u32;
        for (slot, comm) in rodata.comm_names.iter_mut().zip(&config.comms) {
            *slot = *comm;
        }
        open.progs.bpftk_room.set_autoload(!probes::tcp_bounds_small_packets());
        let maps = &mut open.maps;
        maps.socks.set_max_entries(config.max_ends).context("cannot size the map of sockets")?;
        maps.ends.set_max_entries(config.max_ends).context("cannot size a table")?;
        maps.receivers.set_max_entries(config.max_ends).context("cannot size a table")?;
        maps.refused.set_max_entries(config.max_ends).context("cannot size a table")?;
        if let Some(shared) = guard {
            for (map, shared) in [
                (&mut maps.processes, shared.processes),
                (&mut maps.unsafe_ports, shared.unsafe_ports),
                (&mut maps.listening, shared.listening),
                (&mut maps.kept_out, shared.kept_out),
                (&mut maps.news, shared.news),
                (&mut maps.programs, shared.programs),
                (&mut maps.servers, shared.servers),
            ] {
                map.reuse_fd(shared).context("cannot share a table with the guard")?;
            }
        } else {
            for map in [
                &mut maps.processes,
                &mut maps.unsafe_ports,
                &mut maps.listening,
                &mut maps.kept_out,
                &mut maps.news,
                &mut maps.programs,
                &mut maps.servers,
                &mut maps.connectors,
            ] {
                map.set_autocreate(false).context("cannot leave out a map")?;
            }
            open.progs.bpftk_keep_out.set_autoload(false);
        }
        log::clear();
        let skel = open
            .load()
            .map_err(|error| refusal::of_load("the kernel refuses the programs", error))?;
        for (first, words) in [(0, &config.ports), (WORDS, &config.excluded_ports)] {
            for (i, word) in words.iter().flatten().enumerate().filter(|(_, word)| **word != 0) {
                let key = first + i as u32;
                skel.maps
                    .ports
                    .update(&key.to_ne_bytes(), &word.to_ne_bytes(), MapFlags::ANY)
                    .context("cannot set the ports")?;
            }
        }
        Ok(Self { link: None, room: None, skel, guard: guard.is_some() })
    }

    fn attach(&mut self, cgroup: &File) -> Result<()> {
        // Not by links, which there are since Linux 6.10 only: the programs are the map's, and gone with it. Before the
        // first socket comes into it: a socket has the programs that its map had when it came.
        let map = self.skel.maps.socks.as_fd().as_raw_fd();
        for program in [&self.skel.progs.bpftk_sk_msg, &self.skel.progs.bpftk_sk_skb] {
            program
                .attach_sockmap(map)
                .map_err(|error| anyhow!("cannot attach to the map of sockets: {error}"))?;
        }
        let to_cgroup = |program: &ProgramMut<'_>, kind| {
            sys::link_create(program.as_fd(), cgroup.as_raw_fd(), kind).map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::EPERM) => not_permitted(
                        "the kernel refuses to attach to the cgroup: another program there allows no other \
                         (bpftool cgroup show)",
                    ),
                    _ => anyhow!("cannot attach to the cgroup: {error}"),
                }
            })
        };
        let programs = &self.skel.progs;
        if programs.bpftk_room.autoload() {
            self.room = Some(to_cgroup(&programs.bpftk_room, libbpf_sys::BPF_CGROUP_INET_INGRESS)?);
        }
        self.link = Some(to_cgroup(&programs.bpftk_sockops, libbpf_sys::BPF_CGROUP_SOCK_OPS)?);
        Ok(())
    }

    pub(crate) fn begin(&mut self) -> Result<()> {
        self.enable(true)
    }

    fn enable(&mut self, on: bool) -> Result<()> {
        let bss = self.skel.maps.bss_data.as_deref_mut().context("the object has no variables")?;
        bss.enabled = on;
        Ok(())
    }

    /// The ends that are in the map of sockets; what they sent by TCP is as of now.
    pub(crate) fn ends(&self) -> Result<Vec<End>> {
        let entry = |bytes: &[u8]| copy_from::<types::sockredir_entry>(bytes);
        let ends =
            || read(&self.skel.maps.ends, |key, value| Some(End::of_entry(key, &entry(value)?)));
        let by_tcp: Vec<End> =
            ends()?.into_iter().filter(|end| matches!(end.state, State::Tcp(_))).collect();
        for end in &by_tcp {
            self.look(end, false)?;
        }
        ends()
    }

    /// Ends that were refused, and are open; what they sent is as of now.
    pub(crate) fn refused(&self) -> Result<Vec<End>> {
        let map = &self.skel.maps.refused;
        let end = |bytes: &[u8]| copy_from::<types::sockredir_end>(bytes);
        let ends = || read(map, |key, value| Some(End::new(key, &end(value)?)));
        for end in &ends()? {
            self.look(end, false)?;
        }
        ends()
    }

    /// Connections to this port are TCP's from their next messages on. Only with a guard.
    pub(crate) fn keep_out(&self, port: u16) -> Result<()> {
        test_run(&self.skel.progs.bpftk_keep_out, &port.to_ne_bytes())
            .context("cannot keep a port out")
    }

    /// What all queues of redirected data take.
    pub(crate) fn waiting(&self) -> Result<u64> {
        let bytes = self.skel.maps.waiting.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY);
        let bytes = bytes.context("cannot read a table")?.unwrap_or_default();
        let sum = bytes.as_slice().try_into().map(i64::from_ne_bytes).unwrap_or_default();
        // Below 0 for a moment: see bpf/sockredir_queue.bpf.h.
        Ok(sum.max(0) as u64)
    }

    /// Has queues emptied that were read meanwhile; when nobody sends any more.
    pub(crate) fn settle(&self, ends: &[End]) -> Result<()> {
        for end in ends.iter().filter(|end| end.queue.messages > 0) {
            self.look(end, true)?;
        }
        Ok(())
    }

    /// Has the kernel's side look at a socket: what it has sent, and with `settle` whether its queue is empty.
    fn look(&self, end: &End, settle: bool) -> Result<()> {
        test_run(&self.skel.progs.bpftk_look, &look(end, settle)).context("cannot look at a socket")
    }

    pub(crate) fn totals(&self) -> Result<Totals> {
        use types::sockredir_count as which;
        let per_cpu = |slot: u32| -> Result<Vec<u64>> {
            let values = self
                .skel
                .maps
                .counts
                .lookup_percpu(&slot.to_ne_bytes(), MapFlags::ANY)
                .context("cannot read the counts")?
                .unwrap_or_default();
            Ok(values
                .iter()
                .filter_map(|value| value.as_slice().try_into().ok().map(u64::from_ne_bytes))
                .collect())
        };
        let sum = |slot: u32| -> Result<u64> { Ok(per_cpu(slot)?.into_iter().sum()) };
        let mut reasons = Vec::new();
        for (reason, _) in Reason::NAMES {
            reasons.push((reason, sum(which::SOCKREDIR_BY_REASON.0 + reason.0)?));
        }
        Ok(Totals {
            clients: sum(which::SOCKREDIR_CLIENTS.0)?,
            servers: sum(which::SOCKREDIR_SERVERS.0)?,
            admitted: sum(which::SOCKREDIR_ADMITTED.0)?,
            redirected: sum(which::SOCKREDIR_REDIRECTED.0)?,
            fell_back: sum(which::SOCKREDIR_FELL_BACK.0)?,
            silent: sum(which::SOCKREDIR_SILENT.0)?,
            bytes: sum(which::SOCKREDIR_BYTES.0)?,
            messages: sum(which::SOCKREDIR_MESSAGES.0)?,
            tcp_bytes: sum(which::SOCKREDIR_TCP_BYTES.0)?,
            overlaps: sum(which::SOCKREDIR_OVERLAPS.0)?,
            overlaps_kept: sum(which::SOCKREDIR_OVERLAPS_KEPT.0)?,
            postponed: sum(which::SOCKREDIR_POSTPONED.0)?,
            high_water: per_cpu(which::SOCKREDIR_HIGH_WATER.0)?.into_iter().max().unwrap_or(0),
            waiting: self.waiting()?,
            reasons,
        })
    }

    pub(crate) fn losses(&self) -> Result<Losses> {
        Losses::read(&self.skel.maps.losses)
    }
}

/// Has a program run, for what it does.
fn test_run(program: &ProgramMut<'_>, data: &[u8]) -> Result<()> {
    let mut packet = vec![0; PACKET_HEADER];
    packet.extend_from_slice(data);
    let input = ProgramInput { data_in: Some(&packet), ..ProgramInput::default() };
    program.test_run(input)?;
    Ok(())
}

impl Tracing for Redirector {
    type Event = Event;

    fn events(&self) -> Result<EventRing<'_, Event>> {
        let closed = |bytes: &[u8]| {
            let event: types::sockredir_event = copy_from(bytes)?;
            Some(Event::Closed(End::of_event(&event)))
        };
        let maps = &self.skel.maps;
        let mut rings: Vec<(&dyn MapCore, Decode<'_, Event>)> = Vec::new();
        // First: it is urgent, and they are emptied one after the other.
        if self.guard {
            let news = |bytes: &[u8]| News::decode(bytes).map(Event::News);
            rings.push((&maps.news, Box::new(news)));
        }
        rings.push((&maps.events, Box::new(closed)));
        EventRing::of_several(rings)
    }

    /// First nothing is redirected any more, then no connection is taken. No entry is removed: see bpf/sockredir.bpf.c.
    fn detach(&mut self) -> Result<()> {
        self.enable(false)?;
        self.link = None;
        self.room = None;
        Ok(())
    }
}
