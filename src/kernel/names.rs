// SPDX-License-Identifier: MIT OR Apache-2.0

//! What this machine's sockets hear and say of names: bpf/names.bpf.c.

use std::fmt;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::Link;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use super::addr::canonical;
use super::btf::BtfSource;
use super::cgroup::Root;
use super::dns::{self, DnsPiece};
use super::losses::Losses;
use super::ring::EventRing;
use super::skel::names::{NamesSkel, NamesSkelBuilder, RELOCATED_TYPES, types};
use super::{attach, log};
use crate::kernel::refusal;
use crate::net::names::Netns;

/// Connections whose beginning the kernel side follows.
const MOST_OPENINGS: u32 = 32_768;
/// The ring of rows, of which there are none. A page is the least.
const NO_ROWS: u32 = 4096;

/// What was heard.
#[derive(Clone, Debug)]
pub(crate) enum Heard {
    /// A piece of a question to port 53, or of an answer from there.
    Dns(DnsPiece),
    /// A piece of how a connection begins.
    Opening(Opening),
}

/// A piece of the first bytes that a socket sends.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) cookie: u64,
    pub(crate) netns: Netns,
    /// Where they are sent to.
    pub(crate) addr: IpAddr,
    pub(crate) port: u16,
    /// The sequence number of the first byte.
    pub(crate) seq: u32,
    pub(crate) data: Vec<u8>,
}

impl Heard {
    fn decode(bytes: &[u8]) -> Option<Self> {
        if let Some(piece) = DnsPiece::decode(bytes) {
            return Some(Self::Dns(piece));
        }
        let (header, data) = dns::split(bytes)?;
        (types::bpftk_record(header.record) == types::bpftk_record::BPFTK_RECORD_OPENING).then(
            || {
                Self::Opening(Opening {
                    cookie: header.cookie,
                    netns: dns::netns_of(&header),
                    addr: canonical(header.daddr),
                    port: header.dport,
                    seq: header.tcp_seq.wrapping_add(header.offset),
                    data: data.to_vec(),
                })
            },
        )
    }
}

/// Everything of names on this machine, in every network namespace, from its start on. Dropping it ends that.
pub(crate) struct Ear {
    /// Dropped before the programs that they attach.
    _links: Vec<Link>,
    skel: NamesSkel<'static>,
    ring: EventRing<'static, Heard>,
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ear").finish_non_exhaustive()
    }
}

impl Ear {
    pub(crate) fn start(btf: &BtfSource) -> Result<Self> {
        let root = Root::open()?;
        let mut builder = NamesSkelBuilder::default();
        let _types = btf.apply(&mut builder.obj_builder, RELOCATED_TYPES, &[])?;
        log::clear();
        // The skeleton borrows this cell for as long as it lives; it is a pointer's size.
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = builder
            .open(cell)
            .map_err(|error| anyhow!("cannot open the programs: {}", log::explain(error)))?;
        open.maps.events.set_max_entries(NO_ROWS).context("cannot size the ring buffer")?;
        open.maps.openings.set_max_entries(MOST_OPENINGS).context("cannot size a table")?;
        log::clear();
        let skel = open
            .load()
            .map_err(|error| refusal::of_load("the kernel refuses the programs", error))?;
        let ring = EventRing::new(&skel.maps.dns_events, Heard::decode)?;
        let links = [&skel.progs.bpftk_dns, &skel.progs.bpftk_opening]
            .into_iter()
            .map(|program| attach::cgroup(program, &root))
            .collect::<Result<_>>()?;
        Ok(Self { _links: links, skel, ring })
    }

    /// What was heard since, without waiting. Nothing when that is all.
    pub(crate) fn next(&self) -> Result<Option<Heard>> {
        if let Some(heard) = self.ring.next() {
            return Ok(Some(heard));
        }
        self.ring.fill()?;
        Ok(self.ring.next())
    }

    /// Readable when there is something to take.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }

    /// Pieces that did not fit in the ring buffer: each may have had a name.
    pub(crate) fn lost(&self) -> Result<u64> {
        Ok(Losses::read(&self.skel.maps.losses)?.dns + self.ring.undecodable())
    }
}
