// SPDX-License-Identifier: MIT OR Apache-2.0

//! Options, rows and messages.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use super::work::{exchange, listen, pair, patient, take};
use super::*;
use crate::support::Actor;

#[test]
fn a_cgroup_of_v1_is_refused() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let v1 = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let point = words.nth(1)?;
        (words.next()? == "cgroup").then_some(point)
    });
    let Some(v1) = v1 else {
        println!("SKIP no cgroup v1 is mounted");
        return;
    };
    let (status, text) = refused(&["--cgroup", v1]);
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("not a cgroup v2 directory"), "{text}");
}

#[test]
fn ports_are_those_of_servers() {
    let Some(place) = Place::new() else { return };
    let (wanted, other) = place.run(|| (listen("127.0.0.1"), listen("127.0.0.1")));
    let both = || {
        for (listener, addr) in [&wanted, &other] {
            let mut client = place.run(|| TcpStream::connect(addr).unwrap());
            let mut server = listener.accept().unwrap().0;
            patient(&client);
            exchange(&mut client, &mut server);
        }
    };
    let (yes, no) = (wanted.1.port().to_string(), other.1.port().to_string());
    for args in [["--port", &yes], ["--exclude-port", &no]] {
        let run = place.start(&[&args[..], &["--events"]].concat());
        both();
        let run = run.stop();
        let summary = run.summary();
        assert_eq!(summary["redirected"], 2, "{args:?}: {summary}");
        assert_eq!(summary["reasons"]["filtered"], 2, "{args:?}: {summary}");
        let events = run.events();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!(events[0]["dport"].to_string(), yes);
    }
}

/// The client is called otherwise than the server.
#[test]
fn names_are_those_of_senders() {
    let Some(place) = Place::new() else { return };
    for (comm, to_server, to_client) in [
        ("sr-client", "redirect", "tcp"),
        ("sr-server", "tcp", "redirect"),
        ("sr-client,sr-server", "redirect", "redirect"),
    ] {
        let run = place.start(&["--comm", comm, "--events"]);
        place.run(|| {
            let (listener, addr) = listen("127.0.0.1");
            let mut client = Actor::new(move |stage| {
                fs::write("/proc/self/comm", "sr-client").unwrap();
                let mut stream = TcpStream::connect(addr).unwrap();
                // What is sent before the other end is established stays on TCP.
                stage.pause();
                stream.write_all(b"question").unwrap();
                stage.put(take(&mut stream, 6).len() as i64);
            });
            client.go();
            thread::scope(|scope| {
                scope.spawn(|| {
                    fs::write("/proc/thread-self/comm", "sr-server").unwrap();
                    let (mut stream, _) = listener.accept().unwrap();
                    client.go();
                    assert_eq!(take(&mut stream, 8), b"question");
                    stream.write_all(b"answer").unwrap();
                });
            });
            assert_eq!(client.get(), 6);
            client.finish();
        });
        let events = run.stop().events();
        assert_eq!(events.len(), 1, "{events:?}");
        let event = &events[0];
        assert_eq!(
            (&event["state_to_server"], &event["state_to_client"]),
            (&to_server.into(), &to_client.into()),
            "{event}"
        );
        assert_eq!(
            (&event["client_comm"], &event["server_comm"]),
            (&"sr-client".into(), &"sr-server".into())
        );
        for (direction, state) in [("server", to_server), ("client", to_client)] {
            let reason = &event[format!("reason_to_{direction}").as_str()];
            assert_eq!(reason.as_str(), (state == "tcp").then_some("filtered"), "{event}");
        }
    }
}

/// A line for each connection, exact in every byte; and -n ends it.
#[test]
fn events_tell_every_connection() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["--events", "-n", "20"]);
    let mut expected = Vec::new();
    for number in 1..=20_usize {
        let (mut client, mut server) = place.run(pair);
        client.write_all(&vec![1; number * 100]).unwrap();
        assert_eq!(take(&mut server, number * 100).len(), number * 100);
        server.write_all(&vec![2; number]).unwrap();
        assert_eq!(take(&mut client, number).len(), number);
        expected.push((client.local_addr().unwrap(), server.local_addr().unwrap(), number));
    }
    let run = run.wait();
    assert!(run.status.success(), "{}", run.stderr);
    let events = run.events();
    assert_eq!(events.len(), 20);
    for (client, server, number) in expected {
        let event = events
            .iter()
            .find(|event| event["sport"] == client.port() && event["dport"] == server.port())
            .unwrap_or_else(|| panic!("no {client} in {events:?}"));
        assert_eq!(event["saddr"], "127.0.0.1");
        assert_eq!(event["bytes_to_server"], number * 100, "{event}");
        assert_eq!(event["redirected_to_server"], number * 100, "{event}");
        assert_eq!(event["bytes_to_client"], number, "{event}");
        assert_eq!(event["messages"], 2, "{event}");
        assert_eq!(event["scope"], "closed", "{event}");
        assert_eq!(event["state_to_server"], "redirect", "{event}");
        assert_eq!(event["client_pid"], std::process::id(), "{event}");
    }
}

#[test]
fn tables_show_the_busiest() {
    let Some(place) = Place::new() else { return };
    let run = Running::start(&[
        "sockredir",
        "--cgroup",
        place.path(),
        "--no-guard",
        "-i",
        "200ms",
        "--top",
        "2",
    ]);
    let mut pairs: Vec<_> = (0..3).map(|_| place.run(pair)).collect();
    for ((client, server), many) in pairs.iter_mut().zip([10, 3000, 2000]) {
        client.write_all(&vec![1; many]).unwrap();
        take(server, many);
    }
    let port = |i: usize| pairs[i].0.local_addr().unwrap().port().to_string();
    // The table that has them all.
    let line = loop {
        let line = run.line();
        if line.contains("3 open") && line.contains("4.9 KiB in 3 messages") {
            break line;
        }
    };
    assert!(line.contains("3 of 6 directions redirected"), "{line}");
    assert!(run.line().starts_with("CLIENT"));
    let rows = [run.line(), run.line()];
    assert!(
        rows.iter().any(|row| row.contains(&port(1)) && row.contains("redirect/idle")),
        "{rows:?}"
    );
    assert!(rows.iter().any(|row| row.contains(&port(2))), "{rows:?}");
    let run = run.stop();
    assert!(run.stderr.contains("3 connections stay in the kernel's map"), "{}", run.stderr);
}

/// What TCP has is in the table as well: with what it sent until now, and why.
#[test]
fn tables_show_what_stays_on_tcp() {
    let Some(place) = Place::new() else { return };
    let run = Running::start(&["sockredir", "--cgroup", place.path(), "--no-guard", "-i", "200ms"]);
    // Its server is not in the cgroup.
    let home = place.home.join("cgroup.procs");
    let run = place.run(move || {
        let mut outside = Actor::new(|stage| {
            fs::write(home, "0").expect("root may move processes");
            let (listener, addr) = listen("127.0.0.1");
            stage.put(addr.port().into());
            let mut stream = listener.accept().unwrap().0;
            stage.put(take(&mut stream, 3000).len() as i64);
            stage.pause();
        });
        outside.go();
        let port = outside.get() as u16;
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        patient(&client);
        client.write_all(&[1; 3000]).unwrap();
        assert_eq!(outside.get(), 3000);
        let line = loop {
            let line = run.line();
            if line.contains(&format!(":{port} ")) && line.contains("2.9 KiB") {
                break line;
            }
        };
        assert!(line.contains("tcp:peer-unknown/-"), "{line}");
        outside.go();
        outside.finish();
        run
    });
    let run = run.stop();
    assert!(run.stderr.contains("2.9 KiB by TCP: peer-unknown 1"), "{}", run.stderr);
    assert!(run.stderr.contains("no connection lingers"), "{}", run.stderr);
}

/// Connections that begin and end between two tables, and one that has been shown open: each is shown closed once, with what it
/// sent since.
#[test]
fn short_connections_are_in_the_next_table() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["-i", "300ms"]);
    let (mut client, mut server) = place.run(pair);
    let long = client.local_addr().unwrap().port();
    client.write_all(&[1; 500]).unwrap();
    take(&mut server, 500);
    thread::sleep(Duration::from_millis(700));
    let mut short = Vec::new();
    for number in 1..=10 {
        let (mut client, mut server) = place.run(pair);
        client.write_all(&vec![1; number * 100]).unwrap();
        take(&mut server, number * 100);
        short.push((client.local_addr().unwrap().port(), number * 100));
    }
    client.write_all(&[1; 70]).unwrap();
    take(&mut server, 70);
    drop((client, server));
    thread::sleep(Duration::from_millis(700));
    let run = run.stop();
    let lines = run.json();
    let of = |port: u16| -> Vec<_> {
        lines.iter().filter(|line| line["scope"] == "interval" && line["sport"] == port).collect()
    };
    for (port, bytes) in short {
        let rows = of(port);
        let sum: u64 = rows.iter().map(|row| row["bytes_to_server"].as_u64().unwrap()).sum();
        assert_eq!(sum, bytes as u64, "{rows:?}");
        let closed: Vec<_> = rows.iter().map(|row| row["closed"].as_bool().unwrap()).collect();
        assert_eq!(closed.iter().filter(|closed| **closed).count(), 1, "{rows:?}");
        assert_eq!(closed.last(), Some(&true), "{rows:?}");
        assert_eq!(rows[0]["state_to_server"], "redirect", "{rows:?}");
    }
    let rows = of(long);
    let bytes: Vec<_> = rows.iter().map(|row| row["bytes_to_server"].as_u64().unwrap()).collect();
    assert_eq!(bytes.iter().sum::<u64>(), 570, "{rows:?}");
    assert_eq!(rows.iter().filter(|row| row["closed"] == true).count(), 1, "{rows:?}");
    assert_eq!(rows.last().unwrap()["redirected_to_server"], 570, "{rows:?}");
    let totals = lines.iter().rfind(|line| line["scope"] == "totals").unwrap();
    assert_eq!((&totals["open"], &totals["closed"]), (&0.into(), &serde_json::Value::Null));
}

/// Rows of intervals add up, and every field is there.
#[test]
fn json_rows_add_up() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&["-i", "100ms"]);
    let (mut client, mut server) = place.run(pair);
    for _ in 0..5 {
        for _ in 0..20 {
            exchange(&mut client, &mut server);
        }
        thread::sleep(Duration::from_millis(110));
    }
    thread::sleep(Duration::from_millis(300));
    let run = run.stop();
    let lines = run.json();
    let rows: Vec<_> = lines.iter().filter(|line| line["scope"] == "interval").collect();
    let sum = |name: &str| rows.iter().map(|row| row[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("bytes_to_server"), sum("bytes_to_client")), (800, 600));
    assert_eq!(sum("messages"), 200);
    let totals = lines.iter().rfind(|line| line["scope"] == "totals").unwrap();
    assert_eq!(
        (&totals["open"], &totals["directions"], &totals["redirected"]),
        (&1.into(), &2.into(), &2.into())
    );
    let fields: Vec<_> = rows[0].as_object().unwrap().keys().collect();
    assert_eq!(fields, totals.as_object().unwrap().keys().collect::<Vec<_>>());
    let csv = bpftk(&[
        "sockredir",
        "--cgroup",
        place.path(),
        "--format",
        "csv",
        "-i",
        "50ms",
        "-d",
        "200ms",
    ])
    .output()
    .unwrap();
    let text = String::from_utf8_lossy(&csv.stdout).into_owned();
    let header = text.lines().next().unwrap_or_default();
    assert!(header.starts_with("time,scope,saddr,sport"), "{text}");
    assert_eq!(header.split(',').count(), fields.len() - 1, "{text}");
}
