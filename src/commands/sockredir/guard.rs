// SPDX-License-Identifier: MIT OR Apache-2.0

//! What preflight watches for, watched while connections are redirected: a program that does what redirection changes is kept out
//! from then on, by the ports of the connections on which it did so.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;

use anyhow::{Context, Result};

use super::preflight::{is_blind, port_list, reasons_of};
use crate::kernel::btf::BtfSource;
use crate::kernel::preflight::{Config, Process, Verdict, Watch};
use crate::kernel::sockredir::Redirector;
use crate::kernel::task_filter::TaskFilter;
use crate::output::bytes_to_string;

#[derive(Debug)]
pub(super) struct Guard {
    watch: Watch,
    /// Processes that were told of, by their ids and when they began, with how many ports.
    told: HashMap<(u32, u64), usize>,
    found: usize,
    /// That there was no room for a process has been told.
    full: bool,
    /// Ports that are kept out.
    ports: BTreeSet<u16>,
    /// Of these, those that the programs know.
    set: BTreeSet<u16>,
}

impl Guard {
    /// Watches the processes of `cgroup`, or all.
    pub(super) fn arm(btf: BtfSource, cgroup: Option<&File>) -> Result<Self> {
        let cgroup =
            cgroup.map(File::try_clone).transpose().context("cannot keep the cgroup open")?;
        let tasks = TaskFilter { cgroup, ..TaskFilter::default() };
        let watch =
            Watch::arm(&Config { btf, tasks }).context("the guard (--no-guard does without)")?;
        Ok(Self {
            watch,
            told: HashMap::new(),
            found: 0,
            full: false,
            ports: BTreeSet::new(),
            set: BTreeSet::new(),
        })
    }

    /// What is to be said of programs that were found since the last look.
    pub(super) fn look(&mut self) -> Result<Vec<String>> {
        self.watch.refresh()?;
        let mut news = Vec::new();
        let mut told = HashMap::new();
        for process in self.watch.processes()? {
            if process.verdict() != Verdict::Unsafe {
                continue;
            }
            self.ports.extend(&process.ports);
            let who = (process.pid, process.start_ns);
            let before = self.told.get(&who);
            self.found += usize::from(before.is_none());
            if before != Some(&process.ports.len()) {
                news.push(sentence(&process));
            }
            told.insert(who, process.ports.len());
        }
        self.told = told;
        let full = self.watch.make_room()?;
        if full && !self.full {
            self.full = true;
            news.push("warning: the guard has no room for more processes, and does not see what new ones do".into());
        }
        Ok(news)
    }

    /// Tells the kernel's side which connections stay out.
    pub(super) fn apply(&mut self, redirector: &Redirector) -> Result<()> {
        for port in self.ports.difference(&self.set) {
            redirector.keep_out(*port)?;
        }
        self.set.clone_from(&self.ports);
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
            "warning: {who} does what redirection changes: {why}; no port is known by which to keep it out (--cgroup, --exclude-port)"
        );
    }
    let blind = if is_blind(process) { "; what can't be looked into may use others" } else { "" };
    format!(
        "{who} does what redirection changes: {why}; connections to port {} stay with TCP from now on{blind}",
        port_list(&process.ports)
    )
}
