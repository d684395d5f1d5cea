// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--dns`: names from answers that were received, by a resolver of the test's own.

use std::net::{Ipv6Addr, SocketAddr};

use serde_json::Value;

use super::with_backends;
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
