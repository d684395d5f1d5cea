// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is known of networks without asking the kernel.

#[cfg_attr(not(test), expect(dead_code, reason = "for xdp-drop and tc-drop, which are to come"))]
pub(crate) mod blocklist;
pub(crate) mod dns;
pub(crate) mod errno;
pub(crate) mod ranges;
