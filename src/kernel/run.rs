// SPDX-License-Identifier: MIT OR Apache-2.0

//! The main loop of every command that follows events: until a signal, a deadline, or nobody reads us any more.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ring::{EventRing, FOREVER};
use super::signals::Signals;

/// Programs in the kernel, armed.
pub(crate) trait Tracing {
    type Event;

    fn events(&self) -> Result<EventRing<'_, Self::Event>>;

    /// What has been reported can still be read.
    fn detach(&mut self) -> Result<()>;
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timing {
    pub(crate) duration: Option<Duration>,
    /// Every how long `Turn::Tick` comes.
    pub(crate) interval: Option<Duration>,
    /// Whether `Turn::Look` comes, once a second.
    pub(crate) look: bool,
    /// Whether rows go to standard output, whose reader may leave.
    pub(crate) to_stdout: bool,
    /// Whether events that come in quick succession may wait for each other for some milliseconds. The kernel wakes us only
    /// when it has told of all before, so that who causes an event then need not stop to wake us.
    pub(crate) gather: bool,
}

/// Every how long `Turn::Look` comes.
const LOOK: Duration = Duration::from_secs(1);

/// For how long events gather.
const GATHER: Duration = Duration::from_millis(5);

/// What is quick succession.
const SUCCESSION: Duration = Duration::from_millis(10);

/// With so many at a time there is nothing to be won, and the ring buffer may fill up.
const FLOOD: usize = 256;

/// What the loop hands to its command.
#[derive(Debug)]
pub(crate) enum Turn<T> {
    Event(T),
    /// All that had arrived was handed over.
    Rest,
    Tick,
    /// Something woke the loop that is no event, a signal or another thread; or, if asked for, a second is over: time to
    /// look at what is followed, or waited for.
    Look,
    /// SIGHUP: the output file is to be opened anew.
    Reopen,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Continue,
    Stop,
}

/// Where events come from.
pub(crate) trait Source {
    type Event;

    /// Takes what has arrived, a batch at most. Returns whether there may be more.
    fn fill(&self) -> Result<bool>;

    fn next(&self) -> Option<Self::Event>;

    /// Readable when there is something to take.
    fn fd(&self) -> BorrowedFd<'_>;
}

impl<'a, T: 'a> Source for EventRing<'a, T> {
    type Event = T;

    fn fill(&self) -> Result<bool> {
        Self::fill(self)
    }

    fn next(&self) -> Option<T> {
        Self::next(self)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        Self::fd(self)
    }
}

/// Runs until it is time to end. Events that are still in the source stay there.
pub(crate) fn follow<S: Source>(
    source: &S,
    signals: &mut Signals,
    timing: Timing,
    mut turn: impl FnMut(Turn<S::Event>) -> Result<Flow>,
) -> Result<()> {
    let begin = Instant::now();
    let deadline = timing.duration.map(|duration| begin + duration);
    let mut tick = timing.interval.map(|interval| begin + interval);
    let mut look = timing.look.then(|| begin + LOOK);
    let stdout = std::io::stdout();
    let mut handed = 0;
    let mut last_rest: Option<Instant> = None;
    loop {
        if signals.stopped() {
            return Ok(());
        }
        if signals.reopen() && turn(Turn::Reopen)? == Flow::Stop {
            return Ok(());
        }
        let now = Instant::now();
        if deadline.is_some_and(|deadline| now >= deadline) {
            return Ok(());
        }
        if let (Some(due), Some(interval)) = (tick, timing.interval)
            && now >= due
        {
            if turn(Turn::Tick)? == Flow::Stop {
                return Ok(());
            }
            // After a stall, not one tick for each that was missed.
            tick = Some(if now >= due + interval { now + interval } else { due + interval });
        }
        if look.is_some_and(|due| now >= due) {
            if turn(Turn::Look)? == Flow::Stop {
                return Ok(());
            }
            look = Some(now + LOOK);
        }

        let more = source.fill()?;
        while let Some(event) = source.next() {
            handed += 1;
            if turn(Turn::Event(event))? == Flow::Stop {
                return Ok(());
            }
        }
        if more {
            continue;
        }
        let mut gathering = false;
        if handed > 0 {
            if turn(Turn::Rest)? == Flow::Stop {
                return Ok(());
            }
            gathering = timing.gather
                && handed < FLOOD
                && last_rest.replace(now).is_some_and(|last| now - last < SUCCESSION);
            handed = 0;
        }

        let wait = [deadline, tick, look]
            .into_iter()
            .flatten()
            .map(|due| due.saturating_duration_since(now))
            .chain(gathering.then_some(GATHER))
            .min()
            .unwrap_or(FOREVER);
        // Rounded up: a wait that ends too early would spin.
        let wait = wait.min(FOREVER).as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(wait as u64).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(signals.fd(), PollFlags::POLLIN)];
        if timing.to_stdout {
            // Errors and hang-ups are always told.
            fds.push(PollFd::new(stdout.as_fd(), PollFlags::empty()));
        }
        if !gathering {
            fds.push(PollFd::new(source.fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for events"),
        }
        let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
        let left = |fd: &PollFd<'_>| fd.revents().is_some_and(|got| got.intersects(gone));
        if timing.to_stdout && left(&fds[1]) {
            return Ok(());
        }
        let signalled = fds[0].revents().is_some_and(|got| !got.is_empty());
        drop(fds);
        if signalled {
            signals.drain();
            if turn(Turn::Look)? == Flow::Stop {
                return Ok(());
            }
        }
    }
}

/// Waits for what is not told as it happens: `tick` comes every `interval`, until the deadline, a signal, or until nobody
/// reads us any more.
pub(crate) fn wait(
    signals: &mut Signals,
    timing: Timing,
    mut turn: impl FnMut(Turn<Infallible>) -> Result<Flow>,
) -> Result<()> {
    follow(&Nothing::new()?, signals, timing, &mut turn)
}

/// A source that never has an event.
#[derive(Debug)]
struct Nothing {
    quiet: UnixStream,
    /// Open, so that `quiet` does not hang up.
    _other: UnixStream,
}

impl Nothing {
    fn new() -> Result<Self> {
        let (quiet, other) = UnixStream::pair().context("cannot make a socket pair")?;
        Ok(Self { quiet, _other: other })
    }
}

impl Source for Nothing {
    type Event = Infallible;

    fn fill(&self) -> Result<bool> {
        Ok(false)
    }

    fn next(&self) -> Option<Infallible> {
        None
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.quiet.as_fd()
    }
}
