// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is dropped, and that the counts are what was sent.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::*;

#[test]
fn what_was_sent_is_counted_and_nothing_else_is_dropped() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    for way in ways() {
        let run =
            wire.start(&[&way[..], &["--proto", "udp", "--dport", "9999,7000-8000"]].concat());
        assert_eq!(wire.exchange(NEAR4, 500), 0, "{way:?}");
        assert_eq!(wire.exchange(NEAR6, 300), 0, "{way:?}");
        // Beside the ports.
        for port in [6999, 7000, 8000, 8001, 9998] {
            wire.far.run(|| send(SocketAddr::new(NEAR4.parse().unwrap(), port), 10));
        }
        thread::sleep(Duration::from_millis(200));
        let run = run.stop();
        assert_eq!(packets(&run, "udp dport 9999,7000-8000"), 820, "{way:?} {}", run.stdout);
        // 14 of Ethernet, 20 and 40 of IP, 8 of UDP, 7 of payload.
        let rows = run.json();
        let bytes = &total(&rows, "udp dport 9999,7000-8000")["bytes_total"];
        assert_eq!(*bytes, 520 * 49 + 300 * 69, "{way:?}");
        assert!(packets(&run, "passed") >= 30, "{way:?} {}", run.stdout);
        assert_eq!(packets(&run, "malformed"), 0);
        let summary = run.json().pop().unwrap();
        assert_eq!(
            (&summary["type"], &summary["dropped_packets"]),
            (&"summary".into(), &820.into())
        );
        // It is as it was.
        assert_eq!(wire.exchange(NEAR4, 50), 50, "{way:?}");
    }
}

/// ICMP both ways, by the kernel's own answers to a datagram that nobody waits for.
#[test]
fn icmp_is_dropped_by_default_and_neighbours_are_found_all_the_same() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    // Answers come in at near, to what near sends.
    let provoke = |to: &str| {
        let to = SocketAddr::new(to.parse().unwrap(), 9);
        wire.near.run(|| {
            let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).unwrap();
            socket.connect(to).unwrap();
            socket.send(b"x").unwrap();
            thread::sleep(Duration::from_millis(100));
            // The ICMP error is told at the next call.
            socket.send(b"x").is_err()
        })
    };
    assert!(provoke(FAR4) && provoke(FAR6), "the far end answers");
    for way in ways() {
        let run = wire.start(&way);
        assert!(!provoke(FAR4), "{way:?}");
        wire.near.run(|| ip("neigh flush dev near"));
        assert!(!provoke(FAR6), "{way:?}");
        // Neighbour discovery went on: datagrams get through.
        assert_eq!(wire.exchange(NEAR6, 10), 10, "{way:?}");
        let run = run.stop();
        // Linux limits its errors to one peer; each provocation has one at least.
        assert!(packets(&run, "icmp") >= 2, "{way:?} {}", run.stdout);
        thread::sleep(Duration::from_millis(1100));
        assert!(provoke(FAR4), "{way:?}");
    }
}

#[test]
fn directions_and_addresses() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    for backend in backends() {
        let base = ["tc-drop", "near", "--backend", backend];
        let outward = |to: &str| {
            let to = SocketAddr::new(to.parse().unwrap(), 9999);
            wire.far.run(|| {
                let receiver = UdpSocket::bind(to).unwrap();
                wire.near.run(|| send(to, 20));
                thread::sleep(Duration::from_millis(100));
                receiver.set_nonblocking(true).unwrap();
                let mut buffer = [0; 64];
                std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count()
            })
        };
        for (args, comes_in, goes_out) in [
            (vec!["--src", FAR4], 0, 20),
            (vec!["--dst", FAR4], 20, 20),
            (vec!["--dst", FAR4, "--direction", "egress"], 20, 0),
            (vec!["--src", "198.51.100.0/24", "--direction", "both", "--proto", "udp"], 0, 0),
            (vec!["--src", FAR4, "--dst", FAR4], 20, 20),
            (vec!["--src", FAR6, "--direction", "both"], 20, 20),
        ] {
            let args = [&base[..], &args, &["--yes-lock-me-out"]].concat();
            let run = wire.start(&args);
            assert_eq!((wire.exchange(NEAR4, 20), outward(FAR4)), (comes_in, goes_out), "{args:?}");
            let run = run.stop();
            let dropped = run.json().pop().unwrap()["dropped_packets"].as_u64().unwrap();
            assert_eq!(dropped, 40 - (comes_in + goes_out) as u64, "{args:?} {}", run.stdout);
        }
    }
}

#[test]
fn tags_are_seen_through() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let tagged = |side: &Netns, device: &str, v4: &str| {
        side.run(|| {
            ip(&format!("link add link {device} name tagged type vlan id 7"));
            ip(&format!("addr add {v4}/24 dev tagged"));
            ip("link set tagged up");
        });
    };
    let vlans = wire.near.run(|| {
        let made = std::process::Command::new("ip")
            .args("link add link near name probe type vlan id 8".split(' '))
            .output()
            .unwrap();
        made.status.success()
    });
    if !vlans {
        println!("SKIP this kernel has no VLAN devices");
        return;
    }
    tagged(&wire.near, "near", "203.0.113.1");
    tagged(&wire.far, "far", "203.0.113.2");
    // A tag of a provider, and one of a customer's behind it.
    let tagged_twice = |side: &Netns, device: &str, v4: &str| {
        side.run(|| {
            ip(&format!("link add link {device} name outer type vlan proto 802.1ad id 5"));
            ip("link add link outer name inner type vlan id 6");
            ip(&format!("addr add {v4}/24 dev inner"));
            ip("link set outer up");
            ip("link set inner up");
        });
    };
    tagged_twice(&wire.near, "near", "192.0.2.1");
    tagged_twice(&wire.far, "far", "192.0.2.2");
    for to in ["203.0.113.1", "192.0.2.1"] {
        assert_eq!(wire.exchange(to, 10), 10);
        for way in ways() {
            let run = wire.start(&[&way[..], &["--proto", "udp", "--dport", "9999"]].concat());
            assert_eq!(wire.exchange(to, 40), 0, "{way:?} {to}");
            assert_eq!(packets(&run.stop(), "udp dport 9999"), 40, "{way:?} {to}");
            assert_eq!(wire.exchange(to, 10), 10);
        }
    }
}

/// More than fits into a page: XDP gets it in pieces where the kernel knows that, and else there is no native XDP.
#[test]
fn jumbo_frames_are_dropped_and_counted_in_full() {
    if !root() {
        return;
    }
    const SIZE: usize = 8000;
    let wire = Wire::new();
    wire.near.run(|| ip("link set near mtu 9000"));
    wire.far.run(|| ip("link set far mtu 9000"));
    let exchange = |count: usize| {
        let to: SocketAddr = format!("{NEAR4}:9999").parse().unwrap();
        wire.near.run(|| {
            let receiver = UdpSocket::bind(to).unwrap();
            wire.far.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for _ in 0..count {
                    socket.send_to(&[7; SIZE], to).unwrap();
                }
            });
            thread::sleep(Duration::from_millis(200));
            receiver.set_nonblocking(true).unwrap();
            let mut buffer = [0; SIZE + 1];
            std::iter::from_fn(|| receiver.recv(&mut buffer).ok())
                .inspect(|&size| assert_eq!(size, SIZE))
                .count()
        })
    };
    for way in ways() {
        let args = [&way[..], &["--proto", "udp"]].concat();
        // Before Linux 5.18, native XDP takes no packets that are longer than a page.
        let (status, why) = refused(&wire, &[&args[..], &["-d", "10ms"]].concat(), &[]);
        if status != 0 && way.contains(&"native") {
            println!("native XDP refuses jumbo frames here: {}", why.trim());
            continue;
        }
        let run = wire.start(&args);
        assert_eq!(exchange(10), 0, "{way:?}");
        let run = run.stop();
        assert_eq!(packets(&run, "udp"), 10, "{way:?}");
        let bytes = total(&run.json(), "udp")["bytes_total"].as_u64().unwrap();
        assert_eq!(bytes, 10 * (SIZE as u64 + 14 + 20 + 8), "{way:?}");
        assert_eq!(exchange(10), 10, "{way:?}");
    }
}

#[test]
fn a_dry_run_drops_nothing() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    for way in ways() {
        let run = wire.start(&[&way[..], &["--proto", "udp", "--dry-run"]].concat());
        assert_eq!(wire.exchange(NEAR4, 100), 100, "{way:?}");
        let run = run.stop();
        assert_eq!(packets(&run, "udp"), 100, "{way:?}");
        assert_eq!(total(&run.json(), "udp")["verdict"], "would-drop");
    }
}

#[test]
fn what_exceeds_the_rate_is_dropped() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    for way in ways() {
        let run = wire.start(&[&way[..], &["--proto", "udp", "--rate", "50/s"]].concat());
        let begin = Instant::now();
        let (mut passed, mut bursts) = (0, 0);
        while begin.elapsed() < Duration::from_secs(2) {
            passed += wire.exchange(NEAR4, 100);
            bursts += 1;
            thread::sleep(Duration::from_millis(120));
        }
        let seconds = begin.elapsed().as_secs_f64();
        let run = run.stop();
        let dropped = packets(&run, "udp");
        assert!(dropped > 100, "{way:?} {}", run.stdout);
        // Five may come at once, and then one each fiftieth of a second; there is a pause behind each exchange.
        assert!(
            passed >= 5 * bursts && passed as f64 <= 50.0 * seconds + 6.0,
            "{passed} in {seconds} s"
        );
        // Not one is unaccounted for.
        assert_eq!((passed as u64 + dropped) % 100, 0, "{passed} + {dropped}");
    }
}

#[test]
fn samples_say_what_was_dropped() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    for way in ways() {
        let args = [&way[..], &["--proto", "udp", "--dport", "9999", "--sample", "10"]].concat();
        let run = wire.start(&args);
        assert_eq!(wire.exchange(NEAR4, 100) + wire.exchange(NEAR6, 100), 0);
        let run = run.stop();
        assert!(run.status.success(), "{}", run.stderr);
        let rows = run.json();
        let (samples, summary) = rows.split_at(rows.len() - 1);
        // Each processor has a count of its own, and tells of its first.
        assert!((20..24).contains(&samples.len()), "{way:?} {}", run.stdout);
        for sample in samples {
            let v4 = sample["family"] == 4;
            assert_eq!(sample["type"], "event");
            assert_eq!(sample["saddr"], if v4 { FAR4 } else { FAR6 }, "{sample}");
            assert_eq!(sample["daddr"], if v4 { NEAR4 } else { NEAR6 }, "{sample}");
            assert_eq!((&sample["dport"], &sample["proto"]), (&9999.into(), &"udp".into()));
            assert_eq!(sample["bytes"], if v4 { 49 } else { 69 });
            assert_eq!(
                (&sample["iface"], &sample["direction"]),
                (&"near".into(), &"ingress".into())
            );
            assert_eq!(sample["rule"], "udp dport 9999");
        }
        assert_eq!((&summary[0]["lost"], &summary[0]["dropped_packets"]), (&0.into(), &200.into()));
        // Samples can be lost in one way, and no other is told of.
        let ways: Vec<&String> =
            summary[0].as_object().unwrap().keys().filter(|key| key.starts_with("lost")).collect();
        assert_eq!(ways, ["lost", "lost_ring_full"]);
    }
}

#[test]
fn tables_by_protocol_source_and_processor() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let base = ["xdp-drop", "near", "--src", FAR4, "--by"];
    for (by, field, expected) in [("proto", "proto", "udp"), ("src", "saddr", FAR4)] {
        let run = wire.start(&[&base[..], &[by]].concat());
        assert_eq!(wire.exchange(NEAR4, 60), 0);
        let run = run.stop();
        let rows = run.json();
        let row = rows.iter().find(|row| row["scope"] == "total" && row[field] == expected);
        assert_eq!(row.unwrap()["packets_total"], 60, "{}", run.stdout);
        assert!(row.unwrap()["rule"].is_null());
    }
    let run = wire.start(&[&base[..], &["cpu"]].concat());
    assert_eq!(wire.exchange(NEAR4, 60), 0);
    let rows = run.stop().json();
    let all = rows.iter().filter(|row| row["scope"] == "total" && row["cpu"].is_number());
    assert_eq!(all.map(|row| row["packets_total"].as_u64().unwrap()).sum::<u64>(), 60);
}

/// As a list should be replaced: who reads it meanwhile gets the old one or the new one.
fn write(path: &str, lines: &str) {
    let new = format!("{path}.new");
    fs::write(&new, lines).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn a_block_list_is_replaced_under_traffic() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    for way in ways() {
        // FAR4 is on every list, FAR6 on none, the rest changes.
        let lists: Vec<String> = (0..10)
            .map(|n| (0..500).map(|i| format!("10.{n}.{}.{}\n", i / 250, i % 250)).collect())
            .map(|others: String| format!("# a list\n{others}{FAR4} # the far end\n192.0.2.0/24\n"))
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let path = path.to_str().unwrap();
        write(path, &lists[0]);
        let run = wire.start(&[&way[..], &["--blocklist", path]].concat());
        let (mut blocked, mut free) = (0, 0);
        for list in lists.iter().cycle().take(100) {
            write(path, list);
            run.signal(Signal::SIGHUP);
            wire.far.run(|| {
                send(SocketAddr::new(NEAR4.parse().unwrap(), 9999), 20);
                send(SocketAddr::new(NEAR6.parse().unwrap(), 9999), 20);
            });
            blocked += 20;
            free += 20;
        }
        // A bad list changes nothing.
        write(path, "198.51.100.2\nnonsense\n");
        run.signal(Signal::SIGHUP);
        run.until_told("the block list stays as it was");
        assert_eq!(wire.exchange(NEAR4, 20), 0, "{way:?}");
        // Another one that is good.
        write(path, "2001:db8::2\n");
        run.signal(Signal::SIGHUP);
        thread::sleep(Duration::from_millis(300));
        assert_eq!((wire.exchange(NEAR4, 20), wire.exchange(NEAR6, 20)), (20, 0), "{way:?}");
        let run = run.stop();
        // The far end also reports to IPv4's multicast routers, up to three times, when it likes.
        let expected = blocked + 40;
        let counted = packets(&run, "blocklist");
        assert!((expected..expected + 4).contains(&counted), "{way:?} {counted} of {expected}");
        assert!(packets(&run, "passed") >= free + 20, "{way:?}");
        assert!(run.stderr.contains(":2: `nonsense`"), "{}", run.stderr);
    }
}

/// A list that is empty by mistake protects nothing.
#[test]
fn an_empty_block_list_is_refused_and_never_taken_over() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("list");
    let path = path.to_str().unwrap();
    for way in ways() {
        write(path, "# nothing\n");
        let arguments = [&way[..], &["--blocklist", path]].concat();
        let refused = wire.near.run(|| output(&[&arguments[..], &["-d", "1ms"]].concat()));
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("no address in it"), "{}", stderr(&refused));

        write(path, &format!("{FAR4}\n192.0.2.1\n"));
        let run = wire.start(&arguments);
        run.until_told("list: 2 entries");
        write(path, "");
        run.signal(Signal::SIGHUP);
        run.until_told("the block list stays as it was");
        assert_eq!(wire.exchange(NEAR4, 20), 0, "{way:?}");
        write(path, &format!("{FAR4}\n"));
        run.signal(Signal::SIGHUP);
        run.until_told("list: 1 entry");
        assert!(run.stop().status.success());

        write(path, "");
        let run = wire.start(&[&arguments[..], &["--allow-empty"]].concat());
        run.until_told("list: 0 entries");
        assert_eq!(wire.exchange(NEAR4, 20), 20, "{way:?}");
        assert!(run.stop().status.success());
    }
}

/// A list is read beside the main loop: whatever that takes, tables come, and an end is an end.
#[test]
fn a_list_that_never_comes_delays_nothing() {
    if !root() {
        return;
    }
    let wire = Wire::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("list");
    for way in ways() {
        let _ = std::fs::remove_file(&path);
        write(path.to_str().unwrap(), &format!("{FAR4}\n"));
        let arguments = ["--blocklist", path.to_str().unwrap(), "-i", "50ms"];
        let run = wire.start(&[&way[..], &arguments].concat());
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        run.signal(Signal::SIGHUP);
        // Older than the signal, at most.
        for _ in 0..5 {
            run.line();
        }
        assert_eq!(wire.exchange(NEAR4, 20), 0, "{way:?}");
        // The pipe still waits; what comes next is what counts.
        std::fs::remove_file(&path).unwrap();
        write(path.to_str().unwrap(), "192.0.2.1\n192.0.2.2\n");
        run.signal(Signal::SIGHUP);
        run.until_told("list: 2 entries");
        assert_eq!(wire.exchange(NEAR4, 20), 20, "{way:?}");
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        run.signal(Signal::SIGHUP);
        let begin = std::time::Instant::now();
        assert!(run.stop().status.success());
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
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
fn expressions_have_rows_of_their_own() {
    if !root() || !libpcap() {
        return;
    }
    let wire = Wire::new();
    let to = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port);
    for way in ways() {
        let rules =
            ["udp dst port 9999 or port 9998", "--match", "udp port 7000", "--match", "udp"];
        let run = wire.start(&[&way[..], &rules, &["--except", "ip6 or dst port 6000"]].concat());
        assert_eq!(wire.exchange(NEAR4, 40), 0, "{way:?}");
        // Excepted, by either of its words.
        assert_eq!(wire.exchange(NEAR6, 30), 30, "{way:?}");
        wire.far.run(|| {
            send(to(NEAR4, 6000), 11);
            send(to(NEAR4, 7000), 20);
            send(to(NEAR4, 7001), 7);
        });
        thread::sleep(Duration::from_millis(200));
        let run = run.stop();
        let counts =
            ["udp dst port 9999 or port 9998", "udp port 7000", "udp"].map(|r| packets(&run, r));
        assert_eq!(counts, [40, 20, 7], "{way:?} {}", run.stdout);
        // And whatever else IPv6 says meanwhile.
        assert!(packets(&run, "excepted") >= 41, "{way:?} {}", run.stdout);
        assert_eq!(total(&run.json(), "excepted")["verdict"], "pass");
        assert_eq!(run.summary()["dropped_packets"], 67);
    }
    // In both directions, and beside the other rules.
    for backend in backends() {
        let base = ["tc-drop", "near", "udp port 9999", "--backend", backend];
        let run = wire.start(&[&base[..], &["--direction", "both", "--src", FAR6]].concat());
        assert_eq!((wire.exchange(NEAR4, 10), wire.exchange(NEAR6, 10)), (0, 0));
        wire.near.run(|| send(to(FAR4, 9999), 5));
        thread::sleep(Duration::from_millis(100));
        let run = run.stop();
        let rows = run.json();
        let count = |direction: &str| {
            let row = rows.iter().find(|row| {
                row["scope"] == "total"
                    && row["rule"] == "udp port 9999"
                    && row["direction"] == direction
            });
            row.unwrap()["packets_total"].as_u64().unwrap()
        };
        assert_eq!((count("ingress"), count("egress")), (10, 5), "{backend} {}", run.stdout);
    }
}

#[test]
fn expressions_that_cannot_be_are_refused() {
    if !root() || !libpcap() {
        return;
    }
    let wire = Wire::new();
    for (args, expected) in [
        (vec!["xdp-drop", "near", "naer"], "no interface `naer`, and as an expression"),
        (vec!["xdp-drop", "naer", "near"], "no interface `naer`"),
        (vec!["xdp-drop", "near", "naer", "near"], "no interface `naer`, and as an expression"),
        (vec!["xdp-drop", "near", "udp", "--match", "foo bar"], "bpftk: `foo bar`"),
        (vec!["xdp-drop", "near", "tcp port"], "tcp port"),
        (vec!["xdp-drop", "near", "--match", "host example.org"], "names are not looked up"),
        (vec!["tc-drop", "near", "--except", "foo bar"], "foo bar"),
        (vec!["xdp-drop", "near", "arp"], "ARP, without which"),
        (vec!["xdp-drop", "near", ""], "every packet"),
        (vec!["tc-drop", "near", "--match", "ip or ip6"], "every packet"),
    ] {
        let (status, text) = refused(&wire, &args, &[]);
        assert!(status == 2 && text.contains(expected), "{args:?} {status} {text}");
        assert!(!text.contains("--resolve"), "it has no such option: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let ssh = [("SSH_CONNECTION", "203.0.113.5 50022 198.51.100.1 22")];
    let (status, text) = refused(&wire, &["xdp-drop", "near", "tcp"], &ssh);
    assert!(status == 2 && text.contains("SSH connection"), "{text}");
    let spared = ["xdp-drop", "near", "tcp", "--except", "port 22", "-d", "10ms"];
    let (status, text) = refused(&wire, &spared, &ssh);
    assert_eq!(status, 0, "{text}");
}
