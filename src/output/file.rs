// SPDX-License-Identifier: MIT OR Apache-2.0

//! Opening files for writing, as root, at paths where others may have been first.
//!
//! New files are 0600. In a directory that somebody else owns or may write to, a symbolic link is not followed, be it
//! the file or a directory on the way: it may lead to a file of root's. Elsewhere links are the administrator's, and
//! `/dev/stdout` is one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

const OWNER_ONLY: u32 = 0o600;

/// Opens the file to append to it, and makes it if it isn't there.
pub(crate) fn append(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().append(true).create(true))
}

/// Opens the file empty, and makes it if it isn't there.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    open(path, OpenOptions::new().write(true).create(true).truncate(true))
}

/// Puts a new file in the place of what was there, or leaves that. Anything but a plain file is written to.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let linked = std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
    refuse_strangers_link(path, linked)?;
    if linked && std::fs::metadata(path).is_ok_and(|found| found.is_file()) {
        return replace(&std::fs::canonicalize(path)?, content);
    }
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return create(path)?.write_all(content);
    }
    // Made with O_EXCL, 0600, under a name that nobody can know before.
    let mut new = tempfile::Builder::new().prefix(".bpftk-").tempfile_in(directory(path))?;
    new.write_all(content)?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    Ok(())
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    refuse_strangers_link(path, false)?;
    let ours = is_ours(directory(path))?;
    let flags = if ours { 0 } else { libc::O_NOFOLLOW };
    options.mode(OWNER_ONLY).custom_flags(flags).open(path).map_err(|error| {
        // ELOOP alone would be "Too many levels of symbolic links".
        if !ours && error.raw_os_error() == Some(libc::ELOOP) {
            strangers_link(path)
        } else {
            error
        }
    })
}

/// Of the directories on the way, none may be a link that somebody else may have made; `also` asks for the file itself.
fn refuse_strangers_link(path: &Path, also: bool) -> io::Result<()> {
    let whole = std::path::absolute(path)?;
    for at in whole.ancestors().skip(usize::from(!also)) {
        let is_link = std::fs::symlink_metadata(at).is_ok_and(|found| found.is_symlink());
        if is_link && !is_ours(directory(at))? {
            return Err(strangers_link(at));
        }
    }
    Ok(())
}

fn strangers_link(at: &Path) -> io::Error {
    let at = at.display();
    io::Error::other(format!("{at} is a symbolic link, in a directory that others may write to"))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Whether nobody but root and this user can make a link in it.
fn is_ours(directory: &Path) -> io::Result<bool> {
    let found = std::fs::metadata(directory)?;
    let owner = found.uid() == 0 || found.uid() == nix::unistd::geteuid().as_raw();
    Ok(owner && found.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn new_files_are_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (appended, created, replaced) =
            (dir.path().join("a"), dir.path().join("c"), dir.path().join("r"));
        append(&appended).unwrap();
        create(&created).unwrap();
        replace(&replaced, b"whole").unwrap();
        for path in [appended, created, replaced] {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
        let left: Vec<_> =
            dir.path().read_dir().unwrap().map(|at| at.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
    }

    #[test]
    fn links_are_followed_only_where_no_one_else_can_make_them() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "root's").unwrap();
        symlink(&target, &link).unwrap();
        for (mode, follows) in [(0o1777, false), (0o775, false), (0o755, true)] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(append(&link).is_ok(), follows, "{mode:o}");
            assert_eq!(create(&dir.path().join("./link")).is_ok(), follows, "{mode:o}");
            assert_eq!(replace(&link, b"new").is_ok(), follows, "{mode:o}");
            let content = std::fs::read_to_string(&target).unwrap();
            assert_eq!(content, if follows { "new" } else { "root's" });
        }
    }

    #[test]
    fn a_directory_on_the_way_may_be_a_strangers_link_too() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, link) = (dir.path().join("inner"), dir.path().join("link"));
        std::fs::create_dir(&inner).unwrap();
        std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(inner.join("target"), "root's").unwrap();
        symlink(&inner, &link).unwrap();
        for (mode, follows) in [(0o1777, false), (0o755, true)] {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(append(&link.join("target")).is_ok(), follows, "{mode:o}");
            assert_eq!(replace(&link.join("target"), b"new").is_ok(), follows, "{mode:o}");
            assert_eq!(replace(&link.join("another"), b"new").is_ok(), follows, "{mode:o}");
        }
    }

    #[test]
    fn a_link_of_ours_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        std::fs::write(&target, "old").unwrap();
        symlink(&target, &link).unwrap();
        replace(&link, b"new").unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "new");
    }

    #[test]
    fn what_others_put_beside_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (target, path) = (dir.path().join("target"), dir.path().join("list"));
        std::fs::write(&target, "root's").unwrap();
        // The name that was written to once: anyone could know it before.
        symlink(&target, dir.path().join(format!("list.{}", std::process::id()))).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "root's");
    }

    #[test]
    fn what_is_there_stays_if_the_new_one_can_not_be_written() {
        assert!(append(Path::new("/no/such/directory/file")).is_err());
        assert!(replace(Path::new("/dev/full"), b"lost").is_err());
        assert!(replace(Path::new("/dev/null"), b"gone").is_ok());
    }
}
