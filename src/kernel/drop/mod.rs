// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel side of `xdp-drop` and `tc-drop`: rules into the program, the program onto interfaces, counts out of it.

mod attach;
mod counts;
mod guard;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};
use plain::Plain;

pub(crate) use self::counts::{By, Key};
use super::addr::canonical;
use super::addrset::{AddrSet, NewSet};
use super::attach::tc::{Direction, Order, TcAttached, TcBackend};
use super::attach::xdp::XdpLink;
use super::backend::{self, Chosen};
use super::filter::inject::Injection;
use super::interfaces::{interfaces, link_of};
use super::lifetime::{Lapsed, Lifetime};
use super::losses::Losses;
use super::netlink::Interface;
use super::ring::{EventRing, copy_from};
use super::skel::drop::{DropSkel, DropSkelBuilder, types};
use super::{log, probes, sys};
use crate::filter::classic::insn::Insn;
use crate::filter::ebpf::translate::Hook as FilterHook;
use crate::net::ranges::Ranges;

/// bpf/drop.h
pub(crate) const MOST_PLACES: usize = 32;
const ROWS: usize = types::drop_row::DROP_ROWS.0 as usize;
pub(crate) const MOST_EXPRESSIONS: usize =
    (types::drop_row::DROP_ROWS.0 - types::drop_row::DROP_EXPRESSION.0) as usize;

/// What is dropped. A packet that any of the rules matches is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// Source addresses at ingress, destination addresses at egress.
    pub(crate) blocklist: Option<Ranges>,
    pub(crate) combined: Option<Combined>,
    /// tcpdump's expressions, compiled for what the interfaces' packets begin with. Each is a rule.
    pub(crate) matches: Vec<Vec<Insn>>,
    /// What these match is never dropped.
    pub(crate) excepts: Vec<Vec<Insn>>,
}

/// Conditions that must all hold. `None` holds always.
#[derive(Clone, Debug, Default)]
pub(crate) struct Combined {
    /// One bit a protocol.
    pub(crate) protos: Option<[u64; 4]>,
    pub(crate) src: Option<Ranges>,
    pub(crate) dst: Option<Ranges>,
    /// One bit a port.
    pub(crate) sport: Option<Vec<u64>>,
    pub(crate) dport: Option<Vec<u64>>,
    /// Leaves IPv6's neighbour discovery out.
    pub(crate) spare_neighbours: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) rules: Rules,
    pub(crate) dry_run: bool,
    /// Packets a second that each rule lets through.
    pub(crate) rate: Option<u64>,
    /// Every how many dropped packets one is told of.
    pub(crate) sample: Option<u32>,
    pub(crate) by: By,
    pub(crate) duration: Option<Duration>,
    /// A filter is to go on dropping when this process is gone, or stopped.
    pub(crate) fail_closed: bool,
}

/// Where the programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Xdp,
    Tc(TcBackend),
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xdp => f.write_str("xdp"),
            Self::Tc(backend) => backend.fmt(f),
        }
    }
}

/// Whether programs stop to act without a heartbeat: those that don't go with their process, unless they are to stay.
fn beats(how: How, fail_closed: bool) -> bool {
    how == How::Tc(TcBackend::Clsact) && !fail_closed
}

/// Packets on their way through an interface in one direction.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) interface: Interface,
    pub(crate) direction: Direction,
}

/// For `doctor`: in a namespace of its own, where the loopback is nobody else's.
pub(crate) fn arm_xdp() -> Result<Chosen<How, Dropper>> {
    backend::choose(&[How::Xdp], None, arm_on_loopback)
}

pub(crate) fn arm_tc() -> Result<Chosen<TcBackend, Dropper>> {
    backend::choose(&TcBackend::ORDER, None, |backend| arm_on_loopback(How::Tc(backend)))
}

fn arm_on_loopback(how: How) -> Result<Dropper> {
    let interface = interfaces(&["lo".into()])?.swap_remove(0);
    let config = Config {
        rules: Rules { combined: Some(Combined::default()), ..Rules::default() },
        dry_run: true,
        ..Config::default()
    };
    let places = vec![Place { interface, direction: Direction::Ingress }];
    let mut dropper = Dropper::load(&config, how, places)?;
    dropper.attach(None, Order::Last)?;
    Ok(dropper)
}

/// The loaded programs.
pub(crate) struct Dropper {
    /// Dropped before the programs: first nothing is dropped any more, then nothing is attached any more.
    lifetime: Option<Lifetime>,
    xdp: Vec<Option<XdpLink>>,
    tc: Option<TcAttached>,
    skel: DropSkel<'static>,
    blocklist: RefCell<AddrSet>,
    _combined: [AddrSet; 2],
    how: How,
    places: Vec<Place>,
    duration: Option<Duration>,
    fail_closed: bool,
    /// What `lifetime` said at its end.
    lapsed: Lapsed,
    /// What users have to be told.
    remarks: Vec<String>,
}

impl fmt::Debug for Dropper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dropper").field("how", &self.how).finish_non_exhaustive()
    }
}

/// The expressions as functions for the program's stubs. Where there are none, nothing calls the stubs.
fn injection(rules: &Rules, how: How, places: &[Place], frags: bool) -> Result<Injection> {
    if rules.matches.is_empty() && rules.excepts.is_empty() {
        return Injection::new(Vec::new());
    }
    let link = link_of(places.iter().map(|place| &place.interface))?;
    let mut hooks: Vec<FilterHook> = places
        .iter()
        .map(|place| match how {
            How::Xdp => FilterHook::Xdp,
            How::Tc(_) => place.direction.into(),
        })
        .collect();
    hooks.dedup();
    let stubs = [&rules.excepts[..], &rules.matches[..]];
    Injection::of_expressions(&stubs, link, &hooks, frags)
}

/// bpf/drop.h
const FEW: usize = 4;

/// Ranges that are compared one by one, and how many; none when there are too many.
fn few(ranges: impl Iterator<Item = (u32, u32)>) -> ([types::drop_range; FEW], u32) {
    let mut slots = [types::drop_range::default(); FEW];
    let mut count = 0;
    for (first, last) in ranges {
        let Some(slot) = slots.get_mut(count) else {
            return Default::default();
        };
        *slot = types::drop_range { first, span: last - first };
        count += 1;
    }
    (slots, count as u32)
}

/// The one bit that is set.
fn only_bit(words: &[u64; 4]) -> Option<u8> {
    let bits = words.iter().map(|word| word.count_ones()).sum::<u32>();
    let word = words.iter().position(|word| *word != 0)?;
    (bits == 1).then(|| (word as u32 * 64 + words[word].trailing_zeros()) as u8)
}

/// The ranges of bits that are set.
fn runs(words: Option<&[u64]>) -> impl Iterator<Item = (u32, u32)> {
    let words = words.unwrap_or_default();
    let bits = words.len() as u32 * 64;
    let is_set = move |bit: u32| words[bit as usize / 64] >> (bit % 64) & 1 == 1;
    let mut next = 0;
    std::iter::from_fn(move || {
        let first = (next..bits).find(|&bit| is_set(bit))?;
        let end = (first..bits).find(|&bit| !is_set(bit)).unwrap_or(bits);
        next = end;
        Some((first, end - 1))
    })
}

impl Dropper {
    pub(crate) fn load(config: &Config, how: How, places: Vec<Place>) -> Result<Self> {
        let frags = how == How::Xdp && sys::net::xdp_knows_frags();
        // To be there before the object is opened, and until it is loaded.
        let injection = injection(&config.rules, how, &places, frags)?;
        log::clear();
        // The skeleton borrows this cell for as long as it lives; it is a pointer's size.
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = DropSkelBuilder::default()
            .open(cell)
            .map_err(|error| anyhow!("cannot open the programs: {}", log::explain(error)))?;

        let rodata = open.maps.rodata_data.as_deref_mut().context("the object has no constants")?;
        let none = Combined::default();
        let combined = config.rules.combined.as_ref();
        rodata.has_blocklist = config.rules.blocklist.is_some();
        rodata.has_combined = combined.is_some();
        rodata.has_matches = !config.rules.matches.is_empty();
        rodata.has_excepts = !config.rules.excepts.is_empty();
        let combined = combined.unwrap_or(&none);
        rodata.match_proto = combined.protos.is_some();
        rodata.match_src = combined.src.is_some();
        rodata.match_dst = combined.dst.is_some();
        rodata.match_sport = combined.sport.is_some();
        rodata.match_dport = combined.dport.is_some();
        rodata.spare_neighbours = combined.spare_neighbours;
        rodata.protos = combined.protos.unwrap_or_default();
        rodata.only_proto = combined.protos.as_ref().and_then(only_bit).unwrap_or(0);
        (rodata.src_ranges, rodata.few_src) =
            few(combined.src.iter().flat_map(Ranges::v4).copied());
        (rodata.dst_ranges, rodata.few_dst) =
            few(combined.dst.iter().flat_map(Ranges::v4).copied());
        (rodata.sport_ranges, rodata.few_sport) = few(runs(combined.sport.as_deref()));
        (rodata.dport_ranges, rodata.few_dport) = few(runs(combined.dport.as_deref()));
        rodata.by_address = config.rules.blocklist.is_some()
            || combined.src.is_some()
            || combined.dst.is_some()
            || config.by == By::Src
            || config.sample.is_some();
        rodata.dry_run = config.dry_run;
        if let Some(rate) = config.rate {
            rodata.rate_ns = (1_000_000_000 / rate).max(1);
            // A tenth of a second's worth may come at once.
            rodata.rate_ahead_ns = 100_000_000;
        }
        rodata.sample_every = config.sample.unwrap_or(0);
        rodata.by_proto = config.by == By::Proto;
        rodata.by_src = config.by == By::Src;
        rodata.shared_cpus = probes::is_realtime();
        rodata.places_used = places.len() as u32;
        rodata.some_l3 = places.iter().any(|place| !place.interface.is_ethernet());
        rodata.knows_frags = frags;
        rodata.lifetime_ends = config.duration.is_some() || beats(how, config.fail_closed);

        let bss = open.maps.bss_data.as_deref_mut().context("the object has no variables")?;
        bss.probing = true;
        for (slot, place) in bss.places.iter_mut().zip(&places) {
            *slot = slot_of(place);
        }

        let maps = &mut open.maps;
        maps.counts.set_max_entries((places.len() * ROWS) as u32).context("cannot size a table")?;
        // What no program will look at need not be made.
        for (map, needed) in [
            (&mut maps.ports, combined.sport.is_some() || combined.dport.is_some()),
            (&mut maps.proto_counts, config.by == By::Proto),
            (&mut maps.src_counts, config.by == By::Src),
            (&mut maps.other_sources, config.by == By::Src),
            (&mut maps.buckets, config.rate.is_some()),
            (&mut maps.sampled, config.sample.is_some()),
        ] {
            map.set_autocreate(needed).context("cannot leave out a map")?;
        }
        let progs = &mut open.progs;
        progs.bpftk_xdp_drop.set_autoload(how == How::Xdp);
        let has = |direction| places.iter().any(|place| place.direction == direction);
        progs.bpftk_tc_in.set_autoload(how != How::Xdp && has(Direction::Ingress));
        progs.bpftk_tc_out.set_autoload(how != How::Xdp && has(Direction::Egress));
        if frags {
            progs.bpftk_xdp_drop.set_flags(sys::net::XDP_HAS_FRAGS);
        }

        log::clear();
        let skel = open
            .load()
            .map_err(|error| injection.explain(error).context("the kernel refuses the programs"))?;
        drop(injection);
        for (first, words) in [(0, &combined.sport), (1024, &combined.dport)] {
            for (i, word) in words.iter().flatten().enumerate().filter(|(_, word)| **word != 0) {
                let key = first + i as u32;
                skel.maps
                    .ports
                    .update(&key.to_ne_bytes(), &word.to_ne_bytes(), MapFlags::ANY)
                    .context("cannot set the ports of a rule")?;
            }
        }
        let fill = |set: types::drop_set, ranges: &Option<Ranges>| -> Result<AddrSet> {
            let mut loaded = AddrSet::default();
            if let Some(ranges) = ranges {
                loaded.replace(&skel.maps.addrsets, set.0, ranges)?;
            }
            Ok(loaded)
        };
        Ok(Self {
            blocklist: fill(types::drop_set::DROP_SET_BLOCKLIST, &config.rules.blocklist)?.into(),
            _combined: [
                fill(types::drop_set::DROP_SET_SRC, &combined.src)?,
                fill(types::drop_set::DROP_SET_DST, &combined.dst)?,
            ],
            lifetime: None,
            xdp: Vec::new(),
            tc: None,
            skel,
            how,
            places,
            duration: config.duration,
            fail_closed: config.fail_closed,
            lapsed: Lapsed::default(),
            remarks: Vec::new(),
        })
    }

    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// How each interface is attached, with what is to be known of it.
    pub(crate) fn modes(&self) -> Vec<(String, Option<String>)> {
        match self.how {
            How::Xdp => self
                .xdp
                .iter()
                .flatten()
                .map(|link| (format!("{} XDP", link.mode), link.because.clone()))
                .collect(),
            How::Tc(backend) => self
                .places
                .iter()
                .map(|place| (format!("tc {} by {backend}", place.direction), None))
                .collect(),
        }
    }

    /// Puts another block list in the place of the one that is used.
    pub(crate) fn replace_blocklist(&self, new: NewSet) -> Result<()> {
        let which = types::drop_set::DROP_SET_BLOCKLIST.0;
        self.blocklist.borrow_mut().put(&self.skel.maps.addrsets, which, new)
    }

    /// What the block list takes in the kernel.
    pub(crate) fn blocklist_bytes(&self) -> usize {
        self.blocklist.borrow().bytes()
    }

    pub(crate) fn samples(&self) -> Result<EventRing<'_, Sample>> {
        EventRing::new(&self.skel.maps.events, |bytes| {
            copy_from::<types::drop_sample>(bytes).map(Sample::from)
        })
    }

    pub(crate) fn losses(&self) -> Result<Losses> {
        Losses::read(&self.skel.maps.losses)
    }
}

fn slot_of(place: &Place) -> types::drop_place {
    types::drop_place {
        ifindex: place.interface.index as u32,
        l3: (!place.interface.is_ethernet()).into(),
        egress: (place.direction == Direction::Egress).into(),
        ..Default::default()
    }
}

// SAFETY: integers and arrays of integers without hidden padding, as bpf/drop.h asserts.
unsafe impl Plain for types::drop_sample {}

const _: () = assert!(size_of::<types::drop_sample>() == 64);
const _: () = assert!(size_of::<types::drop_place>() == 8);

/// A packet that was dropped.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) time_ns: u64,
    pub(crate) place: usize,
    pub(crate) row: Row,
    pub(crate) addresses: Option<(IpAddr, IpAddr)>,
    pub(crate) ports: Option<(u16, u16)>,
    pub(crate) proto: Option<u8>,
    pub(crate) bytes: u64,
}

impl From<types::drop_sample> for Sample {
    fn from(sample: types::drop_sample) -> Self {
        let addresses = match sample.family {
            0 => None,
            4 => Some((canonical(sample.saddr), canonical(sample.daddr))),
            // What is v4-mapped on the wire is that, and no IPv4.
            _ => Some((IpAddr::from(sample.saddr), IpAddr::from(sample.daddr))),
        };
        Self {
            time_ns: sample.time_ns,
            place: sample.place as usize,
            row: Row(sample.row),
            addresses,
            ports: (sample.has_ports != 0).then_some((sample.sport, sample.dport)),
            proto: (sample.has_proto != 0).then_some(sample.proto),
            bytes: sample.bytes,
        }
    }
}

/// A row of the table: enum drop_row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row(u32);

impl Row {
    pub(crate) const PASSED: Self = Self(types::drop_row::DROP_PASSED.0);
    pub(crate) const EXCEPTED: Self = Self(types::drop_row::DROP_EXCEPTED.0);
    pub(crate) const MALFORMED: Self = Self(types::drop_row::DROP_MALFORMED.0);
    /// What a rule matched, and passed all the same, since the heartbeat had lapsed.
    pub(crate) const LAPSED: Self = Self(types::drop_row::DROP_LAPSED.0);
    pub(crate) const BLOCKLIST: Self = Self(types::drop_row::DROP_BLOCKLIST.0);
    pub(crate) const COMBINED: Self = Self(types::drop_row::DROP_COMBINED.0);

    /// The n-th expression.
    pub(crate) fn expression(n: usize) -> Self {
        Self(types::drop_row::DROP_EXPRESSION.0 + n as u32)
    }

    /// Whether it is a rule, whose packets are dropped.
    pub(crate) fn drops(self) -> bool {
        self.0 >= Self::BLOCKLIST.0
    }
}
