// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packet filters in the kernel: loaded for a hook, run on packets, put into other programs.

pub(crate) mod engine;
pub(crate) mod inject;
#[cfg(test)]
mod tests;
