// SPDX-License-Identifier: MIT OR Apache-2.0

//! The rules, before they are used.

use anyhow::Result;
use libbpf_rs::ProgramMut;

use super::{Dropper, How};
use crate::kernel::attach::tc::Direction;
use crate::kernel::guard::{self, Needs, Ssh};

impl Dropper {
    /// What the operator would lose by these rules; nothing if it is only what they asked for. Before `attach`.
    pub(crate) fn would_lose(&self, ssh: Option<Ssh>) -> Result<Option<String>> {
        const XDP_DROP: u32 = 1;
        const TC_ACT_SHOT: u32 = 2;
        let dropped = if self.how == How::Xdp { XDP_DROP } else { TC_ACT_SHOT };
        let progs = &self.skel.progs;
        let mut programs: Vec<(&ProgramMut<'static>, Direction)> = Vec::new();
        for place in &self.places {
            let (program, direction) = match (self.how, place.direction) {
                (How::Xdp, _) => (&progs.bpftk_xdp_drop, Direction::Ingress),
                (How::Tc(_), Direction::Ingress) => (&progs.bpftk_tc_in, Direction::Ingress),
                (How::Tc(_), Direction::Egress) => (&progs.bpftk_tc_out, Direction::Egress),
            };
            if !programs.iter().any(|(_, other)| *other == direction) {
                programs.push((program, direction));
            }
        }
        let ethernet = self.places[0].interface.is_ethernet();
        for (program, direction) in programs {
            let drops = |packet: &[u8]| Ok(guard::verdict(program, packet)? == dropped);
            if guard::would_lose_all(ethernet, drops)? {
                return Ok(Some("every packet".into()));
            }
            let lost = guard::would_lose(direction, ethernet, Needs::all(ssh), drops)?;
            if lost.is_some() {
                return Ok(lost);
            }
        }
        Ok(None)
    }
}
