// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names of addresses, for every command that shows them: pieces of packets to messages to names.

use std::net::IpAddr;
use std::time::Instant;

use crate::kernel::dns::DnsPiece;
use crate::kernel::names::{Heard, Opening};
use crate::net::dns::{Reassembly, answers};
use crate::net::names::{Asker, Name, Names, Packet};
use crate::net::opening::Openings;

#[derive(Debug, Default)]
pub(crate) struct Resolver {
    reassembly: Reassembly,
    openings: Openings,
    names: Names,
}

impl Resolver {
    /// Learns from what a socket of `asker` heard or said. `None` where that isn't known.
    pub(crate) fn hear(&mut self, heard: &Heard, asker: impl FnOnce(u64) -> Option<Asker>) {
        match heard {
            Heard::Answer(piece) => self.learn(piece, asker),
            Heard::Opening(opening) => self.learn_opening(opening, asker),
        }
    }

    pub(crate) fn learn(&mut self, piece: &DnsPiece, asker: impl FnOnce(u64) -> Option<Asker>) {
        let DnsPiece { flow, offset, total, data, .. } = piece;
        let mut messages = Vec::new();
        if piece.tcp {
            messages = self.reassembly.segment(*flow, piece.seq.wrapping_add(*offset), data);
            // A packet that closes may come in several pieces: only its last one is the end.
            if piece.edge && offset + data.len() as u32 >= *total {
                self.reassembly.ended(*flow);
            }
        } else {
            messages.extend(self.reassembly.datagram(*flow, *offset, *total, data));
        }
        if messages.is_empty() {
            return;
        }
        let (asker, now) = (asker(piece.cookie), Instant::now());
        for answer in messages.iter().flat_map(|message| answers(message)) {
            self.names.answered(answer.addr, answer.name, answer.ttl, asker, now);
        }
    }

    fn learn_opening(&mut self, opening: &Opening, asker: impl FnOnce(u64) -> Option<Asker>) {
        let Opening { cookie, addr, port, seq, ref data } = *opening;
        if let Some(name) = self.openings.segment(cookie, seq, data) {
            let packet = Packet { addr, port: Some(port), cookie, asker: asker(cookie) };
            self.names.asked_for(&packet, &name, Instant::now());
        }
    }

    /// Every name that the packet's destination may be meant by, the most likely first.
    pub(crate) fn of(&self, packet: &Packet) -> Vec<Name> {
        self.names.of(packet, Instant::now())
    }

    /// Every name of this address, the latest first.
    pub(crate) fn names(&self, addr: IpAddr) -> Vec<String> {
        self.names.all(addr, Instant::now())
    }
}

#[cfg(test)]
mod tests;
