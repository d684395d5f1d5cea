// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is asked for is what is shown.

use std::fs;

use serde_json::Value;

use super::calls::{clone_exit, vfork_like};
use super::{backends, call_backends, follow, nothing_lost};
use crate::support::{self, Actor, Cgroup, Run, Running, Stage};

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
            if let Some(cgroup) = &cgroup {
                fs::write(cgroup.path().join("cgroup.procs"), "0").unwrap();
            }
            // SAFETY: this process alone changes.
            assert_eq!(unsafe { libc::setresuid(uid, 0, 0) }, 0);
            stage.put(clone_exit(libc::SIGCHLD as u64));
        };
        let mut filters = vec![vec!["-u".to_string(), uid.to_string()]];
        filters.push(vec!["--comm".into(), name.clone()]);
        match &cgroup {
            Some(cgroup) => {
                filters.push(vec!["--cgroup".into(), cgroup.path().to_str().unwrap().into()]);
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
            if let Some(cgroup) = &cgroup {
                let name = cgroup.path().file_name().unwrap().to_str().unwrap();
                assert_eq!(events[0]["cgroup"], format!("/{name}"));
            }
        }
    }
}
