// SPDX-License-Identifier: MIT OR Apache-2.0

//! What preflight watches for, watched while connections are redirected: a program that does what redirection changes
//! is kept out from then on, by itself where it connects, and by the ports of the connections on which it did so.
//!
//! New connections are kept out by the kernel's side alone, before the call that was the reason is done. Existing ones
//! are handed over to TCP when its news arrive here, some milliseconds later.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::preflight::{is_blind, port_list, reasons_of};
use crate::kernel::btf::BtfSource;
use crate::kernel::preflight::{Config, News, Process, ProcessKey, Reason, Shared, Verdict, Watch};
use crate::kernel::sockredir::Redirector;
use crate::kernel::task_filter::TaskFilter;
use crate::output::bytes_to_string;
use crate::values::PortSet;

/// To hand connections over takes a look at each: at most one part in so many of the time.
const SHARE: u32 = 10;

/// Sentences that are remembered, so as not to be said twice; after that, nothing new is said.
const MOST_SAID: usize = 1000;

/// Ports that a sentence has.
const MOST_NAMED: usize = 20;

/// The ports whose connections are redirected at all.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) only: Option<PortSet>,
    pub(super) not: Option<PortSet>,
}

impl Wanted {
    fn has(&self, port: u16) -> bool {
        self.only.as_ref().is_none_or(|ports| ports.has(port))
            && !self.not.as_ref().is_some_and(|ports| ports.has(port))
    }
}

#[derive(Debug)]
pub(super) struct Guard {
    watch: Watch,
    wanted: Wanted,
    /// What was said, without ids: a server that forks for each connection is one program.
    said: HashSet<String>,
    /// Processes that were told of, with the ports that were.
    told: HashMap<ProcessKey, BTreeSet<u16>>,
    found: usize,
    /// That there was no room for a process has been told.
    full: bool,
    /// Ports that are known to be kept out.
    ports: BTreeSet<u16>,
    handing_over: Pace,
}

/// When connections are to be handed over.
#[derive(Debug)]
struct Pace {
    due: bool,
    not_before: Instant,
}

impl Pace {
    fn is_due(&self, now: Instant) -> bool {
        self.due && now >= self.not_before
    }

    fn was_done(&mut self, now: Instant, took: Duration) {
        *self = Self { due: false, not_before: now + took * SHARE };
    }
}

impl Guard {
    /// Watches the processes of `cgroup`, or all.
    pub(super) fn arm(btf: BtfSource, cgroup: Option<&File>, wanted: Wanted) -> Result<Self> {
        let cgroup =
            cgroup.map(File::try_clone).transpose().context("cannot keep the cgroup open")?;
        let tasks = TaskFilter { cgroup, ..TaskFilter::default() };
        let watch = Watch::arm(&Config { btf, tasks, guard: true })
            .context("the guard (--no-guard does without)")?;
        Ok(Self {
            watch,
            wanted,
            said: HashSet::new(),
            told: HashMap::new(),
            found: 0,
            full: false,
            ports: BTreeSet::new(),
            handing_over: Pace { due: false, not_before: Instant::now() },
        })
    }

    /// What the programs of sockredir are to use.
    pub(super) fn shared(&self) -> Shared<'_> {
        self.watch.shared()
    }

    /// Hears what the kernel's side has told, and returns what is to be said of it.
    pub(super) fn hear(&mut self, news: &[News], redirector: &Redirector) -> Result<Vec<String>> {
        let mut ports: BTreeMap<ProcessKey, BTreeSet<u16>> = BTreeMap::new();
        for news in news {
            ports.entry(news.process).or_default().extend(news.port);
        }
        let mut texts = Vec::new();
        for (key, ports) in ports {
            self.handing_over.due |= !ports.is_empty();
            self.ports.extend(&ports);
            // More ports of one that was named are for the next look: there may be many, one after the other.
            if self.told.contains_key(&key) {
                continue;
            }
            // It may have been forgotten, with its end.
            if let Some(mut process) = self.watch.process(key)? {
                process.ports = ports.into_iter().collect();
                texts.extend(self.tell(process));
            }
        }
        self.hand_over(redirector)?;
        Ok(texts)
    }

    /// Looks at everything, and returns what is to be said of what is new.
    pub(super) fn look(&mut self, redirector: Option<&Redirector>) -> Result<Vec<String>> {
        self.watch.refresh()?;
        let mut texts = Vec::new();
        let processes = self.watch.processes()?;
        let known: BTreeSet<ProcessKey> = processes.iter().map(Process::key).collect();
        self.told.retain(|key, _| known.contains(key));
        for process in processes.into_iter().filter(|it| it.verdict() == Verdict::Unsafe) {
            texts.extend(self.tell(process));
        }
        if let Some(redirector) = redirector {
            self.apply(redirector)?;
        }
        let full = self.watch.make_room()?;
        if full && !self.full {
            self.full = true;
            texts.push("warning: the guard has no room for more processes or ports, and may not see what new ones do".into());
        }
        Ok(texts)
    }

    /// What is to be said of a process, once: ports that come later are kept out without a word. Nothing is said of one
    /// that does it only on connections that are not redirected anyway.
    fn tell(&mut self, mut process: Process) -> Option<String> {
        let before = self.told.get(&process.key());
        let ports: BTreeSet<u16> =
            process.ports.iter().chain(before.into_iter().flatten()).copied().collect();
        let matters = |ports: &BTreeSet<u16>| {
            ports.is_empty() || ports.iter().any(|&port| self.wanted.has(port))
        };
        let was_named = before.is_some_and(matters);
        let is_named = matters(&ports);
        process.ports = ports.iter().copied().collect();
        self.told.insert(process.key(), ports);
        if was_named || !is_named {
            return None;
        }
        self.found += 1;
        let why: Vec<Reason> = process.reasons.iter().map(|&(reason, _)| reason).collect();
        let program = format!("{:?} {why:?} {:?}", process.comm, process.ports);
        (self.said.len() < MOST_SAID && self.said.insert(program)).then(|| sentence(&process))
    }

    /// Keeps out what the kernel's side was not sure of, and by now is known to be a server's port.
    pub(super) fn apply(&mut self, redirector: &Redirector) -> Result<()> {
        let told: BTreeSet<u16> = self.told.values().flatten().copied().collect();
        for port in told {
            if self.ports.insert(port) {
                redirector.keep_out(port)?;
                self.handing_over.due = true;
            }
        }
        self.hand_over(redirector)
    }

    /// Leaves connections to TCP that exist and that are kept out by now.
    fn hand_over(&mut self, redirector: &Redirector) -> Result<()> {
        let begin = Instant::now();
        if self.handing_over.is_due(begin) {
            redirector.hand_over()?;
            let now = Instant::now();
            self.handing_over.was_done(now, now - begin);
        }
        Ok(())
    }

    /// How many processes were found.
    pub(super) fn found(&self) -> usize {
        self.found
    }
}

fn sentence(process: &Process) -> String {
    let who = format!("{} ({})", bytes_to_string(&process.comm), process.pid);
    let why = reasons_of(process);
    if process.ports.is_empty() {
        return format!(
            "warning: {who} does what redirection changes: {why}; what it connects to from now on stays with TCP, \
             and no port is known by which to keep out the rest (--cgroup, --exclude-port)"
        );
    }
    let blind = if is_blind(process) { "; what can't be looked into may use others" } else { "" };
    let named = &process.ports[..process.ports.len().min(MOST_NAMED)];
    let more = match process.ports.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} others"),
    };
    format!(
        "{who} does what redirection changes: {why}; connections to port {}{more} stay with TCP from now on{blind}",
        port_list(named)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_handed_over_a_small_part_of_the_time() {
        let begin = Instant::now();
        let mut pace = Pace { due: false, not_before: begin };
        assert!(!pace.is_due(begin));
        pace.due = true;
        assert!(pace.is_due(begin));
        let took = Duration::from_millis(2);
        pace.was_done(begin, took);
        pace.due = true;
        assert!(!pace.is_due(begin + took) && pace.is_due(begin + took * SHARE));
    }
}
