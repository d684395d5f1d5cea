// SPDX-License-Identifier: MIT OR Apache-2.0

//! As much of rtnetlink as it takes to see what is attached to interfaces, and to put a filter there and take it away. Answers are
//! read attribute by attribute: what other people configured must not make ours unreadable.

mod socket;

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use ipnet::IpNet;

pub(crate) use self::socket::Netlink;
use self::socket::Request;
use super::count::Count;

/// What is there already is an error.
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

/// An interface, and the XDP programs on it by mode flag (XDP_FLAGS_*_MODE).
#[derive(Clone, Debug, Default)]
pub(crate) struct Interface {
    pub(crate) index: i32,
    pub(crate) name: String,
    /// Others that it has beside that.
    altnames: Vec<String>,
    /// What made it: `veth`, `bridge` and the like; nothing of a network card.
    pub(super) kind: Option<String>,
    /// ARPHRD_*: what its packets begin with.
    hardware: u16,
    pub(crate) mtu: u32,
    /// Set up, and with a carrier.
    pub(crate) running: bool,
    pub(super) xdp: Vec<(u32, u32)>,
    /// What it says that it sent.
    pub(super) sent: Count,
}

impl Interface {
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name == name || self.altnames.iter().any(|other| other == name)
    }

    /// Whether packets begin with an Ethernet header. Loopback's do.
    pub(crate) fn is_ethernet(&self) -> bool {
        const ARPHRD_ETHER: u16 = 1;
        const ARPHRD_LOOPBACK: u16 = 772;
        matches!(self.hardware, ARPHRD_ETHER | ARPHRD_LOOPBACK)
    }
}

/// struct tcmsg, of a filter: who it is. Two filters never have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FilterKey {
    pub(super) ifindex: i32,
    pub(super) handle: u32,
    pub(super) parent: u32,
    /// Priority, and protocol in network order.
    info: u32,
    chain: u32,
}

impl FilterKey {
    /// For packets of all protocols.
    pub(super) fn new(ifindex: i32, parent: u32, priority: u16, handle: u32) -> Self {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let info = u32::from(priority) << 16 | u32::from(protocol);
        Self { ifindex, handle, parent, info, chain: 0 }
    }

    pub(super) fn priority(self) -> u32 {
        self.info >> 16
    }
}

/// A route, as far as it says where packets leave.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) table: u32,
    pub(super) net: IpNet,
    /// The lowest of several to the same network is used.
    pub(super) metric: u32,
    /// The interfaces that packets may leave through; none of a route that leads nowhere outside.
    pub(super) devices: Vec<i32>,
    /// No router is between: whom it leads to is on the link.
    pub(super) direct: bool,
}

/// A cls_bpf filter.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    pub(super) key: FilterKey,
    pub(super) program: u32,
    /// As whoever put it there calls it.
    pub(super) name: String,
}

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;

/// Of the qdiscs clsact and ingress.
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// clsact's hooks, as parents of filters; the ingress qdisc answers to the first.
pub(super) const INGRESS: u32 = 0xffff_fff2;
pub(super) const EGRESS: u32 = 0xffff_fff3;

impl Netlink {
    pub(crate) fn interfaces(&self) -> io::Result<Vec<Interface>> {
        const IFLA_IFNAME: u16 = 3;
        const IFLA_MTU: u16 = 4;
        const IFLA_LINKINFO: u16 = 18;
        const IFLA_INFO_KIND: u16 = 1;
        const IFLA_STATS64: u16 = 23;
        const IFLA_XDP: u16 = 43;
        const IFLA_PROP_LIST: u16 = 52;
        const IFLA_ALT_IFNAME: u16 = 53;
        /// IFF_UP, IFF_RUNNING.
        const RUNNING: u32 = 0x41;
        /// IFLA_XDP_DRV_PROG_ID and so on, with the flag that names the mode.
        const BY_MODE: [(u16, u32); 3] = [(5, 4), (6, 2), (7, 8)];
        // struct ifinfomsg, all zero: every interface.
        let messages = self.dump(RTM_GETLINK, &[0; 16])?;
        Ok(messages
            .iter()
            .filter_map(|message| {
                let index = number(message.get(4..8)?)? as i32;
                let flags = number(message.get(8..12)?)?;
                let mut interface = Interface {
                    index,
                    hardware: u16::from_ne_bytes([*message.get(2)?, *message.get(3)?]),
                    running: flags & RUNNING == RUNNING,
                    ..Interface::default()
                };
                for (kind, value) in Attributes(message.get(16..)?) {
                    match kind {
                        IFLA_IFNAME => interface.name = crate::output::bytes_to_string(value),
                        // struct rtnl_link_stats64: packets in and out, bytes in and out.
                        IFLA_STATS64 => {
                            let word = |at: usize| {
                                let bytes = value.get(at..at + 8)?.try_into().ok()?;
                                Some(u64::from_ne_bytes(bytes))
                            };
                            interface.sent = Count { packets: word(8)?, bytes: word(24)? };
                        }
                        IFLA_PROP_LIST => {
                            let names = Attributes(value)
                                .filter(|(kind, _)| *kind == IFLA_ALT_IFNAME)
                                .map(|(_, value)| crate::output::bytes_to_string(value));
                            interface.altnames.extend(names);
                        }
                        IFLA_MTU => interface.mtu = number(value).unwrap_or(0),
                        IFLA_LINKINFO => {
                            interface.kind = Attributes(value)
                                .find(|(kind, _)| *kind == IFLA_INFO_KIND)
                                .map(|(_, value)| crate::output::bytes_to_string(value));
                        }
                        IFLA_XDP => {
                            for (kind, value) in Attributes(value) {
                                if let Some((_, flag)) = BY_MODE.iter().find(|(k, _)| *k == kind)
                                    && let Some(id) = number(value).filter(|&id| id != 0)
                                {
                                    interface.xdp.push((*flag, id));
                                }
                            }
                        }
                        _ => {}
                    }
                }
                Some(interface)
            })
            .collect())
    }

    /// Every address of this network namespace.
    pub(crate) fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        // struct ifaddrmsg, all zero: every family and interface.
        let messages = self.dump(RTM_GETADDR, &[0; 8])?;
        Ok(messages
            .iter()
            .filter_map(|message| {
                let values: Vec<_> = Attributes(message.get(8..)?).collect();
                let by = |wanted: u16| values.iter().find(|(kind, _)| *kind == wanted);
                // Of a point-to-point link, IFA_ADDRESS is the other end's; IPv6 has no IFA_LOCAL elsewhere.
                let (_, bytes) = by(IFA_LOCAL).or_else(|| by(IFA_ADDRESS))?;
                match bytes.len() {
                    4 => Some(<[u8; 4]>::try_from(*bytes).ok()?.into()),
                    16 => Some(<[u8; 16]>::try_from(*bytes).ok()?.into()),
                    _ => None,
                }
            })
            .collect())
    }

    /// The routes of all tables, but for those that refuse.
    pub(super) fn routes(&self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            // struct rtmsg, all zero but for the family: every table.
            let mut payload = [0; 12];
            payload[0] = family as u8;
            let messages = self.dump(RTM_GETROUTE, &payload)?;
            routes.extend(messages.iter().filter_map(|message| route(message)));
        }
        Ok(routes)
    }

    /// A socket that is told of every change of a route or an interface.
    pub(super) fn of_changes() -> io::Result<Self> {
        // RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE.
        Self::of_groups(1 | 0x10 | 0x40 | 0x100 | 0x400)
    }

    /// A socket that is told of every change of an interface, and of its qdiscs and filters.
    pub(super) fn of_attachments() -> io::Result<Self> {
        // RTMGRP_LINK, RTMGRP_TC.
        Self::of_groups(1 | 8)
    }

    /// The cls_bpf filters at a hook of an interface.
    pub(super) fn filters(&self, ifindex: i32, parent: u32) -> io::Result<Vec<Filter>> {
        const TCA_BPF_NAME: u16 = 7;
        const TCA_BPF_ID: u16 = 11;
        let asked = FilterKey { ifindex, parent, ..FilterKey::default() };
        let messages = self.dump(RTM_GETTFILTER, &tcmsg(asked))?;
        Ok(messages
            .iter()
            .filter_map(|message| {
                let word = |at: usize| number(message.get(at..at + 4)?);
                let mut key = FilterKey {
                    ifindex: word(4)? as i32,
                    handle: word(8)?,
                    parent: word(12)?,
                    info: word(16)?,
                    chain: 0,
                };
                let (mut bpf, mut program, mut name) = (false, 0, String::new());
                for (kind, value) in Attributes(message.get(20..)?) {
                    match kind {
                        TCA_KIND => bpf = value == b"bpf\0",
                        TCA_CHAIN => key.chain = number(value)?,
                        TCA_OPTIONS => {
                            for (kind, value) in Attributes(value) {
                                match kind {
                                    TCA_BPF_ID => program = number(value).unwrap_or(0),
                                    TCA_BPF_NAME => name = crate::output::bytes_to_string(value),
                                    _ => {}
                                }
                            }
                        }
                        _ => {}
                    }
                }
                (bpf && program != 0).then_some(Filter { key, program, name })
            })
            .collect())
    }

    /// Whether there is any filter at a hook, of whatever kind.
    pub(super) fn has_filters(&self, ifindex: i32, parent: u32) -> io::Result<bool> {
        let asked = FilterKey { ifindex, parent, ..FilterKey::default() };
        Ok(!self.dump(RTM_GETTFILTER, &tcmsg(asked))?.is_empty())
    }

    /// Removes one filter, and nothing beside it.
    pub(super) fn remove_filter(&self, key: FilterKey) -> io::Result<()> {
        let mut payload = tcmsg(key);
        put(&mut payload, TCA_KIND, b"bpf\0");
        put(&mut payload, TCA_CHAIN, &key.chain.to_ne_bytes());
        self.change(&[Request::new(RTM_DELTFILTER, 0, payload)]).swap_remove(0)
    }

    /// Adds a filter that runs a program and does what that says (direct action). EEXIST if there is one by that key.
    pub(super) fn add_filter(&self, key: FilterKey, program: RawFd, name: &str) -> io::Result<()> {
        self.change(&[new_filter(key, program, name)]).swap_remove(0)
    }

    /// The same in a clsact that is made with it: the kernel works on both before it looks at signals, so that nobody
    /// is killed between the two. What became of each.
    pub(super) fn add_clsact_with(
        &self,
        key: FilterKey,
        program: RawFd,
        name: &str,
    ) -> (io::Result<()>, io::Result<()>) {
        let both = [new_clsact(key.ifindex), new_filter(key, program, name)];
        let mut answers = self.change(&both);
        let filter = answers.remove(1);
        (answers.remove(0), filter)
    }

    /// The qdisc of an interface that has the tc hooks: `clsact` or `ingress`.
    pub(super) fn ingress_qdisc(&self, ifindex: i32) -> io::Result<Option<String>> {
        let asked = FilterKey { ifindex, ..FilterKey::default() };
        Ok(self.dump(RTM_GETQDISC, &tcmsg(asked))?.iter().find_map(|message| {
            let word = |at: usize| number(message.get(at..at + 4)?);
            // Old kernels list the qdiscs of all interfaces.
            let it = word(4)? as i32 == ifindex && word(8)? == INGRESS_HANDLE;
            let mut attributes = Attributes(message.get(20..)?);
            let (_, kind) = attributes.find(|(kind, _)| it && *kind == TCA_KIND)?;
            Some(crate::output::bytes_to_string(kind))
        }))
    }

    /// Packets that wait in the qdiscs of an interface.
    pub(super) fn queued(&self, ifindex: i32) -> io::Result<u64> {
        const TCA_STATS2: u16 = 7;
        const TCA_STATS_QUEUE: u16 = 3;
        /// Of a large packet, the shortest piece that there is reason to expect.
        const PIECE: u64 = 512;
        let asked = FilterKey { ifindex, ..FilterKey::default() };
        let mut queued = 0;
        for message in self.dump(RTM_GETQDISC, &tcmsg(asked))? {
            // Old kernels list the qdiscs of all interfaces.
            if message.get(4..8).and_then(number) != Some(ifindex as u32) {
                continue;
            }
            let stats = Attributes(message.get(20..).unwrap_or(&[]));
            for (_, stats) in stats.filter(|(kind, _)| *kind == TCA_STATS2) {
                // struct gnet_stats_queue: packets, bytes.
                for (_, queue) in Attributes(stats).filter(|(kind, _)| *kind == TCA_STATS_QUEUE) {
                    let word = |at: usize| queue.get(at..at + 4).and_then(number).unwrap_or(0);
                    queued += u64::from(word(0)).max(u64::from(word(4)) / PIECE);
                }
            }
        }
        Ok(queued)
    }

    /// EEXIST if there is one, or a qdisc `ingress`.
    #[cfg(test)]
    pub(super) fn add_clsact(&self, ifindex: i32) -> io::Result<()> {
        self.change(&[new_clsact(ifindex)]).swap_remove(0)
    }

    /// With all filters in it.
    pub(super) fn remove_clsact(&self, ifindex: i32) -> io::Result<()> {
        self.change(&[clsact(RTM_DELQDISC, 0, ifindex)]).swap_remove(0)
    }
}

fn new_filter(key: FilterKey, program: RawFd, name: &str) -> Request {
    const TCA_BPF_FD: u16 = 6;
    const TCA_BPF_NAME: u16 = 7;
    const TCA_BPF_FLAGS: u16 = 8;
    const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
    let mut options = Vec::new();
    put(&mut options, TCA_BPF_FD, &program.to_ne_bytes());
    put(&mut options, TCA_BPF_NAME, &[name.as_bytes(), b"\0"].concat());
    put(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    let mut payload = tcmsg(key);
    put(&mut payload, TCA_KIND, b"bpf\0");
    put(&mut payload, TCA_OPTIONS, &options);
    Request::new(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, payload)
}

fn new_clsact(ifindex: i32) -> Request {
    clsact(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, ifindex)
}

fn clsact(request: u16, flags: u16, ifindex: i32) -> Request {
    const TC_H_CLSACT: u32 = 0xffff_fff1;
    let key = FilterKey { ifindex, handle: INGRESS_HANDLE, parent: TC_H_CLSACT, info: 0, chain: 0 };
    let mut payload = tcmsg(key);
    put(&mut payload, TCA_KIND, b"clsact\0");
    Request::new(request, flags, payload)
}

/// struct rtmsg and what is behind it. Nothing of what is no route of its own, and of routes that refuse.
fn route(message: &[u8]) -> Option<Route> {
    const RTN_UNICAST: u8 = 1;
    const RTN_LOCAL: u8 = 2;
    /// RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST.
    const OTHERS: std::ops::RangeInclusive<u8> = 3..=5;
    const RTM_F_CLONED: u32 = 0x200;
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RTA_PRIORITY: u16 = 6;
    const RTA_MULTIPATH: u16 = 9;
    const RTA_TABLE: u16 = 15;
    const RTA_VIA: u16 = 18;
    const RTA_ENCAP: u16 = 22;
    const RTA_NH_ID: u16 = 30;
    let (family, length, kind) = (*message.first()?, *message.get(1)?, *message.get(7)?);
    let local = kind == RTN_LOCAL;
    if !(kind == RTN_UNICAST || local || OTHERS.contains(&kind))
        || number(message.get(8..12)?)? & RTM_F_CLONED != 0
    {
        return None;
    }
    let mut address = match i32::from(family) {
        libc::AF_INET => IpAddr::from([0; 4]),
        libc::AF_INET6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut route = Route {
        table: (*message.get(4)?).into(),
        net: address.into(),
        metric: 0,
        devices: vec![],
        direct: kind == RTN_UNICAST,
    };
    for (kind, value) in Attributes(message.get(12..)?) {
        // What leads to several, or is said elsewhere, is taken for a router.
        if [RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA, RTA_ENCAP, RTA_NH_ID].contains(&kind) {
            route.direct = false;
        }
        match kind {
            RTA_DST => {
                address = match value.len() {
                    4 => <[u8; 4]>::try_from(value).ok()?.into(),
                    16 => <[u8; 16]>::try_from(value).ok()?.into(),
                    _ => return None,
                };
            }
            // What is this machine's own goes through the loopback.
            RTA_OIF if !local => route.devices.push(number(value)? as i32),
            RTA_PRIORITY => route.metric = number(value)?,
            RTA_TABLE => route.table = number(value)?,
            RTA_MULTIPATH => {
                // struct rtnexthop: its length, and from its fourth byte on the interface.
                let mut rest = value;
                while let Some(size) = rest.get(..2) {
                    let size = usize::from(u16::from_ne_bytes(size.try_into().ok()?));
                    if size < 8 {
                        break;
                    }
                    route.devices.push(number(rest.get(4..8)?)? as i32);
                    rest = rest.get(size.next_multiple_of(4)..).unwrap_or(&[]);
                }
            }
            _ => {}
        }
    }
    route.net = IpNet::new(address, length).ok()?;
    Some(route)
}

fn tcmsg(key: FilterKey) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&key.ifindex.to_ne_bytes());
    for word in [key.handle, key.parent, key.info] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Appends an attribute.
fn put(payload: &mut Vec<u8>, kind: u16, value: &[u8]) {
    payload.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    payload.extend_from_slice(&kind.to_ne_bytes());
    payload.extend_from_slice(value);
    payload.resize(payload.len().next_multiple_of(4), 0);
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// Types and values of attributes; ends at one that is cut short.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        /// NLA_F_NESTED and NLA_F_NET_BYTEORDER are no part of the type.
        const TYPE: u16 = 0x3fff;
        let size = u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & TYPE;
        let value = self.0.get(4..size)?;
        self.0 = self.0.get(size.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests;
