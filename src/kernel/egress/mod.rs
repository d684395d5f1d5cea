// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel side of `tc-egress`: what is looked at into the program, the program onto interfaces, counts out of it.
//!
//! Counts are kept in two generations. Programs write to one of them; at the end of an interval, user space has them write to the
//! other, waits until none can still be writing to the first, reads all of that and empties it. So no count is lost between a read and a
//! delete, however many packets there are, and a key takes room only while packets of it come. Counters that only grow, as other
//! commands have them, can't give room back without that loss: a program may be adding to an entry that was just read. That
//! costs a grace period of RCU an interval, in which nothing but bpftk waits.
//!
//! What there is no room for, or what the kernel refuses to store, is counted by cause in the same generation. So in every
//! interval the rows add up to the packets that were looked at.

mod attach;
mod counts;
mod rules;
#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::ProgramMut;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use plain::Plain;

pub(crate) use self::counts::{Key, Rows, Socket};
pub(crate) use self::rules::NewLists;
use self::rules::{Calls, Sets};
pub(crate) use self::rules::{Hook as RuleHook, MOST_MATCHES, Rule, Rules, Spares};
use super::addr::canonical;
use super::addrset::FixedSet;
use super::attach::tc::{Direction, Hook, Order, TcAttached, TcBackend};
use super::backend::{self, Chosen};
use super::btf::BtfSource;
use super::filter::inject::Injection;
use super::grace::Grace;
use super::interfaces::{interfaces, link_of};
use super::lifetime::{Lapsed, Lifetime};
use super::losses::Losses;
use super::netlink::Interface;
use super::ring::{EventRing, copy_from};
use super::routes::Routes;
use super::skel::egress::{EgressSkel, EgressSkelBuilder, RELOCATED_TYPES, types};
use super::{log, probes};
use crate::filter::classic::insn::Insn;
use crate::net::ranges::Ranges;

/// What of a packet makes its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct By {
    /// How many bits of an address count, of either family.
    pub(crate) addr: Option<(u8, u8)>,
    pub(crate) proto: bool,
    pub(crate) port: bool,
    /// The socket, if it is one of this machine's.
    pub(crate) cookie: bool,
}

/// What is told of one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Events {
    /// The first packet of each flow.
    Flows,
    Packets,
}

#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Egress: where packets go. Ingress: where they come from.
    pub(crate) direction: Direction,
    pub(crate) by: By,
    pub(crate) excluded: Option<Ranges>,
    /// Only what this matches is looked at.
    pub(crate) expression: Option<Vec<Insn>>,
    /// Keys that there is room for in an interval.
    pub(crate) max_entries: u32,
    /// Instead of counts, or beside them.
    pub(crate) events: Option<Events>,
    pub(crate) counts: bool,
    /// What to block, at egress.
    pub(crate) rules: Option<Rules>,
    /// Needed by cookie, which may be of the kernel's own sockets.
    pub(crate) btf: Option<BtfSource>,
    /// A filter is to go on blocking when this process is gone, or stopped.
    pub(crate) fail_closed: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            direction: Direction::Egress,
            by: By { addr: Some((32, 128)), ..By::default() },
            excluded: None,
            expression: None,
            max_entries: 65536,
            events: None,
            counts: true,
            rules: None,
            btf: None,
            fail_closed: false,
        }
    }
}

/// For `doctor`: in a namespace of its own, where the loopback is nobody else's.
pub(crate) fn arm() -> Result<Chosen<TcBackend, Counter>> {
    // Its tables are not to be filled.
    let config = Config { max_entries: 16, ..Config::default() };
    backend::choose(&TcBackend::ORDER, None, |backend| {
        let mut counter = Counter::load(&config, backend, interfaces(&["lo".into()])?)?;
        counter.attach(Order::Last)?;
        Ok(counter)
    })
}

/// The loaded programs.
pub(crate) struct Counter {
    /// Dropped before the programs: first nothing is counted any more, then nothing is attached any more.
    lifetime: Option<Lifetime>,
    calls: Option<Calls>,
    /// Where there are rules.
    routes: Option<Routes>,
    attached: Option<TcAttached>,
    sets: RefCell<Sets>,
    /// Borrows from the skeleton.
    variables: RefCell<&'static mut types::bss>,
    /// What was read of the fixed rows of each generation: they only grow.
    read: RefCell<[Rows; 2]>,
    skel: EgressSkel<'static>,
    grace: Grace,
    by: By,
    /// There is a list of what alone is allowed.
    allows_only: bool,
    backend: TcBackend,
    direction: Direction,
    interfaces: Vec<Interface>,
    fail_closed: bool,
    /// What `lifetime` said at its end.
    lapsed: Lapsed,
    /// What users have to be told.
    remarks: Vec<String>,
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// The expressions as functions for the programs' stubs. Where there are none, nothing calls the stubs.
fn injection(config: &Config, interfaces: &[Interface]) -> Result<Injection> {
    let looked_at = config.expression.as_slice();
    let blocked = config.rules.as_ref().map_or(&[][..], |rules| &rules.matches);
    if looked_at.is_empty() && blocked.is_empty() {
        return Injection::new(Vec::new());
    }
    let link = link_of(interfaces.iter())?;
    Injection::of_expressions(&[looked_at, blocked], link, &[config.direction.into()], false)
}

/// As bytes in a packet, in a word of memory.
fn mask_v6(bits: u8) -> [u64; 2] {
    let bytes = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0).to_be_bytes();
    let (upper, lower) = bytes.split_at(8);
    [upper, lower].map(|half| u64::from_ne_bytes(half.try_into().expect("eight of sixteen bytes")))
}

impl Counter {
    pub(crate) fn load(
        config: &Config,
        backend: TcBackend,
        interfaces: Vec<Interface>,
    ) -> Result<Self> {
        // To be there before the object is opened, and until it is loaded.
        let injection = injection(config, &interfaces)?;
        log::clear();
        // The skeleton borrows this cell for as long as it lives; it is a pointer's size.
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut builder = EgressSkelBuilder::default();
        let _types = config
            .btf
            .as_ref()
            .filter(|_| config.by.cookie)
            .map(|btf| btf.apply(&mut builder.obj_builder, RELOCATED_TYPES, &[]))
            .transpose()?;
        let mut open = builder
            .open(cell)
            .map_err(|error| anyhow!("cannot open the programs: {}", log::explain(error)))?;

        let rodata = open.maps.rodata_data.as_deref_mut().context("the object has no constants")?;
        let by = config.by;
        rodata.by_addr = by.addr.is_some();
        rodata.by_proto = by.proto;
        rodata.by_port = by.port;
        rodata.by_socket = by.cookie;
        rodata.by_both = config.events.is_some() || config.rules.is_some();
        rodata.by_carried = by.proto || by.port || rodata.by_both;
        let (v4, v6) = by.addr.unwrap_or((32, 128));
        rodata.mask_v4 = u32::MAX.checked_shl(32 - u32::from(v4)).unwrap_or(0);
        rodata.mask_v6 = mask_v6(v6);
        rodata.has_excluded = config.excluded.is_some();
        rodata.has_expression = config.expression.is_some();
        rodata.wants_counts = config.counts;
        rodata.wants_events = config.events.is_some();
        rodata.all_packets = config.events == Some(Events::Packets);
        rodata.shared_cpus = probes::is_realtime();
        rodata.lifetime_ends = backend == TcBackend::Clsact && !config.fail_closed;
        if let Some(rules) = &config.rules {
            rules::set_constants(rodata, rules);
        }

        let key_size = counts::key_size(by);
        let maps = &mut open.maps;
        for map in [&mut maps.counts_even, &mut maps.counts_odd] {
            map.set_key_size(key_size as u32).context("cannot size a table")?;
            map.set_value_size(counts::value_size(by) as u32).context("cannot size a table")?;
            map.set_max_entries(if config.counts { config.max_entries } else { 1 })
                .context("cannot size a table")?;
        }
        let excluded = config.excluded.as_ref().map(FixedSet::new);
        if let Some(excluded) = &excluded {
            maps.excluded.set_max_entries(excluded.lines()).context("cannot size a table")?;
        }
        let flows = config.events == Some(Events::Flows)
            || config.events.is_some() && config.rules.is_some();
        if !flows {
            maps.flows.set_max_entries(1).context("cannot size a table")?;
        }
        let (out, plain) = (config.direction == Direction::Egress, |interface: &Interface| {
            !interface.is_ethernet()
        });
        let (some_plain, some_ethernet) =
            (interfaces.iter().any(plain), !interfaces.iter().all(plain));
        let progs = &mut open.progs;
        progs.bpftk_out.set_autoload(out && !by.cookie && some_ethernet);
        progs.bpftk_out_l3.set_autoload(out && !by.cookie && some_plain);
        progs.bpftk_own.set_autoload(out && by.cookie && some_ethernet);
        progs.bpftk_own_l3.set_autoload(out && by.cookie && some_plain);
        progs.bpftk_in.set_autoload(!out && some_ethernet);
        progs.bpftk_in_l3.set_autoload(!out && some_plain);
        for program in [
            &mut progs.bpftk_connect4,
            &mut progs.bpftk_connect6,
            &mut progs.bpftk_sendmsg4,
            &mut progs.bpftk_sendmsg6,
        ] {
            program.set_autoload(config.rules.is_some());
        }

        log::clear();
        let mut skel = open.load().map_err(|error| injection.explain(error))?;
        drop(injection);
        if let Some(excluded) = &excluded {
            excluded.write(skel.maps.excluded.as_fd())?;
        }
        let variables = skel.maps.bss_data.take().context("the object has no variables")?;
        let counter = Self {
            lifetime: None,
            calls: None,
            routes: config.rules.as_ref().map(|_| Routes::watch()).transpose()?,
            attached: None,
            sets: RefCell::default(),
            variables: RefCell::new(variables),
            read: RefCell::default(),
            skel,
            grace: Grace::new()?,
            by,
            allows_only: config.rules.as_ref().is_some_and(|rules| rules.allowed.is_some()),
            backend,
            direction: config.direction,
            interfaces,
            fail_closed: config.fail_closed,
            lapsed: Lapsed::default(),
            remarks: Vec::new(),
        };
        if let Some(rules) = &config.rules {
            counter.set_lists(NewLists::new(
                rules.blocked.as_ref(),
                rules.allowed.as_ref(),
                &rules.spares,
            )?)?;
            counter.look_at_routes()?;
        }
        Ok(counter)
    }

    fn hook<'a>(&'a self, interface: &'a Interface) -> Hook<'a> {
        let program = self.program(interface);
        Hook { program: program.as_fd(), interface, direction: self.direction }
    }

    fn program(&self, interface: &Interface) -> &ProgramMut<'static> {
        let progs = &self.skel.progs;
        match (self.direction, self.by.cookie, interface.is_ethernet()) {
            (Direction::Egress, false, true) => &progs.bpftk_out,
            (Direction::Egress, false, false) => &progs.bpftk_out_l3,
            (Direction::Egress, true, true) => &progs.bpftk_own,
            (Direction::Egress, true, false) => &progs.bpftk_own_l3,
            (Direction::Ingress, _, true) => &progs.bpftk_in,
            (Direction::Ingress, _, false) => &progs.bpftk_in_l3,
        }
    }

    pub(crate) fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    pub(crate) fn events(&self) -> Result<EventRing<'_, Event>> {
        let whose = self.by.cookie;
        EventRing::new(&self.skel.maps.events, move |bytes| {
            copy_from(bytes).map(|event| Event::decode(&event, whose))
        })
    }

    pub(crate) fn losses(&self) -> Result<Losses> {
        Losses::read(&self.skel.maps.losses)
    }
}

// SAFETY: integers and arrays of integers without hidden padding, as bpf/egress.h asserts.
unsafe impl Plain for types::egress_event {}

const _: () = assert!(size_of::<types::egress_event>() == 80);
const _: () = assert!(size_of::<types::egress_key>() == 32);
const _: () = assert!(size_of::<types::egress_key_count>() == 24);
const _: () = assert!(size_of::<types::egress_recent>() == 48);
const _: () = assert!(size_of::<types::egress_rows>() == 16 * 14 + 48 * RECENT_KEYS);

/// bpf/egress.h, EGRESS_RECENT
const RECENT_KEYS: usize = 512;

/// A packet that is told of, or a call that is refused.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) time_ns: u64,
    pub(crate) hook: RuleHook,
    pub(crate) rule: Option<Rule>,
    /// Of a call nothing: no packet has left.
    pub(crate) interface: Option<i32>,
    /// Whose it is, where that was asked for.
    pub(crate) socket: Option<Socket>,
    /// Who calls.
    pub(crate) tgid: Option<u32>,
    pub(crate) saddr: Option<IpAddr>,
    pub(crate) daddr: IpAddr,
    pub(crate) sport: Option<u16>,
    pub(crate) dport: Option<u16>,
    pub(crate) proto: Option<u8>,
    pub(crate) packets: u32,
    pub(crate) bytes: u64,
}

impl Event {
    /// `whose`: cookies were asked for.
    fn decode(event: &types::egress_event, whose: bool) -> Self {
        let has = |flag: types::egress_flag| u32::from(event.flags) & flag.0 != 0;
        // What is v4-mapped on the wire is that, and no IPv4.
        let address = if event.family == 4 { canonical } else { IpAddr::from };
        let (call, ports) =
            (has(types::egress_flag::EGRESS_CALL), has(types::egress_flag::EGRESS_HAS_PORT));
        let forwarded = has(types::egress_flag::EGRESS_FORWARDED);
        Self {
            time_ns: event.time_ns,
            hook: RuleHook::decode(event.hook),
            rule: Rule::decode(event.rule),
            interface: (!call).then_some(event.ifindex as i32),
            socket: whose.then(|| Socket::decode(event.cookie, forwarded, event.kind.into())),
            tgid: call.then_some(event.tgid),
            saddr: (!call).then(|| address(event.saddr)),
            daddr: address(event.daddr),
            sport: (ports && !call).then_some(event.sport),
            dport: ports.then_some(event.dport),
            proto: has(types::egress_flag::EGRESS_HAS_PROTO).then_some(event.proto),
            packets: event.packets,
            bytes: event.bytes,
        }
    }
}
