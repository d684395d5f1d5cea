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
use crate::kernel::watcher::Watcher;

/// What is new of the interface `at`, by the name that it was asked for by.
#[derive(Clone, Debug)]
enum Change {
    /// By name and index.
    Gone(String, i32),
    /// One of the same name is there, which isn't the same.
    Back {
        at: usize,
        interface: Interface,
    },
    /// From, to, and the index.
    Renamed(String, String, i32),
    Up(String),
    Down(String),
    Mtu(String, u32, u32),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone(name, _) => {
                write!(f, "{name} is gone from here, and has nothing of bpftk attached any more")
            }
            Self::Back { interface, .. } => write!(f, "there is a new {}", interface.name),
            Self::Renamed(from, to, _) => write!(f, "{from} is called {to} now; it goes on"),
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
    netlink: Netlink,
}

impl Watch {
    fn new(asked: Vec<Interface>) -> Result<Self> {
        let known: Vec<_> = asked.iter().cloned().map(Some).collect();
        let netlink = Netlink::open().context("cannot list the interfaces")?;
        Ok(Self { told: vec![0; asked.len()], known, asked, netlink })
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

    /// Places at the interface.
    fn places(&self, index: i32) -> impl Iterator<Item = usize> {
        (0..self.asked.len()).filter(move |at| self.asked[*at].index == index)
    }

    fn look(&mut self) -> Result<Vec<Change>> {
        let (changes, known, told) = self.compare()?;
        self.known = known;
        self.told = told;
        Ok(changes)
    }

    #[expect(clippy::type_complexity, reason = "what `look` keeps of it")]
    fn compare(&self) -> Result<(Vec<Change>, Vec<Option<Interface>>, Vec<i32>)> {
        let all = self.netlink.interfaces().context("cannot list the interfaces")?;
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
                        tell(Change::Renamed(before.name.clone(), now.name.clone(), now.index));
                    }
                    if before.running != now.running {
                        let name = now.name.clone();
                        tell(if now.running { Change::Up(name) } else { Change::Down(name) });
                    }
                    if before.mtu != now.mtu {
                        tell(Change::Mtu(now.name.clone(), before.mtu, now.mtu));
                    }
                }
                (Some(before), None) => tell(Change::Gone(before.name.clone(), before.index)),
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
    /// Follow, with `kernel::run::follow`, until that ends. At each look there comes `Following::look`.
    Follow,
    /// The interface of the place `at` is gone from here, perhaps to another network namespace: nothing of ours goes along.
    Detach { at: usize },
    /// The interface of this index is called so.
    Rename { index: i32, name: &'a str },
    /// Attach again, at the place `at`. Why that failed is told, and ends nothing.
    Attach { at: usize, interface: &'a Interface },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    AsAsked,
    AllGone,
    /// Somebody else has taken away what was attached.
    Removed(String),
}

impl Ended {
    /// What the command returns when everything has been said.
    pub(crate) fn status(self) -> Result<ExitCode> {
        match self {
            Self::AsAsked => Ok(ExitCode::SUCCESS),
            Self::AllGone => Err(anyhow!("every interface is gone")),
            Self::Removed(what) => {
                Err(anyhow!("{what} is not there any more; --follow attaches it again"))
            }
        }
    }
}

/// The run of a command whose programs are at interfaces.
#[derive(Debug)]
pub(crate) struct Following {
    watch: Watch,
    /// What is attached at each place, in words.
    attached: Vec<String>,
    /// Whether to attach again.
    again: bool,
    end: Option<Instant>,
    /// Something is to be changed in the kernel; then it goes on.
    due: bool,
    /// Interfaces that came back and could not be attached to: place, index, and why, as it was said.
    refused: Vec<(usize, i32, String)>,
    /// Places from which what was attached is gone, and what was said about it.
    lost: Vec<(usize, Option<String>)>,
    /// Why the last look brought nothing.
    blind: Option<String>,
    _watcher: Watcher,
}

impl Following {
    /// `places`: interfaces, and in words what is attached there.
    pub(crate) fn new(
        places: impl Iterator<Item = (Interface, String)>,
        again: bool,
        duration: Option<Duration>,
    ) -> Result<Self> {
        let end = duration.map(|duration| Instant::now() + duration);
        let (asked, attached) = places.unzip();
        Ok(Self {
            watch: Watch::new(asked)?,
            attached,
            again,
            end,
            due: false,
            refused: Vec::new(),
            lost: Vec::new(),
            blind: None,
            _watcher: Watcher::start()?,
        })
    }

    /// Of what is left of the run.
    pub(crate) fn timing(&self, interval: Duration, to_stdout: bool) -> Timing {
        let left = self.end.map(|end| end.saturating_duration_since(Instant::now()));
        let duration = left.map(|left| left.max(Duration::from_nanos(1)));
        Timing { duration, interval: Some(interval), look: false, to_stdout, gather: false }
    }

    /// Leaves the loop when an interface has changed, or something is not attached any more: `lost` tells where. That it
    /// could not be looked is told, and ends nothing.
    pub(crate) fn look(&mut self, lost: impl FnOnce() -> Result<Vec<usize>>) -> Flow {
        let looked = self.watch.changed().and_then(|changed| Ok((changed, lost()?)));
        match looked {
            Ok((changed, lost)) => {
                for at in lost {
                    if !self.lost.iter().any(|(known, _)| *known == at) {
                        self.lost.push((at, None));
                    }
                }
                self.due = changed || !self.lost.is_empty();
                self.blind = None;
            }
            Err(error) => {
                let text = format!("whether everything is attached still can't be seen: {error:#}");
                if self.blind.as_ref() != Some(&text) {
                    tell(&text);
                }
                self.blind = Some(text);
            }
        }
        if self.due { Flow::Stop } else { Flow::Continue }
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
                self.change(&change, &mut step)?;
            }
            if let Some(ended) = self.mend(&mut step) {
                return Ok(ended);
            }
            if self.watch.all_gone() && !self.again {
                return Ok(Ended::AllGone);
            }
        }
    }

    /// Attaches again where it is to be, or tells how the run ends.
    fn mend(&mut self, step: &mut impl FnMut(&mut Self, Step<'_>) -> Result<()>) -> Option<Ended> {
        for (at, said) in std::mem::take(&mut self.lost) {
            // With its interface it is gone for another reason.
            let Some(interface) = self.watch.known[at].clone() else { continue };
            let what = format!("{}: {}", interface.name, self.attached[at]);
            if said.is_none() {
                tell(&format!("{what} is not there any more: somebody else has taken it away"));
            }
            if !self.again {
                return Some(Ended::Removed(what));
            }
            match step(self, Step::Attach { at, interface: &interface }) {
                Ok(()) => tell(&format!("{}: attached again", interface.name)),
                Err(error) => {
                    let text = format!("{error:#}");
                    if said.as_ref() != Some(&text) {
                        tell(&text);
                    }
                    self.lost.push((at, Some(text)));
                }
            }
        }
        None
    }

    fn change(
        &mut self,
        change: &Change,
        step: &mut impl FnMut(&mut Self, Step<'_>) -> Result<()>,
    ) -> Result<()> {
        let (at, interface) = match change {
            Change::Back { at, interface } => (*at, interface),
            Change::Gone(_, index) => {
                let places: Vec<usize> = self.watch.places(*index).collect();
                for at in places {
                    step(self, Step::Detach { at })?;
                }
                tell(&change.to_string());
                return Ok(());
            }
            Change::Renamed(_, name, index) => {
                step(self, Step::Rename { index: *index, name })?;
                tell(&change.to_string());
                return Ok(());
            }
            _ => {
                tell(&change.to_string());
                return Ok(());
            }
        };
        let before = self.refused.iter().position(|refused| refused.0 == at);
        let before = before.map(|place| self.refused.swap_remove(place));
        let before = before.filter(|(_, index, _)| *index == interface.index);
        if before.is_none() {
            tell(&change.to_string());
        }
        if !self.again {
            return Ok(());
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
        Ok(())
    }
}
