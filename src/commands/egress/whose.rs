// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whose packets they are: what the kernel counts by socket, by process, user and cgroup.

use std::cell::{Ref, RefCell};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::book::{Row, Share};
use super::by::Columns;
use super::named::Named;
use crate::kernel::egress::{Event, Key, Socket};
use crate::kernel::owners::{Identity, Owner, Owners, Senders, SendersBy};
use crate::kernel::ring::EventRing;
use crate::kernel::run::Source;
use crate::net::names::Name;

/// What was asked for of a packet's owner; the rest is the same for all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Whose {
    pub(super) share: Share,
    pub(super) process: Option<ProcessName>,
    pub(super) user: Option<u32>,
    pub(super) cgroup: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ProcessName {
    pub(super) comm: String,
    pub(super) id: Identity,
    pub(super) exe: Option<String>,
}

impl Whose {
    pub(super) fn of(owner: Owner, shown: Columns) -> Self {
        let nobody = |share| Self { share, process: None, user: None, cgroup: None };
        match owner {
            Owner::Process(process, _) => Self {
                share: Share::Process,
                process: shown.process.then(|| ProcessName {
                    comm: process.comm.clone(),
                    id: process.id,
                    exe: process.exe.clone(),
                }),
                user: shown.user.then_some(process.uid),
                cgroup: process.cgroup.clone().filter(|_| shown.cgroup),
            },
            Owner::Kernel => nobody(Share::Kernel),
            Owner::Forwarded => nobody(Share::Forwarded),
            Owner::Unknown => nobody(Share::Unknown),
        }
    }
}

/// `--senders`: how to see who sends through a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SendersArg {
    /// sock:sock_send_length, since Linux 6.3
    Tracepoint,
    /// fentry of security_socket_sendmsg
    Fentry,
    /// A kprobe of the same
    Kprobe,
    /// Not at all: a socket's owner is who made it, or has it open
    None,
}

impl From<SendersArg> for SendersBy {
    fn from(arg: SendersArg) -> Self {
        match arg {
            SendersArg::Tracepoint => Self::Only(Senders::Tracepoint),
            SendersArg::Fentry => Self::Only(Senders::Fentry),
            SendersArg::Kprobe => Self::Only(Senders::Kprobe),
            SendersArg::None => Self::Nothing,
        }
    }
}

/// What has a row of its own in the table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RowKey {
    /// What does not depend on the socket.
    pub(super) key: Key,
    pub(super) whose: Option<Whose>,
    /// Of rows by name: then the address is not in the key, unless it has none.
    pub(super) name: Option<Name>,
}

impl Row for RowKey {
    fn share(&self) -> Share {
        self.whose.as_ref().map_or(Share::Unknown, |whose| whose.share)
    }
}

/// Who owns a socket, by what is known now. Nothing where that was not asked for.
pub(super) fn owner(socket: Option<Socket>, owners: Option<&RefCell<Owners>>) -> Option<Owner> {
    let owners = owners?;
    Some(match socket {
        Some(Socket::Process(cookie)) => owners.borrow_mut().of(cookie),
        Some(Socket::Forwarded) => Owner::Forwarded,
        Some(Socket::Kernel) | None => Owner::Kernel,
    })
}

/// Which row a key belongs to, by what is known now.
pub(super) fn row(
    key: &Key,
    owners: Option<&RefCell<Owners>>,
    named: Option<&Named>,
    shown: Columns,
) -> RowKey {
    let owner = owner(key.socket, owners.filter(|_| shown.whose()));
    let asker = match &owner {
        Some(Owner::Process(process, _)) => Some(process.id),
        _ => None,
    };
    let whose = owner.map(|owner| Whose::of(owner, shown));
    let mut key = Key { socket: None, ..*key };
    let name =
        named.filter(|_| shown.name).and_then(|named| named.of_key(&key, asker).into_iter().next());
    if name.is_some() && !shown.addr {
        key.addr = None;
    }
    RowKey { key, whose, name }
}

/// Events, and beside them what is to be learned of owners and names at once: a moment later a process may be gone.
pub(super) struct Sources<'a> {
    ring: &'a EventRing<'a, Event>,
    owners: Option<&'a RefCell<Owners>>,
    named: Option<&'a Named>,
    /// Readable when one of them is.
    all: Epoll,
}

impl<'a> Sources<'a> {
    pub(super) fn new(
        ring: &'a EventRing<'a, Event>,
        owners: Option<&'a RefCell<Owners>>,
        named: Option<&'a Named>,
    ) -> Result<Self> {
        let context = "cannot wait for events";
        let all = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context(context)?;
        let readable = |data| EpollEvent::new(EpollFlags::EPOLLIN, data);
        all.add(ring.fd(), readable(0)).context(context)?;
        if let Some(owners) = owners {
            let owners: Ref<'_, Owners> = owners.borrow();
            if let Some(fd) = owners.fd() {
                all.add(fd, readable(1)).context(context)?;
            }
        }
        if let Some(named) = named {
            all.add(named.fd(), readable(2)).context(context)?;
        }
        Ok(Self { ring, owners, named, all })
    }
}

impl Source for Sources<'_> {
    type Event = Event;

    fn fill(&self) -> Result<bool> {
        let more = self.ring.fill()?;
        // Afterwards: what was learned before an event is known for it.
        if let Some(owners) = self.owners {
            owners.borrow_mut().take()?;
        }
        if let Some(named) = self.named {
            named.take(self.owners)?;
        }
        Ok(more)
    }

    fn next(&self) -> Option<Event> {
        self.ring.next()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.all.0.as_fd()
    }
}
