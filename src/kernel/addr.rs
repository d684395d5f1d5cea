// SPDX-License-Identifier: MIT OR Apache-2.0

//! Addresses as the records have them: 16 bytes, IPv4 v4-mapped.

use std::net::{IpAddr, Ipv6Addr};

/// The one place where a v4-mapped address becomes the IPv4 address that it is.
pub(crate) fn canonical(addr: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(addr).to_canonical()
}
