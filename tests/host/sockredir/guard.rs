// SPDX-License-Identifier: MIT OR Apache-2.0

//! The guard: a program that does what redirection changes is kept out while bpftk runs, and others are not.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::work::{PATIENCE, listen, readable, recv};
use super::*;
use crate::support::Actor;

/// A server in a process of its own that takes what a client sends by splice(2), and its port. It ends with this
/// thread.
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
pub(super) fn ask(client: &TcpStream, answer: &[u8]) {
    (&*client).write_all(b"x").unwrap();
    assert_eq!(receive(client, answer.len()), answer);
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

/// Directions that were redirected, or would have been: on a busy machine a client may say something before its server's end is there.
pub(super) fn with_early_clients(summary: &serde_json::Value) -> u64 {
    summary["redirected"].as_u64().unwrap() + told(summary, "peer-unknown")
}

#[test]
fn who_does_what_redirection_changes_is_kept_out_from_then_on() {
    let Some(place) = Place::new() else { return };
    place.run(|| {
        let (actor, port) = splicing_server();
        let run = place.guarded(&["-i", "1h"]);
        // From when it is done on, new connections to it are TCP's from their first byte on; others are redirected.
        for _ in 0..6 {
            call(port);
        }
        harmless_call();
        run.until_told("does what redirection changes: splice");
        run.until_told(&format!("connections to port {port} stay with TCP from now on"));
        let summary = run.stop().summary();
        println!("{summary}");
        // The first call's answer comes after it, and is among them.
        assert_eq!(told(&summary, "guarded"), 11, "{summary}");
        assert_eq!(summary["guarded_processes"], 1, "{summary}");
        // The first call's question, and the connection of others.
        assert_eq!(with_early_clients(&summary), 3, "{summary}");
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
        assert_eq!(with_early_clients(&summary), 4, "{summary}");
        drop(actor);
    });
}

/// Rounds of question and answer.
const ROUNDS: u32 = 400;
const BYTES: usize = 1000;

/// What is in a round.
fn bytes(round: u32, answer: bool) -> Vec<u8> {
    let first = round.wrapping_mul(31) as u8 ^ if answer { 0x80 } else { 0 };
    (0..BYTES).map(|i| first.wrapping_add(i as u8)).collect()
}

/// As many bytes, without a read that may block, or with a time limit: the guard watches for these, too.
pub(super) fn receive(stream: &TcpStream, many: usize) -> Vec<u8> {
    let mut bytes = vec![0; many];
    let mut got = 0;
    while got < many {
        assert!(readable(stream, PATIENCE), "{got} of {many} bytes");
        got += recv(stream, &mut bytes[got..], libc::MSG_DONTWAIT).unwrap();
    }
    bytes
}

fn asks(stream: &mut TcpStream, first: u32) {
    for round in first..first + ROUNDS {
        stream.write_all(&bytes(round, false)).unwrap();
        assert!(receive(stream, BYTES) == bytes(round, true), "the answer of round {round}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn answers(stream: &mut TcpStream, first: u32) {
    for round in first..first + ROUNDS {
        assert!(receive(stream, BYTES) == bytes(round, false), "the question of round {round}");
        stream.write_all(&bytes(round, true)).unwrap();
    }
}

/// Harmless, but for what it tells.
pub(super) fn ask_for_tcp_info(stream: &TcpStream) {
    let (mut info, mut length) = ([0_u8; 64], 64);
    let into = info.as_mut_ptr().cast();
    let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
    // SAFETY: room for as much as is stated.
    let status =
        unsafe { libc::getsockopt(stream.as_raw_fd(), level, name, into, &raw mut length) };
    assert_eq!(status, 0);
}

/// A connection that exists when one of its programs does what redirection changes, in the middle of its work: from
/// then on it is TCP's in both directions.
fn becomes_tcp_s(place: &Place, client_is_unsafe: bool) {
    place.run(|| {
        let (listener, addr) = listen("127.0.0.1");
        let mut actor = Actor::new(|stage| {
            let (mut stream, talk): (TcpStream, fn(&mut TcpStream, u32)) = if client_is_unsafe {
                let stream = TcpStream::connect(addr).unwrap();
                // Until the other end is in the map as well.
                stage.pause();
                (stream, asks)
            } else {
                let (listener, addr) = listen("127.0.0.1");
                stage.put(addr.port().into());
                let stream = listener.accept().unwrap().0;
                stage.put(0);
                (stream, answers)
            };
            talk(&mut stream, 0);
            ask_for_tcp_info(&stream);
            talk(&mut stream, ROUNDS);
        });
        let run = place.guarded(&["--events"]);
        actor.go();
        let (mut stream, port) = if client_is_unsafe {
            let accepted = listener.accept().unwrap().0;
            actor.go();
            (accepted, addr.port())
        } else {
            let port = actor.get() as u16;
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            actor.get();
            (stream, port)
        };
        let talk = if client_is_unsafe { answers } else { asks };
        talk(&mut stream, 0);
        // It is told when it is done.
        run.until_told("does what redirection changes: tcp-info (1)");
        run.until_told(&format!("connections to port {port} stay with TCP from now on"));
        talk(&mut stream, ROUNDS);
        actor.finish();
        drop(stream);
        let run = run.stop();
        let row = run.events().remove(0);
        println!("{row}");
        for to in ["to_server", "to_client"] {
            let number = |name: &str| row[format!("{name}_{to}")].as_u64().unwrap();
            let (redirected, by_tcp) = (number("redirected"), number("tcp"));
            // Nothing is lost, and nothing comes twice.
            assert_eq!(redirected + by_tcp, u64::from(2 * ROUNDS) * BYTES as u64, "{row}");
            assert!(redirected >= u64::from(ROUNDS) * BYTES as u64 && by_tcp > 0, "{row}");
            let late = redirected / BYTES as u64 - u64::from(ROUNDS);
            println!("{to}: {late} rounds of a millisecond were redirected after the call");
            let state = (&row[format!("state_{to}")], &row[format!("reason_{to}")]);
            assert_eq!(state, (&"tcp".into(), &"guarded".into()), "{row}");
        }
        assert_eq!(run.summary()["fell_back"], 2);
    });
}

#[test]
fn a_connection_becomes_tcp_s_when_its_server_does_what_redirection_changes() {
    let Some(place) = Place::new() else { return };
    becomes_tcp_s(&place, false);
}

#[test]
fn a_connection_becomes_tcp_s_when_its_client_does_what_redirection_changes() {
    let Some(place) = Place::new() else { return };
    becomes_tcp_s(&place, true);
}

/// The same in the middle of a stream that nobody waits for: what is on its way when TCP gets the direction is neither
/// lost nor overtaken.
#[test]
fn no_byte_of_a_stream_is_lost_where_it_becomes_tcp_s() {
    const ALL: usize = 8 << 20;
    let Some(place) = Place::new() else { return };
    place.run(|| {
        for part in [1, 2, 5] {
            let mut actor = Actor::new(|stage| {
                let (listener, addr) = listen("127.0.0.1");
                stage.put(addr.port().into());
                let (stream, _) = listener.accept().unwrap();
                // Both ends are in the map.
                stage.put(0);
                let (mut bytes, mut got) = (vec![0; 60_000], 0);
                let mut right = true;
                while got < ALL {
                    let before = got;
                    assert!(readable(&stream, PATIENCE), "{got} of {ALL} bytes");
                    let many = recv(&stream, &mut bytes, libc::MSG_DONTWAIT).unwrap();
                    right &= bytes[..many].iter().zip(before..).all(|(a, i)| *a == at(i));
                    got += many;
                    let when = part * (ALL / 8);
                    if (before..got).contains(&when) {
                        ask_for_tcp_info(&stream);
                    }
                }
                stage.put(right.into());
            });
            let limits = ["--max-queue", "64M", "--max-messages", "1000000"];
            let run = place.guarded(&[&["--events"], &limits[..]].concat());
            actor.go();
            let mut stream = TcpStream::connect(("127.0.0.1", actor.get() as u16)).unwrap();
            actor.get();
            let bytes: Vec<u8> = (0..ALL).map(at).collect();
            let (begin, end) = bytes.split_at(ALL / 8 * 7);
            for part in begin.chunks(10_000) {
                stream.write_all(part).unwrap();
                // Else all is sent before the other end does anything.
                std::thread::sleep(Duration::from_micros(200));
            }
            // On a busy machine that may not have been early enough for the guard.
            run.until_told("does what redirection changes: tcp-info (1)");
            stream.write_all(end).unwrap();
            assert_eq!(actor.get(), 1, "wrong bytes");
            actor.finish();
            drop(stream);
            let run = run.stop();
            let row = run.events().remove(0);
            println!("{row}");
            let number = |name: &str| row[name].as_u64().unwrap();
            let sent = number("redirected_to_server") + number("tcp_to_server");
            assert_eq!(sent, ALL as u64, "{row}");
            assert!(number("tcp_to_server") > 0, "{row}");
            assert_eq!(row["reason_to_server"], "guarded", "{row}");
        }
    });
}

/// The byte at a place of a stream.
fn at(place: usize) -> u8 {
    (place ^ (place >> 8) ^ (place >> 16)) as u8
}

/// A server that forks for each connection is one program; what happens on ports that are left to TCP anyway is not
/// reported; and what happened in the last moment is.
#[test]
fn a_program_is_named_once_and_only_where_it_matters() {
    let Some(place) = Place::new() else { return };
    place.run(|| {
        let (listener, addr) = listen("127.0.0.1");
        let (other_listener, other) = listen("127.0.0.1");
        let asks_at = |listener: &std::net::TcpListener, addr: std::net::SocketAddr| {
            let mut actor = Actor::new(move |_| {
                let stream = TcpStream::connect(addr).unwrap();
                ask_for_tcp_info(&stream);
            });
            actor.go();
            let accepted = listener.accept().unwrap();
            actor.finish();
            drop(accepted);
        };
        let run = place.guarded(&["--exclude-port", &other.port().to_string()]);
        for _ in 0..3 {
            asks_at(&other_listener, other);
            asks_at(&listener, addr);
        }
        let run = run.stop();
        let said = run.stderr.matches("does what redirection changes").count();
        assert_eq!(said, 1, "{}", run.stderr);
        assert!(!run.stderr.contains(&other.port().to_string()), "{}", run.stderr);
        assert_eq!(run.summary()["guarded_processes"], 3, "{}", run.stderr);
    });
}

/// A process is kept out also where no port is known: by itself, where it connects and where it begins to listen.
#[test]
fn what_an_unsafe_process_connects_to_and_listens_at_stays_with_tcp() {
    let Some(place) = Place::new() else { return };
    place.run(|| {
        let (listener, addr) = listen("127.0.0.1");
        let mut actor = Actor::new(|stage| {
            let once = || {
                let stream = TcpStream::connect(addr).unwrap();
                (&stream).write_all(b"x").unwrap();
                receive(&stream, 1);
            };
            once();
            // What is done by io_uring is not seen.
            // SAFETY: no memory of ours is given; the call fails.
            unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<u8>()) };
            once();
            let (listener, addr) = listen("127.0.0.1");
            stage.put(addr.port().into());
            let (stream, _) = listener.accept().unwrap();
            receive(&stream, 1);
            (&stream).write_all(b"x").unwrap();
        });
        let run = place.guarded(&["-i", "1h"]);
        actor.go();
        for _ in 0..2 {
            let (stream, _) = listener.accept().unwrap();
            receive(&stream, 1);
            (&stream).write_all(b"x").unwrap();
        }
        let port = actor.get() as u16;
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        (&client).write_all(b"x").unwrap();
        receive(&client, 1);
        actor.finish();
        run.until_told("does what redirection changes");
        run.until_told("io_uring (1)");
        let summary = run.stop().summary();
        println!("{summary}");
        // The first connection is redirected, the others are not.
        assert_eq!(
            (told(&summary, "guarded"), &summary["redirected"]),
            (4, &2.into()),
            "{summary}"
        );
        assert_eq!(summary["guarded_processes"], 1, "{summary}");
    });
}
