// SPDX-License-Identifier: MIT OR Apache-2.0

//! The options that say what to stop, and what rules are called.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use ipnet::IpNet;

use super::spared::{self, Closed};
use crate::commands::common::{counted, read_list, tell};
use crate::error::usage;
use crate::filter::libpcap::{self, Names, Source};
use crate::kernel::attach::tc::Direction;
use crate::kernel::egress::{MOST_MATCHES, Rule, RuleHook, Rules, Spares};
use crate::kernel::guard::{Needs, Ssh};
use crate::kernel::interfaces::link_of;
use crate::kernel::netlink::Interface;
use crate::net::blocklist::{self, Blocklist};
use crate::net::ranges::Ranges;
use crate::values::CidrList;

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Blocking")]
pub(crate) struct BlockArgs {
    /// Drop what goes to these addresses, and refuse processes that ask for them; may be given several times
    #[arg(long, value_name = "CIDRS")]
    block: Vec<CidrList>,

    /// The same for the addresses in FILE, one CIDR a line; SIGHUP reads it again
    #[arg(long, value_name = "FILE")]
    block_file: Vec<PathBuf>,

    /// Take a --block-file without any address, at the start and when it is read again
    #[arg(long, requires = "block_file")]
    allow_empty: bool,

    /// Drop what this tcpdump expression matches; may be given several times
    #[arg(long, value_name = "EXPR")]
    block_match: Vec<String>,

    /// Drop, and refuse, everything but the addresses in FILE, one CIDR a line; SIGHUP reads it again. DNS to the resolvers in force, DHCP, ARP, neighbour discovery and your SSH connection stay open
    #[arg(long, value_name = "FILE")]
    allow_only: Vec<PathBuf>,

    /// Beside --allow-only, DNS stays open to this resolver too; may be given several times
    #[arg(long, value_name = "ADDR", requires = "allow_only")]
    resolver: Vec<IpAddr>,

    /// Of what stays open beside --allow-only, close these: dns, dhcp, arp, nd (neighbour discovery), ssh
    #[arg(long, value_name = "LIST", value_delimiter = ',', hide_possible_values = true)]
    closed: Vec<Closed>,

    /// All of --closed: nothing stays open but what the list of --allow-only has; and no rule is refused for what it would cut off
    #[arg(long, conflicts_with = "closed")]
    strict: bool,

    /// Show what would be blocked, and block nothing
    #[arg(long)]
    dry_run: bool,
}

/// The rules, as the kernel takes them and as they are called.
#[derive(Clone, Debug)]
pub(super) struct Blocking {
    pub(super) rules: Rules,
    pub(super) names: RuleNames,
    /// What rules are refused for that would cut it off.
    pub(super) needs: Needs,
}

impl BlockArgs {
    fn any(&self) -> bool {
        !self.block.is_empty()
            || !self.block_file.is_empty()
            || !self.block_match.is_empty()
            || !self.allow_only.is_empty()
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether there are lists that can be read again.
    pub(super) fn rereads(&self) -> bool {
        !self.block_file.is_empty() || !self.allow_only.is_empty()
    }

    /// What stays open beside an allow list.
    fn stays_open(&self, what: Closed) -> bool {
        !self.strict && !self.closed.contains(&what)
    }

    fn contradictions(&self) -> Result<()> {
        if !self.closed.is_empty() && self.allow_only.is_empty() {
            return Err(usage(
                "--closed: nothing is closed but by a list of what to allow; expected --allow-only with it",
            ));
        }
        if !self.resolver.is_empty() && !self.stays_open(Closed::Dns) {
            return Err(usage(
                "--resolver: contradicts --closed dns and --strict, which leave no resolver open",
            ));
        }
        Ok(())
    }

    pub(super) fn resolve(
        &self,
        direction: Direction,
        interfaces: &[Interface],
    ) -> Result<Option<Blocking>> {
        if !self.any() {
            for (given, option) in [
                (self.strict, "--strict"),
                (!self.closed.is_empty(), "--closed"),
                (self.dry_run, "--dry-run"),
            ] {
                if given {
                    return Err(usage(format!(
                        "{option}: nothing is blocked; expected --block, --block-file, --block-match or --allow-only with it"
                    )));
                }
            }
            return Ok(None);
        }
        self.contradictions()?;
        if direction == Direction::Ingress {
            return Err(usage(
                "--block and its like stop what goes out; expected --direction egress, or xdp-drop or tc-drop for what comes in",
            ));
        }
        if self.block_match.len() > MOST_MATCHES {
            return Err(usage(format!("more than {MOST_MATCHES} expressions to block")));
        }
        let matches = self
            .block_match
            .iter()
            .map(|expression| {
                let packets = link_of(interfaces.iter())?.into();
                libpcap::compile(&Source {
                    expression,
                    packets,
                    optimize: true,
                    names: Names::REFUSED,
                })
            })
            .collect::<Result<_>>()?;
        let names = named(interfaces);
        let Lists { blocked, allowed, spares, entries } = self.lists(&names, true)?;
        for entries in entries {
            tell(&entries);
        }
        let rules = Rules {
            blocked,
            allowed,
            matches,
            spares,
            ssh: Ssh::current().filter(|_| self.stays_open(Closed::Ssh)),
            dry_run: self.dry_run,
        };
        let names = RuleNames {
            nets: self.block.iter().flat_map(|list| list.0.iter().copied()).collect(),
            matches: self.block_match.clone(),
            dry_run: self.dry_run,
        };
        let needed = |what| !self.dry_run && self.stays_open(what);
        let needs = Needs {
            ssh: Ssh::current().filter(|_| needed(Closed::Ssh)),
            arp: needed(Closed::Arp),
            neighbours: needed(Closed::Nd),
        };
        Ok(Some(Blocking { rules, names, needs }))
    }

    /// What is blocked, and what alone is allowed, as the files have it now.
    pub(super) fn lists(
        &self,
        interfaces: &[(String, i32)],
        shows_progress: bool,
    ) -> Result<Lists> {
        let mut entries = Vec::new();
        let mut read = |what: &str, path: &Path| -> Result<Blocklist> {
            let list = if shows_progress {
                read_list(what, path)?
            } else {
                blocklist::read(what, path, |_| {})?
            };
            let number = counted(list.entries as u64, "entry", "entries");
            entries.push(format!("{}: {number}", path.display()));
            Ok(list)
        };
        let mut blocked: Ranges =
            self.block.iter().flat_map(|list| list.0.iter().copied()).collect();
        for path in &self.block_file {
            let list = read("the list of what to block", path)?;
            if list.entries == 0 && !self.allow_empty {
                return Err(usage(format!(
                    "--block-file {}: no address in it, so that nothing would be blocked by it; --allow-empty takes it all the same",
                    path.display()
                )));
            }
            blocked = blocked.with(&list.ranges);
        }
        let mut allowed = Ranges::default();
        for path in &self.allow_only {
            let list = read("the list of what to allow", path)?;
            // An empty file is a slip: half written, or the wrong one.
            if list.entries == 0 {
                return Err(usage(format!(
                    "--allow-only {}: no address in it, so that nothing would be allowed; to block everything, --block 0.0.0.0/0,::/0 --strict",
                    path.display()
                )));
            }
            allowed = allowed.with(&list.ranges);
        }
        let blocks = !self.block.is_empty() || !self.block_file.is_empty();
        let allows = !self.allow_only.is_empty();
        let spares = if allows { self.spares(interfaces, &mut entries) } else { Spares::default() };
        Ok(Lists {
            blocked: blocks.then_some(blocked),
            allowed: allows.then_some(allowed),
            spares,
            entries,
        })
    }

    /// As the machine's own files have it now.
    fn spares(&self, interfaces: &[(String, i32)], entries: &mut Vec<String>) -> Spares {
        let dns = self.stays_open(Closed::Dns).then(|| spared::resolvers(&self.resolver));
        if let Some(resolvers) = &dns {
            let names: Vec<_> = resolvers.iter().map(ToString::to_string).collect();
            entries.push(if names.is_empty() {
                "DNS: closed, since no resolver outside of this machine is in /etc/resolv.conf; expected --resolver".into()
            } else {
                format!("DNS: open to {}", names.join(", "))
            });
        }
        let dhcp = self.stays_open(Closed::Dhcp).then(|| spared::dhcp_servers(interfaces));
        Spares {
            dns: dns.as_ref().map(spared::ranges),
            dhcp: dhcp.as_ref().map(spared::ranges),
            arp: self.stays_open(Closed::Arp),
            neighbours: self.stays_open(Closed::Nd),
        }
    }
}

/// Names and indexes.
pub(super) fn named(interfaces: &[Interface]) -> Vec<(String, i32)> {
    interfaces.iter().map(|interface| (interface.name.clone(), interface.index)).collect()
}

/// What the files of the rules have.
#[derive(Debug)]
pub(super) struct Lists {
    pub(super) blocked: Option<Ranges>,
    pub(super) allowed: Option<Ranges>,
    /// What stays open beside it.
    pub(super) spares: Spares,
    /// How much is in each file, for people.
    pub(super) entries: Vec<String>,
}

/// How rules and verdicts are called.
#[derive(Clone, Debug)]
pub(super) struct RuleNames {
    nets: Vec<IpNet>,
    matches: Vec<String>,
    dry_run: bool,
}

impl RuleNames {
    /// Of a block, the network that was asked for, where the address tells.
    pub(super) fn rule(&self, rule: Rule, addr: Option<IpAddr>) -> String {
        match rule {
            Rule::Allowed => "allow-only".into(),
            Rule::Link => "link".into(),
            Rule::Neighbours => "neighbours".into(),
            Rule::Dns => "dns".into(),
            Rule::Dhcp => "dhcp".into(),
            Rule::Ssh => "ssh".into(),
            Rule::Lapsed => "lapsed".into(),
            Rule::Default => "default".into(),
            Rule::Blocked => {
                let addr = addr.map(|addr| addr.to_canonical());
                let inside = |net: &&IpNet| addr.is_some_and(|addr| net.contains(&addr));
                match self.nets.iter().filter(inside).max_by_key(|net| net.prefix_len()) {
                    Some(net) => format!("block {net}"),
                    None => "block".into(),
                }
            }
            Rule::Match(n) => {
                let text = self.matches.get(n).map_or("", String::as_str);
                format!("match {text}")
            }
        }
    }

    pub(super) fn verdict(&self, blocked: bool, hook: RuleHook) -> &'static str {
        match (blocked, hook, self.dry_run) {
            (false, ..) => "pass",
            (true, RuleHook::Tc, false) => "drop",
            (true, RuleHook::Tc, true) => "would-drop",
            (true, _, false) => "refuse",
            (true, _, true) => "would-refuse",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_called_by_what_was_asked_for() {
        let names = RuleNames {
            nets: ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"].map(|n| n.parse().unwrap()).into(),
            matches: vec!["udp".into(), "tcp port 80".into()],
            dry_run: true,
        };
        let rule = |rule, addr: &str| names.rule(rule, addr.parse().ok());
        assert_eq!(rule(Rule::Blocked, "10.1.2.3"), "block 10.1.0.0/16");
        assert_eq!(rule(Rule::Blocked, "::ffff:10.2.2.3"), "block 10.0.0.0/8");
        assert_eq!(rule(Rule::Blocked, "192.0.2.1"), "block");
        assert_eq!(rule(Rule::Match(1), ""), "match tcp port 80");
        assert_eq!(names.verdict(true, RuleHook::Connect), "would-refuse");
        assert_eq!(names.verdict(false, RuleHook::Tc), "pass");
    }
}
