// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel side of `tcpconnect`: its programs, loaded and attached by back end, and its records.

use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use ipnet::IpNet;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags};
use plain::Plain;

use super::addr::canonical;
use super::backend::{self, Chosen};
use super::btf::BtfSource;
use super::cgroup::Root;
use super::dns::DnsPiece;
use super::losses::Losses;
use super::prefixes::prefixes;
use super::ring::{EventRing, copy_from};
use super::run::Tracing;
use super::skel::tcpconnect::{
    OpenTcpconnectSkel, RELOCATED_TYPES, TcpconnectSkel, TcpconnectSkelBuilder, types,
};
use super::task_filter::{TaskFilter, configure_task_filter};
use super::tracefs::Tracefs;
use super::{attach, limits, log, probes};
use crate::error::unsupported;
use crate::kernel::refusal;

/// How calls are seen, whose failures before the first packet change no socket's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Backend {
    /// fentry and fexit of __inet_stream_connect
    Fentry,
    /// kprobe and kretprobe of tcp_v4_connect and tcp_v6_connect
    Kprobe,
    /// Tracepoints only: system calls and io_uring
    Tracepoint,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        })
    }
}

impl Backend {
    /// The cheapest for the machine first.
    pub(crate) const ORDER: [Self; 3] = [Self::Fentry, Self::Kprobe, Self::Tracepoint];

    /// Whether tcp_v6_connect is hooked: not if the kernel has no such function.
    fn traces_v6(self) -> Result<bool> {
        if self != Self::Kprobe {
            return Ok(false);
        }
        match probes::kprobe(c"tcp_v6_connect") {
            Err(error) if !limits::is_lacking(&error) => Err(error),
            tried => Ok(tried.is_ok()),
        }
    }
}

/// What the programs are told before they are loaded.
#[derive(Debug, Default)]
pub(crate) struct Config {
    pub(crate) btf: BtfSource,
    pub(crate) tasks: TaskFilter,
    pub(crate) at_start: bool,
    pub(crate) failed_only: bool,
    pub(crate) min_latency_ns: u64,
    /// 4 or 6; 0 is both.
    pub(crate) family: u8,
    /// Inode number; 0 is all.
    pub(crate) netns: u32,
    /// One bit a port.
    pub(crate) ports: Option<Vec<u64>>,
    pub(crate) dst: Vec<IpNet>,
    pub(crate) exclude: Vec<IpNet>,
    pub(crate) dns: bool,
    /// Attempts that may be under way.
    pub(crate) max_pending: u32,
}

/// The programs, attached. Dropping it detaches them.
pub(crate) struct Tracer {
    /// Dropped before the programs they attach.
    links: Vec<Link>,
    /// Whether there are second copies of programs.
    preempted: bool,
    /// Whether there are questions and answers beside rows.
    dns: bool,
    skel: TcpconnectSkel<'static>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("links", &self.links.len()).finish_non_exhaustive()
    }
}

/// Loads and attaches by the first back end that works here.
pub(crate) fn arm(config: &Config, forced: Option<Backend>) -> Result<Chosen<Backend, Tracer>> {
    probes::may_read_kernel()?;
    // No back end changes what names need: programs where every socket of the machine is below.
    let dns_root = if config.dns { Some(Root::open()?.into_dir()) } else { None };
    backend::choose(&Backend::ORDER, forced, |backend| arm_by(config, backend, dns_root.as_ref()))
}

fn arm_by(config: &Config, backend: Backend, dns_root: Option<&File>) -> Result<Tracer> {
    match backend {
        Backend::Fentry => probes::fentry_allowed().map_err(unsupported)?,
        Backend::Kprobe => probes::kprobe(c"tcp_v4_connect")?,
        Backend::Tracepoint => {}
    }
    Tracer::load(config, backend, dns_root)
}

/// What the programs of back end fentry attach to.
const TARGETS: &[&str] =
    &["__inet_stream_connect", "security_socket_connect", "btf_trace_inet_sock_set_state"];

/// Calls that may be in the kernel at a time and be followed.
const MAX_CALLS: u32 = 8192;
/// io_uring connects that may be submitted and not complete, on kernels whose completions don't name the request.
const MAX_URING: u32 = 4096;

impl Tracer {
    fn load(config: &Config, backend: Backend, dns_root: Option<&File>) -> Result<Self> {
        let mut builder = TcpconnectSkelBuilder::default();
        let targets = if backend == Backend::Fentry { TARGETS } else { &[] };
        let types = config.btf.apply(&mut builder.obj_builder, RELOCATED_TYPES, targets)?;
        let _targets = attach::tracing_targets(&types)?;
        log::clear();
        // The skeleton borrows this cell for as long as it lives; it is a pointer's size.
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = builder
            .open(cell)
            .map_err(|error| anyhow!("cannot open the programs: {}", log::explain(error)))?;

        let mut preempted = match backend {
            Backend::Fentry => probes::may_preempt_trampolines(),
            Backend::Kprobe | Backend::Tracepoint => probes::may_preempt_tracepoints(),
        };
        let tracefs = match backend {
            Backend::Tracepoint => Some(Tracefs::open()?),
            _ if preempted => match Tracefs::open() {
                Err(error) if limits::is_lacking(&error) => None,
                opened => Some(opened?),
            },
            _ => None,
        };
        // One of the copies needs it. Without copies, what was skipped is told.
        preempted &= tracefs.is_some();
        let copies = preempted && backend == Backend::Fentry;
        let uring = match &tracefs {
            Some(tracefs) if backend == Backend::Tracepoint => Uring::of(tracefs)?,
            _ => Uring::None,
        };

        let rodata = open.maps.rodata_data.as_deref_mut().context("the object has no constants")?;
        rodata.at_start = config.at_start.into();
        rodata.failed_only = config.failed_only.into();
        rodata.min_latency_ns = config.min_latency_ns;
        rodata.filter_family = config.family;
        rodata.filter_netns = config.netns;
        rodata.dns_netns = config.netns;
        rodata.filter_by_port = config.ports.is_some().into();
        rodata.filter_by_dst = (!config.dst.is_empty()).into();
        rodata.filter_by_exclude = (!config.exclude.is_empty()).into();
        rodata.has_v6_hooks = backend.traces_v6()?.into();
        rodata.has_copies = preempted.into();
        rodata.may_miss_returns = (backend == Backend::Kprobe || copies).into();
        rodata.has_uring_hooks = (uring != Uring::None).into();
        rodata.nr_connect = libc::SYS_connect as i32;
        rodata.nr_sendto = libc::SYS_sendto as i32;
        rodata.nr_sendmmsg = libc::SYS_sendmmsg as i32;
        rodata.nr_sendmsg = libc::SYS_sendmsg as i32;
        configure_task_filter!(open, &config.tasks);
        let (dst, exclude) = (prefixes(&config.dst), prefixes(&config.exclude));
        for (map, prefixes) in
            [(&mut open.maps.filter_dst, &dst), (&mut open.maps.filter_exclude, &exclude)]
        {
            map.set_max_entries(prefixes.len().max(1) as u32).context("cannot size a filter")?;
        }

        let maps = &mut open.maps;
        for (map, entries) in [
            (&mut maps.attempts, config.max_pending.max(1)),
            (&mut maps.calls, MAX_CALLS),
            (&mut maps.checks, MAX_CALLS),
            (&mut maps.uring_requests, MAX_URING),
        ] {
            map.set_max_entries(entries).context("cannot size a table")?;
        }
        // What no program will look at need not be made: each map costs start-up time.
        for (map, needed) in [
            (&mut maps.checks, backend == Backend::Kprobe || preempted),
            (&mut maps.uring_requests, uring == Uring::BySubmission),
            (&mut maps.dns_events, config.dns),
            (&mut maps.filter_ports, config.ports.is_some()),
            (&mut maps.filter_dst, !config.dst.is_empty()),
            (&mut maps.filter_exclude, !config.exclude.is_empty()),
        ] {
            map.set_autocreate(needed).context("cannot leave out a map")?;
        }

        select_programs(&mut open, backend, preempted, uring, config.dns);
        log::clear();
        let skel = open
            .load()
            .map_err(|error| refusal::of_load("the kernel refuses the programs", error))?;

        let maps = &skel.maps;
        config.tasks.fill(&maps.filter_pids, &maps.filter_uids, &maps.filter_cgroup)?;
        for (i, word) in config.ports.iter().flatten().enumerate() {
            maps.filter_ports
                .update(&(i as u32).to_ne_bytes(), &word.to_ne_bytes(), MapFlags::ANY)
                .context("cannot filter by port")?;
        }
        for (map, prefixes) in [(&maps.filter_dst, &dst), (&maps.filter_exclude, &exclude)] {
            for (key, included) in prefixes {
                map.update(key, &[u8::from(*included)], MapFlags::ANY)
                    .context("cannot filter by destination")?;
            }
        }

        let mut tracer = Self { links: Vec::new(), preempted, dns: config.dns, skel };
        tracer.attach(backend, tracefs.as_ref(), uring, dns_root)?;
        Ok(tracer)
    }

    fn attach(
        &mut self,
        backend: Backend,
        tracefs: Option<&Tracefs>,
        uring: Uring,
        dns_root: Option<&File>,
    ) -> Result<()> {
        let progs = &self.skel.progs;
        let links = &mut self.links;
        if let Some(root) = dns_root {
            // First what asks: an answer whose question wasn't seen names nothing.
            links.push(attach::cgroup(&progs.bpftk_question, root)?);
            links.push(attach::cgroup(&progs.bpftk_dns, root)?);
        }
        // The end of an attempt before its beginning: what begins while we attach is either seen whole or not.
        if backend != Backend::Fentry || self.preempted {
            links.push(attach::auto(&progs.bpftk_destroy)?);
        }
        if backend == Backend::Kprobe || self.preempted {
            links.push(attach::auto(&progs.bpftk_exit)?);
        }
        links.extend(attach::auto_if_there(&progs.bpftk_error)?);
        if backend != Backend::Tracepoint {
            links.extend(attach::auto_if_there(&progs.bpftk_landlock)?);
        }
        if backend == Backend::Fentry {
            links.push(attach::trace(&progs.bpftk_state_btf)?);
        } else {
            links.push(attach::auto(&progs.bpftk_set_state)?);
        }
        if self.preempted {
            let tracefs = tracefs.context("the copy has tracefs")?;
            let copy = &progs.bpftk_state2;
            links.push(attach::tracepoint(tracefs, copy, "sock", "inet_sock_set_state")?);
        }
        match backend {
            Backend::Fentry => {
                links.push(attach::trace(&progs.bpftk_fx_lsm)?);
                if self.preempted {
                    links.push(attach::trace(&progs.bpftk_fx_lsm2)?);
                }
                links.push(attach::trace(&progs.bpftk_fx_conn)?);
                if self.preempted {
                    links.push(attach::trace(&progs.bpftk_fx_conn2)?);
                }
                links.push(attach::trace(&progs.bpftk_fe_conn)?);
                if self.preempted {
                    links.push(attach::trace(&progs.bpftk_fe_conn2)?);
                }
            }
            Backend::Kprobe => {
                links.push(attach::kprobe(&progs.bpftk_kr_v4, true, "tcp_v4_connect")?);
                links.push(attach::kprobe(&progs.bpftk_kp_v4, false, "tcp_v4_connect")?);
                // Return before entry: an entry without its return would leave an open call behind.
                for (ret, entry, function) in [
                    (&progs.bpftk_kr_v6, &progs.bpftk_kp_v6, "tcp_v6_connect"),
                    (&progs.bpftk_kr_pre4, &progs.bpftk_kp_pre4, "tcp_v4_pre_connect"),
                    (&progs.bpftk_kr_pre6, &progs.bpftk_kp_pre6, "tcp_v6_pre_connect"),
                    (&progs.bpftk_kr_lsm, &progs.bpftk_kp_lsm, "security_socket_connect"),
                ] {
                    // A kernel without IPv6, or without cgroup BPF, lacks the function.
                    if let Some(link) = attach::kprobe_if_there(ret, true, function)? {
                        links.push(link);
                        links.push(attach::kprobe(entry, false, function)?);
                    }
                }
            }
            Backend::Tracepoint => {
                let tracefs = tracefs.context("the tracepoint back end has tracefs")?;
                for (exit, enter, call) in [
                    (&progs.bpftk_sysexit, &progs.bpftk_connect, "connect"),
                    (&progs.bpftk_sysexit, &progs.bpftk_send, "sendto"),
                    (&progs.bpftk_sysexit, &progs.bpftk_connect, "sendmsg"),
                    (&progs.bpftk_sysexit, &progs.bpftk_send, "sendmmsg"),
                ] {
                    links.push(attach::tracepoint(
                        tracefs,
                        exit,
                        "syscalls",
                        &format!("sys_exit_{call}"),
                    )?);
                    links.push(attach::tracepoint(
                        tracefs,
                        enter,
                        "syscalls",
                        &format!("sys_enter_{call}"),
                    )?);
                }
                if uring != Uring::None {
                    let program = &progs.bpftk_uring_end;
                    links.push(attach::tracepoint(
                        tracefs,
                        program,
                        "io_uring",
                        "io_uring_complete",
                    )?);
                }
                if uring == Uring::BySubmission {
                    let program = &progs.bpftk_uring_sub;
                    links.push(attach::tracepoint(
                        tracefs,
                        program,
                        "io_uring",
                        "io_uring_submit_sqe",
                    )?);
                }
            }
        }
        Ok(())
    }

    /// The attempts that nobody has answered, after `detach`.
    pub(crate) fn pending(&self) -> Vec<Attempt> {
        let map = &self.skel.maps.attempts;
        let mut pending: Vec<Attempt> = map
            .keys()
            .filter_map(|key| map.lookup(&key, MapFlags::ANY).ok().flatten())
            .filter_map(|bytes| copy_from::<types::tcpconnect_attempt>(&bytes))
            .filter(|attempt| attempt.flags & SYN_SENT != 0 && attempt.flags & SILENT == 0)
            .map(Attempt::from)
            .collect();
        pending.sort_by_key(|attempt| attempt.start_ns);
        pending
    }

    /// Entries in the tables of what is under way.
    pub(crate) fn entries(&self) -> usize {
        let maps = &self.skel.maps;
        let tables = [&maps.attempts, &maps.calls, &maps.checks, &maps.uring_requests];
        tables.iter().map(|map| map.keys().count()).sum()
    }

    pub(crate) fn losses(&self) -> Result<Losses> {
        let mut losses = Losses::read(&self.skel.maps.losses)?;
        let progs = &self.skel.progs;
        for (program, copy) in [
            (&progs.bpftk_set_state, Some(&progs.bpftk_state2)),
            (&progs.bpftk_state_btf, Some(&progs.bpftk_state2)),
            (&progs.bpftk_fe_conn, Some(&progs.bpftk_fe_conn2)),
            (&progs.bpftk_fx_conn, Some(&progs.bpftk_fx_conn2)),
            (&progs.bpftk_fx_lsm, Some(&progs.bpftk_fx_lsm2)),
            (&progs.bpftk_connect, None),
            (&progs.bpftk_send, None),
            (&progs.bpftk_sysexit, None),
        ] {
            if !program.autoload() {
                continue;
            }
            // What a program was skipped for, its copy did.
            let last = if self.preempted { copy.unwrap_or(program) } else { program };
            losses.skipped += attach::times_skipped(last);
        }
        Ok(losses)
    }
}

impl Tracing for Tracer {
    type Event = Event;

    fn events(&self) -> Result<EventRing<'_, Event>> {
        let ring = EventRing::new(&self.skel.maps.events, decode)?;
        if !self.dns {
            return Ok(ring);
        }
        ring.with_ahead(&self.skel.maps.dns_events, |bytes| DnsPiece::decode(bytes).map(Event::Dns))
    }

    fn detach(&mut self) -> Result<()> {
        attach::detach_all(&mut self.links);
        Ok(())
    }
}

/// bpf/tcpconnect.h
const SYN_SENT: u32 = 2;
const SILENT: u32 = 8;

fn select_programs(
    open: &mut OpenTcpconnectSkel<'_>,
    backend: Backend,
    preempted: bool,
    uring: Uring,
    dns: bool,
) {
    let progs = &mut open.progs;
    progs.bpftk_dns.set_autoload(dns);
    progs.bpftk_question.set_autoload(dns);
    progs.bpftk_state2.set_autoload(preempted);
    progs.bpftk_state_btf.set_autoload(backend == Backend::Fentry);
    progs.bpftk_set_state.set_autoload(backend != Backend::Fentry);
    for copy in [&mut progs.bpftk_fe_conn2, &mut progs.bpftk_fx_conn2, &mut progs.bpftk_fx_lsm2] {
        copy.set_autoload(backend == Backend::Fentry && preempted);
    }
    for program in [&mut progs.bpftk_fe_conn, &mut progs.bpftk_fx_conn, &mut progs.bpftk_fx_lsm] {
        program.set_autoload(backend == Backend::Fentry);
    }
    for program in [
        &mut progs.bpftk_kp_v4,
        &mut progs.bpftk_kr_v4,
        &mut progs.bpftk_kp_v6,
        &mut progs.bpftk_kr_v6,
        &mut progs.bpftk_kp_pre4,
        &mut progs.bpftk_kr_pre4,
        &mut progs.bpftk_kp_pre6,
        &mut progs.bpftk_kr_pre6,
        &mut progs.bpftk_kp_lsm,
        &mut progs.bpftk_kr_lsm,
    ] {
        program.set_autoload(backend == Backend::Kprobe);
    }
    for program in [&mut progs.bpftk_connect, &mut progs.bpftk_send, &mut progs.bpftk_sysexit] {
        program.set_autoload(backend == Backend::Tracepoint);
    }
    progs.bpftk_landlock.set_autoload(backend != Backend::Tracepoint);
    progs.bpftk_exit.set_autoload(backend == Backend::Kprobe || preempted);
    progs.bpftk_destroy.set_autoload(backend != Backend::Fentry || preempted);
    progs.bpftk_uring_end.set_autoload(uring != Uring::None);
    progs.bpftk_uring_sub.set_autoload(uring == Uring::BySubmission);
}

/// How io_uring's tracepoints tell of a connect that failed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Uring {
    /// No io_uring in this kernel.
    None,
    /// The completion names the request, Linux 5.19.
    ByCompletion,
    /// It names only what the submission named too.
    BySubmission,
}

impl Uring {
    fn of(tracefs: &Tracefs) -> Result<Self> {
        Ok(if tracefs.event_has_field("io_uring", "io_uring_complete", "req")? {
            Self::ByCompletion
        } else if tracefs.event_has_field("io_uring", "io_uring_submit_sqe", "req")? {
            Self::BySubmission
        } else {
            Self::None
        })
    }
}

/// What comes through the ring buffer.
#[derive(Debug)]
pub(crate) enum Event {
    Attempt(Attempt),
    Dns(DnsPiece),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pending,
    Ok,
    /// With its errno.
    Failed(i32),
    /// The caller closed the socket before an answer came.
    Closed,
    /// Failed; the kernel did not show why.
    Unknown,
}

/// One connect attempt. Ports and addresses that it never had are `None`.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    /// Not its beginning was seen, but only that it failed: the times are the same, and there is no latency.
    pub(crate) instant: bool,
    pub(crate) pid: u32,
    pub(crate) tid: u32,
    pub(crate) uid: u32,
    pub(crate) comm: [u8; 16],
    pub(crate) cgroup_id: u64,
    pub(crate) netns: u32,
    pub(crate) saddr: Option<IpAddr>,
    pub(crate) sport: Option<u16>,
    pub(crate) daddr: IpAddr,
    pub(crate) dport: u16,
    pub(crate) outcome: Outcome,
}

// SAFETY: integers and arrays of integers without hidden padding, as bpf/tcpconnect.h asserts.
unsafe impl Plain for types::tcpconnect_event {}
// SAFETY: as above.
unsafe impl Plain for types::tcpconnect_attempt {}

const _: () = assert!(size_of::<types::tcpconnect_event>() == 104);
const _: () = assert!(size_of::<types::tcpconnect_attempt>() == 128);

fn decode(bytes: &[u8]) -> Option<Event> {
    let event = copy_from::<types::tcpconnect_event>(bytes)?;
    let known = types::bpftk_record(event.record) == types::bpftk_record::BPFTK_RECORD_EVENT;
    known.then(|| Event::Attempt(event.into()))
}

impl From<types::tcpconnect_event> for Attempt {
    fn from(event: types::tcpconnect_event) -> Self {
        let saddr = canonical(event.saddr);
        Self {
            start_ns: event.start_ns,
            end_ns: event.end_ns,
            instant: event.instant != 0,
            pid: event.pid,
            tid: event.tid,
            uid: event.uid,
            comm: event.comm,
            cgroup_id: event.cgroup_id,
            netns: event.netns,
            saddr: (!saddr.is_unspecified()).then_some(saddr),
            sport: (event.sport != 0).then_some(event.sport),
            daddr: canonical(event.daddr),
            dport: event.dport,
            outcome: match types::tcpconnect_verdict(event.verdict.into()) {
                types::tcpconnect_verdict::TCPCONNECT_PENDING => Outcome::Pending,
                types::tcpconnect_verdict::TCPCONNECT_OK => Outcome::Ok,
                types::tcpconnect_verdict::TCPCONNECT_FAILED => Outcome::Failed(event.error as i32),
                types::tcpconnect_verdict::TCPCONNECT_CLOSED => Outcome::Closed,
                _ => Outcome::Unknown,
            },
        }
    }
}

/// What is in the table at the end: nobody has answered, unless the socket has told its program of an error.
impl From<types::tcpconnect_attempt> for Attempt {
    fn from(attempt: types::tcpconnect_attempt) -> Self {
        let mut row = Self::from(attempt.event);
        if attempt.told_error != 0 {
            row.end_ns = attempt.told_ns;
            row.outcome = Outcome::Failed(attempt.told_error as i32);
        }
        row
    }
}

impl Attempt {
    /// The time from the call to what decided it.
    pub(crate) fn latency_ns(&self) -> Option<u64> {
        let decided = self.outcome != Outcome::Pending && !self.instant;
        decided.then(|| self.end_ns.saturating_sub(self.start_ns))
    }

    /// The same, if what decided it was an answer, or that none came: not its caller, who gave up.
    pub(crate) fn time_to_answer_ns(&self) -> Option<u64> {
        let answered = matches!(self.outcome, Outcome::Ok | Outcome::Failed(_));
        self.latency_ns().filter(|_| answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    #[test]
    fn a_short_or_unknown_record_is_no_event() {
        assert!(decode(&[]).is_none());
        assert!(decode(&1_u32.to_ne_bytes()).is_none());
        assert!(decode(&[0xff; 104]).is_none());
    }

    #[test]
    fn an_attempt_is_decoded() {
        let mut event = types::tcpconnect_event {
            record: 1,
            error: 111,
            dport: 443,
            verdict: 2,
            ..Default::default()
        };
        event.daddr = "::ffff:192.0.2.1".parse::<Ipv6Addr>().unwrap().octets();
        let attempt = Attempt::from(event);
        assert_eq!(attempt.daddr, "192.0.2.1".parse::<IpAddr>().unwrap());
        assert_eq!((attempt.saddr, attempt.sport), (None, None));
        assert_eq!(attempt.outcome, Outcome::Failed(111));
    }

    #[test]
    fn only_an_answer_has_a_time_to_it() {
        let mut event =
            types::tcpconnect_event { start_ns: 1, end_ns: 8, verdict: 2, ..Default::default() };
        let times = |event| {
            let attempt = Attempt::from(event);
            (attempt.latency_ns(), attempt.time_to_answer_ns())
        };
        assert_eq!(times(event), (Some(7), Some(7)));
        event.verdict = types::tcpconnect_verdict::TCPCONNECT_CLOSED.0 as u8;
        assert_eq!(times(event), (Some(7), None));
        event.verdict = types::tcpconnect_verdict::TCPCONNECT_PENDING.0 as u8;
        assert_eq!(times(event), (None, None));
        event.verdict = 2;
        event.instant = 1;
        assert_eq!(times(event), (None, None));
    }

    #[test]
    fn an_error_that_was_told_decides_what_is_left_at_the_end() {
        let mut left = types::tcpconnect_attempt::default();
        assert_eq!(Attempt::from(left).outcome, Outcome::Pending);
        (left.told_error, left.told_ns) = (113, 9);
        let attempt = Attempt::from(left);
        assert_eq!((attempt.outcome, attempt.end_ns), (Outcome::Failed(113), 9));
    }
}
