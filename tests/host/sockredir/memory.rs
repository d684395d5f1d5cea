// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many readers that do not read: what waits for all of them together is bounded, known exactly, and nothing once it is read.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::work::{PATIENCE, exchange, pair, take};
use super::*;

/// bpf/sockredir.h: what a message counts for beside its bytes.
const MESSAGE: u64 = 1024;

fn number(of: &Value, name: &str) -> u64 {
    of[name].as_u64().unwrap_or_else(|| panic!("no {name} in {of}"))
}

/// The first totals that are as asked.
fn totals(run: &Running, wanted: impl Fn(&Value) -> bool) -> Value {
    let begin = Instant::now();
    loop {
        let line: Value = serde_json::from_str(&run.line()).unwrap();
        if line["scope"] == "totals" {
            if wanted(&line) {
                return line;
            }
            assert!(begin.elapsed() < PATIENCE, "still {line}");
        }
    }
}

fn byte_of(connection: usize) -> u8 {
    connection as u8 + 1
}

/// So many connections on which up to a megabyte is sent and nothing read, and how much it was on each.
fn unread(place: &Place, connections: usize) -> Vec<(TcpStream, TcpStream, usize)> {
    let filled = |number: usize| {
        let (mut client, server) = place.run(pair);
        client.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while sent < 1 << 20 {
            match client.write(&[byte_of(number); 16384]) {
                Ok(many) => sent += many,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{number} after {sent}: {error}"),
            }
        }
        (client, server, sent)
    };
    (0..connections).map(filled).collect()
}

fn read_all(connections: &mut [(TcpStream, TcpStream, usize)]) {
    for (number, (_, server, sent)) in connections.iter_mut().enumerate() {
        let got = take(server, *sent);
        assert!(got.len() == *sent && got.iter().all(|byte| *byte == byte_of(number)), "{number}");
    }
}

#[test]
fn all_directions_together_have_a_bound() {
    let Some(place) = Place::new() else { return };
    let mut waited = Vec::new();
    for limit in ["4M", "1G"] {
        let run = place.start(&["--max-memory", limit, "-i", "100ms"]);
        let mut connections = unread(&place, 12);
        let total = totals(&run, |total| number(total, "directions") == 24);
        waited.push(number(&total, "waiting"));
        println!("--max-memory {limit}: {total}");
        read_all(&mut connections);
        // Nobody sends, and none is closed: it is noticed all the same that there is nothing any more.
        let before = number(&totals(&run, |total| number(total, "waiting") == 0), "redirected");
        // There is room again.
        let (mut client, mut server) = place.run(pair);
        exchange(&mut client, &mut server);
        totals(&run, |total| number(total, "redirected") == before + 2);
        let summary = run.stop().summary();
        assert_eq!(number(&summary, "waiting"), 0, "{summary}");
        if limit == "4M" {
            assert!(number(&summary, "redirected_bytes") <= (4 << 20) + 14, "{summary}");
            assert!(number(&summary["reasons"], "memory") >= 8, "{summary}");
            // Those that came later, and whoever was over the bound in the middle.
            assert_eq!(number(&summary, "fell_back"), 1, "{summary}");
        } else {
            assert_eq!(number(&summary["reasons"], "memory"), 0, "{summary}");
        }
    }
    assert!(waited[0] <= 4 << 20, "{waited:?}");
    assert!(waited[1] > 8 << 20, "the test would not find a build without the bound: {waited:?}");
}

/// To the message: the 64th does not fit.
#[test]
fn a_message_counts_for_more_than_its_bytes() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["--max-memory", "64K", "-i", "100ms"]);
    let (mut client, mut server) = place.run(pair);
    for _ in 0..1000 {
        client.write_all(b"x").unwrap();
    }
    let total = totals(&run, |total| number(total, "waiting") > 0);
    assert_eq!(number(&total, "waiting"), 63 * (MESSAGE + 1), "{total}");
    assert_eq!(take(&mut server, 1000), [b'x'; 1000]);
    let summary = run.stop().summary();
    assert_eq!(number(&summary, "redirected_messages"), 63, "{summary}");
    assert_eq!(number(&summary, "fell_back"), 1, "{summary}");
    assert_eq!(number(&summary["reasons"], "memory"), 1, "{summary}");
    assert_eq!(number(&summary, "waiting"), 0, "{summary}");
}

/// What waits counts for as long as it does, whether or not its sender is there.
#[test]
fn unread_data_counts_when_its_sender_is_closed() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["--max-memory", "1M", "-i", "100ms"]);
    let (mut client, mut server) = place.run(pair);
    let many = 64 * 15 * 1024;
    for _ in 0..64 {
        client.write_all(&[7; 15 * 1024]).unwrap();
    }
    drop(client);
    let full = |total: &Value| number(total, "waiting") == many as u64 + 64 * MESSAGE;
    totals(&run, full);
    let (mut other, mut late) = place.run(pair);
    exchange(&mut other, &mut late);
    let total = totals(&run, |total| number(&total["reasons"], "memory") == 2);
    assert!(full(&total), "{total}");
    assert_eq!(take(&mut server, many), vec![7; many]);
    totals(&run, |total| number(total, "waiting") == 0);
    // For good: they were TCP's from their first byte on.
    exchange(&mut other, &mut late);
    let (mut client, mut server) = place.run(pair);
    exchange(&mut client, &mut server);
    let summary = run.stop().summary();
    assert_eq!(number(&summary, "redirected"), 3, "{summary}");
    assert_eq!(number(&summary, "redirected_bytes"), many as u64 + 14, "{summary}");
}

/// With the memory full of others' data, a direction whose reader keeps up stays redirected.
#[test]
fn who_keeps_up_is_not_punished() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["--max-memory", "1M", "-i", "100ms"]);
    let (mut client, mut server) = place.run(pair);
    exchange(&mut client, &mut server);
    let _unread = unread(&place, 4);
    totals(&run, |total| number(&total["reasons"], "memory") == 4);
    for _ in 0..50 {
        exchange(&mut client, &mut server);
    }
    let port = client.local_addr().unwrap().port();
    let run = run.stop();
    let row = run.json().into_iter().rfind(|line| line["sport"] == port).unwrap();
    assert_eq!(row["state_to_server"], "redirect", "{row}");
    assert_eq!(row["state_to_client"], "redirect", "{row}");
    assert_eq!(number(&run.summary(), "fell_back"), 1, "{}", run.summary());
}

/// However it ends, what an end holds is given back.
#[test]
fn every_end_gives_back_what_it_holds() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["-i", "100ms"]);
    for reset in [false, true] {
        for server_first in [false, true] {
            for _ in 0..5 {
                let (mut client, mut server) = place.run(pair);
                client.write_all(&[1; 5000]).unwrap();
                server.write_all(&[2; 7000]).unwrap();
                if reset {
                    super::work::reset_on_close(&client);
                    super::work::reset_on_close(&server);
                }
                let (first, second) =
                    if server_first { (server, client) } else { (client, server) };
                drop(first);
                std::thread::sleep(Duration::from_millis(5));
                drop(second);
            }
        }
    }
    let over = |total: &serde_json::Value| {
        number(total, "directions") == 40 && number(total, "waiting") + number(total, "open") == 0
    };
    totals(&run, over);
    let summary = run.stop().summary();
    assert_eq!(number(&summary, "redirected_bytes"), 20 * 12_000, "{summary}");
    assert_eq!(number(&summary, "lingering"), 0, "{summary}");
}

/// net.ipv4.tcp_mem, which is the whole machine's, for as long as this lives.
struct TcpMemory(String);

impl TcpMemory {
    const PATH: &str = "/proc/sys/net/ipv4/tcp_mem";

    /// In pages.
    fn set(limits: &str) -> Option<Self> {
        if std::env::var_os("BPFTK_VM").is_none() {
            println!("SKIP the limits of TCP's memory are the whole machine's: in a guest only");
            return None;
        }
        let before = fs::read_to_string(Self::PATH).unwrap();
        fs::write(Self::PATH, limits).unwrap();
        Some(Self(before))
    }
}

impl Drop for TcpMemory {
    fn drop(&mut self) {
        fs::write(Self::PATH, &self.0).unwrap();
    }
}

/// How a sender that does not wait is told that there is no room for another message.
fn refusal(mut client: &TcpStream, message: &[u8]) -> i32 {
    client.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while sent < 64 << 20 {
        match client.write(message) {
            Ok(many) => sent += many,
            Err(error) => return error.raw_os_error().unwrap(),
        }
    }
    panic!("{sent} bytes were taken");
}

/// The same where only the reader's end asks TCP for memory: what waits at the client takes the rest of a page, so that a short
/// message of the client's takes no other.
fn reader_is_refused(place: &Place) -> i32 {
    let (client, mut server) = place.run(pair);
    server.set_nonblocking(true).unwrap();
    match server.write_all(b"x") {
        Ok(()) => refusal(&client, &[1; 4000]),
        Err(error) => error.raw_os_error().unwrap(),
    }
}

/// Where TCP waits for memory, the kernel fails a redirected send: so nothing is redirected then.
#[test]
fn when_tcp_is_short_of_memory_nothing_is_redirected() {
    let Some(place) = Place::new() else { return };
    {
        let Some(_short) = TcpMemory::set("16 32 64") else { return };
        assert_eq!(refusal(&place.run(pair).0, &[1; 65536]), libc::EAGAIN, "without redirection");
        {
            let _naive = place.naive(true);
            assert_eq!(
                refusal(&place.run(pair).0, &[1; 65536]),
                libc::ENOMEM,
                "the test would not find it"
            );
        }
        let run = place.start(&[]);
        assert_eq!(refusal(&place.run(pair).0, &[1; 65536]), libc::EAGAIN);
        let summary = run.stop().summary();
        println!("{summary}");
        assert_eq!(number(&summary["reasons"], "memory"), 1, "{summary}");
    }
    let Some(_none) = TcpMemory::set("0 100000 200000") else { return };
    let run = place.start(&[]);
    let (mut client, mut server) = place.run(pair);
    exchange(&mut client, &mut server);
    let summary = run.stop().summary();
    assert_eq!(number(&summary["reasons"], "memory"), 2, "{summary}");
    assert_eq!(number(&summary, "redirected"), 0, "{summary}");
}

/// Pages of TCP's memory, as far as they are in the sum that the kernel compares with tcp_mem.
fn tcp_pages() -> u64 {
    let stat = fs::read_to_string("/proc/net/sockstat").unwrap();
    let tcp = stat.lines().find(|line| line.starts_with("TCP:")).unwrap();
    tcp.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Since Linux 6.0, a processor adds what it took of TCP's memory to the sum a megabyte at a time: one allocation can take it
/// from below the first of the limits to above the last.
#[test]
fn what_processors_hold_back_of_tcp_memory_is_counted_on() {
    let Some(place) = Place::new() else { return };
    let held_back = 256 * std::thread::available_parallelism().unwrap().get() as u64;
    for room in [200, held_back + 200] {
        let limits = |low: u64| format!("{low} {} {}", low + 5, low + 10);
        let Some(short) = TcpMemory::set(&limits(tcp_pages() + room)) else { return };
        // Processors also hold back what is given back. Where there is little room, each connection has it beside what the last one
        // left in the sum; else all have it together.
        let refused = || {
            let each = (room < held_back).then(|| TcpMemory::set(&limits(tcp_pages() + room)));
            let refusal = reader_is_refused(&place);
            drop(each);
            refusal
        };
        {
            let _naive = place.naive(true);
            let refusals: Vec<_> = (0..8).map(|_| refused()).collect();
            assert!(refusals.contains(&libc::ENOMEM), "the test would not find it: {refusals:?}");
        }
        drop(short);
        let run = place.start(&[]);
        let _short = TcpMemory::set(&limits(tcp_pages() + room));
        let refusals: Vec<_> = (0..8).map(|_| refused()).collect();
        assert_eq!(refusals, [libc::EAGAIN; 8]);
        let summary = run.stop().summary();
        println!("{room} pages of room: {summary}");
        // Where they have the room together, the last ones may find none for TCP either, and send nothing.
        let least = if room < held_back { 8 } else { 1 };
        assert!(number(&summary["reasons"], "memory") >= least, "{summary}");
        if room > held_back {
            assert_ne!(number(&summary, "redirected"), 0, "{summary}");
        }
    }
}
