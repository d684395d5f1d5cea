// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sockredir`: no byte is lost, reordered or given to somebody else, whatever the two ends do. Each test of that is shown to
//! fail with a build that does what the usual examples do (tests/bpf/sockmap_naive.bpf.c).
//!
//! The test process moves into a cgroup of its own for as long as a test runs, and its connections are in network namespaces
//! of its own: nobody else's are touched.

mod boundary;
mod chains;
mod close;
mod content;
mod differences;
mod early;
mod guard;
mod half_close;
mod learning;
mod lifecycle;
mod memory;
mod naive;
mod namespaces;
mod options;
mod order;
mod overlap;
mod postgres;
mod programs;
mod queue;
mod readers;
mod reconnect;
mod refusals;
mod work;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use self::naive::Naive;
use crate::support::{Cgroup, Netns, Running, bpftk, output, root, stderr};

/// Where a test's connections are.
struct Place {
    net: Netns,
    cgroup: Cgroup,
    /// The cgroup that the process came from.
    home: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// The process can be in one cgroup at a time.
static ALONE: Mutex<()> = Mutex::new(());

impl Place {
    /// `None` where the test can't be done; it is said why.
    fn new() -> Option<Self> {
        let place = Self::without_bpftk()?;
        let output = output(&["sockredir", "--cgroup", place.path(), "--no-guard", "-d", "10ms"]);
        match output.status.code() {
            Some(0) => Some(place),
            Some(4) if !stderr(&output).contains("refuses the programs") => {
                println!("SKIP {}", stderr(&output).trim());
                None
            }
            _ => panic!("sockredir: {}", stderr(&output)),
        }
    }

    fn without_bpftk() -> Option<Self> {
        if !root() {
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("bpftk-test-{}", std::process::id());
        let Some(cgroup) = Cgroup::new(&name) else {
            println!("SKIP cgroup v2 is not mounted here");
            return None;
        };
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).expect("cgroup v2");
        let mount = cgroup.path().parent().unwrap();
        let home = mount.join(own.trim_start_matches('/'));
        let place = Self { net: Netns::new(), cgroup, home, _alone: alone };
        enter(place.cgroup.path());
        Some(place)
    }

    fn path(&self) -> &str {
        self.cgroup.path().to_str().unwrap()
    }

    /// A bpftk for these connections, whatever is done with them.
    fn start(&self, args: &[&str]) -> Running {
        self.learning(&[&["--no-guard"], args].concat())
    }

    /// The same with its guard, which lets everybody in at once.
    fn guarded(&self, args: &[&str]) -> Running {
        self.learning(&[&["--learn", "0"], args].concat())
    }

    /// The same with its guard as it is without options: it watches before it lets in.
    fn learning(&self, args: &[&str]) -> Running {
        let all = [&["sockredir", "--cgroup", self.path()], args].concat();
        Running::json(&all)
    }

    fn naive(&self, lenient: bool) -> Naive {
        Naive::attach(self.cgroup.path(), lenient)
    }

    /// Does `work` in the network namespace.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.net.run(work)
    }

    /// Packets of the loopback are handled on whichever processor, so that a client is connected before its server is.
    fn spread(&self) {
        self.run(|| {
            // sysfs shows the devices of the namespace that it is mounted in.
            unshare(CloneFlags::CLONE_NEWNS).expect("root may make a mount namespace");
            let none = None::<&Path>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).unwrap();
            fs::write("/sys/class/net/lo/queues/rx-0/rps_cpus", "3").expect("the kernel has RPS");
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        enter(&self.home);
    }
}

/// Moves this process.
fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), "0").expect("root may move processes");
}

/// Under software emulation there are fewer rounds.
fn rounds(many: usize) -> usize {
    if std::env::var_os("BPFTK_VM").is_some() { many / 10 } else { many }
}

/// What `bpftk sockredir` says to this, and with which status.
fn refused(args: &[&str]) -> (i32, String) {
    let output = bpftk(&[&["sockredir"], args].concat()).output().expect("bpftk runs");
    (output.status.code().unwrap(), stderr(&output))
}
