// SPDX-License-Identifier: MIT OR Apache-2.0

//! Filters of the clsact qdisc, for kernels without tcx links.
//!
//! Nothing stays behind, and nothing of others goes: the last bpftk on an interface removes the qdisc, if a bpftk made it. The
//! kernel doesn't keep who made a qdisc, and the process that did may end before another that uses it. So it is said in the
//! names of our filters: the maker's have a mark, and so have those of every bpftk that comes while there are some with it.
//! Removing the qdisc removes all filters, so whoever finds its own marked filter there knows that it still is that qdisc.

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

fn is_marked(filter: &Filter) -> bool {
    filter.name.starts_with("bpftk_") && filter.name.ends_with(MARK)
}

/// One bpftk at a time looks at qdiscs and then changes them; in a network namespace, which an abstract address belongs to.
/// The kernel ends it with the process.
#[derive(Debug)]
struct Turn {
    _socket: Option<OwnedFd>,
}

impl Turn {
    /// Much longer than anybody needs; nobody can keep us from cleaning up by holding the address for good.
    const PATIENCE: Duration = Duration::from_secs(2);

    fn wait() -> Self {
        let take = || -> nix::Result<OwnedFd> {
            let kind = SockType::Datagram;
            let own = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
            bind(own.as_raw_fd(), &UnixAddr::new_abstract(b"bpftk-clsact")?)?;
            Ok(own)
        };
        let begin = Instant::now();
        loop {
            match take() {
                Ok(socket) => return Self { _socket: Some(socket) },
                Err(nix::Error::EADDRINUSE) if begin.elapsed() < Self::PATIENCE => {
                    thread::sleep(Duration::from_millis(2));
                }
                // Without a turn there is only the risk that two of us act at the very same time.
                Err(_) => return Self { _socket: None },
            }
        }
    }
}

/// Filters that run our programs, for as long as this lives.
#[derive(Debug, Default)]
pub(super) struct Filters {
    ours: Vec<Ours>,
    /// Qdiscs that are made, but have no filter of ours yet.
    made: Vec<i32>,
    /// Where a filter is not where it was meant to be.
    pub(super) remarks: Vec<String>,
}

#[derive(Debug)]
struct Ours {
    key: FilterKey,
    program: u32,
}

impl Filters {
    /// All of them or, when one fails, none.
    pub(super) fn add(hooks: &[Hook<'_>], order: Order) -> Result<Self> {
        let turn = Turn::wait();
        let netlink = Netlink::open().context("cannot open a netlink socket")?;
        let mut filters = Self::default();
        match filters.add_all(&netlink, hooks, order) {
            Ok(()) => {
                filters.made.clear();
                Ok(filters)
            }
            Err(error) => {
                filters.remove(&netlink);
                drop(turn);
                Err(error)
            }
        }
    }

    fn add_all(&mut self, netlink: &Netlink, hooks: &[Hook<'_>], order: Order) -> Result<()> {
        let mut known: Vec<(i32, bool)> = Vec::new();
        for hook in hooks {
            let index = hook.interface.index;
            let marked = match known.iter().find(|(known, _)| *known == index) {
                Some((_, marked)) => *marked,
                None => {
                    let egress = hooks.iter().any(|hook| {
                        hook.interface.index == index && hook.direction == Direction::Egress
                    });
                    let made = make_qdisc(netlink, hook.interface, egress)?;
                    if made {
                        self.made.push(index);
                    }
                    let marked = made || has_marked(netlink, hook.interface)?;
                    known.push((index, marked));
                    marked
                }
            };
            let (ours, remark) = add_filter(netlink, hook, order, marked)?;
            self.ours.push(ours);
            self.remarks.extend(remark);
        }
        Ok(())
    }

    /// Errors are of no use here: the interface may be gone, and everything on it.
    fn remove(&mut self, netlink: &Netlink) {
        // Interfaces whose qdisc goes, if it is empty.
        let mut qdiscs = std::mem::take(&mut self.made);
        for Ours { key, program } in self.ours.drain(..) {
            // Only if it still is what we put there.
            let found = netlink
                .filters(key.ifindex, key.parent)
                .unwrap_or_default()
                .into_iter()
                .find(|filter| filter.key == key && filter.program == program);
            if let Some(filter) = found
                && netlink.remove_filter(key).is_ok()
                && is_marked(&filter)
            {
                qdiscs.push(key.ifindex);
            }
        }
        qdiscs.sort_unstable();
        qdiscs.dedup();
        for ifindex in qdiscs {
            let _ = remove_if_empty(netlink, ifindex);
        }
    }
}

impl Drop for Filters {
    fn drop(&mut self) {
        if self.ours.is_empty() && self.made.is_empty() {
            return;
        }
        let _turn = Turn::wait();
        if let Ok(netlink) = Netlink::open() {
            self.remove(&netlink);
        }
    }
}

/// Takes a leftover of bpftk away, and the qdisc with it if a bpftk made it and nothing else is in it.
pub(in crate::kernel) fn remove_leftover(netlink: &Netlink, filter: &Filter) -> io::Result<()> {
    let _turn = Turn::wait();
    netlink.remove_filter(filter.key)?;
    if is_marked(filter) {
        // The filter is what was asked for.
        let _ = remove_if_empty(netlink, filter.key.ifindex);
    }
    Ok(())
}

/// Makes sure of a qdisc, and tells whether it had to be made. The qdisc `ingress` takes filters for egress too, and then runs
/// them at ingress.
fn make_qdisc(netlink: &Netlink, interface: &Interface, egress: bool) -> Result<bool> {
    let name = &interface.name;
    let there = netlink
        .ingress_qdisc(interface.index)
        .with_context(|| format!("cannot list the qdiscs of {name}"))?;
    match there.as_deref() {
        Some("clsact") => Ok(false),
        Some("ingress") if !egress => Ok(false),
        Some(other) => Err(unsupported(format!(
            "{name} has the qdisc `{other}` where clsact would be, which has no egress hook; \
             it stays: remove it with `tc qdisc del dev {name} ingress` if it isn't needed"
        ))),
        None => match netlink.add_clsact(interface.index) {
            Ok(()) => Ok(true),
            // Somebody was faster.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(unsupported(format!(
                "cannot make the qdisc clsact on {name}: {error} (CONFIG_NET_SCH_INGRESS)"
            ))),
        },
    }
}

fn has_marked(netlink: &Netlink, interface: &Interface) -> Result<bool> {
    for parent in [INGRESS, EGRESS] {
        let filters = netlink
            .filters(interface.index, parent)
            .with_context(|| format!("cannot list the filters of {}", interface.name))?;
        if filters.iter().any(is_marked) {
            return Ok(true);
        }
    }
    Ok(false)
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

/// Adds it, and remarks on a place that is not the one that was asked for.
fn add_filter(
    netlink: &Netlink,
    hook: &Hook<'_>,
    order: Order,
    marked: bool,
) -> Result<(Ours, Option<String>)> {
    let place = format!("{} {}", hook.interface.name, hook.direction);
    let program = sys::program_info(hook.program).context("cannot ask for a program's id")?;
    let parent = match hook.direction {
        Direction::Ingress => INGRESS,
        Direction::Egress => EGRESS,
    };
    let called = format!("{}{}", program.name, if marked { MARK } else { "" });
    // One of its own for each process; a leftover of an earlier one may have it still.
    let first = 0xb000_0000 | std::process::id() << 2;
    for away in 0..PRIORITIES {
        let priority = match order {
            Order::First => 1 + away,
            Order::Last => 0xffff - away,
        };
        let free = (first..first + 16).find_map(|handle| {
            let key = FilterKey::new(hook.interface.index, parent, priority, handle);
            match netlink.add_filter(key, hook.program.as_raw_fd(), &called) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => None,
                outcome => Some(outcome.map(|()| Ours { key, program: program.id })),
            }
        });
        match free {
            Some(Ok(ours)) => {
                let remark = (away > 0).then(|| remark(&place, order, priority));
                return Ok((ours, remark));
            }
            Some(Err(error))
                if error.raw_os_error() == Some(libc::EINVAL) && away + 1 < PRIORITIES => {}
            Some(Err(error)) => {
                let message = format!("cannot add a filter to {place}: {error}");
                // No cls_bpf in this kernel is ENOENT.
                return Err(match error.raw_os_error() {
                    Some(libc::ENOENT | libc::EOPNOTSUPP) => {
                        unsupported(format!("{message} (CONFIG_NET_CLS_BPF)"))
                    }
                    _ => anyhow!(message),
                });
            }
            None => break,
        }
    }
    Err(anyhow!(
        "cannot add a filter to {place}: the handles from {first:#x} are taken; see `bpftk doctor`"
    ))
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
