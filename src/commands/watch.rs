// SPDX-License-Identifier: MIT OR Apache-2.0

//! What becomes of the interfaces meanwhile: gone, back, renamed, down, of another MTU. And the run of a command whose
//! programs are at interfaces: it follows what they tell, and leaves that for a moment when something is to be changed.

use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::common::tell;
use crate::kernel::netlink::{Interface, Netlink};
use crate::kernel::run::{Flow, Timing};

/// What is new of the interface `at`, by the name that it was asked for by.
#[derive(Clone, Debug)]
enum Change {
    Gone(String),
    /// One of the same name is there, which isn't the same.
    Back {
        at: usize,
        interface: Interface,
    },
    Renamed(String, String),
    Up(String),
    Down(String),
    Mtu(String, u32, u32),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(name) => write!(f, "{name} is gone, and with it what was attached to it"),
            Self::Back { interface, .. } => write!(f, "there is a new {}", interface.name),
            Self::Renamed(from, to) => write!(f, "{from} is called {to} now; it goes on"),
            Self::Up(name) => write!(f, "{name}: link is up"),
            Self::Down(name) => write!(f, "{name}: link is down"),
            Self::Mtu(name, from, to) => write!(f, "{name}: MTU {from} is now {to}"),
        }
    }
}

/// The interfaces as they were at the last look; nothing of one that is gone.
#[derive(Debug)]
struct Watch {
    /// Those that there are programs for: one that is asked for in both directions is there twice.
    asked: Vec<Interface>,
    known: Vec<Option<Interface>>,
    /// A new one of the same name that was told of, by index.
    told: Vec<i32>,
}

impl Watch {
    fn new<'a>(interfaces: impl Iterator<Item = &'a Interface>) -> Self {
        let asked: Vec<Interface> = interfaces.cloned().collect();
        let known: Vec<_> = asked.iter().cloned().map(Some).collect();
        Self { told: vec![0; asked.len()], known, asked }
    }

    fn all_gone(&self) -> bool {
        self.known.iter().all(Option::is_none)
    }

    fn attached(&mut self, at: usize, interface: &Interface) {
        self.asked[at] = interface.clone();
        self.known[at] = Some(interface.clone());
    }

    /// The interface that was told of last is told of again.
    fn tell_again(&mut self, at: usize) {
        self.told[at] = 0;
    }

    /// Whether `look` has something to tell.
    fn changed(&self) -> Result<bool> {
        let (changes, ..) = self.compare()?;
        Ok(!changes.is_empty())
    }

    fn look(&mut self) -> Result<Vec<Change>> {
        let (changes, known, told) = self.compare()?;
        self.known = known;
        self.told = told;
        Ok(changes)
    }

    #[expect(clippy::type_complexity, reason = "what `look` keeps of it")]
    fn compare(&self) -> Result<(Vec<Change>, Vec<Option<Interface>>, Vec<i32>)> {
        let all = Netlink::open()
            .and_then(|netlink| netlink.interfaces())
            .context("cannot list the interfaces")?;
        let mut changes = Vec::new();
        let mut known = self.known.clone();
        let mut told = self.told.clone();
        for (at, (before, asked)) in known.iter_mut().zip(&self.asked).enumerate() {
            // The two directions of an interface are told of once.
            let first = !self.asked[..at].iter().any(|other| other.index == asked.index);
            let name = &asked.name;
            let same = all.iter().find(|now| now.index == asked.index);
            let mut tell = |change| {
                if first {
                    changes.push(change);
                }
            };
            match (before.as_ref(), same) {
                (Some(before), Some(now)) => {
                    if before.name != now.name {
                        tell(Change::Renamed(before.name.clone(), now.name.clone()));
                    }
                    if before.running != now.running {
                        let name = now.name.clone();
                        tell(if now.running { Change::Up(name) } else { Change::Down(name) });
                    }
                    if before.mtu != now.mtu {
                        tell(Change::Mtu(now.name.clone(), before.mtu, now.mtu));
                    }
                }
                (Some(before), None) => tell(Change::Gone(before.name.clone())),
                (None, _) => {}
            }
            *before = same.filter(|_| before.is_some()).cloned();
            if before.is_none()
                && let Some(new) = all.iter().find(|now| now.name == *name)
                && told[at] != new.index
            {
                told[at] = new.index;
                changes.push(Change::Back { at, interface: new.clone() });
            }
        }
        Ok((changes, known, told))
    }
}

/// What `Following` has its command do.
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// Follow, with `kernel::run::follow`, until that ends. At each tick there comes `Following::tick`.
    Follow,
    /// Attach again, at the place `at`. Why that failed is told, and ends nothing.
    Attach { at: usize, interface: &'a Interface },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    AsAsked,
    AllGone,
}

impl Ended {
    /// What the command returns when everything has been said.
    pub(crate) fn status(self) -> Result<ExitCode> {
        match self {
            Self::AsAsked => Ok(ExitCode::SUCCESS),
            Self::AllGone => Err(anyhow!("every interface is gone")),
        }
    }
}

/// The run of a command whose programs are at interfaces.
#[derive(Debug)]
pub(crate) struct Following {
    watch: Watch,
    /// Whether to attach to new interfaces of the same name.
    again: bool,
    end: Option<Instant>,
    /// Something is to be changed in the kernel; then it goes on.
    due: bool,
    /// Interfaces that came back and could not be attached to: place, index, and why, as it was said.
    refused: Vec<(usize, i32, String)>,
}

impl Following {
    pub(crate) fn new<'a>(
        interfaces: impl Iterator<Item = &'a Interface>,
        again: bool,
        duration: Option<Duration>,
    ) -> Self {
        let end = duration.map(|duration| Instant::now() + duration);
        Self { watch: Watch::new(interfaces), again, end, due: false, refused: Vec::new() }
    }

    /// Of what is left of the run.
    pub(crate) fn timing(&self, interval: Duration, to_stdout: bool) -> Timing {
        let left = self.end.map(|end| end.saturating_duration_since(Instant::now()));
        let duration = left.map(|left| left.max(Duration::from_nanos(1)));
        Timing { duration, interval: Some(interval), look: false, to_stdout, gather: false }
    }

    /// Leaves the loop when an interface has changed.
    pub(crate) fn tick(&mut self) -> Result<Flow> {
        self.due = self.watch.changed()?;
        Ok(if self.due { Flow::Stop } else { Flow::Continue })
    }

    /// Follows, with changes in between, to the end.
    pub(crate) fn run(
        &mut self,
        mut step: impl FnMut(&mut Self, Step<'_>) -> Result<()>,
    ) -> Result<Ended> {
        loop {
            step(self, Step::Follow)?;
            if !std::mem::take(&mut self.due) {
                return Ok(Ended::AsAsked);
            }
            for change in self.watch.look()? {
                self.change(&change, &mut step);
            }
            if self.watch.all_gone() && !self.again {
                return Ok(Ended::AllGone);
            }
        }
    }

    fn change(
        &mut self,
        change: &Change,
        step: &mut impl FnMut(&mut Self, Step<'_>) -> Result<()>,
    ) {
        let Change::Back { at, interface } = change else { return tell(&change.to_string()) };
        let at = *at;
        let before = self.refused.iter().position(|refused| refused.0 == at);
        let before = before.map(|place| self.refused.swap_remove(place));
        let before = before.filter(|(_, index, _)| *index == interface.index);
        if before.is_none() {
            tell(&change.to_string());
        }
        if !self.again {
            return;
        }
        match step(self, Step::Attach { at, interface }) {
            Ok(()) => {
                self.watch.attached(at, interface);
                tell(&format!("{}: attached again", interface.name));
            }
            // It is tried again at the next look; the same words are said once.
            Err(error) => {
                let text = format!("{error:#}");
                if before.is_none_or(|(.., said)| said != text) {
                    tell(&text);
                }
                self.refused.push((at, interface.index, text));
                self.watch.tell_again(at);
            }
        }
    }
}
