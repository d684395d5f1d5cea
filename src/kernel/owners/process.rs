// SPDX-License-Identifier: MIT OR Apache-2.0

//! Processes: who they are by the kernel's records, and what /proc adds while they live.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::rc::Rc;

use super::Record;
use crate::kernel::cgroup::Paths;
use crate::output::bytes_to_string;

/// A process, and no other that got its id later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity {
    /// In the initial PID namespace.
    pub(crate) tgid: u32,
    /// CLOCK_BOOTTIME.
    pub(crate) start_ns: u64,
}

/// What is known of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) id: Identity,
    /// Of its first thread: the program's, unless the program says otherwise.
    pub(crate) comm: String,
    /// Nothing when it was gone before /proc could be read.
    pub(crate) exe: Option<String>,
    /// Real user id.
    pub(crate) uid: u32,
    pub(crate) cgroup_id: u64,
    /// Below the root of cgroup v2. Nothing when the cgroup is gone.
    pub(crate) cgroup: Option<String>,
}

#[derive(Debug)]
pub(super) struct Processes {
    known: HashMap<Identity, Rc<Process>>,
    paths: Paths,
}

impl Processes {
    pub(super) fn new(paths: Paths) -> Self {
        Self { known: HashMap::new(), paths }
    }

    /// The process of `record`, looked at now if it is new, or became another program since.
    pub(super) fn see(&mut self, record: &Record) -> Rc<Process> {
        let comm = bytes_to_string(&record.comm);
        let before = self.known.get(&record.process);
        if let Some(known) = before
            && (&known.comm, known.uid, known.cgroup_id) == (&comm, record.uid, record.cgroup_id)
        {
            return Rc::clone(known);
        }
        let exe = exe_of(record.process)
            // Gone by now: the same program as before, if it still calls itself that.
            .or_else(|| before.filter(|known| known.comm == comm)?.exe.clone());
        let process = Rc::new(Process {
            id: record.process,
            comm,
            exe,
            uid: record.uid,
            cgroup_id: record.cgroup_id,
            cgroup: self.paths.get(record.cgroup_id),
        });
        self.known.insert(record.process, Rc::clone(&process));
        process
    }

    /// What is known of the same process by now.
    pub(super) fn latest(&self, process: &Rc<Process>) -> Rc<Process> {
        Rc::clone(self.known.get(&process.id).unwrap_or(process))
    }

    pub(super) fn keep(&mut self, used: &HashSet<Identity>) {
        self.known.retain(|process, _| used.contains(process));
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

/// The program that a process runs. Nothing when it is gone, or when we see other ids than the initial PID namespace's.
fn exe_of(process: Identity) -> Option<String> {
    let dir = format!("/proc/{}", process.tgid);
    let exe = fs::read_link(format!("{dir}/exe")).ok()?;
    // After the link was read: then it was this process's, and not that of another with the same id.
    let stat = fs::read_to_string(format!("{dir}/stat")).ok()?;
    (start_of(&stat)? == process.start_ns / CLOCK_TICK_NS)
        .then(|| exe.to_string_lossy().into_owned())
}

/// fs/proc/array.c: start times are in hundredths of a second on every architecture that bpftk knows (USER_HZ).
const CLOCK_TICK_NS: u64 = 1_000_000_000 / 100;

/// proc_pid_stat(5): field 22. The name, in parentheses, may have anything in it.
fn start_of(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
pub(super) fn identity_of(pid: u32) -> Option<(u32, u64)> {
    Some((pid, start_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))
}

/// What the kernel's nanoseconds are in /proc's units.
#[cfg(test)]
pub(super) fn in_ticks(process: Identity) -> (u32, u64) {
    (process.tgid, process.start_ns / CLOCK_TICK_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_are_found_whatever_the_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for name in ["sh", "a b", ") (", ") S 1 2 3"] {
            assert_eq!(start_of(&format!("77 ({name}) {rest}")), Some(4711), "{name}");
        }
        assert_eq!(start_of("77 (sh"), None);
        assert_eq!(start_of("77 (sh) S 1"), None);
    }

    #[test]
    fn a_program_is_told_only_of_the_same_process() {
        let pid = std::process::id();
        let (_, ticks) = identity_of(pid).unwrap();
        let exe = std::env::current_exe().unwrap().to_string_lossy().into_owned();
        let id = Identity { tgid: pid, start_ns: ticks * CLOCK_TICK_NS + 5 };
        assert_eq!(exe_of(id), Some(exe));
        assert_eq!(exe_of(Identity { start_ns: id.start_ns + CLOCK_TICK_NS, ..id }), None);
    }
}
