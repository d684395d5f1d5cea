// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs at tc's hooks: by tcx link where the kernel has that (Linux 6.6), else as a filter of the clsact qdisc.
//!
//! A link goes with its process. A filter stays (clsact.rs): its program must be harmless without a heartbeat
//! (kernel/lifetime.rs), and `doctor` finds it.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use libbpf_rs::libbpf_sys;

use super::clsact::Filters;
use crate::error::unsupported;
use crate::filter::ebpf::translate::Hook as FilterHook;
use crate::kernel::netlink::Interface;
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

/// Programs at tc's hooks, for as long as this lives.
#[derive(Debug, Default)]
pub(crate) struct TcAttached {
    _links: Vec<OwnedFd>,
    filters: Option<Filters>,
}

impl TcAttached {
    /// What users have to be told of where the programs are.
    pub(crate) fn take_remarks(&mut self) -> Vec<String> {
        self.filters
            .as_mut()
            .map(|filters| std::mem::take(&mut filters.remarks))
            .unwrap_or_default()
    }
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
            let filters = Filters::add(hooks, order)?;
            Ok(TcAttached { filters: Some(filters), ..TcAttached::default() })
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
