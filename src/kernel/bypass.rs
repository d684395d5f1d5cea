// SPDX-License-Identifier: MIT OR Apache-2.0

//! Refuses what gets packets past tc, while something is blocked there: bpf/bypass.bpf.c, at the root of cgroup v2.

use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore};
use plain::Plain;

use super::btf::BtfSource;
use super::cgroup::Root;
use super::ring::{EventRing, copy_from};
use super::skel::bypass::{BypassSkel, BypassSkelBuilder, RELOCATED_TYPES, types};
use super::{attach, log, sys};

// SAFETY: integers and bytes without hidden padding, as bpf/bypass.h asserts.
unsafe impl Plain for types::bypass_record {}

const _: () = assert!(size_of::<types::bypass_record>() == 32);

/// A socket option that a process did not get.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) time_ns: u64,
    pub(crate) tgid: u32,
    pub(crate) comm: String,
    pub(crate) option: &'static str,
}

impl From<types::bypass_record> for Refusal {
    fn from(record: types::bypass_record) -> Self {
        const SOL_XDP: u32 = 283;
        Self {
            time_ns: record.time_ns,
            tgid: record.tgid,
            comm: crate::output::bytes_to_string(&record.comm.map(|c| c as u8)),
            option: if record.level == SOL_XDP { "XDP_TX_RING" } else { "PACKET_QDISC_BYPASS" },
        }
    }
}

/// Refuses for as long as this lives.
pub(crate) struct Bypass {
    /// Dropped before the program.
    _link: Link,
    skel: BypassSkel<'static>,
}

impl fmt::Debug for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bypass").finish_non_exhaustive()
    }
}

impl Bypass {
    /// In the network namespace of the calling thread.
    pub(crate) fn refuse() -> Result<Self> {
        // SO_NETNS_COOKIE came before the programs' own way to ask for it.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot make a socket")?;
        let by_cookie = match sys::netns_cookie(socket.as_fd()) {
            Ok(cookie) => Self::load(Some(cookie)),
            Err(error) => Err(error.into()),
        };
        by_cookie.or_else(|_| Self::load(None))
    }

    /// By the cookie of the namespace, or by its inode number.
    fn load(cookie: Option<u64>) -> Result<Self> {
        let root = Root::open()?;
        let mut builder = BypassSkelBuilder::default();
        let _types = match cookie {
            Some(_) => None,
            None => {
                let btf = BtfSource::new(None)?;
                Some(btf.apply(&mut builder.obj_builder, RELOCATED_TYPES, &[])?)
            }
        };
        log::clear();
        // The skeleton borrows this cell for as long as it lives; it is a pointer's size.
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = builder
            .open(cell)
            .map_err(|error| anyhow!("cannot open the program: {}", log::explain(error)))?;
        let rodata = open.maps.rodata_data.as_deref_mut().context("the object has no constants")?;
        rodata.netns_cookie = cookie.unwrap_or(0);
        let file = File::open("/proc/thread-self/ns/net").context("cannot open a namespace")?;
        rodata.netns_inode = file.metadata().context("cannot look at a namespace")?.ino() as u32;
        open.maps.events.set_max_entries(64 << 10).context("cannot size a ring buffer")?;
        open.progs.bpftk_bypass.set_autoload(cookie.is_some());
        open.progs.bpftk_bypass_by.set_autoload(cookie.is_none());
        log::clear();
        let skel = open
            .load()
            .map_err(|error| anyhow!("the kernel refuses the program: {}", log::explain(error)))?;
        let program =
            if cookie.is_some() { &skel.progs.bpftk_bypass } else { &skel.progs.bpftk_bypass_by };
        let link = attach::cgroup(program, &root)?;
        Ok(Self { _link: link, skel })
    }

    /// What was refused since the last time.
    pub(crate) fn refusals(&self) -> Result<Vec<Refusal>> {
        let map: &dyn MapCore = &self.skel.maps.events;
        let ring = EventRing::new(map, |bytes| {
            copy_from::<types::bypass_record>(bytes).map(Refusal::from)
        })?;
        let mut refusals = Vec::new();
        while ring.fill()? {
            while let Some(refusal) = ring.next() {
                refusals.push(refusal);
            }
        }
        while let Some(refusal) = ring.next() {
            refusals.push(refusal);
        }
        Ok(refusals)
    }
}
