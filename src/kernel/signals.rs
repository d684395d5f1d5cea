// SPDX-License-Identifier: MIT OR Apache-2.0

//! SIGINT, SIGTERM, SIGQUIT and SIGHUP end a run. Where there are files to be opened anew, SIGHUP does that instead;
//! where it was ignored at the start (nohup), it stays ignored. The others end the run in any case: shells have what
//! runs in a script's background ignore SIGINT and SIGQUIT, and `kill -INT` is how a script ends it.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use super::sys;

static STOP: AtomicBool = AtomicBool::new(false);
static REOPEN: AtomicBool = AtomicBool::new(false);
/// The writing end of what wakes the main loop.
static WAKER: OnceLock<OwnedFd> = OnceLock::new();

/// What the main loop waits on beside its events.
#[derive(Debug)]
pub(crate) struct Signals {
    woken: UnixStream,
    /// Whether SIGHUP was ignored at the start.
    pub(crate) hangup_was_ignored: bool,
}

impl Signals {
    /// Takes the signals over. Once in a process.
    pub(crate) fn take(reopen_on_hangup: bool) -> Result<Self> {
        let hangup_was_ignored = sys::hangup_is_ignored();
        // Until it is known what is to become of it, it waits: the handler that is set first ends the run.
        let mut hangup = SigSet::empty();
        hangup.add(Signal::SIGHUP);
        hangup.thread_block().context("cannot block SIGHUP")?;
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
        // SAFETY: the handlers store to an atomic and write one byte.
        unsafe {
            sys::on_signal(Signal::SIGQUIT, quit).context("cannot handle SIGQUIT")?;
            if reopen_on_hangup {
                sys::on_signal(Signal::SIGHUP, reopen).context("cannot handle SIGHUP")?;
            } else if hangup_was_ignored {
                sys::ignore_hangup().context("cannot ignore SIGHUP")?;
            }
        }
        hangup.thread_unblock().context("cannot unblock SIGHUP")?;
        Ok(Self { woken, hangup_was_ignored })
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

extern "C" fn quit(_signal: libc::c_int) {
    STOP.store(true, Ordering::SeqCst);
    wake();
}

extern "C" fn reopen(_signal: libc::c_int) {
    REOPEN.store(true, Ordering::SeqCst);
    wake();
}

/// Wakes the main loop, from a signal handler or another thread.
pub(crate) fn wake() {
    if let Some(waker) = WAKER.get() {
        // A full socket has woken the loop already. write(2) is safe in a signal handler.
        let _ = nix::unistd::write(waker, b"!");
    }
}
