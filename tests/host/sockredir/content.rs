// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every byte arrives, once, in order, unchanged: connections whose both ends write and read at random.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::work::{PATIENCE, listen, patient, readable, recv, send};
use super::*;

/// The stream that one end sends: what is at which place follows from the seed.
#[derive(Clone, Copy)]
struct Content {
    seed: u64,
    length: usize,
}

impl Content {
    fn byte_at(self, at: usize) -> u8 {
        // splitmix64, a word for each eight bytes.
        let mut word = self.seed.wrapping_add((at as u64 / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)).to_le_bytes()[at % 8]
    }

    fn piece(self, from: usize, length: usize) -> Vec<u8> {
        (from..from + length).map(|at| self.byte_at(at)).collect()
    }
}

fn some_length(rng: &mut fastrand::Rng) -> usize {
    match rng.u8(..100) {
        0..50 => rng.usize(1..4096),
        50..85 => rng.usize(1..150_000),
        _ => rng.usize(1..1_000_000),
    }
}

/// What one write takes.
fn some_piece(rng: &mut fastrand::Rng) -> usize {
    match rng.u8(..3) {
        0 => rng.usize(1..100),
        1 => rng.usize(1..10_000),
        _ => rng.usize(1..150_000),
    }
}

fn pause(rng: &mut fastrand::Rng) {
    if rng.u8(..8) == 0 {
        thread::sleep(Duration::from_micros(rng.u64(..300)));
    }
}

fn writev(stream: &TcpStream, bytes: &[u8], parts: usize) -> io::Result<usize> {
    let vectors: Vec<io::IoSlice<'_>> =
        bytes.chunks(bytes.len().div_ceil(parts)).map(io::IoSlice::new).collect();
    io::Write::write_vectored(&mut &*stream, &vectors)
}

/// From a place in the stream to its end.
fn write(
    stream: &TcpStream,
    content: Content,
    mut at: usize,
    rng: &mut fastrand::Rng,
) -> Result<(), String> {
    while at < content.length {
        pause(rng);
        let piece = content.piece(at, some_piece(rng).min(content.length - at));
        let sent = match rng.u8(..4) {
            0 => writev(stream, &piece, rng.usize(2..6)),
            1 => send(stream, &piece, libc::MSG_MORE),
            _ => send(stream, &piece, 0),
        };
        at += sent.map_err(|error| format!("send of {} at {at}: {error}", piece.len()))?;
    }
    stream.shutdown(Shutdown::Write).map_err(|error| format!("shutdown: {error}"))
}

/// A blocking read of a socket that is in a map returns EAGAIN when something else wakes it, such as room for the thread that
/// writes: see differences.rs.
fn receive(stream: &TcpStream, buffer: &mut [u8], flags: i32) -> io::Result<usize> {
    let begin = Instant::now();
    loop {
        match recv(stream, buffer, flags) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                if begin.elapsed() >= PATIENCE || !readable(stream, PATIENCE) {
                    return Err(error);
                }
            }
            outcome => return outcome,
        }
    }
}

fn read(stream: &TcpStream, content: Content, rng: &mut fastrand::Rng) -> Result<(), String> {
    let mut at = 0;
    let mut buffer = vec![0; 200_000];
    loop {
        pause(rng);
        let room = some_piece(rng);
        let mut peeked = Vec::new();
        let flags = match rng.u8(..4) {
            0 => libc::MSG_DONTWAIT,
            1 => {
                let got = receive(stream, &mut buffer[..room], libc::MSG_PEEK)
                    .map_err(|error| format!("peek at {at} of {}: {error}", content.length))?;
                peeked = buffer[..got].to_vec();
                0
            }
            _ => 0,
        };
        let got = receive(stream, &mut buffer[..room], flags)
            .map_err(|error| format!("recv at {at} of {}: {error}", content.length))?;
        if got == 0 {
            break;
        }
        if !buffer[..got.min(peeked.len())].iter().eq(&peeked[..got.min(peeked.len())]) {
            return Err(format!("at {at}: not what was peeked"));
        }
        if at + got > content.length {
            return Err(format!("{} bytes, {} were sent", at + got, content.length));
        }
        for (i, byte) in buffer[..got].iter().enumerate() {
            if *byte != content.byte_at(at + i) {
                return Err(format!("another byte at {} of {}", at + i, content.length));
            }
        }
        at += got;
    }
    match at == content.length {
        true => Ok(()),
        false => Err(format!("{at} bytes of {}", content.length)),
    }
}

/// One connection, both ways at once.
fn connection(seed: u64) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let question = Content { seed: rng.u64(..), length: some_length(&mut rng) };
    let answer = Content { seed: rng.u64(..), length: some_length(&mut rng) };
    let seeds: [u64; 4] = std::array::from_fn(|_| rng.u64(..));
    let new = |i: usize| fastrand::Rng::with_seed(seeds[i]);
    let (listener, addr) = listen("127.0.0.1");
    let client = TcpStream::connect(addr).map_err(|error| format!("connect: {error}"))?;
    // At once: the server may not be established yet.
    let mut early = 0;
    for length in [11, 22, 33] {
        let piece = question.piece(early, length.min(question.length - early));
        early += send(&client, &piece, 0).map_err(|error| format!("first sends: {error}"))?;
    }
    patient(&client);
    let client = &client;
    let accepted = OnceLock::new();
    let outcomes = thread::scope(|scope| {
        let sender = scope.spawn(move || write(client, question, early, &mut new(0)));
        let server = accepted.get_or_init(|| listener.accept().expect("it accepts").0);
        patient(server);
        let others = [
            scope.spawn(move || write(server, answer, 0, &mut new(1))),
            scope.spawn(move || read(server, question, &mut new(2))),
            scope.spawn(move || read(client, answer, &mut new(3))),
        ];
        let mut outcomes = vec![sender.join().unwrap()];
        for other in others {
            outcomes.push(other.join().unwrap());
        }
        outcomes
    });
    let failed: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// What went wrong with so many connections, some at a time.
fn fuzz(place: &Place, seed: u64, connections: usize) -> Vec<String> {
    println!("seed {seed:#x}, {connections} connections");
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                place.run(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= connections {
                            break;
                        }
                        let own = seed ^ (number as u64) << 20;
                        if let Err(error) = connection(own) {
                            failed.lock().unwrap().push(format!("{own:#x}: {error}"));
                        }
                    }
                });
            });
        }
    });
    failed.into_inner().unwrap()
}

/// First without anybody in between, then with the usual example, which must fail, so that this is a test.
#[test]
fn naive_redirection_corrupts() {
    let Some(place) = Place::new() else { return };
    place.spread();
    let failed = fuzz(&place, 1, rounds(200));
    assert!(failed.is_empty(), "without redirection: {failed:#?}");
    for lenient in [true, false] {
        let _naive = place.naive(lenient);
        let failed = fuzz(&place, 2, 300);
        println!(
            "naive, lenient {lenient}: {} of 300 connections fail: {:?}",
            failed.len(),
            failed.first()
        );
        assert!(!failed.is_empty(), "the test would not find it");
    }
}

fn holds(args: &[&str], expect: impl FnOnce(&serde_json::Value)) {
    let Some(place) = Place::new() else { return };
    place.spread();
    let run = place.start(&[args, &["--events"]].concat());
    let connections = rounds(2000);
    // Another one each time; a failure tells it.
    let failed = fuzz(&place, fastrand::u64(..), connections);
    let run = run.stop();
    assert!(run.status.success(), "{}", run.stderr);
    assert!(failed.is_empty(), "{failed:#?}");
    let summary = run.summary();
    println!("{summary}");
    let number = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!((number("clients"), number("servers")), (connections as u64, connections as u64));
    // Enough of them are redirected for this to say something.
    assert!(number("redirected") > connections as u64 / 2, "{summary}");
    assert_eq!(number("lost"), 0);
    // The books: every direction is something, and every byte is somewhere.
    let reasons: u64 =
        summary["reasons"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(
        number("clients") + number("servers"),
        number("redirected") + number("silent") + reasons - number("fell_back"),
        "{summary}"
    );
    let sum: u64 = run
        .events()
        .iter()
        .flat_map(|e| {
            ["redirected_to_server", "redirected_to_client", "tcp_to_server", "tcp_to_client"]
                .map(|name| e[name].as_u64().unwrap_or(0))
        })
        .sum();
    assert_eq!(sum, number("redirected_bytes") + number("tcp_bytes"));
    expect(&summary);
}

#[test]
fn content_survives() {
    holds(&[], |_| {});
}

#[test]
fn content_survives_small_limits() {
    holds(&["--max-queue", "64K", "--max-messages", "8"], |summary| {
        assert!(summary["high_water"].as_u64().unwrap() <= 65536, "{summary}");
        assert!(summary["reasons"]["backlog"].as_u64().unwrap() > 0, "{summary}");
    });
}
