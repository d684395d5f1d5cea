// SPDX-License-Identifier: MIT OR Apache-2.0

//! Two network namespaces with a wire between them, for commands that attach to interfaces.

mod marks;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use self::marks::{Marks, stay_on_this_processor};
use super::{Netns, Running, bpftk, ip, output, stderr};

/// A pair of veth: `near` in the namespace where bpftk runs, `far` in the sender's.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) near: Netns,
    pub(crate) far: Netns,
}

pub(crate) const NEAR4: &str = "198.51.100.1";
pub(crate) const FAR4: &str = "198.51.100.2";
pub(crate) const NEAR6: &str = "2001:db8::1";
pub(crate) const FAR6: &str = "2001:db8::2";
pub(crate) const NEAR_MAC: &str = "02:00:00:00:00:01";
pub(crate) const FAR_MAC: &str = "02:00:00:00:00:02";

impl Wire {
    pub(crate) fn new() -> Self {
        let wire = Self { near: Netns::new(), far: Netns::new() };
        wire.add("near");
        wire.configure();
        // The links are up before anything is counted.
        for to in [NEAR4, NEAR6] {
            let works = (0..50).any(|_| wire.exchange(to, 3) == 3);
            assert!(works, "nothing gets to {to}");
        }
        wire
    }

    /// Makes the pair, also anew, with the near end by this name.
    pub(crate) fn add(&self, near: &str) {
        let far = self.far.path();
        let far = format!("peer name far address {FAR_MAC} netns {far}");
        self.near.run(|| ip(&format!("link add {near} address {NEAR_MAC} type veth {far}")));
    }

    /// Gives both ends of a new pair what they need.
    pub(crate) fn configure(&self) {
        self.near.run(|| {
            addresses("near", NEAR4, NEAR6);
            neighbours("near", FAR_MAC, [FAR4, FAR6]);
        });
        self.far.run(|| {
            addresses("far", FAR4, FAR6);
            neighbours("far", NEAR_MAC, [NEAR4, NEAR6]);
        });
    }

    /// Sends so many datagrams from far to port 9999 of `to`, and tells how many arrive.
    pub(crate) fn exchange(&self, to: &str, count: usize) -> usize {
        self.near.run(|| {
            let to = SocketAddr::new(to.parse().unwrap(), 9999);
            let receiver = UdpSocket::bind(to).expect("near has the address");
            // A packet that native XDP let through has a page of its own, and counts as that: 49 fill what a socket usually has.
            setsockopt(&receiver, RcvBufForce, &(4 << 20)).expect("root may");
            let behind = Marks::at("near");
            self.far.run(|| {
                // All by the same processor, whose queue keeps their order.
                stay_on_this_processor();
                send(to, count);
                Marks::at("far").send(NEAR_MAC);
            });
            behind.wait();
            receiver.set_nonblocking(true).unwrap();
            let mut buffer = [0; 64];
            std::iter::from_fn(|| receiver.recv(&mut buffer).ok()).count()
        })
    }

    /// A namespace behind near, which forwards what it sends.
    pub(crate) fn forwards(&self) -> Netns {
        const INSIDE_MAC: &str = "02:00:00:00:00:11";
        const INNER_MAC: &str = "02:00:00:00:00:12";
        let inner = Netns::new();
        self.near.run(|| {
            let path = inner.path();
            ip(&format!(
                "link add inside address {INSIDE_MAC} type veth peer name eth0 address {INNER_MAC} netns {path}"
            ));
            addresses("inside", "172.20.0.1", "fd00:20::1");
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        });
        inner.run(|| {
            addresses("eth0", "172.20.0.2", "fd00:20::2");
            neighbours("eth0", INSIDE_MAC, ["172.20.0.1", "fd00:20::1"]);
            ip("route add default via 172.20.0.1");
        });
        self.near.run(|| {
            neighbours("inside", INNER_MAC, ["172.20.0.2", "fd00:20::2"]);
            // The links are up before anything is counted.
            let to = SocketAddr::from(([172, 20, 0, 1], 9999));
            let receiver = UdpSocket::bind(to).expect("near has the address");
            receiver.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            let works = (0..500).any(|_| {
                inner.run(|| send(to, 1));
                receiver.recv(&mut [0; 64]).is_ok()
            });
            assert!(works, "nothing gets to near from behind it");
        });
        inner
    }

    /// A bpftk in the near namespace, with rows as JSON.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        self.near.run(|| Running::json(args))
    }
}

pub(crate) fn addresses(interface: &str, v4: &str, v6: &str) {
    ip(&format!("addr add {v4}/24 dev {interface}"));
    ip(&format!("addr add {v6}/64 dev {interface} nodad"));
    ip(&format!("link set {interface} up"));
}

/// Neighbours that are known for good: else the kernel looks for them again at any moment, with packets that rules match.
pub(crate) fn neighbours(interface: &str, mac: &str, addresses: [&str; 2]) {
    for address in addresses {
        ip(&format!("neigh replace {address} lladdr {mac} dev {interface} nud permanent"));
    }
}

pub(crate) fn send(to: SocketAddr, count: usize) {
    let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
    let socket = UdpSocket::bind((any, 0)).unwrap();
    for _ in 0..count {
        socket.send_to(b"payload", to).unwrap();
    }
}

/// The ways to attach to tc's hooks that this kernel has. `args` are a command that does nothing much.
pub(crate) fn tc_backends(args: &[&str]) -> Vec<&'static str> {
    let namespace = Netns::new();
    let works = |backend: &&str| {
        let args = [args, &["--backend", backend, "-d", "10ms"]].concat();
        let output = namespace.run(|| output(&args));
        match output.status.code() {
            Some(0) => true,
            // A program that the verifier refuses is our mistake, whatever the kernel.
            Some(4) if !stderr(&output).contains("refuses the programs") => {
                println!("{backend} is not offered here: {}", stderr(&output).trim());
                false
            }
            _ => panic!("{args:?}: {}", stderr(&output)),
        }
    };
    let found: Vec<_> = ["tcx", "clsact"].into_iter().filter(works).collect();
    assert!(!found.is_empty(), "neither tcx nor clsact works");
    found
}

/// What `bpftk` says to this, in the near namespace, and with which status.
pub(crate) fn outcome(wire: &Wire, args: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let output = wire
        .near
        .run(|| bpftk(args).envs(environment.iter().copied()).output().expect("bpftk runs"));
    (output.status.code().unwrap(), stderr(&output))
}
