// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is mounted, and where.

use std::fs;
use std::path::{Path, PathBuf};

/// One line of proc_pid_mountinfo(5).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// `major:minor` of the file system: the same for every place where it is mounted.
    pub(super) device: String,
    /// Which part of the file system.
    pub(super) root: PathBuf,
    pub(super) point: PathBuf,
    pub(super) fstype: String,
}

impl Mount {
    pub(super) fn of_this_process() -> Vec<Self> {
        Self::of_task(Path::new("/proc/self"))
    }

    /// As the task of this directory in /proc sees them; nothing when it is gone.
    pub(super) fn of_task(task: &Path) -> Vec<Self> {
        fs::read_to_string(task.join("mountinfo"))
            .map(|text| text.lines().filter_map(Self::parse).collect())
            .unwrap_or_default()
    }

    /// `36 35 98:0 /root /mount/point options [tags] - fstype source options`
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut words = before.split(' ').skip(2);
        Some(Self {
            device: words.next()?.to_string(),
            root: unescape(words.next()?).into(),
            point: unescape(words.next()?).into(),
            fstype: after.split(' ').next()?.to_string(),
        })
    }
}

/// Spaces and the like stand as `\040`.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                out.push(byte.into());
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let line = "30 23 0:26 / /mnt/a\\040b rw,nosuid shared:9 - cgroup2 none rw,nsdelegate";
        assert_eq!(
            Mount::parse(line),
            Some(Mount {
                device: "0:26".into(),
                root: "/".into(),
                point: "/mnt/a b".into(),
                fstype: "cgroup2".into(),
            })
        );
        let namespace = "99 23 0:4 net:[4026532281] /run/netns/x rw - nsfs nsfs rw";
        let mount = Mount::parse(namespace).unwrap();
        assert_eq!(
            (mount.fstype.as_str(), mount.root.to_str()),
            ("nsfs", Some("net:[4026532281]"))
        );
        assert_eq!(Mount::parse("odd"), None);
    }
}
