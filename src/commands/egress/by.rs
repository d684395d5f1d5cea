// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--by`: what makes packets different.

use std::str::FromStr;

use anyhow::Result;

use crate::error::usage;
use crate::kernel::attach::tc::Direction;
use crate::kernel::egress::By;

/// As it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByList {
    dst: bool,
    src: bool,
    net: Option<u8>,
    net6: Option<u8>,
    proto: bool,
    port: bool,
    process: bool,
    user: bool,
    cgroup: bool,
    name: bool,
}

const VALID: &str = "dst (at ingress src), net/24 and net6/64 with any length, proto, port, process, user, cgroup, name";

impl FromStr for ByList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut list = Self::default();
        for item in text.split(',').map(str::trim) {
            let twice = match item.split_once('/') {
                Some(("net", length)) => list.net.replace(bits(item, length, 32)?).is_some(),
                Some(("net6", length)) => list.net6.replace(bits(item, length, 128)?).is_some(),
                Some(_) => {
                    return Err(format!("`{item}` is nothing to count by; expected {VALID}"));
                }
                None => {
                    let flag = match item {
                        "dst" => &mut list.dst,
                        "src" => &mut list.src,
                        "proto" => &mut list.proto,
                        "port" => &mut list.port,
                        "process" => &mut list.process,
                        "user" => &mut list.user,
                        "cgroup" => &mut list.cgroup,
                        "name" => &mut list.name,
                        "net" | "net6" => {
                            return Err(format!(
                                "`{item}` has no length; expected net/24 or net6/64, or any other"
                            ));
                        }
                        _ => {
                            return Err(format!(
                                "`{item}` is nothing to count by; expected {VALID}"
                            ));
                        }
                    };
                    std::mem::replace(flag, true)
                }
            };
            if twice {
                return Err(format!("`{item}` is there twice"));
            }
        }
        if (list.dst || list.src) && (list.net.is_some() || list.net6.is_some()) {
            return Err("an address is in its network already; expected one or the other".into());
        }
        if list.name && (list.net.is_some() || list.net6.is_some()) {
            return Err("networks have no names; expected name, or net/N and net6/N".into());
        }
        Ok(list)
    }
}

fn bits(item: &str, length: &str, most: u8) -> Result<u8, String> {
    match length.parse::<u8>() {
        Ok(bits) if (1..=most).contains(&bits) && length.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(bits)
        }
        _ => Err(format!("`{item}`: expected a prefix length from 1 to {most}")),
    }
}

/// What is counted by, and how the columns are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) by: By,
    /// Addresses, or networks in their place, are in a column.
    pub(super) addr: bool,
    pub(super) nets: bool,
    /// What addresses are called, in their place.
    pub(super) name: bool,
    pub(super) process: bool,
    pub(super) user: bool,
    pub(super) cgroup: bool,
}

impl Columns {
    /// Everything of the owner, as events have it.
    pub(super) const OWNER: Self = Self {
        by: By { addr: None, proto: false, port: false, cookie: true },
        addr: false,
        nets: false,
        name: false,
        process: true,
        user: true,
        cgroup: true,
    };

    /// Whether it is asked whose packets they are.
    pub(super) fn whose(self) -> bool {
        self.process || self.user || self.cgroup
    }

    /// What was asked for, or else the address.
    pub(super) fn resolve(asked: Option<ByList>, direction: Direction) -> Result<Self> {
        let Some(asked) = asked else {
            let by = By { addr: Some((32, 128)), ..By::default() };
            let nothing = Self { process: false, user: false, cgroup: false, ..Self::OWNER };
            return Ok(Self { by, addr: true, ..nothing });
        };
        let ByList { process, user, cgroup, name, .. } = asked;
        if direction == Direction::Ingress && (process || user || cgroup) {
            return Err(usage(
                "--by process, user and cgroup: at ingress a packet has no socket yet; expected --direction egress",
            ));
        }
        match direction {
            Direction::Egress if asked.src => Err(usage(
                "--by src: what goes out comes from this machine; expected dst, or --direction ingress",
            )),
            Direction::Ingress if asked.dst => Err(usage(
                "--by dst: what comes in goes to this machine; expected src, or --direction egress",
            )),
            _ => {
                let nets = asked.net.is_some() || asked.net6.is_some();
                let whole = asked.dst || asked.src;
                let addr = (nets || whole || name)
                    .then(|| (asked.net.unwrap_or(32), asked.net6.unwrap_or(128)));
                let cookie = process || user || cgroup;
                let by = By { addr, proto: asked.proto, port: asked.port, cookie };
                Ok(Self { by, addr: nets || whole, nets, name, process, user, cgroup })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_understood() {
        let resolve =
            |text: &str| Columns::resolve(Some(text.parse().unwrap()), Direction::Egress).unwrap();
        assert_eq!(resolve("dst").by.addr, Some((32, 128)));
        assert_eq!(Columns::resolve(None, Direction::Ingress).unwrap(), resolve("dst"));
        let nets = resolve("net/24,proto, port");
        assert_eq!((nets.by.addr, nets.by.proto, nets.by.port), (Some((24, 128)), true, true));
        assert!(nets.nets && !nets.by.cookie && !nets.whose());
        let whose = resolve("dst,process,cgroup");
        assert!(whose.by.cookie && whose.process && !whose.user && whose.cgroup);
        assert_eq!(resolve("net6/48,net/16").by.addr, Some((16, 48)));
        assert_eq!(resolve("port").by.addr, None);
        let name = resolve("name,process");
        assert!(name.name && !name.addr && name.by.addr == Some((32, 128)));
        assert!(resolve("name,dst").addr);
        for bad in [
            "",
            "dst,",
            "dst,dst",
            "net",
            "net/0",
            "net/33",
            "net6/129",
            "net/+8",
            "dst,net/8",
            "name,net/8",
            "x",
            "x/8",
        ] {
            assert!(bad.parse::<ByList>().is_err(), "{bad}");
        }
        assert!(Columns::resolve(Some("src".parse().unwrap()), Direction::Egress).is_err());
        assert!(Columns::resolve(Some("dst".parse().unwrap()), Direction::Ingress).is_err());
        assert!(Columns::resolve(Some("user".parse().unwrap()), Direction::Ingress).is_err());
    }
}
