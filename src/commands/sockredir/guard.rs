// SPDX-License-Identifier: MIT OR Apache-2.0

//! What preflight watches for, watched while connections are redirected: a program that does what redirection changes
//! is kept out from then on, by itself where it connects, and by the ports of the connections on which it did so.
//!
//! The kernel's side does it alone, before the call that was the reason is done; here it is told. So it is with programs
//! that are not known yet: the kernel's side lets them in when they were watched for a while.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};

use super::preflight::{is_blind, port_list, reasons_of};
use crate::kernel::btf::BtfSource;
use crate::kernel::preflight::{Config, News, Process, ProcessKey, Reason, Shared, Verdict, Watch};
use crate::kernel::sockredir::Redirector;
use crate::kernel::task_filter::TaskFilter;
use crate::output::bytes_to_string;
use crate::values::PortSet;

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
}

impl Guard {
    /// Watches the processes of `cgroup`, or all; each program for the time of `learn` before it is let in.
    pub(super) fn arm(
        btf: BtfSource,
        cgroup: Option<&File>,
        wanted: Wanted,
        learn: Duration,
    ) -> Result<Self> {
        let cgroup =
            cgroup.map(File::try_clone).transpose().context("cannot keep the cgroup open")?;
        let tasks = TaskFilter { cgroup, ..TaskFilter::default() };
        let watch = Watch::arm(&Config { btf, tasks, guard: true, learn })
            .context("the guard (--no-guard does without)")?;
        Ok(Self {
            watch,
            wanted,
            said: HashSet::new(),
            told: HashMap::new(),
            found: 0,
            full: false,
            ports: BTreeSet::new(),
        })
    }

    /// What the programs of sockredir are to use.
    pub(super) fn shared(&self) -> Shared<'_> {
        self.watch.shared()
    }

    /// Hears what the kernel's side has told, and returns what is to be said of it.
    pub(super) fn hear(&mut self, news: &[News]) -> Result<Vec<String>> {
        let mut ports: BTreeMap<ProcessKey, BTreeSet<u16>> = BTreeMap::new();
        for news in news {
            ports.entry(news.process).or_default().extend(news.port);
        }
        let mut texts = Vec::new();
        for (key, ports) in ports {
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
        Ok(texts)
    }

    /// Looks at everything, and returns what is to be said of what is new.
    pub(super) fn look(&mut self, redirector: &Redirector) -> Result<Vec<String>> {
        self.watch.refresh()?;
        let mut texts = Vec::new();
        let processes = self.watch.processes()?;
        let known: BTreeSet<ProcessKey> = processes.iter().map(Process::key).collect();
        self.told.retain(|key, _| known.contains(key));
        for process in processes.into_iter().filter(|it| it.verdict() == Verdict::Unsafe) {
            texts.extend(self.tell(process));
        }
        self.apply(redirector)?;
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
    fn apply(&mut self, redirector: &Redirector) -> Result<()> {
        let told: BTreeSet<u16> = self.told.values().flatten().copied().collect();
        for port in told {
            if self.ports.insert(port) {
                redirector.keep_out(port)?;
            }
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
