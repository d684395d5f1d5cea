// SPDX-License-Identifier: MIT OR Apache-2.0

//! Until when a program acts: bpf/lifetime.bpf.h asks for the time that is set here.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::time::{ClockId, clock_gettime};

use super::signals;

/// Longer than this after the end of the process, no program acts that outlived it.
const BEAT_LASTS: Duration = Duration::from_secs(4);
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// From when it is made on, the program acts; at the latest when it is dropped, not any more.
#[derive(Debug)]
pub(crate) struct Lifetime {
    map: MapHandle,
    times: Arc<Mutex<Times>>,
    /// Wakes and ends the thread by being dropped.
    heart: Option<(Sender<()>, JoinHandle<()>)>,
}

/// For how long a heartbeat had lapsed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lapsed {
    pub(crate) all: Duration,
    /// As much of it as is over.
    pub(crate) over: Duration,
}

/// In nanoseconds of CLOCK_MONOTONIC, which stands still while the machine is suspended.
#[derive(Debug)]
struct Times {
    until: u64,
    deadline: u64,
    /// For how long the program did not act though it should have.
    lapsed: u64,
    /// As much of it as is over, since it beats again.
    over: u64,
}

impl Times {
    /// Counts what has lapsed by now.
    fn look(&mut self, now: u64) {
        let now = now.min(self.deadline);
        if now > self.until {
            self.lapsed += now - self.until;
            self.until = now;
        }
    }

    /// Looks, and lets the program act on. Whether something had lapsed.
    fn beat(&mut self, now: u64) -> bool {
        self.look(now);
        self.until = after(now, BEAT_LASTS).min(self.deadline);
        let had_lapsed = self.lapsed > self.over;
        self.over = self.lapsed;
        had_lapsed
    }
}

impl Lifetime {
    /// `heartbeat` for what isn't gone with the process by itself.
    pub(crate) fn begin(
        map: MapHandle,
        duration: Option<Duration>,
        heartbeat: bool,
    ) -> Result<Self> {
        let begin = now();
        let deadline = duration.map_or(u64::MAX, |duration| after(begin, duration));
        let until = if heartbeat { after(begin, BEAT_LASTS).min(deadline) } else { deadline };
        set(&map, until, deadline).context("cannot set the time until when to drop")?;
        let times = Arc::new(Mutex::new(Times { until, deadline, lapsed: 0, over: 0 }));
        let heart = heartbeat
            .then(|| -> Result<_> {
                let own = MapHandle::try_from(&map).context("cannot open a map")?;
                let times = Arc::clone(&times);
                let (sender, receiver) = mpsc::channel::<()>();
                let thread = thread::Builder::new()
                    .name("heartbeat".into())
                    .spawn(move || {
                        while receiver.recv_timeout(BEAT_EVERY) == Err(RecvTimeoutError::Timeout) {
                            let mut times = lock(&times);
                            let had_lapsed = times.beat(now());
                            // It can't fail: the map has that one entry. If it did, the program would stop to act.
                            let _ = set(&own, times.until, times.deadline);
                            if had_lapsed {
                                signals::wake();
                            }
                        }
                    })
                    .context("cannot start a thread")?;
                Ok((sender, thread))
            })
            .transpose()?;
        Ok(Self { map, times, heart })
    }

    /// For how long the heartbeat had lapsed so far, all in all.
    pub(crate) fn lapsed(&self) -> Lapsed {
        let mut times = lock(&self.times);
        if self.heart.is_some() {
            times.look(now());
        }
        let (all, over) = (times.lapsed, times.over);
        Lapsed { all: Duration::from_nanos(all), over: Duration::from_nanos(over) }
    }
}

impl Drop for Lifetime {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.heart.take() {
            drop(sender);
            let _ = thread.join();
        }
        let _ = set(&self.map, 0, 0);
    }
}

fn lock(times: &Mutex<Times>) -> MutexGuard<'_, Times> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

/// bpf/lifetime.bpf.h: both in one section.
fn set(map: &MapHandle, until: u64, deadline: u64) -> libbpf_rs::Result<()> {
    let words = [until.to_ne_bytes(), deadline.to_ne_bytes()].concat();
    map.update(&0_u32.to_ne_bytes(), &words, MapFlags::ANY)
}

/// bpf_ktime_get_ns
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn after(now: u64, time: Duration) -> u64 {
    now.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lapses_is_counted_once_and_not_beyond_the_deadline() {
        let second = 1_000_000_000;
        let mut times = Times { until: 4 * second, deadline: 20 * second, lapsed: 0, over: 0 };
        assert!(!times.beat(second));
        assert_eq!((times.until, times.lapsed), (5 * second, 0));
        // Stopped for a while; looked at before it beats again, and after.
        times.look(7 * second);
        times.look(8 * second);
        assert_eq!(times.lapsed, 3 * second);
        assert_eq!(times.over, 0);
        assert!(times.beat(9 * second));
        assert_eq!(times.over, 4 * second);
        assert_eq!((times.until, times.lapsed), (13 * second, 4 * second));
        assert!(!times.beat(12 * second));
        // From the deadline on it isn't to act.
        times.look(60 * second);
        assert_eq!(times.lapsed, 8 * second);
        assert!(times.beat(61 * second));
        assert_eq!((times.until, times.lapsed), (20 * second, 8 * second));
    }
}
