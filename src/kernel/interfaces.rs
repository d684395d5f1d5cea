// SPDX-License-Identifier: MIT OR Apache-2.0

//! Interfaces by name, for the commands that attach to some.

use anyhow::{Context, Result};

use super::netlink::{Interface, Netlink};
use crate::error::usage;
use crate::filter::ebpf::translate::Link;

/// What is behind the interfaces on a command line.
#[derive(Debug)]
pub(crate) struct Expression {
    pub(crate) text: String,
    /// The first word, if it may have been meant for an interface.
    word: Option<String>,
}

impl Expression {
    fn new(words: &[String]) -> Option<Self> {
        let first = words.first()?;
        Some(Self { text: words.join(" "), word: (!first.contains(' ')).then(|| first.clone()) })
    }

    /// What an error of the expression is, if none was meant.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match &self.word {
            Some(word) => error.context(format!("no interface `{word}`, and as an expression")),
            None => error,
        }
    }
}

/// Those that are called so, up to the first word that none is called; each once.
fn leading<'a>(all: &[Interface], words: &'a [String]) -> (Vec<Interface>, &'a [String]) {
    let mut found: Vec<Interface> = Vec::new();
    for (i, word) in words.iter().enumerate() {
        let Some(interface) = all.iter().find(|interface| interface.is_called(word)) else {
            return (found, &words[i..]);
        };
        if !found.iter().any(|other| other.index == interface.index) {
            found.push(interface.clone());
        }
    }
    (found, &[])
}

fn all() -> Result<Vec<Interface>> {
    Netlink::open().and_then(|netlink| netlink.interfaces()).context("cannot list the interfaces")
}

fn unknown(name: &str) -> anyhow::Error {
    usage(format!("no interface `{name}`; `ip link` lists those that there are"))
}

/// The interfaces of these names, each once.
pub(crate) fn interfaces(names: &[String]) -> Result<Vec<Interface>> {
    match leading(&all()?, names) {
        (found, []) => Ok(found),
        (_, [name, ..]) => Err(unknown(name)),
    }
}

/// Interfaces, and from the first word on that is none an expression: in one word or, as tcpdump takes it, in several.
pub(crate) fn interfaces_and_expression(
    words: &[String],
) -> Result<(Vec<Interface>, Option<Expression>)> {
    let (interfaces, rest) = leading(&all()?, words);
    match rest {
        [name, ..] if interfaces.is_empty() => Err(unknown(name)),
        rest => Ok((interfaces, Expression::new(rest))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_interface_begins_an_expression() {
        let place = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            interfaces_and_expression(&words).map(|(interfaces, expression)| {
                let names: Vec<String> =
                    interfaces.into_iter().map(|interface| interface.name).collect();
                (names.join(","), expression.map(|expression| expression.text))
            })
        };
        for (words, expected) in [
            (&["lo"][..], None),
            (&["lo", "lo"], None),
            (&["lo", "udp"], Some("udp")),
            (&["lo", "udp and dst port 53"], Some("udp and dst port 53")),
            (&["lo", "udp", "and", "dst", "port", "53"], Some("udp and dst port 53")),
            // An interface's name behind that is the expression's.
            (&["lo", "host", "lo"], Some("host lo")),
            (&["lo", ""], Some("")),
        ] {
            let (interfaces, expression) = place(words).unwrap();
            assert_eq!((interfaces.as_str(), expression.as_deref()), ("lo", expected), "{words:?}");
        }
        for words in [&["no-such-if"][..], &["no-such-if", "lo"], &["udp", "port", "53"]] {
            let error = place(words).unwrap_err().to_string();
            assert!(error.starts_with(&format!("no interface `{}`", words[0])), "{error}");
        }
    }
}
