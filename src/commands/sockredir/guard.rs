// SPDX-License-Identifier: MIT OR Apache-2.0

//! What preflight watches for, watched while connections are redirected: a program that does what redirection changes is kept out
//! from then on, by the ports of the connections on which it did so.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;

use anyhow::{Context, Result};

use super::preflight::{port_list, reasons_of};
use crate::kernel::btf::BtfSource;
use crate::kernel::preflight::{Config, Process, Verdict, Watch};
use crate::kernel::sockredir::Redirector;
use crate::kernel::task_filter::TaskFilter;
use crate::output::bytes_to_string;

#[derive(Debug)]
pub(super) struct Guard {
    watch: Watch,
    /// Processes that were told of, with how many ports.
    told: HashSet<(u32, usize)>,
    /// Ports that are kept out.
    ports: BTreeSet<u16>,
    /// Of these, those that the programs know.
    set: BTreeSet<u16>,
    processes: BTreeSet<u32>,
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
            told: HashSet::new(),
            ports: BTreeSet::new(),
            set: BTreeSet::new(),
            processes: BTreeSet::new(),
        })
    }

    /// What is to be said of programs that were found since the last look.
    pub(super) fn look(&mut self) -> Result<Vec<String>> {
        self.watch.refresh()?;
        let mut news = Vec::new();
        for process in self.watch.processes()? {
            let seen = (process.pid, process.ports.len());
            if process.verdict() != Verdict::Unsafe || !self.told.insert(seen) {
                continue;
            }
            self.processes.insert(process.pid);
            self.ports.extend(&process.ports);
            news.push(sentence(&process));
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
        self.processes.len()
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
    format!(
        "{who} does what redirection changes: {why}; connections to port {} stay with TCP from now on",
        port_list(&process.ports)
    )
}
