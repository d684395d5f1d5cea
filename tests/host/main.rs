// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a user would see: the tests run bpftk, make things happen, and read its output. They need root, and say so
//! where they have to skip. The same binary runs in the kernel matrix (`tests/vm`).

mod capabilities;
mod cli;
mod clone_trace;
mod doctor;
mod drop;
mod egress;
mod filter;
mod filter_check;
mod limits;
mod preflight;
mod refusals;
mod sockredir;
mod support;
mod tcpconnect;
mod text;
mod zz_last;
