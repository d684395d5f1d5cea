// SPDX-License-Identifier: MIT OR Apache-2.0

//! A tracer under measurement, whichever it is: all are started, watched and ended in the same way.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{CLOSED, COMM};

/// bpftrace under emulation, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
}

impl Tool {
    pub(crate) fn new(name: &str, command: &[&str]) -> Self {
        Self { name: name.into(), command: command.iter().map(ToString::to_string).collect() }
    }

    /// From exec until a connect that we make shows up in its output: a promise on standard error would not be the same
    /// thing for all. Its output is a terminal, since some hold back what they write to a pipe.
    pub(crate) fn start(&self) -> Result<Session> {
        let (ours, theirs) = terminal()?;
        let begin = Instant::now();
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::null())
            .stdout(theirs)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.command[0]))?;
        let rows = Arc::new(AtomicU64::new(0));
        let first = Arc::new(AtomicU64::new(0));
        let said = Arc::new(AtomicU64::new(0));
        let (count, at) = (rows.clone(), first.clone());
        thread::spawn(move || {
            // Reading from a terminal whose other side is closed is an error, and the end.
            for line in BufReader::new(File::from(ours)).split(b'\n') {
                let Ok(line) = line else { break };
                if contains(&line, COMM.as_bytes()) && count.fetch_add(1, Ordering::Relaxed) == 0 {
                    at.store(nanoseconds(begin), Ordering::Release);
                }
            }
        });
        let stderr = child.stderr.take().context("stderr is a pipe")?;
        let at = said.clone();
        let stderr = thread::spawn(move || {
            let mut all = String::new();
            let mut lines = BufReader::new(stderr);
            let mut line = Vec::new();
            while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
                if contains(&line, b"armed") {
                    at.store(nanoseconds(begin), Ordering::Release);
                }
                all.push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
            all
        });
        let mut session = Session {
            name: self.name.clone(),
            child,
            first_row: Duration::ZERO,
            said_armed: None,
            stderr: Some(stderr),
            rows,
        };
        while first.load(Ordering::Acquire) == 0 {
            if begin.elapsed() > PATIENCE || session.child.try_wait()?.is_some() {
                let output = session.stop()?;
                bail!("{}: no row: {}", self.name, output.trim());
            }
            let _ = TcpStream::connect(CLOSED);
            thread::sleep(Duration::from_millis(1));
        }
        session.first_row = Duration::from_nanos(first.load(Ordering::Acquire));
        let said = said.load(Ordering::Acquire);
        session.said_armed = (said != 0).then_some(Duration::from_nanos(said));
        Ok(session)
    }
}

/// A tracer that is armed.
pub(crate) struct Session {
    name: String,
    child: Child,
    pub(crate) first_row: Duration,
    /// When it said so itself, if it did.
    pub(crate) said_armed: Option<Duration>,
    stderr: Option<thread::JoinHandle<String>>,
    pub(crate) rows: Arc<AtomicU64>,
}

impl Session {
    /// Waits until it has printed so many rows, and no more for a moment. Not forever: it may have lost some.
    pub(crate) fn settle(&self, rows: u64) {
        let begin = Instant::now();
        let mut seen = u64::MAX;
        while begin.elapsed() < Duration::from_secs(3) {
            let now = self.rows.load(Ordering::Relaxed);
            if now >= rows && now == seen {
                break;
            }
            seen = now;
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Peak resident memory in KiB.
    pub(crate) fn peak_rss(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|value| value.split_whitespace().next()?.parse().ok())
            .context("no VmHWM in /proc/PID/status")
    }

    /// Nanoseconds that its programs have run while the kernel kept statistics.
    pub(crate) fn bpf_time(&self) -> Result<u64> {
        let mut programs: HashMap<u64, u64> = HashMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))? {
            // A file that is closed meanwhile isn't a program.
            let Ok(info) = fs::read_to_string(entry?.path()) else {
                continue;
            };
            let field = |name: &str| -> Option<u64> {
                let value = info.lines().find_map(|line| line.strip_prefix(name))?;
                value.trim().parse().ok()
            };
            if let (Some(id), Some(time)) = (field("prog_id:"), field("run_time_ns:")) {
                programs.insert(id, time);
            }
        }
        if programs.is_empty() {
            bail!("it holds no BPF program open");
        }
        Ok(programs.values().sum())
    }

    /// Ends it as Ctrl-C does. Returns what it said on standard error.
    pub(crate) fn stop(mut self) -> Result<String> {
        self.end()?;
        let reader = self.stderr.take().context("stopped once")?;
        Ok(reader.join().unwrap_or_default())
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > PATIENCE / 4 {
                eprintln!("note: {} did not end on SIGINT", self.name);
                self.child.kill()?;
                self.child.wait()?;
                return Ok(());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// All lines of a pipe, counted while they come, and the last one.
pub(crate) fn count_lines(pipe: impl Read) -> (u64, String) {
    let mut count = 0;
    let mut lines = BufReader::with_capacity(1 << 16, pipe);
    let (mut line, mut last) = (Vec::new(), Vec::new());
    while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
        count += 1;
        std::mem::swap(&mut line, &mut last);
        line.clear();
    }
    (count, String::from_utf8_lossy(&last).into_owned())
}

fn contains(line: &[u8], what: &[u8]) -> bool {
    line.windows(what.len()).any(|window| window == what)
}

fn nanoseconds(since: Instant) -> u64 {
    since.elapsed().as_nanos().try_into().unwrap_or(u64::MAX)
}

/// Both sides of a new terminal.
fn terminal() -> Result<(OwnedFd, OwnedFd)> {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the two numbers and the size live through the call; name and termios may be null.
    let status = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            (&raw const size).cast_mut(),
        )
    };
    if status != 0 {
        return Err(std::io::Error::last_os_error()).context("cannot open a terminal");
    }
    for fd in [ours, theirs] {
        // SAFETY: openpty just made it. No other tracer may inherit it, or its end would not be seen.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: openpty made both and nobody else has them.
    Ok(unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) })
}
