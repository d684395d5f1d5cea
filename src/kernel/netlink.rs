// SPDX-License-Identifier: MIT OR Apache-2.0

//! As much of rtnetlink as it takes to see what is attached to interfaces, and to put a filter there and take it away. Answers are
//! read attribute by attribute: what other people configured must not make ours unreadable.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// What is there already is an error.
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// What was dumped changed meanwhile, and may be incomplete.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

/// A socket in the network namespace of the thread that opens it.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

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
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?))
    }

    pub(crate) fn interfaces(&self) -> io::Result<Vec<Interface>> {
        const IFLA_IFNAME: u16 = 3;
        const IFLA_MTU: u16 = 4;
        const IFLA_LINKINFO: u16 = 18;
        const IFLA_INFO_KIND: u16 = 1;
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
        /// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE.
        const GROUPS: u32 = 1 | 0x10 | 0x40 | 0x100 | 0x400;
        let netlink = Self::open()?;
        bind(netlink.0.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(netlink)
    }

    /// Whether anything was told since the last time, more than fits included.
    pub(super) fn changed(&self) -> io::Result<bool> {
        let mut changed = false;
        let mut buffer = [0; 8192];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::ENOBUFS) => changed = true,
                Err(Errno::EAGAIN) => return Ok(changed),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
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
        self.ask(RTM_DELTFILTER, NLM_F_ACK, &payload)?;
        // The acknowledgement is an error of 0.
        self.receive().map(drop)
    }

    /// Adds a filter that runs a program and does what that says (direct action). EEXIST if there is one by that key.
    pub(super) fn add_filter(&self, key: FilterKey, program: RawFd, name: &str) -> io::Result<()> {
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
        self.ask(RTM_NEWTFILTER, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &payload)?;
        self.receive().map(drop)
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

    /// EEXIST if there is one, or a qdisc `ingress`.
    pub(super) fn add_clsact(&self, ifindex: i32) -> io::Result<()> {
        self.change_clsact(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, ifindex)
    }

    /// With all filters in it.
    pub(super) fn remove_clsact(&self, ifindex: i32) -> io::Result<()> {
        self.change_clsact(RTM_DELQDISC, 0, ifindex)
    }

    fn change_clsact(&self, request: u16, flags: u16, ifindex: i32) -> io::Result<()> {
        const TC_H_CLSACT: u32 = 0xffff_fff1;
        let key =
            FilterKey { ifindex, handle: INGRESS_HANDLE, parent: TC_H_CLSACT, info: 0, chain: 0 };
        let mut payload = tcmsg(key);
        put(&mut payload, TCA_KIND, b"clsact\0");
        self.ask(request, NLM_F_ACK | flags, &payload)?;
        self.receive().map(drop)
    }

    fn ask(&self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(HEADER + payload.len());
        message.extend_from_slice(&((HEADER + payload.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(payload);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    fn dump(&self, kind: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut tries = 0;
        loop {
            self.ask(kind, NLM_F_DUMP, payload)?;
            let (messages, interrupted) = self.receive()?;
            tries += 1;
            if !interrupted || tries == 5 {
                return Ok(messages);
            }
        }
    }

    /// What comes until the answer is complete, and whether the kernel says that it may not be.
    fn receive(&self) -> io::Result<(Vec<Vec<u8>>, bool)> {
        let mut messages = Vec::new();
        let mut interrupted = false;
        // The kernel's own limit of a piece of a dump is 32 KiB; one interface with many functions may be more.
        let mut buffer = vec![0; 1 << 18];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some(size) = rest.get(..4).and_then(number) {
                let Some(message) = rest.get(..size as usize).filter(|m| m.len() >= HEADER) else {
                    return Err(io::Error::from(io::ErrorKind::InvalidData));
                };
                let kind = u16::from_ne_bytes([message[4], message[5]]);
                let flags = u16::from_ne_bytes([message[6], message[7]]);
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                let payload = &message[HEADER..];
                match kind {
                    NLMSG_DONE => return Ok((messages, interrupted)),
                    NLMSG_ERROR => {
                        return match payload.get(..4).and_then(number).unwrap_or(0) as i32 {
                            0 => Ok((messages, interrupted)),
                            errno => Err(io::Error::from_raw_os_error(-errno)),
                        };
                    }
                    _ => messages.push(payload.to_vec()),
                }
                rest = rest.get((size as usize).next_multiple_of(4)..).unwrap_or(&[]);
            }
        }
    }
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
mod tests {
    use super::*;

    #[test]
    fn attributes_are_walked_and_a_short_one_ends_them() {
        let mut bytes = Vec::new();
        for (size, kind, value) in [(5_u16, 3_u16, *b"a\0\0\0"), (8, 0x8000 | 7, *b"bcde")] {
            bytes.extend_from_slice(&size.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&value);
        }
        let all: Vec<_> = Attributes(&bytes).collect();
        assert_eq!(all, [(3, &b"a"[..]), (7, &b"bcde"[..])]);
        bytes.truncate(bytes.len() - 1);
        assert_eq!(Attributes(&bytes).count(), 1);
        assert_eq!(Attributes(&[0; 8]).count(), 0);
    }

    #[test]
    fn the_loopback_is_found() {
        let interfaces = Netlink::open().unwrap().interfaces().unwrap();
        assert!(interfaces.iter().any(|i| i.name == "lo" && i.index == 1));
    }

    #[test]
    fn the_loopback_has_its_address() {
        let addresses = Netlink::open().unwrap().addresses().unwrap();
        assert!(addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{addresses:?}");
    }

    #[test]
    fn routes_are_understood() {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = Vec::new();
            put(&mut bytes, kind, value);
            bytes
        };
        let message = |family: u8, length: u8, kind: u8, rest: &[Vec<u8>]| {
            let mut bytes = vec![family, length, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
            bytes.extend(rest.concat());
            bytes
        };
        let unicast = message(
            2,
            8,
            1,
            &[
                attribute(1, &[10, 0, 0, 0]),
                attribute(4, &7_u32.to_ne_bytes()),
                attribute(6, &100_u32.to_ne_bytes()),
                attribute(15, &1000_u32.to_ne_bytes()),
            ],
        );
        let found = route(&unicast).unwrap();
        assert_eq!((found.table, found.metric, found.devices), (1000, 100, vec![7]));
        assert_eq!(found.net.to_string(), "10.0.0.0/8");
        let hop = |device: u32| {
            let mut bytes = vec![16, 0, 0, 0];
            bytes.extend(device.to_ne_bytes());
            bytes.extend([8, 0, 5, 0, 192, 0, 2, 1]);
            bytes
        };
        let several = message(2, 0, 1, &[attribute(9, &[hop(3), hop(4)].concat())]);
        let found = route(&several).unwrap();
        assert_eq!((found.table, found.net.to_string()), (254, "0.0.0.0/0".into()));
        assert_eq!(found.devices, [3, 4]);
        // This machine's own, and what is refused.
        let own = message(2, 32, 2, &[unicast[12..].to_vec()]);
        assert!(route(&own).unwrap().devices.is_empty());
        assert!(route(&message(2, 0, 7, &[])).is_none());
        for cut in 0..12 {
            assert!(route(&unicast[..cut]).is_none(), "{cut}");
        }
        let lo = Netlink::open().unwrap().routes().unwrap();
        let own: IpAddr = [127, 0, 0, 1].into();
        assert!(lo.iter().any(|route| route.net.contains(&own) && route.devices.is_empty()));
    }

    #[test]
    fn filters_are_listed_and_what_is_not_there_is_not_removed() {
        let netlink = Netlink::open().unwrap();
        assert!(netlink.filters(1, EGRESS).is_ok());
        // What isn't there is an error, and not success.
        let error = netlink
            .remove_filter(FilterKey { ifindex: i32::MAX, ..FilterKey::default() })
            .unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}
