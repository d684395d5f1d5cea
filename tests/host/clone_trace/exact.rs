// SPDX-License-Identifier: MIT OR Apache-2.0

//! One call is one row, or is counted as lost.

use std::ffi::c_void;
use std::fs;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::calls::{
    CloneArgs, STACK, call_me, clone_exit, clone_vm, clone3, end, exit_now, pipe, raw, reap,
};
use super::{backends, call_backends, flags, follow, nothing_lost, start, vm};
use crate::support::{self, Actor, Running, map_entries};

#[test]
fn a_prime_number_of_forks_is_as_many_rows() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let (pid, children, run) = follow(backend, &[], |stage| {
            for _ in 0..if vm() { 53 } else { 211 } {
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
    let count = if vm() { 1_500 } else { 100_000 };
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

/// Programs at tracepoints are preempted in Linux 7, and skipped for whoever comes meanwhile.
#[test]
fn many_storms_at_once_are_exact() {
    if !support::root() {
        return;
    }
    const STORMS: usize = 7;
    let each = if vm() { 101 } else { 1_009 };
    for backend in backends() {
        let name = format!("storm{}", std::process::id());
        let mut actor = Actor::new(|stage| {
            call_me(&name);
            let storms: Vec<i64> = (0..STORMS)
                .map(|_| {
                    let storm = raw(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0]);
                    if storm == 0 {
                        for _ in 0..each {
                            clone_exit(libc::SIGCHLD as u64);
                        }
                        exit_now();
                    }
                    stage.put(storm);
                    storm
                })
                .collect();
            storms.into_iter().for_each(reap);
        });
        let running = Running::json(&["clone-trace", "--backend", backend, "--comm", &name]);
        actor.go();
        let storms: Vec<i64> = (0..STORMS).map(|_| actor.get()).collect();
        actor.finish();
        let run = running.stop();
        let events = run.events();
        let summary = run.summary();
        let lost = summary["lost"].as_u64().unwrap() as usize;
        assert_eq!(events.len() + lost, STORMS * (each + 1), "{backend}: {summary}");
        // It happens where the hook at the return and the new task were skipped both.
        assert!(lost * 100 < events.len(), "{backend}: {summary}");
        if lost == 0 {
            for storm in storms {
                let rows = events.iter().filter(|event| event["pid"] == storm);
                assert_eq!(rows.count(), each, "{backend}");
            }
        }
        assert!(events.iter().all(|event| event["child"].as_u64().is_some()), "{backend}");
    }
}

#[test]
fn what_a_stopped_reader_misses_is_counted() {
    if !support::root() {
        return;
    }
    // More than the ring buffer holds.
    let count = 13_000;
    // Under software emulation this takes long, and the ring buffer is one and the same.
    let tried = if vm() { 1 } else { backends().len() };
    for backend in &backends()[..tried] {
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

/// Processes that each wait in a vfork, until `release`.
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

fn release(waiters: Vec<i64>, gate: i32) {
    for _ in &waiters {
        // SAFETY: one byte for each of them.
        unsafe { libc::write(gate, b"!".as_ptr().cast(), 1) };
    }
    waiters.into_iter().for_each(reap);
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
            let waiters = waiting_vforks(WAITING, gate[0]);
            stage.put(0);
            stage.pause();
            release(waiters, gate[1]);
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
            release(waiters, gate[1]);
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

/// Its memory is the caller's: this is seen there.
static NAPS: AtomicBool = AtomicBool::new(false);

extern "C" fn long_nap(_: *mut c_void) -> libc::c_int {
    NAPS.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(500));
    0
}

#[test]
fn an_exec_by_another_thread_leaves_nothing_behind() {
    if !support::root() {
        return;
    }
    for backend in call_backends() {
        let mut actor = Actor::new(|_| {
            // One thread waits in a vfork, another replaces the program.
            std::thread::spawn(|| clone_vm(libc::CLONE_VFORK | libc::SIGCHLD, long_nap, 0));
            while !NAPS.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
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
            for _ in 0..if vm() { 150 } else { 500 } {
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
