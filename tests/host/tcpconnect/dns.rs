// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--dns`: names from answers that were received, by a resolver of the test's own.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{MANY, with_backends};
use crate::support::dns::{Record, message, over_tcp, over_udp};
use crate::support::{Netns, Running, Tcp, bpftk_path};

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
fn a_name_is_an_answer_to_a_question_of_the_same_namespace() {
    if !cgroup2() {
        return;
    }
    let a = |name: &str, ip: &str| message(name, &[Record::A(name, ip.parse().unwrap())], 0);
    with_backends(|traced| {
        let other = Netns::new();
        let ((), rows, _) = traced.trace(&["--dns"], || {
            // What any host may send, to a socket that asked for nothing.
            let client = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
            let anybody = UdpSocket::bind(("127.0.0.1", 53)).unwrap();
            let forged = a("forged.example", "127.0.1.1");
            anybody.send_to(&forged, client.local_addr().unwrap()).unwrap();
            client.recv(&mut [0; 512]).unwrap();
            drop(anybody);
            connect("127.0.1.1");
            // What was asked elsewhere, where another machine may have this address.
            other.run(|| over_udp("127.0.0.1", &a("other.example", "127.0.1.2")));
            connect("127.0.1.2");
            over_udp("127.0.0.1", &a("own.example", "127.0.1.3"));
            connect("127.0.1.3");
        });
        assert_eq!(names_of(&rows, "127.0.1.1"), Value::Null);
        assert_eq!(names_of(&rows, "127.0.1.2"), Value::Null);
        assert_eq!(names_of(&rows, "127.0.1.3"), Value::from(vec!["own.example"]));
    });
}

#[test]
fn a_flood_of_answers_loses_no_connect() {
    if !cgroup2() {
        return;
    }
    with_backends(|traced| {
        let running = traced.start(&["--dns"]);
        running.signal(Signal::SIGSTOP);
        traced.netns.run(|| {
            let client = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
            let anybody = UdpSocket::bind(("127.0.0.1", 53)).unwrap();
            // More than the ring of answers holds, and several times the ring of rows.
            let (answer, mut heard) = (vec![0; 50_000], vec![0; 65_536]);
            for _ in 0..120 {
                anybody.send_to(&answer, client.local_addr().unwrap()).unwrap();
                client.recv(&mut heard).unwrap();
            }
            for _ in 0..MANY {
                let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
            }
        });
        running.signal(Signal::SIGCONT);
        let run = running.stop();
        let summary = run.summary();
        assert_eq!((run.events().len(), &summary["lost"]), (MANY, &0.into()), "{summary}");
        assert!(
            summary["lost_dns"].as_u64() > Some(0),
            "the test did not fill the ring: {summary}"
        );
    });
}

/// As in `ip netns exec`, which mounts a new sysfs over it.
#[test]
fn cgroup_v2_needs_no_mount() {
    if !crate::support::root() || !cgroup2() {
        return;
    }
    let netns = Netns::new();
    // In a mount namespace of its own, where it is unmounted.
    let script = "for m in $(awk '/ - cgroup2 /{print $5}' /proc/self/mountinfo); do umount -l $m; done; \
        exec \"$0\" tcpconnect -v --dns --format json --netns \"$1\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(bpftk_path()).arg(netns.path());
    let running = Running::spawn(&mut command);
    running.until_told("armed");
    netns.run(|| {
        let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
    });
    let events = running.stop().events();
    assert_eq!(events.len(), 1);
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    assert_eq!(events[0]["cgroup"], cgroup);
}
