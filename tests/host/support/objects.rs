// SPDX-License-Identifier: MIT OR Apache-2.0

//! The BPF objects that a process holds, as the kernel tells.

use std::fs;

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{MapCore, MapHandle};

use super::within;

/// The ids in lines such as `map_id: 7` of a process's open files.
fn ids(pid: u32, key: &str) -> Vec<u32> {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return Vec::new();
    };
    files
        .filter_map(|file| fs::read_to_string(file.ok()?.path()).ok())
        .filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
        })
        .collect()
}

/// How many entries the map of this name has, in the process that made it.
pub(crate) fn map_entries(pid: u32, name: &str) -> usize {
    ids(pid, "map_id:")
        .into_iter()
        .filter_map(|id| MapHandle::from_map_id(id).ok())
        .find(|map| map.name() == name)
        .unwrap_or_else(|| panic!("{pid} has a map {name}"))
        .keys()
        .count()
}

/// The programs of a process, by id.
pub(crate) fn programs(pid: u32) -> Vec<u32> {
    ids(pid, "prog_id:")
}

/// Which of them the kernel still has. It frees what was closed a little later.
pub(crate) fn programs_left(ids: &[u32]) -> Vec<u32> {
    programs_left_after(5, ids)
}

/// With so many seconds for that.
pub(crate) fn programs_left_after(seconds: u64, ids: &[u32]) -> Vec<u32> {
    let left = || -> Vec<u32> {
        ProgInfoIter::default().map(|info| info.id).filter(|id| ids.contains(id)).collect()
    };
    if within(seconds, || left().is_empty()) { Vec::new() } else { left() }
}
