// SPDX-License-Identifier: MIT OR Apache-2.0

//! How far something is that takes long: one line on standard error, if that is a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// What is done by then needs no progress.
const PATIENCE: Duration = Duration::from_millis(500);
const PERIOD: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    /// When the next line is due; never where nobody sees it.
    due: Option<Instant>,
    shown: bool,
}

impl Progress {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        let due = std::io::stderr().is_terminal().then(|| Instant::now() + PATIENCE);
        Self { what: what.into(), due, shown: false }
    }

    /// `share` of it is done.
    pub(crate) fn tell(&mut self, share: f64) {
        let now = Instant::now();
        if self.due.is_some_and(|due| now >= due) {
            self.due = Some(now + PERIOD);
            self.shown = true;
            let _ = write!(std::io::stderr(), "\r{}: {:.0} %\x1b[K", self.what, share * 100.0);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
