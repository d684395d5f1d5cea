// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the manual page says of `clone-trace`.

use super::{FIELDS, count};
use crate::commands::man::Manual;

pub(crate) const MANUAL: Manual = Manual {
    command: "clone-trace",
    examples: &[],
    columns: &[],
    fields: &[("Fields", FIELDS), ("Count", count::FIELDS)],
    mechanism: &[],
    overhead: &[],
    exit_status: &[],
};
