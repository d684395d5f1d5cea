// SPDX-License-Identifier: MIT OR Apache-2.0

//! What packets of a capture file begin with.

/// A number of <https://www.tcpdump.org/linktypes.html>, as capture files have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkType(pub(crate) u16);

/// What bpftk can read of it, to describe a packet. A filter runs on any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Ethernet,
    /// An IPv4 or IPv6 header, with nothing before it
    Ip,
    /// What tcpdump has in place of a link header on the interface `any`: LINUX_SLL
    Cooked,
    /// The same, second version: LINUX_SLL2
    Cooked2,
    /// Four bytes with an address family, as BSD's loopback has them: NULL and LOOP
    Family,
    Other,
}

impl LinkType {
    pub(crate) const ETHERNET: Self = Self(1);
    pub(crate) const RAW: Self = Self(101);

    pub(crate) const fn header(self) -> Header {
        match self.0 {
            1 => Header::Ethernet,
            // RAW, and what it is in files of some systems; IPV4 and IPV6
            12 | 14 | 101 | 228 | 229 => Header::Ip,
            113 => Header::Cooked,
            276 => Header::Cooked2,
            0 | 108 => Header::Family,
            _ => Header::Other,
        }
    }
}
