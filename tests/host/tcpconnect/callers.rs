// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whoever connects, and how: the row is the caller's.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::thread;

use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;
use nix::sys::socket::SockaddrLike;
use nix::unistd::gettid;

use super::{assert_row, text, with_backends};
use crate::support::{Cgroup, Tcp, ip};

#[test]
fn the_row_names_the_calling_thread() {
    with_backends(|traced| {
        let ((tid, netns), rows, _) = traced.trace(&[], || {
            let (_listener, to) = Tcp::listen("127.0.0.1");
            let netns = std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
            thread::scope(|scope| {
                thread::Builder::new()
                    .name("conn-thread".into())
                    .spawn_scoped(scope, || {
                        Tcp::v4().connect(to).unwrap();
                        (gettid().as_raw() as u64, netns)
                    })
                    .unwrap()
                    .join()
                    .unwrap()
            })
        });
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!(row["pid"], std::process::id());
        assert_eq!((&row["tid"], &row["netns"]), (&tid.into(), &netns.into()));
        assert_eq!((&row["comm"], &row["uid"]), (&"conn-thread".into(), &0.into()));
        // proc_pid_cgroup(5): the line of cgroup v2 begins with `0::`.
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        if let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::")) {
            assert_eq!(row["cgroup"], path);
        }
        let time: jiff::Timestamp = text(&row["time"]).parse().unwrap();
        let age = jiff::Timestamp::now().duration_since(time);
        assert!(age.as_secs() >= 0 && age.as_secs() < 120, "{row}");
    });
}

#[test]
fn fifty_threads_at_once() {
    // Under software emulation a connect takes long enough.
    let each = if crate::support::emulated() { 40 } else { 200 };
    with_backends(|traced| {
        let (mut made, rows, _) = traced.trace(&[], || {
            let (listener, to) = Tcp::listen("127.0.0.1");
            let made = thread::scope(|scope| {
                let threads: Vec<_> = (0..50)
                    .map(|_| {
                        scope.spawn(|| {
                            (0..each)
                                .map(|_| {
                                    let socket = Tcp::v4();
                                    // A reset at close: no port stays in TIME_WAIT, no accept queue fills up.
                                    socket.option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
                                    let _ = socket.connect(SocketAddr::new(to.ip(), 1));
                                    gettid().as_raw() as u64
                                })
                                .collect::<Vec<_>>()
                        })
                    })
                    .collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            drop(listener);
            made
        });
        assert_eq!(rows.len(), 50 * each);
        let mut tids: Vec<_> = rows.iter().map(|row| row["tid"].as_u64().unwrap()).collect();
        tids.sort_unstable();
        made.sort_unstable();
        assert_eq!(tids, made, "each row has its caller's thread");
    });
}

#[test]
fn a_process_in_a_pid_namespace_has_the_id_that_we_know_it_by() {
    with_backends(|traced| {
        let (_, rows, _) = traced.trace(&[], || {
            let (_listener, to) = Tcp::listen("127.0.0.1");
            let script = format!("echo $$; exec 3<>/dev/tcp/127.0.0.1/{}", to.port());
            let output = Command::new("unshare")
                .args(["--pid", "--fork", "bash", "-c", &script])
                .output()
                .expect("unshare is installed");
            assert!(output.status.success());
            assert_eq!(output.stdout, b"1\n", "it is the first process of its namespace");
        });
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0]["comm"], "bash");
        assert!(rows[0]["pid"].as_u64().unwrap() > 1, "{}", rows[0]);
    });
}

#[test]
fn fast_open_connects_by_sending() {
    with_backends(|traced| {
        let (to, rows, _) = traced.trace(&[], || {
            let (listener, to) = Tcp::listen("127.0.0.1");
            listener.option(libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 5);
            assert_eq!(Tcp::v4().fast_open(to, b"hello").unwrap(), 5);
            assert_eq!(
                Tcp::v4().fast_open("192.0.2.1:80".parse().unwrap(), b"x"),
                Err(Errno::ENETUNREACH)
            );
            // Deferred: connect() returns at once, the first write sends the SYN.
            let deferred = Tcp::v4();
            deferred.option(libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1);
            deferred.connect(to).unwrap();
            nix::unistd::write(&deferred.0, b"hello").unwrap();
            to
        });
        let results: Vec<_> =
            rows.iter().map(|row| (text(&row["result"]), row["dport"].clone())).collect();
        let port = serde_json::Value::from(to.port());
        assert_eq!(results, [("ok", port.clone()), ("ENETUNREACH", 80.into()), ("ok", port)]);
    });
}

/// Sends a byte to `to` by the call of this number, with MSG_FASTOPEN.
fn fast_open_by(call: libc::c_long, socket: &Tcp, to: SocketAddr) -> Result<i64, Errno> {
    let addr = crate::support::sockaddr(to);
    let mut byte = *b"x";
    let mut piece = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: zero bytes are valid for both.
    let mut messages: [libc::mmsghdr; 2] = unsafe { std::mem::zeroed() };
    for message in &mut messages {
        message.msg_hdr.msg_iov = &raw mut piece;
        message.msg_hdr.msg_iovlen = 1;
    }
    messages[0].msg_hdr.msg_name = addr.as_ptr().cast_mut().cast();
    messages[0].msg_hdr.msg_namelen = addr.len();
    let (fd, flags) = (socket.0.as_raw_fd(), libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL);
    // SAFETY: what the arguments point to lives until the call is back.
    Errno::result(unsafe {
        match call {
            libc::SYS_sendto => {
                libc::syscall(call, fd, byte.as_ptr(), 1, flags, addr.as_ptr(), addr.len())
            }
            libc::SYS_sendmsg => libc::syscall(call, fd, &raw const messages[0].msg_hdr, flags),
            _ => libc::syscall(call, fd, messages.as_mut_ptr(), 2, flags),
        }
    })
}

#[test]
fn each_call_that_sends_can_connect() {
    with_backends(|traced| {
        let (ports, rows, _) = traced.trace(&[], || {
            [libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg].map(|call| {
                let (listener, to) = Tcp::listen("127.0.0.1");
                listener.option(libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 5);
                assert!(fast_open_by(call, &Tcp::v4(), to).unwrap() >= 1);
                let nowhere = SocketAddr::new("192.0.2.1".parse().unwrap(), to.port());
                assert_eq!(fast_open_by(call, &Tcp::v4(), nowhere), Err(Errno::ENETUNREACH));
                to.port()
            })
        });
        let results: Vec<_> = rows
            .iter()
            .map(|row| (text(&row["result"]), row["dport"].as_u64().unwrap() as u16))
            .collect();
        let expected: Vec<_> =
            ports.iter().flat_map(|port| [("ok", *port), ("ENETUNREACH", *port)]).collect();
        assert_eq!(results, expected);
    });
}

/// Submits one connect, and gives what completes it.
fn uring_connect(ring: &mut IoUring, socket: &Tcp, to: SocketAddr, punt: bool) -> i32 {
    let addr = crate::support::sockaddr(to);
    let (pointer, length) = (addr.as_ptr(), addr.len());
    let mut entry =
        opcode::Connect::new(types::Fd(socket.0.as_raw_fd()), pointer.cast(), length).build();
    if punt {
        // Never on the submitting thread: by a worker.
        entry = entry.flags(io_uring::squeue::Flags::ASYNC);
    }
    // SAFETY: the address lives until the completion that is waited for below.
    unsafe { ring.submission().push(&entry) }.unwrap();
    ring.submit_and_wait(1).unwrap();
    ring.completion().next().expect("one completion").result()
}

#[test]
fn io_uring_connects_are_their_submitters() {
    if IoUring::new(4).is_err() {
        println!("SKIP io_uring is forbidden or missing here");
        return;
    }
    for punt in [false, true] {
        with_backends(|traced| {
            let ((), rows, _) = traced.trace(&[], || {
                let mut ring = IoUring::new(4).unwrap();
                let (_listener, open) = Tcp::listen("127.0.0.1");
                assert_eq!(uring_connect(&mut ring, &Tcp::v4(), open, punt), 0);
                let refused = "127.0.0.1:1".parse().unwrap();
                assert_eq!(
                    uring_connect(&mut ring, &Tcp::v4(), refused, punt),
                    -libc::ECONNREFUSED
                );
                let no_route = "192.0.2.1:80".parse().unwrap();
                assert_eq!(
                    uring_connect(&mut ring, &Tcp::v4(), no_route, punt),
                    -libc::ENETUNREACH
                );
                // Fails after SYN_SENT, before the first packet.
                let first = Tcp::v4();
                first.option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
                first.bind("127.0.0.1:0".parse().unwrap());
                let second = Tcp::v4();
                second.option(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
                second.bind(first.local());
                assert_eq!(uring_connect(&mut ring, &first, open, punt), 0);
                assert_eq!(uring_connect(&mut ring, &second, open, punt), -libc::EADDRNOTAVAIL);
            });
            let results: Vec<_> = rows.iter().map(|row| text(&row["result"])).collect();
            assert_eq!(
                results,
                ["ok", "ECONNREFUSED", "ENETUNREACH", "ok", "EADDRNOTAVAIL"],
                "{rows:?}"
            );
            for row in &rows {
                assert_eq!(row["pid"], std::process::id(), "{row}");
                assert!(!text(&row["comm"]).starts_with("iou-wrk"), "{row}");
            }
            assert_eq!(rows[2]["daddr"], "192.0.2.1");
            // Of what fails at once, the tracepoints show the end alone.
            let latency = rows[2]["latency_us"].as_f64();
            assert_eq!(latency.is_none(), traced.backend == "tracepoint", "{}", rows[2]);
            assert!(latency.is_none_or(|us| us > 0.0), "{}", rows[2]);
        });
    }
}

#[test]
fn mptcp_is_one_row() {
    with_backends(|traced| {
        let (made, rows, _) = traced.trace(&[], || {
            let (_listener, open) = Tcp::listen("127.0.0.1");
            let socket = Tcp::mptcp()?;
            socket.connect(open).unwrap();
            assert_eq!(
                Tcp::mptcp().unwrap().connect("127.0.0.1:1".parse().unwrap()),
                Err(Errno::ECONNREFUSED)
            );
            assert_eq!(
                Tcp::mptcp().unwrap().connect("192.0.2.1:80".parse().unwrap()),
                Err(Errno::ENETUNREACH)
            );
            Some(open)
        });
        let Some(open) = made else {
            println!("SKIP this kernel has no MPTCP");
            return;
        };
        let results: Vec<_> = rows.iter().map(|row| text(&row["result"])).collect();
        assert_eq!(results, ["ok", "ECONNREFUSED", "ENETUNREACH"], "{rows:?}");
        assert_eq!(rows[0]["dport"], open.port());
        assert!(rows.iter().all(|row| row["pid"] == std::process::id()), "{rows:?}");
    });
}

#[test]
fn a_softirq_does_not_change_whose_row_it_is() {
    with_backends(|traced| {
        let (made, rows, _) = traced.trace(&[], || {
            // Two namespaces: the answer crosses a veth and arrives in a softirq.
            let far = crate::support::Netns::new();
            ip("link add near type veth peer name far");
            ip("addr add 203.0.113.1/24 dev near");
            ip("link set near up");
            ip(&format!("link set far netns {}", far.path()));
            let (_listener, to) = far.run(|| {
                ip("addr add 203.0.113.2/24 dev far");
                ip("link set far up");
                Tcp::listen("203.0.113.2")
            });
            let socket = Tcp::v4();
            socket.connect(to).unwrap();
            (socket.local(), to, gettid().as_raw() as u64)
        });
        let (from, to, tid) = made;
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_row(&rows[0], Some(from), to, "ok");
        assert_eq!(rows[0]["tid"], tid);
    });
}

/// A cgroup program that lets nobody connect over IPv4.
fn forbid_connects(cgroup: &Cgroup) {
    use libbpf_rs::libbpf_sys;
    // r0 = 0; exit
    let instructions: [u64; 2] = [0xb7, 0x95];
    let mut opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: libbpf_sys::BPF_CGROUP_INET4_CONNECT,
        ..Default::default()
    };
    let directory = std::fs::File::open(cgroup.path()).unwrap();
    // SAFETY: two instructions, C strings, options of the size that they state, and descriptors that are open.
    let attached = unsafe {
        let program = libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
            c"forbid".as_ptr(),
            c"GPL".as_ptr(),
            instructions.as_ptr().cast(),
            2,
            &mut opts,
        );
        assert!(program >= 0, "{program}");
        let attached = libbpf_sys::bpf_prog_attach(
            program,
            directory.as_raw_fd(),
            libbpf_sys::BPF_CGROUP_INET4_CONNECT,
            0,
        );
        libc::close(program);
        attached
    };
    assert_eq!(attached, 0);
}

#[test]
fn what_a_cgroup_program_forbids_is_told() {
    with_backends(|traced| {
        let name = format!("bpftk-deny-{}-{}", std::process::id(), traced.backend);
        let Some(cgroup) = Cgroup::new(&name) else {
            println!("SKIP cgroup v2 is not mounted");
            return;
        };
        // It goes with the cgroup.
        forbid_connects(&cgroup);
        let (_, rows, _) = traced.trace(&[], || {
            let script = "echo $$ > \"$0/cgroup.procs\"; exec 3<>/dev/tcp/192.0.2.1/80";
            Command::new("bash").args(["-c", script]).arg(cgroup.path()).output().expect("bash")
        });
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_row(&rows[0], None, "192.0.2.1:80".parse().unwrap(), "EPERM");
        // The real time, or none; but not 0.
        assert_ne!(rows[0]["latency_us"].as_f64(), Some(0.0), "{}", rows[0]);
        assert_eq!(rows[0]["comm"], "bash");
    });
}
