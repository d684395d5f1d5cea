// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--names`: what destinations are called.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::support::Actor;
use crate::support::dns::{Record, message, over_udp};

/// The last table's only row of an address: its names, and what says them.
fn names_of(run: &Run, daddr: &str) -> (Value, Value) {
    let rows: Vec<Value> = totals(run).into_iter().filter(|row| row["daddr"] == daddr).collect();
    let [row] = rows.as_slice() else { panic!("{daddr}: {}", run.stdout) };
    (row["name"].clone(), row["name_source"].clone())
}

fn named(names: &[(&str, &str)]) -> (Value, Value) {
    let (names, sources): (Vec<&str>, Vec<&str>) = names.iter().copied().unzip();
    (names.into(), sources.into())
}

/// Has the calling process ask for `name`, and be told the address.
fn ask(server: &str, name: &str, addr: &str) {
    over_udp(server, &message(name, &[Record::A(name, addr.parse().unwrap())], 0));
}

/// Connects, says so many bytes and hears that they came.
fn say(listener: &TcpListener, wire: &Wire, what: &str) {
    let to = listener.local_addr().unwrap();
    let mut stream = wire.near.run(|| TcpStream::connect(to).unwrap());
    let (mut accepted, _) = listener.accept().unwrap();
    stream.write_all(what.as_bytes()).unwrap();
    accepted.read_exact(&mut vec![0; what.len()]).unwrap();
}

#[test]
fn destinations_are_named_by_what_was_asked_for() {
    if !root() {
        return;
    }
    let wire = wire();
    let listener = wire.far.run(|| TcpListener::bind((FAR4, 0)).unwrap());
    for backend in backends() {
        let args = ["tc-egress", "near", "--names", "--by", "dst", "--backend", backend];
        let run = wire.start(&args);
        wire.near.run(|| {
            let chain = [
                Record::Cname("www.example", "edge.example"),
                Record::A("edge.example", "203.0.113.7".parse().unwrap()),
            ];
            over_udp("127.0.0.53", &message("www.example", &chain, 0));
            send("203.0.113.7:9".parse().unwrap(), 3);
            // Several names: all of them, the latest first.
            ask("127.0.0.1", "one.example", "203.0.113.8");
            ask("127.0.0.1", "two.example", "203.0.113.8");
            send("203.0.113.8:9".parse().unwrap(), 3);
            // What is learned late is known for what was sent early.
            send("203.0.113.9:9".parse().unwrap(), 3);
            ask("127.0.0.1", "late.example", "203.0.113.9");
            send("203.0.113.10:9".parse().unwrap(), 3);
        });
        say(&listener, &wire, "GET / HTTP/1.1\r\nHost: host.example:8080\r\n\r\n");
        settle();
        let run = run.stop();
        adds_up(&run);
        assert_eq!(names_of(&run, "203.0.113.7"), named(&[("www.example", "dns")]), "{backend}");
        let two = named(&[("two.example", "dns"), ("one.example", "dns")]);
        assert_eq!(names_of(&run, "203.0.113.8"), two, "{backend}");
        assert_eq!(names_of(&run, "203.0.113.9"), named(&[("late.example", "dns")]), "{backend}");
        assert_eq!(names_of(&run, "203.0.113.10"), (Value::Null, Value::Null), "{backend}");
        assert_eq!(names_of(&run, FAR4), named(&[("host.example", "host")]), "{backend}");
        assert_eq!(run.summary()["lost_names"], 0);
    }
}

#[test]
fn rows_by_name_are_of_all_its_addresses() {
    if !root() {
        return;
    }
    let wire = wire();
    let args = ["tc-egress", "near", "--by", "name,proto", "--only", "203.0.113.0/24"];
    let run = wire.start(&args);
    wire.near.run(|| {
        ask("127.0.0.1", "one.example", "203.0.113.7");
        ask("127.0.0.1", "one.example", "203.0.113.8");
        send("203.0.113.7:9".parse().unwrap(), 3);
        send("203.0.113.8:9".parse().unwrap(), 4);
        send("203.0.113.9:9".parse().unwrap(), 5);
        // What is learned late is known for what was sent early.
        ask("127.0.0.1", "late.example", "203.0.113.9");
        send("203.0.113.10:9".parse().unwrap(), 6);
    });
    settle();
    let run = run.stop();
    adds_up(&run);
    let mut rows: Vec<_> = totals(&run)
        .iter()
        .filter(|row| row["proto"] == "udp")
        .map(|row| (row["name"][0].clone(), row["daddr"].clone(), row["packets"].clone()))
        .collect();
    rows.sort_by_key(|(.., packets)| packets.as_u64());
    let expected: [(Value, Value, Value); 3] = [
        ("late.example".into(), Value::Null, 5.into()),
        (Value::Null, "203.0.113.10".into(), 6.into()),
        ("one.example".into(), Value::Null, 7.into()),
    ];
    assert_eq!(rows, expected, "{}", run.stdout);
}

#[test]
fn names_that_a_process_asked_for_are_its_first() {
    if !root() {
        return;
    }
    let wire = wire();
    let run = wire.start(&["tc-egress", "near", "--names", "--by", "dst,process"]);
    let actors: Vec<(u32, &str)> = wire.near.run(|| {
        ["ping.example", "fox.example"]
            .map(|name| {
                let mut actor = Actor::new(|stage| {
                    ask("127.0.0.1", name, "203.0.113.7");
                    stage.put(0);
                    stage.pause();
                    send("203.0.113.7:9".parse().unwrap(), 3);
                });
                let pid = actor.pid();
                actor.go();
                actor.get();
                (actor, pid, name)
            })
            .map(|(mut actor, pid, name)| {
                actor.go();
                actor.finish();
                (pid, name)
            })
            .into()
    });
    settle();
    let run = run.stop();
    let rows = totals(&run);
    for (pid, name) in actors {
        let row = rows.iter().find(|row| row["pid"] == pid);
        let row = row.unwrap_or_else(|| panic!("no {pid} in {}", run.stdout));
        assert_eq!((&row["name"][0], &row["name"][2]), (&name.into(), &Value::Null), "{row}");
        assert_eq!(row["name"].as_array().map(Vec::len), Some(2), "{row}");
    }
}

#[test]
fn flows_are_named_and_tables_show_it() {
    if !root() {
        return;
    }
    let wire = wire();
    let args = ["tc-egress", "near", "--names", "--events", "--only", "203.0.113.0/24", "-n", "1"];
    let run = wire.start(&args);
    wire.near.run(|| {
        ask("127.0.0.1", "flow.example", "203.0.113.7");
        send("203.0.113.7:9".parse().unwrap(), 1);
    });
    let run = run.wait();
    let events = run.events();
    assert_eq!(events[0]["daddr"], "203.0.113.7", "{}", run.stdout);
    assert_eq!(events[0]["name"][0], "flow.example", "{}", run.stdout);
    assert_eq!(events[0]["name_source"][0], "dns", "{}", run.stdout);

    let run = wire.near.run(|| Running::start(&["tc-egress", "near", "--names"]));
    wire.near.run(|| {
        ask("127.0.0.1", "table.example", "203.0.113.7");
        send("203.0.113.7:9".parse().unwrap(), 2);
    });
    settle();
    let run = run.stop();
    let header = run.stdout.lines().find(|line| line.contains("DESTINATION")).unwrap();
    assert!(header.contains("BY") && header.contains("NAME"), "{}", run.stdout);
    assert!(
        run.stdout.lines().any(|line| line.contains("203.0.113.7")
            && line.contains("dns")
            && line.contains("table.example")),
        "{}",
        run.stdout
    );
}

#[test]
fn rules_and_lists_have_no_name_that_could_be_made_up() {
    if !root() {
        return;
    }
    let wire = wire();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(file("resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
    // In a mount namespace of its own, where this is the machine's resolver.
    let script = "[ -e /etc/resolv.conf ] || : >/etc/resolv.conf; mount --bind \"$1\" /etc/resolv.conf && \
        exec \"$0\" tc-egress near -v --format json --names --block 198.51.100.0/24 --suggest \"$2\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(crate::support::bpftk_path());
    command.args([file("resolv.conf"), file("list")]);
    let run = wire.near.run(|| Running::spawn(&mut command));
    run.until_told("armed");
    wire.near.run(|| {
        ask("127.0.0.53", "true.example", "203.0.113.7");
        // A resolver of the program's own may say anything.
        ask("127.0.0.1", "false.example", "203.0.113.7");
        send("203.0.113.7:9".parse().unwrap(), 3);
    });
    settle();
    let run = run.stop();
    assert_eq!(names_of(&run, "203.0.113.7"), named(&[("true.example", "dns")]), "{}", run.stdout);
    let list = std::fs::read_to_string(file("list")).unwrap();
    let line = list.lines().find(|line| line.starts_with("203.0.113.7/32"));
    let line = line.unwrap_or_else(|| panic!("{list}"));
    assert!(line.contains("true.example") && !line.contains("false.example"), "{line}");
}

#[test]
fn names_need_addresses() {
    let output = output(&["tc-egress", "lo", "--names", "--by", "proto"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("expected --by dst"), "{}", stderr(&output));
}
