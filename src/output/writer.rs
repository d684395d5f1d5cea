// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where rows go: standard output, or a file that grows by whole rows.

use std::fmt;
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
    /// The rest of a line that standard output took a part of: it comes before the next ones.
    torn: Vec<u8>,
    lasting: bool,
    told: bool,
    /// Lines that could not be written, where that ends nothing.
    unwritten: u64,
}

#[derive(Debug)]
enum To {
    Stdout,
    File { path: PathBuf, file: File },
}

impl Writer {
    pub(super) fn open(path: Option<&Path>) -> Result<Self> {
        let to = match path {
            None => To::Stdout,
            Some(path) => {
                let file = file::append(path)
                    .map_err(|error| usage(format!("--output {}: {error}", path.display())))?;
                To::File { path: path.into(), file }
            }
        };
        Ok(Self {
            to,
            held: String::new(),
            torn: Vec::new(),
            lasting: false,
            told: false,
            unwritten: 0,
        })
    }

    pub(super) fn set_lasting(&mut self, lasting: bool) {
        self.lasting = lasting;
    }

    pub(super) fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// Opens the file anew: it was renamed or removed by whoever rotates it.
    pub(super) fn reopen(&mut self) -> Result<()> {
        self.flush()?;
        if let To::File { path, file } = &mut self.to {
            match file::append(path) {
                Ok(new) => *file = new,
                Err(error) if self.lasting => tell(&format!(
                    "cannot open {} to append to it: {error}; what is open is written to",
                    path.display()
                )),
                Err(error) => {
                    let context = format!("cannot open {} to append to it", path.display());
                    return Err(error).context(context);
                }
            }
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
        // Also after an error: what failed once is not tried again at the end.
        let lines = std::mem::take(&mut self.held);
        let Err(failed) = self.put(lines.as_bytes()) else { return Ok(()) };
        if !self.lasting || failed.error.kind() == io::ErrorKind::BrokenPipe {
            return Err(failed.error).with_context(|| format!("cannot write to {}", self.to));
        }
        let rest = &lines.as_bytes()[failed.done..];
        if !std::mem::replace(&mut self.told, true) {
            let (to, error) = (&self.to, &failed.error);
            tell(&format!(
                "cannot write to {to}: {error}; the run goes on, and counts the lines that are not written"
            ));
        }
        self.unwritten += rest.iter().filter(|&&byte| byte == b'\n').count() as u64;
        Ok(())
    }

    fn put(&mut self, lines: &[u8]) -> Result<(), Failed> {
        match &mut self.to {
            To::File { file, .. } => append_lines(file, lines),
            To::Stdout => {
                if !self.torn.is_empty() {
                    let (written, outcome) = write_all(&mut RawStdout, &self.torn);
                    self.torn.drain(..written);
                    outcome.map_err(|error| Failed { done: 0, error })?;
                }
                let (written, outcome) = write_all(&mut RawStdout, lines);
                outcome.map_err(|error| {
                    let mut done = written;
                    if whole_lines(&lines[..written]) < written {
                        let rest = lines[written..].iter().position(|&byte| byte == b'\n');
                        done += rest.map_or(0, |at| at + 1);
                        // It is written in the end, if anything is.
                        self.torn = lines[written..done].to_vec();
                    }
                    Failed { done, error }
                })
            }
        }
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File { path, .. } => path.display().fmt(f),
        }
    }
}

/// Past the library's buffer, of which can't be told what of it was written.
struct RawStdout;

impl Write for RawStdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(io::stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says what is no row, where it does not disturb them.
fn tell(text: &str) {
    // Nobody may be listening any more, and that is no failure of the run.
    let _ = writeln!(io::stderr(), "bpftk: {text}");
}

impl Drop for Writer {
    /// An error that ends the run takes no row with it.
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

/// What of the lines is there, as whole ones, and why no more.
#[derive(Debug)]
struct Failed {
    done: usize,
    error: io::Error,
}

/// How much was written, and whether that is all.
fn write_all(to: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// Where the last whole line of it ends.
fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
}

fn append_lines(file: &mut File, lines: &[u8]) -> Result<(), Failed> {
    let (written, outcome) = write_all(file, lines);
    outcome.map_err(|error| {
        let done = whole_lines(&lines[..written]);
        if let Ok(meta) = file.metadata()
            && meta.is_file()
        {
            // The write's own error is the one to tell.
            let _ = file.set_len(meta.len().saturating_sub((written - done) as u64));
        }
        Failed { done, error }
    })
}
