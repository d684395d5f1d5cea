// SPDX-License-Identifier: MIT OR Apache-2.0

//! Maps of sockets that hold programs. The kernel drops these with the map's last descriptor or pin, so it takes
//! somebody else's to keep one.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys;

use super::{Hook, must_be_there};
use crate::kernel::sys;

#[derive(Debug)]
pub(super) struct Place {
    map: u32,
    hook: Hook,
}

const HOOKS: [Hook; 4] = [
    Hook { kind: libbpf_sys::BPF_SK_MSG_VERDICT, name: "sk_msg_verdict" },
    Hook { kind: libbpf_sys::BPF_SK_SKB_STREAM_PARSER, name: "sk_skb_stream_parser" },
    Hook { kind: libbpf_sys::BPF_SK_SKB_STREAM_VERDICT, name: "sk_skb_stream_verdict" },
    Hook { kind: libbpf_sys::BPF_SK_SKB_VERDICT, name: "sk_skb_verdict" },
];

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sockmap id {} {}", self.map, self.hook)
    }
}

impl Place {
    pub(super) fn remove(&self, id: u32) -> Result<()> {
        let map = sys::map_by_id(self.map).context("the map is not there any more")?;
        let there = sys::attached(map.as_raw_fd(), self.hook.kind)
            .context("cannot list the map's programs")?
            .contains(&id);
        must_be_there(there)?;
        let program = sys::program_by_id(id).context("it is not there any more")?;
        sys::detach(program.as_fd(), map.as_raw_fd(), self.hook.kind)
            .context("the kernel refuses to take it off the map")
    }
}

/// Kernels before 5.18 can't be asked; they answer with an error.
pub(super) fn find(is_ours: &dyn Fn(u32) -> bool) -> Vec<(u32, Place)> {
    let mut found = Vec::new();
    let mut id = 0;
    while let Ok(Some(next)) = sys::next_map(id) {
        id = next;
        let Some(map) = sys::map_by_id(id).ok().filter(is_sockmap) else {
            continue;
        };
        for hook in HOOKS {
            for program in sys::attached(map.as_raw_fd(), hook.kind).unwrap_or_default() {
                if is_ours(program) {
                    found.push((program, Place { map: id, hook }));
                }
            }
        }
    }
    found
}

fn is_sockmap(map: &OwnedFd) -> bool {
    fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))
        .ok()
        .and_then(|info| {
            info.lines().find_map(|line| line.strip_prefix("map_type:")?.trim().parse::<u32>().ok())
        })
        .is_some_and(|kind| {
            kind == libbpf_sys::BPF_MAP_TYPE_SOCKMAP || kind == libbpf_sys::BPF_MAP_TYPE_SOCKHASH
        })
}
