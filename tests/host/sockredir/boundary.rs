// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where redirection ends and TCP begins, within a direction: at a bound, and at bpftk's own end. No reader, of whatever kind, may be
//! forgotten there, or get a byte twice, too early or not at all.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::readers::{Expected, Reader, assert_end, bytes};
use super::work::{listen, pair, patient, recv};
use super::*;
use crate::support::{emulated, within};

fn send(mut socket: &TcpStream, stream: u64, from: u64, many: usize, chunk: usize) {
    let content = bytes(stream, from, many);
    for piece in content.chunks(chunk) {
        socket.write_all(piece).unwrap();
    }
}

/// More than a bound is sent before anybody reads: the direction becomes TCP's, with redirected bytes unread.
#[test]
fn readers_that_are_late_get_what_went_by_tcp() {
    let Some(place) = Place::new() else { return };
    for (args, chunk) in [
        (&["--max-queue", "64K"][..], 65536),
        (&["--max-messages", "16"], 700),
        (&["--max-memory", "100K"], 20_000),
    ] {
        let run = place.start(args);
        let mut fell_back = 0;
        for reader in Reader::here() {
            for size in [1000, 50_000] {
                let many = 300_000;
                let name = format!("{reader:?} of {size}, {args:?}");
                let (client, server) = place.run(pair);
                let is_sent = AtomicBool::new(false);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        send(&client, 1, 0, many, chunk);
                        is_sent.store(true, Ordering::Relaxed);
                        assert_eq!(recv(&client, &mut [0], 0).unwrap(), 1, "{name}");
                    });
                    // TCP has room for all that is not redirected.
                    assert!(within(30, || is_sent.load(Ordering::Relaxed)), "{name}");
                    let mut expected = Expected::new(1, many as u64, name.clone());
                    reader.read(&server, size, &mut expected);
                    (&server).write_all(b"k").unwrap();
                });
                fell_back += 1;
            }
        }
        let summary = run.stop().summary();
        assert_eq!(summary["fell_back"], fell_back, "{args:?}: {summary}");
        assert_eq!(summary["lost"], 0, "{summary}");
    }
}

/// bpftk ends while redirected bytes wait, and more is sent afterwards.
#[test]
fn readers_get_what_comes_after_bpftk_ended() {
    let Some(place) = Place::new() else { return };
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        for (before, after) in [(1_000_000, 40_000), (60_000, 100), (100, 300_000)] {
            let run = place.start(&[]);
            let mut pairs: Vec<_> =
                Reader::here().into_iter().map(|reader| (reader, place.run(pair))).collect();
            for (_, (client, _)) in &pairs {
                send(client, 2, 0, before, 65536);
            }
            run.signal(signal);
            run.wait();
            thread::scope(|scope| {
                for (reader, (client, server)) in &mut pairs {
                    let name = format!("{reader:?}, {signal}, {before} and {after}");
                    scope.spawn(move || {
                        send(client, 2, before as u64, after, 65536);
                        client.shutdown(Shutdown::Write).unwrap();
                    });
                    scope.spawn(move || {
                        // Redirected bytes wait when TCP's come.
                        thread::sleep(Duration::from_millis(60));
                        let mut expected = Expected::new(2, (before + after) as u64, name.clone());
                        reader.read(server, 50_000, &mut expected);
                        assert_end(server, &name);
                    });
                }
            });
        }
    }
}

/// One connection of the fuzzer: a stream each way, and the end.
fn transfer(
    number: u64,
    client: TcpStream,
    server: TcpStream,
    readers: &[Reader],
    late: bool,
    random: &mut fastrand::Rng,
) {
    let mut size = || match random.u8(..) % 8 {
        0 => random.u64(1..100),
        1 => random.u64(100_000..600_000),
        _ => random.u64(1..60_000),
    };
    let (to_server, to_client) = (size(), size());
    let mut seeds = [random.fork(), random.fork(), random.fork(), random.fork()];
    let write = |socket: &TcpStream, stream: u64, many: u64, random: &mut fastrand::Rng| {
        let content = bytes(stream, 0, many as usize);
        let mut rest = &content[..];
        while !rest.is_empty() {
            let most = [20, 700, 8192, 65536, 300_000][random.usize(..5)];
            let (piece, later) = rest.split_at(random.usize(1..=most).min(rest.len()));
            (&mut &*socket).write_all(piece).unwrap();
            rest = later;
            if random.u8(..) < 10 {
                thread::sleep(Duration::from_micros(random.u64(..3000)));
            }
        }
        socket.shutdown(Shutdown::Write).unwrap();
    };
    let read = |socket: &TcpStream, stream: u64, many: u64, random: &mut fastrand::Rng| {
        let reader = readers[random.usize(..readers.len())];
        let size = match random.u8(..) % 6 {
            // A byte at a time is for short streams: it takes a call each.
            0 if many < 20_000 => 1,
            0 | 1 => random.usize(3..2000),
            2 => 50_000,
            3 => 1 << 20,
            // Just what is asked for.
            4 => (many as usize).min(1 << 20),
            _ => 4096,
        };
        if late {
            thread::sleep(Duration::from_millis(if emulated() { 100 } else { 10 }));
        } else if random.bool() {
            thread::sleep(Duration::from_micros(random.u64(..20_000)));
        }
        let name = format!("connection {number}, {reader:?} of {size}");
        reader.read(socket, size.max(3), &mut Expected::new(stream, many, name.clone()));
        assert_end(socket, &name);
    };
    let [a, b, c, d] = &mut seeds;
    let (client, server) = (&client, &server);
    thread::scope(|scope| {
        scope.spawn(move || write(client, 2 * number, to_server, a));
        scope.spawn(move || write(server, 2 * number + 1, to_client, b));
        scope.spawn(move || read(server, 2 * number, to_server, c));
        scope.spawn(move || read(client, 2 * number + 1, to_client, d));
    });
}

/// `BPFTK_ROUNDS` times as many connections, by hand; `BPFTK_SEED` repeats what failed. Half of them are IPv6's, and a quarter of IPv4
/// through sockets that speak both.
#[test]
fn random_transfers_with_random_bounds_and_ends() {
    let Some(place) = Place::new() else { return };
    place.spread();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let many = if emulated() { 100 } else { 2000 } * number("BPFTK_ROUNDS").unwrap_or(1);
    let seed = number("BPFTK_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("BPFTK_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let readers = Reader::here();
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut fell_back = 0;
    let start = |queue: u32, messages: u32, memory: &str| {
        let (queue, messages) = (queue.to_string(), messages.to_string());
        place.start(&["--max-queue", &queue, "--max-messages", &messages, "--max-memory", memory])
    };
    // That some fall back isn't left to chance: before the first connection, bounds that most directions reach and memory for all, and
    // readers that are late.
    let first = start(4096, 2, "1M");
    let late = many / 4;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let mut random = random.fork();
                let (done, stop, place, readers) = (&done, &stop, &place, &readers);
                scope.spawn(move || {
                    place.run(|| {
                        let listeners = ["127.0.0.1", "::1", "::ffff:127.0.0.1"].map(listen);
                        while !stop.load(Ordering::Relaxed) {
                            let number = done.fetch_add(1, Ordering::Relaxed);
                            if number >= many {
                                break;
                            }
                            let (listener, addr) = &listeners[[0, 1, 1, 2][random.usize(..4)]];
                            let client = TcpStream::connect(addr).unwrap();
                            let (server, _) = listener.accept().unwrap();
                            patient(&client);
                            patient(&server);
                            transfer(number, client, server, readers, number < late, &mut random);
                        }
                    });
                })
            })
            .collect();
        let going = || workers.iter().all(|worker| !worker.is_finished());
        // It lasts for a quarter of the connections, and its end has a summary.
        let mut first = Some(first);
        while done.load(Ordering::Relaxed) < many && going() {
            let certain = first.is_some();
            let run = first.take().unwrap_or_else(|| {
                start(
                    [4096, 20_000, 65536, 400_000][random.usize(..4)],
                    [2, 10, 1024][random.usize(..3)],
                    ["30K", "1M", "256M"][random.usize(..3)],
                )
            });
            let until =
                if certain { late } else { done.load(Ordering::Relaxed) + random.u64(5..60) };
            while done.load(Ordering::Relaxed) < until.min(many) && going() {
                thread::sleep(Duration::from_millis(2));
            }
            match random.u8(..3) {
                0 if !certain => drop(run.kill()),
                1 => {
                    run.signal(Signal::SIGTERM);
                    fell_back += run.wait().summary()["fell_back"].as_u64().unwrap();
                }
                _ => fell_back += run.stop().summary()["fell_back"].as_u64().unwrap(),
            }
        }
        // Who failed has said why; the others need not go on.
        stop.store(
            workers.iter().any(thread::ScopedJoinHandle::is_finished) && !going(),
            Ordering::Relaxed,
        );
    });
    println!("{many} connections, {fell_back} directions fell back");
    assert!(fell_back > many / 200, "bounds were not reached: {fell_back}");
}
