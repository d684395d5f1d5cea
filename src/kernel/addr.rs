// SPDX-License-Identifier: MIT OR Apache-2.0

//! Addresses as the records have them: 16 bytes, IPv4 v4-mapped.

use std::net::{IpAddr, Ipv6Addr};

/// The one place where a v4-mapped address becomes the IPv4 address that it is.
pub(crate) fn canonical(addr: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(addr).to_canonical()
}

/// And back.
pub(crate) fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
