// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tracepoints are found in tracefs, which need not be mounted.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::{limits, sys};
use crate::error::{not_permitted, unsupported};

/// A view of tracefs: where it is mounted, or a mount of our own that nobody else sees.
#[derive(Debug)]
pub(crate) struct Tracefs {
    root: PathBuf,
    /// Keeps the private mount.
    _mount: Option<OwnedFd>,
}

impl Tracefs {
    pub(crate) fn open() -> Result<Self> {
        if let Some(root) = Self::mounted() {
            return Ok(Self { root, _mount: None });
        }
        let mount = sys::private_mount(c"tracefs").map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => not_permitted(
                "tracefs is not mounted, and mounting it needs CAP_SYS_ADMIN; \
                 `mount -t tracefs nodev /sys/kernel/tracing` as root",
            ),
            Some(libc::ENODEV) => unsupported("this kernel has no tracefs (CONFIG_TRACING)"),
            _ => anyhow!("cannot mount tracefs privately: {error}"),
        })?;
        let root = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        Ok(Self { root, _mount: Some(mount) })
    }

    /// Where tracefs is mounted for everybody.
    pub(crate) fn mounted() -> Option<PathBuf> {
        ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
            .map(PathBuf::from)
            .into_iter()
            .find(|root| root.join("events").is_dir())
    }

    fn event(&self, category: &str, name: &str) -> PathBuf {
        self.root.join("events").join(category).join(name)
    }

    /// The id of a tracepoint, or what keeps us from it.
    pub(crate) fn event_id(&self, category: &str, name: &str) -> Result<u64> {
        let text = self.read(&self.event(category, name).join("id"), category, name)?;
        text.trim().parse().with_context(|| {
            format!("tracefs gives the id `{}` for {category}:{name}", text.trim())
        })
    }

    /// Whether the tracepoint's record has a field of this name.
    pub(crate) fn event_has_field(&self, category: &str, name: &str, field: &str) -> Result<bool> {
        let format = match self.read(&self.event(category, name).join("format"), category, name) {
            Ok(format) => format,
            Err(error) if limits::is_lacking(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(format.lines().any(|line| {
            line.trim_start()
                .strip_prefix("field:")
                .and_then(|declaration| declaration.split(';').next())
                .and_then(|declaration| declaration.rsplit([' ', '*']).next())
                .is_some_and(|last| last == field)
        }))
    }

    fn read(&self, path: &Path, category: &str, name: &str) -> Result<String> {
        fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                unsupported(format!("this kernel has no tracepoint {category}:{name}"))
            }
            std::io::ErrorKind::PermissionDenied => not_permitted(format!(
                "reading {} in tracefs needs root or CAP_DAC_READ_SEARCH",
                path.strip_prefix(&self.root).unwrap_or(path).display()
            )),
            _ => anyhow!("cannot read {}: {error}", path.display()),
        })
    }
}
