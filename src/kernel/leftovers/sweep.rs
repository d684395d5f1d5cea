// SPDX-License-Identifier: MIT OR Apache-2.0

//! What killed runs have left at interfaces where a run begins: clsact filters, each of which costs every packet.

use std::os::fd::AsFd;

use super::PREFIX;
use super::owners::Owners;
use crate::kernel::attach::clsact::{Turn, is_ours, remove_leftover, stays};
use crate::kernel::netlink::{EGRESS, Filter, INGRESS, Interface, Netlink};
use crate::kernel::sys;

/// What is told of such a filter.
enum Fate {
    Removed,
    Failed(std::io::Error),
}

/// Takes away the clsact filters of bpftk whose process is gone, and tells of it. `closed`: with those that were to
/// go on (--fail-closed) and have a program of one of these names, whose place another one has taken; all others of
/// that kind stay. Nothing else is touched: no filter of others, and none whose program a process has open.
pub(in crate::kernel) fn sweep<'a>(
    interfaces: impl Iterator<Item = &'a Interface>,
    closed: &[String],
) -> Vec<String> {
    let mut told = Vec::new();
    let Ok(netlink) = Netlink::open() else { return told };
    let mut seen: Vec<i32> = Vec::new();
    for interface in interfaces {
        if seen.contains(&interface.index) {
            continue;
        }
        seen.push(interface.index);
        // A look costs little; only if there is something, it is asked whose it is.
        let found = candidates(&netlink, interface.index, closed);
        if found.is_empty() {
            continue;
        }
        let name = &interface.name;
        // The filters first, then the owners: what was there before has had its owner all the time.
        let owners = match Owners::with_own() {
            Ok(owners) => owners,
            Err(error) => {
                told.push(format!(
                    "{name} has filters of bpftk; whether a process still has them can't be told: {error:#}"
                ));
                continue;
            }
        };
        let _turn = Turn::wait();
        let mut removed = 0;
        for filter in &found {
            match remove(&netlink, filter, &owners) {
                None => {}
                Some(Fate::Removed) => removed += 1,
                Some(Fate::Failed(error)) => told.push(format!(
                    "{name}: a filter of a bpftk that was killed can't be removed: {error}"
                )),
            }
        }
        if removed > 0 {
            let filters =
                if removed == 1 { "1 filter".into() } else { format!("{removed} filters") };
            told.push(format!("{name}: removed {filters} of a bpftk that was killed"));
        }
    }
    told
}

fn candidates(netlink: &Netlink, ifindex: i32, closed: &[String]) -> Vec<Filter> {
    [INGRESS, EGRESS]
        .into_iter()
        .flat_map(|parent| netlink.filters(ifindex, parent).unwrap_or_default())
        .filter(is_ours)
        .filter(|filter| stays(filter).is_none_or(|name| closed.iter().any(|it| it == name)))
        .collect()
}

/// Nothing, if it is somebody's, or not there any more.
fn remove(netlink: &Netlink, filter: &Filter, owners: &Owners) -> Option<Fate> {
    if owners.programs.contains(&filter.program) {
        return None;
    }
    // Its name is the program's word, that of the filter is anybody's.
    let program = sys::program_by_id(filter.program).ok()?;
    let info = sys::program_info(program.as_fd()).ok()?;
    if !info.name.starts_with(PREFIX) {
        return None;
    }
    let there = netlink.filters(filter.key.ifindex, filter.key.parent).ok()?;
    if !there.iter().any(|it| it.key == filter.key && it.program == filter.program) {
        return None;
    }
    Some(match remove_leftover(netlink, filter) {
        Ok(()) => Fate::Removed,
        Err(error) => Fate::Failed(error),
    })
}
