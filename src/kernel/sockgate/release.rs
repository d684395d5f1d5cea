// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which stable release a kernel is, from what it says of itself. A distribution's own number is none: Debian's
//! `6.1.0-56-amd64` is 6.1.192, as its version string says, Ubuntu's `5.15.0-176-generic` is what
//! /proc/version_signature says, and of others' `5.14.0-427.el9` nobody outside knows what has been put into it.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

/// 6.1 and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Series(pub(crate) u32, pub(crate) u32);

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// Which stable release it is, of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patch {
    Known(u32),
    /// Before the series' first release: no telling which commits it has.
    Candidate,
    /// The distribution doesn't say what its kernel is made of.
    NotTold,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) series: Series,
    pub(crate) patch: Patch,
    /// As `uname -r` has it.
    name: String,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match self.patch {
            Patch::Known(patch) if *name == format!("{}.{patch}", self.series) => {
                write!(f, "Linux {name}")
            }
            Patch::Known(patch) => write!(f, "Linux {}.{patch} ({name})", self.series),
            Patch::Candidate | Patch::NotTold => write!(f, "Linux {name}"),
        }
    }
}

impl Release {
    /// Of the running kernel.
    pub(crate) fn running() -> Result<Self> {
        let uname = nix::sys::utsname::uname().context("cannot ask which kernel this is")?;
        let name = uname.release().to_string_lossy().into_owned();
        let signature = fs::read_to_string("/proc/version_signature").ok();
        Self::parse(&name, &uname.version().to_string_lossy(), signature.as_deref())
            .with_context(|| format!("cannot tell which kernel `{name}` is"))
    }

    /// As `uname -r` has it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// From `uname -r`, `uname -v` and, of Ubuntu, /proc/version_signature.
    pub(super) fn parse(name: &str, version: &str, signature: Option<&str>) -> Option<Self> {
        let (series, own, rest) = three(name)?;
        let release = |patch| Self { series, patch, name: name.to_string() };
        // "Ubuntu 5.15.0-176.186-generic 5.15.199"
        let ubuntu = signature.and_then(|text| three(text.split_whitespace().last()?));
        // "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)"
        let debian = version.split_once("Debian ").and_then(|(_, text)| three(text));
        for (found, patch, _) in [ubuntu, debian].into_iter().flatten() {
            if found == series {
                return Some(release(Patch::Known(patch.unwrap_or(0))));
            }
        }
        let patch = match own {
            _ if rest.starts_with("-rc") => Patch::Candidate,
            Some(patch) if patch > 0 && !is_of_a_vendor(rest) => Patch::Known(patch),
            // The first release of a series, and nothing else.
            None | Some(0) if rest.is_empty() || rest == "+" => Patch::Known(0),
            _ => Patch::NotTold,
        };
        Some(release(patch))
    }
}

/// `.el9` and the like: Red Hat's kin keep the number of the release that they started from, whatever they put into it
/// since.
fn is_of_a_vendor(rest: &str) -> bool {
    rest.split_once(".el").is_some_and(|(_, after)| after.starts_with(|c: char| c.is_ascii_digit()))
}

/// The numbers that a text begins with, and what comes after them.
fn three(text: &str) -> Option<(Series, Option<u32>, &str)> {
    let (major, rest) = number(text)?;
    let (minor, rest) = number(rest.strip_prefix('.')?)?;
    let series = Series(major, minor);
    match rest.strip_prefix('.').and_then(number) {
        Some((patch, rest)) => Some((series, Some(patch), rest)),
        None => Some((series, None, rest)),
    }
}

fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str, version: &str, signature: Option<&str>) -> (Series, Patch) {
        let release = Release::parse(name, version, signature).unwrap();
        (release.series, release.patch)
    }

    #[test]
    fn what_a_kernel_says_of_itself() {
        let plain = "#1 SMP PREEMPT_DYNAMIC Mon Nov 16 10:17:40 UTC 2026";
        let debian =
            |version: &str| format!("#1 SMP PREEMPT_DYNAMIC Debian {version} (2026-11-16)");
        for (name, version, expected) in [
            ("6.18.44-fc-v657", plain.to_string(), (Series(6, 18), Patch::Known(44))),
            ("6.12.117", plain.to_string(), (Series(6, 12), Patch::Known(117))),
            ("6.1.0-56-cloud-amd64", debian("6.1.192-2"), (Series(6, 1), Patch::Known(192))),
            ("5.10.0-46-cloud-amd64", debian("5.10.262+1"), (Series(5, 10), Patch::Known(262))),
            ("6.12.117+deb13-amd64", debian("6.12.117-1"), (Series(6, 12), Patch::Known(117))),
            ("7.3.4+deb13-amd64", debian("7.3.4-1~bpo13+1"), (Series(7, 3), Patch::Known(4))),
            (
                "5.15.167.4-microsoft-standard-WSL2",
                plain.into(),
                (Series(5, 15), Patch::Known(167)),
            ),
            ("6.1.134-152.225.amzn2023.x86_64", plain.into(), (Series(6, 1), Patch::Known(134))),
            ("7.0.0", plain.to_string(), (Series(7, 0), Patch::Known(0))),
            ("7.0", plain.to_string(), (Series(7, 0), Patch::Known(0))),
            ("7.2.0-rc3", plain.to_string(), (Series(7, 2), Patch::Candidate)),
            ("7.2-rc3+", plain.to_string(), (Series(7, 2), Patch::Candidate)),
            ("5.14.0-427.13.1.el9_4.x86_64", plain.into(), (Series(5, 14), Patch::NotTold)),
            ("6.4.0-150600.23.7-default", plain.into(), (Series(6, 4), Patch::NotTold)),
            ("5.15.0-176-generic", "#186-Ubuntu SMP".into(), (Series(5, 15), Patch::NotTold)),
            ("6.6.30-1.el9.elrepo.x86_64", plain.into(), (Series(6, 6), Patch::NotTold)),
        ] {
            assert_eq!(parse(name, &version, None), expected, "{name} {version}");
        }
        let signature = "Ubuntu 5.15.0-176.186-generic 5.15.199\n";
        assert_eq!(
            parse("5.15.0-176-generic", "#186-Ubuntu SMP", Some(signature)),
            (Series(5, 15), Patch::Known(199))
        );
        // Of another kernel: a container's file is no evidence.
        assert_eq!(
            parse("6.8.0-31-generic", "#31-Ubuntu SMP", Some(signature)),
            (Series(6, 8), Patch::NotTold)
        );
        for odd in ["", "linux", "6", "6.", "six.one", "99999999999.1"] {
            assert_eq!(Release::parse(odd, plain, None), None, "{odd}");
        }
    }

    #[test]
    fn it_is_called_by_both_of_its_names() {
        let text =
            |name: &str, version: &str| Release::parse(name, version, None).unwrap().to_string();
        assert_eq!(text("6.1.0-56-amd64", "Debian 6.1.192-2"), "Linux 6.1.192 (6.1.0-56-amd64)");
        assert_eq!(text("6.12.5", ""), "Linux 6.12.5");
        assert_eq!(text("5.15.0-176-generic", ""), "Linux 5.15.0-176-generic");
    }

    #[test]
    fn the_running_kernel_is_known_by_its_series() {
        let release = Release::running().unwrap();
        let name = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert!(name.starts_with(&release.series.to_string()), "{release:?} {name}");
        assert!(release.series >= Series(5, 10));
    }
}
