// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names of addresses, for every command that shows them: pieces of packets to messages to names.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Instant;

use crate::kernel::dns::DnsPiece;
use crate::kernel::names::{Heard, Opening};
use crate::net::dns::{Flow, Questions, Reassembly, answers, asked};
use crate::net::names::{Asker, Learnt, Name, Names, Packet};
use crate::net::opening::Openings;

#[derive(Debug, Default)]
pub(crate) struct Resolver {
    reassembly: Reassembly,
    questions: Questions,
    openings: Openings,
    names: Names,
    /// Whose answers are beyond doubt, in this network namespace.
    believed: (u32, HashSet<IpAddr>),
}

impl Resolver {
    /// `resolvers` are those that this machine is set to, and `netns` is its network namespace, by the inode number.
    pub(crate) fn believing(netns: u32, resolvers: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { believed: (netns, resolvers.into_iter().collect()), ..Self::default() }
    }

    /// Learns from what a socket of `asker` heard or said. `None` where that isn't known.
    pub(crate) fn hear(&mut self, heard: &Heard, asker: impl FnOnce(u64) -> Option<Asker>) {
        match heard {
            Heard::Dns(piece) => self.learn(piece, asker),
            Heard::Opening(opening) => self.learn_opening(opening, asker),
        }
    }

    pub(crate) fn learn(&mut self, piece: &DnsPiece, asker: impl FnOnce(u64) -> Option<Asker>) {
        let DnsPiece { offset, total, data, .. } = piece;
        let flow = Flow {
            netns: piece.netns.inode,
            cookie: piece.cookie,
            client: piece.client,
            resolver: piece.resolver,
            tcp: piece.tcp,
            question: piece.question,
        };
        let mut messages = Vec::new();
        if piece.tcp {
            messages = self.reassembly.segment(flow, piece.seq.wrapping_add(*offset), data);
            // A packet that closes may come in several pieces: only its last one is the end.
            if piece.edge && offset + data.len() as u32 >= *total {
                self.reassembly.ended(flow);
            }
        } else {
            messages.extend(self.reassembly.datagram(flow, *offset, *total, data));
        }
        let now = Instant::now();
        if piece.question {
            for question in messages.iter().filter_map(|message| asked(message)) {
                self.questions.ask(flow, question, now);
            }
            return;
        }
        let (netns, resolvers) = &self.believed;
        let (addr, port) = piece.resolver;
        let known = piece.netns.inode == *netns && port == 53 && resolvers.contains(&addr);
        let mut asker = Some(asker);
        let mut owner = None;
        for (question, answers) in messages.iter().filter_map(|message| answers(message)) {
            let Some(resolver) = self.questions.answer(flow, question, now) else { continue };
            if let Some(asker) = asker.take() {
                owner = asker(piece.cookie);
            }
            // Where addresses are translated, nobody knows who has answered.
            let believed = known && resolver == addr;
            let learnt = Learnt { netns: piece.netns, asker: owner, believed };
            for answer in answers {
                self.names.answered(answer.addr, answer.name, answer.ttl, learnt, now);
            }
        }
    }

    fn learn_opening(&mut self, opening: &Opening, asker: impl FnOnce(u64) -> Option<Asker>) {
        let Opening { cookie, netns, addr, port, seq, ref data } = *opening;
        if let Some(name) = self.openings.segment(cookie, seq, data) {
            let learnt = Learnt { netns, asker: asker(cookie), believed: false };
            self.names.asked_for(addr, port, cookie, &name, learnt, Instant::now());
        }
    }

    /// Every name that a process in this network namespace may mean the address by.
    pub(crate) fn names(&self, addr: IpAddr, netns: u32) -> Vec<String> {
        let (port, cookie, asker, passed_on, believed) = (None, 0, None, false, false);
        let packet = Packet { addr, port, cookie, asker, netns, passed_on, believed };
        self.of(&packet).into_iter().map(|name| name.text).collect()
    }

    /// Every name that the packet's destination may be meant by, the most likely first.
    pub(crate) fn of(&self, packet: &Packet) -> Vec<Name> {
        self.names.of(packet, Instant::now())
    }
}

#[cfg(test)]
mod tests;
