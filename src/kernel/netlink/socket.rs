// SPDX-License-Identifier: MIT OR Apache-2.0

//! Questions to rtnetlink, and answers. What passes by itself (a signal, memory that is short for a moment) is tried again
//! for a while: who takes something away can't leave it for that.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket,
};
use nix::sys::time::TimeVal;

use super::number;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// What was dumped changed meanwhile, and may be incomplete.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;

/// A socket in the network namespace of the thread that opens it.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    /// Of the last request: what answers another one came too late.
    sequence: Cell<u32>,
}

/// Something to be changed.
#[derive(Debug)]
pub(super) struct Request {
    kind: u16,
    flags: u16,
    payload: Vec<u8>,
}

impl Request {
    pub(super) fn new(kind: u16, flags: u16, payload: Vec<u8>) -> Self {
        Self { kind, flags, payload }
    }
}

/// Tries again what fails for a reason that passes, for half a second.
fn patiently<T>(mut what: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    const TRIES: u32 = 10;
    let mut tries = 0;
    loop {
        match what() {
            Err(error) if passes(error) && tries < TRIES => {
                // None after the first: most often it was a signal.
                thread::sleep(Duration::from_millis((1 << tries) / 2));
                tries += 1;
            }
            outcome => return Ok(outcome?),
        }
    }
}

fn passes(error: Errno) -> bool {
    matches!(error, Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE)
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        /// Seconds: the kernel answers at once, unless the answer got lost.
        const PATIENCE: i64 = 5;
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        Ok(Self { socket, sequence: Cell::new(0) })
    }

    /// A socket that is told of what happens.
    pub(super) fn of_groups(groups: u32) -> io::Result<Self> {
        let netlink = Self::open()?;
        bind(netlink.socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(netlink)
    }

    /// Readable when there is something to be told.
    pub(in crate::kernel) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether anything was told since the last time, more than fits included.
    pub(in crate::kernel) fn changed(&self) -> io::Result<bool> {
        let mut changed = false;
        let mut buffer = [0; 8192];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::ENOBUFS) => changed = true,
                Err(Errno::EAGAIN) => return Ok(changed),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Has several things changed at once, each whatever becomes of the one before, and tells what became of each.
    pub(super) fn change(&self, requests: &[Request]) -> Vec<io::Result<()>> {
        let mut tries = 0;
        loop {
            let answers = match self.change_once(requests) {
                Ok(answers) => answers,
                Err(error) => {
                    let kind = error.raw_os_error().unwrap_or(libc::EIO);
                    return requests
                        .iter()
                        .map(|_| Err(io::Error::from_raw_os_error(kind)))
                        .collect();
                }
            };
            // The kernel says that nothing was done.
            let again = answers.iter().all(|answer| {
                answer.as_ref().is_err_and(|error| {
                    error.raw_os_error().is_some_and(|errno| passes(Errno::from_raw(errno)))
                })
            });
            if !again || tries == 5 {
                return answers;
            }
            tries += 1;
            thread::sleep(Duration::from_millis(1 << tries));
        }
    }

    fn change_once(&self, requests: &[Request]) -> io::Result<Vec<io::Result<()>>> {
        let first = self.sequence.get().wrapping_add(1);
        let mut message = Vec::new();
        for request in requests {
            self.append(&mut message, request.kind, request.flags | NLM_F_ACK, &request.payload);
        }
        self.send(&message)?;
        let mut answers: Vec<Option<io::Result<()>>> = requests.iter().map(|_| None).collect();
        while answers.iter().any(Option::is_none) {
            self.receive(|message| {
                let at = message.sequence.wrapping_sub(first) as usize;
                if let (NLMSG_ERROR, Some(slot)) = (message.kind, answers.get_mut(at)) {
                    *slot = Some(message.error());
                }
                Ok(())
            })?;
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// What the kernel has of a kind; as it was while nothing of it changed, if there was such a moment.
    pub(super) fn dump(&self, kind: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut tries = 0;
        loop {
            let outcome = self.dump_once(kind, payload);
            tries += 1;
            match outcome {
                Ok((_, true)) if tries < 5 => {}
                Err(error)
                    if tries < 5
                        && error
                            .raw_os_error()
                            .is_some_and(|errno| passes(Errno::from_raw(errno))) => {}
                outcome => return Ok(outcome?.0),
            }
        }
    }

    fn dump_once(&self, kind: u16, payload: &[u8]) -> io::Result<(Vec<Vec<u8>>, bool)> {
        let mut message = Vec::new();
        self.append(&mut message, kind, NLM_F_DUMP, payload);
        self.send(&message)?;
        let sequence = self.sequence.get();
        let (mut messages, mut interrupted, mut done) = (Vec::new(), false, false);
        while !done {
            self.receive(|message| {
                if message.sequence != sequence {
                    return Ok(());
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    // The end tells of an error, too.
                    NLMSG_DONE | NLMSG_ERROR => {
                        done = true;
                        message.error()?;
                    }
                    _ => messages.push(message.payload.to_vec()),
                }
                Ok(())
            })?;
        }
        Ok((messages, interrupted))
    }

    fn append(&self, to: &mut Vec<u8>, kind: u16, flags: u16, payload: &[u8]) {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        to.extend_from_slice(&((HEADER + payload.len()) as u32).to_ne_bytes());
        to.extend_from_slice(&kind.to_ne_bytes());
        to.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        to.extend_from_slice(&sequence.to_ne_bytes());
        to.extend_from_slice(&[0; 4]);
        to.extend_from_slice(payload);
        to.resize(to.len().next_multiple_of(4), 0);
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        patiently(|| send(self.socket.as_raw_fd(), message, MsgFlags::empty())).map(drop)
    }

    /// Hands over what comes next: one or more messages.
    fn receive(&self, mut each: impl FnMut(&Message<'_>) -> io::Result<()>) -> io::Result<()> {
        // The kernel's own limit of a piece of a dump is 32 KiB; one interface with many functions may be more.
        let mut buffer = vec![0; 1 << 18];
        let length = patiently(|| recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()))?;
        let mut rest = &buffer[..length];
        while let Some(size) = rest.get(..4).and_then(number) {
            let message = rest.get(..size as usize).and_then(Message::new);
            each(&message.ok_or(io::ErrorKind::InvalidData)?)?;
            rest = rest.get((size as usize).next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(())
    }
}

/// struct nlmsghdr, and what is behind it.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        Some(Self {
            kind: half(4)?,
            flags: half(6)?,
            sequence: number(bytes.get(8..12)?)?,
            payload: bytes.get(HEADER..)?,
        })
    }

    /// What an acknowledgement says, or the end of a dump.
    fn error(&self) -> io::Result<()> {
        match self.payload.get(..4).and_then(number).unwrap_or(0) as i32 {
            errno if errno < 0 => Err(io::Error::from_raw_os_error(-errno)),
            _ => Ok(()),
        }
    }
}
