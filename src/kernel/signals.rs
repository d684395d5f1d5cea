// SPDX-License-Identifier: MIT OR Apache-2.0

//! SIGINT, SIGTERM and SIGHUP end a run; with `--output`, SIGHUP reopens the file instead.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use super::sys;

static STOP: AtomicBool = AtomicBool::new(false);
static REOPEN: AtomicBool = AtomicBool::new(false);
/// The writing end of what wakes the main loop.
static WAKER: OnceLock<OwnedFd> = OnceLock::new();

/// What the main loop waits on beside its events.
#[derive(Debug)]
pub(crate) struct Signals {
    woken: UnixStream,
}

impl Signals {
    /// Takes the signals over. Once in a process.
    pub(crate) fn take(reopen_on_hangup: bool) -> Result<Self> {
        let (woken, waker) = UnixStream::pair().context("cannot make a socket pair")?;
        woken.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        waker.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        let _ = WAKER.set(waker.into());
        ctrlc::set_handler(|| {
            STOP.store(true, Ordering::SeqCst);
            wake();
        })
        .map_err(|error| match error {
            // It does not say which.
            ctrlc::Error::System(error) => anyhow::Error::from(error),
            other => other.into(),
        })
        .context("cannot handle signals, which takes a thread")?;
        if reopen_on_hangup {
            // SAFETY: the handler stores to an atomic and writes one byte.
            unsafe { sys::on_hangup(hangup) }.context("cannot handle SIGHUP")?;
        }
        Ok(Self { woken })
    }

    pub(crate) fn stopped(&self) -> bool {
        stop_requested()
    }

    /// Whether SIGHUP came since the last call.
    pub(crate) fn reopen(&self) -> bool {
        REOPEN.swap(false, Ordering::SeqCst)
    }

    /// Readable when a signal came.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    /// Makes `fd` unreadable until the next signal.
    pub(crate) fn drain(&mut self) {
        let mut bytes = [0; 64];
        while matches!(self.woken.read(&mut bytes), Ok(n) if n > 0) {}
    }
}

/// For what takes long between two looks of the main loop.
pub(crate) fn stop_requested() -> bool {
    STOP.load(Ordering::SeqCst)
}

extern "C" fn hangup(_signal: libc::c_int) {
    REOPEN.store(true, Ordering::SeqCst);
    wake();
}

fn wake() {
    if let Some(waker) = WAKER.get() {
        // A full socket has woken the loop already. write(2) is safe in a signal handler.
        let _ = nix::unistd::write(waker, b"!");
    }
}
