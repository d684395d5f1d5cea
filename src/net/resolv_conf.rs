// SPDX-License-Identifier: MIT OR Apache-2.0

//! The resolvers that this machine is set to.

use std::fs;
use std::net::IpAddr;

/// resolv.conf(5), and where stub resolvers on the loopback have their own.
const RESOLV_CONF: [&str; 3] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
];

/// Those in force, stub resolvers on this machine included.
pub(crate) fn nameservers() -> impl Iterator<Item = IpAddr> {
    let texts = RESOLV_CONF.iter().filter_map(|path| fs::read(path).ok());
    texts.flat_map(|text| parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split([' ', '\t']).filter(|word| !word.is_empty());
        // The keyword begins the line, and an address may have a zone.
        let keyword = line.starts_with("nameserver") && words.next() == Some("nameserver");
        let word = words.next().filter(|_| keyword)?;
        Some(word.split('%').next()?.parse::<IpAddr>().ok()?.to_canonical())
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_resolver_does() {
        let text = "# nameserver 192.0.2.1\nnameserver\t192.0.2.2 \nnameserver 2001:db8::1%eth0\n\
            nameservers 192.0.2.3\n nameserver 192.0.2.4\nsearch nameserver\nnameserver ::ffff:192.0.2.5\n";
        let expected: [IpAddr; 3] =
            ["192.0.2.2", "2001:db8::1", "192.0.2.5"].map(|it| it.parse().unwrap());
        assert_eq!(parse(text), expected);
    }
}
