// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk clone-trace`: what an actor does is what is printed of it, on every back end that the kernel has.

use std::ffi::c_void;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    self, Actor, Cgroup, Run, Running, Stage, bpftk, map_entries, output, programs, programs_left,
    stderr,
};

fn backends() -> &'static [&'static str] {
    static HERE: OnceLock<Vec<&'static str>> = OnceLock::new();
    HERE.get_or_init(|| support::backends("clone-trace", &["syscall", "kprobe", "task"]))
}

/// Those that see calls, not only new tasks.
fn call_backends() -> impl Iterator<Item = &'static str> {
    backends().iter().copied().filter(|name| *name != "task")
}

fn vm() -> bool {
    std::env::var_os("BPFTK_VM").is_some()
}

// ------------------------------------------------------------------ what an actor can do

const STACK: usize = 64 * 1024;

/// The child returns 0 from the call, as the caller gets an id or a negative errno.
fn raw(number: libc::c_long, args: [u64; 5]) -> i64 {
    // SAFETY: the callers pass what the system call expects; none asks for shared memory without a stack.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) };
    if result < 0 { -i64::from(nix::errno::Errno::last_raw()) } else { result }
}

fn exit_now() -> ! {
    // SAFETY: ends the process, without anybody's clean-up.
    unsafe { libc::_exit(0) }
}

fn reap(pid: i64) {
    // SAFETY: no status is asked for. `__WALL` is for children that send no SIGCHLD.
    unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::__WALL) };
}

/// clone with these flags and no stack: a copy, which ends at once. Returns what the call returned.
fn clone_exit(flags: u64) -> i64 {
    let child = raw(libc::SYS_clone, [flags, 0, 0, 0, 0]);
    if child == 0 {
        exit_now();
    }
    if child > 0 {
        reap(child);
    }
    child
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn clone3_sized(args: *const CloneArgs, size: u64) -> i64 {
    let child = raw(libc::SYS_clone3, [args as u64, size, 0, 0, 0]);
    if child == 0 {
        exit_now();
    }
    if child > 0 {
        reap(child);
    }
    child
}

fn clone3(args: &CloneArgs) -> i64 {
    clone3_sized(args, size_of::<CloneArgs>() as u64)
}

extern "C" fn end(_: *mut c_void) -> libc::c_int {
    0
}

/// A child in the caller's memory, on a stack of its own, that runs `child`.
fn clone_vm(flags: libc::c_int, child: extern "C" fn(*mut c_void) -> libc::c_int, arg: i32) -> i64 {
    let mut stack = vec![0_u8; STACK];
    // SAFETY: the child ends before the stack is freed: the caller waits for it in the call.
    unsafe {
        let top = stack.as_mut_ptr().add(STACK).cast::<c_void>();
        let pid = libc::clone(child, top, flags | libc::CLONE_VM, arg as usize as *mut c_void);
        i64::from(pid)
    }
}

fn vfork_like() -> i64 {
    let child = clone_vm(libc::CLONE_VFORK | libc::SIGCHLD, end, 0);
    reap(child);
    child
}

/// The real fork(2), where there is one.
#[cfg(target_arch = "x86_64")]
fn fork() -> i64 {
    let child = raw(libc::SYS_fork, [0; 5]);
    if child == 0 {
        exit_now();
    }
    reap(child);
    child
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[allow(deprecated)]
fn vfork() -> i64 {
    // SAFETY: the child only exits.
    let child = unsafe { libc::vfork() };
    if child == 0 {
        exit_now();
    }
    reap(child.into());
    child.into()
}

// ------------------------------------------------------------------ running and reading

/// Follows one actor with these options, lets it do its work, and returns its numbers and the run.
fn follow(backend: &str, options: &[&str], work: impl FnOnce(&mut Stage)) -> (u32, Vec<i64>, Run) {
    let mut actor = Actor::new(work);
    let pid = actor.pid();
    let running = start(backend, pid, options);
    actor.go();
    let numbers = actor.finish();
    (pid, numbers, running.stop())
}

fn start(backend: &str, pid: u32, options: &[&str]) -> Running {
    let pid = pid.to_string();
    let mut args = vec!["clone-trace", "--backend", backend, "-p", &pid];
    args.extend(options);
    Running::json(&args)
}

fn flags(event: &Value) -> Vec<&str> {
    event["flags"]
        .as_array()
        .unwrap_or_else(|| panic!("{event}"))
        .iter()
        .map(|flag| flag.as_str().unwrap())
        .collect()
}

/// The summary agrees with the rows, and nothing was lost.
fn nothing_lost(run: &Run) {
    let summary = run.summary();
    assert_eq!(summary["lost"], 0, "{summary}");
    let events = run.events();
    assert_eq!(summary["calls"], events.len(), "{summary}");
    let failed = events.iter().filter(|e| e["result"] != "ok").count();
    assert_eq!(summary["failed"], failed, "{summary}");
}

// ------------------------------------------------------------------ what a row says

#[test]
fn each_call_is_one_row() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let (pid, children, run) = follow(backend, &[], |stage| {
            #[cfg(target_arch = "x86_64")]
            {
                stage.put(fork());
                stage.put(vfork());
            }
            stage.put(clone_exit(libc::SIGCHLD as u64));
            stage.put(clone3(&CloneArgs {
                exit_signal: libc::SIGURG as u64,
                ..CloneArgs::default()
            }));
            stage.put(vfork_like());
        });
        let mut expected = vec![
            ("clone", "process", vec![], 17),
            ("clone3", "process", vec![], 23),
            ("clone", "vfork", vec!["CLONE_VM", "CLONE_VFORK"], 17),
        ];
        if cfg!(target_arch = "x86_64") {
            let of_old = [
                ("fork", "process", vec![], 17),
                ("vfork", "vfork", vec!["CLONE_VM", "CLONE_VFORK"], 17),
            ];
            expected.splice(0..0, of_old);
        }
        let events = run.events();
        assert_eq!(events.len(), expected.len(), "{backend}: {}", run.stdout);
        for ((event, (call, kind, names, signal)), child) in
            events.iter().zip(expected).zip(&children)
        {
            let told = |value: Value| {
                if *backend == "task" { Value::Null } else { value }
            };
            assert_eq!(event["call"], told(call.into()), "{backend}: {event}");
            assert_eq!(event["kind"], kind, "{backend}: {event}");
            assert_eq!(flags(event), names, "{backend}: {event}");
            assert_eq!(event["exit_signal"], signal, "{backend}: {event}");
            assert_eq!(event["child"], *child, "{backend}: {event}");
            assert_eq!(event["child_ns"], told((*child).into()), "{backend}: {event}");
            assert_eq!(event["pid"], pid);
            assert_eq!(event["tid"], pid);
            assert_eq!(event["ppid"], std::process::id());
            assert_eq!(event["uid"], 0);
            assert_eq!((&event["result"], &event["errno"]), (&"ok".into(), &Value::Null));
            assert_eq!(event["latency_us"].is_null(), *backend == "task", "{event}");
            assert_eq!(event["args"], Value::Null);
        }
        nothing_lost(&run);
    }
}

#[test]
fn a_vforks_row_has_the_time_that_the_caller_waited() {
    if !support::root() {
        return;
    }
    extern "C" fn nap(_: *mut c_void) -> libc::c_int {
        std::thread::sleep(Duration::from_millis(60));
        0
    }
    for backend in call_backends() {
        let (_, _, run) = follow(backend, &["--latency"], |_| {
            reap(clone_vm(libc::CLONE_VFORK | libc::SIGCHLD, nap, 0));
        });
        let latency = run.events()[0]["latency_us"].as_f64().unwrap();
        assert!((60_000.0..10e6).contains(&latency), "{backend}: {latency}");
    }
}

#[test]
fn a_thread_is_told_from_a_process_and_belongs_to_its_process() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let (pid, numbers, run) = follow(backend, &[], |stage| {
            // A process made by a thread that is not the first, as Go programs make them.
            let (tid, child) = std::thread::spawn(|| {
                // SAFETY: no arguments.
                let tid = unsafe { libc::gettid() };
                (i64::from(tid), clone_exit(libc::SIGCHLD as u64))
            })
            .join()
            .unwrap();
            stage.put(tid);
            stage.put(child);
        });
        let events = run.events();
        assert_eq!(events.len(), 2, "{backend}: {}", run.stdout);
        assert_eq!(events[0]["kind"], "thread");
        assert_eq!(events[0]["child"], numbers[0]);
        assert_eq!(events[0]["tid"], pid);
        assert!(flags(&events[0]).contains(&"CLONE_THREAD"), "{}", events[0]);
        assert_eq!(events[1]["kind"], "process");
        assert_eq!((&events[1]["pid"], &events[1]["tid"]), (&pid.into(), &numbers[0].into()));
        assert_eq!(events[1]["child"], numbers[1]);
        nothing_lost(&run);
    }
}

#[test]
fn a_failure_shows_its_errno() {
    if !support::root() {
        return;
    }
    for backend in call_backends() {
        let (_, results, run) = follow(backend, &[], |stage| {
            stage.put(clone_exit(libc::CLONE_THREAD as u64));
            let args = CloneArgs::default();
            stage.put(clone3_sized(&args, 8));
            stage.put(clone3_sized(&args, 2 * 4096));
            stage.put(clone3_sized(std::ptr::null(), 64));
            stage.put(clone3(&CloneArgs { flags: 1 << 40 | libc::CLONE_VFORK as u64, ..args }));
        });
        assert_eq!(results, [-22, -22, -7, -14, -22]);
        let events = run.events();
        let seen: Vec<(&str, &str, i64)> = events
            .iter()
            .map(|event| {
                let text = |name: &str| event[name].as_str().unwrap();
                (text("call"), text("result"), event["errno"].as_i64().unwrap())
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("clone", "EINVAL", 22),
                ("clone3", "EINVAL", 22),
                ("clone3", "E2BIG", 7),
                ("clone3", "EFAULT", 14),
                ("clone3", "EINVAL", 22),
            ],
            "{backend}: {}",
            run.stdout
        );
        assert!(events.iter().all(|event| event["child"].is_null() && event["child_ns"].is_null()));
        assert_eq!(events[0]["kind"], "thread");
        // Flags that can't be read are not made up.
        for field in ["kind", "flags", "flags_raw", "exit_signal"] {
            assert_eq!(events[3][field], Value::Null, "{backend}: {}", events[3]);
        }
        assert_eq!(flags(&events[4]), ["CLONE_VFORK", "0x10000000000"]);
        assert_eq!(events[4]["flags_raw"], (1_u64 << 40) | 0x4000);
        assert_eq!(events[4]["kind"], "vfork");
        nothing_lost(&run);
    }
}

#[test]
fn a_new_namespace_is_a_kind_of_its_own() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let (_, children, run) = follow(backend, &["--kind", "namespace"], |stage| {
            clone_exit(libc::SIGCHLD as u64);
            stage.put(clone_exit((libc::CLONE_NEWUTS | libc::SIGCHLD) as u64));
            stage.put(clone3(&CloneArgs {
                // CLONE_NEWTIME, with which clone would mean a signal; 5.6 has it.
                flags: 0x80,
                exit_signal: 17,
                ..CloneArgs::default()
            }));
            // 0x80 + SIGCHLD is no valid exit signal, and no namespace.
            clone_exit(0x80);
        });
        let events = run.events();
        assert_eq!(events.len(), 2, "{backend}: {}", run.stdout);
        assert_eq!(flags(&events[0]), ["CLONE_NEWUTS"]);
        assert_eq!(flags(&events[1]), ["CLONE_NEWTIME"]);
        for (event, child) in events.iter().zip(children) {
            assert_eq!(event["kind"], "namespace");
            assert_eq!(event["child"], child);
        }
    }
}

#[test]
fn children_have_their_global_id_in_any_pid_namespace() {
    if !support::root() {
        return;
    }
    fn own_global_id() -> i64 {
        // The mount of proc is of the namespace outside.
        let link = fs::read_link("/proc/self").unwrap();
        link.to_str().unwrap().parse().unwrap()
    }
    for backend in backends() {
        // Children are in a new namespace; the first of them makes one more, which is 2 there.
        let mut actor = Actor::new(|stage| {
            // SAFETY: only this process is concerned.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0);
            let first = raw(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0]);
            if first == 0 {
                stage.put(own_global_id());
                let second = raw(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0]);
                if second == 0 {
                    stage.put(own_global_id());
                    exit_now();
                }
                reap(second);
                stage.put(second);
                exit_now();
            }
            reap(first);
            stage.put(first);
        });
        let pid = actor.pid();
        let running = Running::json(&["clone-trace", "--backend", backend]);
        actor.go();
        let numbers = actor.finish();
        let run = running.stop();
        let [first, second, second_ns, first_ns] = numbers[..] else { panic!("{numbers:?}") };
        assert_eq!((second_ns, first_ns), (2, first));
        let of_actor = run.events_of(pid);
        assert_eq!(of_actor.len(), 1, "{of_actor:?}");
        assert_eq!(of_actor[0]["child"], first);
        let of_first = run.events_of(first as u32);
        assert_eq!(of_first.len(), 1, "{of_first:?}");
        assert_eq!(of_first[0]["child"], second, "{backend}");
        if *backend != "task" {
            assert_eq!(of_actor[0]["child_ns"], first);
            assert_eq!(of_first[0]["child_ns"], 2);
        }
    }
}

// ------------------------------------------------------------------ arguments

fn hex(address: u64) -> Value {
    format!("{address:#x}").into()
}

#[test]
fn args_are_what_was_passed() {
    if !support::root() {
        return;
    }
    for backend in call_backends() {
        let (_, numbers, run) = follow(backend, &["--args"], |stage| {
            let (mut parent, mut child) = (0_i32, 0_i32);
            let (parent_tid, child_tid) = (&raw mut parent as u64, &raw mut child as u64);
            // Only with CLONE_SETTLS would the kernel use it.
            let tls = 0x1234_5678;
            let (fourth, fifth) =
                if cfg!(target_arch = "aarch64") { (tls, child_tid) } else { (child_tid, tls) };
            let flags = libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGWINCH;
            let pid = raw(libc::SYS_clone, [flags as u64, 0, parent_tid, fourth, fifth]);
            if pid == 0 {
                exit_now();
            }
            reap(pid);
            for number in [parent_tid as i64, child_tid as i64] {
                stage.put(number);
            }
            let mut pidfd = -1_i32;
            let args = CloneArgs {
                flags: (libc::CLONE_PIDFD | libc::CLONE_PARENT_SETTID) as u64,
                pidfd: &raw mut pidfd as u64,
                child_tid,
                parent_tid,
                exit_signal: 28,
                tls,
                ..CloneArgs::default()
            };
            // Without set_tid and cgroup, as the first version of the struct.
            clone3_sized(&args, 64);
            stage.put(args.pidfd as i64);
            stage.put(pidfd.into());
            // An id that is free now; another process may take it first.
            let tids = [clone_exit(libc::SIGCHLD as u64) as i32];
            let args = CloneArgs {
                exit_signal: 17,
                set_tid: tids.as_ptr() as u64,
                set_tid_size: 1,
                ..CloneArgs::default()
            };
            stage.put(args.set_tid as i64);
            stage.put(tids[0].into());
            stage.put(clone3(&args));
            // clone's own way to give a pidfd.
            let mut pidfd = -1_i32;
            let address = &raw mut pidfd as u64;
            let pid = raw(
                libc::SYS_clone,
                [(libc::CLONE_PIDFD | libc::SIGCHLD) as u64, 0, address, 0, 0],
            );
            if pid == 0 {
                exit_now();
            }
            reap(pid);
            stage.put(pidfd.into());
            // A cgroup that is no descriptor, a stack that is used.
            stage.put(clone3(&CloneArgs {
                flags: 0x2_0000_0000,
                exit_signal: 17,
                cgroup: 987,
                ..CloneArgs::default()
            }));
            stage.put(clone3(&CloneArgs {
                stack: 0x7000_0000,
                stack_size: 0,
                ..CloneArgs::default()
            }));
        });
        let [
            parent_tid,
            child_tid,
            pidfd_at,
            pidfd,
            set_tid_at,
            tid,
            with_tid,
            old_pidfd,
            bad_cgroup,
            bad_stack,
        ] = numbers[..]
        else {
            panic!("{numbers:?}")
        };
        let events = run.events();
        assert_eq!(events.len(), 7, "{backend}: {}", run.stdout);
        let args = |i: usize| &events[i]["args"];
        assert_eq!(events[0]["exit_signal"], 28);
        assert_eq!(
            *args(0),
            serde_json::json!({
                "exit_signal": 28,
                "newsp": "0x0",
                "parent_tidptr": hex(parent_tid as u64),
                "child_tidptr": hex(child_tid as u64),
                "tls": "0x12345678",
                "pidfd_number": null,
            }),
            "{backend}"
        );
        assert_eq!(
            *args(1),
            serde_json::json!({
                "size": 64,
                "pidfd": hex(pidfd_at as u64),
                "child_tid": hex(child_tid as u64),
                "parent_tid": hex(parent_tid as u64),
                "exit_signal": 28,
                "stack": "0x0",
                "stack_size": "0x0",
                "tls": "0x12345678",
                "set_tid": "0x0",
                "set_tid_size": 0,
                "cgroup": 0,
                "set_tids": [],
                "pidfd_number": pidfd,
            }),
            "{backend}"
        );
        assert_eq!(args(3)["set_tid"], hex(set_tid_at as u64));
        assert_eq!(args(3)["set_tid_size"], 1);
        assert_eq!(args(3)["set_tids"], serde_json::json!([tid]));
        assert_eq!(args(3)["size"], 88);
        if with_tid > 0 {
            assert_eq!(with_tid, tid);
            assert_eq!(events[3]["child"], tid);
        } else {
            assert_eq!((with_tid, &events[3]["errno"]), (-17, &17.into()));
        }
        assert!(old_pidfd >= 0);
        assert_eq!(args(4)["pidfd_number"], old_pidfd);
        assert_eq!(args(5)["cgroup"], 987);
        assert_eq!((bad_cgroup, &events[5]["result"]), (-9, &"EBADF".into()));
        assert_eq!(flags(&events[5]), ["CLONE_INTO_CGROUP"]);
        assert_eq!(args(6)["stack"], "0x70000000");
        assert_eq!((bad_stack, &events[6]["result"]), (-22, &"EINVAL".into()));
        nothing_lost(&run);
    }
}

#[test]
fn a_struct_in_a_page_that_is_not_there_yet_is_read() {
    if !support::root() {
        return;
    }
    /// The struct in a file's page that this process has mapped and never touched.
    fn untouched(args: CloneArgs) -> *const CloneArgs {
        // SAFETY: a new file, written through its descriptor, and a mapping of it that only the kernel reads.
        unsafe {
            let fd = libc::memfd_create(c"args".as_ptr(), 0);
            assert!(fd >= 0);
            let written = libc::write(fd, (&raw const args).cast(), size_of::<CloneArgs>());
            assert_eq!(written, size_of::<CloneArgs>() as isize);
            let page =
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
            assert_ne!(page, libc::MAP_FAILED);
            page.cast()
        }
    }
    for backend in call_backends() {
        for kind in [None, Some("vfork")] {
            let options: Vec<&str> = kind.map_or(vec![], |kind| vec!["--kind", kind]);
            let (_, results, run) = follow(backend, &options, |stage| {
                let args = CloneArgs { exit_signal: 17, ..CloneArgs::default() };
                stage.put(clone3_sized(untouched(args), 88));
                let args = CloneArgs { flags: 1 << 40 | libc::CLONE_VFORK as u64, ..args };
                stage.put(clone3_sized(untouched(args), 88));
            });
            assert!(results[0] > 0 && results[1] == -22, "{results:?}");
            let mut events = run.events();
            if kind.is_none() {
                assert_eq!(events.len(), 2, "{backend}: {}", run.stdout);
                let first = events.remove(0);
                assert_eq!(
                    (&first["kind"], &first["exit_signal"]),
                    (&"process".into(), &17.into())
                );
            }
            assert_eq!(events.len(), 1, "{backend}: {}", run.stdout);
            assert_eq!(flags(&events[0]), ["CLONE_VFORK", "0x10000000000"]);
        }
    }
}

// ------------------------------------------------------------------ filters

#[test]
fn filters_leave_the_rest_out() {
    if !support::root() {
        return;
    }
    for backend in call_backends() {
        let work = |stage: &mut Stage| {
            clone_exit(libc::SIGCHLD as u64);
            clone_exit(libc::CLONE_THREAD as u64);
            stage.put(vfork_like());
            std::thread::spawn(|| ()).join().unwrap();
        };
        let kinds = |run: &Run| -> Vec<String> {
            let events = run.events();
            let kind = |event: &Value| event["kind"].as_str().unwrap().to_string();
            events.iter().map(kind).collect()
        };
        let (_, _, run) = follow(backend, &["--failed"], work);
        assert_eq!(kinds(&run), ["thread"], "{backend}");
        assert_eq!(run.events()[0]["result"], "EINVAL");
        let (_, _, run) = follow(backend, &["--kind", "thread"], work);
        assert_eq!(kinds(&run), ["thread", "thread"], "{backend}");
        let (_, _, run) = follow(backend, &["--kind", "vfork,process"], work);
        assert_eq!(kinds(&run), ["process", "vfork"], "{backend}");
        let (_, _, run) = follow(backend, &["--kind", "vfork", "--failed"], work);
        assert!(kinds(&run).is_empty(), "{backend}");
        nothing_lost(&run);
    }
}

#[test]
fn users_names_and_cgroups_are_filtered_in_the_kernel() {
    if !support::root() {
        return;
    }
    // One of this test alone.
    let uid = 1_000_000 + std::process::id();
    let name = format!("act{}", std::process::id());
    let cgroup = Cgroup::new(&format!("bpftk-{}", std::process::id()));
    for backend in backends() {
        let work = |stage: &mut Stage| {
            clone_exit(libc::SIGCHLD as u64);
            let comm = std::ffi::CString::new(name.as_str()).unwrap();
            // SAFETY: a C string.
            unsafe { libc::prctl(libc::PR_SET_NAME, comm.as_ptr()) };
            if let Some(Cgroup(path)) = &cgroup {
                fs::write(path.join("cgroup.procs"), "0").unwrap();
            }
            // SAFETY: this process alone changes.
            assert_eq!(unsafe { libc::setresuid(uid, 0, 0) }, 0);
            stage.put(clone_exit(libc::SIGCHLD as u64));
        };
        let mut filters = vec![vec!["-u".to_string(), uid.to_string()]];
        filters.push(vec!["--comm".into(), name.clone()]);
        match &cgroup {
            Some(Cgroup(path)) => {
                filters.push(vec!["--cgroup".into(), path.to_str().unwrap().into()]);
            }
            None => println!("no cgroup can be made here"),
        }
        for filter in &filters {
            let mut args = vec!["clone-trace", "--backend", backend];
            args.extend(filter.iter().map(String::as_str));
            let mut actor = Actor::new(work);
            let pid = actor.pid();
            let running = Running::json(&args);
            actor.go();
            let numbers = actor.finish();
            let run = running.stop();
            let events = run.events();
            assert_eq!(events.len(), 1, "{backend} {filter:?}: {}", run.stdout);
            assert_eq!(events[0]["pid"], pid);
            assert_eq!(events[0]["child"], numbers[0]);
            assert_eq!(
                (&events[0]["uid"], &events[0]["comm"]),
                (&uid.into(), &name.as_str().into())
            );
            if let Some(Cgroup(path)) = &cgroup {
                let name = path.file_name().unwrap().to_str().unwrap();
                assert_eq!(events[0]["cgroup"], format!("/{name}"));
            }
        }
    }
}

// ------------------------------------------------------------------ exactness

#[test]
fn a_prime_number_of_forks_is_as_many_rows() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let (pid, children, run) = follow(backend, &[], |stage| {
            for _ in 0..211 {
                stage.put(clone_exit(libc::SIGCHLD as u64));
            }
        });
        let seen: Vec<i64> =
            run.events_of(pid).iter().map(|event| event["child"].as_i64().unwrap()).collect();
        assert_eq!(seen, children, "{backend}");
        nothing_lost(&run);
    }
}

fn storm(count: usize) {
    // SAFETY: children are reaped by the kernel.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let mut stack = vec![0_u8; STACK];
    for _ in 0..count {
        // SAFETY: the child ends before the call returns.
        let child = unsafe {
            let top = stack.as_mut_ptr().add(STACK).cast::<c_void>();
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            libc::clone(end, top, flags, std::ptr::null_mut())
        };
        assert!(child > 0);
    }
}

#[test]
fn a_storm_is_exact() {
    if !support::root() {
        return;
    }
    let count = if vm() { 5_000 } else { 100_000 };
    for backend in backends() {
        let begin = Instant::now();
        let (_, _, run) = follow(backend, &[], |_| storm(count));
        let summary = run.summary();
        let (rows, lost) = (run.events().len(), summary["lost"].as_u64().unwrap() as usize);
        println!("{backend}: {rows} rows and {lost} lost in {:?}", begin.elapsed());
        assert_eq!(summary["calls"], rows);
        assert_eq!(rows + lost, count, "{backend}: {summary}");
        assert!(lost < count / 2, "{backend}: {summary}");
    }
}

#[test]
fn what_a_stopped_reader_misses_is_counted() {
    if !support::root() {
        return;
    }
    // More than the ring buffer holds.
    let count = 13_000;
    for backend in backends() {
        let mut actor = Actor::new(|_| storm(count));
        let running = start(backend, actor.pid(), &[]);
        running.signal(Signal::SIGSTOP);
        actor.go();
        actor.finish();
        running.signal(Signal::SIGCONT);
        let run = running.stop();
        let summary = run.summary();
        let lost = summary["lost"].as_u64().unwrap() as usize;
        assert!(lost > 0, "{backend}: {summary}");
        assert_eq!(summary["lost_ring_full"], lost, "{backend}: {summary}");
        assert_eq!(run.events().len() + lost, count, "{backend}: {summary}");
    }
}

extern "C" fn wait_for_byte(fd: *mut c_void) -> libc::c_int {
    let mut byte = [0_u8];
    // SAFETY: one byte of room.
    unsafe { libc::read(fd as usize as i32, byte.as_mut_ptr().cast(), 1) };
    0
}

/// Processes that each wait in a vfork, until `gate` is closed.
fn waiting_vforks(count: usize, gate: i32) -> Vec<i64> {
    (0..count)
        .map(|_| {
            let waiter = raw(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0]);
            if waiter == 0 {
                clone_vm(libc::CLONE_VFORK | libc::SIGCHLD, wait_for_byte, gate);
                exit_now();
            }
            waiter
        })
        .collect()
}

/// The actor's children are followed by their name.
fn call_me(name: &str) {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: a C string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

fn pipe() -> [i32; 2] {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(fds.as_mut_ptr()) }, 0);
    fds
}

/// A kretprobe has room for so many calls only, and a waiting vfork occupies one.
#[test]
fn many_waiting_vforks_are_all_rows() {
    if !support::root() {
        return;
    }
    const WAITING: usize = 61;
    for backend in backends() {
        let name = format!("wait-{}", std::process::id());
        let mut actor = Actor::new(|stage| {
            call_me(&name);
            let gate = pipe();
            // The waiters have the reading end; nobody but this process may keep the writing end open.
            // SAFETY: descriptors of this process.
            unsafe { libc::fcntl(gate[1], libc::F_SETFD, libc::FD_CLOEXEC) };
            let waiters: Vec<i64> = (0..WAITING)
                .map(|_| {
                    let waiter = raw(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0]);
                    if waiter == 0 {
                        // SAFETY: this copy's descriptor.
                        unsafe { libc::close(gate[1]) };
                        clone_vm(libc::CLONE_VFORK | libc::SIGCHLD, wait_for_byte, gate[0]);
                        exit_now();
                    }
                    waiter
                })
                .collect();
            stage.put(0);
            stage.pause();
            // SAFETY: the last writing end: the readers read nothing, and end.
            unsafe { libc::close(gate[1]) };
            waiters.into_iter().for_each(reap);
        });
        let args = ["clone-trace", "--backend", backend, "--comm", &name];
        let running = Running::json(&args);
        actor.go();
        actor.get();
        // All of them are in the call by now, or will soon be.
        std::thread::sleep(Duration::from_millis(300));
        actor.go();
        actor.finish();
        if *backend != "task" {
            assert_eq!(settled_entries(&running), 0, "{backend}");
        }
        let run = running.stop();
        let events = run.events();
        let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
        assert_eq!((of("process"), of("vfork")), (WAITING, WAITING), "{backend}: {}", run.stdout);
        assert_eq!(events.len(), 2 * WAITING);
        assert!(events.iter().all(|event| event["child"].as_u64().is_some()));
        nothing_lost(&run);
    }
}

/// Entries of calls, once what just ended has been cleared up.
fn settled_entries(running: &Running) -> usize {
    let mut entries = 0;
    for _ in 0..100 {
        entries = map_entries(running.pid(), "calls");
        if entries == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    entries
}

#[test]
fn a_vfork_that_waits_at_the_end_is_a_row() {
    if !support::root() {
        return;
    }
    for backend in call_backends() {
        let name = format!("inv-{}", std::process::id());
        let mut actor = Actor::new(|stage| {
            call_me(&name);
            let gate = pipe();
            let waiters = waiting_vforks(1, gate[0]);
            stage.put(waiters[0]);
            stage.pause();
            for waiter in waiters {
                // SAFETY: a byte for each.
                unsafe { libc::write(gate[1], b"!".as_ptr().cast(), 1) };
                reap(waiter);
            }
        });
        let running = Running::json(&["clone-trace", "--backend", backend, "--comm", &name]);
        actor.go();
        let waiter = actor.get() as u32;
        for _ in 0..500 {
            // In the vfork: it has a child.
            let children = fs::read_to_string(format!("/proc/{waiter}/task/{waiter}/children"));
            if children.is_ok_and(|text| !text.trim().is_empty()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let run = running.stop();
        actor.go();
        actor.finish();
        let events = run.events_of(waiter);
        assert_eq!(events.len(), 1, "{backend}: {}", run.stdout);
        assert_eq!((&events[0]["kind"], &events[0]["result"]), (&"vfork".into(), &"ok".into()));
        assert!(events[0]["child"].as_u64().is_some());
        assert_eq!(events[0]["latency_us"], Value::Null);
        nothing_lost(&run);
    }
}

extern "C" fn long_nap(_: *mut c_void) -> libc::c_int {
    std::thread::sleep(Duration::from_millis(500));
    0
}

#[test]
fn an_exec_by_another_thread_leaves_nothing_behind() {
    if !support::root() {
        return;
    }
    for backend in call_backends() {
        let mut actor = Actor::new(|stage| {
            // One thread waits in a vfork, another replaces the program.
            std::thread::spawn(|| clone_vm(libc::CLONE_VFORK | libc::SIGCHLD, long_nap, 0));
            std::thread::sleep(Duration::from_millis(50));
            stage.put(0);
            std::thread::spawn(|| {
                let _ = std::process::Command::new(support::bpftk_path())
                    .arg("--version")
                    .stdout(std::process::Stdio::null())
                    .exec();
            })
            .join()
            .unwrap();
        });
        let running = start(backend, actor.pid(), &[]);
        actor.go();
        actor.finish();
        assert_eq!(settled_entries(&running), 0, "{backend}");
        let run = running.stop();
        let kinds: Vec<Value> = run.events().iter().map(|event| event["kind"].clone()).collect();
        assert_eq!(
            kinds.iter().filter(|kind| **kind == "vfork").count(),
            1,
            "{backend}: {kinds:?}"
        );
        nothing_lost(&run);
    }
}

#[test]
fn a_call_that_a_signal_interrupts_is_one_row() {
    if !support::root() {
        return;
    }
    extern "C" fn nothing(_: libc::c_int) {}
    for backend in call_backends() {
        let (_, children, run) = follow(backend, &[], |stage| {
            // SAFETY: a handler that does nothing, and a timer of this process.
            unsafe {
                libc::signal(libc::SIGALRM, nothing as extern "C" fn(libc::c_int) as usize);
                let often = libc::timeval { tv_sec: 0, tv_usec: if vm() { 2_000 } else { 100 } };
                let timer = libc::itimerval { it_interval: often, it_value: often };
                libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut());
            }
            for _ in 0..500 {
                stage.put(clone_exit(libc::SIGCHLD as u64));
            }
        });
        let events = run.events();
        assert!(events.iter().all(|event| event["result"] == "ok"), "{backend}: {}", run.stdout);
        assert_eq!(events.len(), children.len(), "{backend}");
        nothing_lost(&run);
    }
}

/// The tracepoint at the beginning comes after seccomp, the one at the end is always there.
#[test]
fn what_seccomp_refuses_is_a_row_with_its_flags() {
    if !support::root() || !backends().contains(&"syscall") {
        return;
    }
    let (_, results, run) = follow("syscall", &["--args"], |stage| {
        let number = libc::SYS_clone3 as u32;
        // Load the number; ENOSYS for clone3; else allow.
        let mut code = [
            libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
            libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: number },
            libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x0005_0000 | 38 },
            libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 },
        ];
        let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
        // SAFETY: a valid program, for this process alone.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program), 0);
        }
        stage.put(clone3(&CloneArgs {
            flags: libc::CLONE_NEWUTS as u64,
            exit_signal: 17,
            ..CloneArgs::default()
        }));
        stage.put(clone_exit(libc::SIGCHLD as u64));
    });
    assert_eq!(results[0], -38);
    let events = run.events();
    assert_eq!(events.len(), 2, "{}", run.stdout);
    assert_eq!((&events[0]["call"], &events[0]["result"]), (&"clone3".into(), &"ENOSYS".into()));
    assert_eq!(flags(&events[0]), ["CLONE_NEWUTS"]);
    assert_eq!(events[0]["kind"], "namespace");
    assert_eq!(events[0]["exit_signal"], 17);
    assert_eq!(events[0]["args"]["size"], 88);
    assert_eq!(events[0]["latency_us"], Value::Null);
    assert_eq!(events[1]["result"], "ok");
    nothing_lost(&run);
}

// ------------------------------------------------------------------ rows and tables

#[test]
fn names_are_escaped_and_lines_fit() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let mut actor = Actor::new(|_| {
            call_me("\x1b[31mx");
            clone_exit(libc::SIGCHLD as u64);
            std::thread::spawn(|| ()).join().unwrap();
            clone_exit(libc::CLONE_THREAD as u64);
        });
        let pid = actor.pid().to_string();
        let running = Running::start(&["clone-trace", "--backend", backend, "-p", &pid]);
        actor.go();
        actor.finish();
        let run = running.stop();
        assert!(!run.stdout.contains('\x1b'), "{backend}: {:?}", run.stdout);
        let lines: Vec<Vec<&str>> =
            run.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(run.stdout.lines().all(|line| line.len() <= 80), "{}", run.stdout);
        assert_eq!(lines[0], ["PID", "COMM", "CALL", "CHILD", "KIND", "FLAGS"]);
        assert_eq!(&lines[1][..2], [pid.as_str(), "\\x1b[31mx"]);
        assert_eq!(&lines[1][4..], ["process", "-"]);
        assert_eq!(&lines[2][4..], ["thread", "PTHREAD"]);
        if *backend == "task" {
            assert_eq!(lines.len(), 3, "{}", run.stdout);
        } else {
            assert_eq!(&lines[3][2..], ["clone", "EINVAL", "thread", "THREAD"]);
        }
    }
}

#[test]
fn more_columns() {
    if !support::root() {
        return;
    }
    for backend in call_backends() {
        let mut actor = Actor::new(|stage| stage.put(clone_exit(libc::SIGCHLD as u64)));
        let pid = actor.pid().to_string();
        let args = ["clone-trace", "--backend", backend, "-p", &pid];
        let more = ["-T", "-U", "-P", "--print-cgroup", "--latency", "--args"];
        let running = Running::start(&[&args[..], &more].concat());
        actor.go();
        let child = actor.finish()[0].to_string();
        let run = running.stop();
        let mut lines = run.stdout.lines();
        let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            header,
            [
                "TIME", "USER", "PPID", "PID", "COMM", "CALL", "CHILD", "KIND", "LATENCY",
                "CGROUP", "FLAGS", "ARGS"
            ]
        );
        let cells: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(cells[1], "root");
        assert_eq!(cells[2], std::process::id().to_string());
        assert_eq!((cells[3], cells[6]), (pid.as_str(), child.as_str()));
        assert!(cells[8].ends_with("ms"), "{cells:?}");
        assert!(cells[11..].contains(&"exit_signal=SIGCHLD"), "{cells:?}");
    }
}

#[test]
fn it_stops_after_so_many_rows() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let mut actor = Actor::new(|_| {
            for _ in 0..20 {
                clone_exit(libc::SIGCHLD as u64);
            }
        });
        let running = start(backend, actor.pid(), &["-n", "3"]);
        actor.go();
        let run = running.wait();
        actor.finish();
        assert!(run.status.success());
        assert_eq!(run.events().len(), 3, "{backend}");
        assert_eq!(run.summary()["calls"], 3);
    }
}

#[test]
fn counts_add_up() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let mut actor = Actor::new(|stage| {
            call_me("counted");
            for round in 0..2 {
                for _ in 0..5 {
                    clone_exit(libc::SIGCHLD as u64);
                }
                std::thread::spawn(|| ()).join().unwrap();
                clone_exit(libc::CLONE_THREAD as u64);
                if round == 0 {
                    stage.put(0);
                    stage.pause();
                }
            }
        });
        let running = start(backend, actor.pid(), &["--count", "-i", "100ms"]);
        actor.go();
        actor.get();
        // Into another interval.
        std::thread::sleep(Duration::from_millis(250));
        actor.go();
        actor.finish();
        std::thread::sleep(Duration::from_millis(250));
        let run = running.stop();
        let rows: Vec<Value> =
            run.json().into_iter().filter(|line| line["type"] == "row").collect();
        let sum = |scope: &str, kind: &str| -> (u64, u64) {
            rows.iter()
                .filter(|row| {
                    row["scope"] == scope && row["kind"] == kind && row["comm"] == "counted"
                })
                .fold((0, 0), |(calls, failures), row| {
                    (
                        calls + row["calls"].as_u64().unwrap(),
                        failures + row["failures"].as_u64().unwrap(),
                    )
                })
        };
        let threads = if *backend == "task" { (2, 0) } else { (4, 2) };
        for scope in ["interval", "total"] {
            assert_eq!(sum(scope, "process"), (10, 0), "{backend} {scope}: {}", run.stdout);
            assert_eq!(sum(scope, "thread"), threads, "{backend} {scope}: {}", run.stdout);
        }
        let totals: Vec<&Value> = rows.iter().filter(|row| row["scope"] == "total").collect();
        assert_eq!(totals.len(), 2, "{backend}");
        assert_eq!(totals[0]["kind"], "process", "the most first");
        assert!(rows.len() > 4, "{backend}: two intervals had calls");
    }
}

// ------------------------------------------------------------------ options, refusals, the end

#[test]
fn every_pair_of_options_loads_on_every_back_end() {
    if !support::root() {
        return;
    }
    let pid = std::process::id().to_string();
    let made = Cgroup::new(&format!("bpftk-pairs-{pid}"));
    let cgroup = made.as_ref().map(|Cgroup(path)| path.to_str().unwrap().to_string());
    let options: [&[&str]; 7] = [
        &["-p", &pid],
        &["-u", "root"],
        &["--comm", "x"],
        &["--cgroup", cgroup.as_deref().unwrap_or("/none")],
        &["--kind", "thread,vfork"],
        &["--failed"],
        &["--args"],
    ];
    let mut sets: Vec<Vec<usize>> = vec![vec![], (0..options.len()).collect(), (0..5).collect()];
    for a in 0..options.len() {
        sets.push(vec![a]);
        sets.extend((a + 1..options.len()).map(|b| vec![a, b]));
    }
    for backend in backends() {
        for set in &sets {
            let mut args = vec!["clone-trace", "--backend", backend, "-d", "1ms"];
            set.iter().for_each(|&i| args.extend(options[i]));
            let contradiction = *backend == "task" && set.iter().any(|&i| i >= 5);
            if set.contains(&3) && cgroup.is_none() {
                continue;
            }
            let output = output(&args);
            let expected = if contradiction { 2 } else { 0 };
            assert_eq!(output.status.code(), Some(expected), "{args:?}: {}", stderr(&output));
        }
    }
}

#[test]
fn contradictions_and_nonsense_are_wrong_usage() {
    for args in [
        &["--backend", "task", "--failed"][..],
        &["--backend", "task", "--args"],
        &["--backend", "task", "--latency"],
        &["--backend", "fentry"],
        &["--kind", "thing"],
        &["--kind", ""],
        &["--kind", "thread,"],
        &["--interval", "1s"],
        &["--count", "--interval", "1ms"],
        &["--count", "-n", "1"],
        &["--count", "--args"],
        &["--count", "--latency"],
        &["-p", "0"],
        &["-p", "4194303"],
        &["-u", "no-such-user"],
        &["-d", "5"],
        &["-n", "0"],
        &["extra"],
    ] {
        let args = [&["clone-trace"], args].concat();
        let output = output(&args);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(text.starts_with("bpftk: "), "{args:?}: {text}");
    }
}

#[test]
fn without_capabilities_it_says_which() {
    if !support::root() {
        return;
    }
    // Where nobody may run it.
    let dir = std::env::temp_dir().join(format!("bpftk-nobody-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let binary = dir.join("bpftk");
    fs::copy(support::bpftk_path(), &binary).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let output = std::process::Command::new(&binary)
        .args(["clone-trace", "-d", "1ms"])
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    fs::remove_dir_all(&dir).unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("CAP_BPF") && text.lines().count() == 1, "{text}");
}

#[test]
fn nothing_is_left_after_a_kill() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let running = Running::start(&["clone-trace", "--backend", backend]);
        let ids = programs(running.pid());
        assert!(!ids.is_empty(), "{backend}");
        running.kill();
        assert_eq!(programs_left(&ids), [0; 0], "{backend}");
    }
}

#[test]
fn a_reader_that_leaves_is_a_clean_end() {
    if !support::root() {
        return;
    }
    let mut child = bpftk(&["clone-trace"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut byte = [0];
    // The header: it is armed.
    std::io::Read::read_exact(&mut out, &mut byte).unwrap();
    assert!(out.as_raw_fd() >= 0);
    drop(out);
    assert!(child.wait().unwrap().success());
}
