// SPDX-License-Identifier: MIT OR Apache-2.0

//! What this kernel can do, found by trying it.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::{fs, io};

use anyhow::{Result, anyhow};
use libbpf_rs::libbpf_sys;

use super::caps::{Cap, Held};
use super::sockgate::{Release, Series};
use super::{refusal, sys};
use crate::error::{not_permitted, unsupported};

/// Why something can't be done here.
pub(crate) type Reason = String;

/// Whether fentry and fexit programs may be loaded at all: a cheap question, asked before a back end is tried.
/// A load for a BTF id that is no function is EINVAL where they may, EPERM where the kernel forbids the kind.
pub(crate) fn fentry_allowed() -> Result<(), Reason> {
    let tried =
        sys::load_trivial(libbpf_sys::BPF_PROG_TYPE_TRACING, libbpf_sys::BPF_TRACE_FENTRY, 1);
    match tried.map_err(|error| error.raw_os_error()) {
        Err(Some(libc::EPERM | libc::EACCES)) => {
            Err("this kernel refuses fentry programs (EPERM), whatever the privileges".into())
        }
        _ => Ok(()),
    }
}

/// Loads and attaches a fentry program. `function` is one that the kernel keeps for its own tests and never calls.
pub(crate) fn fentry() -> Result<(), Reason> {
    fentry_allowed()?;
    let function = c"bpf_fentry_test1";
    let id = sys::vmlinux_btf_id(function, libbpf_sys::BPF_TRACE_FENTRY)
        .ok_or("the kernel's BTF names no function to try it on")?;
    let program =
        sys::load_trivial(libbpf_sys::BPF_PROG_TYPE_TRACING, libbpf_sys::BPF_TRACE_FENTRY, id)
            .map_err(|error| format!("a program does not load: {error}"))?;
    sys::raw_tracepoint_open(program.as_fd())
        .map(drop)
        .map_err(|error| format!("a program loads but does not attach: {error}"))
}

/// Opens a kprobe event on `function`.
pub(crate) fn kprobe(function: &CStr) -> Result<()> {
    let kind = fs::read_to_string("/sys/bus/event_source/devices/kprobe/type").map_err(
        |error| match error.kind() {
            io::ErrorKind::NotFound => {
                unsupported("this kernel has no kprobe events (CONFIG_KPROBE_EVENTS)")
            }
            _ => anyhow!("cannot ask for kprobe events: {error}"),
        },
    )?;
    let kind = kind
        .trim()
        .parse()
        .map_err(|_| unsupported(format!("odd kprobe event type `{}`", kind.trim())))?;
    sys::perf_kprobe(kind, function)
        .map(drop)
        .map_err(|error| perf_refused("a kprobe".into(), &error))
}

/// What it means that the kernel refuses an event of perf, which tracepoints and kprobes are.
pub(crate) fn perf_refused(what: String, error: &io::Error) -> anyhow::Error {
    if !matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
        return unsupported(format!("the kernel refuses {what}: {error}"));
    }
    let held = |cap| Held::read().is_ok_and(|held| held.has(cap));
    // Debian's and Ubuntu's kernels have more levels than Linux, whose highest is 2.
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let paranoid = paranoid.trim();
    if !held(Cap::Perfmon) {
        not_permitted(format!("the kernel refuses {what}: it needs CAP_PERFMON"))
    } else if refusal::in_user_namespace() {
        not_permitted(format!(
            "the kernel refuses {what}: this is a user namespace, and perf asks for capabilities in the initial one"
        ))
    } else if refusal::has_seccomp_filter() {
        not_permitted(format!(
            "the kernel refuses {what}: {error}; a seccomp filter of this process may forbid perf_event_open(2)"
        ))
    } else if held(Cap::SysAdmin) {
        unsupported(format!("the kernel refuses {what}: {error}"))
    } else if paranoid.parse().is_ok_and(|level: i32| level > 2) {
        not_permitted(format!(
            "the kernel refuses {what}: it needs CAP_SYS_ADMIN, since kernel.perf_event_paranoid is {paranoid} \
             (sysctl kernel.perf_event_paranoid=2 would do, too)"
        ))
    } else {
        not_permitted(format!("the kernel refuses {what}: {error}"))
    }
}

/// Whether softirqs may be preempted (CONFIG_PREEMPT_RT). Where that can't be known, they may.
pub(crate) fn is_realtime() -> bool {
    nix::sys::utsname::uname().map_or(true, |uname| {
        uname.version().to_string_lossy().split_whitespace().any(|part| part == "PREEMPT_RT")
    })
}

/// Whether TCP minds the size of the receive buffer though its own queue is empty, as that of a socket in a map with
/// a verdict program always is. Since Linux 6.6: net/ipv4/tcp_input.c, tcp_data_queue. Where that can't be known, it
/// does not.
pub(crate) fn tcp_bounds_small_packets() -> bool {
    Release::running().is_ok_and(|release| release.series >= Series(6, 6))
}

/// Whether the kernel may preempt a program at a tracepoint for another task. Until Linux 7.0 it disabled preemption there
/// (include/linux/tracepoint.h, __DO_TRACE_CALL), which leaves no trace to probe for.
pub(crate) fn may_preempt_tracepoints() -> bool {
    let release =
        nix::sys::utsname::uname().map(|uname| uname.release().to_string_lossy().into_owned());
    let major = release.ok().and_then(|text| text.split('.').next()?.parse::<u32>().ok());
    major.is_none_or(|major| major >= 7) && may_preempt_trampolines()
}

/// The same for fentry and fexit programs. Where that can't be known, it may.
pub(crate) fn may_preempt_trampolines() -> bool {
    let Ok(uname) = nix::sys::utsname::uname() else { return true };
    may_preempt(&uname.version().to_string_lossy(), || {
        let path = "/sys/kernel/debug/sched/preempt";
        if let Ok(mode) = fs::read_to_string(path) {
            return Some(mode);
        }
        // debugfs need not be mounted, nor be readable for us.
        let debugfs = sys::private_mount(c"debugfs").ok()?;
        fs::read_to_string(format!("/proc/self/fd/{}/sched/preempt", debugfs.as_raw_fd())).ok()
    })
}

/// A kernel's version string names its preemption model; with PREEMPT_DYNAMIC, kernel/sched/debug.c has it, the one in
/// use in parentheses: `none (voluntary) full lazy`.
fn may_preempt(version: &str, mode: impl FnOnce() -> Option<String>) -> bool {
    let has = |word: &str| version.split_whitespace().any(|part| part == word);
    if has("PREEMPT_DYNAMIC") {
        mode().is_none_or(|mode| !mode.contains("(none)") && !mode.contains("(voluntary)"))
    } else {
        ["PREEMPT", "PREEMPT_RT", "PREEMPT_LAZY"].into_iter().any(has)
    }
}

/// The mode that lockdown is in, where the kernel has it: `none`, `integrity` or `confidentiality`.
pub(crate) fn lockdown() -> Option<String> {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_string())
}

/// Refuses where the kernel keeps its memory from BPF: kernel/bpf, LOCKDOWN_BPF_READ_KERNEL.
pub(crate) fn may_read_kernel() -> anyhow::Result<()> {
    match lockdown().as_deref() {
        Some("confidentiality") => Err(crate::error::unsupported(
            "the kernel is locked down (confidentiality), which forbids BPF programs to read its memory; \
             boot with lockdown=integrity or none",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_preempt_programs() {
        let dynamic = "#1 SMP PREEMPT_DYNAMIC Debian 7.3.4-1 (2026-11-15)";
        for (version, mode, expected) in [
            ("#1 SMP Debian 5.10.1-1", Some("full"), false),
            ("#1 SMP PREEMPT Fri Nov 20", None, true),
            ("#1 SMP PREEMPT_RT Debian", None, true),
            (dynamic, Some("none (voluntary) full \n"), false),
            (dynamic, Some("(none) voluntary full"), false),
            (dynamic, Some("none voluntary (full)"), true),
            (dynamic, Some("full (lazy) \n"), true),
            (dynamic, None, true),
        ] {
            let mode = mode.map(str::to_string);
            assert_eq!(may_preempt(version, || mode.clone()), expected, "{version} {mode:?}");
        }
    }
}
