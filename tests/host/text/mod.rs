// SPDX-License-Identifier: MIT OR Apache-2.0

//! What bpftk does before it asks the kernel for anything: its result is the same on every kernel, so guests leave these tests out
//! (`tests/run.py`).

mod capture_files;
mod filter;
mod usage;
