// SPDX-License-Identifier: MIT OR Apache-2.0

//! Cgroups that hold programs.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libbpf_rs::libbpf_sys;

use super::{Hook, must_be_there};
use crate::kernel::{cgroup, sys};

#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    hook: Hook,
}

const fn hook(kind: libbpf_sys::bpf_attach_type, name: &'static str) -> Hook {
    Hook { kind, name }
}

const HOOKS: [Hook; 10] = [
    hook(libbpf_sys::BPF_CGROUP_INET_INGRESS, "cgroup_inet_ingress"),
    hook(libbpf_sys::BPF_CGROUP_INET_EGRESS, "cgroup_inet_egress"),
    hook(libbpf_sys::BPF_CGROUP_INET_SOCK_CREATE, "cgroup_inet_sock_create"),
    hook(libbpf_sys::BPF_CGROUP_INET_SOCK_RELEASE, "cgroup_inet_sock_release"),
    hook(libbpf_sys::BPF_CGROUP_INET4_CONNECT, "cgroup_inet4_connect"),
    hook(libbpf_sys::BPF_CGROUP_INET6_CONNECT, "cgroup_inet6_connect"),
    hook(libbpf_sys::BPF_CGROUP_UDP4_SENDMSG, "cgroup_udp4_sendmsg"),
    hook(libbpf_sys::BPF_CGROUP_UDP6_SENDMSG, "cgroup_udp6_sendmsg"),
    hook(libbpf_sys::BPF_CGROUP_SOCK_OPS, "cgroup_sock_ops"),
    hook(libbpf_sys::BPF_CGROUP_DEVICE, "cgroup_device"),
];

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cgroup {} {}", self.directory.display(), self.hook)
    }
}

impl Place {
    pub(super) fn remove(&self, id: u32) -> Result<()> {
        let directory = File::open(&self.directory)
            .with_context(|| format!("cannot open {}", self.directory.display()))?;
        // Where programs don't add up, the kernel would take off whatever is there.
        let there = sys::attached(directory.as_raw_fd(), self.hook.kind)
            .context("cannot list the cgroup's programs")?
            .contains(&id);
        must_be_there(there)?;
        let program = sys::program_by_id(id).context("it is not there any more")?;
        sys::detach(program.as_fd(), directory.as_raw_fd(), self.hook.kind)
            .context("the kernel refuses to take it off the cgroup")
    }
}

pub(super) fn find(is_ours: &dyn Fn(u32) -> bool) -> Vec<(u32, Place)> {
    let mut found = Vec::new();
    if let Some(root) = cgroup::mount_point() {
        walk(&root, is_ours, &mut found);
    }
    found
}

fn walk(directory: &Path, is_ours: &dyn Fn(u32) -> bool, found: &mut Vec<(u32, Place)>) {
    let Ok(file) = File::open(directory) else {
        return;
    };
    for hook in HOOKS {
        for id in sys::attached(file.as_raw_fd(), hook.kind).unwrap_or_default() {
            if is_ours(id) {
                let directory = directory.to_path_buf();
                found.push((id, Place { directory, hook }));
            }
        }
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), is_ours, found);
        }
    }
}
