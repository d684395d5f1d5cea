// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a row says.

use std::ffi::c_void;
use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::calls::{
    CloneArgs, clone_exit, clone_vm, clone3, clone3_sized, exit_now, raw, reap, vfork_like,
};
#[cfg(target_arch = "x86_64")]
use super::calls::{fork, vfork};
use super::{backends, call_backends, flags, follow, nothing_lost};
use crate::support::{self, Actor, Running};

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
        let mut events = run.events();
        assert_eq!(events.len(), 2, "{backend}: {}", run.stdout);
        // On another processor, the thread's own call may be back before the one that made it.
        events.sort_by_key(|event| event["kind"] != "thread");
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
