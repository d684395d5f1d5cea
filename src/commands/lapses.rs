// SPDX-License-Identifier: MIT OR Apache-2.0

//! Times in which the heartbeat of a clsact filter had lapsed, and what passed meanwhile.

use std::time::Duration;

use anyhow::Result;

use super::common::{counted, tell};
use crate::kernel::count::Count;
use crate::kernel::lifetime::Lapsed;
use crate::output::{Field, Record};

/// What was told while it ran.
#[derive(Debug, Default)]
pub(super) struct Lapses {
    time: Duration,
    packets: u64,
}

impl Lapses {
    /// Tells of a lapse that is over, once. `passed`: packets so far that rules should have stopped. Where nothing is
    /// stopped (`harmless`), nothing could pass.
    pub(super) fn tell(
        &mut self,
        lapsed: Option<Lapsed>,
        harmless: bool,
        passed: impl FnOnce() -> Result<u64>,
    ) -> Result<()> {
        let Some(lapsed) = lapsed.filter(|lapsed| lapsed.over > self.time && !harmless) else {
            return Ok(());
        };
        let packets = passed()?;
        tell(&sentence(lapsed.over - self.time, packets - self.packets));
        *self = Self { time: lapsed.over, packets };
        Ok(())
    }
}

fn sentence(time: Duration, packets: u64) -> String {
    let seconds = time.as_secs_f64();
    let packets = counted(packets, "packet", "packets");
    format!(
        "the heartbeat had lapsed for {seconds:.1} s, as bpftk did not run: {packets} that rules match passed meanwhile"
    )
}

/// For the last line.
pub(super) fn lapses_sentence(lapsed: Option<Lapsed>, passed: Count) -> Option<String> {
    let all = lapsed?.all;
    (!all.is_zero()).then(|| sentence(all, passed.packets))
}

pub(super) fn with_lapses(record: Record, lapsed: Option<Lapsed>, passed: Count) -> Record {
    record
        .with("lapsed_s", lapsed.map(|lapsed| lapsed.all.as_secs_f64()))
        .with("lapsed_packets", passed.packets)
        .with("lapsed_bytes", passed.bytes)
}

/// Of a summary.
pub(super) const LAPSED_S: Field = Field::new(
    "lapsed_s",
    "clsact: seconds in which the heartbeat had lapsed, since bpftk did not run; null where there is none",
);
pub(super) const LAPSED_PACKETS: Field =
    Field::new("lapsed_packets", "packets that rules match and that passed in that time");
pub(super) const LAPSED_BYTES: Field = Field::new("lapsed_bytes", "their bytes");
