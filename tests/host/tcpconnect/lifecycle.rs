// SPDX-License-Identifier: MIT OR Apache-2.0

//! However it ends, nothing stays behind.

use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::with_backends;
use crate::support::{Running, Tcp, bpftk, programs, programs_left_after};

#[test]
fn nothing_outlives_any_end() {
    with_backends(|traced| {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
            let running = traced.start(&["--dns"]);
            let ids = programs(running.pid());
            assert!(!ids.is_empty(), "a tracer holds programs");
            traced.netns.run(|| {
                let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
            });
            running.signal(signal);
            let run = running.wait();
            assert_eq!(run.status.success(), signal != Signal::SIGKILL, "{signal}: {}", run.stderr);
            if signal != Signal::SIGKILL {
                assert_eq!(run.events().len(), 1, "{signal}");
            }
            assert_eq!(programs_left_after(20, &ids), Vec::<u32>::new(), "{signal}");
        }
    });
}

#[test]
fn a_duration_ends_it() {
    with_backends(|traced| {
        let begin = Instant::now();
        let run = traced.start(&["-d", "300ms"]).wait();
        assert!(run.status.success());
        assert!(begin.elapsed() >= Duration::from_millis(300));
    });
}

#[test]
fn a_reader_that_leaves_ends_it_without_an_event() {
    with_backends(|traced| {
        let mut child =
            bpftk(&["tcpconnect", "--backend", traced.backend, "--netns", &traced.netns.path()])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut header = String::new();
        let mut reader = std::io::BufReader::new(stdout);
        std::io::BufRead::read_line(&mut reader, &mut header).unwrap();
        assert!(header.starts_with("PID"), "{header}");
        drop(reader);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    });
}

#[test]
fn two_at_once_see_the_same() {
    with_backends(|traced| {
        let (first, second) = (traced.start(&[]), traced.start(&[]));
        traced.netns.run(|| {
            for _ in 0..7 {
                let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
            }
        });
        let first = first.stop();
        traced.netns.run(|| {
            let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
        });
        assert_eq!(first.events().len(), 7);
        assert_eq!(second.stop().events().len(), 8);
    });
}

#[test]
fn a_row_is_visible_at_once_in_a_pipe() {
    with_backends(|traced| {
        let running = Running::start(&[
            "tcpconnect",
            "--backend",
            traced.backend,
            "--netns",
            &traced.netns.path(),
        ]);
        assert!(running.line().starts_with("PID"));
        traced.netns.run(|| {
            let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
        });
        let row = running.line();
        assert!(row.contains(" ECONNREFUSED "), "{row}");
        assert!(row.len() <= 80, "{row}");
        assert!(running.stop().stderr.contains("1 attempts: 0 ok, 1 failed, 0 pending; 0 lost"));
    });
}

/// Rows in quick succession are read and written together: nobody who connects stops for each to wake bpftk.
#[test]
fn a_storm_wakes_its_reader_seldom() {
    let sleeps = |pid: u32| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.rsplit('\t').next().unwrap().parse().unwrap()
    };
    let attempts = 2000;
    with_backends(|traced| {
        let running = traced.start(&[]);
        let before = sleeps(running.pid());
        let begin = Instant::now();
        traced.netns.run(|| {
            for _ in 0..attempts {
                let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
                // Time enough to read each by itself.
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let slept = sleeps(running.pid()) - before;
        let most = 50 + begin.elapsed().as_millis() as u64 * 3 / 2 / 5;
        println!("{attempts} rows, {slept} sleeps of their reader, {most} at most");
        assert_eq!(running.stop().events().len(), attempts);
        assert!(slept <= most, "{slept} sleeps");
    });
}
