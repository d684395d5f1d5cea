// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ends of a connection's life: every way to end it, with and without unread data, redirected and not.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::work::{exchange, pair, readable, recv, reset_on_close, send, take};
use super::*;

/// What a read that does not wait says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Bytes(Vec<u8>),
    End,
    Error(i32),
}

fn read(stream: &TcpStream) -> Seen {
    readable(stream, Duration::from_secs(5));
    let mut buffer = [0; 4096];
    match recv(stream, &mut buffer, libc::MSG_DONTWAIT) {
        Ok(0) => Seen::End,
        Ok(many) => Seen::Bytes(buffer[..many].to_vec()),
        Err(error) => Seen::Error(error.raw_os_error().unwrap()),
    }
}

fn read_all(stream: &TcpStream) -> Vec<Seen> {
    let mut all: Vec<Seen> = Vec::new();
    loop {
        let seen = read(stream);
        match (&seen, all.last_mut()) {
            (Seen::Bytes(more), Some(Seen::Bytes(bytes))) => bytes.extend(more),
            _ => all.push(seen.clone()),
        }
        if !matches!(seen, Seen::Bytes(_)) {
            return all;
        }
    }
}

fn errno(result: io::Result<usize>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

type Ending = (&'static str, fn(TcpStream, TcpStream) -> Vec<Seen>);

/// What the other end sees of each; with redirection the same as without.
const ENDINGS: &[Ending] = &[
    ("close", |client, server| {
        send(&client, b"last words", 0).unwrap();
        drop(client);
        read_all(&server)
    }),
    ("half-close, and an answer", |client, mut server| {
        send(&client, b"question", 0).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_all(&server), [Seen::Bytes(b"question".to_vec()), Seen::End]);
        server.write_all(b"answer").unwrap();
        drop(server);
        // The client's socket has seen both ends by now, and its data is unread.
        std::thread::sleep(Duration::from_millis(50));
        read_all(&client)
    }),
    ("both half-close with data unread", |client, server| {
        send(&client, b"to server", 0).unwrap();
        send(&server, b"to client", 0).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let mut seen = read_all(&server);
        seen.extend(read_all(&client));
        seen
    }),
    ("send after half-close", |client, server| {
        send(&client, b"data", 0).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(errno(send(&client, b"too late", 0)), libc::EPIPE);
        read_all(&server)
    }),
    ("shutdown of reading", |client, server| {
        server.shutdown(Shutdown::Read).unwrap();
        assert_eq!(read(&server), Seen::End);
        send(&client, b"data", 0).unwrap();
        drop(client);
        Vec::new()
    }),
    ("send after the other end closed", |client, server| {
        send(&client, b"x", 0).unwrap();
        assert_eq!(read(&server), Seen::Bytes(b"x".to_vec()));
        drop(server);
        assert_eq!(read(&client), Seen::End);
        // The first is answered with a reset, the others see it.
        let outcomes: Vec<i32> = (0..3)
            .map(|_| {
                let outcome = errno(send(&client, b"anybody there?", 0));
                std::thread::sleep(Duration::from_millis(20));
                outcome
            })
            .collect();
        outcomes.into_iter().map(Seen::Error).collect()
    }),
    ("reset after all is read", |client, server| {
        send(&client, b"data", 0).unwrap();
        assert_eq!(read(&server), Seen::Bytes(b"data".to_vec()));
        reset_on_close(&client);
        drop(client);
        read_all(&server)
    }),
    ("close of both at once", |client, mut server| {
        send(&client, &[7; 3000], 0).unwrap();
        server.write_all(&[8; 3000]).unwrap();
        let mut client = client;
        assert_eq!(take(&mut client, 3000), [8; 3000]);
        drop(client);
        read_all(&server)
    }),
];

#[test]
fn every_ending_is_as_without_redirection() {
    let Some(place) = Place::new() else { return };
    let plain: Vec<Vec<Seen>> = place.run(|| {
        ENDINGS
            .iter()
            .map(|(_, ending)| {
                let (c, s) = pair();
                ending(c, s)
            })
            .collect()
    });
    let run = place.start(&[]);
    for ((name, ending), plain) in ENDINGS.iter().zip(plain) {
        let (client, server) = place.run(pair);
        assert_eq!(ending(client, server), plain, "{name}, nothing sent before");
        // And when both directions have been used.
        let (mut client, mut server) = place.run(pair);
        exchange(&mut client, &mut server);
        assert_eq!(ending(client, server), plain, "{name}, after an exchange");
    }
    let summary = run.stop().summary();
    println!("{summary}");
    assert!(summary["redirected"].as_u64().unwrap() >= 3 * ENDINGS.len() as u64 - 4, "{summary}");
    assert_eq!(summary["lingering"], 0, "{summary}");
}

/// Every byte that was sent before an orderly end arrives, however late it is read.
#[test]
fn much_unread_data_survives_the_other_ends_close() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["--max-queue", "1M"]);
    for many in [1, 10_000, 900_000] {
        let (mut client, mut server) = place.run(pair);
        client.write_all(&vec![b'd'; many]).unwrap();
        drop(client);
        std::thread::sleep(Duration::from_millis(20));
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), many);
    }
    assert_eq!(run.stop().summary()["redirected"], 3);
}
