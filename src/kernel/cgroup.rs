// SPDX-License-Identifier: MIT OR Apache-2.0

//! cgroup v2: where it is mounted, and cgroups by path and by id.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::mounts::Mount;
use super::sys;
use crate::error::usage;

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

/// Paths of cgroups by id, from the root of cgroup v2. An id is never used twice.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    mount: Option<(PathBuf, File)>,
    known: HashMap<u64, Option<String>>,
}

impl Paths {
    pub(crate) fn new() -> Self {
        let mount = mount_point().and_then(|path| {
            let file = File::open(&path).ok()?;
            Some((path, file))
        });
        Self { mount, known: HashMap::new() }
    }

    /// The path, or `None` when the cgroup is gone or can't be looked up.
    pub(crate) fn get(&mut self, id: u64) -> Option<String> {
        // Many short-lived cgroups must not fill the memory.
        if self.known.len() > 10_000 {
            self.known.clear();
        }
        let mount = &self.mount;
        self.known
            .entry(id)
            .or_insert_with(|| {
                let (point, file) = mount.as_ref()?;
                let cgroup = sys::open_cgroup(file.as_fd(), id).ok()?;
                let path = fs::read_link(format!("/proc/self/fd/{}", cgroup.as_raw_fd())).ok()?;
                let below = path.strip_prefix(point).ok()?;
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
