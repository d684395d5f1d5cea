// SPDX-License-Identifier: MIT OR Apache-2.0

//! One module a command: its arguments, its columns, its run.

pub(crate) mod clone_trace;
pub(crate) mod common;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod drop;
pub(crate) mod egress;
pub(crate) mod filter;
pub(crate) mod lapses;
mod lists;
pub(crate) mod man;
pub(crate) mod resolver;
pub(crate) mod sockredir;
pub(crate) mod tcpconnect;
pub(crate) mod tracing;
pub(crate) mod unseen;
mod watch;
