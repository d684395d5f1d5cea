// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which connections are local: by any address of this machine, in any of its namespaces, and no other.

use std::os::fd::AsRawFd;

use super::calls::{Pair, accept, addr, recv, send, wait_for_data};
use super::{actor, row, rows, steadily, watch};
use crate::support::{self, Actor, Netns, Stage, Tcp, ip, silent_network};

/// Sends and receives so that a local connection is told to be unsafe.
fn exchange(pair: &Pair) {
    send(pair.client(), b"abc", 0).unwrap();
    assert_eq!(recv(pair.server(), 3, libc::MSG_WAITALL), Ok(3));
}

#[test]
fn every_way_to_reach_oneself_is_local() {
    steadily(|| {
        if !support::root() {
            return;
        }
        let net = Netns::new();
        net.run(|| {
            ip("link add own type veth peer name other");
            ip("addr add 203.0.113.1/24 dev own");
            ip("addr add 203.0.113.5/24 dev own");
            ip("addr add 2001:db8::5/64 dev own nodad");
            ip("link set own up");
            ip("link set other up");
        });
        net.run(|| {
            let actors = vec![
                actor(|| exchange(&Pair::new("127.0.0.1"))),
                actor(|| exchange(&Pair::new("127.9.8.7"))),
                actor(|| exchange(&Pair::new("::1"))),
                actor(|| exchange(&Pair::new("203.0.113.5"))),
                actor(|| exchange(&Pair::new("2001:db8::5"))),
                // From one of the own addresses to the other.
                actor(|| {
                    exchange(&Pair::by("203.0.113.5", |client| {
                        client.bind(addr("203.0.113.1", 0))
                    }));
                }),
                // IPv4 in an IPv6 socket, at both ends.
                actor(|| {
                    let listener = Tcp::v6();
                    listener.bind(addr("::ffff:127.0.0.1", 0));
                    nix::sys::socket::listen(&listener.0, nix::sys::socket::Backlog::MAXCONN)
                        .unwrap();
                    let client = Tcp::v6();
                    client.connect(addr("::ffff:127.0.0.1", listener.local().port())).unwrap();
                    let server = accept(&listener);
                    send(client.0.as_raw_fd(), b"abc", 0).unwrap();
                    assert_eq!(recv(server.as_raw_fd(), 3, libc::MSG_WAITALL), Ok(3));
                }),
            ];
            let (pids, run) = watch(actors);
            for (i, pid) in pids.into_iter().enumerate() {
                let row = row(&run, pid);
                assert_eq!(
                    (&row["calls"], &row["counts"]["waitall"]),
                    (&2.into(), &1.into()),
                    "{i}: {row}"
                );
            }
        });
    });
}

#[test]
fn between_namespaces_is_local() {
    steadily(|| {
        if !support::root() {
            return;
        }
        let (here, there) = (Netns::new(), Netns::new());
        here.run(|| {
            ip("link add near type veth peer name far");
            ip(&format!("link set far netns {}", there.path()));
            ip("addr add 198.51.100.1/24 dev near");
            ip("link set near up");
        });
        there.run(|| {
            ip("addr add 198.51.100.2/24 dev far");
            ip("link set far up");
        });
        // Somebody is in the other namespace, as in a container. An actor lives as long as the thread that made it.
        there.run(|| {
            let (_listener, addr) = Tcp::listen("198.51.100.2");
            let mut server = Actor::new(Stage::pause);
            here.run(|| {
                let (pids, run) = watch(vec![actor(move || {
                    let client = Tcp::v4();
                    client.connect(addr).unwrap();
                    send(client.0.as_raw_fd(), b"abc", 0).unwrap();
                    let _ = recv(client.0.as_raw_fd(), 1, libc::MSG_WAITALL | libc::MSG_DONTWAIT);
                })]);
                let row = row(&run, pids[0]);
                assert_eq!(row["counts"]["waitall"], 1, "{row}");
                // Who listens in the other namespace is known by its port.
                assert_eq!(row["ports"], serde_json::json!([addr.port()]), "{row}");
            });
            server.go();
            server.go();
            server.finish();
        });
    });
}

#[test]
fn a_connection_with_another_machine_is_not_looked_at() {
    steadily(|| {
        if !support::root() {
            return;
        }
        let net = Netns::new();
        // Not an address that others use: what any namespace of this machine has is local.
        let network = format!("100.{}.{}", 64 + fastrand::u8(..64), fastrand::u8(..));
        let machine = format!("{network}.2");
        net.run(|| {
            silent_network();
            ip(&format!("addr add {network}.1/24 dev silent"));
            ip(&format!("neigh add {machine} lladdr 02:00:00:00:00:02 dev silent"));
        });
        net.run(|| {
            let (pids, run) = watch(vec![actor(move || {
                let away = Tcp::v4().nonblocking();
                assert!(away.connect(addr(&machine, 80)).is_err());
                assert!(recv(away.0.as_raw_fd(), 1, libc::MSG_WAITALL).is_err());
                let local = Pair::new("127.0.0.1");
                send(local.client(), b"abc", 0).unwrap();
                wait_for_data(local.server());
                assert_eq!(recv(local.server(), 3, libc::MSG_DONTWAIT), Ok(3));
            })]);
            let row = row(&run, pids[0]);
            assert_eq!((&row["calls"], &row["verdict"]), (&2.into(), &"safe".into()), "{row}");
            assert_eq!(rows(&run).len(), 1);
        });
    });
}
