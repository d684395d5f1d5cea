// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--suggest`: what was seen, as a list that `--allow-only` takes.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use ipnet::IpNet;
use jiff::Timestamp;

use super::book::{Book, Row, Share};
use crate::commands::common::amount;
use crate::error::usage;
use crate::kernel::count::Count;
use crate::kernel::egress::{Key, Rows};
use crate::kernel::owners::Owner;
use crate::net::names::Name;
use crate::output::{file, printable};

/// Of a comment: longer lines than some thousand bytes are no entries.
const MOST_NAMES: usize = 8;
const MOST_USERS: usize = 8;
const LONGEST_WORD: usize = 120;

/// Who sent where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Use {
    addr: Option<IpAddr>,
    blocked: bool,
    share: Share,
    /// The program, or what the process calls itself.
    program: Option<String>,
}

impl Row for Use {
    fn share(&self) -> Share {
        self.share
    }
}

/// What a list is made of.
#[derive(Debug)]
pub(super) struct Suggestions {
    path: PathBuf,
    begin: Timestamp,
    /// How many bits of an address are its network.
    bits: (u8, u8),
    packets: Book<Key, Use>,
    names: HashMap<IpAddr, Vec<Name>>,
}

impl Suggestions {
    /// What can't be written at the end is told at the start. A file that is there stays as it is until then.
    pub(super) fn new(path: &Path, bits: (u8, u8)) -> Result<Self> {
        let failed =
            |error: std::io::Error| usage(format!("--suggest {}: {error}", path.display()));
        file::append(path).map_err(failed)?;
        Ok(Self {
            path: path.into(),
            begin: Timestamp::now(),
            bits,
            packets: Book::that_remembers(),
            names: HashMap::new(),
        })
    }

    /// What came in an interval. `owner` says whose a key is.
    pub(super) fn add(
        &mut self,
        keys: &[(Key, Count)],
        calls: &[(Key, Count)],
        owner: impl Fn(&Key) -> Option<Owner>,
        names: impl Fn(&Key) -> Vec<Name>,
    ) {
        for (key, _) in keys {
            let Some(addr) = key.addr else { continue };
            let found = names(key);
            if found.is_empty() {
                continue;
            }
            let known = self.names.entry(addr).or_default();
            for name in found {
                if known.len() < MOST_NAMES && !known.contains(&name) {
                    known.push(name);
                }
            }
        }
        let row = |key: &Key| use_of(key, owner(key));
        // A call that was refused was one packet at least, if it had been let through.
        let all = keys.iter().chain(calls).copied();
        self.packets.add(all, Rows::default(), Instant::now(), row);
    }

    /// Writes the list in the place of what was there, or leaves that.
    pub(super) fn write(
        &self,
        through: &str,
        rows: &Rows,
        owner: impl Fn(&Key) -> Option<Owner>,
    ) -> Result<usize> {
        let (text, entries) = self.text(through, rows, owner);
        let failed = || format!("cannot write --suggest {}", self.path.display());
        file::replace(&self.path, text.as_bytes()).with_context(failed)?;
        Ok(entries)
    }

    fn text(
        &self,
        through: &str,
        rows: &Rows,
        owner: impl Fn(&Key) -> Option<Owner>,
    ) -> (String, usize) {
        let mut nets: BTreeMap<(bool, IpNet), Seen> = BTreeMap::new();
        for (what, count) in self.packets.all(|key| use_of(key, owner(key))) {
            let Some(addr) = what.addr else { continue };
            let bits = if addr.is_ipv4() { self.bits.0 } else { self.bits.1 };
            let net = IpNet::new(addr, bits).unwrap_or_else(|_| addr.into());
            let seen = nets.entry((what.blocked, net)).or_default();
            seen.count += count;
            let who = match (&what.program, what.share) {
                (Some(program), _) => program.clone(),
                (None, Share::Kernel) => "the kernel".into(),
                (None, Share::Forwarded) => "forwarded".into(),
                (None, _) => continue,
            };
            *seen.users.entry(who).or_default() += count.packets;
        }
        let (begin, end) = (self.begin, Timestamp::now());
        let mut text = String::new();
        let _ = writeln!(
            text,
            "# Where packets went through {through}, from {begin:.0} to {end:.0}: a list for bpftk tc-egress --allow-only."
        );
        let missing = rows.not_stored() + self.packets.forgotten();
        for (count, why) in [
            (rows.excluded, "were excluded"),
            (missing, "had no room in a table: the list may lack addresses"),
        ] {
            if count.packets > 0 {
                let _ = writeln!(text, "# Not listed: {} packets that {why}.", count.packets);
            }
        }
        let mut entries = 0;
        for ((blocked, net), seen) in &nets {
            let comment = seen.comment(self.names.get(&net.addr()), *blocked);
            if *blocked {
                let _ = writeln!(text, "# blocked: {net}  {comment}");
            } else {
                entries += 1;
                let _ = writeln!(text, "{net}  # {comment}");
            }
        }
        (text, entries)
    }
}

fn use_of(key: &Key, owner: Option<Owner>) -> Use {
    let (share, program) = match owner {
        Some(Owner::Process(process, _)) => {
            let program = process.exe.clone().unwrap_or_else(|| process.comm.clone());
            (Share::Process, Some(program))
        }
        Some(Owner::Kernel) => (Share::Kernel, None),
        Some(Owner::Forwarded) => (Share::Forwarded, None),
        Some(Owner::Unknown) | None => (Share::Unknown, None),
    };
    Use { addr: key.addr, blocked: key.rule.is_some_and(|rule| rule.blocks()), share, program }
}

#[derive(Debug, Default)]
struct Seen {
    count: Count,
    users: BTreeMap<String, u64>,
}

impl Seen {
    fn comment(&self, names: Option<&Vec<Name>>, blocked: bool) -> String {
        let word = |text: &str| {
            let text: String = printable(text).chars().take(LONGEST_WORD).collect();
            text
        };
        let mut parts: Vec<String> = names
            .into_iter()
            .flatten()
            .map(|name| format!("{} ({})", word(&name.text), name.source))
            .collect();
        let mut users: Vec<_> = self.users.iter().collect();
        users.sort_by_key(|(_, packets)| std::cmp::Reverse(**packets));
        parts.extend(users.iter().take(MOST_USERS).map(|(user, _)| word(user)));
        if users.len() > MOST_USERS {
            parts.push(format!("{} more programs", users.len() - MOST_USERS));
        }
        // A call that was refused never became a packet.
        let what = if blocked { "packets and calls" } else { "packets" };
        parts.push(format!("{} {what}", self.count.packets));
        parts.push(amount(&self.count.bytes.into()));
        parts.join(", ")
    }
}
