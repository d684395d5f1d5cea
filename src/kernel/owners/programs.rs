// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who makes, uses and closes sockets, told while it happens: bpf/owners.bpf.c.

use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, libbpf_sys};

use super::{Options, Record};
use crate::error::unsupported;
use crate::kernel::cgroup::Root;
use crate::kernel::losses::Losses;
use crate::kernel::refusal;
use crate::kernel::ring::EventRing;
use crate::kernel::skel::owners::{OpenOwnersSkel, OwnersSkel, OwnersSkelBuilder, RELOCATED_TYPES};
use crate::kernel::{attach, log, probes, sys};

/// How it is seen who sends through a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Senders {
    /// sock:sock_send_length and sock:sock_recv_length, Linux 6.3
    Tracepoint,
    /// fentry of security_socket_sendmsg and security_socket_recvmsg
    Fentry,
    /// kprobes of the same
    Kprobe,
}

impl fmt::Display for Senders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tracepoint => "tracepoint",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
        })
    }
}

impl Senders {
    pub(super) const ORDER: [Self; 3] = [Self::Tracepoint, Self::Fentry, Self::Kprobe];

    /// Why this can't be had here, if it can't.
    fn probe(self) -> Result<()> {
        match self {
            Self::Tracepoint => sys::load_trivial(libbpf_sys::BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0)
                .and_then(|program| {
                    sys::raw_tracepoint_open_named(program.as_fd(), c"sock_send_length")
                })
                .map(drop)
                .map_err(|error| match error.raw_os_error() {
                    Some(libc::ENOENT) => {
                        unsupported("this kernel has no tracepoint sock:sock_send_length")
                    }
                    _ => anyhow!("cannot attach to sock:sock_send_length: {error}"),
                }),
            Self::Fentry => probes::fentry_allowed().map_err(unsupported),
            Self::Kprobe => probes::kprobe(c"security_socket_sendmsg"),
        }
    }
}

const FUNCTIONS: &[&str] = &["security_socket_sendmsg", "security_socket_recvmsg"];

/// Sockets whose user the kernel side remembers.
const MOST_USERS: u32 = 65_536;

/// The programs, attached. Dropping it detaches them.
pub(super) struct Programs {
    /// Dropped before the programs that they attach.
    _links: Vec<Link>,
    skel: OwnersSkel<'static>,
    pub(super) ring: EventRing<'static, Record>,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").field("links", &self._links.len()).finish_non_exhaustive()
    }
}

impl Programs {
    /// At `root`, everybody's sockets; without it, only who sends.
    pub(super) fn load(
        options: &Options,
        root: Option<&Root>,
        senders: Option<Senders>,
    ) -> Result<Self> {
        if let Some(senders) = senders {
            senders.probe()?;
        }
        let mut builder = OwnersSkelBuilder::default();
        let functions = if senders == Some(Senders::Fentry) { FUNCTIONS } else { &[] };
        let types = options.btf.apply(&mut builder.obj_builder, RELOCATED_TYPES, functions)?;
        let _targets = attach::tracing_targets(&types)?;
        log::clear();
        // The skeleton borrows this cell for as long as it lives; it is a pointer's size.
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = builder
            .open(cell)
            .map_err(|error| anyhow!("cannot open the programs: {}", log::explain(error)))?;
        let bytes = options.ring_bytes;
        open.maps.events.set_max_entries(bytes).context("cannot size the ring buffer")?;
        open.maps.users.set_max_entries(MOST_USERS).context("cannot size a table")?;
        select(&mut open, root.is_some(), senders);
        log::clear();
        let skel = open
            .load()
            .map_err(|error| refusal::of_load("the kernel refuses the programs", error))?;

        let ring = EventRing::new(&skel.maps.events, Record::decode)?;
        let mut links = Vec::new();
        let progs = &skel.progs;
        let [send, receive] = FUNCTIONS else { unreachable!("two functions") };
        match senders {
            Some(Senders::Tracepoint) => {
                links.push(attach::auto(&progs.bpftk_sent)?);
                links.push(attach::auto(&progs.bpftk_received)?);
            }
            Some(Senders::Fentry) => {
                links.push(attach::trace(&progs.bpftk_fe_send)?);
                links.push(attach::trace(&progs.bpftk_fe_recv)?);
            }
            Some(Senders::Kprobe) => {
                links.push(attach::kprobe(&progs.bpftk_kp_send, false, send)?);
                links.push(attach::kprobe(&progs.bpftk_kp_recv, false, receive)?);
            }
            None => {}
        }
        if let Some(root) = root {
            // The end of a socket before its beginning: none is made whose end is not seen.
            links.push(attach::cgroup(&progs.bpftk_sk_release, root)?);
            links.push(attach::cgroup(&progs.bpftk_sk_create, root)?);
        }
        Ok(Self { _links: links, skel, ring })
    }

    /// Records that were not told, or not understood.
    pub(super) fn lost(&self) -> Result<u64> {
        Ok(Losses::read(&self.skel.maps.losses)?.ring_full + self.ring.undecodable())
    }
}

fn select(open: &mut OpenOwnersSkel<'_>, at_root: bool, senders: Option<Senders>) {
    let progs = &mut open.progs;
    for program in [&mut progs.bpftk_sk_create, &mut progs.bpftk_sk_release] {
        program.set_autoload(at_root);
    }
    for (kind, programs) in [
        (Senders::Tracepoint, [&mut progs.bpftk_sent, &mut progs.bpftk_received]),
        (Senders::Fentry, [&mut progs.bpftk_fe_send, &mut progs.bpftk_fe_recv]),
        (Senders::Kprobe, [&mut progs.bpftk_kp_send, &mut progs.bpftk_kp_recv]),
    ] {
        for program in programs {
            program.set_autoload(senders == Some(kind));
        }
    }
}
