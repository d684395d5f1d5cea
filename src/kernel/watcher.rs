// SPDX-License-Identifier: MIT OR Apache-2.0

//! Has the main loop look at interfaces, and at what is attached to them, when something happens there, and once a second:
//! not everything that is taken away is told of.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::netlink::Netlink;
use super::signals;

/// So often without being told of anything.
const LOOK_MS: u16 = 1000;
/// Somebody may change a thousand filters at once: one look is enough for these.
const GATHER: Duration = Duration::from_millis(20);

/// The thread that does so, in the network namespace in which this is made. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    _end: UnixStream,
}

impl Watcher {
    pub(crate) fn start() -> Result<Self> {
        let changes = Netlink::of_attachments().context("cannot hear of changes of interfaces")?;
        let (end, ended) = UnixStream::pair().context("cannot make a socket pair")?;
        thread::Builder::new()
            .name("interfaces".into())
            .spawn(move || watch(&changes, &ended))
            .context("cannot start a thread")?;
        Ok(Self { _end: end })
    }
}

fn watch(changes: &Netlink, ended: &UnixStream) {
    loop {
        let mut fds = [
            PollFd::new(ended.as_fd(), PollFlags::empty()),
            PollFd::new(changes.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::from(LOOK_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => thread::sleep(Duration::from_millis(LOOK_MS.into())),
        }
        let hung_up = fds[0].revents().is_some_and(|got| !got.is_empty());
        if hung_up {
            return;
        }
        // What can't be read of it is no matter: the look finds what there is.
        let _ = changes.changed();
        signals::wake();
        thread::sleep(GATHER);
    }
}
