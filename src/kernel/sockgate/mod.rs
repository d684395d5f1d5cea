// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether this kernel may be trusted with redirected connections: `sockredir` doesn't run where it is known, or can't
//! be excluded, that it would crash the machine or lose data, unless it is told to.
//!
//! What can be asked of the kernel without danger is asked: a kernel without MPTCP or without TLS can't be hurt by what
//! goes wrong there. The rest goes by release: to try would be to crash.

mod release;
mod table;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Result;

pub(crate) use self::release::{Patch, Release, Series};
use self::table::{FIXES, Fix, Reach, Stable};
use crate::error::unsupported;

/// Before Linux 6.0 a direction cannot go back to TCP and wake every reader: what TCP brings can't be put into the
/// queue of redirected data (net/ipv4/tcp.c, tcp_read_skb), and by the older way, with a stream parser, 5.10 hangs its
/// processors. 6.0 had no long life.
const OLDEST: Series = Series(6, 1);

/// How many of the fixes that a kernel lacks a message names.
const NAMED: usize = 3;

/// How it stands with a fix that isn't known to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// A later release of the series has it.
    Until(u32),
    /// No release of the series had it when the source was written.
    Series,
    /// The series isn't among those that could be looked up.
    UnknownSeries,
    /// The kernel doesn't tell which release it is.
    UnknownRelease(u32),
    /// A release candidate: it may be from before the fix.
    Candidate,
}

/// A fix that this kernel lacks, or may lack.
#[derive(Clone, Debug)]
pub(crate) struct MissingFix {
    fix: &'static Fix,
    series: Series,
    lack: Lack,
}

impl MissingFix {
    /// Whether it is sure that it is missing.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self.lack, Lack::Until(_) | Lack::Series)
    }

    pub(crate) fn title(&self) -> &'static str {
        self.fix.title
    }

    fn where_it_is(&self) -> String {
        let series = self.series;
        match self.lack {
            Lack::Until(patch) => format!("fixed in {series}.{patch}"),
            Lack::Series => {
                format!("not fixed in {series} ({}), but in {}", self.fix.source, self.fix.mainline)
            }
            Lack::UnknownSeries => {
                format!("not known whether {series} has it; {} has", self.fix.mainline)
            }
            Lack::UnknownRelease(patch) => format!(
                "not known whether it is there: {series} has it since {series}.{patch}, and this kernel does not \
                 say which release of {series} it is"
            ),
            Lack::Candidate => "not known whether this release candidate has it".into(),
        }
    }
}

impl fmt::Display for MissingFix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fix = self.fix;
        write!(f, "`{}` ({:.12}", fix.title, fix.commit)?;
        if let Some(cve) = fix.cve {
            write!(f, ", {cve}")?;
        }
        write!(f, "; {}): {}", self.where_it_is(), fix.effect)
    }
}

/// What a kernel can do, of what the fixes are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Abilities {
    pub(crate) mptcp: bool,
    pub(crate) tls: bool,
}

impl Abilities {
    /// What can't be excluded is there.
    fn probe(release: &str) -> Self {
        Self { mptcp: Path::new("/proc/sys/net/mptcp").exists(), tls: has_tls(release) }
    }
}

/// include/linux/proc_ns.h, PROC_PID_INIT_INO
const INITIAL: &str = "pid:[4026531836]";

/// Whether the kernel has TLS, built in or as a module that it would load when asked.
fn has_tls(release: &str) -> bool {
    let loaded = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp").unwrap_or_default();
    if loaded.split_whitespace().any(|name| name == "tls") {
        return true;
    }
    if !Path::new("/proc/modules").exists() {
        // A kernel without modules has all that it will ever have.
        return false;
    }
    // The kernel calls modprobe in the first process's root directory. If we can't tell which that is, there may be
    // one.
    let sees_the_host = fs::read_link("/proc/self/ns/pid").is_ok_and(|it| it == Path::new(INITIAL));
    let modules = Path::new("/proc/1/root/lib/modules");
    if !sees_the_host || fs::metadata("/proc/1/root/.").is_err() {
        return true;
    }
    // Without the list modprobe finds none.
    fs::read_to_string(modules.join(release).join("modules.dep"))
        .is_ok_and(|list| list.lines().any(|line| is_module(line, "tls")))
}

/// Whether a line of modules.dep is of this module: `kernel/net/tls/tls.ko.xz: …`
fn is_module(line: &str, name: &str) -> bool {
    let file = line.split(':').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    file.strip_prefix(name).is_some_and(|rest| rest.starts_with(".ko"))
}

/// The verdict on a kernel.
#[derive(Debug)]
pub(crate) struct Gate {
    release: Release,
    missing: Vec<MissingFix>,
    /// What it lacks as well, and sockredir can't run into; and why not.
    out_of_reach: Vec<(MissingFix, &'static str)>,
}

impl Gate {
    /// Of the running kernel.
    pub(crate) fn here() -> Result<Self> {
        let release = Release::running()?;
        let abilities = Abilities::probe(release.name());
        Ok(Self::of(release, abilities))
    }

    pub(crate) fn of(release: Release, abilities: Abilities) -> Self {
        let (mut missing, mut out_of_reach) = (Vec::new(), Vec::new());
        for fix in FIXES {
            let Some(lack) = lack(fix, &release) else { continue };
            let it = MissingFix { fix, series: release.series, lack };
            match fix.reach {
                Reach::Always => missing.push(it),
                Reach::Mptcp if abilities.mptcp => missing.push(it),
                Reach::Mptcp => out_of_reach.push((it, "this kernel has no MPTCP")),
                Reach::Tls if abilities.tls => missing.push(it),
                Reach::Tls => out_of_reach.push((it, "this kernel has no TLS")),
                Reach::Never(why) => out_of_reach.push((it, why)),
            }
        }
        Self { release, missing, out_of_reach }
    }

    pub(crate) fn missing(&self) -> &[MissingFix] {
        &self.missing
    }

    /// Refuses, or with `force` gives the warning to print.
    pub(crate) fn pass(&self, force: bool) -> Result<Option<String>> {
        if let Some(sentence) = self.too_old() {
            return Err(unsupported(sentence));
        }
        let Some(sentence) = self.objection(NAMED) else { return Ok(None) };
        if force {
            return Ok(Some(format!("warning: {sentence}")));
        }
        Err(unsupported(format!("{sentence}; --force redirects all the same")))
    }

    /// That no fix would do, if so.
    pub(crate) fn too_old(&self) -> Option<String> {
        (self.release.series < OLDEST).then(|| {
            format!(
                "{} is too old for sockredir, which needs Linux {OLDEST}: before, programs may wait for ever when a redirected \
                 connection goes back to TCP",
                self.release
            )
        })
    }

    /// What speaks against this kernel, in one line, with so many fixes; nothing when nothing does.
    fn objection(&self, most: usize) -> Option<String> {
        if self.missing.is_empty() {
            return None;
        }
        // What is sure before what may be.
        let (known, unknown): (Vec<_>, Vec<_>) =
            self.missing.iter().partition(|fix| fix.is_known());
        let list = |fixes: &[&MissingFix]| {
            let named: Vec<String> = fixes.iter().take(most).map(|fix| fix.to_string()).collect();
            match fixes.len().saturating_sub(most) {
                0 => named.join("; "),
                more => format!("{}; and {more} more fixes, which doctor lists", named.join("; ")),
            }
        };
        let mut parts = Vec::new();
        if !known.is_empty() {
            parts.push(format!("{} lacks {}", self.release, list(&known)));
        }
        if !unknown.is_empty() {
            parts.push(format!("{} may lack {}", self.release, list(&unknown)));
        }
        Some(parts.join("; "))
    }

    /// For doctor: the verdict, and what it rests on.
    pub(crate) fn detail(&self) -> String {
        let mut parts: Vec<String> = Vec::new();
        if let Some(sentence) = self.too_old() {
            return sentence;
        }
        match self.objection(usize::MAX) {
            Some(sentence) => parts.push(format!("{sentence}; sockredir needs --force")),
            None => parts.push(format!("{}: nothing missing that sockredir needs", self.release)),
        }
        for (fix, why) in &self.out_of_reach {
            parts.push(format!("out of its reach: `{}` ({why})", fix.title()));
        }
        parts.join("; ")
    }
}

/// How it stands with `fix`; nothing when it is there or isn't needed.
fn lack(fix: &Fix, release: &Release) -> Option<Lack> {
    let series = release.series;
    if series < fix.broken_since {
        return None;
    }
    if series >= fix.mainline {
        let may_be_older = series == fix.mainline && release.patch == Patch::Candidate;
        return may_be_older.then_some(Lack::Candidate);
    }
    let stable = fix.stable.iter().find(|(of, _)| *of == series).map(|(_, stable)| *stable);
    match (stable, release.patch) {
        (None, _) => Some(Lack::UnknownSeries),
        (Some(Stable::Unaffected), _) => None,
        (Some(Stable::NotThere), _) => Some(Lack::Series),
        (Some(Stable::Since(patch)), Patch::Known(has)) => {
            (has < patch).then_some(Lack::Until(patch))
        }
        (Some(Stable::Since(patch)), Patch::NotTold) => Some(Lack::UnknownRelease(patch)),
        // Its first release didn't have it yet.
        (Some(Stable::Since(patch)), Patch::Candidate) => Some(Lack::Until(patch)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Status, status_of};

    const ALL: Abilities = Abilities { mptcp: true, tls: true };
    const NONE: Abilities = Abilities { mptcp: false, tls: false };

    fn gate(name: &str, abilities: Abilities) -> Gate {
        Gate::of(Release::parse(name, "", None).unwrap(), abilities)
    }

    fn titles(gate: &Gate) -> Vec<&str> {
        gate.missing().iter().map(MissingFix::title).collect()
    }

    #[test]
    fn kernels_that_have_all_that_is_needed() {
        for name in ["6.1.192", "6.12.117", "6.18.53", "7.2.0", "7.3.4"] {
            assert_eq!(titles(&gate(name, ALL)), [""; 0], "{name}");
            assert_eq!(gate(name, ALL).pass(false).unwrap(), None, "{name}");
        }
        for name in ["6.6.152", "6.18.44", "7.0.0"] {
            assert_eq!(titles(&gate(name, NONE)), [""; 0], "{name}");
        }
    }

    #[test]
    fn before_6_1_there_is_no_way() {
        // The last hides what it is: personality(2), UNAME26.
        for name in ["5.10.262", "5.15.216", "6.0.19", "2.6.78"] {
            let gate = gate(name, NONE);
            for force in [false, true] {
                let error = gate.pass(force).unwrap_err();
                assert_eq!(status_of(&error), Status::Unsupported);
                let text = format!("{error:#}");
                assert!(text.contains("needs Linux 6.1") && !text.contains("--force"), "{text}");
            }
            assert!(gate.detail().contains("too old"), "{}", gate.detail());
        }
    }

    #[test]
    fn each_release_is_the_first_or_the_last() {
        let copied = "bpf, sockmap: Fix incorrect copied_seq calculation";
        for (before, after) in [
            ("6.1.164", "6.1.165"),
            ("6.6.127", "6.6.128"),
            ("6.12.74", "6.12.75"),
            ("6.18.13", "6.18.14"),
            ("6.19.3", "6.19.4"),
        ] {
            assert_eq!(titles(&gate(before, NONE)), [copied], "{before}");
            assert_eq!(titles(&gate(after, NONE)), [""; 0], "{after}");
        }
        let mptcp = Abilities { mptcp: true, tls: false };
        for (before, after) in
            [("6.1.158", "6.1.159"), ("6.6.117", "6.6.118"), ("6.12.59", "6.12.60")]
        {
            let title = "mptcp: Fix proto fallback detection with BPF";
            assert!(titles(&gate(before, mptcp)).contains(&title), "{before}");
            assert!(!titles(&gate(after, mptcp)).contains(&title), "{after}");
        }
        let tls = Abilities { mptcp: false, tls: true };
        for (before, after) in
            [("6.1.190", "6.1.191"), ("6.12.110", "6.12.111"), ("6.18.52", "6.18.53")]
        {
            assert_eq!(titles(&gate(before, tls)).len(), 1, "{before}");
            assert_eq!(titles(&gate(after, tls)), [""; 0], "{after}");
        }
        let all = |name: &str| titles(&gate(name, NONE)).len();
        assert!(all("6.1.1") > all("6.1.90") && all("6.1.90") > all("6.1.150"));
    }

    #[test]
    fn what_is_not_known_refuses_and_says_so() {
        let text = format!("{:#}", gate("6.4.0-150600.23.7-default", ALL).pass(false).unwrap_err());
        assert!(text.starts_with("Linux 6.4.0-150600.23.7-default may lack `"), "{text}");
        assert!(text.contains("not known whether 6.4 has it; 7.0 has"), "{text}");
        let text = format!("{:#}", gate("6.1.0-176-generic", NONE).pass(false).unwrap_err());
        assert!(text.contains("does not say which release of 6.1 it is"), "{text}");
        let text = format!("{:#}", gate("7.2.0-rc1", ALL).pass(false).unwrap_err());
        assert!(text.contains("not known whether this release candidate has it"), "{text}");
        // A series that is older than the fix and has no entry.
        assert!(!titles(&gate("6.13.2", ALL)).is_empty());
    }

    #[test]
    fn it_refuses_in_one_line_with_the_fix_and_force_goes_on() {
        let gate = gate("6.18.13", NONE);
        let error = gate.pass(false).unwrap_err();
        assert_eq!(status_of(&error), Status::Unsupported);
        let text = format!("{error:#}");
        assert_eq!(
            text,
            "Linux 6.18.13 lacks `bpf, sockmap: Fix incorrect copied_seq calculation` (b40cc5adaa80; fixed in 6.18.14): after a \
             read of redirected bytes, bytes that TCP brings can wait in the kernel until more of them have come than were \
             redirected: the reader hangs; --force redirects all the same"
        );
        let warning = gate.pass(true).unwrap().unwrap();
        assert!(warning.starts_with("warning: Linux 6.18.13 lacks `bpf"), "{warning}");
        assert!(!warning.contains("--force") && !warning.contains('\n'), "{warning}");
        // Of many, some are named.
        let many = self::gate("6.1.1", ALL);
        let text = format!("{:#}", many.pass(false).unwrap_err());
        assert_eq!(text.matches('`').count(), 2 * NAMED, "{text}");
        assert!(text.contains(" more fixes, which doctor lists"), "{text}");
        assert!(many.detail().matches('`').count() > 2 * NAMED);
    }

    #[test]
    fn what_is_out_of_reach_is_told_and_refuses_nothing() {
        let gate = gate("6.18.44", NONE);
        assert!(gate.pass(false).unwrap().is_none());
        let text = gate.detail();
        assert!(text.contains("nothing missing that sockredir needs"), "{text}");
        assert!(text.contains("sk_redir use-after-free"), "{text}");
        assert!(text.contains("bpf_msg_apply_bytes"), "{text}");
        assert!(text.contains("no TLS"), "{text}");
    }

    #[test]
    fn the_table_makes_sense() {
        for fix in FIXES {
            assert!(fix.broken_since < fix.mainline, "{}", fix.title);
            assert!(fix.commit.len() == 40, "{}", fix.title);
            assert!(!fix.source.is_empty() && !fix.effect.ends_with('.'), "{}", fix.title);
            for (series, _) in fix.stable {
                assert!(*series < fix.mainline, "{}: {series}", fix.title);
            }
            let mut series: Vec<_> = fix.stable.iter().map(|(series, _)| *series).collect();
            assert!(series.is_sorted(), "{}", fix.title);
            series.dedup();
            assert_eq!(series.len(), fix.stable.len(), "{}", fix.title);
        }
    }

    #[test]
    fn modules_are_found_by_their_names() {
        assert!(is_module("kernel/net/tls/tls.ko: kernel/x.ko", "tls"));
        assert!(is_module("kernel/net/tls/tls.ko.xz:", "tls"));
        assert!(!is_module("kernel/drivers/tls_other.ko.xz: kernel/net/tls/tls.ko.xz", "tls"));
    }

    #[test]
    fn the_running_kernel_gets_a_verdict() {
        let gate = Gate::here().unwrap();
        match gate.pass(true) {
            Ok(warning) => assert_eq!(warning.is_none(), gate.missing().is_empty()),
            Err(_) => assert!(gate.release.series < OLDEST),
        }
        assert!(gate.detail().starts_with("Linux "));
    }
}
