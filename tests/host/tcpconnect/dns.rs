// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--dns`: names from answers that were received, by a resolver of the test's own.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use serde_json::Value;

use super::with_backends;
use crate::support::{Tcp, bpftk, output, stderr};

/// A record of an answer: owner, then what it says.
enum Record<'a> {
    A(&'a str, Ipv4Addr),
    Aaaa(&'a str, Ipv6Addr),
    Cname(&'a str, &'a str),
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// A DNS message by hand: what bpftk parses must not come from the library that it parses with.
fn message(asked: &str, records: &[Record<'_>], padding: usize) -> Vec<u8> {
    let count = (records.len() + padding) as u16;
    let mut bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1];
    bytes.extend_from_slice(&count.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0]);
    bytes.extend(encoded(asked));
    bytes.extend_from_slice(&[0, 1, 0, 1]);
    let mut add = |owner: &str, kind: u8, data: &[u8]| {
        bytes.extend(encoded(owner));
        bytes.extend_from_slice(&[0, kind, 0, 1, 0, 0, 0, 60]);
        bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        bytes.extend_from_slice(data);
    };
    // Text records first, so that what matters is at the end of a long message.
    for _ in 0..padding {
        let mut text = vec![200];
        text.extend([b'x'; 200]);
        add(asked, 16, &text);
    }
    for record in records {
        match record {
            Record::A(owner, ip) => add(owner, 1, &ip.octets()),
            Record::Aaaa(owner, ip) => add(owner, 28, &ip.octets()),
            Record::Cname(owner, target) => add(owner, 5, &encoded(target)),
        }
    }
    bytes
}

/// Has `answer` arrive at a socket from port 53 of `server`.
fn over_udp(server: &str, answer: &[u8]) {
    let server: IpAddr = server.parse().unwrap();
    let resolver =
        UdpSocket::bind(SocketAddr::new(server, 53)).expect("port 53 of the namespace is free");
    let client = UdpSocket::bind(SocketAddr::new(server, 0)).unwrap();
    // Not connected, as many resolvers' sockets are not.
    client.send_to(b"a question", resolver.local_addr().unwrap()).unwrap();
    resolver.send_to(answer, client.local_addr().unwrap()).unwrap();
    let mut buffer = vec![0; 65_536];
    assert_eq!(client.recv(&mut buffer).unwrap(), answer.len());
}

/// The same over TCP, in pieces of `chunk` bytes.
fn over_tcp(server: &str, answers: &[Vec<u8>], chunk: usize) {
    let server: IpAddr = server.parse().unwrap();
    let resolver = TcpListener::bind(SocketAddr::new(server, 53)).unwrap();
    let addr = resolver.local_addr().unwrap();
    let mut wire = Vec::new();
    for answer in answers {
        wire.extend_from_slice(&(answer.len() as u16).to_be_bytes());
        wire.extend_from_slice(answer);
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = resolver.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            for piece in wire.chunks(chunk) {
                stream.write_all(piece).unwrap();
            }
        });
        let mut client = TcpStream::connect(addr).unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert_eq!(all, wire);
    });
}

fn cgroup2() -> bool {
    let mounted = std::fs::read_to_string("/proc/self/mountinfo")
        .is_ok_and(|text| text.contains(" - cgroup2 "));
    if !mounted {
        println!("SKIP cgroup v2 is not mounted");
    }
    mounted
}

/// The names in the row of a connect to `ip`.
fn names_of(rows: &[Value], ip: &str) -> Value {
    let row = rows
        .iter()
        .find(|row| row["daddr"] == ip && row["dport"] == 9)
        .unwrap_or_else(|| panic!("{ip}: {rows:?}"));
    row["name"].clone()
}

fn connect(ip: &str) {
    let to = SocketAddr::new(ip.parse().unwrap(), 9);
    let socket = if to.is_ipv4() { Tcp::v4() } else { Tcp::v6() };
    let _ = socket.nonblocking().connect(to);
}

#[test]
fn names_come_from_the_answers_to_questions() {
    if !cgroup2() {
        return;
    }
    with_backends(|traced| {
        let a = |owner, ip: &str| Record::A(owner, ip.parse().unwrap());
        let ((), rows, _) = traced.trace(&["--dns"], || {
            // A chain of aliases, the address last, over IPv4.
            over_udp(
                "127.0.0.53",
                &message(
                    "Www.Example.org",
                    &[
                        Record::Cname("www.example.org", "edge.example.net"),
                        Record::Cname("edge.example.net", "pop1.example.net"),
                        a("pop1.example.net", "127.0.1.1"),
                    ],
                    0,
                ),
            );
            connect("127.0.1.1");
            // Several names for one address, the latest first, from an IPv6 resolver.
            over_udp("::1", &message("one.example", &[a("one.example", "127.0.1.2")], 0));
            over_udp("::1", &message("two.example", &[a("two.example", "127.0.1.2")], 0));
            connect("127.0.1.2");
            // An IPv6 address.
            over_udp(
                "127.0.0.1",
                &message("six.example", &[Record::Aaaa("six.example", Ipv6Addr::LOCALHOST)], 0),
            );
            connect("::1");
            // Longer than any buffer: the address is in the last bytes.
            over_udp("127.0.0.1", &message("long.example", &[a("long.example", "127.0.1.3")], 40));
            connect("127.0.1.3");
            // Over TCP, two messages, cut where it hurts.
            over_tcp(
                "127.0.0.1",
                &[
                    message("t1.example", &[a("t1.example", "127.0.1.4")], 0),
                    message("t2.example", &[a("t2.example", "127.0.1.5")], 60),
                ],
                7,
            );
            connect("127.0.1.4");
            connect("127.0.1.5");
            over_tcp("::1", &[message("t3.example", &[a("t3.example", "127.0.1.6")], 0)], 1);
            connect("127.0.1.6");
            // The whole answer, and the end of the connection, in one packet.
            let long = message("t4.example", &[a("t4.example", "127.0.1.9")], 70);
            over_tcp("127.0.0.1", &[long], 65_536);
            connect("127.0.1.9");
            // Nobody asked for this address.
            connect("127.0.1.7");
            // Bytes that are no answer.
            over_udp("127.0.0.1", &[0xff; 40]);
            over_udp("127.0.0.1", &[0xff; 3]);
            connect("127.0.1.8");
        });
        let list = |names: &[&str]| Value::from(names.to_vec());
        assert_eq!(names_of(&rows, "127.0.1.1"), list(&["www.example.org"]));
        assert_eq!(names_of(&rows, "127.0.1.2"), list(&["two.example", "one.example"]));
        assert_eq!(names_of(&rows, "::1"), list(&["six.example"]));
        assert_eq!(names_of(&rows, "127.0.1.3"), list(&["long.example"]));
        assert_eq!(names_of(&rows, "127.0.1.4"), list(&["t1.example"]));
        assert_eq!(names_of(&rows, "127.0.1.5"), list(&["t2.example"]));
        assert_eq!(names_of(&rows, "127.0.1.6"), list(&["t3.example"]));
        assert_eq!(names_of(&rows, "127.0.1.9"), list(&["t4.example"]));
        assert_eq!(names_of(&rows, "127.0.1.7"), Value::Null);
        assert_eq!(names_of(&rows, "127.0.1.8"), Value::Null);
    });
}

#[test]
fn without_cgroup_v2_dns_is_refused() {
    if !crate::support::root() || !cgroup2() {
        return;
    }
    // In a mount namespace of its own, where it is unmounted.
    let script = "for m in $(awk '/ - cgroup2 /{print $5}' /proc/self/mountinfo); do umount -l $m; done; exec \"$0\" tcpconnect --dns -d 10ms";
    let run = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(bpftk(&[]).get_program())
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(4), "{}", stderr(&run));
    assert!(stderr(&run).starts_with("bpftk: --dns needs cgroup v2"), "{}", stderr(&run));
    // And here it works.
    assert!(output(&["tcpconnect", "--dns", "-d", "10ms"]).status.success());
}
