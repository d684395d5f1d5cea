// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls that something answers in the kernel's place, and calls of 32-bit programs.

use serde_json::Value;

use super::calls::{CloneArgs, call_me, clone3, exit_now, raw, reap};
use super::{backends, nothing_lost};
use crate::support::{self, Actor, Running, seccomp};

extern "C" fn nothing(_: libc::c_int) {}

fn ask_for_a_process() -> i64 {
    clone3(&CloneArgs { exit_signal: 17, ..CloneArgs::default() })
}

/// As a supervisor does: `answer` to the next call.
fn supervise(listener: i64, answer: i64) {
    // include/uapi/linux/seccomp.h
    const RECV: u64 = 0xc050_2100;
    const SEND: u64 = 0xc018_2101;
    // SAFETY: zero bytes are valid, and what the kernel asks for.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let listener = listener as u64;
    assert_eq!(raw(libc::SYS_ioctl, [listener, RECV, &raw mut call as u64, 0, 0]), 0);
    let response = libc::seccomp_notif_resp { id: call.id, val: answer, error: 0, flags: 0 };
    assert_eq!(raw(libc::SYS_ioctl, [listener, SEND, &raw const response as u64, 0, 0]), 0);
}

/// The status of a child in which something was not as it should be.
const FAILED: i32 = 101;

/// Waits for a child in which everything has to be as it should be.
fn reap_whole(pid: i64) {
    let mut status = 0;
    // SAFETY: room for the status of a child of ours.
    unsafe { libc::waitpid(pid as i32, &raw mut status, libc::__WALL) };
    assert_eq!(status, 0, "the child {pid}");
}

/// A child that runs `work` and ends.
fn child(work: impl FnOnce()) -> i64 {
    let child = raw(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0]);
    if child == 0 {
        // Some are killed: they leave no files behind.
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            // SAFETY: ends the process, without anybody's clean-up.
            unsafe { libc::_exit(FAILED) };
        }
        exit_now();
    }
    child
}

/// What seccomp's RET_TRAP and RET_KILL leave as a result is the call's own number, and a supervisor may say any.
#[test]
fn what_seccomp_answers_makes_no_child() {
    if !support::root() {
        return;
    }
    for backend in backends() {
        let name = format!("sec-{}", std::process::id());
        let mut actor = Actor::new(|stage| {
            call_me(&name);
            let trapped = child(|| {
                // SAFETY: a handler that does nothing.
                unsafe {
                    libc::signal(libc::SIGSYS, nothing as extern "C" fn(libc::c_int) as usize)
                };
                seccomp::answer(libc::SYS_clone3, libc::SECCOMP_RET_TRAP, 0);
                assert_eq!(ask_for_a_process(), libc::SYS_clone3);
            });
            reap_whole(trapped);
            let killed = child(|| {
                seccomp::answer(libc::SYS_clone3, libc::SECCOMP_RET_KILL_PROCESS, 0);
                ask_for_a_process();
            });
            reap(killed);
            let supervised = child(|| {
                let flag = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
                let listener =
                    seccomp::answer(libc::SYS_clone3, libc::SECCOMP_RET_USER_NOTIF, flag);
                assert!(listener >= 0);
                let supervisor = child(|| supervise(listener, 4242));
                let call = CloneArgs { exit_signal: 17, ..CloneArgs::default() };
                let size = size_of::<CloneArgs>() as u64;
                let answer = raw(libc::SYS_clone3, [&raw const call as u64, size, 0, 0, 0]);
                assert_eq!(answer, 4242);
                reap_whole(supervisor);
            });
            reap_whole(supervised);
            for child in [trapped, killed, supervised] {
                stage.put(child);
            }
        });
        let running = Running::json(&["clone-trace", "--backend", backend, "--comm", &name]);
        actor.go();
        let real = actor.finish();
        let run = running.stop();
        let (made, others): (Vec<Value>, Vec<Value>) =
            run.events().into_iter().partition(|event| event["result"] == "ok");
        // The three, and the supervisor.
        assert_eq!(made.len(), 4, "{backend}: {}", run.stdout);
        for child in &real {
            assert!(made.iter().any(|event| event["child"] == *child), "{backend}: {child}");
        }
        let of = |pid: i64| -> Vec<&Value> {
            others.iter().filter(|event| event["pid"] == pid).collect()
        };
        if *backend == "syscall" {
            for (pid, least) in [(real[0], 1), (real[1], 0), (real[2], 1)] {
                let rows = of(pid);
                // Before 5.16 nothing is seen of a call that kills.
                assert!((least..=1).contains(&rows.len()), "{pid}: {}", run.stdout);
                for row in rows {
                    assert_eq!(
                        (&row["call"], &row["result"]),
                        (&"clone3".into(), &"intercepted".into())
                    );
                    for field in ["child", "child_ns", "errno", "latency_us"] {
                        assert_eq!(row[field], Value::Null, "{row}");
                    }
                }
            }
        } else {
            assert!(others.is_empty(), "{backend}: {}", run.stdout);
        }
        nothing_lost(&run);
    }
}

/// The 32-bit call of this number, with one argument. For fork and clone: the child ends.
#[cfg(target_arch = "x86_64")]
fn call32(number: i64, first: u64) -> i64 {
    let mut result = number;
    // SAFETY: the calls below have no memory of ours to write to; rbx, which the compiler keeps, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) first => _,
            inout("rax") result,
            in("rcx") 0, in("rdx") 0, in("rsi") 0, in("rdi") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if result == 0 {
        exit_now();
    }
    result
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_programs_children_are_rows() {
    const GETPID: i64 = 20;
    const FORK: i64 = 2;
    const CLONE: i64 = 120;
    if !support::root() {
        return;
    }
    // A kernel without 32-bit calls kills who makes one.
    let probe = child(|| {
        call32(GETPID, 0);
    });
    let mut status = 0;
    // SAFETY: room for the status of a child of ours.
    unsafe { libc::waitpid(probe as i32, &raw mut status, 0) };
    if !libc::WIFEXITED(status) {
        println!("SKIP this kernel has no 32-bit system calls");
        return;
    }
    for backend in backends() {
        let (_, children, run) = super::follow(backend, &[], |stage| {
            for _ in 0..3 {
                let child = call32(FORK, 0);
                reap(child);
                stage.put(child);
            }
            let child = call32(CLONE, libc::SIGCHLD as u64);
            reap(child);
            stage.put(child);
            stage.put(super::calls::clone_exit(libc::SIGCHLD as u64));
        });
        let events = run.events();
        let seen: Vec<i64> = events.iter().map(|event| event["child"].as_i64().unwrap()).collect();
        assert_eq!(seen, children, "{backend}: {}", run.stdout);
        let calls: Vec<&Value> = events.iter().map(|event| &event["call"]).collect();
        if *backend != "task" {
            assert_eq!(calls, ["fork", "fork", "fork", "clone", "clone"], "{backend}");
        }
        assert!(events.iter().all(|event| event["exit_signal"] == 17), "{backend}: {}", run.stdout);
        // To a kprobe it is shown where 64-bit callers and others share a function, as they do for fork.
        let ended = !events[0]["latency_us"].is_null();
        assert!(!ended || *backend == "kprobe", "{backend}: {}", events[0]);
        nothing_lost(&run);
    }
}
