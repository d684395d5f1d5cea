// SPDX-License-Identifier: MIT OR Apache-2.0

//! Interfaces by name, for the commands that attach to some.

use anyhow::{Context, Result};

use super::netlink::{Interface, Netlink};
use crate::error::usage;
use crate::filter::ebpf::translate::Link;

/// The interfaces of these names, each once.
pub(crate) fn interfaces(names: &[String]) -> Result<Vec<Interface>> {
    let all = Netlink::open()
        .and_then(|netlink| netlink.interfaces())
        .context("cannot list the interfaces")?;
    let mut found: Vec<Interface> = Vec::new();
    for name in names {
        let Some(interface) = all.iter().find(|interface| interface.name == *name) else {
            return Err(usage(format!(
                "no interface `{name}`; `ip link` lists those that there are"
            )));
        };
        if !found.iter().any(|other| other.index == interface.index) {
            found.push(interface.clone());
        }
    }
    Ok(found)
}

/// The last word is an expression if no interface is called so.
pub(crate) fn interfaces_and_expression(
    words: &[String],
) -> Result<(Vec<Interface>, Option<&str>)> {
    match (interfaces(words), words) {
        (Err(_), [others @ .., last]) if !others.is_empty() => {
            Ok((interfaces(others)?, Some(last)))
        }
        (found, _) => Ok((found?, None)),
    }
}

/// What an error of an expression is, that may have been meant for an interface.
pub(crate) fn not_an_interface_either(error: anyhow::Error, word: Option<&str>) -> anyhow::Error {
    match word {
        Some(word) if !word.contains(' ') => {
            error.context(format!("no interface `{word}`, and as an expression"))
        }
        _ => error,
    }
}

/// What packets begin with, at all of these interfaces; an expression is for one or the other.
pub(crate) fn link_of<'a>(interfaces: impl Iterator<Item = &'a Interface>) -> Result<Link> {
    let mut ethernet: Vec<bool> = interfaces.map(Interface::is_ethernet).collect();
    ethernet.dedup();
    match ethernet[..] {
        [true] => Ok(Link::Ethernet),
        [false] => Ok(Link::Raw),
        _ => Err(usage(
            "an expression is for interfaces with Ethernet headers or for those without, not for both at once",
        )),
    }
}
