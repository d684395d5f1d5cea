// SPDX-License-Identifier: MIT OR Apache-2.0

//! What becomes of the interfaces meanwhile: gone, back, renamed, down, of another MTU.

use std::fmt;

use anyhow::{Context, Result};

use crate::kernel::drop::Dropper;
use crate::kernel::netlink::{Interface, Netlink};

/// What is new of the interface of the place `at`, by the name that it was asked for by.
#[derive(Clone, Debug)]
pub(super) enum Change {
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
pub(super) struct Watch {
    known: Vec<Option<Interface>>,
    /// A new one of the same name that was told of, by index.
    told: Vec<i32>,
}

impl Watch {
    pub(super) fn new(dropper: &Dropper) -> Self {
        let known: Vec<_> =
            dropper.places().iter().map(|place| Some(place.interface.clone())).collect();
        Self { told: vec![0; known.len()], known }
    }

    pub(super) fn all_gone(&self) -> bool {
        self.known.iter().all(Option::is_none)
    }

    pub(super) fn attached(&mut self, at: usize, interface: &Interface) {
        self.known[at] = Some(interface.clone());
    }

    /// Whether `look` has something to tell.
    pub(super) fn changed(&self, dropper: &Dropper) -> Result<bool> {
        let (changes, ..) = self.compare(dropper)?;
        Ok(!changes.is_empty())
    }

    pub(super) fn look(&mut self, dropper: &Dropper) -> Result<Vec<Change>> {
        let (changes, known, told) = self.compare(dropper)?;
        self.known = known;
        self.told = told;
        Ok(changes)
    }

    #[expect(clippy::type_complexity, reason = "what `look` keeps of it")]
    fn compare(
        &self,
        dropper: &Dropper,
    ) -> Result<(Vec<Change>, Vec<Option<Interface>>, Vec<i32>)> {
        let all = Netlink::open()
            .and_then(|netlink| netlink.interfaces())
            .context("cannot list the interfaces")?;
        let mut changes = Vec::new();
        let mut known = self.known.clone();
        let mut told = self.told.clone();
        for (at, (before, place)) in known.iter_mut().zip(dropper.places()).enumerate() {
            // The two directions of an interface are told of once.
            let first = !dropper.places()[..at]
                .iter()
                .any(|other| other.interface.index == place.interface.index);
            let name = &place.interface.name;
            let same = all.iter().find(|now| now.index == place.interface.index);
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
