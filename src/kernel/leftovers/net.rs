// SPDX-License-Identifier: MIT OR Apache-2.0

//! Interfaces that hold programs, in every network namespace that can be reached: tc filters, XDP without a link, tcx
//! without a link.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys;

use super::owners::{Owners, open_namespace};
use super::{Hook, must_be_there};
use crate::kernel::attach::clsact;
use crate::kernel::netlink::{EGRESS, FilterKey, INGRESS, Netlink};
use crate::kernel::{netns, sys};

#[derive(Debug)]
pub(super) struct Place {
    namespace: Arc<File>,
    /// How to call the namespace; nothing for our own.
    elsewhere: Option<PathBuf>,
    interface: String,
    ifindex: i32,
    hold: Hold,
}

#[derive(Clone, Copy, Debug)]
enum Hold {
    Filter(FilterKey),
    /// XDP_FLAGS_*_MODE
    Xdp(u32),
    Tcx(Hook),
}

const TCX: [Hook; 2] = [
    Hook { kind: libbpf_sys::BPF_TCX_INGRESS, name: "ingress" },
    Hook { kind: libbpf_sys::BPF_TCX_EGRESS, name: "egress" },
];

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interface = &self.interface;
        match self.hold {
            Hold::Filter(key) => {
                let direction = if key.parent == EGRESS { "egress" } else { "ingress" };
                write!(
                    f,
                    "tc {direction} {interface} handle {:#x} priority {}",
                    key.handle,
                    key.priority()
                )?;
            }
            Hold::Xdp(mode) => {
                let mode = match mode {
                    2 => "generic",
                    4 => "native",
                    _ => "offloaded",
                };
                write!(f, "xdp ({mode}) {interface}")?;
            }
            Hold::Tcx(hook) => write!(f, "tcx {hook} {interface}")?,
        }
        match &self.elsewhere {
            Some(path) => write!(f, " in {}", path.display()),
            None => Ok(()),
        }
    }
}

impl Place {
    pub(super) fn ifindex(&self) -> i32 {
        self.ifindex
    }

    pub(super) fn remove(&self, id: u32) -> Result<()> {
        netns::within(&self.namespace, || self.remove_here(id))
            .context("cannot enter the network namespace")?
    }

    /// In the place's namespace.
    fn remove_here(&self, id: u32) -> Result<()> {
        match self.hold {
            Hold::Filter(key) => {
                let netlink = Netlink::open().context("cannot open a netlink socket")?;
                let there = netlink
                    .filters(self.ifindex, key.parent)
                    .context("cannot list the filters")?
                    .into_iter()
                    .find(|filter| filter.key == key && filter.program == id);
                must_be_there(there.is_some())?;
                there.map_or(Ok(()), |filter| {
                    let _turn = clsact::Turn::wait();
                    clsact::remove_leftover(&netlink, &filter)
                        .context("the kernel refuses to remove the filter")
                })
            }
            Hold::Xdp(mode) => {
                let program = sys::program_by_id(id).context("it is not there any more")?;
                sys::xdp_detach(program.as_fd(), self.ifindex, mode)
                    .context("the kernel refuses to take it off the interface")
            }
            Hold::Tcx(hook) => {
                let program = sys::program_by_id(id).context("it is not there any more")?;
                sys::detach(program.as_fd(), self.ifindex, hook.kind)
                    .context("the kernel refuses to take it off the interface")
            }
        }
    }
}

pub(super) fn find(owners: &Owners, is_ours: &(dyn Fn(u32) -> bool + Sync)) -> Vec<(u32, Place)> {
    let own = File::open("/proc/self/ns/net")
        .and_then(|file| file.metadata())
        .map_or(0, |meta| meta.ino());
    let mut found = Vec::new();
    for (&inode, path) in &owners.namespaces {
        // A namespace that ended meanwhile holds nothing.
        let Some(file) = open_namespace(path, inode).map(Arc::new) else {
            continue;
        };
        let Ok(holds) = netns::within(&file, || in_this_namespace(is_ours)) else {
            continue;
        };
        for (id, interface, ifindex, hold) in holds {
            let place = Place {
                namespace: Arc::clone(&file),
                elsewhere: (inode != own).then(|| path.clone()),
                interface,
                ifindex,
                hold,
            };
            found.push((id, place));
        }
    }
    found
}

fn in_this_namespace(is_ours: &dyn Fn(u32) -> bool) -> Vec<(u32, String, i32, Hold)> {
    let mut found = Vec::new();
    let Ok(netlink) = Netlink::open() else {
        return found;
    };
    for interface in netlink.interfaces().unwrap_or_default() {
        let mut add = |id: u32, hold: Hold| {
            if is_ours(id) {
                found.push((id, interface.name.clone(), interface.index, hold));
            }
        };
        for &(mode, id) in &interface.xdp {
            add(id, Hold::Xdp(mode));
        }
        for parent in [INGRESS, EGRESS] {
            for filter in netlink.filters(interface.index, parent).unwrap_or_default() {
                add(filter.program, Hold::Filter(filter.key));
            }
        }
        for hook in TCX {
            // A kernel without tcx refuses the question.
            for id in sys::attached_without_link(interface.index, hook.kind).unwrap_or_default() {
                add(id, Hold::Tcx(hook));
            }
        }
    }
    found
}
