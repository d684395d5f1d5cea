// SPDX-License-Identifier: MIT OR Apache-2.0

//! Waiting until every program that runs now has ended.
//!
//! When user space changes a map of maps, the kernel waits for a grace period of RCU before it returns, so that no program can
//! still have the old one (kernel/bpf/syscall.c, maybe_wait_bpf_programs; Linux 4.20). It does so even if the new map is the same.
//! membarrier(2) waits alike, but not on kernels with nohz_full.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys;

use super::sys::maps;

#[derive(Debug)]
pub(super) struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    pub(super) fn new() -> Result<Self> {
        let context = "cannot make a map to wait with";
        let inner = maps::create(c"bpftk_grace", libbpf_sys::BPF_MAP_TYPE_ARRAY, (4, 4, 1), 0)
            .context(context)?;
        let outer = maps::create_of_maps(c"bpftk_graces", inner.as_fd()).context(context)?;
        Ok(Self { outer, inner })
    }

    /// What programs see from now on, all of them have seen when this returns.
    pub(super) fn wait(&self) -> Result<()> {
        let inner = self.inner.as_raw_fd().to_ne_bytes();
        maps::update(self.outer.as_fd(), &0_u32.to_ne_bytes(), &inner)
            .context("cannot wait for the programs that run")
    }
}
