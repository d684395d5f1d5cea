// SPDX-License-Identifier: MIT OR Apache-2.0

//! Refusals that are not a reset: by ICMP, by Landlock, by seccomp.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, getsockopt, sockopt};
use serde_json::Value;

use super::{Traced, assert_row, text, with_backends};
use crate::support::{Actor, Netns, Tcp, ip, seccomp};

/// What a program that waits for its socket is told.
fn outcome(to: SocketAddr) -> i32 {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = Tcp::new(family).nonblocking();
    assert_eq!(socket.connect(to), Err(Errno::EINPROGRESS));
    let mut fds = [PollFd::new(socket.0.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::from(20_000_u16)).unwrap();
    getsockopt(&socket.0, sockopt::SocketError).unwrap()
}

/// Before 5.14 a program on another processor may fetch the error before anybody can look at it.
fn may_be_unknown() -> bool {
    let uname = nix::sys::utsname::uname().unwrap();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) < (Some(5), Some(14))
}

/// A router behind a veth, for 198.51.100.0/24 and 2001:db8:1::/48, which says that they can't be reached.
fn behind_a_router() -> Netns {
    let router = Netns::new();
    ip("link add near type veth peer name far");
    ip("addr add 203.0.113.1/24 dev near");
    ip("-6 addr add 2001:db8::1/64 dev near nodad");
    ip("link set near up");
    ip(&format!("link set far netns {}", router.path()));
    router.run(|| {
        ip("addr add 203.0.113.2/24 dev far");
        ip("-6 addr add 2001:db8::2/64 dev far nodad");
        ip("link set far up");
        for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{forwarding}"), "1").unwrap();
        }
        ip("route add unreachable 198.51.100.0/25");
        ip("route add prohibit 198.51.100.128/25");
        ip("-6 route add unreachable 2001:db8:1::/48");
        // A firewall's refusal, where there is one: the others are a router's.
        if reject_by_nft(81).is_none() {
            println!("nft is not here: no REJECT is tried");
        }
    });
    ip("link set lo up");
    ip("route add 198.51.100.0/24 via 203.0.113.2");
    ip("-6 route add 2001:db8:1::/48 via 2001:db8::2");
    router
}

fn reject_by_nft(port: u16) -> Option<()> {
    let rules = format!(
        "table inet bpftk {{ chain in {{ type filter hook input priority 0; tcp dport {port} reject; }} }}"
    );
    let status = Command::new("nft").arg(rules).stderr(std::process::Stdio::null()).status();
    status.ok()?.success().then_some(())
}

#[test]
fn what_icmp_refuses_has_the_error_that_the_program_got() {
    with_backends(|traced| {
        let (told, rows, _) = traced.trace(&[], || {
            let _router = behind_a_router();
            let mut told = Vec::new();
            for to in
                ["198.51.100.1:80", "198.51.100.200:80", "[2001:db8:1::1]:80", "203.0.113.2:81"]
            {
                let to: SocketAddr = to.parse().unwrap();
                let error = outcome(to);
                assert_ne!(error, 0, "{to}");
                told.push((to, error));
            }
            told
        });
        assert_eq!(rows.len(), told.len(), "{rows:?}");
        for (row, (to, error)) in rows.iter().zip(told) {
            assert_eq!(row["daddr"], to.ip().to_string(), "{row}");
            if may_be_unknown() && row["result"] == "unknown" {
                continue;
            }
            assert_eq!(row["errno"], error, "{row}");
            assert!(row["latency_us"].as_f64().unwrap() > 0.0, "{row}");
        }
    });
}

/// Runs `work` in a process of its own in the namespace of the trace.
fn by_an_actor(traced: &Traced, work: impl FnOnce() -> Vec<i64> + Send) -> (Vec<i64>, Vec<Value>) {
    let (results, rows, _) = traced.trace(&[], || {
        let mut actor = Actor::new(|stage| work().into_iter().for_each(|number| stage.put(number)));
        actor.go();
        actor.finish()
    });
    (results, rows)
}

fn errno_of<T>(result: Result<T, Errno>) -> i64 {
    result.map_or_else(|errno| errno as i64, |_| 0)
}

/// Forbids this process all TCP connects. False where there is no Landlock, or one that does not know of them.
fn landlock() -> bool {
    // include/uapi/linux/landlock.h; struct landlock_ruleset_attr is handled_access_fs and handled_access_net.
    const CONNECT_TCP: u64 = 2;
    let rules: [u64; 2] = [0, CONNECT_TCP];
    // SAFETY: a struct of the size that is stated; what follows is about this process alone.
    unsafe {
        let ruleset = libc::syscall(libc::SYS_landlock_create_ruleset, rules.as_ptr(), 16, 0);
        ruleset >= 0
            && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0) == 0
    }
}

/// Whether the kernel has the tracepoint landlock:landlock_deny_access_net.
fn tells_of_landlock() -> bool {
    // The name of a function that each tracepoint has. Symbols are there for root.
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap();
    symbols.contains("__tracepoint_landlock_deny_access_net")
}

#[test]
fn what_landlock_refuses_is_told() {
    with_backends(|traced| {
        let (results, rows) = by_an_actor(traced, || {
            if !landlock() {
                return Vec::new();
            }
            let to = |port| SocketAddr::new("192.0.2.1".parse().unwrap(), port);
            vec![
                errno_of(Tcp::v4().connect(to(80))),
                // Linux 7.3 refuses these too, and so do stable kernels; before, there is no route.
                errno_of(Tcp::v4().fast_open(to(81), b"x")),
                errno_of(Tcp::v4().fast_open(to(82), b"x")),
            ]
        });
        if results.is_empty() {
            println!("SKIP no Landlock that knows of TCP");
            return;
        }
        // Stable kernels have that from Linux 7.3 without its tracepoint, which alone tells the other back ends.
        let untold = results[1] == i64::from(libc::EACCES)
            && traced.backend != "tracepoint"
            && !tells_of_landlock();
        let told = if untold { 1 } else { 3 };
        assert_eq!(rows.len(), told, "{results:?} {rows:?}");
        for ((row, errno), port) in rows.iter().zip(&results).zip(80..) {
            assert_eq!((&row["errno"], &row["dport"]), (&(*errno).into(), &port.into()), "{row}");
            assert_no_made_up_latency(row);
        }
        println!("{}: {results:?}", traced.backend);
    });
}

/// There is a real one, or none.
fn assert_no_made_up_latency(row: &Value) {
    let latency = &row["latency_us"];
    assert!(latency.is_null() || latency.as_f64().unwrap() > 0.0, "{row}");
}

/// A second connect() on a socket under way only asks how the first went. Its beginning has nothing to remember, and its
/// end is no refusal by the filter that the process has, as in every container.
#[test]
fn who_asks_again_how_it_went_has_one_row() {
    with_backends(|traced| {
        let to: SocketAddr = "198.51.100.1:80".parse().unwrap();
        let (results, rows, _) = traced.trace(&[], || {
            let _router = behind_a_router();
            // It gives up after three seconds.
            std::fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "1").unwrap();
            let mut actor = Actor::new(|stage| {
                assert_eq!(seccomp::answer(libc::SYS_connect, libc::SECCOMP_RET_ALLOW, 0), 0);
                let socket = Tcp::v4().nonblocking();
                assert_eq!(socket.connect(to), Err(Errno::EINPROGRESS));
                let begin = std::time::Instant::now();
                while !is_closed(&socket) && begin.elapsed() < std::time::Duration::from_secs(60) {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                stage.put(errno_of(socket.connect(to)));
            });
            actor.go();
            actor.finish()
        });
        assert_eq!(results, [i64::from(libc::EHOSTUNREACH)]);
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(rows[0]["errno"], libc::EHOSTUNREACH, "{rows:?}");
    });
}

fn is_closed(socket: &Tcp) -> bool {
    const TCP_CLOSE: u8 = 7;
    let (mut info, mut length) = ([0_u8; 8], 8);
    // SAFETY: room for as much as is stated. The first byte is the state.
    let status = unsafe {
        let fd = socket.0.as_raw_fd();
        libc::getsockopt(
            fd,
            libc::SOL_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    status == 0 && info[0] == TCP_CLOSE
}

/// By the tracepoint at a call's end, which is there for calls that seccomp never let in. The other back ends see
/// nothing of it.
#[test]
fn what_seccomp_refuses_is_told_where_it_can_be_seen() {
    with_backends(|traced| {
        let (results, rows) = by_an_actor(traced, || {
            assert_eq!(seccomp::answer(libc::SYS_connect, libc::SECCOMP_RET_ERRNO | 1, 0), 0);
            let to = "192.0.2.1:80".parse().unwrap();
            let socket = Tcp::v4();
            vec![errno_of(socket.connect(to)), socket.0.as_raw_fd().into()]
        });
        assert_eq!(results[0], 1);
        if traced.backend == "tracepoint" {
            assert_eq!(rows.len(), 1, "{rows:?}");
            assert_row(&rows[0], None, "192.0.2.1:80".parse().unwrap(), "EPERM");
            assert_eq!(text(&rows[0]["daddr"]), "192.0.2.1");
            assert!(rows[0]["latency_us"].is_null(), "{}", rows[0]);
        } else {
            assert!(rows.is_empty(), "{rows:?}");
        }
    });
}
