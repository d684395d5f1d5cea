// SPDX-License-Identifier: MIT OR Apache-2.0

//! The options that say what to drop.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use crate::commands::common::{counted, tell};
use crate::error::usage;
use crate::filter::classic::insn::Insn;
use crate::filter::libpcap::{self, Names, Source};
use crate::kernel::drop::{Combined, MOST_EXPRESSIONS, Row, Rules};
use crate::kernel::interfaces::{Expression, link_of};
use crate::kernel::netlink::Interface;
use crate::net::blocklist::{self, Blocklist};
use crate::net::protos::{self, ProtoList};
use crate::output::Progress;
use crate::values::{CidrList, PortSet, parse_rate};

/// What to drop. Without any of these: ICMP, and ICMPv6 but for neighbour discovery
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Rules")]
pub(crate) struct RuleArgs {
    /// Drop these protocols, by name or number, such as tcp,udp,47
    #[arg(long, value_name = "LIST")]
    proto: Option<ProtoList>,

    /// Drop what comes from these addresses, such as 192.0.2.1,2001:db8::/32
    #[arg(long, value_name = "LIST")]
    src: Option<CidrList>,

    /// Drop what goes to these addresses
    #[arg(long, value_name = "LIST")]
    dst: Option<CidrList>,

    /// Drop what comes from these ports, such as 53,1024-2048,domain
    #[arg(long, value_name = "LIST")]
    sport: Option<PortSet>,

    /// Drop what goes to these ports
    #[arg(long, value_name = "LIST")]
    dport: Option<PortSet>,

    /// Drop what comes from (at egress: goes to) an address in FILE, one CIDR a line; SIGHUP reads it again
    #[arg(long, value_name = "FILE")]
    pub(super) blocklist: Option<PathBuf>,

    /// Take a --blocklist without any address, at the start and when it is read again
    #[arg(long, requires = "blocklist")]
    pub(super) allow_empty: bool,

    /// Drop what this tcpdump expression matches; may be given several times, each with a row of its own
    #[arg(long = "match", value_name = "EXPR")]
    matches: Vec<String>,

    /// Never drop what this tcpdump expression matches; may be given several times
    #[arg(long = "except", value_name = "EXPR")]
    excepts: Vec<String>,

    /// Let each rule's first N packets a second through
    #[arg(long, value_name = "N/s", value_parser = parse_rate)]
    pub(super) rate: Option<u64>,
}

/// A rule and what it is called.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) row: Row,
    pub(crate) name: String,
    pub(crate) proto: String,
}

impl RuleArgs {
    /// Whether there is an expression; with the one behind the interfaces.
    pub(super) fn has_expressions(&self, last: bool) -> bool {
        last || !self.matches.is_empty() || !self.excepts.is_empty()
    }

    /// `last` is the expression behind the interfaces.
    pub(super) fn resolve(
        &self,
        last: Option<&Expression>,
        interfaces: &[Interface],
    ) -> Result<(Rules, Vec<Named>)> {
        self.contradictions()?;
        let mut named = Vec::new();
        let blocklist = match &self.blocklist {
            None => None,
            Some(path) => {
                let mut progress = Progress::new(format!("reading {}", path.display()));
                let list = read_blocklist(path, self.allow_empty, |share| progress.tell(share))?;
                drop(progress);
                tell(&entries(path, &list));
                Some(list.ranges)
            }
        };
        if blocklist.is_some() {
            named.push(Named {
                row: Row::BLOCKLIST,
                name: "blocklist".into(),
                proto: "any".into(),
            });
        }
        let expressions: Vec<&str> = last
            .map(|last| last.text.as_str())
            .into_iter()
            .chain(self.matches.iter().map(String::as_str))
            .collect();
        if expressions.len().max(self.excepts.len()) > MOST_EXPRESSIONS {
            return Err(usage(format!("more than {MOST_EXPRESSIONS} expressions")));
        }
        let compile = |expression: &str| -> Result<Vec<Insn>> {
            let packets = link_of(interfaces.iter())?.into();
            libpcap::compile(&Source { expression, packets, optimize: true, names: Names::REFUSED })
        };
        let last = last.map(|last| compile(&last.text).map_err(|error| last.explain(error)));
        let matches = last
            .into_iter()
            .chain(self.matches.iter().map(|expression| compile(expression)))
            .collect::<Result<_>>()?;
        let excepts =
            self.excepts.iter().map(|expression| compile(expression)).collect::<Result<_>>()?;
        let combined = self.combined(blocklist.is_some() || !expressions.is_empty());
        if let Some((_, name, proto)) = &combined {
            named.push(Named { row: Row::COMBINED, name: name.clone(), proto: proto.clone() });
        }
        for (n, expression) in expressions.iter().enumerate() {
            let name = (*expression).to_string();
            named.push(Named { row: Row::expression(n), name, proto: "any".into() });
        }
        if !self.excepts.is_empty() {
            named.push(Named { row: Row::EXCEPTED, name: "excepted".into(), proto: String::new() });
        }
        let combined = combined.map(|(combined, ..)| combined);
        Ok((Rules { blocklist, combined, matches, excepts }, named))
    }

    /// Rules that no packet matches.
    fn contradictions(&self) -> Result<()> {
        let Some(protos) = &self.proto else { return Ok(()) };
        for (given, option) in
            [(self.sport.is_some(), "--sport"), (self.dport.is_some(), "--dport")]
        {
            if given && !protos.0.iter().any(|&proto| protos::has_ports(proto)) {
                return Err(usage(format!(
                    "{option}: {protos} has no ports, so that no packet would match; expected --proto tcp, udp, sctp, dccp or udplite with it"
                )));
            }
        }
        Ok(())
    }

    /// The rule that the options make together, its name and its protocols.
    fn combined(&self, others: bool) -> Option<(Combined, String, String)> {
        let words =
            |what: &str, value: Option<String>| value.map(|value| format!("{what} {value}"));
        let parts: Vec<String> = [
            self.proto.as_ref().map(ToString::to_string),
            words("src", self.src.as_ref().map(ToString::to_string)),
            words("dst", self.dst.as_ref().map(ToString::to_string)),
            words("sport", self.sport.as_ref().map(ToString::to_string)),
            words("dport", self.dport.as_ref().map(ToString::to_string)),
        ]
        .into_iter()
        .flatten()
        .collect();
        if parts.is_empty() {
            let icmp = ProtoList([1, 58].into());
            let rule = Combined {
                protos: Some(icmp.words()),
                spare_neighbours: true,
                ..Combined::default()
            };
            return (!others).then(|| (rule, "icmp".into(), icmp.to_string()));
        }
        let rule = Combined {
            protos: self.proto.as_ref().map(ProtoList::words),
            src: self.src.as_ref().map(|list| list.0.iter().copied().collect()),
            dst: self.dst.as_ref().map(|list| list.0.iter().copied().collect()),
            sport: self.sport.as_ref().map(PortSet::words),
            dport: self.dport.as_ref().map(PortSet::words),
            spare_neighbours: false,
        };
        let protos = self.proto.as_ref().map_or_else(|| "any".into(), ToString::to_string);
        Some((rule, parts.join(" "), protos))
    }
}

/// An empty file is a slip: half written, or the wrong one.
pub(super) fn read_blocklist(
    path: &Path,
    allow_empty: bool,
    progress: impl FnMut(f64),
) -> Result<Blocklist> {
    let list = blocklist::read("the block list", path, progress)?;
    if list.entries == 0 && !allow_empty {
        return Err(usage(format!(
            "--blocklist {}: no address in it, so that nothing would be dropped by it; --allow-empty takes it all the same",
            path.display()
        )));
    }
    Ok(list)
}

/// How much is in it, for people.
pub(super) fn entries(path: &Path, list: &Blocklist) -> String {
    format!("{}: {}", path.display(), counted(list.entries as u64, "entry", "entries"))
}
