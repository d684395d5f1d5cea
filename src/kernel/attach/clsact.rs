// SPDX-License-Identifier: MIT OR Apache-2.0

//! Filters of the clsact qdisc, for kernels without tcx links.
//!
//! Nothing stays behind, and nothing of others goes: the last bpftk on an interface removes the qdisc, if a bpftk made it. The
//! kernel doesn't keep who made a qdisc, and the process that did may end before another that uses it. So it is said in the
//! names of our filters: the maker's have a mark, and so have those of every bpftk that comes while there are some with it.
//! Removing the qdisc removes all filters, so whoever finds its own marked filter there knows that it still is that qdisc.
//! A qdisc that is made gets its first filter with the same message, so that nobody is killed in between.
//!
//! What taking away needs (a netlink socket, one for the turn) is there before there is anything to be taken away: it can't
//! fail for want of descriptors.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};

use super::tc::{Direction, Hook, Order};
use crate::error::unsupported;
use crate::kernel::netlink::{EGRESS, Filter, FilterKey, INGRESS, Interface, Netlink};
use crate::kernel::sys;

/// Behind the name of a filter in a qdisc that bpftk made.
const MARK: &str = "+clsact";
/// Behind the name of a filter that is to go on when its process is gone (--fail-closed).
const STAYS: &str = "+stays";

/// What filters of ours are called by.
const PREFIX: &str = "bpftk_";

fn is_marked(filter: &Filter) -> bool {
    filter.name.starts_with(PREFIX) && filter.name.ends_with(MARK)
}

/// Whether a bpftk put it there, as far as it can be seen.
pub(in crate::kernel) fn is_ours(filter: &Filter) -> bool {
    filter.name.starts_with(PREFIX) && filter.key.handle & HANDLES_MASK == HANDLES
}

/// Whether it is to go on when its process is gone; the name of its program if so.
pub(in crate::kernel) fn stays(filter: &Filter) -> Option<&str> {
    let name = filter.name.strip_suffix(MARK).unwrap_or(&filter.name);
    name.strip_suffix(STAYS)
}

/// Handles of our filters.
const HANDLES: u32 = 0xb000_0000;
const HANDLES_MASK: u32 = 0xf000_0000;

/// One bpftk at a time looks at qdiscs and then changes them; in a network namespace, which an abstract address belongs to.
/// The kernel ends it with the process.
#[derive(Debug)]
pub(in crate::kernel) struct Turn {
    _socket: Option<OwnedFd>,
}

fn turn_socket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

impl Turn {
    /// Much longer than anybody needs; nobody can keep us from cleaning up by holding the address for good.
    const PATIENCE: Duration = Duration::from_secs(2);

    pub(in crate::kernel) fn wait() -> Self {
        Self::wait_with(turn_socket().ok())
    }

    /// Without a socket, or any turn, there is only the risk that two of us act at the very same time.
    fn wait_with(socket: Option<OwnedFd>) -> Self {
        let Some(socket) = socket else { return Self { _socket: None } };
        let begin = Instant::now();
        let take = || bind(socket.as_raw_fd(), &UnixAddr::new_abstract(b"bpftk-clsact")?);
        loop {
            match take() {
                Ok(()) => return Self { _socket: Some(socket) },
                Err(nix::Error::EADDRINUSE) if begin.elapsed() < Self::PATIENCE => {
                    thread::sleep(Duration::from_millis(2));
                }
                Err(nix::Error::EINTR) => {}
                Err(_) => return Self { _socket: None },
            }
        }
    }
}

/// What filters are put there and taken away by.
#[derive(Debug)]
pub(super) struct Clsact {
    netlink: Netlink,
    /// For the next turn.
    spare: Option<OwnedFd>,
    /// Filters are to go on when this process is gone.
    stays: bool,
    /// Where a filter is not where it was meant to be.
    pub(super) remarks: Vec<String>,
}

/// A filter that runs a program of ours.
#[derive(Debug)]
pub(super) struct Ours {
    key: FilterKey,
    program: u32,
    /// For words about it.
    place: String,
}

impl Clsact {
    pub(super) fn open(stays: bool) -> Result<Self> {
        let netlink = Netlink::open().context("cannot open a netlink socket")?;
        Ok(Self { netlink, spare: None, stays, remarks: Vec::new() })
    }

    fn turn(&mut self) -> Turn {
        Turn::wait_with(self.spare.take().or_else(|| turn_socket().ok()))
    }

    /// All of them or, when one fails, none.
    pub(super) fn add(&mut self, hooks: &[Hook<'_>], order: Order) -> Result<Vec<Ours>> {
        let turn = self.turn();
        self.spare = Some(turn_socket().context("cannot make a socket")?);
        let mut ours = Vec::new();
        let outcome = self.add_all(hooks, order, &mut ours);
        if let Err(error) = outcome {
            let problems = self.remove_all(ours);
            drop(turn);
            return Err(problems.into_iter().fold(error, anyhow::Error::context));
        }
        Ok(ours)
    }

    fn add_all(&mut self, hooks: &[Hook<'_>], order: Order, ours: &mut Vec<Ours>) -> Result<()> {
        let mut known: Vec<(i32, Qdisc)> = Vec::new();
        for hook in hooks {
            let index = hook.interface.index;
            let qdisc = match known.iter().find(|(known, _)| *known == index) {
                Some((_, qdisc)) => *qdisc,
                None => {
                    let egress = hooks.iter().any(|hook| {
                        hook.interface.index == index && hook.direction == Direction::Egress
                    });
                    let qdisc = look_at_qdisc(&self.netlink, hook.interface, egress)?;
                    // The first filter makes it.
                    let then = if qdisc == Qdisc::Missing { Qdisc::Marked } else { qdisc };
                    known.push((index, then));
                    qdisc
                }
            };
            let (filter, qdisc, remark) = self.add_filter(hook, order, qdisc)?;
            for (known, of) in &mut known {
                if *known == index {
                    *of = qdisc;
                }
            }
            ours.push(filter);
            self.remarks.extend(remark);
        }
        Ok(())
    }

    /// Adds it, with its qdisc if there is none, and remarks on a place that is not the one that was asked for.
    fn add_filter(
        &self,
        hook: &Hook<'_>,
        order: Order,
        mut qdisc: Qdisc,
    ) -> Result<(Ours, Qdisc, Option<String>)> {
        let interface = hook.interface;
        let place = format!("{} {}", interface.name, hook.direction);
        let program = sys::program_info(hook.program).context("cannot ask for a program's id")?;
        let parent = match hook.direction {
            Direction::Ingress => INGRESS,
            Direction::Egress => EGRESS,
        };
        let called = |marked: bool| {
            let (stays, mark) =
                (if self.stays { STAYS } else { "" }, if marked { MARK } else { "" });
            format!("{}{stays}{mark}", program.name)
        };
        let ours = |key| Ours { key, program: program.id, place: place.clone() };
        // One of its own for each process; a leftover of an earlier one may have it still.
        let first = HANDLES | (std::process::id() << 2 & !HANDLES_MASK);
        let fd = hook.program.as_raw_fd();
        if qdisc == Qdisc::Missing {
            let priority = if order == Order::First { 1 } else { 0xffff };
            let key = FilterKey::new(interface.index, parent, priority, first);
            match self.netlink.add_clsact_with(key, fd, &called(true)) {
                (Ok(()), Ok(())) => return Ok((ours(key), Qdisc::Marked, None)),
                // Somebody was faster. What says that the qdisc is ours must not stay.
                (Err(error), filter) if error.raw_os_error() == Some(libc::EEXIST) => {
                    if filter.is_ok() {
                        self.netlink
                            .remove_filter(key)
                            .with_context(|| format!("cannot take a filter off {place}"))?;
                    }
                    qdisc = look_at_qdisc(&self.netlink, interface, parent == EGRESS)?;
                }
                (Err(error), _) => {
                    return Err(unsupported(format!(
                        "cannot make the qdisc clsact on {}: {error} (CONFIG_NET_SCH_INGRESS)",
                        interface.name
                    )));
                }
                (Ok(()), Err(error)) => {
                    let _ = remove_if_empty(&self.netlink, interface.index);
                    return Err(refused(&place, &error));
                }
            }
        }
        let marked = qdisc == Qdisc::Marked;
        for away in 0..PRIORITIES {
            let priority = match order {
                Order::First => 1 + away,
                Order::Last => 0xffff - away,
            };
            let free = (first..first + 16).find_map(|handle| {
                let key = FilterKey::new(interface.index, parent, priority, handle);
                match self.netlink.add_filter(key, fd, &called(marked)) {
                    Err(error) if error.raw_os_error() == Some(libc::EEXIST) => None,
                    outcome => Some(outcome.map(|()| ours(key))),
                }
            });
            match free {
                Some(Ok(ours)) => {
                    let remark = (away > 0).then(|| remark(&place, order, priority));
                    return Ok((ours, qdisc, remark));
                }
                Some(Err(error))
                    if error.raw_os_error() == Some(libc::EINVAL) && away + 1 < PRIORITIES => {}
                Some(Err(error)) => return Err(refused(&place, &error)),
                None => break,
            }
        }
        Err(anyhow!(
            "cannot add a filter to {place}: the handles from {first:#x} are taken; see `bpftk doctor`"
        ))
    }

    /// Whether it still is where it was put.
    pub(super) fn has(&self, ours: &Ours) -> io::Result<bool> {
        find(&self.netlink, ours).map(|found| found.is_some())
    }

    /// What could not be taken away, and why.
    pub(super) fn remove(&mut self, ours: Vec<Ours>) -> Vec<String> {
        if ours.is_empty() {
            return Vec::new();
        }
        let turn = self.turn();
        let problems = self.remove_all(ours);
        drop(turn);
        // For the next time, if there is one.
        self.spare = turn_socket().ok();
        problems
    }

    fn remove_all(&self, ours: Vec<Ours>) -> Vec<String> {
        let mut problems = Vec::new();
        // Interfaces whose qdisc goes, if it is empty.
        let mut qdiscs: Vec<(i32, String)> = Vec::new();
        for ours in ours {
            match self.remove_one(&ours) {
                Ok(true) => qdiscs.push((ours.key.ifindex, ours.place)),
                Ok(false) => {}
                Err(error) => problems.push(format!(
                    "the filter of {} could not be taken away: {error}; \
                     the next start of bpftk there, or `bpftk doctor --cleanup`, does it",
                    ours.place
                )),
            }
        }
        qdiscs.dedup_by_key(|(ifindex, _)| *ifindex);
        for (ifindex, place) in qdiscs {
            if let Err(error) = remove_if_empty(&self.netlink, ifindex)
                && !is_gone(&error)
            {
                problems.push(format!(
                    "the qdisc clsact of {place} could not be taken away: {error}; it is empty, and does nothing"
                ));
            }
        }
        problems
    }

    /// Only if it still is what we put there. Whether the qdisc may go as well.
    fn remove_one(&self, ours: &Ours) -> io::Result<bool> {
        let outcome = find(&self.netlink, ours).and_then(|found| match found {
            Some(filter) => {
                self.netlink.remove_filter(ours.key)?;
                Ok(is_marked(&filter))
            }
            None => Ok(false),
        });
        match outcome {
            Err(error) if is_gone(&error) => Ok(false),
            outcome => outcome,
        }
    }
}

/// The interface is gone, and everything on it; or just what was to be removed.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}

fn find(netlink: &Netlink, ours: &Ours) -> io::Result<Option<Filter>> {
    let filters = match netlink.filters(ours.key.ifindex, ours.key.parent) {
        // Without its qdisc, old kernels say; and without its interface.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) => {
            return Ok(None);
        }
        filters => filters?,
    };
    Ok(filters.into_iter().find(|filter| filter.key == ours.key && filter.program == ours.program))
}

/// Takes a leftover of bpftk away, and the qdisc with it if a bpftk made it and nothing else is in it. In a turn.
pub(in crate::kernel) fn remove_leftover(netlink: &Netlink, filter: &Filter) -> io::Result<()> {
    netlink.remove_filter(filter.key)?;
    if is_marked(filter) {
        match remove_if_empty(netlink, filter.key.ifindex) {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The qdisc that has the hooks of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qdisc {
    Missing,
    /// Of a bpftk.
    Marked,
    Foreign,
}

/// The qdisc `ingress` takes filters for egress too, and then runs them at ingress.
fn look_at_qdisc(netlink: &Netlink, interface: &Interface, egress: bool) -> Result<Qdisc> {
    let name = &interface.name;
    let there = netlink
        .ingress_qdisc(interface.index)
        .with_context(|| format!("cannot list the qdiscs of {name}"))?;
    match there.as_deref() {
        Some("clsact") => {}
        Some("ingress") if !egress => {}
        Some(other) => {
            return Err(unsupported(format!(
                "{name} has the qdisc `{other}` where clsact would be, which has no egress hook; \
                 it stays: remove it with `tc qdisc del dev {name} ingress` if it isn't needed"
            )));
        }
        None => return Ok(Qdisc::Missing),
    }
    for parent in [INGRESS, EGRESS] {
        let filters = netlink
            .filters(interface.index, parent)
            .with_context(|| format!("cannot list the filters of {name}"))?;
        if filters.iter().any(is_marked) {
            return Ok(Qdisc::Marked);
        }
    }
    Ok(Qdisc::Foreign)
}

fn remove_if_empty(netlink: &Netlink, ifindex: i32) -> io::Result<()> {
    for parent in [INGRESS, EGRESS] {
        if netlink.has_filters(ifindex, parent)? {
            return Ok(());
        }
    }
    netlink.remove_clsact(ifindex)
}

/// A priority is for filters of one kind and one protocol: where it is somebody else's, another one has to do.
const PRIORITIES: u16 = 16;

fn refused(place: &str, error: &io::Error) -> anyhow::Error {
    let message = format!("cannot add a filter to {place}: {error}");
    // No cls_bpf in this kernel is ENOENT.
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP) => {
            unsupported(format!("{message} (CONFIG_NET_CLS_BPF)"))
        }
        _ => anyhow!(message),
    }
}

fn remark(place: &str, order: Order, priority: u16) -> String {
    match order {
        Order::First => format!(
            "{place}: filters of another kind have the first priorities, ours has {priority}: \
             packets that they let pass for good, or drop, it does not see"
        ),
        Order::Last => format!(
            "{place}: filters of another kind have the last priorities, ours has {priority}: \
             what they do with packets comes after it"
        ),
    }
}
