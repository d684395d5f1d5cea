// SPDX-License-Identifier: MIT OR Apache-2.0

//! A client says that it will send no more, and waits for the answer. The acknowledgement of that wakes it, without
//! data: by TCP it goes back to waiting, and a socket of the map would not.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use super::work::{option, pair_on, readable, recv};
use super::*;

const ANSWER: &[u8] = b"answer";

/// Reads until there is no more, and then answers, after a while.
fn answer(server: &mut TcpStream, begin_after: Duration, answer_after: Duration) -> usize {
    thread::sleep(begin_after);
    let (mut all, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        match recv(server, &mut buffer, 0) {
            Ok(0) => break,
            Ok(many) => all += many,
            Err(error) => panic!("after {all} bytes: {error}"),
        }
    }
    thread::sleep(answer_after);
    server.write_all(ANSWER).unwrap();
    all
}

#[test]
fn who_waits_after_a_half_close_gets_the_answer() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&[]);
    let moment = Duration::from_millis(150);
    let mut connections = 0;
    for ip in ["127.0.0.1", "::1"] {
        for (size, begin_after, answer_after) in [
            (100, Duration::ZERO, Duration::ZERO),
            // The acknowledgement comes after 40 ms.
            (100, Duration::ZERO, moment),
            // Here it waits behind what nobody reads.
            (100, moment, moment),
            (20_000_000, Duration::ZERO, Duration::ZERO),
            (8_000_000, moment, moment),
        ] {
            for _ in 0..3 {
                let (mut client, mut server) = place.run(|| pair_on(ip));
                client.set_read_timeout(None).unwrap();
                server.set_read_timeout(None).unwrap();
                connections += 1;
                thread::scope(|scope| {
                    let server =
                        scope.spawn(move || answer(&mut server, begin_after, answer_after));
                    client.write_all(&vec![b'x'; size]).unwrap();
                    client.shutdown(Shutdown::Write).unwrap();
                    let mut buffer = [0; 16];
                    let got = recv(&client, &mut buffer, 0);
                    let got = got.unwrap_or_else(|error| panic!("{ip}, {size} bytes: {error}"));
                    assert_eq!(&buffer[..got], ANSWER);
                    assert_eq!(recv(&client, &mut buffer, 0).unwrap(), 0);
                    assert_eq!(server.join().unwrap(), size);
                });
            }
        }
    }
    let summary = run.stop().summary();
    assert_eq!(summary["reasons"]["half-closed"], connections, "{summary}");
    // What was sent before is redirected as ever.
    assert_eq!(summary["redirected"], connections, "{summary}");
}

/// The answer begins at the moment at which its reader's socket may be taken out of the map: whichever comes first, it
/// comes whole.
#[test]
fn an_answer_that_begins_at_a_half_close_comes_whole() {
    const CONNECTIONS: usize = 600;
    const SIZE: usize = 30_000;
    const CERTAINLY: usize = 100_000;
    let Some(place) = Place::new() else { return };
    let run = place.start(&[]);
    let byte = |i: usize| (i ^ (i >> 8)) as u8;
    for number in 0..CONNECTIONS {
        let (mut client, mut server) = place.run(|| pair_on("127.0.0.1"));
        client.write_all(b"question").unwrap();
        let together = Barrier::new(2);
        // By about as much as either takes; now and then by so much that it is certain what comes first.
        let (before, after) = match number % 50 {
            0 => (0, CERTAINLY),
            1 => (CERTAINLY, 0),
            early @ ..25 => (0, 25 - early),
            late => (late - 25, 0),
        };
        let spin = |micros: usize| {
            let begin = std::time::Instant::now();
            let time = Duration::from_micros(micros as u64);
            if micros == CERTAINLY {
                thread::sleep(time);
            }
            while begin.elapsed() < time {}
        };
        thread::scope(|scope| {
            let (together, server) = (&together, &mut server);
            scope.spawn(move || {
                together.wait();
                spin(before);
                for part in (0..SIZE).map(byte).collect::<Vec<u8>>().chunks(1000 + number) {
                    server.write_all(part).unwrap();
                }
                server.shutdown(Shutdown::Write).unwrap();
            });
            together.wait();
            spin(after);
            client.shutdown(Shutdown::Write).unwrap();
        });
        let (mut got, mut buffer) = (0, vec![0; 4096]);
        loop {
            assert!(readable(&client, super::work::PATIENCE), "{number}: {got} bytes");
            let many = recv(&client, &mut buffer, libc::MSG_DONTWAIT).unwrap();
            if many == 0 {
                break;
            }
            let right = buffer[..many].iter().zip(got..).all(|(a, i)| *a == byte(i));
            assert!(right, "{number}: wrong bytes after {got}");
            got += many;
        }
        assert_eq!(got, SIZE, "{number}");
    }
    let summary = run.stop().summary();
    println!("{summary}");
    // Both came about, or the test would say nothing.
    let by_tcp = summary["reasons"]["half-closed"].as_u64().unwrap();
    assert!(by_tcp > 0 && by_tcp < CONNECTIONS as u64, "{summary}");
}

/// What is right, the guard does not hold against a program: the socket is not in the map any more.
#[test]
fn who_half_closes_and_reads_an_answer_in_parts_is_not_kept_out() {
    // 4 MiB are redirected; the rest is more than a window, and there is room for it to wait.
    const SIZE: usize = 5_000_000;
    let Some(place) = Place::new() else { return };
    place.run(|| {
        let run = place.guarded(&[]);
        let (listener, addr) = super::work::listen("127.0.0.1");
        let mut actor = crate::support::Actor::new(move |_| {
            let mut client = TcpStream::connect(addr).unwrap();
            option(&client, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SIZE as i32);
            client.write_all(&vec![b'x'; SIZE]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            for _ in 0..2 {
                // Not acknowledged yet, since nobody has read.
                assert_eq!(recv(&client, &mut [0; 3], 0).unwrap(), 3);
            }
        });
        actor.go();
        let (mut server, _) = listener.accept().unwrap();
        thread::sleep(Duration::from_millis(300));
        server.write_all(b"one").unwrap();
        thread::sleep(Duration::from_millis(100));
        server.write_all(b"two").unwrap();
        thread::sleep(Duration::from_millis(100));
        let (mut all, mut buffer) = (0, vec![0; 1 << 16]);
        while let Ok(many @ 1..) = recv(&server, &mut buffer, 0) {
            all += many;
        }
        assert_eq!(all, SIZE);
        actor.finish();
        let run = run.stop();
        assert!(!run.stderr.contains("half-close"), "{} {}", run.stderr, run.summary());
    });
}
