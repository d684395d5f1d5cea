// SPDX-License-Identifier: MIT OR Apache-2.0

//! A bpftk in the background.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use serde_json::Value;

/// Under software emulation everything takes long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A bpftk that follows something, armed.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    /// Nobody reads its output meanwhile.
    pausing: Arc<AtomicBool>,
    lines: Receiver<String>,
    told: Receiver<String>,
    /// What it said on standard error, as far as anybody waited for it.
    heard: RefCell<String>,
    stderr: Option<JoinHandle<String>>,
}

/// What a run printed.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Running {
    /// Starts bpftk with `-v` and waits until it says that it is armed.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::spawn(super::bpftk(args).arg("-v"))
    }

    /// The same with `--format json`.
    pub(crate) fn json(args: &[&str]) -> Self {
        Self::spawn(super::bpftk(args).args(["-v", "--format", "json"]))
    }

    pub(crate) fn spawn(command: &mut std::process::Command) -> Self {
        // The tests themselves may run under nohup.
        let default_hangup = || {
            // SAFETY: no handler is set.
            unsafe { signal(Signal::SIGHUP, SigHandler::SigDfl) }?;
            Ok(())
        };
        // SAFETY: it makes one system call.
        unsafe { command.pre_exec(default_hangup) };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bpftk starts");
        let out = BufReader::new(child.stdout.take().unwrap());
        let err = BufReader::new(child.stderr.take().unwrap());
        let (line_sender, lines) = mpsc::channel();
        let pausing = Arc::new(AtomicBool::new(false));
        let pause = Arc::clone(&pausing);
        let stdout = thread::spawn(move || {
            let mut all = String::new();
            for line in out.lines() {
                while pause.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(5));
                }
                let Ok(line) = line else { break };
                all.push_str(&line);
                all.push('\n');
                let _ = line_sender.send(line);
            }
            all
        });
        let (told_sender, told) = mpsc::channel();
        let stderr = thread::spawn(move || {
            let mut all = String::new();
            for line in err.lines() {
                let Ok(line) = line else { break };
                all.push_str(&line);
                all.push('\n');
                let _ = told_sender.send(line);
            }
            all
        });
        let (stdout, stderr) = (Some(stdout), Some(stderr));
        let running =
            Self { child, stdout, pausing, lines, told, heard: RefCell::default(), stderr };
        if !running.tells("armed") {
            let run = running.kill();
            panic!("bpftk did not arm: {} {}", run.status, run.stderr);
        }
        running
    }

    /// Whether these words are in a line on standard error. Waits for it.
    fn tells(&self, words: &str) -> bool {
        let mut heard = self.heard.borrow_mut();
        while !heard.contains(words) {
            let Ok(line) = self.told.recv_timeout(PATIENCE) else { return false };
            *heard += &line;
            heard.push('\n');
        }
        true
    }

    /// Waits for these words on standard error, unless they were there before.
    pub(crate) fn until_told(&self, words: &str) {
        assert!(self.tells(words), "no `{words}` in {}", self.heard.borrow());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("bpftk is our child");
    }

    /// The next line that it prints.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("bpftk prints another line")
    }

    /// Stops reading its output, so that it stops at the next row that the pipe has no room for; but what it does beside its output,
    /// it goes on to do. Or reads again.
    pub(crate) fn pause_reading(&self, pause: bool) {
        self.pausing.store(pause, Ordering::Relaxed);
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn stop(self) -> Run {
        self.signal(Signal::SIGINT);
        self.wait()
    }

    /// Waits for its own end.
    pub(crate) fn wait(mut self) -> Run {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("bpftk is our child") {
                break status;
            }
            if begin.elapsed() > PATIENCE {
                let run = self.kill();
                panic!("bpftk did not end: {}", run.stderr);
            }
            thread::sleep(Duration::from_millis(5));
        };
        self.collect(status)
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) -> Run {
        let _ = self.child.kill();
        let status = self.child.wait().expect("bpftk is our child");
        self.collect(status)
    }

    fn collect(&mut self, status: ExitStatus) -> Run {
        let stdout = self.stdout.take().unwrap().join().unwrap();
        let stderr = self.stderr.take().unwrap().join().unwrap();
        Run { status, stdout, stderr }
    }
}

/// A test that fails must not leave a tracer behind.
impl Drop for Running {
    fn drop(&mut self) {
        if self.stdout.is_some() {
            self.pause_reading(false);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Run {
    /// Every JSON line.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// The events of `pid`.
    pub(crate) fn events_of(&self, pid: u32) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["pid"] == pid).collect()
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.json().into_iter().filter(|line| line["type"] == "event").collect()
    }

    /// The last line, which is the summary.
    pub(crate) fn summary(&self) -> Value {
        let last = self.json().pop().unwrap_or_else(|| panic!("no output; {}", self.stderr));
        assert_eq!(last["type"], "summary", "{}", self.stdout);
        last
    }
}
