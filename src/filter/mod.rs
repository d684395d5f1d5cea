// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packet filters: classic BPF, its text forms, and what it becomes.

mod array;
pub(crate) mod classic;
pub(crate) mod ebpf;
mod labels;
pub(crate) mod libpcap;
pub(crate) mod savefile;
pub(crate) mod text;

#[cfg(test)]
mod tests;
