// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is known of networks without asking the kernel.

pub(crate) mod blocklist;
pub(crate) mod dns;
pub(crate) mod errno;
pub(crate) mod linktype;
pub(crate) mod names;
pub(crate) mod opening;
pub(crate) mod packet;
pub(crate) mod protos;
pub(crate) mod ranges;
pub(crate) mod resolv_conf;
pub(crate) mod special;
