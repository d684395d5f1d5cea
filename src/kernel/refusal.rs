// SPDX-License-Identifier: MIT OR Apache-2.0

//! What it means that bpf(2) is refused: the one place that decides it. The kernel has one word, EPERM, for a capability that is
//! missing, for a user namespace, for a seccomp filter, for locked memory and for security modules.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::libbpf_sys;

use super::limits;
use super::sockgate::{Release, Series};
use super::{log, sys};
use crate::error::{not_permitted, unsupported};

/// What is known of this process and of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Circumstances {
    /// Not the initial one: capabilities of another count for nothing here.
    user_namespace: bool,
    /// There is a seccomp filter.
    seccomp: bool,
    /// Whatever bpf(2) is asked for has the same answer, even what means nothing: then nobody has looked at it.
    blindly: bool,
    /// Maps count against locked memory: before Linux 5.11.
    counts_locked: bool,
}

/// Where the kernel says what makes a user namespace the initial one: include/linux/proc_ns.h, PROC_USER_INIT_INO.
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";

pub(crate) fn in_user_namespace() -> bool {
    fs::read_link("/proc/self/ns/user").is_ok_and(|link| link != Path::new(INITIAL_USER_NAMESPACE))
}

/// Whether a filter looks at this process's system calls (SECCOMP_MODE_FILTER).
pub(crate) fn has_seccomp_filter() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().filter_map(|line| line.strip_prefix("Seccomp:")).any(|mode| mode.trim() == "2")
}

impl Circumstances {
    fn here() -> Self {
        Self {
            user_namespace: in_user_namespace(),
            seccomp: has_seccomp_filter(),
            blindly: sys::bpf_nonsense().raw_os_error() != Some(libc::EINVAL),
            counts_locked: Release::running().is_ok_and(|release| release.series < Series(5, 11)),
        }
    }

    /// `None` of an error that says itself what it means.
    fn explain(self, errno: i32) -> Option<anyhow::Error> {
        const PROFILE: &str = "containers have one: allow bpf in its profile (Docker: --security-opt seccomp=FILE, or unconfined)";
        let answered = self.seccomp && self.blindly;
        match errno {
            libc::ENOSYS if answered => Some(not_permitted(format!(
                "not permitted: a seccomp filter of this process answers bpf(2) as if the kernel had none; {PROFILE}"
            ))),
            libc::ENOSYS => {
                Some(unsupported("this kernel has no bpf(2) (CONFIG_BPF_SYSCALL)".to_string()))
            }
            libc::EPERM | libc::EACCES if self.user_namespace => Some(not_permitted(
                "not permitted: this is a user namespace, as rootless containers are, and bpf(2) asks for \
                 capabilities in the initial one; run it as the machine's own root",
            )),
            libc::EPERM | libc::EACCES if answered => Some(not_permitted(format!(
                "not permitted: a seccomp filter of this process forbids bpf(2); {PROFILE}"
            ))),
            libc::EPERM if self.counts_locked && !self.blindly => {
                Some(not_permitted(limits::locked_memory()))
            }
            libc::EPERM | libc::EACCES => {
                let filter = if self.seccomp {
                    ", or a seccomp filter that looks at what it is asked for"
                } else {
                    ""
                };
                Some(not_permitted(format!(
                    "not permitted: the kernel forbids bpf(2), though the capabilities are there: a security module \
                     (SELinux, AppArmor, BPF LSM) or a hardened kernel{filter}"
                )))
            }
            _ => None,
        }
    }
}

/// What the error of a system call on BPF means, if that is not what it says.
pub(crate) fn of_error(error: &io::Error) -> Option<anyhow::Error> {
    Circumstances::here().explain(error.raw_os_error()?)
}

/// The same of another call that a capability is for, which is held: `what` is what it makes.
pub(crate) fn of_call(what: &str, error: io::Error) -> anyhow::Error {
    let cause = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if in_user_namespace() => {
            "this is a user namespace, and the capability counts only where it was made for"
        }
        Some(libc::EPERM | libc::EACCES) if has_seccomp_filter() => {
            "a seccomp filter of this process may forbid it"
        }
        Some(libc::EPERM | libc::EACCES) => "a security module may forbid it",
        _ => return anyhow!(error).context(format!("cannot make {what}")),
    };
    not_permitted(format!("not permitted: cannot make {what}: {error}: {cause}"))
}

/// Refuses where programs can't be had at all, whatever they are. The capabilities are there.
pub(crate) fn check() -> Result<()> {
    sysfs()?;
    // One of a kind that is for who has CAP_BPF in the initial user namespace (5.10: kernel/bpf/hashtab.c), as small as can be.
    tried(sys::map_create(libbpf_sys::BPF_MAP_TYPE_LRU_HASH, 4, 8, 1))
}

/// Whether there is memory for maps. Before Linux 5.11 they count against RLIMIT_MEMLOCK, which libbpf raises if it may: without
/// CAP_SYS_RESOURCE every map of some size is EPERM, as if BPF were forbidden.
pub(crate) fn check_memory() -> Result<()> {
    // 1 MiB, as a ring buffer has.
    tried(sys::map_create(libbpf_sys::BPF_MAP_TYPE_ARRAY, 4, 1 << 20, 1))
}

fn tried<T>(outcome: io::Result<T>) -> Result<()> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => of_error(&error).map_or(Ok(()), Err),
    }
}

/// Of it, bpftk and libbpf read types and which processors there are.
pub(crate) fn sysfs() -> Result<()> {
    const FILE: &str = "/sys/devices/system/cpu/possible";
    match fs::metadata(FILE) {
        Ok(_) => Ok(()),
        Err(_) if fs::read_dir("/sys").map_or(true, |mut entries| entries.next().is_none()) => {
            Err(not_permitted(
                "/sys is empty, where the kernel tells of its types and processors: `mount -t sysfs sysfs /sys`",
            ))
        }
        Err(error) => Err(anyhow!(error)).with_context(|| format!("cannot read {FILE}")),
    }
}

/// Why a load failed: because nothing can be loaded, or as libbpf and the verifier have it.
pub(crate) fn of_load(what: &str, error: libbpf_rs::Error) -> anyhow::Error {
    let said = log::explain(error);
    match check().and_then(|()| check_memory()) {
        Err(why) => why,
        Ok(()) => anyhow!("{what}: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Status, status_of};

    #[test]
    fn what_decides_is_named() {
        let plain = Circumstances {
            user_namespace: false,
            seccomp: false,
            blindly: false,
            counts_locked: false,
        };
        let userns = Circumstances { user_namespace: true, ..plain };
        let seccomp = Circumstances { seccomp: true, blindly: true, ..plain };
        let old = Circumstances { counts_locked: true, ..plain };
        use Status::{NotPermitted, Unsupported};
        for (at, errno, status, part) in [
            (plain, libc::EPERM, NotPermitted, "security module"),
            (plain, libc::ENOSYS, Unsupported, "CONFIG_BPF_SYSCALL"),
            (userns, libc::EPERM, NotPermitted, "user namespace"),
            // By default also where there is a filter, which is not asked then.
            (
                Circumstances { user_namespace: true, ..seccomp },
                libc::EPERM,
                NotPermitted,
                "user namespace",
            ),
            (
                Circumstances { user_namespace: true, ..old },
                libc::EPERM,
                NotPermitted,
                "user namespace",
            ),
            (seccomp, libc::EPERM, NotPermitted, "seccomp filter of this process forbids"),
            (seccomp, libc::ENOSYS, NotPermitted, "as if the kernel had none"),
            (
                Circumstances { blindly: false, ..seccomp },
                libc::EPERM,
                NotPermitted,
                "looks at what",
            ),
            (
                Circumstances { counts_locked: true, ..seccomp },
                libc::EPERM,
                NotPermitted,
                "seccomp",
            ),
            (old, libc::EPERM, NotPermitted, "ulimit -l"),
            (
                Circumstances { blindly: false, seccomp: true, ..old },
                libc::EPERM,
                NotPermitted,
                "ulimit -l",
            ),
            (Circumstances { blindly: true, ..old }, libc::EPERM, NotPermitted, "security module"),
        ] {
            let error = at.explain(errno).unwrap();
            assert_eq!(status_of(&error), status, "{at:?}");
            let text = format!("{error:#}");
            assert!(text.contains(part), "{at:?} {errno}: {text}");
            assert_eq!(text.contains("locked memory"), part == "ulimit -l", "{at:?}: {text}");
        }
        for errno in [libc::EINVAL, libc::ENOMEM, libc::E2BIG, libc::EMFILE] {
            assert!(seccomp.explain(errno).is_none());
        }
    }
}
