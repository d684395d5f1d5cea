// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loads, by where their value is at a hook: in the packet, in what the kernel knows of it, or nowhere.

use super::analysis::{A, X};
use super::translate::{Hook, Options, Refused};
use crate::filter::classic::insn::{Ext, Op, SKF_AD_OFF, SKF_LL_OFF, SKF_NET_OFF};

/// `struct __sk_buff`, include/uapi/linux/bpf.h.
pub(super) mod skb {
    pub(in super::super) const LEN: i16 = 0;
    pub(in super::super) const PKT_TYPE: i16 = 4;
    pub(in super::super) const MARK: i16 = 8;
    pub(in super::super) const QUEUE_MAPPING: i16 = 12;
    pub(in super::super) const PROTOCOL: i16 = 16;
    pub(in super::super) const VLAN_PRESENT: i16 = 20;
    pub(in super::super) const VLAN_TCI: i16 = 24;
    pub(in super::super) const VLAN_PROTO: i16 = 28;
    pub(in super::super) const IFINDEX: i16 = 40;
    pub(in super::super) const HASH: i16 = 68;
    pub(in super::super) const DATA: i16 = 76;
    pub(in super::super) const DATA_END: i16 = 80;
}

/// `struct xdp_md`.
pub(super) mod xdp_md {
    pub(in super::super) const DATA: i16 = 0;
    pub(in super::super) const DATA_END: i16 = 4;
    pub(in super::super) const INGRESS_IFINDEX: i16 = 12;
    pub(in super::super) const RX_QUEUE_INDEX: i16 = 16;
}

/// Numbers of helpers.
pub(super) mod helper {
    pub(in super::super) const GET_PRANDOM_U32: i32 = 7;
    pub(in super::super) const GET_SMP_PROCESSOR_ID: i32 = 8;
    pub(in super::super) const SKB_LOAD_BYTES: i32 = 26;
    /// Linux 5.18, like the next.
    pub(in super::super) const XDP_GET_BUFF_LEN: i32 = 188;
    pub(in super::super) const XDP_LOAD_BYTES: i32 = 189;
}

/// What a load takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// A = packet[offset]
    Abs { bytes: u32, offset: u32 },
    /// A = packet[X + offset]
    Ind { bytes: u32, offset: u32 },
    /// X = 4 * (packet[offset] & 0xf)
    Msh { offset: u32 },
    /// A = what the kernel knows
    Ext(Ext),
}

impl Load {
    /// The end of the bytes that it takes, where that is known beforehand.
    pub(super) fn end(self) -> Option<u32> {
        match self {
            Self::Abs { bytes, offset } => Some(offset.saturating_add(bytes)),
            Self::Msh { offset } => Some(offset.saturating_add(1)),
            Self::Ind { .. } | Self::Ext(_) => None,
        }
    }

    pub(super) fn uses(self) -> (u32, u32) {
        match self {
            Self::Abs { .. } => (0, A),
            Self::Ind { .. } => (X, A),
            Self::Msh { .. } => (0, X),
            Self::Ext(Ext::AluXorX) => (A | X, A),
            Self::Ext(_) => (0, A),
        }
    }
}

/// What `op` loads from the packet or asks the kernel, if it does.
pub(super) fn load(op: Op, options: &Options, at: usize) -> Result<Option<Load>, Refused> {
    Ok(Some(match op {
        Op::LdAbs(size, k) => match place(k, options, at)? {
            Place::Packet(offset) => Load::Abs { bytes: size.bytes(), offset },
            Place::Kernel(ext) => Load::Ext(ext),
        },
        // `[x - 4]` is an offset of the packet's, and beyond it by libpcap's rule.
        Op::LdInd(size, k) if !op.loads_by_header() => Load::Ind { bytes: size.bytes(), offset: k },
        Op::LdInd(size, k) => match place(k, options, at)? {
            Place::Packet(offset) => Load::Ind { bytes: size.bytes(), offset },
            Place::Kernel(_) => unreachable!("a header's offset"),
        },
        // No packet is as long.
        Op::LdxMsh(k) if k >= SKF_AD_OFF && Ext::at(k).is_none() => Load::Msh { offset: k },
        Op::LdxMsh(k) => match place(k, options, at)? {
            Place::Packet(offset) => Load::Msh { offset },
            Place::Kernel(ext) => return Err(Refused::NotAHeaderLength { at, ext: ext.name() }),
        },
        _ => return Ok(None),
    }))
}

enum Place {
    Packet(u32),
    Kernel(Ext),
}

fn place(k: u32, options: &Options, at: usize) -> Result<Place, Refused> {
    if k >= SKF_AD_OFF {
        let ext = Ext::at(k).ok_or(Refused::NoSuchExtension { at, offset: k })?;
        return match refusal(ext, options.hook) {
            Some(reason) => Err(Refused::Extension { at, ext: ext.name(), reason }),
            None => Ok(Place::Kernel(ext)),
        };
    }
    if k >= SKF_NET_OFF {
        return Err(Refused::NetworkHeader { at });
    }
    if k >= SKF_LL_OFF {
        // The link-layer header is where the packet starts, as the kernel has it: also where there is none.
        return Ok(Place::Packet(k - SKF_LL_OFF));
    }
    Ok(Place::Packet(k))
}

/// Why this hook doesn't have it.
fn refusal(ext: Ext, hook: Hook) -> Option<&'static str> {
    let xdp = hook == Hook::Xdp;
    match ext {
        Ext::Nlattr | Ext::NlattrNest => Some("netlink attributes are not part of a packet"),
        Ext::HaType => Some("no hook tells an interface's hardware type"),
        Ext::PayOffset => Some("only a socket has the kernel's flow dissector look at the packet"),
        Ext::PktType if xdp => {
            Some("XDP runs before the kernel knows to whom a packet goes; tc has it")
        }
        Ext::Protocol if xdp => {
            Some("XDP runs before the kernel takes the EtherType; load it with `ldh [12]`")
        }
        Ext::Mark if xdp => Some("XDP runs before a packet gets a mark; tc has it"),
        Ext::RxHash if xdp => Some("XDP has no receive hash that every driver gives; tc has it"),
        Ext::VlanTag | Ext::VlanTagPresent | Ext::VlanTpid if xdp => Some(
            "at XDP the tag is among the packet's bytes: `ldh [12]` is 0x8100 when there is one",
        ),
        _ => None,
    }
}

/// Whether it is of the VLAN tag that the kernel keeps beside the packet.
pub(super) fn is_tag(ext: Ext) -> bool {
    matches!(ext, Ext::VlanTag | Ext::VlanTagPresent | Ext::VlanTpid)
}

/// Whether a helper has to be called for it.
pub(super) fn is_helper(ext: Ext) -> bool {
    matches!(ext, Ext::Cpu | Ext::Random)
}
