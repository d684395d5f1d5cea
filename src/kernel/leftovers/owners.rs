// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which programs the running processes have open.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::error::not_permitted;
use crate::kernel::mounts::Mount;
use crate::kernel::sys;

/// What a walk through all processes brings.
#[derive(Debug, Default)]
pub(super) struct Owners {
    pub(super) programs: HashSet<u32>,
    /// Files of network namespaces, by inode number.
    pub(super) namespaces: HashMap<u64, PathBuf>,
    /// One task's directory in /proc for each mount namespace.
    pub(super) mounters: HashMap<PathBuf, PathBuf>,
}

impl Owners {
    /// What the other processes have. What this process looks at, it does not own.
    pub(super) fn read() -> Result<Self> {
        Self::of(false)
    }

    /// With what this process has.
    pub(super) fn with_own() -> Result<Self> {
        Self::of(true)
    }

    fn of(own_too: bool) -> Result<Self> {
        // include/linux/proc_ns.h, PROC_PID_INIT_INO
        const INITIAL: &str = "pid:[4026531836]";
        let own = fs::read_link("/proc/self/ns/pid").context("cannot read /proc/self/ns/pid")?;
        if own != Path::new(INITIAL) {
            return Err(not_permitted(
                "bpftk runs in a PID namespace of its own, from which it can't see the owners of programs; \
                 run it outside, or with the host's PID namespace",
            ));
        }
        let mut found = Self::default();
        let mut unreadable = 0;
        for entry in fs::read_dir("/proc").context("cannot read /proc")? {
            let entry = entry.context("cannot read /proc")?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            // Threads may have descriptors of their own (CLONE_FILES), and namespaces.
            let tasks = match fs::read_dir(entry.path().join("task")) {
                Ok(tasks) => tasks,
                Err(error) if is_gone(&error) => continue,
                Err(_) => {
                    unreadable += 1;
                    continue;
                }
            };
            for task in tasks.flatten() {
                match found.visit(pid, own_too || pid != std::process::id(), &task.path()) {
                    Ok(()) => {}
                    Err(error) if is_gone(&error) => {}
                    Err(_) => unreadable += 1,
                }
            }
        }
        if unreadable > 0 {
            // What can't be read may be an owner.
            return Err(not_permitted(format!(
                "the open files of {unreadable} tasks can't be read, any of which may own a program; \
                 run it as root or with sudo"
            )));
        }
        for mount in Mount::of_this_process() {
            if mount.fstype == "nsfs"
                && let Some(inode) = namespace(&mount.root)
            {
                found.namespaces.insert(inode, mount.point);
            }
        }
        Ok(found)
    }

    fn visit(&mut self, pid: u32, owns: bool, task: &Path) -> io::Result<()> {
        for entry in fs::read_dir(task.join("fd"))? {
            let Ok(entry) = entry else { continue };
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            if let Some(inode) = namespace(&target) {
                self.namespaces.entry(inode).or_insert(entry.path());
            }
            let Some(kind) = target.to_str().and_then(|text| text.strip_prefix("anon_inode:"))
            else {
                continue;
            };
            // `bpf-prog`, `bpf_link`, `bpf-raw-tracepoint`, `[perf_event]`.
            if !owns || !(kind.contains("bpf") || kind.contains("perf_event")) {
                continue;
            }
            let name = entry.file_name();
            let Ok(info) = fs::read_to_string(task.join("fdinfo").join(&name)) else {
                continue;
            };
            self.programs.extend(program_of(&info));
            if kind.contains("perf_event")
                && let Some(fd) = name.to_str().and_then(|name| name.parse::<RawFd>().ok())
            {
                self.programs.extend(sys::program_of_event(pid as i32, fd));
            }
        }
        for (kind, namespaces) in [("net", true), ("mnt", false)] {
            let path = task.join("ns").join(kind);
            let Ok(target) = fs::read_link(&path) else {
                continue;
            };
            if !namespaces {
                self.mounters.entry(target).or_insert_with(|| task.to_path_buf());
            } else if let Some(inode) = namespace(&target) {
                self.namespaces.entry(inode).or_insert(path);
            }
        }
        Ok(())
    }
}

/// The program in what the kernel tells of a descriptor.
fn program_of(fdinfo: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
}

/// The inode number in `net:[4026531840]`.
fn namespace(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// A process that ended while it was looked at owns nothing.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Opens a namespace's file, if it is still the one.
pub(super) fn open_namespace(path: &Path, inode: u64) -> Option<File> {
    use std::os::unix::fs::MetadataExt;
    let file = File::open(path).ok()?;
    (file.metadata().ok()?.ino() == inode).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_tells_its_program() {
        let link = "pos:\t0\nflags:\t02000000\nlink_type:\txdp\nlink_id:\t7\nprog_tag:\ta04f\nprog_id:\t42\n";
        assert_eq!(program_of(link), Some(42));
        assert_eq!(program_of("pos:\t0\n"), None);
        assert_eq!(namespace(Path::new("net:[4026531840]")), Some(4_026_531_840));
        assert_eq!(namespace(Path::new("mnt:[1]")), None);
    }
}
