// SPDX-License-Identifier: MIT OR Apache-2.0

//! Connect, send, send, send: the first bytes race with the server's end of the connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use super::work::{listen, patient};
use super::*;

/// Of so many connections, how many got other bytes than were sent, and how many failed to send.
fn race(place: &Place, connections: usize) -> (usize, usize) {
    place.run(|| {
        let (listener, addr) = listen("127.0.0.1");
        let expected = [vec![b'1'; 11], vec![b'2'; 22], vec![b'3'; 33]];
        let whole = expected.concat();
        thread::scope(|scope| {
            let server = scope.spawn(|| {
                let mut wrong = 0;
                for _ in 0..connections {
                    let (mut stream, _) = listener.accept().unwrap();
                    patient(&stream);
                    let mut got = Vec::new();
                    let _ = stream.read_to_end(&mut got);
                    // A sender that failed is counted by itself.
                    wrong += usize::from(got.len() == whole.len() && got != whole);
                }
                wrong
            });
            let mut failed = 0;
            for _ in 0..connections {
                let mut client = TcpStream::connect(addr).unwrap();
                client.set_nodelay(true).unwrap();
                let sent: std::io::Result<()> =
                    expected.iter().try_for_each(|piece| client.write_all(piece));
                failed += usize::from(sent.is_err());
                let _ = client.shutdown(Shutdown::Write);
            }
            (server.join().unwrap(), failed)
        })
    })
}

#[test]
fn naive_redirection_reorders_and_refuses() {
    let Some(place) = Place::new() else { return };
    place.spread();
    assert_eq!(race(&place, rounds(2000)), (0, 0), "without redirection");
    let naive = place.naive(true);
    let (wrong, failed) = race(&place, 2000);
    println!("lenient: {wrong} of 2000 reordered, {failed} failed");
    assert!(wrong > 0, "the test would not find it");
    drop(naive);
    let _naive = place.naive(false);
    let (wrong, failed) = race(&place, 2000);
    println!("verbatim: {wrong} of 2000 reordered, {failed} failed");
    assert!(failed > 0, "the test would not find it");
}

#[test]
fn first_bytes_stay_in_order() {
    let Some(place) = Place::new() else { return };
    place.spread();
    let run = place.start(&[]);
    let connections = rounds(5000);
    assert_eq!(race(&place, connections), (0, 0));
    let summary = run.stop().summary();
    println!("{summary}");
    // Both ways are taken: the race is there.
    assert!(summary["redirected"].as_u64().unwrap() > 0, "{summary}");
    assert!(summary["reasons"]["peer-unknown"].as_u64().unwrap() > 0, "{summary}");
}
