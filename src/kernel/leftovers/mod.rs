// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs of bpftk that nobody owns any more, and what still holds them.
//!
//! A program has an owner while a process has a descriptor of it, or of a link or perf event that runs it: every
//! bpftk keeps its descriptors for as long as it runs. What has none, and is loaded, is held by a place in the
//! kernel that outlives processes: a filter, an interface, a cgroup, a map, a pin.

mod cgroups;
mod net;
mod owners;
mod pins;
mod sockmaps;
mod sweep;

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use self::owners::Owners;
pub(in crate::kernel) use self::sweep::sweep;
use super::caps::{self, Cap};
use super::clock::boot_ns;
use super::sys;
use crate::error::not_permitted;

/// What every program of bpftk is called by.
const PREFIX: &str = "bpftk_";

/// How long the kernel may take to unload what a process that just ended had: it waits for every CPU to be done with it.
const GRACE: Duration = Duration::from_secs(2);

/// A program without an owner, at one of the places that hold it.
#[derive(Debug)]
pub(crate) struct Leftover {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) age: Duration,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Net(net::Place),
    Cgroup(cgroups::Place),
    Sockmap(sockmaps::Place),
    Pin(pins::Place),
    /// Sockets that are in a map of sockets whose owner is gone (sockredir).
    Sockets,
    Unknown,
}

impl Leftover {
    /// What holds it.
    pub(crate) fn held_by(&self) -> String {
        match &self.place {
            Place::Net(place) => place.to_string(),
            Place::Cgroup(place) => place.to_string(),
            Place::Sockmap(place) => place.to_string(),
            Place::Pin(place) => place.to_string(),
            Place::Sockets => "the connections that it redirected, until they close".to_string(),
            Place::Unknown => "nothing that was found".to_string(),
        }
    }

    /// Takes the program off its place, after a last look: it is still there, and still nobody's.
    pub(crate) fn remove(&self) -> Result<()> {
        if Owners::read()?.programs.contains(&self.id) {
            bail!("a process has opened it meanwhile");
        }
        match &self.place {
            Place::Net(place) => place.remove(self.id),
            Place::Cgroup(place) => place.remove(self.id),
            Place::Sockmap(place) => place.remove(self.id),
            Place::Pin(place) => place.remove(self.id),
            Place::Sockets => Err(anyhow!(
                "with their entries, what nobody has read yet would be lost; it does no harm"
            )),
            Place::Unknown => Err(anyhow!(
                "no filter, interface, cgroup, map or pin was found that holds it; a socket in another process may"
            )),
        }
    }
}

/// Everything that is left over, the oldest first. An error says why that can't be known.
pub(crate) fn find() -> Result<Vec<Leftover>> {
    caps::require(&[Cap::SysAdmin, Cap::SysPtrace])?;
    let begin = Instant::now();
    loop {
        let left = look()?;
        // What nothing seems to hold is most likely on its way out.
        let unexplained =
            left.iter().any(|left| matches!(left.place, Place::Unknown | Place::Sockets));
        if !unexplained || begin.elapsed() >= GRACE {
            return Ok(left);
        }
        thread::sleep(GRACE / 20);
    }
}

fn look() -> Result<Vec<Leftover>> {
    // Programs first: one that is loaded after the owners were asked would seem to have none.
    let mut programs = ours()?;
    if programs.is_empty() {
        return Ok(Vec::new());
    }
    let owners = Owners::read()?;
    programs.retain(|program| !owners.programs.contains(&program.id));
    if programs.is_empty() {
        return Ok(Vec::new());
    }
    let mut places = places(&owners, &|id| programs.iter().any(|program| program.id == id));
    let now = boot_ns();
    let mut left = Vec::new();
    for program in programs {
        let (mut held, others): (Vec<_>, Vec<_>) =
            places.into_iter().partition(|(id, _)| *id == program.id);
        places = others;
        if held.is_empty() {
            // The kernel can't be asked which sockets hold a program. Only they and pins can hold this one.
            let by_sockets = program.kind == libbpf_rs::libbpf_sys::BPF_PROG_TYPE_SK_MSG
                && program.name == super::sockredir::MESSAGE_PROGRAM;
            held.push((program.id, if by_sockets { Place::Sockets } else { Place::Unknown }));
        }
        left.extend(held.into_iter().map(|(id, place)| Leftover {
            id,
            name: program.name.clone(),
            kind: sys::program_type_name(program.kind),
            age: Duration::from_nanos(now.saturating_sub(program.loaded_ns)),
            place,
        }));
    }
    Ok(left)
}

/// Every place that holds one of these programs.
fn places(owners: &Owners, is_ours: &(dyn Fn(u32) -> bool + Sync)) -> Vec<(u32, Place)> {
    let pins = pins::find(owners, is_ours);
    let pinned = |id: u32, is_it: &dyn Fn(&pins::Place) -> bool| {
        pins.iter().any(|(program, pin)| *program == id && is_it(pin))
    };
    let mut places: Vec<(u32, Place)> = Vec::new();
    // What a pinned link attaches goes with its pin.
    for (id, place) in net::find(owners, is_ours) {
        if !pinned(id, &|pin| pin.is_link_at(place.ifindex())) {
            places.push((id, Place::Net(place)));
        }
    }
    for (id, place) in cgroups::find(is_ours) {
        if !pinned(id, &pins::Place::is_link_to_cgroup) {
            places.push((id, Place::Cgroup(place)));
        }
    }
    for (id, place) in sockmaps::find(is_ours) {
        places.push((id, Place::Sockmap(place)));
    }
    for (id, place) in pins {
        places.push((id, Place::Pin(place)));
    }
    places
}

/// Every loaded program whose name says that it is bpftk's.
fn ours() -> Result<Vec<sys::ProgramInfo>> {
    let mut found = Vec::new();
    let mut id = 0;
    loop {
        match sys::next_program(id) {
            Ok(Some(next)) => id = next,
            Ok(None) => return Ok(found),
            // CAP_SYS_ADMIN of another user namespace is none.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return Err(not_permitted(
                    "listing the loaded programs needs CAP_SYS_ADMIN of the initial user namespace; run it as the \
                     host's root",
                ));
            }
            Err(error) => return Err(error).context("cannot list the loaded programs"),
        }
        // It may be unloaded meanwhile.
        if let Ok(program) = sys::program_by_id(id)
            && let Ok(info) = sys::program_info(std::os::fd::AsFd::as_fd(&program))
            && info.name.starts_with(PREFIX)
        {
            found.push(info);
        }
    }
}

/// The last look before something is removed.
fn must_be_there(there: bool) -> Result<()> {
    if there { Ok(()) } else { Err(anyhow!("it is not there any more")) }
}

/// Attach types by the names that `bpftool` has for them.
#[derive(Clone, Copy, Debug)]
struct Hook {
    kind: libbpf_rs::libbpf_sys::bpf_attach_type,
    name: &'static str,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
