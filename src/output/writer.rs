// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where rows go: standard output, or a file that grows by whole rows.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

#[derive(Debug)]
pub(super) enum Writer {
    Stdout(io::Stdout),
    File { path: PathBuf, file: File },
}

impl Writer {
    pub(super) fn open(path: Option<&Path>) -> Result<Self> {
        Ok(match path {
            None => Self::Stdout(io::stdout()),
            Some(path) => Self::File { path: path.into(), file: append(path)? },
        })
    }

    /// Opens the file anew: it was renamed or removed by whoever rotates it.
    pub(super) fn reopen(&mut self) -> Result<()> {
        if let Self::File { path, file } = self {
            *file = append(path)?;
        }
        Ok(())
    }

    /// Writes whole lines, at once. When the disk is full, none of the last ones stays in part.
    pub(super) fn write(&mut self, text: &str) -> Result<()> {
        match self {
            Self::Stdout(out) => {
                let mut out = out.lock();
                out.write_all(text.as_bytes())
                    .and_then(|()| out.flush())
                    .context("cannot write to standard output")
            }
            Self::File { path, file } => {
                let before =
                    file.metadata().ok().filter(|meta| meta.is_file()).map(|meta| meta.len());
                file.write_all(text.as_bytes())
                    .inspect_err(|_| {
                        if let Some(length) = before {
                            // The write's own error is the one to tell.
                            let _ = file.set_len(length);
                        }
                    })
                    .with_context(|| format!("cannot write to {}", path.display()))
            }
        }
    }
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .with_context(|| format!("cannot open {} to append to it", path.display()))
}
