// SPDX-License-Identifier: MIT OR Apache-2.0

//! Classic filters, turned into one eBPF function for XDP or tc.
//!
//! The function takes the hook's context and returns the number of the first filter that matches, counted from 1, or 0 when
//! none does, or [`UNREADABLE`]. What matches is what tcpdump shows for the packet as it is on the wire:
//!
//! - Every load from the packet is behind a comparison with its end. One comparison serves all loads at constant offsets that
//!   a packet must have to match at all ([`super::analysis`]). A load beyond the end is no match, as in classic BPF.
//! - What can't be got at directly is loaded by a helper, on a second, slower way through the same filter ([`super::slow`]):
//!   the pages of a packet that is not in one piece, and at tc every packet whose VLAN tag the kernel keeps beside its bytes.
//!   There offsets are those of the wire, with the tag in its place. The packet is not changed.
//! - Where libpcap and Linux run the same classic program differently, libpcap's rule holds: a shift by 32 and more gives 0,
//!   and `[x + k]` doesn't wrap around. So the answer is the one that `tcpdump -r` gives on any system.
//! - A filter that asks the kernel for the VLAN tag (`vlan_avail` and so on, tc only) sees the packet as a socket does: without
//!   the tag. A filter made for a live interface by libpcap is of this kind.

use std::fmt;

use super::analysis::Program;
use super::builder::TooFar;
use super::emit::Emitter;
use super::insn;
use crate::filter::classic::insn::Insn;
pub(crate) use crate::filter::libpcap::Link;

/// What the function returns for a packet that could not be read: it does not match, and is to be counted.
pub(crate) const UNREADABLE: i32 = -1;

/// Where the function runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Xdp,
    TcIngress,
    TcEgress,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xdp => "XDP",
            Self::TcIngress => "tc ingress",
            Self::TcEgress => "tc egress",
        })
    }
}

/// What the function returns on a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Returns {
    /// The filter's number, from 1.
    Number,
    /// What the classic filter returns: how many bytes of the packet are wanted.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare values by it"))]
    Value,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) hook: Hook,
    pub(crate) link: Link,
    /// At XDP: whether the program takes packets in several buffers (BPF_F_XDP_HAS_FRAGS, Linux 5.18). Without it the
    /// kernel gives it none.
    pub(crate) frags: bool,
    pub(crate) returns: Returns,
    /// A mistake to make, for tests that have to find it.
    #[cfg(test)]
    pub(crate) fault: Option<Fault>,
}

impl Options {
    pub(crate) fn new(hook: Hook, link: Link) -> Self {
        Self {
            hook,
            link,
            frags: false,
            returns: Returns::Number,
            #[cfg(test)]
            fault: None,
        }
    }

    #[cfg(test)]
    pub(super) fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Whether the kernel may keep a VLAN tag beside the packet's bytes.
    pub(super) fn tag_beside(&self) -> bool {
        self.hook != Hook::Xdp && self.link == Link::Ethernet
    }

    /// Whether there is more of a packet than what can be got at directly.
    pub(super) fn has_slow_way(&self) -> bool {
        self.hook != Hook::Xdp || self.frags
    }
}

/// Mistakes of a translator, one of each kind.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Guards one byte more than is loaded.
    GuardTooFar,
    /// Guards one byte less: the verifier has to refuse it.
    GuardTooNear,
    HostOrder,
    SignedCompare,
    ShiftMasked,
    DivisionByZeroGoesOn,
    ScratchNotZeroed,
    OffsetWraps,
    /// Of packets in several pieces only the first is seen.
    FirstPieceOnly,
    /// The VLAN tag beside the packet is not put back.
    TagIgnored,
}

/// An eBPF function, and those that it calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) insns: Vec<insn::Insn>,
    /// Where each function starts. The first is the filter.
    pub(crate) starts: Vec<usize>,
}

/// Why a filter can't run at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Empty,
    Unknown { at: usize, code: u16 },
    Backward { at: usize },
    OffTheEnd { at: usize },
    NoSuchWord { at: usize, word: u32 },
    NoSuchExtension { at: usize, offset: u32 },
    NotAHeaderLength { at: usize, ext: &'static str },
    NetworkHeader { at: usize },
    Extension { at: usize, ext: &'static str, reason: &'static str },
    TooLong { insns: usize },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the filter has no instruction"),
            Self::Unknown { at, code } => {
                write!(f, "instruction {at}: {code:#06x} is no instruction of classic BPF")
            }
            Self::Backward { at } => write!(
                f,
                "instruction {at} jumps backward: the filter is a loop, as libpcap makes one of `protochain`, \
                 and the kernel takes none; name the headers instead, such as `ip6 proto`"
            ),
            Self::OffTheEnd { at } => {
                write!(f, "instruction {at}: what comes next is behind the filter's end")
            }
            Self::NoSuchWord { at, word } => {
                write!(f, "instruction {at}: there is no M[{word}]; the last is M[15]")
            }
            Self::NoSuchExtension { at, offset } => {
                write!(f, "instruction {at}: the kernel has no extension at offset {offset:#x}")
            }
            Self::NotAHeaderLength { at, ext } => {
                write!(f, "instruction {at}: `{ext}` can't be loaded as the length of a header")
            }
            Self::NetworkHeader { at } => write!(
                f,
                "instruction {at} loads by the network header's place, which only a socket knows; \
                 load by the packet's start instead"
            ),
            Self::Extension { at, ext, reason } => {
                write!(f, "instruction {at} asks for `{ext}`: {reason}")
            }
            Self::TooLong { insns } => write!(
                f,
                "a filter is too long for eBPF: one of its jumps is further than 32767 of its {insns} instructions"
            ),
        }
    }
}

impl std::error::Error for Refused {}

/// Turns `filters` into one function: the first that matches counts.
pub(crate) fn translate(filters: &[&[Insn]], options: &Options) -> Result<Function, Refused> {
    if filters.is_empty() {
        return Err(Refused::Empty);
    }
    let programs: Vec<Program> =
        filters.iter().map(|insns| Program::new(insns, options)).collect::<Result<_, _>>()?;
    let emitter = Emitter::new(&programs, options);
    let (builder, functions) = emitter.emit(&programs);
    let insns = builder.len();
    match builder.finish(&functions) {
        Ok((insns, starts)) => Ok(Function { insns, starts }),
        Err(TooFar) => Err(Refused::TooLong { insns }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::classic::insn::*;
    use crate::filter::ebpf::insn::class;

    const HOOKS: [Hook; 3] = [Hook::Xdp, Hook::TcIngress, Hook::TcEgress];

    fn ret(k: u32) -> Insn {
        Insn::stmt(BPF_RET | BPF_K, k)
    }

    fn refused(filter: &[Insn], hook: Hook) -> String {
        match translate(&[filter], &Options::new(hook, Link::Ethernet)) {
            Ok(_) => String::new(),
            Err(refused) => refused.to_string(),
        }
    }

    #[test]
    fn what_no_hook_runs_is_refused_by_name() {
        let ld = |k| Insn::stmt(BPF_LD | BPF_ABS | BPF_W, k);
        for (filter, part) in [
            (&[][..], "no instruction"),
            (&[Insn::stmt(BPF_JMP | BPF_JA, -2_i32 as u32), ret(0)], "protochain"),
            (&[Insn::stmt(BPF_JMP | BPF_JA, 1), ret(0)], "behind the filter's end"),
            (&[Insn::new(BPF_JMP | BPF_JEQ, 0, 1, 0), ret(0)], "behind the filter's end"),
            (&[ld(0)], "behind the filter's end"),
            (&[Insn::stmt(0xffff, 0), ret(0)], "0xffff is no instruction"),
            (&[Insn::stmt(BPF_ST, 16), ret(0)], "no M[16]"),
            (&[ld(SKF_AD_OFF + 2), ret(0)], "no extension at offset 0xfffff002"),
            (&[ld(SKF_NET_OFF), ret(0)], "network header"),
            (&[Insn::stmt(BPF_LD | BPF_IND | BPF_H, SKF_NET_OFF), ret(0)], "network header"),
            (&[Insn::stmt(BPF_LDX | BPF_B | BPF_MSH, SKF_NET_OFF + 1), ret(0)], "network header"),
            (&[ld(Ext::HaType.offset()), ret(0)], "asks for `hatype`"),
            (&[ld(Ext::PayOffset.offset()), ret(0)], "asks for `poff`"),
            (&[ld(Ext::Nlattr.offset()), ret(0)], "netlink"),
            (
                &[Insn::stmt(BPF_LDX | BPF_B | BPF_MSH, Ext::Ifindex.offset()), ret(0)],
                "length of a header",
            ),
        ] {
            for hook in HOOKS {
                let said = refused(filter, hook);
                assert!(said.contains(part) && !said.contains('\n'), "{hook}: {part}: {said}");
            }
        }
    }

    /// The kernel's meaning of these offsets, which libpcap has no other for.
    #[test]
    fn the_link_header_is_where_the_packet_starts() {
        for (code, k) in [
            (BPF_LD | BPF_ABS | BPF_W, 12),
            (BPF_LD | BPF_IND | BPF_B, 2),
            (BPF_LDX | BPF_B | BPF_MSH, 14),
        ] {
            for (hook, link) in [(Hook::Xdp, Link::Ethernet), (Hook::TcIngress, Link::Raw)] {
                let of = |k| {
                    let program = [
                        Insn::stmt(code, k),
                        Insn::stmt(BPF_MISC | BPF_TXA, 0),
                        Insn::stmt(0x16, 0),
                    ];
                    translate(&[&program], &Options::new(hook, link)).unwrap()
                };
                assert_eq!(of(SKF_LL_OFF + k), of(k), "{code:#x} {hook} {link:?}");
            }
        }
        // These are no header's.
        for code in [BPF_LD | BPF_IND | BPF_B, BPF_LDX | BPF_B | BPF_MSH] {
            assert_eq!(refused(&[Insn::stmt(code, -2_i32 as u32), ret(1)], Hook::Xdp), "");
        }
    }

    #[test]
    fn extensions_are_where_the_hook_has_them() {
        for ext in Ext::ALL {
            let filter = [Insn::stmt(BPF_LD | BPF_ABS | BPF_W, ext.offset()), ret(1)];
            let [xdp, ingress, egress] = HOOKS.map(|hook| refused(&filter, hook).is_empty());
            let (at_xdp, at_tc) = match ext {
                Ext::Ifindex | Ext::Queue | Ext::Cpu | Ext::Random | Ext::AluXorX => (true, true),
                Ext::Nlattr | Ext::NlattrNest | Ext::HaType | Ext::PayOffset => (false, false),
                _ => (false, true),
            };
            assert_eq!((xdp, ingress, egress), (at_xdp, at_tc, at_tc), "{ext:?}");
        }
    }

    /// 4096 instructions, the most that there can be; and loads enough to get beyond a jump's reach.
    #[test]
    fn long_filters() {
        let arithmetic = Insn::stmt(BPF_ALU | BPF_ADD | BPF_K, 1);
        let long = [vec![arithmetic; 4095], vec![ret(1)]].concat();
        let load = Insn::stmt(BPF_LD | BPF_IND | BPF_W, 0);
        let loads = [vec![load; 4095], vec![ret(1)]].concat();
        for hook in HOOKS {
            assert_eq!(refused(&long, hook), "");
            let said = refused(&loads, hook);
            assert!(said.contains("too long for eBPF"), "{said}");
        }
    }

    /// What BPF_PROG_LOAD asks for before the verifier looks at what is computed.
    #[test]
    fn jumps_stay_inside_and_functions_end() {
        let filter = [
            Insn::stmt(BPF_LDX | BPF_B | BPF_MSH, 14),
            Insn::stmt(BPF_LD | BPF_IND | BPF_H, 16),
            Insn::new(BPF_JMP | BPF_JEQ, 0, 1, 80),
            ret(1),
            ret(0),
        ];
        for hook in HOOKS {
            let options = Options::new(hook, Link::Ethernet);
            let function = translate(&[&filter, &filter], &options).unwrap();
            let ends = function.starts[1..].iter().copied().chain([function.insns.len()]);
            for (start, end) in function.starts.iter().copied().zip(ends) {
                assert!(function.insns[end - 1].is_exit(), "{hook}");
                for at in start..end {
                    let insn = function.insns[at];
                    if matches!(insn.class(), class::JMP | class::JMP32)
                        && !insn.is_call()
                        && !insn.is_exit()
                    {
                        let to = at as i64 + 1 + i64::from(insn.off);
                        assert!((at as i64 + 1..end as i64).contains(&to), "{hook}: {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_filter_that_never_matches_loads_nothing() {
        let options = Options::new(Hook::Xdp, Link::Ethernet);
        let function = translate(&[&[Insn::stmt(BPF_LD | BPF_ABS | BPF_W, 0), ret(0)]], &options);
        // The start and the end of the packet, `r0 = 0`, `exit`.
        assert_eq!(function.unwrap().insns.len(), 4);
    }
}
