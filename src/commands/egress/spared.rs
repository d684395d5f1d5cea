// SPDX-License-Identifier: MIT OR Apache-2.0

//! What stays open beside an allow list, and for whom: the resolvers that this machine asks, the servers of its leases.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use ipnet::IpNet;

use crate::net::ranges::Ranges;
use crate::net::resolv_conf;

/// What can be closed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Closed {
    /// Questions to the resolvers in force
    Dns,
    /// What a DHCP client sends
    Dhcp,
    /// ARP, and EAPOL
    Arp,
    /// Neighbour discovery, MLD and IGMP
    Nd,
    /// The SSH connection that bpftk is run from
    Ssh,
}

/// The resolvers in force, but for those on this machine, which no packet leaves for.
pub(super) fn resolvers(given: &[IpAddr]) -> BTreeSet<IpAddr> {
    let outside = |addr: &IpAddr| !addr.is_loopback() && !addr.is_unspecified();
    given
        .iter()
        .map(IpAddr::to_canonical)
        .chain(resolv_conf::nameservers())
        .filter(outside)
        .collect()
}

/// The servers that gave the interfaces their leases, as systemd-networkd and dhclient keep them.
pub(super) fn dhcp_servers(interfaces: &[(String, i32)]) -> BTreeSet<IpAddr> {
    let mut servers = BTreeSet::new();
    for (name, index) in interfaces {
        let lease = Path::new("/run/systemd/netif/leases").join(index.to_string());
        servers.extend(fs::read_to_string(lease).ok().and_then(|text| networkd_server(&text)));
        for directory in ["/var/lib/dhcp", "/var/lib/dhclient", "/var/lib/NetworkManager"] {
            let texts = leases(Path::new(directory)).into_iter();
            let texts = texts.filter_map(|path| fs::read_to_string(path).ok());
            servers.extend(texts.flat_map(|text| dhclient_servers(&text, name)));
        }
    }
    servers
}

fn leases(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .filter(|path| matches!(path.extension(), Some(it) if it == "lease" || it == "leases"))
        .collect()
}

fn networkd_server(text: &str) -> Option<IpAddr> {
    text.lines().find_map(|line| line.strip_prefix("SERVER_ADDRESS="))?.trim().parse().ok()
}

/// Of the interface's last lease: a file has earlier ones, from networks that were left.
fn dhclient_servers(text: &str, interface: &str) -> Option<IpAddr> {
    let wanted = format!("interface \"{interface}\";");
    let last = text.rsplit("lease {").find(|lease| lease.contains(&wanted))?;
    let statement = last.lines().find_map(|line| {
        line.trim().strip_prefix("option dhcp-server-identifier")?.trim().strip_suffix(';')
    })?;
    statement.parse().ok()
}

pub(super) fn ranges(addresses: &BTreeSet<IpAddr>) -> Ranges {
    addresses.iter().map(|&addr| IpNet::from(addr)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_on_this_machine_need_not_be_open() {
        let given: [IpAddr; 3] =
            ["127.0.0.53", "::1", "198.51.100.53"].map(|it| it.parse().unwrap());
        let found = resolvers(&given);
        assert!(
            found.contains(&given[2]) && !found.contains(&given[0]) && !found.contains(&given[1])
        );
    }

    #[test]
    fn the_last_lease_tells_its_server() {
        assert_eq!(
            networkd_server("# private\nADDRESS=192.0.2.9\nSERVER_ADDRESS=192.0.2.1\nT1=1\n"),
            "192.0.2.1".parse().ok()
        );
        let lease = |interface: &str, server: &str| {
            format!(
                "lease {{\n  interface \"{interface}\";\n  fixed-address 192.0.2.9;\n  \
                 option dhcp-server-identifier {server};\n  renew 2 2026/01/01 00:00:00;\n}}\n"
            )
        };
        let text =
            [lease("a", "192.0.2.1"), lease("a", "192.0.2.2"), lease("b", "192.0.2.3")].concat();
        assert_eq!(dhclient_servers(&text, "a"), "192.0.2.2".parse().ok());
        assert_eq!(dhclient_servers(&text, "b"), "192.0.2.3".parse().ok());
        assert_eq!(dhclient_servers(&text, "c"), None);
    }
}
