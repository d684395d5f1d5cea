// SPDX-License-Identifier: MIT OR Apache-2.0

//! It begins, ends, is killed and begins again while connections are in use.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::work::{exchange, listen, pair, patient, recv, take};
use super::*;
use crate::support::{Actor, map_entries, stdout, within};

/// Bytes wait unread while it ends. Returns how many of the 10 000 arrive.
fn unread(place: &Place, end: impl FnOnce()) -> usize {
    let (mut client, server) = place.run(pair);
    client.write_all(&[b'u'; 10_000]).unwrap();
    end();
    // What comes next must not overtake.
    client.write_all(b"more").unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 20_000];
    while got.len() < 10_004 {
        if !super::work::readable(&server, Duration::from_secs(1)) {
            break;
        }
        let many = recv(&server, &mut buffer, libc::MSG_DONTWAIT).unwrap_or(0);
        got.extend_from_slice(&buffer[..many]);
    }
    got.iter().take_while(|byte| **byte == b'u').count()
}

#[test]
fn naive_tidying_up_loses_bytes() {
    let Some(place) = Place::new() else { return };
    assert_eq!(unread(&place, || {}), 10_000, "without redirection");
    let mut naive = place.naive(true);
    let got = unread(&place, || naive.delete_entries());
    assert!(got < 10_000, "the test would not find it");
}

#[test]
fn unread_bytes_survive_every_end() {
    let Some(place) = Place::new() else { return };
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let run = place.start(&[]);
        let mut running = Some(run);
        let got = unread(&place, || {
            let run = running.take().unwrap();
            run.signal(signal);
            let run = run.wait();
            if signal != Signal::SIGKILL {
                let summary = run.summary();
                assert_eq!(summary["redirected_bytes"], 10_000, "{summary}");
                assert_eq!(
                    (&summary["lingering"], &summary["lingering_redirected"]),
                    (&1.into(), &1.into())
                );
            }
        });
        assert_eq!(got, 10_000, "{signal}");
    }
}

/// Whoever talks while bpftk comes and goes: returns how many questions were answered, each rightly.
fn talk(place: &Place, stop: &AtomicBool, talks: &AtomicUsize) {
    place.run(|| {
        let (listener, addr) = listen("127.0.0.1");
        while !stop.load(Ordering::Relaxed) {
            let mut client = TcpStream::connect(addr).unwrap();
            // Before the other end is accepted.
            client.write_all(b"0123456789").unwrap();
            let (mut server, _) = listener.accept().unwrap();
            patient(&client);
            patient(&server);
            assert_eq!(take(&mut server, 10), b"0123456789");
            for number in 0..200_u32 {
                let question = number.to_be_bytes().repeat(1 + number as usize * 7);
                client.write_all(&question).unwrap();
                assert_eq!(take(&mut server, question.len()), question);
                server.write_all(&question[..4]).unwrap();
                assert_eq!(take(&mut client, 4), question[..4]);
            }
            talks.fetch_add(1, Ordering::Relaxed);
        }
    });
}

#[test]
fn restarts_under_traffic_lose_nothing() {
    let Some(place) = Place::new() else { return };
    place.spread();
    let (stop, talks) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut redirected = 0;
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| talk(&place, &stop, &talks));
        }
        for round in 0..rounds(20).max(4) {
            // Two at once, every third time.
            let second = (round % 3 == 2).then(|| place.start(&[]));
            let run = place.start(&[]);
            thread::sleep(Duration::from_millis(fastrand::u64(50..300)));
            if round % 2 == 0 {
                run.kill();
            } else {
                // One of the three has ended two, and began the second of them while bpftk was there.
                let before = talks.load(Ordering::Relaxed);
                let enough = || talks.load(Ordering::Relaxed) >= before + 4;
                assert!(within(60, enough), "nobody talks");
                redirected += run.stop().summary()["redirected"].as_u64().unwrap();
            }
            drop(second.map(Running::stop));
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!(
        "{talks:?} connections, {redirected} directions redirected by those that were not killed"
    );
    assert!(talks.into_inner() > 3 && redirected > 0);
}

/// The second one finds that the sockets are in a map already.
#[test]
fn two_instances_do_not_quarrel() {
    let Some(place) = Place::new() else { return };
    let (first, second) = (place.start(&[]), place.start(&[]));
    let (mut client, mut server) = place.run(pair);
    for _ in 0..10 {
        exchange(&mut client, &mut server);
    }
    let summaries = [first.stop().summary(), second.stop().summary()];
    let redirected: Vec<u64> =
        summaries.iter().map(|s| s["redirected"].as_u64().unwrap()).collect();
    let exists: u64 = summaries.iter().map(|s| s["reasons"]["exists"].as_u64().unwrap()).sum();
    assert_eq!(redirected.iter().sum::<u64>(), 2, "{summaries:#?}");
    assert!(exists > 0, "{summaries:#?}");
    exchange(&mut client, &mut server);
}

/// Sockets that are older stay as they are.
#[test]
fn older_connections_stay_on_tcp() {
    let Some(place) = Place::new() else { return };
    let (mut client, mut server) = place.run(pair);
    client.write_all(b"before").unwrap();
    let run = place.start(&[]);
    assert_eq!(take(&mut server, 6), b"before");
    exchange(&mut client, &mut server);
    let summary = run.stop().summary();
    assert_eq!((&summary["clients"], &summary["redirected_bytes"]), (&0.into(), &0.into()));
    exchange(&mut client, &mut server);
}

/// A client whose server is not in the cgroup. Returns what its first send says.
fn first_send_to_outside(place: &Place) -> std::io::Result<()> {
    let home = place.home.join("cgroup.procs");
    place.run(move || {
        let mut outside = Actor::new(|stage| {
            std::fs::write(home, "0").expect("root may move processes");
            let (listener, addr) = listen("127.0.0.1");
            stage.put(addr.port().into());
            let mut got = Vec::new();
            let _ = std::io::Read::read_to_end(&mut listener.accept().unwrap().0, &mut got);
        });
        outside.go();
        let port = outside.get() as u16;
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let sent = client.write_all(b"hello");
        drop(client);
        outside.finish();
        sent
    })
}

#[test]
fn naive_redirection_refuses_what_is_out_of_scope() {
    let Some(place) = Place::new() else { return };
    first_send_to_outside(&place).expect("without redirection it is sent");
    let _naive = place.naive(false);
    let error = first_send_to_outside(&place).expect_err("the test would not find it");
    assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{error}");
}

/// A server that is out of scope, and one that is in it with a client that is not.
#[test]
fn a_peer_out_of_scope_stays_on_tcp() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&[]);
    // The actor begins in the namespace of the thread that makes it.
    place.run(|| {
        for inside_connects in [true, false] {
            let (listener, addr) = listen("127.0.0.1");
            let home = place.home.join("cgroup.procs");
            let mut outside = Actor::new(|stage| {
                std::fs::write(home, "0").expect("root may move processes");
                let mut stream = if inside_connects {
                    let (listener, addr) = listen("127.0.0.1");
                    stage.put(addr.port().into());
                    listener.accept().unwrap().0
                } else {
                    TcpStream::connect(addr).unwrap()
                };
                let got = take(&mut stream, 5);
                stream.write_all(&got).unwrap();
                stage.put(got.len() as i64);
            });
            outside.go();
            let mut stream = if inside_connects {
                let port = outside.get() as u16;
                TcpStream::connect(("127.0.0.1", port)).unwrap()
            } else {
                listener.accept().unwrap().0
            };
            patient(&stream);
            stream.write_all(b"hello").unwrap();
            assert_eq!(take(&mut stream, 5), b"hello");
            assert_eq!(outside.get(), 5);
            outside.finish();
        }
    });
    let left = || map_entries(run.pid(), "refused");
    assert!(within(5, || left() == 0));
    let summary = run.stop().summary();
    assert_eq!(summary["redirected"], 0, "{summary}");
    assert_eq!(summary["reasons"]["peer-unknown"], 2, "{summary}");
    assert_eq!(summary["tcp_bytes"], 10, "{summary}");
}

#[test]
fn a_full_map_means_tcp() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["--max-connections", "4"]);
    let mut pairs: Vec<_> = (0..12).map(|_| place.run(pair)).collect();
    for (client, server) in &mut pairs {
        exchange(client, server);
    }
    let summary = run.stop().summary();
    println!("{summary}");
    assert_eq!(summary["redirected"], 8, "{summary}");
    assert!(summary["reasons"]["map-full"].as_u64().unwrap() >= 8, "{summary}");
    for (client, server) in &mut pairs {
        exchange(client, server);
    }
}

/// A table of a few has room again when they have closed.
#[test]
fn a_small_map_serves_many_one_after_the_other() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["--max-connections", "4"]);
    for half_close in [false, true] {
        for _ in 0..30 {
            let (mut client, mut server) = place.run(pair);
            exchange(&mut client, &mut server);
            if half_close {
                server.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(take(&mut client, 1), b"");
            }
            drop((client, server));
            // The kernel takes a socket out of the map a little later.
            assert!(within(10, || map_entries(run.pid(), "socks") == 0));
        }
    }
    let summary = run.stop().summary();
    assert_eq!(
        (&summary["redirected"], &summary["reasons"]["map-full"]),
        (&120.into(), &0.into()),
        "{summary}"
    );
}

#[test]
fn short_connections_leave_nothing() {
    let Some(place) = Place::new() else { return };
    let connections = rounds(10_000);
    let time = || {
        place.run(|| {
            let begin = std::time::Instant::now();
            let (listener, addr) = listen("127.0.0.1");
            for _ in 0..connections {
                let mut client = TcpStream::connect(addr).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                exchange(&mut client, &mut server);
            }
            begin.elapsed() / connections as u32
        })
    };
    let without = time();
    let run = place.start(&[]);
    println!("a connection, two messages: {:?}, without bpftk {without:?}", time());
    let mut left = usize::MAX;
    for _ in 0..100 {
        left = ["ends", "socks", "receivers"].map(|name| map_entries(run.pid(), name)).iter().sum();
        if left == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(left, 0);
    let summary = run.stop().summary();
    assert_eq!(summary["redirected"], 2 * connections as u64, "{summary}");
    assert_eq!(summary["lingering"], 0);
    assert_eq!(summary["redirected_bytes"], 14 * connections as u64);
}

/// What outlives a bpftk that was killed is told of, and is gone with the connections.
#[test]
fn doctor_tells_what_lingers() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&[]);
    let (mut client, mut server) = place.run(pair);
    exchange(&mut client, &mut server);
    run.kill();
    let told = || stdout(&output(&["doctor"]));
    let text = told();
    assert!(
        text.contains("bpftk_sk_msg") && text.contains("connections that it redirected"),
        "{text}"
    );
    exchange(&mut client, &mut server);
    drop((client, server));
    let gone = within(5, || !told().contains("bpftk_sk_msg"));
    assert!(gone, "{}", told());
}
