// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `bpf/dns.bpf.h` copies of questions to port 53 and of answers from there.

use std::net::IpAddr;

use plain::Plain;

use super::addr::canonical;
use super::ring::copy_from;
use super::skel::tcpconnect::types;
use crate::net::names::Netns;

/// A piece of what a socket sent to port 53, or received from there.
#[derive(Clone, Debug)]
pub(crate) struct DnsPiece {
    /// It was sent.
    pub(crate) question: bool,
    pub(crate) tcp: bool,
    /// The connection was opened or closed by this packet: RST, SYN or FIN.
    pub(crate) edge: bool,
    pub(crate) seq: u32,
    pub(crate) offset: u32,
    pub(crate) total: u32,
    /// The resolver, with its port, and the socket that asks it.
    pub(crate) resolver: (IpAddr, u16),
    pub(crate) client: (IpAddr, u16),
    pub(crate) cookie: u64,
    pub(crate) netns: Netns,
    pub(crate) data: Vec<u8>,
}

// SAFETY: integers and arrays of integers without hidden padding, as bpf/dns.h asserts.
unsafe impl Plain for types::dns_header {}

/// A header, and the data behind it.
pub(super) fn split(bytes: &[u8]) -> Option<(types::dns_header, &[u8])> {
    let header: types::dns_header = copy_from(bytes)?;
    let data = bytes.get(size_of::<types::dns_header>()..)?.get(..header.len as usize)?;
    Some((header, data))
}

pub(super) fn netns_of(header: &types::dns_header) -> Netns {
    Netns { inode: header.netns, anybodys: header.own_netns != 0 }
}

impl DnsPiece {
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, data) = split(bytes)?;
        let question = match types::bpftk_record(header.record) {
            types::bpftk_record::BPFTK_RECORD_QUESTION => true,
            types::bpftk_record::BPFTK_RECORD_DNS => false,
            _ => return None,
        };
        let from = (canonical(header.saddr), header.sport);
        let to = (canonical(header.daddr), header.dport);
        let (client, resolver) = if question { (from, to) } else { (to, from) };
        Some(Self {
            question,
            tcp: header.proto == libc::IPPROTO_TCP as u8,
            // include/net/tcp.h: FIN 1, SYN 2, RST 4.
            edge: header.tcp_flags & 7 != 0,
            // A SYN takes a number of its own before its data.
            seq: header.tcp_seq.wrapping_add(u32::from(header.tcp_flags & 2 != 0)),
            offset: header.offset,
            total: header.total,
            resolver,
            client,
            cookie: header.cookie,
            netns: netns_of(&header),
            data: data.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_says_more_than_it_has_is_none() {
        let mut bytes = vec![0; size_of::<types::dns_header>() + 3];
        bytes[..4].copy_from_slice(&types::bpftk_record::BPFTK_RECORD_DNS.0.to_ne_bytes());
        bytes[16..20].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(DnsPiece::decode(&bytes).unwrap().data.len(), 3);
        bytes[16..20].copy_from_slice(&4_u32.to_ne_bytes());
        assert!(DnsPiece::decode(&bytes).is_none());
        assert!(DnsPiece::decode(&bytes[..40]).is_none());
    }
}
