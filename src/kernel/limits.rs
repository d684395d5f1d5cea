// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a process or the machine may run out of: that is no lack of the kernel's, and no reason to do with less.

use std::fs::File;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::sys;
use crate::error::{Status, limited, status_of};

/// Errors that name a limit: their numbers and names, as messages of Rust and libbpf have them, and the C library's
/// words. EMFILE's are the beginning of ENFILE's, so that comes first.
const LIMITS: [(i32, &str, &str); 6] = [
    (libc::ENFILE, "ENFILE", "Too many open files in system"),
    (libc::EMFILE, "EMFILE", "Too many open files"),
    (libc::ENOMEM, "ENOMEM", "Cannot allocate memory"),
    (libc::ENOBUFS, "ENOBUFS", "No buffer space available"),
    (libc::EFBIG, "EFBIG", "File too large"),
    (libc::EAGAIN, "EAGAIN", "Resource temporarily unavailable"),
];

/// Makes of a limit on the size of files an error that can be told.
pub(crate) fn survive_file_size() {
    sys::ignore_file_size_signal();
}

/// At the start: as many open files as the process may have, since each program, map and attachment is one.
pub(crate) fn raise_open_files() {
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_MEMLOCK) {
        let _ = LOCKED_AT_START.set(soft);
    }
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Without it there is what there was.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// What to do about a map that is EPERM where others of the same kind are not.
pub(crate) fn locked_memory() -> String {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or_else(
        |_| "limited".to_string(),
        |(soft, _)| format!("limited to {} KiB", soft / 1024),
    );
    format!(
        "locked memory is {limit}, which maps count against before Linux 5.11: raise it with \
         `ulimit -l unlimited`, or run with CAP_SYS_RESOURCE"
    )
}

static LOCKED_AT_START: OnceLock<u64> = OnceLock::new();

/// Before libbpf raised it, as it does with the first map on kernels that count maps against it.
pub(crate) fn locked_memory_at_start() -> Option<u64> {
    LOCKED_AT_START.get().copied()
}

/// Open files that every back end can be armed with, and then some.
const ENOUGH_FILES: usize = 96;

/// Where there are too few, libbpf's errors may be of something else that it did without one.
pub(crate) fn too_few_files() -> Option<String> {
    let Ok(first) = File::open("/dev/null") else { return file_advice(Errno::last()) };
    let mut files = vec![first];
    while files.len() < ENOUGH_FILES {
        match files[0].try_clone() {
            Ok(file) => files.push(file),
            Err(_) => return file_advice(Errno::last()),
        }
    }
    None
}

fn file_advice(errno: Errno) -> Option<String> {
    matches!(errno, Errno::EMFILE | Errno::ENFILE).then(|| advice(&errno.to_string())).flatten()
}

/// What is said of a limit on open files: an error that has it is about that.
const RAISE_FILES: &str = "raise it with `ulimit -n`";

/// The limit that an error is about, and what to do. By its text: libbpf tells the number of an error only there.
fn advice(text: &str) -> Option<String> {
    let (number, ..) = LIMITS.into_iter().find(|(number, name, words)| {
        text.contains(words)
            || text.contains(name)
            || text.contains(&format!("os error {number})"))
            || text.contains(&format!(": -{number})"))
            || (*number == libc::EMFILE && text.contains(RAISE_FILES))
    })?;
    Some(match number {
        libc::EMFILE => {
            let limit = getrlimit(Resource::RLIMIT_NOFILE)
                .map_or_else(|_| "limited".to_string(), |(soft, _)| format!("limited to {soft}"));
            format!("open files of a process are {limit}: {RAISE_FILES}")
        }
        libc::ENFILE => {
            "open files of the machine are limited: raise it with `sysctl fs.file-max`".into()
        }
        libc::EFBIG => "files are limited in size: raise it with `ulimit -f`".into(),
        libc::EAGAIN => {
            "something is used up for the moment, such as processes (`ulimit -u`): try again".into()
        }
        _ => "memory is used up, of the machine or of this cgroup (memory.max)".into(),
    })
}

/// The error, if it is about a limit, with the limit named and the status of a failure.
pub(crate) fn named(error: &anyhow::Error) -> Option<anyhow::Error> {
    // Its text has words of the caller's.
    if status_of(error) == Status::Usage {
        return None;
    }
    let text = format!("{error:#}");
    named_in(&text).map(limited)
}

/// The same of what a text tells.
pub(crate) fn named_in(text: &str) -> Option<String> {
    let advice = advice(text)?;
    Some(if text.contains(&advice) { text.to_string() } else { format!("{text}; {advice}") })
}

/// Whether an error says that the kernel can't do it, so that it may be left out. Not if it ran into a limit.
pub(crate) fn is_lacking(error: &anyhow::Error) -> bool {
    status_of(error) != Status::Failed && named(error).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::unsupported;

    #[test]
    fn a_limit_is_named_whoever_tells_of_it() {
        for (text, part) in [
            ("cannot open: Too many open files (os error 24)", "`ulimit -n`"),
            ("failed to create map: -EMFILE", "`ulimit -n`"),
            ("map 'x': failed to create: -24)", "`ulimit -n`"),
            ("Too many open files in system (os error 23)", "fs.file-max"),
            ("x: Cannot allocate memory (os error 12)", "memory.max"),
            ("cannot write to rows: File too large (os error 27)", "`ulimit -f`"),
        ] {
            let error = named(&unsupported(text)).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(status_of(&error), Status::Failed, "{text}");
            let once = format!("{error:#}");
            assert!(once.starts_with(text) && once.contains(part), "{once}");
            assert_eq!(format!("{:#}", named(&error).unwrap()), once, "it is named once");
        }
        for text in ["Invalid argument (os error 22)", "os error 124)", "EPERM"] {
            assert!(named(&unsupported(text)).is_none(), "{text}");
        }
    }

    #[test]
    fn only_what_the_kernel_lacks_may_be_left_out() {
        assert!(is_lacking(&unsupported("no tracepoint")));
        assert!(!is_lacking(&unsupported("Too many open files")));
        assert!(!is_lacking(&anyhow::anyhow!("odd")));
    }
}
