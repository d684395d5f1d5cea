// SPDX-License-Identifier: MIT OR Apache-2.0

//! Puts expressions into a tool's own programs.
//!
//! In C (`bpf/filter.bpf.h`), a program of section `xdp` or `tc` calls a stub:
//!
//! ```c
//! BPFTK_FILTER(matches, 0)
//!
//! SEC("xdp") int bpftk_drop(struct xdp_md *ctx)
//! {
//!         int number = matches(ctx);      // 1 for the first expression, 2 for the second, 0 for none
//! ```
//!
//! In Rust, before the skeleton is opened:
//!
//! ```ignore
//! let options = Options { frags, ..Options::new(Hook::Xdp, Link::Ethernet) };
//! let injection = Injection::new(vec![translate(&[&first, &second], &options)?])?;
//! let loaded = skel.open(&mut storage)?.load().map_err(|error| injection.explain(error))?;
//! ```
//!
//! - The n-th function goes to slot n. Every `xdp` and `tc` program that is opened and loaded while the injection lives has
//!   to have a stub for each; a program without one fails to load, with the reason. Objects of other tools are not to be
//!   opened meanwhile.
//! - A function is for one hook. A tool with programs for several opens an object for each.
//! - `frags` has to be what the program is loaded with: `set_flags(BPF_F_XDP_HAS_FRAGS)`, Linux 5.18.
//! - The stub is called like any function of the program: the verifier knows what it knew before, the packet is unchanged, and
//!   there is no tail call. It takes up to 64 bytes of stack, and 32 more for what it calls.
//! - What the program's constants decide is taken out of it on the way (`crate::filter::ebpf::fold`), with or without filters.
//! - Loading needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN.
//! - An interface that takes VLAN tags off itself leaves XDP no way to see them ([`xdp_may_miss_tags`]): before a filter is
//!   attached there, the user has to be told.

use anyhow::{Context, Result, anyhow};

use super::super::sys::filter::takes_tags_off;
use super::super::sys::stubs::FilterHandlers;
use crate::error::{unsupported, usage};
use crate::filter::classic::insn::Insn;
use crate::filter::ebpf::splice::SLOTS;
use crate::filter::ebpf::translate::{Function, Hook, Link, Options, translate};
use crate::kernel::refusal;

/// Whether XDP on `interface` may get packets whose VLAN tag is nowhere among their bytes (`ethtool -k`: rx-vlan-offload). What a
/// filter then says of a packet that had a tag is not what it would say of the packet on the wire, whether it looks for tags or
/// not: `ip` matches, and `vlan` doesn't. tc has no such gap.
pub(crate) fn xdp_may_miss_tags(interface: &str) -> Result<bool> {
    takes_tags_off(interface)
        .with_context(|| format!("{interface}: cannot ask whether it takes VLAN tags off"))
}

/// While it lives, programs that are loaded get filters in place of their stubs.
#[derive(Debug)]
pub(crate) struct Injection {
    handlers: FilterHandlers,
}

impl Injection {
    /// Each stub gets its expressions, for packets that begin with `link`, in programs at any of `hooks`.
    pub(crate) fn of_expressions(
        stubs: &[&[Vec<Insn>]],
        link: Link,
        hooks: &[Hook],
        frags: bool,
    ) -> Result<Self> {
        // `ret #0`: matches nothing.
        let nothing = vec![Insn { code: 0x06, jt: 0, jf: 0, k: 0 }];
        let mut functions = Vec::new();
        for &filters in stubs {
            let filters = if filters.is_empty() { std::slice::from_ref(&nothing) } else { filters };
            let filters: Vec<&[Insn]> = filters.iter().map(Vec::as_slice).collect();
            let mut each = Vec::new();
            for &hook in hooks {
                let options = Options { frags, ..Options::new(hook, link) };
                let function = translate(&filters, &options)
                    .map_err(|refused| unsupported(refused.to_string()))?;
                if !each.contains(&function) {
                    each.push(function);
                }
            }
            // One object has the programs of all hooks, and a stub is filled alike in all of them.
            let [function] = <[_; 1]>::try_from(each).map_err(|_| {
                usage(
                    "an expression means different things at ingress and at egress; \
                     use one tc-drop for each direction",
                )
            })?;
            functions.push(function);
        }
        Self::new(functions)
    }

    pub(crate) fn new(functions: Vec<Function>) -> Result<Self> {
        assert!(functions.len() <= SLOTS as usize, "a stub has one of {SLOTS} slots");
        let handlers = FilterHandlers::new(move |loadable| {
            for (slot, function) in functions.iter().enumerate() {
                loadable.splice(slot as u32, function).map_err(|error| error.to_string())?;
            }
            Ok(())
        })
        .context("libbpf takes no handler for filters")?;
        Ok(Self { handlers })
    }

    /// Why a load failed: for a filter's sake, or as libbpf and the verifier have it.
    pub(crate) fn explain(&self, error: libbpf_rs::Error) -> anyhow::Error {
        match self.handlers.error() {
            Some(reason) => anyhow!("cannot put a filter into a program: {reason}"),
            None => refusal::of_load("the kernel refuses the programs", error),
        }
    }
}
