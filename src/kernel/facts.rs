// SPDX-License-Identifier: MIT OR Apache-2.0

//! What this kernel offers, each thing found by trying it. Whatever is made for a trial is gone when it ends.

use std::fs;
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Result;
use libbpf_rs::btf::Btf;
use libbpf_rs::libbpf_sys;
use nix::sys::resource::RLIM_INFINITY;
use nix::sys::utsname::uname;

use super::caps::{Cap, Held};
use super::mounts::Mount;
use super::probes::{self, Reason};
use super::sockgate::{Gate, MissingFix};
use super::tracefs::Tracefs;
use super::{btf, cgroup, netns, sys};
use crate::error::{Status, status_of};
use crate::kernel::limits;
use crate::kernel::refusal;

/// What came of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Yes,
    No,
    /// The kernel does not tell.
    Unknown,
    /// A capability is missing for the trial.
    NotTried,
    /// No question of yes or no.
    Told,
}

impl Answer {
    pub(crate) fn text(self) -> Option<&'static str> {
        match self {
            Self::Yes => Some("yes"),
            Self::No => Some("no"),
            Self::Unknown => Some("unknown"),
            Self::NotTried => Some("not tried"),
            Self::Told => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Fact {
    pub(crate) name: &'static str,
    pub(crate) answer: Answer,
    pub(crate) detail: String,
}

type Found = (Answer, String);

fn yes(detail: impl Into<String>) -> Found {
    (Answer::Yes, detail.into())
}

fn no(detail: impl Into<String>) -> Found {
    (Answer::No, detail.into())
}

fn told(detail: impl Into<String>) -> Found {
    (Answer::Told, detail.into())
}

/// What a trial needs, what it is called, and the trial.
struct Trial {
    name: &'static str,
    needs: &'static [Cap],
    run: fn(&Context<'_>) -> Found,
}

const fn trial(name: &'static str, needs: &'static [Cap], run: fn(&Context<'_>) -> Found) -> Trial {
    Trial { name, needs, run }
}

struct Context<'a> {
    held: Held,
    btf: &'a Path,
    /// Before libbpf raised it, as it does with the first map on kernels that count maps against it.
    memlock: Option<u64>,
}

const BPF_CALL: &str = "bpf(2)";

/// In the order in which they are told: what the rest depends on comes first.
const TRIALS: &[Trial] = &[
    trial("kernel", &[], |_| kernel(|name| name.release())),
    trial("architecture", &[], |_| kernel(|name| name.machine())),
    trial("capabilities", &[], capabilities),
    trial("lockdown", &[], |_| lockdown()),
    trial("BTF", &[], type_information),
    trial("unprivileged BPF", &[], |_| unprivileged()),
    trial(BPF_CALL, &[Cap::Bpf], |_| by_check(&refusal::check())),
    trial("JIT", &[Cap::Bpf], |_| jit()),
    trial("memlock", &[Cap::Bpf], memlock),
    trial("kprobes", &[Cap::Bpf, Cap::Perfmon], |_| kprobes()),
    trial("fentry", &[Cap::Bpf, Cap::Perfmon], |_| by_probe(probes::fentry())),
    trial("tracepoints", &[Cap::Perfmon], |_| tracepoints()),
    trial("raw tracepoints", &[Cap::Bpf, Cap::Perfmon], |_| raw_tracepoints()),
    trial("ring buffer", &[Cap::Bpf], |_| ring_buffer()),
    trial("tcx", &[Cap::Bpf, Cap::NetAdmin], |_| tcx()),
    trial("XDP link", &[Cap::Bpf, Cap::NetAdmin, Cap::SysAdmin], |_| xdp_link()),
    trial("cgroup v2", &[], |_| cgroup_v2()),
    trial("bpffs", &[], |_| bpffs()),
    trial("tracefs", &[], |_| tracefs()),
    trial("IPv6", &[], |_| ipv6()),
    trial("io_uring", &[], |_| io_uring()),
    trial("sockmap fixes", &[], |_| sockmap_fixes()),
];

/// Tries everything. `btf` is where the kernel's types are taken from.
pub(crate) fn all(file: Option<&Path>) -> Result<Vec<Fact>> {
    let context = Context {
        held: Held::read()?,
        btf: file.unwrap_or(Path::new(btf::VMLINUX)),
        memlock: limits::locked_memory_at_start(),
    };
    let refused = refusal::check().is_err();
    Ok(TRIALS
        .iter()
        .map(|trial| {
            let missing: Vec<&str> = trial
                .needs
                .iter()
                .filter(|&&cap| !context.held.has(cap))
                .map(|cap| cap.name())
                .collect();
            let forbidden = trial.needs.contains(&Cap::Bpf) && trial.name != BPF_CALL && refused;
            let (answer, detail) = if missing.is_empty() && forbidden {
                (Answer::NotTried, format!("see {BPF_CALL}"))
            } else if missing.is_empty() {
                (trial.run)(&context)
            } else {
                (Answer::NotTried, format!("needs {}", missing.join(" and ")))
            };
            Fact { name: trial.name, answer, detail }
        })
        .collect())
}

fn by_probe(tried: Result<(), Reason>) -> Found {
    match tried {
        Ok(()) => yes(""),
        Err(reason) => no(reason),
    }
}

fn by_check(outcome: &Result<()>) -> Found {
    match outcome {
        Ok(()) => yes(""),
        Err(error) => no(format!("{error:#}")),
    }
}

fn by_error(error: &anyhow::Error) -> Found {
    let answer = match status_of(error) {
        Status::NotPermitted => Answer::NotTried,
        Status::Unsupported => Answer::No,
        _ => Answer::Unknown,
    };
    (answer, format!("{error:#}"))
}

fn kernel(part: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr) -> Found {
    match uname() {
        Ok(name) => told(part(&name).to_string_lossy()),
        Err(error) => (Answer::Unknown, error.to_string()),
    }
}

fn capabilities(context: &Context<'_>) -> Found {
    const ALL: [Cap; 7] = [
        Cap::Bpf,
        Cap::Perfmon,
        Cap::NetAdmin,
        Cap::SysAdmin,
        Cap::SysPtrace,
        Cap::DacReadSearch,
        Cap::SysResource,
    ];
    let names = |held: bool| -> String {
        ALL.iter()
            .filter(|&&cap| context.held.has(cap) == held)
            .map(|cap| cap.name())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let detail = match (names(true), names(false)) {
        (held, lacking) if lacking.is_empty() => held,
        (held, lacking) if held.is_empty() => format!("not held: {lacking}"),
        (held, lacking) => format!("{held}; not held: {lacking}"),
    };
    let detail = if refusal::in_user_namespace() {
        format!("{detail}; in a user namespace, where they count for little")
    } else {
        detail
    };
    // What the commands ask for; the others are for details.
    if [Cap::Bpf, Cap::Perfmon, Cap::NetAdmin].iter().all(|&cap| context.held.has(cap)) {
        yes(detail)
    } else {
        no(detail)
    }
}

fn lockdown() -> Found {
    if let Some(mode) = probes::lockdown() {
        return match mode.as_str() {
            "none" => no("none"),
            "confidentiality" => yes("confidentiality: no program may read the kernel's memory"),
            other => yes(other),
        };
    }
    let mounted = Mount::of_this_process().iter().any(|mount| mount.fstype == "securityfs");
    if mounted {
        no("this kernel has none")
    } else {
        (
            Answer::Unknown,
            "securityfs is not mounted (mount -t securityfs none /sys/kernel/security)".into(),
        )
    }
}

fn type_information(context: &Context<'_>) -> Found {
    if !context.btf.exists() {
        return no(format!(
            "no {} (CONFIG_DEBUG_INFO_BTF); give a file with --btf",
            context.btf.display()
        ));
    }
    match Btf::from_path(context.btf) {
        Ok(types) => yes(format!("{}, {} types", context.btf.display(), types.len())),
        Err(error) => no(format!("{}: {error:#}", context.btf.display())),
    }
}

fn unprivileged() -> Found {
    match fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled")
        .map(|text| text.trim().to_string())
        .as_deref()
    {
        Ok("0") => yes("kernel.unprivileged_bpf_disabled = 0; bpftk does not need it"),
        Ok(value) => no(format!("kernel.unprivileged_bpf_disabled = {value}")),
        Err(error) => (Answer::Unknown, error.to_string()),
    }
}

fn jit() -> Found {
    let switch = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").map_or_else(
        |_| "no switch".to_string(),
        |text| format!("net.core.bpf_jit_enable = {}", text.trim()),
    );
    let program = sys::load_trivial(libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER, 0, 0)
        .and_then(|program| sys::program_info(program.as_fd()));
    match program {
        Ok(info) if info.jited_len > 0 => yes(switch),
        Ok(_) => no(format!("{switch}: programs are interpreted, which is slow; set it to 1")),
        Err(error) => (Answer::Unknown, format!("a program does not load: {error}; {switch}")),
    }
}

fn memlock(context: &Context<'_>) -> Found {
    let limit = match context.memlock {
        Some(RLIM_INFINITY) => "no limit".to_string(),
        Some(bytes) => format!("limit {} KiB", bytes / 1024),
        None => "limit not known".to_string(),
    };
    match refusal::check_memory() {
        Ok(()) => yes(format!("{limit}; a map of 1 MiB fits")),
        Err(reason) => no(format!("{reason:#}")),
    }
}

fn kprobes() -> Found {
    match probes::kprobe(c"tcp_v4_connect") {
        Ok(()) => yes(""),
        Err(error) => by_error(&error),
    }
}

fn tracepoints() -> Found {
    let tried = Tracefs::open().and_then(|tracefs| {
        let id = tracefs.event_id("syscalls", "sys_enter_connect")?;
        sys::perf_tracepoint(id).map_err(|error| probes::perf_refused("one".into(), &error))
    });
    match tried {
        Ok(_) => yes("syscalls:sys_enter_connect opens"),
        Err(error) => by_error(&error),
    }
}

fn raw_tracepoints() -> Found {
    let tried = sys::load_trivial(libbpf_sys::BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0)
        .and_then(|program| sys::raw_tracepoint_open_named(program.as_fd(), c"task_newtask"));
    match tried {
        Ok(_) => yes(""),
        Err(error) => no(error.to_string()),
    }
}

fn ring_buffer() -> Found {
    // A multiple of any page size.
    match sys::map_create(libbpf_sys::BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 16) {
        Ok(_) => yes(""),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            (Answer::Unknown, format!("{error}; see memlock"))
        }
        Err(error) => no(format!("{error}; since Linux 5.8")),
    }
}

/// A kernel that has tcx looks for the interface, one that has not refuses the kind.
fn tcx() -> Found {
    let program = match sys::load_trivial(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, 0, 0) {
        Ok(program) => program,
        Err(error) => return no(format!("a tc program does not load: {error}")),
    };
    match sys::link_create(program.as_fd(), i32::MAX, libbpf_sys::BPF_TCX_INGRESS) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => yes(""),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            no("this kernel attaches to clsact, without links; tcx since Linux 6.6")
        }
        Err(error) => (Answer::Unknown, error.to_string()),
        Ok(_) => (Answer::Unknown, "attached to no interface".into()),
    }
}

/// On the loopback of a network namespace that ends with the trial.
fn xdp_link() -> Found {
    let program = match sys::load_trivial(libbpf_sys::BPF_PROG_TYPE_XDP, 0, 0) {
        Ok(program) => program,
        Err(error) => return no(format!("an XDP program does not load: {error}")),
    };
    const LOOPBACK: i32 = 1;
    let tried =
        netns::within_new(|| sys::link_create(program.as_fd(), LOOPBACK, libbpf_sys::BPF_XDP));
    match tried {
        Ok(Ok(_)) => yes(""),
        Ok(Err(error)) => no(format!("{error}; since Linux 5.9")),
        Err(error) => (Answer::Unknown, format!("no network namespace to try it in: {error}")),
    }
}

fn cgroup_v2() -> Found {
    match cgroup::mount_point() {
        Some(point) => yes(point.display().to_string()),
        None => no("not mounted (mount -t cgroup2 none /sys/fs/cgroup)"),
    }
}

fn bpffs() -> Found {
    let points: Vec<String> = Mount::of_this_process()
        .iter()
        .filter(|mount| mount.fstype == "bpf")
        .map(|mount| mount.point.display().to_string())
        .collect();
    if points.is_empty() {
        no("not mounted; bpftk does not need it")
    } else {
        yes(points.join(" "))
    }
}

fn tracefs() -> Found {
    if let Some(point) = Tracefs::mounted() {
        return yes(point.display().to_string());
    }
    match Tracefs::open() {
        Ok(_) => yes("not mounted; bpftk mounts one that only it sees"),
        Err(error) => by_error(&error),
    }
}

fn ipv6() -> Found {
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(_) => yes(""),
        Err(error) => no(error.to_string()),
    }
}

/// A request for a ring of no entries is told to be wrong where there are rings.
fn io_uring() -> Found {
    match sys::io_uring_refusal().raw_os_error() {
        Some(libc::ENOSYS) => no("this kernel has none"),
        Some(libc::EPERM | libc::EACCES) => no("forbidden (kernel.io_uring_disabled, or seccomp)"),
        _ => yes(""),
    }
}

/// What `sockredir` would say to this kernel.
fn sockmap_fixes() -> Found {
    match Gate::here() {
        Ok(gate) if gate.too_old().is_some() => no(gate.detail()),
        Ok(gate) if gate.missing().is_empty() => yes(gate.detail()),
        Ok(gate) if gate.missing().iter().any(MissingFix::is_known) => no(gate.detail()),
        Ok(gate) => (Answer::Unknown, gate.detail()),
        Err(error) => by_error(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_is_told_once() {
        let facts = all(None).unwrap();
        let mut names: Vec<_> = facts.iter().map(|fact| fact.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TRIALS.len());
        for fact in facts {
            assert!(
                matches!(fact.answer, Answer::Yes) || !fact.detail.is_empty(),
                "{fact:?} says why"
            );
        }
    }
}
