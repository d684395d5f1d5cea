// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs at tc's hooks: by tcx link where the kernel has that (Linux 6.6), else as a filter of the clsact qdisc.
//!
//! A link goes with its process. A filter stays (clsact.rs): its program must be harmless without a heartbeat
//! (kernel/lifetime.rs), and `doctor` finds it.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use libbpf_rs::libbpf_sys;

use super::clsact::{self, Clsact};
use crate::error::unsupported;
use crate::filter::ebpf::translate::Hook as FilterHook;
use crate::kernel::netlink::Interface;
use crate::kernel::{log, sys};

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

impl From<Direction> for FilterHook {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::TcIngress,
            Direction::Egress => Self::TcEgress,
        }
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

/// Programs at tc's hooks, for as long as this lives. Each has a place, in the order in which they were attached.
#[derive(Debug)]
pub(crate) struct TcAttached {
    places: Vec<Option<Attached>>,
    clsact: Option<Clsact>,
    order: Order,
}

#[derive(Debug)]
enum Attached {
    Link(OwnedFd),
    Filter(clsact::Ours),
}

impl TcAttached {
    /// What users have to be told of where the programs are.
    pub(crate) fn take_remarks(&mut self) -> Vec<String> {
        self.clsact.as_mut().map(|clsact| std::mem::take(&mut clsact.remarks)).unwrap_or_default()
    }

    /// Places where nothing of ours is any more, though nobody here has taken it away. An interface that has moved to
    /// another network namespace has none of our filters: qdiscs don't go with it.
    pub(crate) fn lost(&self) -> Result<Vec<usize>> {
        let mut lost = Vec::new();
        for (at, attached) in self.places.iter().enumerate() {
            let there = match attached {
                None => true,
                Some(Attached::Link(link)) => sys::net::link_is_attached(link.as_fd())
                    .context("cannot ask for what is attached")?,
                Some(Attached::Filter(ours)) => match &self.clsact {
                    Some(clsact) => clsact.has(ours).context("cannot list the filters")?,
                    None => false,
                },
            };
            if !there {
                lost.push(at);
            }
        }
        Ok(lost)
    }

    /// Takes away what is at a place: by its link wherever the interface may be now.
    pub(crate) fn detach(&mut self, at: usize) {
        let Some(attached) = self.places.get_mut(at).and_then(Option::take) else { return };
        self.remove(vec![attached]);
    }

    /// Attaches anew where something was attached before.
    pub(crate) fn attach_again(&mut self, at: usize, hook: Hook<'_>) -> Result<()> {
        self.detach(at);
        let attached = match &mut self.clsact {
            None => Attached::Link(link(&hook, self.order)?),
            Some(clsact) => Attached::Filter(clsact.add(&[hook], self.order)?.swap_remove(0)),
        };
        self.places[at] = Some(attached);
        Ok(())
    }

    /// What can't be taken away is told here: the end of a run has nobody to return it to.
    fn remove(&mut self, attached: Vec<Attached>) {
        let filters: Vec<_> = attached
            .into_iter()
            .filter_map(|attached| match attached {
                Attached::Filter(ours) => Some(ours),
                // Closing it is all.
                Attached::Link(_) => None,
            })
            .collect();
        let problems = self.clsact.as_mut().map(|clsact| clsact.remove(filters));
        problems.into_iter().flatten().for_each(|problem| log::tell(&problem));
    }
}

impl Drop for TcAttached {
    fn drop(&mut self) {
        let attached = self.places.drain(..).flatten().collect();
        self.remove(attached);
    }
}

/// Attaches to all hooks or, when one fails, to none. A filter that `stays` is meant to go on when this process is gone.
pub(crate) fn attach_all(
    backend: TcBackend,
    hooks: &[Hook<'_>],
    order: Order,
    stays: bool,
) -> Result<TcAttached> {
    match backend {
        TcBackend::Tcx => {
            knows_tcx().map_err(unsupported)?;
            let links = hooks
                .iter()
                .map(|hook| link(hook, order).map(|link| Some(Attached::Link(link))))
                .collect::<Result<_>>()?;
            Ok(TcAttached { places: links, clsact: None, order })
        }
        TcBackend::Clsact => {
            let mut clsact = Clsact::open(stays)?;
            let filters = clsact.add(hooks, order)?;
            let places = filters.into_iter().map(|ours| Some(Attached::Filter(ours))).collect();
            Ok(TcAttached { places, clsact: Some(clsact), order })
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
