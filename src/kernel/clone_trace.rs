// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel side of `clone-trace`: its programs, loaded and attached by back end, and its records.

use std::ffi::CString;
use std::fmt;
use std::mem::{MaybeUninit, offset_of};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags};
use plain::Plain;

use super::backend::{self, Chosen};
use super::btf::BtfSource;
use super::clock::boot_ns;
use super::losses::Losses;
use super::ring::{EventRing, copy_from};
use super::run::Tracing;
use super::skel::clone_trace::{
    CloneTraceSkel, CloneTraceSkelBuilder, OpenCloneTraceSkel, RELOCATED_TYPES, types,
};
use super::task_filter::{TaskFilter, configure_task_filter};
use super::tracefs::Tracefs;
use super::{attach, limits, log, probes};
use crate::error::unsupported;
use crate::kernel::refusal;

/// How calls are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// Tracepoints at enter and exit of the system calls
    Syscall,
    /// kprobe and kretprobe of the kernel's wrappers of the same
    Kprobe,
    /// The tracepoint of new tasks alone: successes only, but no other system call is slowed down
    Task,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syscall => "syscall",
            Self::Kprobe => "kprobe",
            Self::Task => "task",
        })
    }
}

impl Backend {
    /// The most complete first.
    pub(crate) const ORDER: [Self; 3] = [Self::Syscall, Self::Kprobe, Self::Task];
}

/// What the programs are told before they are loaded.
#[derive(Debug, Default)]
pub(crate) struct Config {
    pub(crate) btf: BtfSource,
    pub(crate) tasks: TaskFilter,
    /// Empty is all.
    pub(crate) kinds: Vec<Kind>,
    pub(crate) failed_only: bool,
    pub(crate) args: bool,
    /// The option that a call's beginning or end answers, which the `task` back end does not see.
    pub(crate) needs_calls: Option<&'static str>,
}

/// The programs, attached. Dropping it detaches them.
pub(crate) struct Tracer {
    /// What sees calls begin. Dropped before the programs they attach, as are the others.
    beginnings: Vec<Link>,
    links: Vec<Link>,
    skel: CloneTraceSkel<'static>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer")
            .field("beginnings", &self.beginnings.len())
            .field("links", &self.links.len())
            .finish_non_exhaustive()
    }
}

/// Loads and attaches by the first back end that works here.
pub(crate) fn arm(config: &Config, forced: Option<Backend>) -> Result<Chosen<Backend, Tracer>> {
    probes::may_read_kernel()?;
    backend::choose(&Backend::ORDER, forced, |backend| {
        match (backend, config.needs_calls) {
            (Backend::Kprobe, _) => {
                probes::kprobe(&CString::new(wrapper("clone"))?)?;
            }
            (Backend::Task, Some(option)) => {
                return Err(unsupported(format!(
                    "it sees new tasks and no calls, so it has nothing for {option}"
                )));
            }
            _ => {}
        }
        Tracer::load(config, backend)
    })
}

/// The kernel's function behind a system call; arch/…/include/asm/syscall_wrapper.h.
fn wrapper(call: &str) -> String {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    format!("__{arch}_sys_{call}")
}

impl Tracer {
    fn load(config: &Config, backend: Backend) -> Result<Self> {
        let mut builder = CloneTraceSkelBuilder::default();
        let _types = config.btf.apply(&mut builder.obj_builder, RELOCATED_TYPES, &[])?;
        log::clear();
        // The skeleton borrows this cell for as long as it lives; it is a pointer's size.
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = builder
            .open(cell)
            .map_err(|error| anyhow!("cannot open the programs: {}", log::explain(error)))?;

        let rodata = open.maps.rodata_data.as_deref_mut().context("the object has no constants")?;
        rodata.by_task = (backend == Backend::Task).into();
        rodata.by_syscall = (backend == Backend::Syscall).into();
        rodata.failed_only = config.failed_only.into();
        rodata.with_args = config.args.into();
        rodata.filter_kinds = config.kinds.iter().fold(0, |bits, kind| bits | 1 << kind.number().0);
        configure_task_filter!(open, &config.tasks);

        select_programs(&mut open, backend);
        log::clear();
        let skel = open
            .load()
            .map_err(|error| refusal::of_load("the kernel refuses the programs", error))?;
        let maps = &skel.maps;
        config.tasks.fill(&maps.filter_pids, &maps.filter_uids, &maps.filter_cgroup)?;

        let mut tracer = Self { beginnings: Vec::new(), links: Vec::new(), skel };
        tracer.attach(backend)?;
        tracer.set_armed(true)?;
        Ok(tracer)
    }

    /// The end of a call before its beginning: what begins while we attach is either seen whole or not.
    fn attach(&mut self, backend: Backend) -> Result<()> {
        let progs = &self.skel.progs;
        let (links, beginnings) = (&mut self.links, &mut self.beginnings);
        let tracefs = Tracefs::open()?;
        let newtask = attach::tracepoint(&tracefs, &progs.bpftk_newtask, "task", "task_newtask")?;
        if backend == Backend::Task {
            beginnings.push(newtask);
            return Ok(());
        }
        links.push(newtask);
        links.push(attach::auto(&progs.bpftk_newtask2)?);
        let exit = &progs.bpftk_exit;
        links.push(attach::tracepoint(&tracefs, exit, "sched", "sched_process_exit")?);
        match backend {
            Backend::Task => {}
            Backend::Syscall => {
                for (enter, call) in [
                    (&progs.bpftk_clone, "clone"),
                    (&progs.bpftk_clone3, "clone3"),
                    (&progs.bpftk_fork, "fork"),
                    (&progs.bpftk_vfork, "vfork"),
                ] {
                    let (at_exit, at_enter) =
                        (format!("sys_exit_{call}"), format!("sys_enter_{call}"));
                    // arm64 has neither fork nor vfork. Every kernel has clone.
                    match tracefs.event_id("syscalls", &at_enter) {
                        Err(error) if call != "clone" && limits::is_lacking(&error) => continue,
                        found => found?,
                    };
                    let exit = &progs.bpftk_sysexit;
                    links.push(attach::tracepoint(&tracefs, exit, "syscalls", &at_exit)?);
                    beginnings.push(attach::tracepoint(&tracefs, enter, "syscalls", &at_enter)?);
                }
            }
            Backend::Kprobe => {
                for (entry, call) in [
                    (&progs.bpftk_kp_clone, "clone"),
                    (&progs.bpftk_kp_clone3, "clone3"),
                    (&progs.bpftk_kp_fork, "fork"),
                    (&progs.bpftk_kp_vfork, "vfork"),
                ] {
                    let function = wrapper(call);
                    if call == "clone" {
                        links.push(attach::kprobe(&progs.bpftk_kr, true, &function)?);
                    } else {
                        match attach::kprobe_if_there(&progs.bpftk_kr, true, &function)? {
                            Some(link) => links.push(link),
                            None => continue,
                        }
                    }
                    beginnings.push(attach::kprobe(entry, false, &function)?);
                }
            }
        }
        Ok(())
    }

    /// Whether beginnings are hooked, so that an end without one is a call of its own.
    fn set_armed(&mut self, armed: bool) -> Result<()> {
        let bss = self.skel.maps.bss_data.as_deref_mut().context("the object has no variables")?;
        bss.armed_ns = if armed { boot_ns() } else { 0 };
        Ok(())
    }

    fn under_way(&self) -> impl Iterator<Item = Call> {
        let map = &self.skel.maps.calls;
        map.keys()
            .filter_map(|key| map.lookup(&key, MapFlags::ANY).ok().flatten())
            .filter(|bytes| bytes.get(TOLD) == Some(&0))
            .filter_map(|bytes| decode(&bytes))
    }

    /// After `detach`: calls that have a child and have not returned, such as a vfork that waits for it.
    pub(crate) fn unreturned(&self) -> Vec<Call> {
        let mut calls: Vec<Call> = self.under_way().filter(|call| call.child.is_some()).collect();
        calls.sort_by_key(|call| call.start_ns);
        calls
    }

    /// After `detach`: nobody knows what became of a call that has neither returned nor a child.
    pub(crate) fn losses(&self) -> Result<Losses> {
        let mut losses = Losses::read(&self.skel.maps.losses)?;
        losses.missed_return += self.under_way().filter(|call| call.child.is_none()).count() as u64;
        Ok(losses)
    }
}

impl Tracing for Tracer {
    type Event = Call;

    fn events(&self) -> Result<EventRing<'_, Call>> {
        EventRing::new(&self.skel.maps.events, decode)
    }

    fn detach(&mut self) -> Result<()> {
        self.set_armed(false)?;
        attach::detach_all(&mut self.beginnings);
        // A call that the kernel is just carrying out takes microseconds: its end decides what it was. Those that
        // wait for something have their child already.
        for _ in 0..100 {
            if self.under_way().all(|call| call.child.is_some()) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        attach::detach_all(&mut self.links);
        Ok(())
    }
}

fn select_programs(open: &mut OpenCloneTraceSkel<'_>, backend: Backend) {
    let progs = &mut open.progs;
    progs.bpftk_exit.set_autoload(backend != Backend::Task);
    progs.bpftk_newtask2.set_autoload(backend != Backend::Task);
    for program in [
        &mut progs.bpftk_clone,
        &mut progs.bpftk_clone3,
        &mut progs.bpftk_fork,
        &mut progs.bpftk_vfork,
        &mut progs.bpftk_sysexit,
    ] {
        program.set_autoload(backend == Backend::Syscall);
    }
    for program in [
        &mut progs.bpftk_kp_clone,
        &mut progs.bpftk_kp_clone3,
        &mut progs.bpftk_kp_fork,
        &mut progs.bpftk_kp_vfork,
        &mut progs.bpftk_kr,
    ] {
        program.set_autoload(backend == Backend::Kprobe);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Clone,
    Clone3,
    Fork,
    Vfork,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clone => "clone",
            Self::Clone3 => "clone3",
            Self::Fork => "fork",
            Self::Vfork => "vfork",
        })
    }
}

/// What is made, by the flags; the last that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// With memory of its own, or shared memory and no other mark
    Process,
    /// CLONE_THREAD
    Thread,
    /// CLONE_VFORK: the caller waits until the child executes a program or exits
    Vfork,
    /// Any CLONE_NEW* flag: a container being born
    Namespace,
}

impl Kind {
    fn number(self) -> types::clone_kind {
        match self {
            Self::Process => types::clone_kind::CLONE_KIND_PROCESS,
            Self::Thread => types::clone_kind::CLONE_KIND_THREAD,
            Self::Vfork => types::clone_kind::CLONE_KIND_VFORK,
            Self::Namespace => types::clone_kind::CLONE_KIND_NAMESPACE,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "process",
            Self::Thread => "thread",
            Self::Vfork => "vfork",
            Self::Namespace => "namespace",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    /// With its errno.
    Failed(i32),
    /// A seccomp filter or a tracer answered in the kernel's place, and with no error. Nothing was made.
    Intercepted,
}

/// One call. What was not seen is `None`.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) start_ns: Option<u64>,
    pub(crate) end_ns: Option<u64>,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) ppid: u32,
    pub(crate) uid: u32,
    pub(crate) comm: [u8; 16],
    pub(crate) cgroup_id: u64,
    /// `None` for a new task whose call was not looked at.
    pub(crate) name: Option<Name>,
    pub(crate) outcome: Outcome,
    /// In the initial PID namespace.
    pub(crate) child: Option<u32>,
    /// In the caller's PID namespace, as the call returned it.
    pub(crate) child_ns: Option<u32>,
    pub(crate) shape: Option<Shape>,
    pub(crate) args: Option<Args>,
}

/// What the flags say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) kind: Kind,
    /// As passed; for fork and vfork, what the kernel makes of them.
    pub(crate) flags: u64,
    pub(crate) exit_signal: u64,
}

/// What was passed beside the flags. Addresses are the caller's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Args {
    Clone {
        newsp: u64,
        parent_tidptr: u64,
        child_tidptr: u64,
        tls: u64,
        pidfd_number: Option<i32>,
    },
    Clone3 {
        size: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        /// What `set_tid` points at; `None` when it could not be read.
        set_tids: Option<Vec<u32>>,
        cgroup: u64,
        pidfd_number: Option<i32>,
    },
}

// SAFETY: integers and arrays of integers without hidden padding, as bpf/clone_trace.h asserts.
unsafe impl Plain for types::clone_event {}

const SHORT: usize = offset_of!(types::clone_event, args);
const WITH_ARGS: usize = offset_of!(types::clone_event, tids);
const TOLD: usize = offset_of!(types::clone_event, told);
const _: () = assert!(SHORT == 88 && WITH_ARGS == 88 + 88);
const _: () = assert!(size_of::<types::clone_event>() == 88 + 88 + 4 * 32);

/// A record is as long as what it has to say.
fn decode(bytes: &[u8]) -> Option<Call> {
    let mut whole = [0; size_of::<types::clone_event>()];
    let length = bytes.len().min(whole.len());
    // The ring buffer rounds nothing: a length in between is a record cut short.
    let with_args = match length {
        SHORT => false,
        WITH_ARGS => true,
        _ if length == whole.len() => true,
        _ => return None,
    };
    whole[..length].copy_from_slice(&bytes[..length]);
    let event: types::clone_event = copy_from(&whole)?;
    Some(Call {
        start_ns: seen(event.start_ns),
        end_ns: seen(event.end_ns),
        pid: event.pid,
        tid: event.tid,
        ppid: event.ppid,
        uid: event.uid,
        comm: event.comm,
        cgroup_id: event.cgroup_id,
        name: match types::clone_call(event.call.into()) {
            types::clone_call::CLONE_CALL_CLONE => Some(Name::Clone),
            types::clone_call::CLONE_CALL_CLONE3 => Some(Name::Clone3),
            types::clone_call::CLONE_CALL_FORK => Some(Name::Fork),
            types::clone_call::CLONE_CALL_VFORK => Some(Name::Vfork),
            types::clone_call::CLONE_CALL_NONE => None,
            _ => return None,
        },
        outcome: match event.result {
            ..0 => Outcome::Failed(i32::try_from(-event.result).ok()?),
            0 if event.child == 0 => Outcome::Intercepted,
            _ => Outcome::Ok,
        },
        child: (event.child != 0).then_some(event.child),
        child_ns: u32::try_from(event.result).ok().filter(|&id| id != 0),
        shape: shape(&event),
        args: (with_args && event.has_args != 0).then(|| args(&event)),
    })
}

fn seen(ns: u64) -> Option<u64> {
    (ns != 0).then_some(ns)
}

fn shape(event: &types::clone_event) -> Option<Shape> {
    let kind =
        Kind::value_variants().iter().find(|kind| kind.number().0 == u32::from(event.kind))?;
    Some(Shape { kind: *kind, flags: event.flags, exit_signal: event.exit_signal })
}

fn args(event: &types::clone_event) -> Args {
    let args = &event.args;
    let pidfd_number = (args.pidfd_number >= 0).then_some(args.pidfd_number);
    if types::clone_call(event.call.into()) == types::clone_call::CLONE_CALL_CLONE {
        return Args::Clone {
            newsp: args.stack,
            parent_tidptr: args.parent_tid,
            child_tidptr: args.child_tid,
            tls: args.tls,
            pidfd_number,
        };
    }
    let read = (args.set_tids as usize).min(event.tids.len());
    let all = u64::from(args.set_tids) == args.set_tid_size;
    Args::Clone3 {
        size: args.size,
        pidfd: args.pidfd,
        child_tid: args.child_tid,
        parent_tid: args.parent_tid,
        stack: args.stack,
        stack_size: args.stack_size,
        tls: args.tls,
        set_tid: args.set_tid,
        set_tid_size: args.set_tid_size,
        set_tids: all.then(|| event.tids[..read].to_vec()),
        cgroup: args.cgroup,
        pidfd_number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(event: &types::clone_event) -> Vec<u8> {
        // SAFETY: the type is plain old data, as asserted above.
        unsafe { plain::as_bytes(event) }.to_vec()
    }

    #[test]
    fn a_record_of_another_length_is_no_call() {
        let whole = bytes(&types::clone_event::default());
        for length in [0, 1, SHORT - 1, SHORT + 1, WITH_ARGS - 8, whole.len() - 4] {
            assert!(decode(&whole[..length]).is_none(), "{length}");
        }
        for length in [SHORT, WITH_ARGS, whole.len()] {
            assert!(decode(&whole[..length]).is_some(), "{length}");
        }
        let odd = types::clone_event { call: 99, ..Default::default() };
        assert!(decode(&bytes(&odd)).is_none());
    }

    #[test]
    fn success_failure_and_what_was_not_seen() {
        let mut event = types::clone_event {
            result: 7,
            child: 4711,
            call: types::clone_call::CLONE_CALL_FORK.0 as u8,
            kind: types::clone_kind::CLONE_KIND_PROCESS.0 as u8,
            ..Default::default()
        };
        let call = decode(&bytes(&event)[..SHORT]).unwrap();
        assert_eq!((call.child, call.child_ns), (Some(4711), Some(7)));
        assert_eq!((call.outcome, call.start_ns), (Outcome::Ok, None));
        assert_eq!(call.shape.unwrap().kind, Kind::Process);
        event.result = -11;
        event.child = 0;
        event.kind = 0;
        let call = decode(&bytes(&event)[..SHORT]).unwrap();
        assert_eq!((call.child, call.child_ns), (None, None));
        assert_eq!((call.outcome, call.shape), (Outcome::Failed(11), None));
        event.result = 0;
        assert_eq!(decode(&bytes(&event)[..SHORT]).unwrap().outcome, Outcome::Intercepted);
    }
}
