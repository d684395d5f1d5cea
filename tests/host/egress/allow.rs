// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is allowed, and what stays open beside it.

use std::io;
use std::net::UdpSocket;

use nix::sys::signal::Signal;

use super::block::{OPEN4, list, verdict};
use super::ways::*;
use super::*;

#[test]
fn only_what_is_allowed_goes_and_what_a_machine_needs() {
    if !root() {
        return;
    }
    let wire = wire();
    let far = Far::new(&wire);
    let allowed = list("10.60.0.0/16 # the one that is open\nfd60::/16\n");
    let allowed = allowed.path().to_str().unwrap();
    for backend in backends() {
        let args = ["tc-egress", "near", "--allow-only", allowed, "--backend", backend];
        for strict in [false, true] {
            let strictly: &[&str] = if strict { &["--strict"] } else { &["--resolver", RESOLVER] };
            let run = wire.start(&[&args[..], strictly].concat());
            let what = format!("{backend} strict {strict}");
            let open = if strict { Fate::Refused } else { Fate::Arrived };
            assert_eq!(fate(&wire, &far, || datagram(OPEN4, 99)), Fate::Arrived, "{what}");
            assert_eq!(fate(&wire, &far, || datagram("fd60::1", 99)), Fate::Arrived, "{what}");
            assert_eq!(fate(&wire, &far, || connect("10.61.0.1")), Fate::Refused, "{what}");
            assert_eq!(fate(&wire, &far, || connect("fd61::1")), Fate::Refused, "{what}");
            assert_eq!(fate(&wire, &far, || raw("10.61.0.1")), Fate::Dropped, "{what}");
            assert_eq!(fate(&wire, &far, || datagram(RESOLVER, 53)), open, "DNS, {what}");
            assert_eq!(fate(&wire, &far, || broadcast(67)), open, "DHCP, {what}");
            // These ports are no way to anybody else.
            for (to, port) in [("10.61.0.1", 53), ("10.61.0.1", 67), ("10.61.0.1", 68)] {
                assert_eq!(
                    fate(&wire, &far, || datagram(to, port)),
                    Fate::Refused,
                    "{port} {what}"
                );
            }
            for port in [53, 546, 547] {
                let fate = fate(&wire, &far, || datagram("fd61::1", port));
                assert_eq!(fate, Fate::Refused, "{port} {what}");
            }
            // The loopback is no way out.
            assert!(wire.near.run(|| datagram("127.0.0.1", 99)).is_ok(), "{what}");
            let open = if strict { Fate::Dropped } else { Fate::Arrived };
            assert_eq!(fate(&wire, &far, ask), open, "ARP, {what}");
            let run = run.stop();
            adds_up(&run);
            let said = run.stderr.contains("ARP and neighbour discovery: blocked as well");
            assert_eq!(said, strict, "{}", run.stderr);
            let rules: Vec<String> = totals(&run)
                .iter()
                .filter_map(|row| row["rule"].as_str().map(ToString::to_string))
                .collect();
            let expected: &[&str] = if strict {
                &["allow-only", "default"]
            } else {
                &["allow-only", "default", "dns", "dhcp"]
            };
            for rule in expected {
                assert!(rules.iter().any(|it| it == rule), "{rule}: {rules:?} {}", run.stdout);
            }
        }
    }
}

const RESOLVER: &str = "10.61.0.53";

fn broadcast(port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.set_broadcast(true)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::BindToDevice, &"near".into())?;
    socket.send_to(b"payload", ("255.255.255.255", port)).map(drop)
}

/// Rows of neighbour discovery and its like, each with what it is and where it goes, and whether that keeps it open.
#[test]
fn neighbours_are_those_on_the_link() {
    if !root() {
        return;
    }
    let wire = wire();
    let allowed = list("10.60.0.0/16\n");
    let allow = ["tc-egress", "near", "--allow-only", allowed.path().to_str().unwrap()];
    let icmpv6 = |kind: u8, hops: u8, to: &'static str| (58, kind, hops, to);
    let cases = [
        (icmpv6(135, 255, "2001:db8::77"), true),
        (icmpv6(136, 255, "fe80::77"), true),
        (icmpv6(135, 255, "ff02::1:ff00:77"), true),
        (icmpv6(143, 1, "ff02::16"), true),
        // Somebody behind a router, what a router passed on, a report that goes far, an echo.
        (icmpv6(135, 255, "2001:db8:1::77"), false),
        (icmpv6(136, 64, "2001:db8::78"), false),
        (icmpv6(143, 64, "ff05::16"), false),
        (icmpv6(131, 1, "2001:db8::79"), false),
        (icmpv6(128, 255, "2001:db8::7a"), false),
        ((2, 0x16, 1, "224.0.0.77"), true),
        ((2, 0x16, 64, "224.0.0.78"), false),
        ((2, 0x16, 1, "10.61.0.77"), false),
    ];
    for closed in [false, true] {
        let more: &[&str] = if closed { &["--closed", "nd,dhcp"] } else { &["--closed", "dhcp"] };
        let run = wire.start(&[&allow[..], more].concat());
        for ((proto, kind, hops, to), _) in cases {
            wire.near.run(|| {
                let sent = message(proto, kind, hops, to.parse().unwrap());
                assert!(sent.is_ok() || sent.unwrap_err().raw_os_error() == Some(libc::ENOBUFS));
            });
        }
        let run = run.stop();
        adds_up(&run);
        for ((_, kind, hops, to), open) in cases {
            let (passed, dropped) = (verdict(&run, to, "pass").0, verdict(&run, to, "drop").0);
            let open = open && !closed;
            let what = format!("{kind} by {hops} to {to}, closed {closed}: {}", run.stdout);
            assert_eq!((passed >= 1, dropped >= 1), (open, !open), "{what}");
        }
        assert_eq!(run.stderr.contains("neighbour discovery: blocked as well"), closed);
    }
}

/// The resolvers are those of resolv.conf, and are read again with the lists.
#[test]
fn resolvers_are_those_in_force() {
    if !root() {
        return;
    }
    use std::os::unix::process::CommandExt;
    let wire = wire();
    let far = Far::new(&wire);
    let allowed = list("10.60.0.0/16\n");
    let args = ["tc-egress", "near", "--allow-only", allowed.path().to_str().unwrap()];
    let mut command = crate::support::bpftk(&args);
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            use nix::mount::{MsFlags, mount};
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            // Of its own, with nothing in it but resolvers.
            mount(Some("none"), "/etc", Some("tmpfs"), MsFlags::empty(), none)?;
            mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
            std::fs::write("/etc/resolv.conf", "nameserver 127.0.0.53\nnameserver 10.61.0.53\n")
        })
    };
    let run = wire.near.run(|| Running::spawn(command.args(["-v", "--format", "json"])));
    assert_eq!(fate(&wire, &far, || datagram(RESOLVER, 53)), Fate::Arrived);
    assert_eq!(fate(&wire, &far, || datagram(RESOLVER, 54)), Fate::Refused);
    assert_eq!(fate(&wire, &far, || datagram("10.61.0.54", 53)), Fate::Refused);
    let conf = format!("/proc/{}/root/etc/resolv.conf", run.pid());
    std::fs::write(conf, "nameserver 10.61.0.54\n").unwrap();
    run.signal(Signal::SIGHUP);
    run.until_told("the lists are read again");
    assert_eq!(fate(&wire, &far, || datagram(RESOLVER, 53)), Fate::Refused);
    assert_eq!(fate(&wire, &far, || datagram("10.61.0.54", 53)), Fate::Arrived);
    let run = run.stop();
    assert!(run.stderr.contains("DNS: open to 10.61.0.53\n"), "{}", run.stderr);
}
