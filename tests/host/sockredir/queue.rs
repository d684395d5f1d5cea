// SPDX-License-Identifier: MIT OR Apache-2.0

//! A reader that does not read: what waits for it is bounded, and the sender is told.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::work::{exchange, option, pair, pair_on, recv};
use super::*;

const ENOUGH: usize = 64 << 20;

/// What a sender that does not wait gets rid of, at most.
fn accepted(client: &mut TcpStream) -> usize {
    client.set_nonblocking(true).unwrap();
    let piece = vec![7; 65536];
    let mut sent = 0;
    let mut refusals = 0;
    while sent < ENOUGH && refusals < 20 {
        match client.write(&piece) {
            Ok(many) => {
                sent += many;
                refusals = 0;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                refusals += 1;
                // The kernel moves what it took to the other end.
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("after {sent}: {error}"),
        }
    }
    sent
}

/// All of it, in as many reads as it takes.
fn drain(server: &mut TcpStream, many: usize) {
    let mut buffer = vec![0; 1 << 20];
    let mut got = 0;
    while got < many {
        match server.read(&mut buffer) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("after {got} of {many}: {error}"),
        }
    }
    assert_eq!(got, many);
}

#[test]
fn naive_redirection_takes_without_limit() {
    let Some(place) = Place::new() else { return };
    let plain = place.run(|| accepted(&mut pair().0));
    // `pair` closes the other end at once; what was sent before counts.
    let _naive = place.naive(true);
    let (mut client, _server) = place.run(pair);
    let naive = accepted(&mut client);
    println!("plain TCP with nobody there {plain}, naive {naive}");
    assert!(naive >= ENOUGH, "the test would not find it: {naive}");
}

#[test]
fn a_sender_gets_eagain_within_the_limit() {
    let Some(place) = Place::new() else { return };
    let (mut client, mut server) = place.run(pair);
    let plain = accepted(&mut client);
    drain(&mut server, plain);
    for (queue, limit) in [("64K", 65536), ("4M", 4 << 20)] {
        let run = place.start(&["--max-queue", queue]);
        let (mut client, mut server) = place.run(pair);
        let sent = accepted(&mut client);
        let summary = run.stop().summary();
        println!("plain {plain}, with --max-queue {queue} {sent}; {summary}");
        // TCP's own buffers come on top; they grow as the kernel likes.
        assert!(sent < limit + 2 * plain.max(6 << 20), "{sent}");
        assert!(summary["high_water"].as_u64().unwrap() <= limit as u64, "{summary}");
        assert!(summary["reasons"]["backlog"] == 1 && summary["fell_back"] == 1, "{summary}");
        drain(&mut server, sent);
    }
}

#[test]
fn a_blocking_sender_waits() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&[]);
    let (client, mut server) = place.run(pair);
    client.set_write_timeout(None).unwrap();
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = client;
            let piece = vec![7; 65536];
            while sent.load(Ordering::Relaxed) < ENOUGH {
                client.write_all(&piece).unwrap();
                sent.fetch_add(piece.len(), Ordering::Relaxed);
            }
        });
        // Until it stands still.
        let begin = Instant::now();
        let mut last = usize::MAX;
        while last != sent.load(Ordering::Relaxed) || last == 0 {
            assert!(begin.elapsed() < Duration::from_secs(60), "it goes on and on");
            last = sent.load(Ordering::Relaxed);
            thread::sleep(Duration::from_secs(1));
        }
        assert!(!writer.is_finished() && last < ENOUGH, "{last}");
        drain(&mut server, ENOUGH);
        writer.join().unwrap();
    });
    assert_eq!(run.stop().summary()["fell_back"], 1);
}

/// Of what the kernel holds in small pieces, in bytes.
fn slab() -> usize {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// What the kernel counts for a socket, in bytes: include/uapi/linux/sock_diag.h, SK_MEMINFO_RMEM_ALLOC and those
/// after it.
fn memory_of(stream: &TcpStream) -> [u32; 9] {
    let mut numbers = [0_u32; 9];
    let mut length = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: a descriptor of ours, and room for as many bytes as are stated.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            numbers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
    numbers
}

/// What a connection took on which nobody read, in bytes.
#[derive(Clone, Copy, Debug)]
struct Taken {
    /// By how much the kernel's memory grew.
    grown: usize,
    /// What TCP counts at the reader, and the size of the buffer.
    waiting: usize,
    buffer: usize,
    /// What TCP counts at the sender.
    unsent: usize,
}

/// One byte at a time, each a packet of its own where TCP has it. All that is sent comes, and the connection goes on.
fn bytewise(place: &Place, ip: &str, buffer: Option<i32>) -> Taken {
    const SENDS: usize = 50_000;
    let (mut client, mut server) = place.run(|| pair_on(ip));
    if let Some(size) = buffer {
        option(&server, libc::SOL_SOCKET, libc::SO_RCVBUF, size);
    }
    let before = slab();
    client.set_nonblocking(true).unwrap();
    let mut sent = 0;
    for _ in 0..SENDS {
        sent += client.write(&[byte_of(sent)]).unwrap_or(0);
    }
    let [waiting, buffer, _, _, _, unsent, ..] = memory_of(&server);
    assert_eq!(unsent, 0, "it sends nothing");
    let taken = Taken {
        grown: slab().saturating_sub(before),
        waiting: waiting as usize,
        buffer: buffer as usize,
        unsent: memory_of(&client)[5] as usize,
    };
    server.set_nonblocking(true).unwrap();
    let mut got = 0;
    let mut buffer = vec![0; 1 << 16];
    let begin = Instant::now();
    while got < sent && begin.elapsed() < super::work::PATIENCE {
        let many = recv(&server, &mut buffer, 0).unwrap_or(0);
        let right = buffer[..many].iter().enumerate().all(|(i, byte)| *byte == byte_of(got + i));
        assert!(right, "among {many} bytes after {got}");
        got += many;
    }
    assert_eq!(got, sent);
    server.set_nonblocking(false).unwrap();
    client.set_nonblocking(false).unwrap();
    exchange(&mut client, &mut server);
    taken
}

fn byte_of(number: usize) -> u8 {
    (number % 251) as u8
}

#[test]
fn small_sends_do_not_fill_the_memory() {
    let Some(place) = Place::new() else { return };
    let naive = {
        let _naive = place.naive(true);
        bytewise(&place, "127.0.0.1", None)
    };
    println!("naive {naive:?}");
    assert!(naive.grown > 30_000_000, "the test would not find it: {naive:?}");
    // Before 6.6 TCP doesn't mind the buffer here, and bpftk does: bpf/sockredir_room.bpf.h, LEAST_ROOM.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let numbers: Vec<u32> =
        release.split(['.', '-']).take(2).map(|part| part.parse().unwrap()).collect();
    let least = if numbers < vec![6, 6] { 2 << 20 } else { 0 };
    for (ip, buffer) in [("127.0.0.1", None), ("::1", Some(100_000))] {
        let ours = (0..3).map(|_| {
            let run = place.start(&[]);
            let taken = bytewise(&place, ip, buffer);
            let summary = run.stop().summary();
            assert!(summary["redirected_messages"].as_u64().unwrap() >= 1024, "{summary}");
            println!("{taken:?}, packets dropped: {}", summary["postponed"]);
            // The last packet may be more than there is room for, and those are that are let in since they are large.
            assert!(taken.waiting <= taken.buffer.max(least) + (512 << 10), "{taken:?}");
            taken
        });
        // What others take meanwhile only adds to it. A packet of one byte takes 768 bytes or more as TCP counts it,
        // and 1 KiB for its message; 1024 messages wait that were redirected.
        let ours = ours.min_by_key(|taken| taken.grown).unwrap();
        let limit = 3 * ours.waiting + 2 * ours.unsent + (6 << 20);
        assert!(ours.grown < limit, "{limit}: {ours:?}");
    }
}
