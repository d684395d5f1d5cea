// SPDX-License-Identifier: MIT OR Apache-2.0

//! What becomes of the interfaces meanwhile: gone, back, renamed, down, of another MTU.

use std::fmt;

use anyhow::{Context, Result};

use crate::kernel::netlink::{Interface, Netlink};

/// What is new of the interface `at`, by the name that it was asked for by.
#[derive(Clone, Debug)]
pub(crate) enum Change {
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
pub(crate) struct Watch {
    /// Those that there are programs for: one that is asked for in both directions is there twice.
    asked: Vec<Interface>,
    known: Vec<Option<Interface>>,
    /// A new one of the same name that was told of, by index.
    told: Vec<i32>,
}

impl Watch {
    pub(crate) fn new<'a>(interfaces: impl Iterator<Item = &'a Interface>) -> Self {
        let asked: Vec<Interface> = interfaces.cloned().collect();
        let known: Vec<_> = asked.iter().cloned().map(Some).collect();
        Self { told: vec![0; asked.len()], known, asked }
    }

    pub(crate) fn all_gone(&self) -> bool {
        self.known.iter().all(Option::is_none)
    }

    pub(crate) fn attached(&mut self, at: usize, interface: &Interface) {
        self.asked[at] = interface.clone();
        self.known[at] = Some(interface.clone());
    }

    /// Whether `look` has something to tell.
    pub(crate) fn changed(&self) -> Result<bool> {
        let (changes, ..) = self.compare()?;
        Ok(!changes.is_empty())
    }

    pub(crate) fn look(&mut self) -> Result<Vec<Change>> {
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
