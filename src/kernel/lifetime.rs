// SPDX-License-Identifier: MIT OR Apache-2.0

//! Until when a program acts: bpf/lifetime.bpf.h asks for the time that is set here.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::time::{ClockId, clock_gettime};

/// Longer than this after the end of the process, no program acts that outlived it.
const BEAT_LASTS: Duration = Duration::from_secs(4);
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// From when it is made on, the program acts; at the latest when it is dropped, not any more.
#[derive(Debug)]
pub(crate) struct Lifetime {
    map: MapHandle,
    /// Wakes and ends the thread by being dropped.
    heart: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Lifetime {
    /// `heartbeat` for what isn't gone with the process by itself.
    pub(crate) fn begin(
        map: MapHandle,
        duration: Option<Duration>,
        heartbeat: bool,
    ) -> Result<Self> {
        let deadline = duration.map_or(u64::MAX, |duration| after(now(), duration));
        let until =
            |now: u64| if heartbeat { after(now, BEAT_LASTS).min(deadline) } else { deadline };
        set(&map, until(now())).context("cannot set the time until when to drop")?;
        let heart = heartbeat
            .then(|| -> Result<_> {
                let own = MapHandle::try_from(&map).context("cannot open a map")?;
                let (sender, receiver) = mpsc::channel::<()>();
                let thread = thread::Builder::new()
                    .name("heartbeat".into())
                    .spawn(move || {
                        while receiver.recv_timeout(BEAT_EVERY) == Err(RecvTimeoutError::Timeout) {
                            // It can't fail: the map has that one entry. If it did, the program would stop to act.
                            let _ = set(&own, after(now(), BEAT_LASTS).min(deadline));
                        }
                    })
                    .context("cannot start a thread")?;
                Ok((sender, thread))
            })
            .transpose()?;
        Ok(Self { map, heart })
    }
}

impl Drop for Lifetime {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.heart.take() {
            drop(sender);
            let _ = thread.join();
        }
        let _ = set(&self.map, 0);
    }
}

fn set(map: &MapHandle, until: u64) -> libbpf_rs::Result<()> {
    map.update(&0_u32.to_ne_bytes(), &until.to_ne_bytes(), MapFlags::ANY)
}

/// bpf_ktime_get_ns
fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn after(now: u64, time: Duration) -> u64 {
    now.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
