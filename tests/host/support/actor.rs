// SPDX-License-Identifier: MIT OR Apache-2.0

//! A process that does what a test tells it to, and nothing else: no threads or children but those asked for.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The test's end.
#[derive(Debug)]
pub(crate) struct Actor {
    pid: libc::pid_t,
    go: File,
    results: File,
    reaped: bool,
}

/// The actor's end.
#[derive(Debug)]
pub(crate) struct Stage {
    go: File,
    results: File,
}

fn pipe() -> (File, File) {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }, 0, "a pipe");
    // SAFETY: the kernel just made them.
    fds.map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) })).into()
}

impl Actor {
    /// Forks. `work` begins at the first `go`.
    pub(crate) fn new(work: impl FnOnce(&mut Stage)) -> Self {
        let (wait, go) = pipe();
        let (results, put) = pipe();
        // SAFETY: the child runs `work`, which keeps to system calls and to what the C library lets a child of a
        // process with threads do, and ends without returning.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "a fork");
        if pid == 0 {
            let keep = [wait.as_raw_fd(), put.as_raw_fd()];
            for fd in (3..1024).filter(|fd| !keep.contains(fd)) {
                // SAFETY: nothing of this copy of the test process uses them any more.
                unsafe { libc::close(fd) };
            }
            // SAFETY: a test that is killed takes its actor along.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let mut stage = Stage { go: wait, results: put };
            let done = catch_unwind(AssertUnwindSafe(|| {
                stage.pause();
                work(&mut stage);
            }));
            if let Err(panic) = &done {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
                // What the harness captures of this process is lost.
                let _ = writeln!(std::io::stderr(), "an actor panicked: {text}");
            }
            // SAFETY: ends this process, without the test harness's clean-up.
            unsafe { libc::_exit(if done.is_ok() { 0 } else { 101 }) };
        }
        Self { pid, go, results, reaped: false }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid as u32
    }

    /// Lets it go on until its next pause.
    pub(crate) fn go(&mut self) {
        self.go.write_all(b"!").expect("the actor lives");
    }

    /// The next number that it puts out.
    pub(crate) fn get(&mut self) -> i64 {
        let mut bytes = [0; 8];
        self.results.read_exact(&mut bytes).expect("the actor puts out a number");
        i64::from_ne_bytes(bytes)
    }

    /// Waits for its end, which must be a good one, and returns the numbers that nobody has taken.
    pub(crate) fn finish(mut self) -> Vec<i64> {
        let mut bytes = Vec::new();
        self.results.read_to_end(&mut bytes).expect("a pipe");
        assert_eq!(self.reap(), 0, "the actor's exit status");
        bytes.chunks_exact(8).map(|number| i64::from_ne_bytes(number.try_into().unwrap())).collect()
    }

    fn reap(&mut self) -> i32 {
        let mut status = 0;
        // SAFETY: our child, not waited for yet.
        let pid = unsafe { libc::waitpid(self.pid, &mut status, 0) };
        self.reaped = true;
        if pid == self.pid && libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: our child, not waited for yet, so the id is still its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            self.reap();
        }
    }
}

impl Stage {
    pub(crate) fn pause(&mut self) {
        let mut byte = [0];
        self.go.read_exact(&mut byte).expect("the test lives");
    }

    pub(crate) fn put(&mut self, number: i64) {
        self.results.write_all(&number.to_ne_bytes()).expect("the test lives");
    }
}
