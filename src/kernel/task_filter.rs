// SPDX-License-Identifier: MIT OR Apache-2.0

//! The filter on tasks that `bpf/task_filter.bpf.h` applies in the kernel.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags};

/// Which tasks are asked for. `None` is all.
#[derive(Debug, Default)]
pub(crate) struct TaskFilter {
    pub(crate) pids: Option<BTreeSet<u32>>,
    pub(crate) uids: Option<BTreeSet<u32>>,
    pub(crate) comm: Option<[u8; 16]>,
    pub(crate) cgroup: Option<File>,
}

/// Before load: the constants, and the sets that are needed, with room. Every skeleton has types of its own for the same C.
macro_rules! configure_task_filter {
    ($open:expr, $filter:expr) => {{
        let filter: &$crate::kernel::task_filter::TaskFilter = $filter;
        let rodata =
            $open.maps.rodata_data.as_deref_mut().context("the object has no constants")?;
        rodata.filter_by_pid = filter.pids.is_some().into();
        rodata.filter_by_uid = filter.uids.is_some().into();
        rodata.filter_by_comm = filter.comm.is_some().into();
        rodata.filter_by_cgroup = filter.cgroup.is_some().into();
        rodata.filter_comm = filter.comm.unwrap_or_default();
        for (map, set) in [
            (&mut $open.maps.filter_pids, &filter.pids),
            (&mut $open.maps.filter_uids, &filter.uids),
        ] {
            // What no program will look at need not be made: each map costs start-up time.
            map.set_autocreate(set.is_some()).context("cannot leave out a map")?;
            if let Some(set) = set {
                map.set_max_entries(set.len() as u32).context("cannot size a filter")?;
            }
        }
        let map = &mut $open.maps.filter_cgroup;
        map.set_autocreate(filter.cgroup.is_some()).context("cannot leave out a map")?;
    }};
}
pub(crate) use configure_task_filter;

impl TaskFilter {
    /// After load, before anything is attached.
    pub(crate) fn fill(
        &self,
        pids: &impl MapCore,
        uids: &impl MapCore,
        cgroup: &impl MapCore,
    ) -> Result<()> {
        for (set, map) in [(&self.pids, pids as &dyn MapCore), (&self.uids, uids)] {
            for id in set.iter().flatten() {
                map.update(&id.to_ne_bytes(), &[1], MapFlags::ANY)
                    .context("cannot fill a filter")?;
            }
        }
        if let Some(file) = &self.cgroup {
            let fd = file.as_raw_fd().to_ne_bytes();
            cgroup
                .update(&0_u32.to_ne_bytes(), &fd, MapFlags::ANY)
                .context("cannot filter by cgroup")?;
        }
        Ok(())
    }
}
