// SPDX-License-Identifier: MIT OR Apache-2.0

//! What TCP brings twice is read once: a retransmission begins with bytes that have arrived, whose acknowledgement was lost.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use libbpf_rs::{Link, Object, ObjectBuilder};

use super::readers::{assert_end, bytes};
use super::work::{listen, patient, take};
use super::*;

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lose_segments.bpf.o"));

/// Loses the segments of `lost` on the loopback interface of this thread's namespace.
struct Losing {
    /// Dropped before the object.
    _link: Link,
    _object: Object,
}

impl Losing {
    fn start(port: u16, lost: u32, silent_until: u32) -> Self {
        let mut open = ObjectBuilder::default().open_memory(OBJECT).expect("an object");
        let mut constants = open
            .maps_mut()
            .find(|map| map.name().to_string_lossy().ends_with(".rodata"))
            .expect("the object has constants");
        let value = constants.initial_value_mut().expect("constants have a value");
        // In the order of the source, each at its own alignment.
        value[..2].copy_from_slice(&port.to_ne_bytes());
        value[4..8].copy_from_slice(&lost.to_ne_bytes());
        value[8..12].copy_from_slice(&silent_until.to_ne_bytes());
        let object = open.load().expect("it loads");
        // The loopback interface is each namespace's first.
        let link = object.progs_mut().next().unwrap().attach_xdp(1).expect("lo has generic XDP");
        Self { _link: link, _object: object }
    }
}

/// Sends `first` bytes, which arrive, and then `second`, which are lost at first; what the other end reads, to the end.
fn send_again(ip: &str, first: usize, second: usize) {
    let (listener, addr) = listen(ip);
    let _losing = Losing::start(addr.port(), 0b110, 4);
    let mut client = TcpStream::connect(addr).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    patient(&client);
    patient(&server);
    let name = format!("{ip}, {first} and {second}");
    let content = bytes(3, 0, first + second + 8);
    client.write_all(&content[..first]).unwrap();
    // The reader has it already, or it waits: both.
    let read_early = first.is_multiple_of(2);
    let mut got = if read_early { take(&mut server, first) } else { Vec::new() };
    if second > 0 {
        client.write_all(&content[first..first + second]).unwrap();
        thread::sleep(Duration::from_millis(20));
        got.extend(take(&mut server, first + second - got.len()));
        client.write_all(&content[first + second..]).unwrap();
        got.extend(take(&mut server, 8));
        assert!(got == content, "{name}: {} bytes, or wrong ones", got.len());
        client.shutdown(Shutdown::Write).unwrap();
    } else {
        // The end alone is lost, and comes with the data again.
        client.shutdown(Shutdown::Write).unwrap();
        got.extend(take(&mut server, first - got.len()));
        assert!(got == content[..first], "{name}: {} bytes, or wrong ones", got.len());
    }
    assert_end(&server, &name);
}

const CASES: [(usize, usize); 9] = [
    (8, 8),
    (9, 700),
    (1000, 20),
    (4095, 8),
    (4097, 8),
    (20_001, 8),
    (60_000, 8),
    (10, 0),
    (4001, 0),
];

/// The reader has ended its own direction, so that the segment that comes again, with the end, closes the connection.
fn the_end_comes_again(ip: &str, many: usize) {
    let (listener, addr) = listen(ip);
    let _losing = Losing::start(addr.port(), 0b110, 4);
    let mut client = TcpStream::connect(addr).unwrap();
    let (server, _) = listener.accept().unwrap();
    patient(&client);
    patient(&server);
    server.shutdown(Shutdown::Write).unwrap();
    assert_end(&client, "the reader's end");
    let content = bytes(4, 0, many);
    client.write_all(&content).unwrap();
    thread::sleep(Duration::from_millis(20));
    drop(client);
    // It closes while all of it is unread, the second coming included.
    thread::sleep(Duration::from_secs(1));
    let mut server = server;
    assert!(take(&mut server, many) == content, "{ip}, {many} bytes");
    assert_end(&server, "the end");
}

const LAST: [usize; 3] = [8, 4097, 20_001];

#[test]
fn what_comes_twice_is_read_once() {
    let Some(place) = Place::new() else { return };
    place.run(|| send_again("127.0.0.1", 8, 8));
    // All of it is left to TCP, and the sockets are in the map all the same.
    let run = place.start(&["--comm", "nobody-at-all"]);
    for ip in ["127.0.0.1", "::1"] {
        for (first, second) in CASES {
            place.run(|| send_again(ip, first, second));
        }
        for many in LAST {
            place.run(|| the_end_comes_again(ip, many));
        }
    }
    let summary = run.stop().summary();
    println!("{summary}");
    assert_eq!(summary["redirected"], 0, "{summary}");
    let sent: usize =
        CASES.iter().map(|(first, second)| first + if *second > 0 { second + 8 } else { 0 }).sum();
    let last: usize = LAST.iter().sum();
    assert_eq!(summary["tcp_bytes"], 2 * (sent + last), "{summary}");
    // Else the test would not find it.
    assert!(summary["overlaps"].as_u64().unwrap() >= 6, "{summary}");
    assert_eq!(summary["overlaps_kept"], 0, "{summary}");
}

/// Bytes are lost at random, in a direction that was redirected before.
#[test]
fn losses_behind_a_fall_back_change_no_byte() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["--max-queue", "64K"]);
    let seed = std::env::var("BPFTK_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("BPFTK_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..rounds(60).max(10) {
        let (lost, silent) = (random.u32(..) & random.u32(..), random.u32(..6));
        let chunk = random.usize(200..20_000);
        place.run(|| {
            let (listener, addr) = listen("127.0.0.1");
            let _losing = Losing::start(addr.port(), lost, silent);
            let client = TcpStream::connect(addr).unwrap();
            let (server, _) = listener.accept().unwrap();
            patient(&client);
            patient(&server);
            let many = 150_000;
            thread::scope(|scope| {
                scope.spawn(|| {
                    let content = bytes(round as u64, 0, many);
                    for piece in content.chunks(chunk) {
                        (&client).write_all(piece).unwrap();
                    }
                    client.shutdown(Shutdown::Write).unwrap();
                });
                thread::sleep(Duration::from_millis(30));
                let mut expected = super::readers::Expected::new(
                    round as u64,
                    many as u64,
                    format!("round {round}"),
                );
                super::readers::Reader::Edge.read(&server, 50_000, &mut expected);
                assert_end(&server, "the end");
            });
        });
    }
    let summary = run.stop().summary();
    println!("{summary}");
    assert!(summary["fell_back"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(summary["overlaps_kept"], 0, "{summary}");
}
