// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ring buffer, as a queue of decoded records.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use libbpf_rs::{MapCore, RingBuffer, RingBufferBuilder};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use plain::Plain;

use super::{log, sys};

/// Records taken out at a time, so that a flood does not keep the loop from its other duties.
const BATCH: usize = 1024;
/// The same of a ring whose records come before another's: as many as it holds.
const AHEAD_BATCH: usize = 65_536;

#[derive(Debug)]
pub(crate) struct EventRing<'a, T> {
    ring: RingBuffer<'a>,
    queue: Queue<T>,
    ahead: Option<Ahead<'a, T>>,
    undecodable: Rc<Cell<u64>>,
}

type Queue<T> = Rc<RefCell<VecDeque<T>>>;

/// A ring whose records say what the other's mean.
#[derive(Debug)]
struct Ahead<'a, T> {
    ring: RingBuffer<'a>,
    queue: Queue<T>,
    /// Readable when one of both has something.
    both: Epoll,
}

/// What makes a record of bytes.
pub(crate) type Decode<'a, T> = Box<dyn Fn(&[u8]) -> Option<T> + 'a>;

impl<'a, T: 'a> EventRing<'a, T> {
    /// `decode` gives nothing for a record that is too short or of a kind it doesn't know: those are counted.
    /// The ring does not need the map to live.
    pub(crate) fn new(map: &dyn MapCore, decode: impl Fn(&[u8]) -> Option<T> + 'a) -> Result<Self> {
        Self::of_several(vec![(map, Box::new(decode))])
    }

    /// Several ring buffers as one.
    pub(crate) fn of_several(maps: Vec<(&dyn MapCore, Decode<'a, T>)>) -> Result<Self> {
        let queue = Rc::new(RefCell::new(VecDeque::new()));
        let undecodable = Rc::new(Cell::new(0));
        let mut builder = RingBufferBuilder::new();
        log::clear();
        for (map, decode) in maps {
            let (into, failed) = (Rc::clone(&queue), Rc::clone(&undecodable));
            builder
                .add(map, move |bytes| {
                    match decode(bytes) {
                        Some(event) => into.borrow_mut().push_back(event),
                        None => failed.set(failed.get() + 1),
                    }
                    0
                })
                .context("cannot use the ring buffer")?;
        }
        let ring = builder.build().map_err(|error| {
            anyhow::anyhow!("cannot map the ring buffer: {}", log::explain(error))
        })?;
        Ok(Self { ring, queue, ahead: None, undecodable })
    }

    /// With a second ring, whose records come before all of this one's that are taken in the same batch, and so before those that were
    /// reported after them.
    pub(crate) fn with_ahead(
        mut self,
        map: &dyn MapCore,
        decode: impl Fn(&[u8]) -> Option<T> + 'a,
    ) -> Result<Self> {
        let Self { ring, queue, .. } = Self::new(map, decode)?;
        let both = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot wait for events")?;
        for (data, one) in [&self.ring, &ring].into_iter().enumerate() {
            // SAFETY: the ring owns the descriptor and outlives the borrow.
            let fd = unsafe { sys::borrow(one.epoll_fd()) };
            both.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, data as u64))
                .context("cannot wait for events")?;
        }
        self.ahead = Some(Ahead { ring, queue, both });
        Ok(self)
    }

    /// Takes what has arrived, a batch at most. Returns whether there was anything.
    pub(crate) fn fill(&self) -> Result<bool> {
        let more = consume(&self.ring, BATCH)?;
        // Afterwards: what was reported before an event is known for it.
        let ahead =
            self.ahead.as_ref().map(|ahead| consume(&ahead.ring, AHEAD_BATCH)).transpose()?;
        Ok(more || ahead == Some(true))
    }

    pub(crate) fn next(&self) -> Option<T> {
        let ahead = self.ahead.as_ref().and_then(|ahead| ahead.queue.borrow_mut().pop_front());
        ahead.or_else(|| self.queue.borrow_mut().pop_front())
    }

    /// Records that were not understood: each is one row missing.
    pub(crate) fn undecodable(&self) -> u64 {
        self.undecodable.get()
    }

    /// Readable when there is something to take.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        if let Some(ahead) = &self.ahead {
            return ahead.both.0.as_fd();
        }
        // SAFETY: the ring owns the descriptor and outlives the borrow.
        unsafe { sys::borrow(self.ring.epoll_fd()) }
    }
}

/// Whether there was anything.
fn consume(ring: &RingBuffer<'_>, most: usize) -> Result<bool> {
    match ring.consume_raw_n(most) {
        n if n >= 0 => Ok(n > 0),
        // Negative is -errno; a signal is for the loop to see.
        n if -n == libc::EINTR => Ok(false),
        n => bail!("cannot read the ring buffer: {}", std::io::Error::from_raw_os_error(-n)),
    }
}

/// A copy of the `T` that a record begins with, whatever its alignment; nothing when it is too short.
pub(crate) fn copy_from<T: Plain + Default>(bytes: &[u8]) -> Option<T> {
    let mut value = T::default();
    plain::copy_from_bytes(&mut value, bytes).ok()?;
    Some(value)
}

/// The longest wait that poll(2) takes.
pub(crate) const FOREVER: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Default)]
    struct Two {
        a: u32,
        b: u32,
    }

    // SAFETY: two integers, no padding.
    unsafe impl Plain for Two {}

    #[test]
    fn a_short_record_is_nothing_and_alignment_does_not_matter() {
        let bytes = [9, 1, 0, 0, 0, 2, 0, 0, 0];
        let two: Two = copy_from(&bytes[1..]).unwrap();
        assert_eq!((two.a, two.b), (1, 2));
        assert!(copy_from::<Two>(&bytes[..7]).is_none());
    }
}
