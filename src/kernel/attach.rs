// SPDX-License-Identifier: MIT OR Apache-2.0

//! Attaching programs, so that dropping the link, or the end of the process by any means, detaches them.

pub(super) mod clsact;
mod holders;
pub(crate) mod tc;
#[cfg(test)]
mod tests;
pub(crate) mod xdp;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::{ErrorKind, Link, ProgramMut};

use super::btf::Types;
use super::probes::perf_refused;
use super::tracefs::Tracefs;
use super::{limits, log, sys};

/// Attaches to a tracepoint by its id. libbpf would look for tracefs where it may not be mounted.
pub(crate) fn tracepoint(
    tracefs: &Tracefs,
    program: &ProgramMut<'_>,
    category: &str,
    name: &str,
) -> Result<Link> {
    let id = tracefs.event_id(category, name)?;
    let event = sys::perf_tracepoint(id)
        .map_err(|error| perf_refused(format!("the tracepoint {category}:{name}"), &error))?;
    log::clear();
    let link = program
        .attach_perf_event(event.as_raw_fd())
        .map_err(|error| anyhow!("cannot attach to {category}:{name}: {}", log::explain(error)))?;
    // The link closes it from now on.
    let _ = std::os::fd::IntoRawFd::into_raw_fd(event);
    Ok(link)
}

/// Attaches by what the program's section says.
pub(crate) fn auto(program: &ProgramMut<'_>) -> Result<Link> {
    log::clear();
    program.attach().map_err(|error| {
        anyhow!("cannot attach {}: {}", program.name().to_string_lossy(), log::explain(error))
    })
}

/// The same for a tracepoint that older kernels lack. Nothing where it is not.
pub(crate) fn auto_if_there(program: &ProgramMut<'_>) -> Result<Option<Link>> {
    log::clear();
    match program.attach() {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(anyhow!(
            "cannot attach {}: {}",
            program.name().to_string_lossy(),
            log::explain(error)
        )),
    }
}

/// Attaches to a cgroup, by a link: several instances work side by side, and each is gone with its process.
pub(crate) fn cgroup(program: &ProgramMut<'_>, cgroup: impl AsFd) -> Result<Link> {
    log::clear();
    program
        .attach_cgroup(cgroup.as_fd().as_raw_fd())
        .map_err(|error| anyhow!("cannot attach to the root cgroup: {}", log::explain(error)))
}

/// Attaches to the entry, or to the return, of a kernel function.
pub(crate) fn kprobe(program: &ProgramMut<'_>, at_return: bool, function: &str) -> Result<Link> {
    log::clear();
    program.attach_kprobe(at_return, function).map_err(|error| {
        let kind = if at_return { "kretprobe" } else { "kprobe" };
        anyhow!("cannot attach a {kind} to {function}: {}", log::explain(error))
    })
}

/// The same for a function that not every kernel has. Nothing where it is not.
pub(crate) fn kprobe_if_there(
    program: &ProgramMut<'_>,
    at_return: bool,
    function: &str,
) -> Result<Option<Link>> {
    match kprobe(program, at_return, function) {
        Ok(link) => Ok(Some(link)),
        Err(error) => match limits::named(&error) {
            Some(limited) => Err(limited),
            None => Ok(None),
        },
    }
}

/// Attaches a fentry, fexit or tp_btf program to what it was loaded for.
pub(crate) fn trace(program: &ProgramMut<'_>) -> Result<Link> {
    log::clear();
    program.attach_trace().map_err(|error| {
        anyhow!("cannot attach {}: {}", program.name().to_string_lossy(), log::explain(error))
    })
}

/// Detaches all of them. The kernel makes each wait until no processor can be in the program any more
/// (perf_event_detach_bpf_prog, perf_trace_event_unreg), some 60 ms a tracepoint: so they wait beside each other, as far
/// as there are threads to be had.
pub(crate) fn detach_all(links: &mut Vec<Link>) {
    std::thread::scope(|scope| {
        for link in links.drain(..) {
            // A thread that can't be made drops its closure, and the link with it, here and now.
            let _ = std::thread::Builder::new().spawn_scoped(scope, move || drop(link));
        }
    });
}

/// How often the kernel skipped a program because the CPU was in the middle of it. Nothing if it is not loaded.
pub(crate) fn times_skipped(program: &ProgramMut<'_>) -> u64 {
    if !program.autoload() {
        return 0;
    }
    sys::program_info(program.as_fd()).map_or(0, |info| info.skipped)
}

/// Has libbpf load tracing programs for targets whose ids are known already. To be kept until the load.
pub(crate) fn tracing_targets(types: &Types) -> Result<Option<sys::TracingTargets>> {
    if types.targets.is_empty() {
        return Ok(None);
    }
    let named = types
        .targets
        .iter()
        .filter_map(|(name, id)| Some((CString::new(name.as_str()).ok()?, *id)));
    Ok(Some(sys::TracingTargets::new(named).context("cannot tell libbpf of tracing targets")?))
}
