// SPDX-License-Identifier: MIT OR Apache-2.0

//! cgroups that live as long as a test.

use std::fs;
use std::path::{Path, PathBuf};

/// A cgroup v2 of a test's own.
#[derive(Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// A new cgroup below the root. `None` where cgroup v2 is not mounted.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let path = Path::new(line.split(' ').nth(4)?).join(name);
        fs::create_dir_all(&path).ok()?;
        Some(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
