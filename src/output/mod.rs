// SPDX-License-Identifier: MIT OR Apache-2.0

//! How rows leave the process. Knows records and columns, no command.

mod escape;
pub(crate) mod file;
mod progress;
mod record;
mod report;
mod sink;
mod table;
mod writer;

pub(crate) use escape::{bytes_to_string, printable};
pub(crate) use progress::Progress;
pub(crate) use record::{Field, Kind, Record, Value};
pub(crate) use sink::{ColorChoice, Format, Sink, SinkOptions};
pub(crate) use table::Column;
