// SPDX-License-Identifier: MIT OR Apache-2.0

//! What `bpf/dns.bpf.h` copies of answers from port 53.

use std::net::IpAddr;

use plain::Plain;

use super::addr::canonical;
use super::ring::copy_from;
use super::skel::tcpconnect::types;

/// A piece of what a socket received from port 53.
#[derive(Clone, Debug)]
pub(crate) struct DnsPiece {
    pub(crate) tcp: bool,
    /// The connection was opened or closed by this packet: RST, SYN or FIN.
    pub(crate) edge: bool,
    pub(crate) seq: u32,
    pub(crate) offset: u32,
    pub(crate) total: u32,
    pub(crate) flow: (IpAddr, IpAddr, u16),
    /// Of the socket that received it.
    pub(crate) cookie: u64,
    pub(crate) data: Vec<u8>,
}

/// struct dns_piece without its data, of which a record has as much as it needs.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct DnsHeader {
    record: u32,
    tcp_seq: u32,
    offset: u32,
    total: u32,
    len: u32,
    sport: u16,
    dport: u16,
    proto: u8,
    tcp_flags: u8,
    pad: [u8; 6],
    cookie: u64,
    saddr: [u8; 16],
    daddr: [u8; 16],
}

// SAFETY: integers and arrays of integers without hidden padding, as bpf/dns.h asserts.
unsafe impl Plain for DnsHeader {}

const _: () = assert!(size_of::<DnsHeader>() == std::mem::offset_of!(types::dns_piece, data));

impl DnsPiece {
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let header: DnsHeader = copy_from(bytes)?;
        let data = bytes.get(size_of::<DnsHeader>()..)?.get(..header.len as usize)?;
        Some(Self {
            tcp: header.proto == libc::IPPROTO_TCP as u8,
            // include/net/tcp.h: FIN 1, SYN 2, RST 4.
            edge: header.tcp_flags & 7 != 0,
            seq: header.tcp_seq,
            offset: header.offset,
            total: header.total,
            flow: (canonical(header.saddr), canonical(header.daddr), header.dport),
            cookie: header.cookie,
            data: data.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_says_more_than_it_has_is_none() {
        let mut bytes = vec![0; size_of::<DnsHeader>() + 3];
        bytes[16..20].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(DnsPiece::decode(&bytes).unwrap().data.len(), 3);
        bytes[16..20].copy_from_slice(&4_u32.to_ne_bytes());
        assert!(DnsPiece::decode(&bytes).is_none());
        assert!(DnsPiece::decode(&bytes[..40]).is_none());
    }
}
