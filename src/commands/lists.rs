// SPDX-License-Identifier: MIT OR Apache-2.0

//! Lists of addresses that are read again while packets are looked at, without the main loop waiting for it: a list may
//! be a million lines long, or a pipe that never answers.

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use anyhow::{Result, anyhow};

use crate::kernel::signals;

/// What reads, and hands over what it read.
#[derive(Debug)]
pub(crate) struct Rereading<T> {
    under_way: Option<Receiver<Result<T>>>,
}

impl<T> Default for Rereading<T> {
    fn default() -> Self {
        Self { under_way: None }
    }
}

/// Wakes the main loop when it is dropped.
struct Waker;

impl Drop for Waker {
    fn drop(&mut self) {
        signals::wake();
    }
}

impl<T: Send + 'static> Rereading<T> {
    /// Begins to read; the main loop is woken when that is done. One that is still at it is not waited for: it may never
    /// end, and what is asked for is what the files have now.
    pub(crate) fn begin(&mut self, read: impl FnOnce() -> Result<T> + Send + 'static) {
        let (done, under_way) = channel();
        let failed = done.clone();
        // A thread that reads a pipe which never answers ends with the process.
        let spawned = thread::Builder::new().name("lists".into()).spawn(move || {
            // Dropped last: also after a panic, and then `done` is gone.
            let _waker = Waker;
            let done = done;
            let _ = done.send(read());
        });
        if let Err(error) = spawned {
            let _ = failed.send(Err(anyhow!("cannot make a thread that reads: {error}")));
            signals::wake();
        }
        self.under_way = Some(under_way);
    }

    /// What was read since the last call, or why that failed.
    pub(crate) fn take(&mut self) -> Option<Result<T>> {
        let outcome = match self.under_way.as_ref()?.try_recv() {
            Ok(outcome) => outcome,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(anyhow!("the thread that read them is gone")),
        };
        self.under_way = None;
        Some(outcome)
    }
}
