// SPDX-License-Identifier: MIT OR Apache-2.0

//! The options that say what is not looked at closely: counted in one row, whatever their number.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::commands::common::read_list;
use crate::error::usage;
use crate::net::ranges::Ranges;
use crate::net::special;
use crate::values::CidrList;

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Addresses")]
pub(crate) struct ExcludeArgs {
    /// Count what goes to these addresses (at ingress: comes from) in one row `excluded`; may be given several times
    #[arg(long, value_name = "CIDRS")]
    exclude: Vec<CidrList>,

    /// The same for the addresses in FILE, one CIDR a line; may be given several times
    #[arg(long, value_name = "FILE")]
    exclude_file: Vec<PathBuf>,

    /// The same for all addresses that are not globally reachable, by IANA's registries
    #[arg(long)]
    exclude_private: bool,

    /// Exclude all other addresses than these; may be given several times
    #[arg(long, value_name = "CIDRS")]
    only: Vec<CidrList>,
}

impl ExcludeArgs {
    /// Every address that is excluded. What --only has can still be excluded.
    pub(super) fn resolve(&self) -> Result<Option<Ranges>> {
        let asked = !self.exclude.is_empty()
            || !self.exclude_file.is_empty()
            || self.exclude_private
            || !self.only.is_empty();
        if !asked {
            return Ok(None);
        }
        let nets = |lists: &[CidrList]| -> Ranges {
            lists.iter().flat_map(|list| list.0.iter().copied()).collect()
        };
        let mut excluded = nets(&self.exclude);
        for path in &self.exclude_file {
            excluded = excluded.with(&read_list("the list of addresses", path)?.ranges);
        }
        if self.exclude_private {
            excluded = excluded.with(&special::not_global());
        }
        if !self.only.is_empty() {
            let only = nets(&self.only);
            let left = only.without(&excluded);
            if left.v4().is_empty() && left.v6().is_empty() {
                return Err(usage(
                    "--only: all of it is excluded by --exclude and its like, so that nothing would be counted by itself",
                ));
            }
            excluded = excluded.with(&Ranges::all().without(&only));
        }
        Ok(Some(excluded))
    }
}
