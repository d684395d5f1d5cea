// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the programs could not report: counted per CPU in the kernel, by cause.

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags};

use super::skel::tcpconnect::types::bpftk_loss;

/// The counts of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// Rows that did not fit in the ring buffer.
    pub(crate) ring_full: u64,
    /// Rows whose beginning did not fit in the table of what is under way.
    pub(crate) table_full: u64,
    /// DNS answers that did not fit in the ring buffer.
    pub(crate) dns: u64,
    /// Rows whose result the kernel did not show.
    pub(crate) missed_return: u64,
    /// What ended without having been followed, since its beginning was not seen. Not lost.
    pub(crate) unseen: u64,
    /// How often the kernel skipped a program because the CPU was in the middle of it: rows that may be missing, at most.
    pub(crate) skipped: u64,
}

impl Losses {
    pub(crate) fn read(map: &impl MapCore) -> Result<Self> {
        let count = |cause: bpftk_loss| -> Result<u64> {
            let values = map
                .lookup_percpu(&cause.0.to_ne_bytes(), MapFlags::ANY)
                .context("cannot read the counters of losses")?
                .unwrap_or_default();
            Ok(values
                .iter()
                .filter_map(|value| value.as_slice().try_into().ok().map(u64::from_ne_bytes))
                .sum())
        };
        Ok(Self {
            ring_full: count(bpftk_loss::BPFTK_LOSS_RING_FULL)?,
            table_full: count(bpftk_loss::BPFTK_LOSS_TABLE_FULL)?,
            dns: count(bpftk_loss::BPFTK_LOSS_DNS)?,
            missed_return: count(bpftk_loss::BPFTK_LOSS_MISSED_RETURN)?,
            unseen: count(bpftk_loss::BPFTK_LOSS_UNSEEN)?,
            skipped: 0,
        })
    }

    /// Rows that are missing.
    pub(crate) fn rows(self) -> u64 {
        self.ring_full + self.table_full + self.missed_return
    }
}
