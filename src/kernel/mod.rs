// SPDX-License-Identifier: MIT OR Apache-2.0

//! All that touches the kernel. Only this module knows libbpf.

mod addr;
pub(crate) mod addrset;
pub(crate) mod attach;
pub(crate) mod backend;
pub(crate) mod btf;
pub(crate) mod bypass;
pub(crate) mod caps;
pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod clone_trace;
pub(crate) mod count;
pub(crate) mod dns;
pub(crate) mod drop;
pub(crate) mod egress;
pub(crate) mod facts;
pub(crate) mod filter;
#[cfg(test)]
mod frames;
mod grace;
pub(crate) mod guard;
pub(crate) mod interfaces;
pub(crate) mod leftovers;
pub(crate) mod lifetime;
pub(crate) mod limits;
pub(crate) mod log;
pub(crate) mod losses;
mod mounts;
pub(crate) mod names;
pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod owners;
mod prefixes;
pub(crate) mod preflight;
pub(crate) mod probes;
mod refusal;
pub(crate) mod ring;
mod routes;
pub(crate) mod run;
pub(crate) mod signals;
pub(crate) mod skel;
pub(crate) mod socket;
pub(crate) mod sockgate;
pub(crate) mod sockredir;
mod sys;
pub(crate) mod task_filter;
pub(crate) mod tcpconnect;
pub(crate) mod tracefs;
pub(crate) mod unseen;
pub(crate) mod watcher;
