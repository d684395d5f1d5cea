// SPDX-License-Identifier: MIT OR Apache-2.0

//! Translations against everything else that can run a classic filter. They need root; without it, each says why it skips.

mod differential;
mod expressions;
mod faults;
mod figures;
mod generate;
mod injected;
mod packets;
mod slow;
mod traffic;

use super::engine::{HookFilter, load};
use crate::filter::classic;
use crate::filter::ebpf::translate::{Hook, Link, Options, Returns, translate};
use crate::random::here_or_guest;

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP needs root, to load BPF programs");
    }
    root
}

/// Options for a program whose return value is to be compared.
fn by_value(hook: Hook) -> Options {
    Options { returns: Returns::Value, ..Options::new(hook, Link::Ethernet) }
}

/// Translates one filter and loads it.
fn loaded(program: &[classic::insn::Insn], options: &Options) -> HookFilter {
    let function =
        translate(&[program], options).unwrap_or_else(|refused| panic!("{refused}\n{program:?}"));
    load(&function, options.hook, options.frags).unwrap_or_else(|failed| {
        let log: Vec<&str> = failed.log.lines().rev().take(30).collect();
        panic!(
            "{}: {}\n{program:?}\n{}",
            options.hook,
            failed.error,
            log.into_iter().rev().collect::<Vec<_>>().join("\n")
        )
    })
}
