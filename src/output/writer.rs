// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where rows go: standard output, or a file that grows by whole rows.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::file;
use crate::error::usage;

/// Rows that wait for company are written when there is so much of them.
const MOST_HELD: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Writer {
    to: To,
    /// Whole lines that are not written yet.
    held: String,
}

#[derive(Debug)]
enum To {
    Stdout(io::Stdout),
    File { path: PathBuf, file: File },
}

impl Writer {
    pub(super) fn open(path: Option<&Path>) -> Result<Self> {
        let to = match path {
            None => To::Stdout(io::stdout()),
            Some(path) => {
                let file = file::append(path)
                    .map_err(|error| usage(format!("--output {}: {error}", path.display())))?;
                To::File { path: path.into(), file }
            }
        };
        Ok(Self { to, held: String::new() })
    }

    /// Opens the file anew: it was renamed or removed by whoever rotates it.
    pub(super) fn reopen(&mut self) -> Result<()> {
        self.flush()?;
        if let To::File { path, file } = &mut self.to {
            *file = file::append(path)
                .with_context(|| format!("cannot open {} to append to it", path.display()))?;
        }
        Ok(())
    }

    /// Writes whole lines, at once.
    pub(super) fn write(&mut self, lines: &str) -> Result<()> {
        self.held.push_str(lines);
        self.flush()
    }

    /// Writes whole lines with the next ones, or when `flush` is called.
    pub(super) fn hold(&mut self, lines: &str) -> Result<()> {
        self.held.push_str(lines);
        if self.held.len() < MOST_HELD { Ok(()) } else { self.flush() }
    }

    /// When the disk is full, the last line that stays is whole.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let outcome = match &mut self.to {
            To::Stdout(out) => {
                let mut out = out.lock();
                out.write_all(self.held.as_bytes())
                    .and_then(|()| out.flush())
                    .context("cannot write to standard output")
            }
            To::File { path, file } => append_lines(file, self.held.as_bytes())
                .with_context(|| format!("cannot write to {}", path.display())),
        };
        // Also after an error: what failed once is not tried again at the end.
        self.held.clear();
        outcome
    }
}

impl Drop for Writer {
    /// An error that ends the run takes no row with it.
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

fn append_lines(file: &mut File, lines: &[u8]) -> io::Result<()> {
    let mut written = 0;
    let error = loop {
        if written == lines.len() {
            return Ok(());
        }
        match file.write(&lines[written..]) {
            Ok(0) => break io::ErrorKind::WriteZero.into(),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break error,
        }
    };
    let whole = lines[..written].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    if let Ok(meta) = file.metadata()
        && meta.is_file()
    {
        // The write's own error is the one to tell.
        let _ = file.set_len(meta.len().saturating_sub((written - whole) as u64));
    }
    Err(error)
}
