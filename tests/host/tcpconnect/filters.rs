// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is asked for is what is shown.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use super::{MANY, Traced, text, with_backends};
use crate::support::{Cgroup, Netns, Running, Tcp, root, silent_network};

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Connects to closed ports: of IPv4, v4-mapped, IPv6, and another address.
fn refused_ones() {
    for to in ["127.0.0.1:80", "127.0.0.1:443", "127.0.0.2:80", "127.0.0.1:8050"] {
        let _ = Tcp::v4().connect(addr(to));
    }
    let _ = Tcp::v6().connect(addr("[::ffff:127.0.0.1]:81"));
    let _ = Tcp::v6().connect(addr("[::1]:80"));
    // Without a route: the filters hold for failures before the first packet too.
    let _ = Tcp::v4().connect(addr("192.0.2.1:80"));
    let _ = Tcp::v6().connect(addr("[2001:db8::1]:443"));
}

fn seen(rows: &[Value]) -> Vec<String> {
    let mut seen: Vec<String> =
        rows.iter().map(|row| format!("{} {}", text(&row["daddr"]), row["dport"])).collect();
    seen.sort();
    seen
}

#[test]
fn destinations() {
    let all = [
        "127.0.0.1 443",
        "127.0.0.1 80",
        "127.0.0.1 8050",
        "127.0.0.1 81",
        "127.0.0.2 80",
        "192.0.2.1 80",
        "2001:db8::1 443",
        "::1 80",
    ];
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &all),
        (&["-P", "443"], &["127.0.0.1 443", "2001:db8::1 443"]),
        (&["-P", "81,8000-8100"], &["127.0.0.1 8050", "127.0.0.1 81"]),
        (
            &["-4"],
            &[
                "127.0.0.1 443",
                "127.0.0.1 80",
                "127.0.0.1 8050",
                "127.0.0.1 81",
                "127.0.0.2 80",
                "192.0.2.1 80",
            ],
        ),
        (&["-6"], &["2001:db8::1 443", "::1 80"]),
        (&["--dst", "127.0.0.2"], &["127.0.0.2 80"]),
        (
            &["--dst", "192.0.2.0/24", "--dst", "2001:db8::/32"],
            &["192.0.2.1 80", "2001:db8::1 443"],
        ),
        (&["--dst", "192.0.2.0/24,::1"], &["192.0.2.1 80", "::1 80"]),
        (&["--exclude", "127.0.0.0/8", "--exclude", "::1"], &["192.0.2.1 80", "2001:db8::1 443"]),
        (&["--dst", "127.0.0.0/8", "--exclude", "127.0.0.1/32"], &["127.0.0.2 80"]),
        (&["--dst", "::/0"], &["2001:db8::1 443", "::1 80"]),
        (
            &["--exclude", "::/0", "-P", "80-81"],
            &["127.0.0.1 80", "127.0.0.1 81", "127.0.0.2 80", "192.0.2.1 80"],
        ),
        (&["--dst", "::/0", "--dst", "127.0.0.2"], &["127.0.0.2 80", "2001:db8::1 443", "::1 80"]),
        (&["--dst", "::ffff:127.0.0.0/126", "-P", "443"], &["127.0.0.1 443"]),
        (&["--dst", "0.0.0.0/0", "-P", "80"], &["127.0.0.1 80", "127.0.0.2 80", "192.0.2.1 80"]),
    ];
    with_backends(|traced| {
        for (args, expected) in cases {
            let ((), rows, _) = traced.trace(args, refused_ones);
            assert_eq!(seen(&rows), *expected, "{args:?}");
        }
    });
}

#[test]
fn outcomes() {
    with_backends(|traced| {
        let work = || {
            let (_listener, open) = Tcp::listen("127.0.0.1");
            Tcp::v4().connect(open).unwrap();
            let _ = Tcp::v4().connect(addr("127.0.0.1:1"));
        };
        let ((), rows, _) = traced.trace(&["--failed"], work);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0]["result"], "ECONNREFUSED");
        let ((), rows, _) = traced.trace(&["--min-latency", "10s"], work);
        assert!(rows.is_empty(), "{rows:?}");
        let ((), rows, _) = traced.trace(&["--min-latency", "1us"], work);
        assert_eq!(rows.len(), 2);
    });
}

#[test]
fn namespaces() {
    with_backends(|traced| {
        let other = Netns::new();
        let ((), rows, _) = traced.trace(&[], || {
            let _ = Tcp::v4().connect(addr("127.0.0.1:1"));
            other.run(|| {
                let _ = Tcp::v4().connect(addr("127.0.0.1:2"));
            });
        });
        assert_eq!(seen(&rows), ["127.0.0.1 1"]);
        // `self` is bpftk's own.
        let running = traced
            .netns
            .run(|| Running::json(&["tcpconnect", "--backend", traced.backend, "--netns", "self"]));
        traced.netns.run(|| {
            let _ = Tcp::v4().connect(addr("127.0.0.1:3"));
        });
        other.run(|| {
            let _ = Tcp::v4().connect(addr("127.0.0.1:4"));
        });
        assert_eq!(seen(&running.stop().events()), ["127.0.0.1 3"]);
    });
}

/// A bash that connects when it is told to.
struct Client {
    child: std::process::Child,
}

impl Client {
    fn new(traced: &Traced) -> Self {
        let child = traced.netns.run(|| {
            Command::new("bash")
                .args(["-c", "while read port; do (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null; exec 3<>/dev/tcp/127.0.0.1/$port; echo done; done"])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn()
                .expect("bash is installed")
        });
        Self { child }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One attempt by a child of it, and one by itself. The redirection's failure ends neither.
    fn connect(&mut self, port: u16) {
        use std::io::{BufRead, BufReader, Write};
        writeln!(self.child.stdin.as_mut().unwrap(), "{port}").unwrap();
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn tasks() {
    with_backends(|traced| {
        let (listener, to) = traced.netns.run(|| Tcp::listen("127.0.0.1"));
        let mut client = Client::new(traced);
        let pid = client.pid();
        let count = |args: &[&str], client: &mut Client| {
            let ((), rows, _) = traced.trace(args, || client.connect(to.port()));
            rows
        };
        let all = count(&[], &mut client);
        assert_eq!(all.len(), 2, "{all:?}");
        let own = count(&["-p", &pid.to_string()], &mut client);
        assert_eq!(own.len(), 1, "{own:?}");
        assert_eq!(own[0]["pid"], pid);
        // A list, this test's own process among it, which makes no attempt.
        let list = format!("{},{pid}", std::process::id());
        assert_eq!(count(&["-p", &list], &mut client).len(), 1);
        assert_eq!(count(&["--comm", "bash"], &mut client).len(), 2);
        assert_eq!(count(&["--comm", "bas"], &mut client).len(), 0);
        assert_eq!(count(&["--comm", "bashful"], &mut client).len(), 0);
        assert_eq!(count(&["-u", "root"], &mut client).len(), 2);
        assert_eq!(count(&["-u", "1,2"], &mut client).len(), 0);
        assert_eq!(
            count(&["-u", "1,0", "-p", &pid.to_string(), "--comm", "bash"], &mut client).len(),
            1
        );
        drop(listener);
    });
}

#[test]
fn cgroups() {
    with_backends(|traced| {
        let name = format!("bpftk-test-{}-{}", std::process::id(), traced.backend);
        let Some(outer) = Cgroup::new(&name) else {
            println!("SKIP cgroup v2 is not mounted");
            return;
        };
        let inner = Cgroup::new(&format!("{name}/in\u{1b}ner")).unwrap();
        let path = outer.path().to_string_lossy().into_owned();
        let ((), rows, _) = traced.trace(&["--cgroup", &path], || {
            let _ = Tcp::v4().connect(addr("127.0.0.1:1"));
            let script = "echo $$ > \"$0/cgroup.procs\"; exec 3<>/dev/tcp/127.0.0.1/2";
            let _ =
                Command::new("bash").args(["-c", script]).arg(inner.path()).output().expect("bash");
        });
        assert_eq!(seen(&rows), ["127.0.0.1 2"]);
        assert_eq!(rows[0]["cgroup"], format!("/{name}/in\u{1b}ner"));
    });
}

#[test]
fn at_start_rows_come_with_the_call() {
    with_backends(|traced| {
        let running = traced.start(&["--at-start"]);
        let held = traced.netns.run(|| {
            silent_network();
            let socket = Tcp::v4().nonblocking();
            let _ = socket.connect(addr("203.0.113.2:80"));
            socket
        });
        // It is told while nobody has answered.
        let row: Value = serde_json::from_str(&running.line()).unwrap();
        assert_eq!((&row["daddr"], &row["dport"]), (&"203.0.113.2".into(), &80.into()));
        assert!(row["result"].is_null() && row["latency_us"].is_null(), "{row}");
        traced.netns.run(|| {
            drop(held);
            let _ = Tcp::v4().connect(addr("192.0.2.1:81"));
            let _ = Tcp::v4().connect(addr("127.0.0.1:82"));
        });
        let rows = running.stop().events();
        let ports: Vec<_> = rows.iter().map(|row| row["dport"].as_u64().unwrap()).collect();
        assert_eq!(ports, [80, 81, 82], "each once");
        assert!(rows.iter().all(|row| row["result"].is_null()), "{rows:?}");
    });
}

#[test]
fn counts_add_up() {
    with_backends(|traced| {
        let running = traced.start(&["--count", "-i", "200ms"]);
        let open = traced.netns.run(|| {
            let (_listener, open) = Tcp::listen("127.0.0.1");
            for _ in 0..MANY {
                Tcp::v4().connect(open).unwrap();
                let _ = Tcp::v4().connect(addr("127.0.0.1:1"));
            }
            let _ = Tcp::v4().connect(addr("192.0.2.1:1"));
            open
        });
        let run = running.stop();
        let rows: Vec<Value> =
            run.json().into_iter().filter(|line| line["type"] == "row").collect();
        let total: Vec<&Value> = rows.iter().filter(|row| row["scope"] == "total").collect();
        assert_eq!(total.len(), 3, "{total:?}");
        assert_eq!(total[2]["attempts"], 1, "the least comes last");
        let find = |port: u16| {
            *total.iter().find(|row| row["dport"] == port && row["daddr"] == "127.0.0.1").unwrap()
        };
        let (good, bad) = (find(open.port()), find(1));
        assert_eq!((&good["attempts"], &good["failures"]), (&MANY.into(), &0.into()));
        assert_eq!((&bad["attempts"], &bad["failures"]), (&MANY.into(), &MANY.into()));
        let (median, p99) =
            (good["latency_median_us"].as_f64().unwrap(), good["latency_p99_us"].as_f64().unwrap());
        assert!(0.0 < median && median <= p99, "{good}");
        // The intervals sum up to the total, but for what came after the last tick.
        let ticked: u64 = rows
            .iter()
            .filter(|row| row["scope"] == "interval" && row["dport"] == open.port())
            .map(|row| row["attempts"].as_u64().unwrap())
            .sum();
        assert!(ticked <= MANY as u64);
        assert_eq!(run.summary()["attempts"], 2 * MANY as u64 + 1);
    });
}

/// Beyond --max-keys there is one row, and nothing is missing from the sum.
#[test]
fn keys_without_room_are_counted_in_one_row() {
    if !root() {
        return;
    }
    let netns = Netns::new();
    let args = ["tcpconnect", "--count", "--max-keys", "5", "-i", "1h", "--netns"];
    let run = Running::json(&[&args[..], &[&netns.path()]].concat());
    netns.run(|| {
        for port in (1..=20).chain(1..=5) {
            let _ = Tcp::v4().connect(SocketAddr::new("127.0.0.1".parse().unwrap(), port));
        }
    });
    let run = run.stop();
    let rows: Vec<Value> = run.json().into_iter().filter(|line| line["type"] == "row").collect();
    let (keys, other): (Vec<&Value>, Vec<&Value>) =
        rows.iter().partition(|row| row["row"] == "key");
    assert_eq!((keys.len(), other.len()), (5, 1), "{}", run.stdout);
    assert!(keys.iter().all(|row| row["attempts"] == 2), "{}", run.stdout);
    assert_eq!((&other[0]["attempts"], &other[0]["failures"]), (&15.into(), &15.into()));
    assert!(other[0]["daddr"].is_null() && other[0]["dport"].is_null(), "{}", run.stdout);
    let summary = run.summary();
    assert_eq!((&summary["attempts"], &summary["other"]), (&25.into(), &15.into()));
}

#[test]
fn a_number_of_events_ends_the_run() {
    with_backends(|traced| {
        let running = traced.start(&["-n", "3"]);
        traced.netns.run(|| {
            for port in 1..=5 {
                let _ = Tcp::v4().connect(SocketAddr::new("127.0.0.1".parse().unwrap(), port));
            }
        });
        let run = running.wait();
        assert!(run.status.success());
        assert_eq!(seen(&run.events()), ["127.0.0.1 1", "127.0.0.1 2", "127.0.0.1 3"]);
    });
}

/// Options that become constants of the programs, so that each combination is a program of its own to the verifier.
const SWITCHES: [&[&str]; 12] = [
    &["-P", "80"],
    &["--dst", "10.0.0.0/8,fd00::/8"],
    &["--exclude", "2001:db8::/32"],
    &["-4"],
    &["-6"],
    &["-u", "root"],
    &["--comm", "bash"],
    &["-p", "1"],
    &["--failed"],
    &["--min-latency", "1ms"],
    &["--at-start"],
    &["--dns"],
];

#[test]
fn every_pair_of_options_loads() {
    with_backends(|traced| {
        // The rows of a Hadamard matrix: of any two of its columns, each combination stands in four rows.
        for row in 0..16_u32 {
            let on = |column: u32| (row & (column + 1)).count_ones() % 2 == 1;
            let mut args = Vec::new();
            for (column, switch) in SWITCHES.iter().enumerate() {
                let excluded = match switch[0] {
                    "-6" => args.contains(&"-4"),
                    "--at-start" => args.contains(&"--failed") || args.contains(&"--min-latency"),
                    _ => false,
                };
                if on(column as u32) && !excluded {
                    args.extend_from_slice(switch);
                }
            }
            let run = traced.start(&args).stop();
            assert!(run.status.success(), "{args:?}: {}", run.stderr);
        }
    });
}

/// As ip-netns(8) names it: a file in /run/netns.
#[test]
fn a_network_namespace_has_a_name() {
    struct Name(std::path::PathBuf);
    impl Drop for Name {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
    if !root() {
        return;
    }
    let netns = Netns::new();
    std::fs::create_dir_all("/run/netns").unwrap();
    let name = format!("bpftk-test-{}", std::process::id());
    let file = Name(std::path::Path::new("/run/netns").join(&name));
    std::os::unix::fs::symlink(netns.path(), &file.0).unwrap();
    let run = Running::json(&["tcpconnect", "--netns", &name, "-n", "1"]);
    netns.run(|| assert!(Tcp::v4().connect("127.0.0.1:1".parse().unwrap()).is_err()));
    let run = run.wait();
    assert_eq!(run.events()[0]["dport"], 1, "{}", run.stdout);
}
