// SPDX-License-Identifier: MIT OR Apache-2.0

//! What was sent is what is counted.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use super::*;
use crate::support::{BARE_BYTES, BEHIND_BARE, Bare};

#[test]
fn n_packets_give_n_and_all_of_them_arrive() {
    if !root() {
        return;
    }
    let wire = wire();
    let outward = |to: &str, count: usize| {
        let to = SocketAddr::new(to.parse().unwrap(), 9999);
        wire.far.run(|| {
            let receiver = UdpSocket::bind(to).unwrap();
            wire.near.run(|| send(to, count));
            settle();
            receiver.set_nonblocking(true).unwrap();
            let mut buffer = [0; 64];
            std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count()
        })
    };
    for backend in backends() {
        let run = wire.start(&["tc-egress", "near", "--backend", backend, "-i", "50ms"]);
        assert_eq!((outward(FAR4, 150), outward(FAR6, 120)), (150, 120), "{backend}");
        let run = run.stop();
        // 14 of Ethernet, 20 and 40 of IP, 8 of UDP, 7 of payload.
        assert_eq!(total(&run, FAR4), (150, 150 * 49), "{backend} {}", run.stdout);
        assert_eq!(total(&run, FAR6), (120, 120 * 69), "{backend} {}", run.stdout);
        adds_up(&run);
        assert_eq!(run.summary()["backend"], backend);
    }
}

/// Where to, and how many to each: some of each family.
fn many(of_each: u32) -> Vec<(IpAddr, usize)> {
    (0..of_each)
        .flat_map(|i| {
            let v4 = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + i * 37));
            let v6 = Ipv6Addr::new(0x2001, 0xdb8, 1, (i % 7) as u16, 0, 0, 0, i as u16 + 1);
            [(v4, 1 + i as usize % 4), (v6.into(), 1 + i as usize % 3)]
        })
        .collect()
}

#[test]
fn thousands_of_destinations_are_exact_whatever_room_there_is() {
    if !root() {
        return;
    }
    let wire = wire();
    let each = if crate::support::emulated() { 400 } else { 2500 };
    let sent = many(each);
    let all: u64 = sent.iter().map(|(_, count)| *count as u64).sum();
    for backend in backends() {
        for room in ["65536", "16"] {
            let args = ["tc-egress", "near", "--backend", backend, "--max-entries", room];
            // What the kernel says meanwhile of its own is left out. Sixteen are too few for what is sent in a long interval.
            let interval = if room == "16" { "1m" } else { "100ms" };
            let only = ["-i", interval, "--only", "10.0.0.0/8,2001:db8:1::/48"];
            let run = wire.start(&[&args[..], &only].concat());
            wire.near.run(|| {
                sent.iter().for_each(|&(to, count)| send(SocketAddr::new(to, 9), count));
            });
            settle();
            let run = run.stop();
            adds_up(&run);
            let summary = run.summary();
            assert_eq!(summary["counted_packets"], all, "{backend} {room} {}", run.stderr);
            let rows: HashMap<String, u64> = totals(&run)
                .iter()
                .filter(|row| row["row"] == "key")
                .map(|row| {
                    let packets = row["packets_total"].as_u64().unwrap();
                    (row["daddr"].as_str().unwrap().to_string(), packets)
                })
                .collect();
            if room == "16" {
                let other = total(&run, "other").0;
                assert_eq!(rows.values().sum::<u64>() + other, all, "{backend}");
                assert!(summary["no_room_full"].as_u64().unwrap() == other && other > 0);
                continue;
            }
            assert_eq!(rows.len(), sent.len(), "{backend}");
            for (to, count) in &sent {
                assert_eq!(rows.get(&to.to_string()), Some(&(*count as u64)), "{backend} {to}");
            }
        }
    }
}

#[test]
fn rows_are_by_what_was_asked_for() {
    if !root() {
        return;
    }
    let wire = wire();
    let to = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port);
    let traffic = || {
        wire.near.run(|| {
            for (address, port, count) in [
                ("10.1.1.1", 53, 5),
                ("10.1.1.2", 53, 6),
                ("10.1.2.1", 80, 7),
                ("192.168.3.4", 80, 8),
            ] {
                send(to(address, port), count);
            }
            send(to("2001:db8:1:2::3", 53), 9);
            send(to("2606:4700::1", 53), 4);
        });
        settle();
    };
    let row = |run: &Run, fields: &[(&str, Value)]| -> u64 {
        let rows = totals(run);
        let found = rows.iter().find(|row| {
            row["row"] == "key" && fields.iter().all(|(name, value)| row[name] == *value)
        });
        let row = found.unwrap_or_else(|| panic!("no {fields:?} in {}", run.stdout));
        row["packets"].as_u64().unwrap()
    };
    let start = |args: &[&str]| {
        let run = wire.start(&[&["tc-egress", "near"], args].concat());
        traffic();
        let run = run.stop();
        adds_up(&run);
        run
    };
    let run = start(&["--by", "net/24,net6/32"]);
    for (net, count) in [
        ("10.1.1.0/24", 11),
        ("10.1.2.0/24", 7),
        ("192.168.3.0/24", 8),
        ("2001:db8::/32", 9),
        ("2606:4700::/32", 4),
    ] {
        assert_eq!(row(&run, &[("net", net.into())]), count);
    }
    let run = start(&["--by", "port,proto", "--exclude", "192.168.0.0/16"]);
    assert_eq!(row(&run, &[("dport", 53.into()), ("proto", "udp".into())]), 24);
    assert_eq!(row(&run, &[("dport", 80.into())]), 7);
    assert_eq!(total(&run, "excluded").0, 8);
    let run = start(&["--exclude-private", "--by", "dst"]);
    assert_eq!(total(&run, "2606:4700::1").0, 4);
    assert!(total(&run, "excluded").0 >= 35, "{}", run.stdout);
    let list = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(list.path(), "# mine\n10.1.1.0/24\n2001:db8::/32\n").unwrap();
    let list = list.path().to_str().unwrap();
    let run = start(&["--exclude-file", list, "--only", "10.0.0.0/8"]);
    let rows: Vec<_> = totals(&run).into_iter().filter(|row| row["row"] == "key").collect();
    assert_eq!((rows.len(), total(&run, "10.1.2.1").0), (1, 7), "{}", run.stdout);
    let run = start(&["--only", "10.0.0.0/8", "--top", "1", "--sort", "bytes"]);
    assert_eq!((total(&run, "10.1.2.1").0, total(&run, "other").0), (7, 11), "{}", run.stdout);
    if libpcap() {
        let run = start(&["udp dst port 80"]);
        assert_eq!(run.summary()["packets"], 15, "{}", run.stdout);
        assert!(run.summary()["unmatched_packets"].as_u64().unwrap() >= 24);
    }
}

/// Whether expressions can be compiled here.
fn libpcap() -> bool {
    let output = output(&["filter", "compile", "arp"]);
    let works = output.status.success();
    if !works {
        println!("SKIP {}", stderr(&output).trim());
    }
    works
}

#[test]
fn at_ingress_sources_are_counted() {
    if !root() {
        return;
    }
    let wire = wire();
    for backend in backends() {
        let args = ["tc-egress", "near", "--direction", "ingress", "--backend", backend];
        let run = wire.start(&[&args[..], &["--by", "src,proto"]].concat());
        assert_eq!((wire.exchange(NEAR4, 70), wire.exchange(NEAR6, 60)), (70, 60));
        let run = run.stop();
        assert_eq!(total(&run, FAR4), (70, 70 * 49), "{backend} {}", run.stdout);
        assert_eq!(total(&run, FAR6), (60, 60 * 69), "{backend} {}", run.stdout);
        adds_up(&run);
    }
}

/// Sends `count` segments of `size` bytes by one call (UDP_SEGMENT, Linux 4.18).
fn send_segments(to: SocketAddr, size: u16, count: usize) -> bool {
    const UDP_SEGMENT: libc::c_int = 103;
    let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    let size_of_one = libc::c_int::from(size);
    // SAFETY: an int, of the length that is stated.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            UDP_SEGMENT,
            (&raw const size_of_one).cast(),
            size_of_val(&size_of_one) as u32,
        )
    };
    status == 0 && socket.send_to(&vec![7; usize::from(size) * count], to).is_ok()
}

#[test]
fn large_packets_count_as_what_is_on_the_wire() {
    if !root() {
        return;
    }
    let wire = wire();
    for backend in backends() {
        let run = wire.start(&["tc-egress", "near", "--backend", backend]);
        let to = SocketAddr::from(([10, 0, 0, 1], 9));
        let sent = wire.near.run(|| (0..5).all(|_| send_segments(to, 500, 12)));
        settle();
        let run = run.stop();
        if sent {
            assert_eq!(total(&run, "10.0.0.1"), (60, 60 * 542), "{backend} {}", run.stdout);
        } else {
            println!("SKIP this kernel does not segment UDP");
        }
        adds_up(&run);

        for segments in [None, Some("1")] {
            if let Some(segments) = segments {
                let set = wire.near.run(|| {
                    std::process::Command::new("ip")
                        .args(["link", "set", "dev", "near", "gso_max_segs", segments])
                        .status()
                });
                if !set.unwrap().success() {
                    println!("SKIP this ip can't limit segments");
                    continue;
                }
            }
            let run = wire.start(&["tc-egress", "near", "--backend", backend]);
            let bulk = Bulk::send(&wire, 3_000_000);
            settle();
            let run = run.stop();
            // The socket's own count knows of what was sent again.
            let (segments, payload) = bulk.sent();
            let (packets, bytes) = total(&run, FAR4);
            assert_eq!(packets, segments, "{backend} {}", run.stdout);
            // Ethernet, IP, and TCP with time stamps: 66 bytes; the SYN has 8 more of options.
            assert_eq!(bytes, payload + 66 * packets + 8, "{backend} {packets} {}", run.stdout);
            assert!(packets > 3_000_000 / 1448, "{backend} {packets}");
        }
        wire.near.run(|| ip("link set dev near gso_max_segs 65535"));
    }
}

/// A connection from near to far that carried so much; near has sent its last, and far has not.
struct Bulk {
    near: TcpStream,
    _far: TcpStream,
}

impl Bulk {
    fn send(wire: &Wire, bytes: usize) -> Self {
        let to = SocketAddr::new(FAR4.parse().unwrap(), 5001);
        let listener = wire.far.run(|| TcpListener::bind(to).unwrap());
        let reader = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 16];
            while stream.read(&mut buffer).unwrap() > 0 {}
            stream
        });
        let mut near = wire.near.run(|| TcpStream::connect(to).unwrap());
        near.write_all(&vec![1; bytes]).unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
        Self { near, _far: reader.join().unwrap() }
    }

    /// Segments, and bytes of payload: tcpi_segs_out and tcpi_bytes_sent of struct tcp_info, Linux 4.19.
    fn sent(&self) -> (u64, u64) {
        let mut info = [0_u8; 256];
        let mut length = info.len() as libc::socklen_t;
        // SAFETY: room for as many bytes as are stated.
        let status = unsafe {
            libc::getsockopt(
                self.near.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &mut length,
            )
        };
        assert!(status == 0 && length >= 208, "{status} {length}");
        let segments = u32::from_ne_bytes(*info[136..].first_chunk().unwrap());
        (segments.into(), u64::from_ne_bytes(*info[200..].first_chunk().unwrap()))
    }
}

#[test]
fn tags_are_seen_through_and_count() {
    if !root() {
        return;
    }
    let wire = wire();
    let vlans = wire.near.run(|| {
        let made = std::process::Command::new("ip")
            .args("link add link near name tagged type vlan id 7".split(' '))
            .output();
        let made = made.unwrap().status.success();
        if made {
            ip("addr add 203.0.113.1/24 dev tagged");
            ip("link set tagged up");
            ip("neigh replace 203.0.113.9 lladdr 02:00:00:00:00:02 dev tagged nud permanent");
        }
        made
    });
    if !vlans {
        println!("SKIP this kernel has no VLAN devices");
        return;
    }
    for backend in backends() {
        let run = wire.start(&["tc-egress", "near", "--backend", backend]);
        wire.near.run(|| send(SocketAddr::from(([203, 0, 113, 9], 9)), 40));
        settle();
        let run = run.stop();
        // The tag is four bytes, whoever inserts it.
        assert_eq!(total(&run, "203.0.113.9"), (40, 40 * 53), "{backend} {}", run.stdout);
        adds_up(&run);
    }
}

#[test]
fn an_interface_without_ethernet() {
    if !root() {
        return;
    }
    for kind in Bare::kinds() {
        let namespace = Netns::new();
        let mut bare = namespace.run(|| Bare::new(kind)).unwrap();
        for backend in backends() {
            // The loopback has Ethernet headers: both at once.
            let args = ["tc-egress", bare.name, "lo", "--backend", backend];
            let run = namespace.run(|| Running::json(&args));
            namespace.run(|| {
                bare.send(15);
                send(SocketAddr::from(([127, 0, 0, 9], 9)), 16);
            });
            settle();
            let run = run.stop();
            adds_up(&run);
            assert_eq!(total(&run, "127.0.0.9"), (16, 16 * 49), "{kind} {backend}");
            let expected = (15, 15 * BARE_BYTES);
            assert_eq!(total(&run, BEHIND_BARE), expected, "{kind} {backend} {}", run.stdout);
            if let Some(packets) = bare.came_out() {
                assert_eq!(packets, 15, "{backend}");
            }
        }
    }
}

#[test]
fn what_is_forwarded_is_counted() {
    if !root() {
        return;
    }
    let wire = wire();
    let inner = wire.forwards();
    for backend in backends() {
        let run = wire.start(&["tc-egress", "near", "--backend", backend]);
        inner.run(|| send(SocketAddr::from(([10, 9, 9, 8], 9)), 25));
        settle();
        let run = run.stop();
        assert_eq!(total(&run, "10.9.9.8"), (25, 25 * 49), "{backend} {}", run.stdout);
        adds_up(&run);
    }
}

#[test]
fn tables_and_csv_say_the_same() {
    if !root() {
        return;
    }
    let wire = wire();
    let start = |more: &[&str]| {
        let args = [&["tc-egress", "near", "-i", "10s", "-v", "--only", "10.0.0.0/8"], more];
        wire.near.run(|| crate::support::Running::spawn(&mut crate::support::bpftk(&args.concat())))
    };
    let traffic = || {
        wire.near.run(|| {
            for i in 1..=30 {
                send(SocketAddr::from(([10, 0, 0, i], 9)), i.into());
            }
        });
        settle();
    };
    let run = start(&[]);
    traffic();
    let run = run.stop();
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines[0], "Total", "{}", run.stdout);
    let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    assert_eq!(words(lines[1]), ["DESTINATION", "PACKETS", "BYTES", "TOTAL", "TOTAL", "BYTES"]);
    assert_eq!(words(lines[2])[..2], ["10.0.0.30", "30"]);
    // Twenty have rows, the rest is in one.
    let other = words(lines.iter().find(|line| line.starts_with("other")).unwrap());
    assert_eq!(other[1], (1..=10).sum::<u32>().to_string(), "{}", run.stdout);
    assert!(lines.iter().any(|line| line.starts_with("excluded")), "{}", run.stdout);
    assert!(lines.iter().all(|line| line.len() <= 80), "{}", run.stdout);
    assert!(run.stderr.contains("packets: 465 counted, "), "{}", run.stderr);

    let run = start(&["--format", "csv"]);
    traffic();
    let run = run.stop();
    assert!(run.stdout.starts_with("time,scope,direction,row,daddr,"), "{}", run.stdout);
    assert_eq!(run.stdout.lines().filter(|line| line.contains(",total,egress,key,")).count(), 30);
}

/// An interface may have other names, longer ones too.
#[test]
fn an_interface_is_known_by_any_of_its_names() {
    if !root() {
        return;
    }
    let wire = wire();
    let name = "another-name-of-the-near-end";
    wire.near.run(|| ip(&format!("link property add dev near altname {name}")));
    let run = wire.start(&["tc-egress", name, "near"]);
    wire.near.run(|| send(SocketAddr::from(([10, 0, 0, 1], 9)), 3));
    settle();
    let run = run.stop();
    assert_eq!(total(&run, "10.0.0.1").0, 3, "{}", run.stdout);
    let (status, text) = outcome(&wire, &["filter", "capture", name, "-d", "100ms", "arp"], &[]);
    assert_eq!(status, 0, "{text}");
}
