// SPDX-License-Identifier: MIT OR Apache-2.0

//! Arguments, and flags in memory that is not there yet.

use serde_json::Value;

use super::calls::{CloneArgs, clone_exit, clone3, clone3_sized, exit_now, raw, reap};
use super::{call_backends, flags, follow, nothing_lost};
use crate::support::{self};

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
