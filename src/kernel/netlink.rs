// SPDX-License-Identifier: MIT OR Apache-2.0

//! As much of rtnetlink as it takes to see what is attached to interfaces, and to take one filter away. Answers are
//! read attribute by attribute: what other people configured must not make ours unreadable.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// What was dumped changed meanwhile, and may be incomplete.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

const RTM_GETLINK: u16 = 18;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

/// A socket in the network namespace of the thread that opens it.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

/// An interface, and the XDP programs on it by mode flag (XDP_FLAGS_*_MODE).
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) index: i32,
    pub(super) name: String,
    pub(super) xdp: Vec<(u32, u32)>,
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
    pub(super) fn priority(self) -> u32 {
        self.info >> 16
    }
}

/// A cls_bpf filter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    pub(super) key: FilterKey,
    pub(super) program: u32,
}

/// clsact's hooks, as parents of filters; the ingress qdisc answers to the first.
pub(super) const INGRESS: u32 = 0xffff_fff2;
pub(super) const EGRESS: u32 = 0xffff_fff3;

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?))
    }

    pub(super) fn interfaces(&self) -> io::Result<Vec<Interface>> {
        const IFLA_IFNAME: u16 = 3;
        const IFLA_XDP: u16 = 43;
        /// IFLA_XDP_DRV_PROG_ID and so on, with the flag that names the mode.
        const BY_MODE: [(u16, u32); 3] = [(5, 4), (6, 2), (7, 8)];
        // struct ifinfomsg, all zero: every interface.
        let messages = self.dump(RTM_GETLINK, &[0; 16])?;
        Ok(messages
            .iter()
            .filter_map(|message| {
                let index = number(message.get(4..8)?)? as i32;
                let mut interface = Interface { index, name: String::new(), xdp: Vec::new() };
                for (kind, value) in Attributes(message.get(16..)?) {
                    match kind {
                        IFLA_IFNAME => interface.name = crate::output::bytes_to_string(value),
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

    /// The cls_bpf filters at a hook of an interface.
    pub(super) fn filters(&self, ifindex: i32, parent: u32) -> io::Result<Vec<Filter>> {
        const TCA_KIND: u16 = 1;
        const TCA_OPTIONS: u16 = 2;
        const TCA_CHAIN: u16 = 11;
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
                let (mut bpf, mut program) = (false, 0);
                for (kind, value) in Attributes(message.get(20..)?) {
                    match kind {
                        TCA_KIND => bpf = value == b"bpf\0",
                        TCA_CHAIN => key.chain = number(value)?,
                        TCA_OPTIONS => {
                            program = Attributes(value)
                                .find(|(kind, _)| *kind == TCA_BPF_ID)
                                .and_then(|(_, value)| number(value))
                                .unwrap_or(0);
                        }
                        _ => {}
                    }
                }
                (bpf && program != 0).then_some(Filter { key, program })
            })
            .collect())
    }

    /// Removes one filter, and nothing beside it.
    pub(super) fn remove_filter(&self, key: FilterKey) -> io::Result<()> {
        let mut payload = tcmsg(key);
        // TCA_KIND and TCA_CHAIN.
        for (kind, value) in [(1_u16, b"bpf\0"), (11, &key.chain.to_ne_bytes())] {
            payload.extend_from_slice(&8_u16.to_ne_bytes());
            payload.extend_from_slice(&kind.to_ne_bytes());
            payload.extend_from_slice(value);
        }
        self.ask(RTM_DELTFILTER, NLM_F_ACK, &payload)?;
        // The acknowledgement is an error of 0.
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

fn tcmsg(key: FilterKey) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&key.ifindex.to_ne_bytes());
    for word in [key.handle, key.parent, key.info] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes
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
