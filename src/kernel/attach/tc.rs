// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs at tc's hooks: by tcx link where the kernel has that (Linux 6.6), else as a filter of the clsact qdisc.
//!
//! A link goes with its process. A filter stays: its program must be harmless without a heartbeat (kernel/lifetime.rs), and
//! `doctor` finds it.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use libbpf_rs::libbpf_sys;

use crate::error::unsupported;
use crate::kernel::netlink::{EGRESS, FilterKey, INGRESS, Interface, Netlink};
use crate::kernel::sys;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TcBackend {
    /// Links, which end with the process
    Tcx,
    /// Filters of the clsact qdisc, under a heartbeat
    Clsact,
}

impl TcBackend {
    pub(crate) const ORDER: [Self; 2] = [Self::Tcx, Self::Clsact];
}

impl fmt::Display for TcBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Where among the programs of others. A program that lets a packet pass for good hides it from those behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    First,
    Last,
}

/// A program to attach, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook<'a> {
    pub(crate) program: BorrowedFd<'a>,
    pub(crate) interface: &'a Interface,
    pub(crate) direction: Direction,
}

/// Programs at tc's hooks, for as long as this lives.
#[derive(Debug, Default)]
pub(crate) struct TcAttached {
    _links: Vec<OwnedFd>,
    /// Dropped before the qdiscs that hold them.
    _filters: Vec<Filter>,
    _qdiscs: Vec<Qdisc>,
}

/// Attaches to all hooks or, when one fails, to none.
pub(crate) fn attach_all(
    backend: TcBackend,
    hooks: &[Hook<'_>],
    order: Order,
) -> Result<TcAttached> {
    match backend {
        TcBackend::Tcx => {
            knows_tcx().map_err(unsupported)?;
            let links = hooks.iter().map(|hook| link(hook, order)).collect::<Result<_>>()?;
            Ok(TcAttached { _links: links, ..TcAttached::default() })
        }
        TcBackend::Clsact => {
            let mut attached = TcAttached::default();
            for hook in hooks {
                let index = hook.interface.index;
                if !attached._qdiscs.iter().any(|qdisc| qdisc.ifindex == index) {
                    let egress = hooks.iter().any(|hook| {
                        hook.interface.index == index && hook.direction == Direction::Egress
                    });
                    attached._qdiscs.push(Qdisc::ensure(hook.interface, egress)?);
                }
                attached._filters.push(Filter::add(hook, order)?);
            }
            Ok(attached)
        }
    }
}

/// Whether the kernel answers to what is attached by tcx. Every network namespace has an interface 1, its loopback.
fn knows_tcx() -> Result<(), String> {
    sys::attached_without_link(1, libbpf_sys::BPF_TCX_INGRESS).map(drop).map_err(|error| {
        format!("this kernel has no tcx links, which came with Linux 6.6 ({error})")
    })
}

fn link(hook: &Hook<'_>, order: Order) -> Result<OwnedFd> {
    let kind = match hook.direction {
        Direction::Ingress => libbpf_sys::BPF_TCX_INGRESS,
        Direction::Egress => libbpf_sys::BPF_TCX_EGRESS,
    };
    // Without a program that it relates to: before, or behind, all that are there.
    let flags = match order {
        Order::First => libbpf_sys::BPF_F_BEFORE,
        Order::Last => libbpf_sys::BPF_F_AFTER,
    };
    sys::net::link_to_interface(hook.program, hook.interface.index, kind, flags).map_err(|error| {
        anyhow!("cannot attach to {} {} by tcx: {error}", hook.interface.name, hook.direction)
    })
}

/// A clsact or ingress qdisc. One that we made is removed, if nobody else has put a filter into it.
#[derive(Debug)]
struct Qdisc {
    ifindex: i32,
    ours: bool,
}

impl Qdisc {
    /// The qdisc `ingress` takes filters for egress too, and then runs them at ingress.
    fn ensure(interface: &Interface, egress: bool) -> Result<Self> {
        let name = &interface.name;
        let netlink = Netlink::open().context("cannot open a netlink socket")?;
        let there = netlink
            .ingress_qdisc(interface.index)
            .with_context(|| format!("cannot list the qdiscs of {name}"))?;
        let ours = match there.as_deref() {
            Some("clsact") => false,
            Some("ingress") if !egress => false,
            Some(other) => {
                return Err(unsupported(format!(
                    "{name} has the qdisc `{other}` where clsact would be, which has no egress hook; \
                     it stays: remove it with `tc qdisc del dev {name} ingress` if it isn't needed"
                )));
            }
            None => match netlink.add_clsact(interface.index) {
                Ok(()) => true,
                // Somebody was faster.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => false,
                Err(error) => {
                    return Err(unsupported(format!(
                        "cannot make the qdisc clsact on {name}: {error} (CONFIG_NET_SCH_INGRESS)"
                    )));
                }
            },
        };
        Ok(Self { ifindex: interface.index, ours })
    }

    fn remove_if_empty(&self) -> io::Result<()> {
        let netlink = Netlink::open()?;
        for parent in [INGRESS, EGRESS] {
            if netlink.has_filters(self.ifindex, parent)? {
                return Ok(());
            }
        }
        netlink.remove_clsact(self.ifindex)
    }
}

impl Drop for Qdisc {
    fn drop(&mut self) {
        if self.ours {
            // The interface may be gone, and the qdisc with it.
            let _ = self.remove_if_empty();
        }
    }
}

/// A filter that runs a program of ours.
#[derive(Debug)]
struct Filter {
    key: FilterKey,
    program: u32,
}

impl Filter {
    fn add(hook: &Hook<'_>, order: Order) -> Result<Self> {
        let Interface { index, name, .. } = hook.interface;
        let direction = hook.direction;
        let program = sys::program_info(hook.program).context("cannot ask for a program's id")?;
        let netlink = Netlink::open().context("cannot open a netlink socket")?;
        let parent = match direction {
            Direction::Ingress => INGRESS,
            Direction::Egress => EGRESS,
        };
        let priority = match order {
            Order::First => 1,
            Order::Last => 0xffff,
        };
        // One of its own for each process; a leftover of an earlier one may have it still.
        let first = 0xb000_0000 | std::process::id() << 2;
        for handle in first..first + 16 {
            let key = FilterKey::new(*index, parent, priority, handle);
            match netlink.add_filter(key, hook.program.as_raw_fd(), &program.name) {
                Ok(()) => return Ok(Self { key, program: program.id }),
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => {
                    let message = format!("cannot add a filter to {name} {direction}: {error}");
                    // No cls_bpf in this kernel is ENOENT.
                    return Err(match error.raw_os_error() {
                        Some(libc::ENOENT | libc::EOPNOTSUPP) => {
                            unsupported(format!("{message} (CONFIG_NET_CLS_BPF)"))
                        }
                        _ => anyhow!(message),
                    });
                }
            }
        }
        Err(anyhow!(
            "cannot add a filter to {name} {direction}: the handles from {first:#x} are taken; see `bpftk doctor`"
        ))
    }

    /// Only if it still is what we put there.
    fn remove(&self) -> io::Result<()> {
        let netlink = Netlink::open()?;
        let ours = netlink
            .filters(self.key.ifindex, self.key.parent)?
            .iter()
            .any(|filter| filter.key == self.key && filter.program == self.program);
        if ours { netlink.remove_filter(self.key) } else { Ok(()) }
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // The interface may be gone, and the filter with it.
        let _ = self.remove();
    }
}
