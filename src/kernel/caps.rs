// SPDX-License-Identifier: MIT OR Apache-2.0

//! What this process may do. Not "is it root": a capability is what the kernel asks for.

use std::fs;

use anyhow::{Context, Result};

use super::refusal;
use crate::error::not_permitted;

/// include/uapi/linux/capability.h
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cap {
    DacReadSearch = 2,
    NetAdmin = 12,
    NetRaw = 13,
    SysPtrace = 19,
    SysAdmin = 21,
    SysResource = 24,
    Perfmon = 38,
    Bpf = 39,
}

impl Cap {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// For programs that see packets. The verifier lets none compute with pointers as packets need it without CAP_PERFMON
/// (allow_ptr_leaks in kernel/bpf/verifier.c).
pub(crate) const PACKETS: &[Cap] = &[Cap::Bpf, Cap::Perfmon, Cap::NetAdmin];

/// The effective capabilities of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held(u64);

impl Held {
    pub(crate) fn read() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").map_err(|error| {
            not_permitted(format!("cannot read /proc/self/status: {error}; is /proc mounted?"))
        })?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .map(Self)
            .context("/proc/self/status has no CapEff")
    }

    /// CAP_SYS_ADMIN stands for the two that were split off from it in Linux 5.8.
    pub(crate) fn has(self, cap: Cap) -> bool {
        let bit = |cap: Cap| self.0 & (1 << cap as u8) != 0;
        bit(cap) || (matches!(cap, Cap::Bpf | Cap::Perfmon) && bit(Cap::SysAdmin))
    }
}

/// Refuses when one of `caps` is missing, naming each that is, and where what they are for is forbidden in spite of them.
pub(crate) fn require(caps: &[Cap]) -> Result<()> {
    let held = Held::read()?;
    let missing: Vec<&str> =
        caps.iter().filter(|&&cap| !held.has(cap)).map(|cap| cap.name()).collect();
    if missing.is_empty() {
        // Held, but perhaps where they count for nothing.
        return if caps.iter().any(|cap| matches!(cap, Cap::Bpf | Cap::SysAdmin)) {
            refusal::check()
        } else {
            Ok(())
        };
    }
    Err(not_permitted(format!(
        "not permitted: needs {}; run it as root or with sudo",
        missing.join(" and ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sys_admin_stands_for_what_was_split_off() {
        let held = Held(1 << 21);
        assert!(held.has(Cap::Bpf) && held.has(Cap::Perfmon) && !held.has(Cap::NetAdmin));
        assert!(!Held(0).has(Cap::Bpf));
        assert!(Held(1 << 39).has(Cap::Bpf));
    }
}
