// SPDX-License-Identifier: MIT OR Apache-2.0

//! Network namespaces that live as long as a test.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::within;

/// Runs `ip` in the calling thread's namespace. A link that was set up is up when this returns.
pub(crate) fn ip(args: &str) {
    let run = |args: &str| {
        let output =
            Command::new("ip").args(args.split_whitespace()).output().expect("ip is installed");
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(args);
    // Both ends of a pair have to be up. Then the kernel gives each its queue (net/sched/sch_generic.c, dev_activate), from a work
    // queue, which may take a second on a busy machine: until then it drops what is sent.
    if args.split_whitespace().any(|word| word == "up") {
        let idle = |line: &str| line.contains("LOWER_UP") && line.contains(" qdisc noop ");
        let ready = || !run("-oneline link show up").lines().any(idle);
        assert!(within(30, ready), "{}", run("-oneline link show up"));
    }
}

/// Gives the calling thread's namespace a network, 203.0.113.0/24, where what is sent to 203.0.113.2 gets no answer:
/// it goes to a hardware address that nobody has.
pub(crate) fn silent_network() {
    ip("link add silent type veth peer name nobody");
    ip("addr add 203.0.113.1/24 dev silent");
    ip("link set silent up");
    ip("link set nobody up");
    ip("neigh add 203.0.113.2 lladdr 02:00:00:00:00:02 dev silent");
}

/// A network namespace without a name: it is gone when nothing uses it any more, however the test ends.
#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
}

impl Netns {
    /// A new namespace, its loopback up.
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            ip("link set lo up");
            // The thread's own entry: the process's is its first thread's.
            sender
                .send(File::open("/proc/thread-self/ns/net").expect("a thread has a namespace"))
                .unwrap();
        })
        .join()
        .expect("the namespace is made");
        Self { file: receiver.recv().unwrap() }
    }

    /// Runs `work` in the namespace, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may enter it");
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A path that names the namespace while this value lives.
    pub(crate) fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}
