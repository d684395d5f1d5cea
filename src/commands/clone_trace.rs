// SPDX-License-Identifier: MIT OR Apache-2.0

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::man::Manual;

pub(crate) const MANUAL: Manual = Manual {
    command: "clone-trace",
    examples: &[],
    columns: &[],
    fields: &[],
    mechanism: &[],
    overhead: &[],
    exit_status: &[],
};

/// Trace every clone, clone3, fork and vfork
#[derive(Args, Debug)]
pub(crate) struct CloneTrace {}

impl CloneTrace {
    pub(crate) fn run(self) -> Result<ExitCode> {
        Ok(ExitCode::SUCCESS)
    }
}
