// SPDX-License-Identifier: MIT OR Apache-2.0

//! Capturing, in network namespaces.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::{ARP, filter, libpcap, write};
use crate::support::{Netns, Run, Running, ip, output, root, silent_network, stderr, stdout};

/// A namespace where 203.0.113.2 has a hardware address, and 203.0.113.9 is asked for by ARP.
fn network() -> Netns {
    let netns = Netns::new();
    netns.run(|| {
        // Neighbour discovery and multicast reports would come in between.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        silent_network();
    });
    netns
}

/// Nobody answers; and of what nobody answers for, the kernel may tell.
fn send(count: usize, to: &str) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for _ in 0..count {
        let sent = socket.send_to(b"payload", to);
        let refused = matches!(&sent, Err(error) if error.kind() == ErrorKind::ConnectionRefused);
        assert!(sent.is_ok() || refused || to.starts_with("203.0.113.9:"), "{sent:?}");
    }
}

/// Puts a frame on the wire as it is.
fn send_frame(interface: &str, frame: &[u8]) {
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    // SAFETY: numbers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0);
    // SAFETY: just opened, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain data, for which zeros are a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = index as i32;
    // SAFETY: a frame and an address of the sizes that are stated.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    assert_eq!(sent, frame.len() as isize);
}

fn start(netns: &Netns, args: &[&str]) -> Running {
    let all = [&["filter", "capture"], args].concat();
    netns.run(|| Running::start(&all))
}

fn rows(run: &Run) -> Vec<Value> {
    assert!(run.status.success(), "{}", run.stderr);
    run.events()
}

#[test]
fn arp_shows_only_arp() {
    if !root() || !libpcap() {
        return;
    }
    let netns = network();
    let running = start(&netns, &["silent", "arp", "-n", "2", "--format", "json"]);
    netns.run(|| {
        send(20, "203.0.113.2:7777");
        // The kernel asks again each second.
        send(1, "203.0.113.9:7777");
        send(20, "203.0.113.2:7777");
    });
    let run = running.wait();
    for row in rows(&run) {
        assert_eq!((&row["proto"], &row["info"]), (&"arp".into(), &"request".into()), "{row}");
        assert_eq!((&row["saddr"], &row["daddr"]), (&"203.0.113.1".into(), &"203.0.113.9".into()));
        assert_eq!((&row["direction"], &row["iface"]), (&"egress".into(), &"silent".into()));
    }
    assert_eq!(run.summary()["packets"], 2);
}

#[test]
fn each_packet_once_and_the_counts_are_right() {
    if !root() || !libpcap() {
        return;
    }
    let netns = network();
    for (interface, to) in
        [("silent", "203.0.113.2:7777"), ("nobody", "203.0.113.2:7777"), ("lo", "127.0.0.1:7777")]
    {
        let running = start(&netns, &[interface, "udp port 7777", "-x", "--format", "json"]);
        netns.run(|| send(50, to));
        let run = running.stop();
        let rows = rows(&run);
        assert_eq!(rows.len(), 50, "{interface}: {}", run.stderr);
        for row in &rows {
            assert_eq!((&row["dport"], &row["length"]), (&7777.into(), &49.into()), "{row}");
            assert!(row["data"].as_str().unwrap().ends_with("7061796c6f6164"), "{row}");
        }
        let summary = run.summary();
        assert_eq!(
            (&summary["packets"], &summary["matched"], &summary["lost"]),
            (&50.into(), &50.into(), &0.into())
        );
    }
}

#[test]
fn tables_hexadecimal_and_an_assembled_filter() {
    if !root() {
        return;
    }
    let netns = network();
    let dir = tempfile::tempdir().unwrap();
    let arp = write(dir.path(), "arp.asm", ARP);
    let running =
        start(&netns, &["nobody", "--asm", arp.to_str().unwrap(), "-x", "-n", "1", "--no-header"]);
    netns.run(|| {
        send(5, "203.0.113.2:7777");
        send(1, "203.0.113.9:7777");
    });
    let run = running.wait();
    assert!(run.status.success(), "{}", run.stderr);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert!(lines[0].contains("arp") && lines[0].contains("203.0.113.9"), "{}", run.stdout);
    assert!(lines[1].starts_with("\t0x0000:  ffff ffff ffff"), "{}", run.stdout);
    assert!(
        run.stderr.contains("1 packets; 1 matched by the kernel's count; 0 lost"),
        "{}",
        run.stderr
    );
}

#[test]
fn what_was_written_others_read() {
    if !root() || !libpcap() {
        return;
    }
    let netns = network();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.pcap");
    let path = path.to_str().unwrap();
    let running = start(&netns, &["silent", "udp", "-w", path, "-n", "30"]);
    netns.run(|| send(40, "203.0.113.2:7777"));
    let run = running.wait();
    assert!(run.status.success() && run.stdout.is_empty(), "{} {}", run.stdout, run.stderr);
    let again = filter(&["run", "udp dst port 7777", "--read", path, "--format", "json"]);
    assert_eq!(again.matches("\"verdict\":\"match\"").count(), 30, "{again}");
    match Command::new("tcpdump").args(["-nr", path]).output() {
        Err(_) => println!("SKIP tcpdump is not installed"),
        Ok(read) => {
            assert!(read.status.success(), "{}", stderr(&read));
            assert_eq!(stdout(&read).matches("203.0.113.2.7777: UDP, length 7").count(), 30);
        }
    }
}

#[test]
fn a_vlan_tag_is_where_it_was_on_the_wire() {
    if !root() || !libpcap() {
        return;
    }
    let netns = network();
    // The kernel takes the tag out of what arrives at the other end.
    let tagged = [
        &[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x81, 0, 0x20, 5, 8, 0][..],
        &[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2],
        &[0x30, 0x39, 0x1e, 0x61, 0, 12, 0, 0, 1, 2, 3, 4],
    ]
    .concat();
    let capture = |expression: &str| {
        let running = start(&netns, &["nobody", expression, "--format", "json", "-x"]);
        netns.run(|| {
            for _ in 0..3 {
                send_frame("silent", &tagged);
            }
            send(2, "203.0.113.2:7777");
        });
        running.stop()
    };
    for (expression, expected) in [
        ("vlan 5 and udp dst port 7777", 3),
        ("vlan", 3),
        ("vlan 6", 0),
        ("ether proto 0x8100", 3),
        ("udp", 2),
        ("udp or (vlan and udp)", 5),
        ("not vlan", 2),
    ] {
        let run = capture(expression);
        let rows = rows(&run);
        assert_eq!(rows.len(), expected, "{expression}: {}", run.stdout);
        assert_eq!(run.summary()["matched"], expected, "{expression}");
        for row in rows.iter().filter(|row| !row["vlan"].is_null()) {
            assert_eq!((&row["vlan"][0], &row["length"]), (&5.into(), &50.into()), "{row}");
            let bytes: String = tagged.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(row["data"], bytes);
        }
    }
}

#[test]
fn interfaces_without_a_link_header_are_ip() {
    if !root() || !libpcap() {
        return;
    }
    let netns = network();
    let made = netns.run(|| {
        Command::new("ip")
            .args(["tuntap", "add", "tun9", "mode", "tun"])
            .output()
            .unwrap()
            .status
            .success()
    });
    if !made {
        println!("SKIP this kernel makes no tun interface");
        return;
    }
    netns.run(|| ip("addr add 198.51.100.1/24 dev tun9"));
    // Without a program at its other end it has no carrier: what matters is that the filter fits its packets.
    let running = start(&netns, &["tun9", "udp port 7777", "-d", "100ms"]);
    let run = running.wait();
    assert!(run.status.success(), "{}", run.stderr);
}

#[test]
fn what_is_not_there_is_told() {
    if !root() {
        return;
    }
    for name in ["no-such-if", "a-name-that-is-far-too-long", ""] {
        let output = output(&["filter", "capture", name]);
        assert_eq!(output.status.code(), Some(2), "{name}: {}", stderr(&output));
        assert!(stderr(&output).contains("no interface"), "{}", stderr(&output));
    }
}

#[test]
fn an_interface_that_goes_away_ends_nothing_silently() {
    if !root() {
        return;
    }
    let netns = network();
    let running = start(&netns, &["silent"]);
    netns.run(|| {
        // It is told to be down before it is gone, and that is not told.
        ip("link set silent down");
        thread::sleep(Duration::from_millis(300));
        ip("link del silent");
    });
    let run = running.wait();
    assert_eq!(run.status.code(), Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("silent") && run.stderr.contains("gone"), "{}", run.stderr);
}

/// An interface is its index: renamed, it goes on, and rows have the name of their time.
#[test]
fn a_renamed_interface_is_captured_from_on() {
    if !root() {
        return;
    }
    let netns = network();
    let running = start(&netns, &["silent", "udp port 7777", "-n", "2", "--format", "json"]);
    netns.run(|| send(1, "203.0.113.2:7777"));
    let first: Value = serde_json::from_str(&running.line()).unwrap();
    netns.run(|| {
        ip("link set silent down");
        ip("link set silent name other");
        // One that has its name now, and isn't it.
        ip("link add silent type veth peer name somebody");
        ip("link set other up");
    });
    running.until_told("silent is called other now; it goes on");
    netns.run(|| {
        ip("neigh replace 203.0.113.2 lladdr 02:00:00:00:00:02 dev other nud permanent");
        send(1, "203.0.113.2:7777");
    });
    let run = running.wait();
    assert!(run.status.success(), "{}", run.stderr);
    let events = run.events();
    assert_eq!((&first["iface"], &events[1]["iface"]), (&"silent".into(), &"other".into()));
}
