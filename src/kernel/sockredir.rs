// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel side of `sockredir`: its programs, attached to a cgroup and a map of sockets, and what they count.

use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, libbpf_sys};
use plain::Plain;

use super::addr::canonical;
use super::backend::{self, Chosen};
use super::btf::BtfSource;
use super::losses::Losses;
use super::ring::{EventRing, copy_from};
use super::run::Tracing;
use super::skel::sockredir::{RELOCATED_TYPES, SockredirSkel, SockredirSkelBuilder, types};
use super::{cgroup, log, probes, sys};
use crate::error::{not_permitted, unsupported};

/// What sockets in the map run for each message that they send.
pub(super) const MESSAGE_PROGRAM: &str = "bpftk_sk_msg";

/// bpf/sockredir.h
pub(crate) const MOST_COMMS: usize = 8;

// SAFETY: integers and arrays of integers without hidden padding, as bpf/sockredir.h asserts.
unsafe impl Plain for types::sockredir_key {}
// SAFETY: as above.
unsafe impl Plain for types::sockredir_end {}
// SAFETY: as above.
unsafe impl Plain for types::sockredir_event {}

const _: () = assert!(size_of::<types::sockredir_key>() == 44);
const _: () = assert!(size_of::<types::sockredir_end>() == 96);
const _: () = assert!(size_of::<types::sockredir_event>() == 152);

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
    /// Names of senders; all without.
    pub(crate) comms: Vec<[u8; 16]>,
    /// Of one direction, in bytes and in messages.
    pub(crate) max_queue: u64,
    pub(crate) max_messages: u32,
    /// Ends of connections in the map.
    pub(crate) max_ends: u32,
    /// Whether connections are told of as they close.
    pub(crate) events: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            btf: BtfSource::default(),
            ports: None,
            excluded_ports: None,
            comms: Vec::new(),
            max_queue: 4 << 20,
            max_messages: 1024,
            max_ends: 65536,
            events: false,
        }
    }
}

/// Why a direction is left to TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reason(u32);

impl Reason {
    /// All that there are, and what they are called.
    pub(crate) const NAMES: [(Self, &'static str); 14] = {
        use types::sockredir_reason as reason;
        [
            (Self(reason::SOCKREDIR_PEER_UNKNOWN.0), "peer-unknown"),
            (Self(reason::SOCKREDIR_PRIOR_BYTES.0), "prior-bytes"),
            (Self(reason::SOCKREDIR_BACKLOG.0), "backlog"),
            (Self(reason::SOCKREDIR_NOT_LOCAL.0), "not-local"),
            (Self(reason::SOCKREDIR_FILTERED.0), "filtered"),
            (Self(reason::SOCKREDIR_MAP_FULL.0), "map-full"),
            (Self(reason::SOCKREDIR_EXISTS.0), "exists"),
            (Self(reason::SOCKREDIR_MPTCP.0), "mptcp"),
            (Self(reason::SOCKREDIR_KERNEL.0), "kernel"),
            (Self(reason::SOCKREDIR_ULP.0), "ulp"),
            (Self(reason::SOCKREDIR_READER.0), "reader"),
            (Self(reason::SOCKREDIR_REFUSED.0), "refused"),
            (Self(reason::SOCKREDIR_PEER_CLOSED.0), "peer-closed"),
            (Self(reason::SOCKREDIR_STOPPED.0), "stopped"),
        ]
    };

    pub(crate) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(reason, _)| *reason == self).map_or("unknown", |(_, name)| name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing was sent yet.
    Idle,
    Redirect,
    Tcp(Reason),
}

/// Which end of which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    sequences: (u32, u32),
}

impl Key {
    /// The key of the other end.
    pub(crate) fn other(self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            sequences: (self.sequences.1, self.sequences.0),
        }
    }
}

/// An end of a connection, and what it sent.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) key: Key,
    pub(crate) client: bool,
    pub(crate) state: State,
    /// Redirected.
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
    /// Left to TCP.
    pub(crate) tcp_bytes: u64,
    pub(crate) tcp_messages: u64,
    /// Who sent last; 0 when nobody has.
    pub(crate) pid: u32,
    pub(crate) comm: String,
    pub(crate) opened_ns: u64,
    /// When it was closed, if it is.
    pub(crate) closed_ns: Option<u64>,
}

impl End {
    fn new(key: &types::sockredir_key, end: &types::sockredir_end) -> Self {
        let local = SocketAddr::new(canonical(key.laddr), key.lport);
        let remote = SocketAddr::new(canonical(key.raddr), key.rport);
        Self {
            key: Key { local, remote, sequences: (key.lseq, key.rseq) },
            client: end.client != 0,
            state: match u32::from(end.state) {
                state if state == types::sockredir_state::SOCKREDIR_REDIRECT.0 => State::Redirect,
                state if state == types::sockredir_state::SOCKREDIR_TCP.0 => {
                    State::Tcp(Reason(end.reason.into()))
                }
                _ => State::Idle,
            },
            bytes: end.bytes,
            messages: end.messages,
            tcp_bytes: end.tcp_bytes,
            tcp_messages: end.tcp_messages,
            pid: end.pid,
            comm: crate::output::bytes_to_string(&end.comm),
            opened_ns: end.opened_ns,
            closed_ns: None,
        }
    }

    fn of_event(event: &types::sockredir_event) -> Self {
        Self { closed_ns: Some(event.closed_ns), ..Self::new(&event.key, &event.end) }
    }
}

/// Counts since the beginning.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    /// Ends of connections that were established in scope.
    pub(crate) clients: u64,
    pub(crate) servers: u64,
    pub(crate) admitted: u64,
    pub(crate) redirected: u64,
    /// Of these, left to TCP later.
    pub(crate) fell_back: u64,
    /// Ends that closed without having sent.
    pub(crate) silent: u64,
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
    pub(crate) tcp_bytes: u64,
    pub(crate) tcp_messages: u64,
    pub(crate) high_water: u64,
    /// Directions left to TCP, by reason.
    pub(crate) reasons: Vec<(Reason, u64)>,
}

impl Totals {
    /// Sockets that the kernel did not take into the map.
    pub(crate) fn failed_inserts(&self) -> u64 {
        let failures = ["map-full", "exists", "refused"];
        self.reasons
            .iter()
            .filter(|(reason, _)| failures.contains(&reason.name()))
            .map(|(_, count)| count)
            .sum()
    }
}

/// The programs, attached. Dropping it stops new connections from being taken; sockets that were taken keep the map and
/// the program until they close.
pub(crate) struct Redirector {
    /// The socket operations' program on its cgroup: gone with this process, however it ends.
    link: Option<OwnedFd>,
    skel: SockredirSkel<'static>,
}

impl fmt::Debug for Redirector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirector").field("link", &self.link).finish_non_exhaustive()
    }
}

/// Attaches to `cgroup`; from then on, its new connections are redirected.
pub(crate) fn arm(config: &Config, cgroup: &File) -> Result<Chosen<Sockmap, Redirector>> {
    backend::choose(&[Sockmap], None, |_| {
        let mut redirector = Redirector::load(config)?;
        redirector.attach(cgroup)?;
        redirector.enable(true)?;
        Ok(redirector)
    })
}

/// For `doctor`: all is attached, and takes no connection.
pub(crate) fn try_out(btf: BtfSource) -> Result<Chosen<Sockmap, Redirector>> {
    let root = cgroup::mount_point().ok_or_else(no_cgroups)?;
    let root = cgroup::open(&root)?;
    backend::choose(&[Sockmap], None, |_| {
        let config = Config { btf: btf.clone(), ..Config::default() };
        let mut redirector = Redirector::load(&config)?;
        redirector.attach(&root)?;
        Ok(redirector)
    })
}

pub(crate) fn no_cgroups() -> anyhow::Error {
    unsupported("cgroup v2 is not mounted here (mount -t cgroup2 none /sys/fs/cgroup)")
}

impl Redirector {
    fn load(config: &Config) -> Result<Self> {
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
        rodata.by_port = config.ports.is_some();
        rodata.by_excluded_port = config.excluded_ports.is_some();
        rodata.with_events = config.events;
        rodata.comms = config.comms.len() as u32;
        for (slot, comm) in rodata.comm_names.iter_mut().zip(&config.comms) {
            *slot = *comm;
        }
        let maps = &mut open.maps;
        maps.socks.set_max_entries(config.max_ends).context("cannot size the map of sockets")?;
        maps.ends.set_max_entries(config.max_ends).context("cannot size a table")?;
        log::clear();
        let skel = open
            .load()
            .map_err(|error| anyhow!("the kernel refuses the programs: {}", log::explain(error)))?;
        for (first, words) in [(0, &config.ports), (1024, &config.excluded_ports)] {
            for (i, word) in words.iter().flatten().enumerate().filter(|(_, word)| **word != 0) {
                let key = first + i as u32;
                skel.maps
                    .ports
                    .update(&key.to_ne_bytes(), &word.to_ne_bytes(), MapFlags::ANY)
                    .context("cannot set the ports")?;
            }
        }
        Ok(Self { link: None, skel })
    }

    fn attach(&mut self, cgroup: &File) -> Result<()> {
        // Not by a link, which there is since Linux 6.10 only: the program is the map's, and gone with it.
        self.skel
            .progs
            .bpftk_sk_msg
            .attach_sockmap(self.skel.maps.socks.as_fd().as_raw_fd())
            .map_err(|error| anyhow!("cannot attach to the map of sockets: {error}"))?;
        let program = self.skel.progs.bpftk_sockops.as_fd();
        let link = sys::link_create(program, cgroup.as_raw_fd(), libbpf_sys::BPF_CGROUP_SOCK_OPS);
        self.link = Some(link.map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => not_permitted(
                "the kernel refuses to attach to the cgroup: another program there allows no other \
                 (bpftool cgroup show)",
            ),
            _ => anyhow!("cannot attach to the cgroup: {error}"),
        })?);
        Ok(())
    }

    fn enable(&mut self, on: bool) -> Result<()> {
        let bss = self.skel.maps.bss_data.as_deref_mut().context("the object has no variables")?;
        bss.enabled = on;
        Ok(())
    }

    /// The ends that are open, of connections that were taken.
    pub(crate) fn ends(&self) -> Result<Vec<End>> {
        let map = &self.skel.maps.ends;
        let mut ends = Vec::new();
        for bytes in map.keys() {
            // It may be closed meanwhile.
            let Some(value) = map.lookup(&bytes, MapFlags::ANY).context("cannot read a table")?
            else {
                continue;
            };
            let key: Option<types::sockredir_key> = copy_from(&bytes);
            if let (Some(key), Some(end)) = (key, copy_from(&value)) {
                ends.push(End::new(&key, &end));
            }
        }
        Ok(ends)
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
            tcp_messages: sum(which::SOCKREDIR_TCP_MESSAGES.0)?,
            high_water: per_cpu(which::SOCKREDIR_HIGH_WATER.0)?.into_iter().max().unwrap_or(0),
            reasons,
        })
    }

    pub(crate) fn losses(&self) -> Result<Losses> {
        Losses::read(&self.skel.maps.losses)
    }
}

impl Tracing for Redirector {
    type Event = End;

    fn events(&self) -> Result<EventRing<'_, End>> {
        EventRing::new(&self.skel.maps.events, |bytes| {
            copy_from::<types::sockredir_event>(bytes).map(|event| End::of_event(&event))
        })
    }

    /// First nothing is redirected any more, then no connection is taken. No entry is removed: see bpf/sockredir.bpf.c.
    fn detach(&mut self) -> Result<()> {
        self.enable(false)?;
        self.link = None;
        Ok(())
    }
}
