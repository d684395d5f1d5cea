// SPDX-License-Identifier: MIT OR Apache-2.0

//! What this machine's sockets hear and say of names: bpf/names.bpf.c.

use std::fmt;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::Link;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use super::btf::BtfSource;
use super::cgroup::Root;
use super::dns::DnsPiece;
use super::losses::Losses;
use super::ring::EventRing;
use super::skel::names::{NamesSkel, NamesSkelBuilder, RELOCATED_TYPES, types};
use super::{attach, log};
use crate::kernel::refusal;

/// Connections whose beginning the kernel side follows.
const MOST_OPENINGS: u32 = 32_768;
const RING_BYTES: u32 = 4 << 20;

/// What was heard.
#[derive(Clone, Debug)]
pub(crate) enum Heard {
    /// A piece of an answer from port 53.
    Answer(DnsPiece),
    /// A piece of how a connection begins.
    Opening(Opening),
}

/// A piece of the first bytes that a socket sends.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) cookie: u64,
    /// Where they are sent to.
    pub(crate) addr: IpAddr,
    pub(crate) port: u16,
    /// The sequence number of the first byte.
    pub(crate) seq: u32,
    pub(crate) data: Vec<u8>,
}

impl Heard {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let kind = types::bpftk_record(u32::from_ne_bytes(*bytes.first_chunk()?));
        let piece = DnsPiece::decode(bytes)?;
        match kind {
            types::bpftk_record::BPFTK_RECORD_DNS => Some(Self::Answer(piece)),
            types::bpftk_record::BPFTK_RECORD_OPENING => {
                let (_, addr, port) = piece.flow;
                let seq = piece.seq.wrapping_add(piece.offset);
                Some(Self::Opening(Opening {
                    cookie: piece.cookie,
                    addr,
                    port,
                    seq,
                    data: piece.data,
                }))
            }
            _ => None,
        }
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
        open.maps.events.set_max_entries(RING_BYTES).context("cannot size the ring buffer")?;
        open.maps.openings.set_max_entries(MOST_OPENINGS).context("cannot size a table")?;
        log::clear();
        let skel = open
            .load()
            .map_err(|error| refusal::of_load("the kernel refuses the programs", error))?;
        let ring = EventRing::new(&skel.maps.events, Heard::decode)?;
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
