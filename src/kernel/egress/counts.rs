// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the programs counted since the last time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags};

use super::rules::Rule;
use super::types::{egress_flag, egress_recent, egress_row, socket_kind};
use super::{By, Counter};
use crate::kernel::addr::canonical;
use crate::kernel::count::Count;
use crate::kernel::sys::maps;

/// What has the same key is counted together. What was not asked for is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// With zeros where it was cut off.
    pub(crate) addr: Option<IpAddr>,
    pub(crate) proto: Option<u8>,
    pub(crate) port: Option<u16>,
    pub(crate) socket: Option<Socket>,
    /// What decided about it, if anything did.
    pub(crate) rule: Option<Rule>,
}

/// Whose packet it is, as far as the packet tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Socket {
    /// A process's, by its cookie.
    Process(u64),
    /// None, and the packet came in through an interface.
    Forwarded,
    /// The kernel's own, or none.
    Kernel,
}

impl Socket {
    /// `kind` is enum socket_kind.
    pub(super) fn decode(cookie: u64, forwarded: bool, kind: u64) -> Self {
        match cookie {
            0 if forwarded => Self::Forwarded,
            0 => Self::Kernel,
            _ if kind == u64::from(socket_kind::SOCKET_OF_KERNEL.0) => Self::Kernel,
            cookie => Self::Process(cookie),
        }
    }
}

/// bpf/egress.h: where things are in a key, and in its third word.
const WHAT: usize = 16;
const COOKIE: usize = 24;
const WHOLE: usize = 32;
/// Behind the rows of a CPU, its recent keys.
const RECENT: usize = size_of::<Count>() * egress_row::EGRESS_ROWS.0 as usize;
const PROTO_SHIFT: u32 = 8;
const PORT_SHIFT: u32 = 16;
const RULE_SHIFT: u32 = 32;

/// The cookie is last, and left out where nobody wants it.
pub(super) fn key_size(by: By) -> usize {
    if by.cookie { WHOLE } else { COOKIE }
}

/// So is what kind of socket it is.
pub(super) fn value_size(by: By) -> usize {
    size_of::<Count>() + if by.cookie { size_of::<u64>() } else { 0 }
}

impl Key {
    /// `kind` is enum socket_kind.
    fn decode(bytes: &[u8], kind: u64) -> Option<Self> {
        let addr: [u8; 16] = *bytes.first_chunk()?;
        let what = u64::from_ne_bytes(*bytes.get(WHAT..)?.first_chunk()?);
        let has = |flag: egress_flag| what & u64::from(flag.0) != 0;
        Some(Self {
            addr: if has(egress_flag::EGRESS_V4) {
                Some(canonical(addr))
            } else {
                // What is v4-mapped on the wire is that, and no IPv4.
                has(egress_flag::EGRESS_V6).then(|| IpAddr::from(addr))
            },
            proto: has(egress_flag::EGRESS_HAS_PROTO).then_some((what >> PROTO_SHIFT) as u8),
            port: has(egress_flag::EGRESS_HAS_PORT).then_some((what >> PORT_SHIFT) as u16),
            // Nothing where keys are too short for it.
            socket: bytes.get(COOKIE..).and_then(<[u8]>::first_chunk).map(|cookie| {
                let forwarded = has(egress_flag::EGRESS_FORWARDED);
                Socket::decode(u64::from_ne_bytes(*cookie), forwarded, kind)
            }),
            rule: Rule::decode((what >> RULE_SHIFT) as u8),
        })
    }

    /// Whether there are no packets of it, but calls.
    fn is_of_calls(bytes: &[u8]) -> bool {
        let what = bytes.get(WHAT..).and_then(<[u8]>::first_chunk);
        what.is_some_and(|what| {
            u64::from_ne_bytes(*what) & u64::from(egress_flag::EGRESS_CALL.0) != 0
        })
    }
}

/// The rows that are always there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// Everything that was looked at: the sum of all keys and of the rows below, but for the last four.
    pub(crate) total: Count,
    pub(crate) excluded: Count,
    pub(crate) not_ip: Count,
    pub(crate) malformed: Count,
    /// The same, of what is blocked: it is not in those.
    pub(crate) not_ip_blocked: Count,
    pub(crate) malformed_blocked: Count,
    /// Keys that could not be stored: the table was full, somebody else was at it, there was no memory, or the kernel has a
    /// reason of its own.
    pub(crate) full: Count,
    pub(crate) busy: Count,
    pub(crate) no_memory: Count,
    pub(crate) refused: Count,
    /// What the expression didn't match.
    pub(crate) unmatched: Count,
    /// All packets that are blocked, whatever else they are counted as.
    pub(crate) blocked: Count,
    /// Calls that are refused, which are no packets: their number.
    pub(crate) calls: u64,
    /// What would have been blocked, and went on, since the heartbeat had lapsed; whatever else it is counted as.
    pub(crate) lapsed: Count,
}

impl Rows {
    /// What has a key that there was no room for.
    pub(crate) fn not_stored(&self) -> Count {
        self.full + self.busy + self.no_memory + self.refused
    }

    /// What has no key of its own, by nature: with the keys, and those that could not be stored, it is the total.
    pub(crate) fn without_key(&self) -> Count {
        self.excluded + self.not_ip + self.malformed + self.not_ip_blocked + self.malformed_blocked
    }

    fn each(self, other: Self, what: impl Fn(Count, Count) -> Count) -> Self {
        let calls = |calls| Count { packets: calls, bytes: 0 };
        Self {
            total: what(self.total, other.total),
            excluded: what(self.excluded, other.excluded),
            not_ip: what(self.not_ip, other.not_ip),
            malformed: what(self.malformed, other.malformed),
            not_ip_blocked: what(self.not_ip_blocked, other.not_ip_blocked),
            malformed_blocked: what(self.malformed_blocked, other.malformed_blocked),
            full: what(self.full, other.full),
            busy: what(self.busy, other.busy),
            no_memory: what(self.no_memory, other.no_memory),
            refused: what(self.refused, other.refused),
            unmatched: what(self.unmatched, other.unmatched),
            blocked: what(self.blocked, other.blocked),
            calls: what(calls(self.calls), calls(other.calls)).packets,
            lapsed: what(self.lapsed, other.lapsed),
        }
    }

    /// One CPU's.
    fn decode(bytes: &[u8]) -> Self {
        let row = |row: egress_row| {
            let at = row.0 as usize * size_of::<Count>();
            bytes.get(at..).and_then(Count::from_bytes).unwrap_or_default()
        };
        Self {
            total: row(egress_row::EGRESS_TOTAL),
            excluded: row(egress_row::EGRESS_EXCLUDED),
            not_ip: row(egress_row::EGRESS_NOT_IP),
            malformed: row(egress_row::EGRESS_MALFORMED),
            not_ip_blocked: row(egress_row::EGRESS_NOT_IP_BLOCKED),
            malformed_blocked: row(egress_row::EGRESS_MALFORMED_BLOCKED),
            full: row(egress_row::EGRESS_FULL),
            busy: row(egress_row::EGRESS_BUSY),
            no_memory: row(egress_row::EGRESS_NO_MEMORY),
            refused: row(egress_row::EGRESS_REFUSED),
            unmatched: row(egress_row::EGRESS_UNMATCHED),
            blocked: row(egress_row::EGRESS_BLOCKED),
            calls: row(egress_row::EGRESS_CALLS).packets,
            lapsed: row(egress_row::EGRESS_LAPSED),
        }
    }
}

impl std::ops::Add for Rows {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }
}

impl std::ops::Sub for Rows {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.each(other, |a, b| a - b)
    }
}

/// A CPU's recent keys of `generation`, as the kernel has them, and what was counted of each.
fn recent(rows: &[u8], generation: u32) -> impl Iterator<Item = (&[u8; COOKIE], Count)> {
    let slots = rows.get(RECENT..).unwrap_or_default().chunks_exact(size_of::<egress_recent>());
    slots.filter_map(move |slot| {
        let count = Count::from_bytes(slot.get(COOKIE..)?)?;
        let of = u32::from_ne_bytes(*slot.get(COOKIE + size_of::<Count>()..)?.first_chunk()?);
        (of == generation && count.packets > 0).then_some((slot.first_chunk()?, count))
    })
}

/// What was counted since the last time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) keys: Vec<(Key, Count)>,
    /// Refused ones, as if they were packets.
    pub(crate) calls: Vec<(Key, Count)>,
    pub(crate) rows: Rows,
}

impl Counter {
    /// Takes what was counted: from now on it is in no table of the kernel's any more.
    pub(crate) fn take(&self) -> Result<Taken> {
        let before = {
            let mut variables = self.variables.borrow_mut();
            let before = variables.generation;
            variables.generation = before.wrapping_add(1);
            before
        };
        let which = before & 1;
        // Programs that saw the old number end; nobody writes there then.
        self.grace.wait()?;
        let maps = &self.skel.maps;
        let rows = maps
            .rows
            .lookup_percpu(&which.to_ne_bytes(), MapFlags::ANY)
            .context("cannot read the counts")?
            .context("the counts are not there")?;
        let now = rows.iter().fold(Rows::default(), |sum, rows| sum + Rows::decode(rows));
        let mut recently: HashMap<[u8; COOKIE], Count> = HashMap::new();
        for (key, count) in rows.iter().flat_map(|rows| recent(rows, before)) {
            *recently.entry(*key).or_default() += count;
        }
        let read = &mut self.read.borrow_mut()[which as usize];
        let rows = now - std::mem::replace(read, now);
        let map = if which == 0 { maps.counts_even.as_fd() } else { maps.counts_odd.as_fd() };
        let mut taken = Taken { rows, ..Taken::default() };
        self.take_keys(map, recently, &mut taken).context("cannot read the counts")?;
        Ok(taken)
    }

    /// What went on since the heartbeat had lapsed, from the beginning on: nothing is taken by that.
    pub(crate) fn passed_lapsed(&self) -> Result<Count> {
        let mut sum = Count::default();
        for which in [0_u32, 1] {
            let rows = self.skel.maps.rows.lookup_percpu(&which.to_ne_bytes(), MapFlags::ANY);
            let rows = rows.context("cannot read the counts")?.unwrap_or_default();
            sum += rows.iter().map(|rows| Rows::decode(rows).lapsed).sum();
        }
        Ok(sum)
    }

    /// What is in the table, and what was counted `recently` and is not.
    fn take_keys(
        &self,
        map: BorrowedFd<'_>,
        mut recently: HashMap<[u8; COOKIE], Count>,
        taken: &mut Taken,
    ) -> Result<()> {
        let mut undecodable = false;
        let (key_size, value_size) = (key_size(self.by), value_size(self.by));
        maps::take_all(map, key_size, value_size, |key, value| {
            let mut sum = Count::from_bytes(value).unwrap_or_default();
            if !recently.is_empty() {
                sum += recently.remove(key).unwrap_or_default();
            }
            let kind = value.get(size_of::<Count>()..).and_then(<[u8]>::first_chunk);
            let kind = kind.map(|word| u64::from_ne_bytes(*word));
            match Key::decode(key, kind.unwrap_or(0)) {
                Some(found) if Key::is_of_calls(key) => taken.calls.push((found, sum)),
                Some(found) => taken.keys.push((found, sum)),
                None => undecodable = true,
            }
        })?;
        for (key, count) in recently {
            match Key::decode(&key, 0) {
                Some(found) => taken.keys.push((found, count)),
                None => undecodable = true,
            }
        }
        debug_assert!(!undecodable, "keys are as long as was asked for");
        Ok(())
    }
}
