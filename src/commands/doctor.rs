// SPDX-License-Identifier: MIT OR Apache-2.0

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::man::Manual;

pub(crate) const MANUAL: Manual = Manual {
    command: "doctor",
    examples: &[],
    columns: &[],
    fields: &[],
    mechanism: &[],
    overhead: &[],
    exit_status: &[],
};

/// Tell what works on this kernel
#[derive(Args, Debug)]
pub(crate) struct Doctor {}

impl Doctor {
    pub(crate) fn run(self) -> Result<ExitCode> {
        Ok(ExitCode::SUCCESS)
    }
}
