// SPDX-License-Identifier: MIT OR Apache-2.0

//! The guard: a program that does what redirection changes is kept out while bpftk runs, and others are not.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::work::{PATIENCE, listen, readable, recv};
use super::*;
use crate::support::{Actor, within};

/// A server in a process of its own that takes what a client sends by splice(2), and its port. It ends with this thread.
fn splicing_server() -> (Actor, u16) {
    let mut actor = Actor::new(|stage| {
        let (listener, addr) = listen("127.0.0.1");
        stage.put(addr.port().into());
        loop {
            let (stream, _) = listener.accept().unwrap();
            readable(&stream, PATIENCE);
            // With redirection it would wait for ever.
            stream.set_nonblocking(true).unwrap();
            let mut pipe = [0; 2];
            // SAFETY: room for two descriptors.
            assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
            let none = std::ptr::null_mut();
            // What it says is not of interest here: with redirection it is wrong.
            // SAFETY: descriptors without offsets.
            unsafe {
                libc::splice(
                    stream.as_raw_fd(),
                    none,
                    pipe[1],
                    none,
                    4096,
                    libc::SPLICE_F_NONBLOCK,
                );
                libc::close(pipe[0]);
                libc::close(pipe[1]);
            }
            (&stream).write_all(b"spliced").unwrap();
        }
    });
    actor.go();
    let port = actor.get() as u16;
    (actor, port)
}

/// A question and an answer, without anything that the guard watches for.
fn ask(client: &TcpStream, answer: &[u8]) {
    (&*client).write_all(b"x").unwrap();
    let mut got = [0; 16];
    assert!(readable(client, PATIENCE), "no answer");
    let many = recv(client, &mut got, libc::MSG_DONTWAIT).unwrap();
    assert_eq!(&got[..many], answer);
}

fn call(port: u16) {
    ask(&TcpStream::connect(("127.0.0.1", port)).unwrap(), b"spliced");
}

/// A connection within this process, used like that one.
fn harmless_call() {
    let (listener, addr) = listen("127.0.0.1");
    let client = TcpStream::connect(addr).unwrap();
    let (server, _) = listener.accept().unwrap();
    (&server).write_all(b"harmless").unwrap();
    ask(&client, b"harmless");
    assert!(readable(&server, PATIENCE));
    assert_eq!(recv(&server, &mut [0; 8], libc::MSG_DONTWAIT).unwrap(), 1);
}

fn told(summary: &serde_json::Value, reason: &str) -> u64 {
    summary["reasons"][reason].as_u64().unwrap()
}

#[test]
fn who_does_what_redirection_changes_is_kept_out_from_then_on() {
    let Some(place) = Place::new() else { return };
    place.run(|| {
        let (actor, port) = splicing_server();
        let run = place.guarded(&["-i", "200ms"]);
        call(port);
        run.until_told("does what redirection changes: splice");
        run.until_told(&format!("connections to port {port} stay with TCP from now on"));
        // New connections to it are TCP's from their first byte on; others are redirected.
        for _ in 0..5 {
            call(port);
        }
        harmless_call();
        let summary = run.stop().summary();
        println!("{summary}");
        // The first call's answer may be among them.
        assert!((10..=12).contains(&told(&summary, "guarded")), "{summary}");
        assert_eq!(summary["guarded_processes"], 1, "{summary}");
        // Of the first call, at most, and of the connection of others.
        assert!((2..=4).contains(&summary["redirected"].as_u64().unwrap()), "{summary}");
        drop(actor);
    });
}

#[test]
fn who_is_known_before_is_never_redirected() {
    let Some(place) = Place::new() else { return };
    place.run(|| {
        let (actor, port) = splicing_server();
        // Programs work while it learns.
        let run = std::thread::scope(|scope| {
            let run = scope.spawn(|| place.guarded(&["--learn", "3s"]));
            let worked = within(60, || {
                call(port);
                std::thread::sleep(Duration::from_millis(100));
                run.is_finished()
            });
            assert!(worked, "it learns without end");
            run.join().unwrap()
        });
        call(port);
        let summary = run.stop().summary();
        println!("{summary}");
        // Both ends of the last call, and of one that was made while it armed, perhaps.
        let ends = summary["clients"].as_u64().unwrap() + summary["servers"].as_u64().unwrap();
        assert!(ends >= 2, "{summary}");
        assert_eq!(
            (told(&summary, "guarded"), &summary["redirected"]),
            (ends, &0.into()),
            "{summary}"
        );
        drop(actor);
    });
}

#[test]
fn without_a_guard_nobody_is_kept_out() {
    let Some(place) = Place::new() else { return };
    place.run(|| {
        let (actor, port) = splicing_server();
        let run = place.start(&[]);
        call(port);
        std::thread::sleep(Duration::from_millis(1500));
        call(port);
        let summary = run.stop().summary();
        assert_eq!(
            (told(&summary, "guarded"), &summary["guarded_processes"]),
            (0, &serde_json::Value::Null)
        );
        assert_eq!(summary["redirected"], 4, "{summary}");
        drop(actor);
    });
}
