// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names for `--dns`: pieces of packets to messages to names.

use std::net::IpAddr;

use crate::kernel::dns::DnsPiece;
use crate::net::dns::{Names, Reassembly};

#[derive(Debug, Default)]
pub(super) struct Resolver {
    reassembly: Reassembly,
    names: Names,
}

impl Resolver {
    pub(super) fn learn(&mut self, piece: &DnsPiece) {
        let DnsPiece { flow, offset, total, data, .. } = piece;
        if piece.tcp {
            for message in self.reassembly.segment(*flow, piece.seq.wrapping_add(*offset), data) {
                self.names.learn(&message);
            }
            // A packet that closes may come in several pieces: only its last one is the end.
            if piece.edge && offset + data.len() as u32 >= *total {
                self.reassembly.forget(*flow);
            }
        } else if let Some(message) = self.reassembly.datagram(*flow, *offset, *total, data) {
            self.names.learn(&message);
        }
    }

    pub(super) fn names(&self, addr: IpAddr) -> Vec<String> {
        self.names.of(addr)
    }
}
