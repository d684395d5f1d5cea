// SPDX-License-Identifier: MIT OR Apache-2.0

//! Network namespaces, by the inode number that the kernel knows them by.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use anyhow::Result;
use nix::sched::{CloneFlags, setns, unshare};

use super::sys;
use crate::error::usage;

/// The network namespace that `text` names: a name as ip-netns(8) has it, a file such as /proc/PID/ns/net, or `self`.
pub(crate) fn resolve(text: &Path) -> Result<u32> {
    let named = Path::new("/run/netns").join(text);
    let is_name = text.components().count() == 1 && !text.is_absolute();
    let path = match text {
        text if text == Path::new("self") => Path::new("/proc/self/ns/net"),
        _ if is_name && named.exists() => &named,
        text => text,
    };
    let expected =
        "expected `self`, a name that `ip netns` lists, or a file such as /proc/PID/ns/net";
    let file = File::open(path)
        .map_err(|error| usage(format!("--netns {}: {error}; {expected}", text.display())))?;
    let is_net = sys::namespace_type(file.as_fd()).is_ok_and(|kind| kind == libc::CLONE_NEWNET);
    match file.metadata() {
        Ok(meta) if is_net => Ok(meta.ino() as u32),
        _ => Err(usage(format!("--netns {}: not a network namespace; {expected}", text.display()))),
    }
}

/// The caller's own.
pub(crate) fn current() -> io::Result<u32> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino() as u32)
}

/// Does `work` in the namespace that `file` is of, on a thread of its own: a thread that moved can't be trusted to
/// come back.
pub(crate) fn within<T: Send>(file: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_a_thread(|| {
        enter(file)?;
        Ok(work())
    })
}

/// Does `work` in a namespace that nobody else sees and that ends with it.
pub(crate) fn within_new<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// Fails where no thread can be made, as at the limit of a cgroup (pids.max).
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Takes the calling thread there, for good.
pub(crate) fn enter(file: &File) -> io::Result<()> {
    Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_network_namespaces_are_taken() {
        let own = resolve(Path::new("self")).unwrap();
        assert_eq!(own, resolve(Path::new("/proc/self/ns/net")).unwrap());
        for bad in ["/proc/self/ns/uts", "/proc/self/status", "/", "/no/such/file"] {
            assert!(resolve(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
