// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which addresses packets don't leave for through given interfaces, as far as routes tell.
//!
//! Rules (ip-rule(8)) may choose a table by anything, so an address counts as elsewhere if any table leads there by another interface:
//! whoever acts on the rest then acts on nothing that isn't there.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anyhow::{Context, Result};
use ipnet::IpNet;

use super::netlink::{Netlink, Route};
use crate::net::ranges::Ranges;

/// The routes of the network namespace that it was made in.
#[derive(Debug)]
pub(super) struct Routes {
    changes: Netlink,
}

impl Routes {
    pub(super) fn watch() -> Result<Self> {
        let changes = Netlink::of_changes().context("cannot hear of changes of routes")?;
        Ok(Self { changes })
    }

    pub(super) fn changed(&self) -> Result<bool> {
        self.changes.changed().context("cannot hear of changes of routes")
    }

    /// Every address that isn't reached through one of `devices` alone, this machine's own included; and the IPv6 networks that are on
    /// the link of one of them.
    pub(super) fn look(devices: &[i32]) -> Result<(Ranges, Ranges)> {
        let routes = Netlink::open()
            .and_then(|netlink| netlink.routes())
            .context("cannot list the routes")?;
        Ok((elsewhere(&routes, devices), on_link(&routes, devices)))
    }
}

fn on_link(routes: &[Route], devices: &[i32]) -> Ranges {
    let on_link = |route: &&Route| {
        // A route for everybody without a router is one through a tunnel, where nobody is looked for.
        let network = matches!(route.net, IpNet::V6(_)) && route.net.prefix_len() > 0;
        network && route.direct && route.devices.iter().any(|it| devices.contains(it))
    };
    routes.iter().filter(on_link).map(|route| route.net).collect()
}

/// A range of addresses, and whether it is elsewhere.
type Span = (u128, u128, bool);

fn elsewhere(routes: &[Route], devices: &[i32]) -> Ranges {
    // Of a table and a network: the lowest metric, and whether it leads elsewhere.
    let mut best: BTreeMap<(u32, IpNet), (u32, bool)> = BTreeMap::new();
    for route in routes {
        let other =
            route.devices.is_empty() || route.devices.iter().any(|it| !devices.contains(it));
        best.entry((route.table, route.net))
            .and_modify(|(metric, elsewhere)| match route.metric.cmp(metric) {
                std::cmp::Ordering::Less => (*metric, *elsewhere) = (route.metric, other),
                std::cmp::Ordering::Equal => *elsewhere |= other,
                std::cmp::Ordering::Greater => {}
            })
            .or_insert((route.metric, other));
    }
    let mut tables: BTreeMap<u32, [Vec<Span>; 2]> = BTreeMap::new();
    for ((table, net), (_, other)) in best {
        let [v4, v6] = tables.entry(table).or_default();
        match net {
            IpNet::V4(net) => {
                let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                v4.push((first.into(), last.into(), other));
            }
            IpNet::V6(net) => {
                v6.push((net.network().to_bits(), net.broadcast().to_bits(), other));
            }
        }
    }
    // To no address in particular is to this machine.
    let mut found = ["0.0.0.0/32", "127.0.0.0/8", "::/127"]
        .iter()
        .map(|net| net.parse::<IpNet>().expect("a network"))
        .collect::<Ranges>();
    for [v4, v6] in tables.into_values() {
        let v4 = longest_match(v4).into_iter().map(|(first, last)| (first as u32, last as u32));
        found = found.with(&Ranges::between(v4.collect(), longest_match(v6)));
    }
    found
}

/// What is elsewhere by the smallest span that an address is in. Spans are networks: one is inside another, or apart from it.
fn longest_match(mut spans: Vec<Span>) -> Vec<(u128, u128)> {
    spans.sort_unstable_by_key(|&(first, last, _)| (first, Reverse(last)));
    let mut found = Vec::new();
    // Those that the next address is in, the smallest last; and that address, if there is one.
    let mut around: Vec<(u128, bool)> = Vec::new();
    let mut next = Some(0_u128);
    let mut close =
        |around: &mut Vec<(u128, bool)>, next: &mut Option<u128>, until: Option<u128>| {
            while let Some(&(last, elsewhere)) = around.last() {
                let Some(at) = *next else { return };
                let end = until.filter(|&until| until <= last);
                // Up to where the next span begins, or to the end of this.
                if elsewhere
                    && let Some(to) = end.map_or(Some(last), |end| end.checked_sub(1))
                    && at <= to
                {
                    found.push((at, to));
                }
                match end {
                    Some(_) => return,
                    None => {
                        *next = last.checked_add(1).map(|behind| behind.max(at));
                        around.pop();
                    }
                }
            }
        };
    for (first, last, elsewhere) in spans {
        close(&mut around, &mut next, Some(first));
        next = Some(first);
        around.push((last, elsewhere));
    }
    close(&mut around, &mut next, None);
    found
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::random::seeded;

    fn route(table: u32, net: &str, metric: u32, devices: &[i32]) -> Route {
        let (net, devices) = (net.parse().unwrap(), devices.to_vec());
        Route { table, net, metric, devices, direct: false }
    }

    #[test]
    fn the_longest_prefix_decides_and_any_table_counts() {
        let routes = [
            route(254, "0.0.0.0/0", 100, &[2]),
            route(254, "0.0.0.0/0", 200, &[3]),
            route(254, "10.0.0.0/8", 0, &[3]),
            route(254, "10.1.0.0/16", 0, &[2]),
            route(254, "10.1.2.0/24", 0, &[2, 3]),
            route(254, "192.0.2.0/24", 0, &[2]),
            route(255, "192.0.2.7/32", 0, &[]),
            route(100, "198.51.100.0/24", 0, &[4]),
            route(254, "::/0", 0, &[2]),
            route(254, "fd00::/8", 0, &[9]),
        ];
        let set = elsewhere(&routes, &[2]);
        for (addr, expected) in [
            ("203.0.113.1", false),
            ("10.0.0.1", true),
            ("10.255.255.255", true),
            ("10.1.0.1", false),
            ("10.1.2.3", true),
            ("10.1.3.0", false),
            ("192.0.2.1", false),
            ("192.0.2.7", true),
            ("198.51.100.9", true),
            ("127.0.0.1", true),
            ("0.0.0.0", true),
            ("2001:db8::1", false),
            ("fd12::1", true),
            ("::1", true),
            ("::", true),
        ] {
            assert_eq!(set.contains(addr.parse().unwrap()), expected, "{addr}");
        }
        // Through either, nothing of the main table is elsewhere.
        assert!(!elsewhere(&routes, &[2, 3]).contains("10.1.2.3".parse().unwrap()));
    }

    #[test]
    fn what_no_router_is_between_is_on_the_link() {
        let direct = |net, device| Route { direct: true, ..route(254, net, 0, &[device]) };
        let routes = [
            direct("2001:db8:1::/64", 2),
            direct("2001:db8:2::/64", 3),
            route(254, "2001:db8:3::/64", 0, &[2]),
            direct("::/0", 2),
            direct("192.0.2.0/24", 2),
        ];
        let set = on_link(&routes, &[2]);
        for (addr, expected) in [
            ("2001:db8:1::9", true),
            ("2001:db8:2::9", false),
            ("2001:db8:3::9", false),
            ("2001:db8:4::9", false),
            ("192.0.2.1", false),
        ] {
            assert_eq!(set.contains(addr.parse().unwrap()), expected, "{addr}");
        }
    }

    #[test]
    fn random_tables_are_as_a_look_at_each_route() {
        let mut random = seeded();
        for _ in 0..200 {
            let routes: Vec<Route> = (0..random.usize(..20))
                .map(|_| {
                    let addr = Ipv4Addr::from_bits(0xfff0_0000 | random.u32(..1 << 20));
                    let net = IpNet::new(IpAddr::V4(addr), random.u8(8..=32)).unwrap().trunc();
                    let devices = vec![random.i32(1..3)];
                    let (table, metric) = (random.u32(1..3), random.u32(..2));
                    Route { table, net, metric, devices, direct: false }
                })
                .collect();
            let set = elsewhere(&routes, &[1]);
            for _ in 0..200 {
                let addr = IpAddr::V4(Ipv4Addr::from_bits(0xfff0_0000 | random.u32(..1 << 20)));
                let expected = (1..3).any(|table| {
                    let fits = |route: &&Route| route.table == table && route.net.contains(&addr);
                    let length = routes.iter().filter(fits).map(|it| it.net.prefix_len()).max();
                    let longest = |it: &&Route| Some(it.net.prefix_len()) == length;
                    let metric =
                        routes.iter().filter(fits).filter(longest).map(|it| it.metric).min();
                    routes
                        .iter()
                        .filter(fits)
                        .filter(longest)
                        .any(|it| Some(it.metric) == metric && it.devices != [1])
                });
                assert_eq!(set.contains(addr), expected, "{addr} {routes:?}");
            }
        }
    }
}
