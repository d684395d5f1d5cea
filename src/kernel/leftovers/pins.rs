// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pins of programs and links, in every bpffs that some process has mounted.

use std::collections::HashSet;
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libbpf_rs::query::{LinkInfo, LinkTypeInfo};

use super::must_be_there;
use super::owners::Owners;
use crate::kernel::mounts::Mount;
use crate::kernel::sys;

#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    link: Option<Link>,
}

/// Where a pinned link attaches.
#[derive(Clone, Copy, Debug)]
enum Link {
    Interface(i32),
    Cgroup,
    Other,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.link {
            Some(_) => "link pinned at",
            None => "pin",
        };
        write!(f, "{what} {}", self.path.display())
    }
}

impl Place {
    pub(super) fn is_link_at(&self, index: i32) -> bool {
        matches!(self.link, Some(Link::Interface(ifindex)) if ifindex == index)
    }

    pub(super) fn is_link_to_cgroup(&self) -> bool {
        matches!(self.link, Some(Link::Cgroup))
    }

    pub(super) fn remove(&self, id: u32) -> Result<()> {
        let there = open(&self.path).and_then(|fd| program(&fd)).map(|(id, _)| id);
        must_be_there(there == Some(id))?;
        fs::remove_file(&self.path)
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

pub(super) fn find(owners: &Owners, is_ours: &dyn Fn(u32) -> bool) -> Vec<(u32, Place)> {
    let mut seen = HashSet::new();
    let mut pins = Pins::default();
    let own = Mount::of_this_process().into_iter().map(|mount| (mount, PathBuf::from("/")));
    let others = owners.mounters.values().flat_map(|task| {
        let root = task.join("root");
        Mount::of_task(task).into_iter().map(move |mount| (mount, root.clone()))
    });
    for (mount, root) in own.chain(others) {
        // One file system may be mounted at many places, and in parts.
        if mount.fstype == "bpf" && seen.insert((mount.device, mount.root)) {
            let point = mount.point.strip_prefix("/").unwrap_or(&mount.point);
            pins.walk(&root.join(point), is_ours);
        }
    }
    pins.found
}

#[derive(Debug, Default)]
struct Pins {
    found: Vec<(u32, Place)>,
    /// Device and inode numbers: a pin may be reached by several ways.
    seen: HashSet<(u64, u64)>,
}

impl Pins {
    fn walk(&mut self, directory: &Path, is_ours: &dyn Fn(u32) -> bool) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                self.walk(&path, is_ours);
            } else if meta.is_file()
                && let Some((id, link)) = open(&path).and_then(|fd| program(&fd))
                && is_ours(id)
                && self.seen.insert((meta.dev(), meta.ino()))
            {
                self.found.push((id, Place { path, link }));
            }
        }
    }
}

fn open(path: &Path) -> Option<OwnedFd> {
    sys::pinned(&CString::new(path.as_os_str().as_bytes()).ok()?).ok()
}

/// The program that is pinned, itself or in a link.
fn program(pinned: &OwnedFd) -> Option<(u32, Option<Link>)> {
    use std::os::fd::AsRawFd;
    let kind = fs::read_link(format!("/proc/self/fd/{}", pinned.as_raw_fd())).ok()?;
    let kind = kind.to_str()?;
    if kind.contains("bpf-prog") {
        return Some((sys::program_info(pinned.as_fd()).ok()?.id, None));
    }
    if !kind.contains("bpf_link") && !kind.contains("bpf-link") {
        return None;
    }
    let info = LinkInfo::from_fd(pinned.as_fd()).ok()?;
    let link = match info.info {
        LinkTypeInfo::Xdp(xdp) => Link::Interface(xdp.ifindex as i32),
        LinkTypeInfo::Tcx(tcx) => Link::Interface(tcx.ifindex as i32),
        LinkTypeInfo::Cgroup(_) => Link::Cgroup,
        _ => Link::Other,
    };
    Some((info.prog_id, Some(link)))
}
