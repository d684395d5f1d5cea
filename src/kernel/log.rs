// SPDX-License-Identifier: MIT OR Apache-2.0

//! libbpf explains its errors only in its log. Warnings are kept, and become the cause of the error that follows.

use std::fmt::Display;
use std::io::Write;
use std::sync::Mutex;

use libbpf_rs::{PrintLevel, set_print};

static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Collects libbpf's warnings; `verbose` prints its whole log to standard error too.
pub(crate) fn collect(verbose: bool) {
    if verbose {
        set_print(Some((PrintLevel::Debug, print_and_keep)));
    } else {
        set_print(Some((PrintLevel::Warn, keep)));
    }
}

fn keep(level: PrintLevel, message: String) {
    if matches!(level, PrintLevel::Warn)
        && let Ok(mut warnings) = WARNINGS.lock()
    {
        warnings.push(message);
    }
}

fn print_and_keep(level: PrintLevel, message: String) {
    let _ = std::io::stderr().write_all(message.as_bytes());
    keep(level, message);
}

/// Says what a caller can't be told any more, such as what went wrong as something was taken away.
pub(super) fn tell(text: &str) {
    // Nobody may be listening.
    let _ = writeln!(std::io::stderr(), "bpftk: {text}");
}

/// Forgets what was collected, before something whose failure is to be explained.
pub(crate) fn clear() {
    if let Ok(mut warnings) = WARNINGS.lock() {
        warnings.clear();
    }
}

/// `error`, with the most telling of the collected warnings.
pub(crate) fn explain(error: impl Display) -> String {
    let warnings = WARNINGS.lock().map(|mut warnings| std::mem::take(&mut *warnings));
    let error = translate(&format!("{error:#}"));
    match warnings.ok().as_deref().and_then(most_telling) {
        Some(cause) => format!("{error} ({cause})"),
        None => error,
    }
}

/// Warnings that are about something else: hints to raise the limit of locked memory, which is libbpf's guess at any error, and what it
/// does without.
const GUESSES: [&str; 7] = [
    "ulimit -l",
    "RLIMIT_MEMLOCK",
    "bpf_object__probe_loading",
    "BEGIN PROG LOAD LOG",
    "skipping unrecognized",
    "is optional, ignoring",
    "Kernel doesn't support BTF, skipping",
];

/// The kernel's own words (netlink's extended acknowledgement, the verifier's last complaint) over libbpf's.
fn most_telling(warnings: &[String]) -> Option<String> {
    let lines: Vec<&str> = warnings
        .iter()
        .flat_map(|warning| warning.lines())
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let from_kernel = lines.iter().rev().find(|line| line.contains("Kernel error message:"));
    let from_verifier = verifier_complaint(&lines);
    let first = lines.iter().find(|line| !GUESSES.iter().any(|guess| line.contains(guess)));
    let line = from_kernel.copied().or(from_verifier).or(first.copied())?;
    let line = line.strip_prefix("libbpf: ").unwrap_or(line);
    Some(
        line.strip_prefix("Kernel error message: ")
            .unwrap_or(line)
            .trim_end_matches('.')
            .to_string(),
    )
}

/// The line before the verifier's statistics.
fn verifier_complaint<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let end =
        lines.iter().position(|line| line.starts_with("processed ") && line.contains("insns"))?;
    lines[..end].last().copied()
}

/// ENOTSUPP (524) is the kernel's own and has no text in the C library.
fn translate(error: &str) -> String {
    error.replace("Unknown error 524", "Operation not supported by this kernel")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|line| (*line).to_string()).collect()
    }

    #[test]
    fn the_kernels_own_words_come_first() {
        let log = lines(&[
            "libbpf: prog 'x': failed to attach: Device or resource busy\n",
            "libbpf: Kernel error message: XDP program already attached\n",
        ]);
        assert_eq!(most_telling(&log).unwrap(), "XDP program already attached");
    }

    #[test]
    fn the_verifiers_last_line_is_its_reason() {
        let log = lines(&[
            "libbpf: prog 'x': BPF program load failed: Permission denied\n",
            "libbpf: prog 'x': -- BEGIN PROG LOAD LOG --\n0: (b7) r0 = 0\nR1 !read_ok\nprocessed 1 insns (limit 1000000)\n-- END\n",
        ]);
        assert_eq!(most_telling(&log).unwrap(), "R1 !read_ok");
    }

    #[test]
    fn the_memlock_guess_is_left_out() {
        let log = lines(&[
            "libbpf: permission error while running as root; try raising 'ulimit -l'?\n",
            "libbpf: Failed to bump RLIMIT_MEMLOCK (err = -EPERM), you might need to do it explicitly!\n",
            "libbpf: Error in bpf_object__probe_loading(): -EPERM. Couldn't load trivial BPF program.\n",
        ]);
        assert_eq!(most_telling(&log), None);
        let more =
            lines(&["libbpf: map 'x': failed to create: -EPERM\n", "libbpf: failed to load\n"]);
        let log = [log, more].concat();
        assert_eq!(most_telling(&log).unwrap(), "map 'x': failed to create: -EPERM");
    }

    #[test]
    fn enotsupp_is_named() {
        assert!(
            translate("Unknown error 524 (os error 524)").starts_with("Operation not supported")
        );
    }
}
