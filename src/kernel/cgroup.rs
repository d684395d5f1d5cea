// SPDX-License-Identifier: MIT OR Apache-2.0

//! cgroup v2: where it is mounted, and cgroups by path and by id.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::mounts::Mount;
use super::sys;
use crate::error::{not_permitted, unsupported, usage};

/// Where cgroup v2 is mounted, whole.
pub(crate) fn mount_point() -> Option<PathBuf> {
    Mount::of_this_process()
        .into_iter()
        .find(|mount| mount.fstype == "cgroup2" && mount.root == Path::new("/"))
        .map(|mount| mount.point)
}

/// Opens the cgroup that an option names; anything that isn't a cgroup v2 directory is wrong usage.
pub(crate) fn open(path: &Path) -> Result<File> {
    let place = match mount_point() {
        Some(mount) => format!("cgroup v2 is mounted at {}", mount.display()),
        None => "cgroup v2 is not mounted here (mount -t cgroup2 none /sys/fs/cgroup)".to_string(),
    };
    let file = File::open(path)
        .map_err(|error| usage(format!("--cgroup {}: {error}; {place}", path.display())))?;
    let is_dir = file.metadata().is_ok_and(|meta| meta.is_dir());
    let is_v2 = fstatfs(&file).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if is_dir && is_v2 {
        return Ok(file);
    }
    Err(usage(format!("--cgroup {}: not a cgroup v2 directory; {place}", path.display())))
}

/// A cgroup that may be removed while it is watched: the kernel tells nobody.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    dir: File,
}

impl Watched {
    /// `dir` is what `path` was opened as.
    pub(crate) fn new(path: &Path, dir: &File) -> Result<Self> {
        Ok(Self { path: path.into(), dir: dir.try_clone().context("cannot keep a cgroup open")? })
    }

    /// Whether it is gone, even if there is another one of its name by now.
    pub(crate) fn is_removed(&self) -> bool {
        openat(&self.dir, "cgroup.procs", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .is_err_and(|error| matches!(error, Errno::ENOENT | Errno::ENODEV))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The cgroup that all others are below: where it is mounted, or a mount of our own that nobody else sees.
///
/// Every kernel with cgroups has the hierarchy of version 2, and every process a place in it, mounted or not.
#[derive(Debug)]
pub(crate) struct Root {
    dir: File,
    /// Where paths begin.
    point: PathBuf,
    /// Keeps the private mount.
    _mount: Option<OwnedFd>,
}

impl Root {
    pub(crate) fn open() -> Result<Self> {
        if let Some(point) = mount_point() {
            let dir = File::open(&point)
                .with_context(|| format!("cannot open cgroup v2 at {}", point.display()))?;
            return Ok(Self { dir, point, _mount: None });
        }
        let mount = sys::private_mount(c"cgroup2").map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => not_permitted(
                "cgroup v2 is not mounted, and mounting it needs CAP_SYS_ADMIN; \
                 `mount -t cgroup2 none /sys/fs/cgroup` as root",
            ),
            Some(libc::ENODEV) => unsupported("this kernel has no cgroup v2 (CONFIG_CGROUPS)"),
            _ => anyhow!("cannot mount cgroup v2 privately: {error}"),
        })?;
        // A mount's own descriptor is only a place; cgroups are opened by their ids below an open directory.
        let dir = File::open(format!("/proc/self/fd/{}", mount.as_raw_fd()))
            .context("cannot open a private mount of cgroup v2")?;
        Ok(Self { dir, point: "/".into(), _mount: Some(mount) })
    }

    /// The directory. It needs no mount to be attached to.
    pub(crate) fn into_dir(self) -> File {
        self.dir
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Paths of cgroups by id, from the root of cgroup v2. An id is never used twice.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    root: Option<Root>,
    known: HashMap<u64, Option<String>>,
}

impl Paths {
    pub(crate) fn new() -> Self {
        Self { root: Root::open().ok(), known: HashMap::new() }
    }

    pub(crate) fn below(root: Root) -> Self {
        Self { root: Some(root), known: HashMap::new() }
    }

    /// The path, or `None` when the cgroup is gone or can't be looked up.
    pub(crate) fn get(&mut self, id: u64) -> Option<String> {
        // Many short-lived cgroups must not fill the memory.
        if self.known.len() > 10_000 {
            self.known.clear();
        }
        let root = &self.root;
        self.known
            .entry(id)
            .or_insert_with(|| {
                let root = root.as_ref()?;
                let cgroup = sys::open_cgroup(root.as_fd(), id).ok()?;
                let path = fs::read_link(format!("/proc/self/fd/{}", cgroup.as_raw_fd())).ok()?;
                let below = path.strip_prefix(&root.point).ok()?;
                Some(format!("/{}", below.display()))
            })
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cgroup_is_refused() {
        for bad in ["/tmp", "/proc/self/status", "/no/such/dir"] {
            let text = format!("{:#}", open(Path::new(bad)).unwrap_err());
            assert!(text.contains(bad) && text.contains("cgroup v2"), "{text}");
        }
    }
}
