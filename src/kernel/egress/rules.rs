// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is blocked: rules into the programs, and what they say of a packet or a call.
//!
//! Packets are dropped at tc, whoever sends them. Before that, a process that asks for a connection, or sends a datagram, to an address
//! that is blocked gets an error at once, from programs at the root of cgroup v2 (connect and sendmsg, for IPv4 and IPv6): a
//! dropped packet is silent, and its sender waits. These programs know no interface. So they leave alone what is in another network
//! namespace, and what the routes send through other interfaces: tc's decision is the one that counts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};

use super::types::{egress_hook, egress_rule, egress_set};
use super::{Counter, types};
use crate::filter::classic::insn::Insn;
use crate::kernel::addrset::{AddrSet, NewSet};
use crate::kernel::attach;
use crate::kernel::attach::tc::Direction;
use crate::kernel::cgroup::Root;
use crate::kernel::guard::{self, Needs, Ssh};
use crate::kernel::routes::Routes;
use crate::kernel::sys;
use crate::net::ranges::Ranges;

/// Expressions of what to block.
pub(crate) const MOST_MATCHES: usize =
    (egress_rule::EGRESS_RULES.0 - egress_rule::EGRESS_RULE_MATCH.0) as usize;

#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) blocked: Option<Ranges>,
    /// These alone are allowed.
    pub(crate) allowed: Option<Ranges>,
    pub(crate) matches: Vec<Vec<Insn>>,
    /// What stays open beside that list.
    pub(crate) spares: Spares,
    pub(crate) ssh: Option<Ssh>,
    pub(crate) dry_run: bool,
}

/// What a machine needs to stay one of its network.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spares {
    /// Questions to these resolvers.
    pub(crate) dns: Option<Ranges>,
    /// What DHCP clients send to whoever is there, and to these servers.
    pub(crate) dhcp: Option<Ranges>,
    /// And EAPOL.
    pub(crate) arp: bool,
    /// With MLD and IGMP.
    pub(crate) neighbours: bool,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Rule {
    Allowed,
    /// ARP and EAPOL.
    Link,
    Neighbours,
    Dns,
    Dhcp,
    Ssh,
    /// It would be blocked, but the heartbeat has lapsed.
    Lapsed,
    Blocked,
    /// Nothing allows it.
    Default,
    /// The n-th expression, from 0.
    Match(usize),
}

impl Rule {
    pub(super) fn decode(rule: u8) -> Option<Self> {
        let rule = egress_rule(rule.into());
        Some(match rule {
            egress_rule::EGRESS_RULE_NONE => return None,
            egress_rule::EGRESS_RULE_ALLOWED => Self::Allowed,
            egress_rule::EGRESS_RULE_LINK => Self::Link,
            egress_rule::EGRESS_RULE_NEIGHBOURS => Self::Neighbours,
            egress_rule::EGRESS_RULE_DNS => Self::Dns,
            egress_rule::EGRESS_RULE_DHCP => Self::Dhcp,
            egress_rule::EGRESS_RULE_SSH => Self::Ssh,
            egress_rule::EGRESS_RULE_LAPSED => Self::Lapsed,
            egress_rule::EGRESS_RULE_BLOCKED => Self::Blocked,
            egress_rule::EGRESS_RULE_DEFAULT => Self::Default,
            egress_rule(number) => {
                Self::Match(number.checked_sub(egress_rule::EGRESS_RULE_MATCH.0)? as usize)
            }
        })
    }

    pub(crate) fn blocks(self) -> bool {
        matches!(self, Self::Blocked | Self::Default | Self::Match(_))
    }
}

/// Where it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// A packet, at tc.
    Tc,
    /// A call of a process.
    Connect,
    Sendmsg,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tc => "tc",
            Self::Connect => "connect",
            Self::Sendmsg => "sendmsg",
        })
    }
}

impl Hook {
    pub(super) fn decode(hook: u8) -> Self {
        match egress_hook(hook.into()) {
            egress_hook::EGRESS_HOOK_CONNECT => Self::Connect,
            egress_hook::EGRESS_HOOK_SENDMSG => Self::Sendmsg,
            _ => Self::Tc,
        }
    }
}

/// As the programs have an address: halves in host order, all of IPv4 in the first.
fn halves(addr: IpAddr) -> (u8, [u64; 2]) {
    match addr {
        IpAddr::V4(addr) => (4, [addr.to_bits().into(), 0]),
        IpAddr::V6(addr) => (6, [(addr.to_bits() >> 64) as u64, addr.to_bits() as u64]),
    }
}

/// Before the load.
pub(super) fn set_constants(rodata: &mut types::rodata, rules: &Rules) {
    rodata.blocks = true;
    rodata.has_blocked = rules.blocked.is_some();
    rodata.has_block_matches = !rules.matches.is_empty();
    rodata.allows_only = rules.allowed.is_some();
    rodata.spares_dns = rules.spares.dns.is_some();
    rodata.spares_dhcp = rules.spares.dhcp.is_some();
    rodata.spares_arp = rules.spares.arp;
    rodata.spares_neighbours = rules.spares.neighbours;
    rodata.dry_run = rules.dry_run;
    if let Some(ssh) = rules.ssh {
        (rodata.ssh_family, rodata.ssh_addr) = halves(ssh.client.ip().to_canonical());
        rodata.ssh_port = ssh.server.port();
    }
}

/// Replaced as a whole, while programs look at them.
#[derive(Debug, Default)]
pub(super) struct Sets {
    blocked: AddrSet,
    allowed: AddrSet,
    elsewhere: AddrSet,
    resolvers: AddrSet,
    dhcp: AddrSet,
    on_link: AddrSet,
}

/// Lists in the kernel that no program looks at yet; made in any thread.
#[derive(Debug)]
pub(crate) struct NewLists {
    blocked: Option<NewSet>,
    allowed: Option<NewSet>,
    resolvers: Option<NewSet>,
    dhcp: Option<NewSet>,
}

impl NewLists {
    /// What is not there stays as it is.
    pub(crate) fn new(
        blocked: Option<&Ranges>,
        allowed: Option<&Ranges>,
        spares: &Spares,
    ) -> Result<Self> {
        let set = |ranges: Option<&Ranges>| ranges.map(NewSet::new).transpose();
        Ok(Self {
            blocked: set(blocked)?,
            allowed: set(allowed)?,
            resolvers: set(spares.dns.as_ref())?,
            dhcp: set(spares.dhcp.as_ref())?,
        })
    }
}

/// What refuses calls. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Calls {
    /// Dropped first.
    _links: Vec<libbpf_rs::Link>,
}

impl Counter {
    /// Puts the lists of addresses where the programs look for them. May be done again at any time.
    pub(crate) fn set_lists(&self, lists: NewLists) -> Result<()> {
        let outer = &self.skel.maps.addrsets;
        let mut sets = self.sets.borrow_mut();
        let sets = &mut *sets;
        for (new, set, which) in [
            (lists.blocked, &mut sets.blocked, egress_set::EGRESS_SET_BLOCKED),
            // First what stays open beside it.
            (lists.resolvers, &mut sets.resolvers, egress_set::EGRESS_SET_RESOLVERS),
            (lists.dhcp, &mut sets.dhcp, egress_set::EGRESS_SET_DHCP),
            (lists.allowed, &mut sets.allowed, egress_set::EGRESS_SET_ALLOWED),
        ] {
            if let Some(new) = new {
                set.put(outer, which.0, new)?;
            }
        }
        Ok(())
    }

    /// What the operator would lose by the rules. Before `attach`.
    pub(crate) fn would_lose(&self, needs: Needs) -> Result<Option<String>> {
        const TC_ACT_SHOT: u32 = 2;
        let interface = &self.interfaces[0];
        let program = self.program(interface);
        self.variables.borrow_mut().probing = true;
        let drops = |packet: &[u8]| Ok(guard::verdict(program, packet)? == TC_ACT_SHOT);
        if needs.arp && needs.neighbours && !self.allows_only {
            match guard::would_lose_all(interface.is_ethernet(), drops) {
                Ok(false) => {}
                all => {
                    self.variables.borrow_mut().probing = false;
                    return all.map(|_| Some("everything".into()));
                }
            }
        }
        let lost = guard::would_lose(Direction::Egress, interface.is_ethernet(), needs, drops);
        self.variables.borrow_mut().probing = false;
        lost
    }

    /// Begins to refuse calls of this network namespace. After `attach`: packets are dropped by then, so it is no way around the rules if
    /// this is not to be had.
    pub(crate) fn refuse_calls(&mut self) -> Result<()> {
        let root = Root::open()?;
        let progs = &self.skel.progs;
        let links = [
            &progs.bpftk_connect4,
            &progs.bpftk_connect6,
            &progs.bpftk_sendmsg4,
            &progs.bpftk_sendmsg6,
        ]
        .into_iter()
        .map(|program| attach::cgroup(program, &root))
        .collect::<Result<_>>()?;
        self.learn_namespace()?;
        self.calls = Some(Calls { _links: links });
        self.look_at_routes()?;
        self.variables.borrow_mut().refuses_calls = true;
        Ok(())
    }

    /// The programs themselves say which network namespace a call of ours is in: they know it by a number that user space is told
    /// only since Linux 5.14.
    fn learn_namespace(&self) -> Result<()> {
        let context = "cannot learn which network namespace this is";
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context(context)?;
        let cookie = sys::socket_cookie(socket.as_fd()).context(context)?;
        self.variables.borrow_mut().learned_from = cookie;
        // Sends nothing, and may fail: the program is asked before.
        let _ = socket.connect((Ipv4Addr::LOCALHOST, 9));
        let mut variables = self.variables.borrow_mut();
        variables.learned_from = 0;
        if variables.call_netns == 0 {
            bail!("{context}: the program at the root cgroup did not see this process's call");
        }
        Ok(())
    }

    /// After a change of routes or interfaces: what leaves through others now is none of ours, and neighbours are others.
    pub(crate) fn follow_routes(&self) -> Result<()> {
        match &self.routes {
            Some(routes) if routes.changed()? => self.look_at_routes(),
            _ => Ok(()),
        }
    }

    pub(super) fn look_at_routes(&self) -> Result<()> {
        let devices: Vec<i32> = self.interfaces.iter().map(|interface| interface.index).collect();
        let (elsewhere, on_link) = Routes::look(&devices)?;
        let outer = &self.skel.maps.addrsets;
        let mut sets = self.sets.borrow_mut();
        sets.elsewhere.replace(outer, egress_set::EGRESS_SET_ELSEWHERE.0, &elsewhere)?;
        sets.on_link.replace(outer, egress_set::EGRESS_SET_ON_LINK.0, &on_link)?;
        let mut variables = self.variables.borrow_mut();
        // Of more interfaces than there is room for, the rest is left to tc.
        for (slot, device) in variables.call_devices.iter_mut().zip(devices) {
            *slot = device as u32;
        }
        Ok(())
    }
}
