// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--names`: what destinations are called.

use std::cell::RefCell;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};

use super::whose::RowKey;
use crate::commands::resolver::Resolver;
use crate::kernel::attach::tc::Direction;
use crate::kernel::btf::BtfSource;
use crate::kernel::egress::{Event, Key};
use crate::kernel::names::Ear;
use crate::kernel::netns;
use crate::kernel::owners::{Identity, Owner, Owners};
use crate::net::names::{Asker, Name, Packet};
use crate::net::resolv_conf;

/// Pieces taken in at a time, so that a flood does not keep the loop from its other duties.
const BATCH: usize = 65_536;

#[derive(Debug)]
pub(super) struct Named {
    ear: Ear,
    /// That of the interfaces: its inode number.
    netns: u32,
    /// Names that nobody could have made up are all that is wanted.
    believed: bool,
    resolver: RefCell<Resolver>,
}

impl Named {
    /// With `rules`, rows and audit lines carry only names from the resolvers in force, which no process can forge.
    pub(super) fn start(btf: &BtfSource, rules: bool) -> Result<Self> {
        let netns = netns::current().context("--names")?;
        let resolvers = resolv_conf::nameservers();
        let ear = Ear::start(btf).context("--names")?;
        let resolver = RefCell::new(Resolver::believing(netns, resolvers));
        Ok(Self { ear, netns, believed: rules, resolver })
    }

    /// Learns from what was heard since, without waiting. `owners` are asked who heard it, so they come first.
    pub(super) fn take(&self, owners: Option<&RefCell<Owners>>) -> Result<()> {
        let asker = |cookie: u64| -> Option<Asker> {
            match owners?.borrow_mut().of(cookie) {
                Owner::Process(process, _) => Some((process.id.tgid, process.id.start_ns)),
                _ => None,
            }
        };
        for _ in 0..BATCH {
            let Some(heard) = self.ear.next()? else { break };
            self.resolver.borrow_mut().hear(&heard, asker);
        }
        Ok(())
    }

    /// Names of a row's address: those that its process asked for first.
    pub(super) fn of(&self, row: &RowKey) -> Vec<Name> {
        if let Some(name) = &row.name {
            return vec![name.clone()];
        }
        let process = row.whose.as_ref().and_then(|whose| whose.process.as_ref());
        self.of_key(&row.key, process.map(|process| process.id))
    }

    /// Names of the far end: those that `process` asked for first.
    pub(super) fn of_event(
        &self,
        event: &Event,
        direction: Direction,
        process: Option<Identity>,
    ) -> Vec<Name> {
        let asker = process.map(|process| (process.tgid, process.start_ns));
        match direction {
            Direction::Egress => self.find(event.daddr, event.dport, asker),
            Direction::Ingress => {
                event.saddr.map_or_else(Vec::new, |saddr| self.find(saddr, event.sport, asker))
            }
        }
    }

    /// Names of a key's address: those that `process` asked for first.
    pub(super) fn of_key(&self, key: &Key, process: Option<Identity>) -> Vec<Name> {
        let asker = process.map(|process| (process.tgid, process.start_ns));
        key.addr.map_or_else(Vec::new, |addr| self.find(addr, key.port, asker))
    }

    /// Names of a key's address that nobody could have made up.
    pub(super) fn believed(&self, key: &Key) -> Vec<Name> {
        let packet = |addr| Packet { believed: true, ..self.packet(addr, key.port, None) };
        key.addr.map_or_else(Vec::new, |addr| self.resolver.borrow().of(&packet(addr)))
    }

    fn find(&self, addr: IpAddr, port: Option<u16>, asker: Option<Asker>) -> Vec<Name> {
        self.resolver.borrow().of(&self.packet(addr, port, asker))
    }

    fn packet(&self, addr: IpAddr, port: Option<u16>, asker: Option<Asker>) -> Packet {
        // Whether a packet is passed on is known of few.
        let (cookie, netns, passed_on, believed) = (0, self.netns, true, self.believed);
        Packet { addr, port, cookie, asker, netns, passed_on, believed }
    }

    /// Readable when there is something to take.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ear.fd()
    }

    /// Pieces that may have had a name, and were not heard.
    pub(super) fn lost(&self) -> Result<u64> {
        self.ear.lost()
    }
}
