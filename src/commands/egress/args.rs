// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command line of `bpftk tc-egress`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::block::BlockArgs;
use super::book::Sort;
use super::by::ByList;
use super::exclude::ExcludeArgs;
use super::rate::AuditRate;
use super::whose::SendersArg;
use crate::cli::OutputArgs;
use crate::kernel::attach::tc::TcBackend;
use crate::values::{number, parse_duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// Where packets go
    Egress,
    /// Where packets come from
    Ingress,
}

/// How many keys have rows of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Top {
    All,
    Most(usize),
}

impl FromStr for Top {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => match text.parse() {
                Ok(most) if most > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                    Ok(Self::Most(most))
                }
                _ => Err("expected a number of rows from 1, or all".into()),
            },
        }
    }
}

/// Count packets by where they go, tell of each flow, and stop what shall not go
#[derive(Args, Debug)]
pub(crate) struct TcEgress {
    /// Interfaces to look at, and behind them perhaps a tcpdump expression of what to look at, in one word or in several
    #[arg(required = true, value_name = "IFACE|EXPR")]
    pub(super) interfaces: Vec<String>,

    /// Where packets go to, or where they come from
    #[arg(long, value_name = "DIRECTION", default_value = "egress")]
    pub(super) direction: Way,

    #[command(flatten)]
    pub(super) excludes: ExcludeArgs,

    #[command(flatten)]
    pub(super) blocks: BlockArgs,

    /// Go on dropping when bpftk is killed or stopped, until `bpftk doctor --cleanup` or another start with this option: takes the back end clsact
    #[arg(long, help_heading = "Blocking", conflicts_with = "dry_run")]
    pub(super) fail_closed: bool,

    /// At the end, write where packets went to FILE, as a list that --allow-only takes, with who sent them
    #[arg(long, value_name = "FILE", help_heading = "Blocking")]
    pub(super) suggest: Option<PathBuf>,

    /// What makes rows differ, such as dst,port, name,process or net/24,net6/64,proto (default: dst; at ingress src)
    #[arg(long, value_name = "LIST", help_heading = "Rows")]
    pub(super) by: Option<ByList>,

    /// So many rows, and the rest in one row `other`; or all (default: 20 in tables, all in JSON and CSV)
    #[arg(long, value_name = "N", help_heading = "Rows")]
    pub(super) top: Option<Top>,

    /// What is first
    #[arg(long, value_name = "WHAT", default_value = "packets", help_heading = "Rows")]
    pub(super) sort: Sort,

    /// A table every so often, such as 500ms or 10s (default: 1s)
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, help_heading = "Rows")]
    pub(super) interval: Option<Duration>,

    /// Room in the kernel for at least so many different rows in an interval; what has none is counted in `other`
    #[arg(long, value_name = "N", default_value_t = 65536, value_parser = number::<u32>(1, 1 << 22), help_heading = "Rows")]
    pub(super) max_entries: u32,

    /// Add a NAME column, from DNS answers, TLS server names and HTTP hosts that this machine's sockets heard and said
    #[arg(long, help_heading = "Rows")]
    pub(super) names: bool,

    /// Instead of tables, a row for the first packet of each flow, with who sends it and what is decided about it
    #[arg(long, conflicts_with_all = ["by", "top", "sort", "interval", "max_entries"], help_heading = "Rows")]
    pub(super) events: bool,

    /// With --events: a row for every packet
    #[arg(long, requires = "events", help_heading = "Rows")]
    pub(super) all_packets: bool,

    /// At most N lines a second of one flow, whatever its source port, and 100 times as many of one user; or all (default: 10 with --block and its like, else all)
    #[arg(long, value_name = "N", help_heading = "Rows")]
    pub(super) audit_rate: Option<AuditRate>,

    /// Stop after N rows of --events
    #[arg(short = 'n', long, value_name = "N", requires = "events", value_parser = number::<u64>(1, u64::MAX), help_heading = "Rows")]
    pub(super) max_events: Option<u64>,

    /// Add a TIME column to the rows of --events: local time of day, in ms
    #[arg(short = 'T', long, requires = "events", help_heading = "Rows")]
    pub(super) timestamp: bool,

    /// Stop after this long, such as 30s or 5m
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, help_heading = "Run")]
    pub(super) duration: Option<Duration>,

    /// Attach again when an interface of the same name comes back
    #[arg(long, help_heading = "Run")]
    pub(super) follow: bool,

    #[command(flatten)]
    pub(super) output: OutputArgs,

    /// Stand before the programs of others, and see what they may drop; this is the default
    #[arg(long, conflicts_with = "last", help_heading = "Kernel")]
    pub(super) first: bool,

    /// Stand behind the programs of others, and see only what they pass on
    #[arg(long, help_heading = "Kernel")]
    pub(super) last: bool,

    /// Use this way of attaching, instead of the first that works here
    #[arg(long, value_name = "BACKEND", help_heading = "Kernel")]
    pub(super) backend: Option<TcBackend>,

    /// With --by process, user or cgroup: use this way to see who sends, instead of the first that works here
    #[arg(long, value_name = "WAY", help_heading = "Kernel")]
    pub(super) senders: Option<SendersArg>,

    /// With --by process, user or cgroup: take the kernel's type information (BTF) from FILE instead of /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "FILE", help_heading = "Kernel")]
    pub(super) btf: Option<PathBuf>,

    /// Say on standard error how it is attached, and when it is; -vv adds libbpf's log
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = "Kernel")]
    pub(super) verbose: u8,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_rows() {
        assert_eq!("all".parse(), Ok(Top::All));
        assert_eq!("7".parse(), Ok(Top::Most(7)));
        for bad in ["0", "-1", "+1", "", "ALL", "7 "] {
            assert!(bad.parse::<Top>().is_err(), "{bad}");
        }
    }
}
