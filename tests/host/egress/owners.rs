// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whose packets they are.

use std::io::{IoSlice, IoSliceMut};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::*;
use crate::support::Actor;

/// The last table's rows of an address.
fn rows_of(run: &Run, daddr: &str) -> Vec<Value> {
    totals(run).into_iter().filter(|row| row["daddr"] == daddr).collect()
}

/// How long it takes until a packet's socket has an owner, at most: an interval or two.
fn learned() {
    let emulated = std::env::var_os("BPFTK_VM").is_some();
    thread::sleep(Duration::from_millis(if emulated { 6000 } else { 1500 }));
}

#[test]
fn processes_that_live_for_a_moment_are_found() {
    if !root() {
        return;
    }
    let wire = wire();
    const PROCESSES: usize = 60;
    for backend in backends() {
        let args = ["tc-egress", "near", "--by", "dst,process,user,cgroup", "--backend", backend];
        let run = wire.start(&[&args[..], &["--only", "10.0.0.0/8"]].concat());
        let to = SocketAddr::from(([10, 0, 0, 1], 9));
        // Each is a process of its own, which makes a socket, sends and is gone.
        let mut pids = wire.near.run(|| {
            let one = || {
                let mut actor = Actor::new(|_| send(to, 2));
                actor.go();
                let pid = actor.pid();
                actor.finish();
                pid
            };
            (0..PROCESSES).map(|_| one()).collect::<Vec<_>>()
        });
        learned();
        let run = run.stop();
        adds_up(&run);
        let rows = rows_of(&run, "10.0.0.1");
        let mut found: Vec<u32> = rows
            .iter()
            .filter(|row| row["owner"] == "process")
            .map(|row| row["pid"].as_u64().unwrap() as u32)
            .collect();
        pids.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, pids, "{backend} {} {}", run.stdout, run.stderr);
        for row in &rows {
            assert_eq!((&row["packets"], &row["uid"]), (&2.into(), &0.into()), "{row}");
            assert!(row["comm"].is_string() && row["cgroup"].is_string(), "{row}");
        }
        let summary = run.summary();
        assert_eq!(summary["process_packets"], 2 * PROCESSES, "{}", run.stdout);
        assert_eq!(
            (&summary["unknown_packets"], &summary["forwarded_packets"]),
            (&0.into(), &0.into())
        );
    }
}

#[test]
fn sockets_that_are_older_than_bpftk_are_found() {
    if !root() {
        return;
    }
    let wire = wire();
    let own = u64::from(std::process::id());
    let old = wire.near.run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    let listener = wire.near.run(|| TcpListener::bind((NEAR4, 5000)).unwrap());
    for backend in backends() {
        let run =
            wire.start(&["tc-egress", "near", "--by", "dst,proto,process", "--backend", backend]);
        for _ in 0..20 {
            old.send_to(b"payload", ("10.0.0.2", 9)).unwrap();
        }
        // An accepted socket, which nobody made by a system call.
        let client = wire.far.run(|| TcpStream::connect((NEAR4, 5000)).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        for _ in 0..5 {
            std::io::Write::write_all(&mut server, b"answer").unwrap();
            thread::sleep(Duration::from_millis(10));
        }
        learned();
        drop((client, server));
        settle();
        let run = run.stop();
        let rows = rows_of(&run, "10.0.0.2");
        assert_eq!(rows.len(), 1, "{backend} {}", run.stdout);
        assert_eq!(
            (&rows[0]["pid"], &rows[0]["packets"]),
            (&own.into(), &20.into()),
            "{}",
            rows[0]
        );
        let answers: u64 = rows_of(&run, FAR4)
            .iter()
            .filter(|row| row["proto"] == "tcp" && row["pid"] == own)
            .map(|row| row["packets"].as_u64().unwrap())
            .sum();
        assert!(answers >= 6, "{backend} {answers} {} {}", run.stdout, run.stderr);
    }
}

#[test]
fn what_no_process_sent_is_the_kernels_or_forwarded() {
    if !root() {
        return;
    }
    let wire = wire();
    let inner = Netns::new();
    wire.near.run(|| {
        ip(&format!("link add inside type veth peer name eth0 netns {}", inner.path()));
        addresses("inside", "172.20.0.1", "fd00:20::1");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    });
    inner.run(|| {
        addresses("eth0", "172.20.0.2", "fd00:20::2");
        ip("route add default via 172.20.0.1");
        send(SocketAddr::from(([10, 9, 9, 9], 9)), 3);
    });
    thread::sleep(Duration::from_millis(500));
    for backend in backends() {
        let args = ["tc-egress", "near", "--by", "dst,proto,process", "--backend", backend];
        let run = wire.start(&args);
        inner.run(|| send(SocketAddr::from(([10, 9, 9, 8], 9)), 25));
        // The kernel answers that nobody listens.
        wire.far.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            socket.connect((NEAR4, 7)).unwrap();
            let _ = socket.send(b"x");
        });
        settle();
        let run = run.stop();
        let owner = |daddr: &str, proto: &str| {
            let rows = rows_of(&run, daddr);
            let row = rows.iter().find(|row| row["proto"] == proto);
            let row = row.unwrap_or_else(|| panic!("no {proto} to {daddr} in {}", run.stdout));
            assert!(row["pid"].is_null() && row["comm"].is_null(), "{row}");
            row["owner"].as_str().unwrap().to_string()
        };
        assert_eq!(owner("10.9.9.8", "udp"), "forwarded", "{backend}");
        assert_eq!(owner(FAR4, "icmp"), "kernel", "{backend}");
        assert_eq!(run.summary()["forwarded_packets"], 25, "{}", run.stdout);
        adds_up(&run);
    }
}

/// The last table's only row of an address, with who sent it.
fn owner_of(run: &Run, daddr: &str) -> (u64, u64) {
    let rows = rows_of(run, daddr);
    let [row] = rows.as_slice() else { panic!("{daddr}: {} {}", run.stdout, run.stderr) };
    assert_eq!(row["owner"], "process", "{row}");
    (row["pid"].as_u64().unwrap(), row["packets"].as_u64().unwrap())
}

#[test]
fn a_socket_that_was_passed_on_is_its_senders() {
    if !root() {
        return;
    }
    let wire = wire();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inbox");
    for backend in backends() {
        let run = wire.start(&["tc-egress", "near", "--by", "dst,process", "--backend", backend]);
        let mut heir = Actor::new(|stage| {
            let inbox = UnixDatagram::bind(&path).unwrap();
            stage.put(1);
            let socket = UdpSocket::from(passed(&inbox));
            // As its maker, the test, does not.
            for _ in 0..9 {
                socket.send_to(b"payload", ("10.0.0.3", 9)).unwrap();
            }
            stage.pause();
        });
        heir.go();
        assert_eq!(heir.get(), 1);
        let socket = wire.near.run(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
        let outbox = UnixDatagram::unbound().unwrap();
        outbox.connect(&path).unwrap();
        let fds = [socket.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let text = [IoSlice::new(b"!")];
        sendmsg::<()>(outbox.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).unwrap();
        learned();
        let run = run.stop();
        assert_eq!(owner_of(&run, "10.0.0.3"), (heir.pid().into(), 9), "{backend}");
        heir.go();
        heir.finish();
        std::fs::remove_file(&path).unwrap();
    }
}

fn passed(inbox: &UnixDatagram) -> OwnedFd {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let fd = inbox.as_raw_fd();
    let message = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
    match message.cmsgs().unwrap().next() {
        // SAFETY: just received.
        Some(ControlMessageOwned::ScmRights(fds)) => unsafe { OwnedFd::from_raw_fd(fds[0]) },
        other => panic!("{other:?}"),
    }
}

#[test]
fn processes_of_other_pid_namespaces_have_the_ids_of_ours() {
    if !root() {
        return;
    }
    let wire = wire();
    for backend in backends() {
        let run = wire.start(&["tc-egress", "near", "--by", "dst,process", "--backend", backend]);
        let mut actor = wire.near.run(|| {
            Actor::new(|stage| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).unwrap();
                // SAFETY: the child makes system calls and ends.
                match unsafe { nix::unistd::fork() }.unwrap() {
                    nix::unistd::ForkResult::Child => {
                        send(SocketAddr::from(([10, 0, 0, 4], 9)), 5);
                        let own = nix::unistd::getpid().as_raw();
                        // SAFETY: ends this process, and nothing of the other.
                        unsafe { libc::_exit(if own == 1 { 0 } else { 1 }) };
                    }
                    nix::unistd::ForkResult::Parent { child } => {
                        stage.put(child.as_raw().into());
                        let status = nix::sys::wait::waitpid(child, None).unwrap();
                        let good = nix::sys::wait::WaitStatus::Exited(child, 0);
                        assert_eq!(status, good, "it calls itself 1");
                    }
                }
            })
        });
        actor.go();
        let child = actor.get() as u64;
        actor.finish();
        learned();
        let run = run.stop();
        assert_eq!(owner_of(&run, "10.0.0.4"), (child, 5), "{backend}");
    }
}

#[test]
fn the_table_names_processes_and_the_share_that_is_known() {
    if !root() {
        return;
    }
    let wire = wire();
    let args = ["tc-egress", "near", "--by", "process", "-v", "-i", "10s", "--only", "10.0.0.0/8"];
    let run = wire.near.run(|| crate::support::Running::spawn(&mut crate::support::bpftk(&args)));
    wire.near.run(|| send(SocketAddr::from(([10, 0, 0, 1], 9)), 8));
    learned();
    let run = run.stop();
    let own = format!("/{} ", std::process::id());
    let line = run.stdout.lines().find(|line| line.contains(&own));
    let line = line.unwrap_or_else(|| panic!("no {own} in {}", run.stdout));
    assert_eq!(line.split_whitespace().nth(1), Some("8"), "{}", run.stdout);
    assert!(run.stderr.contains("100.0 % of 8 packets of processes attributed"), "{}", run.stderr);
}
