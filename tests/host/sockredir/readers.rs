// SPDX-License-Identifier: MIT OR Apache-2.0

//! Readers as programs have them: by whatever they learn that there is something to read, and however they read it. Each takes a
//! stream whose every byte is known, and fails at the first that is wrong, and where the kernel owes it a wake-up.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::work::{PATIENCE, readable, recv};

/// How long a reader sleeps before it looks whether it was forgotten.
const SLEEP: Duration = Duration::from_millis(500);

/// The byte at this place of a stream. No two streams, and no two places nearby, are alike.
pub(super) fn byte(stream: u64, at: u64) -> u8 {
    let mut x = (stream << 40 | at >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    (x >> (8 * (at & 7))) as u8
}

pub(super) fn bytes(stream: u64, from: u64, many: usize) -> Vec<u8> {
    (from..from + many as u64).map(|at| byte(stream, at)).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// read(2) that waits.
    Blocking,
    /// recv(2) with MSG_PEEK first, then without.
    Peek,
    /// readv(2) into three pieces.
    Vectored,
    Poll,
    Level,
    /// EPOLLET, by epoll(7): a read that gives less than was asked for has taken all that there was.
    Edge,
    /// EPOLLONESHOT, armed again after each event.
    OneShot,
    /// io_uring's multishot receive (Linux 6.0).
    Uring,
}

impl Reader {
    pub(super) const ALL: [Self; 8] = [
        Self::Blocking,
        Self::Peek,
        Self::Vectored,
        Self::Poll,
        Self::Level,
        Self::Edge,
        Self::OneShot,
        Self::Uring,
    ];

    /// What this kernel has.
    pub(super) fn here() -> Vec<Self> {
        let uring = IoUring::new(4).is_ok_and(|ring| {
            let mut probe = io_uring::Probe::new();
            // SendZc came with multishot receive, which has no number of its own.
            ring.submitter().register_probe(&mut probe).is_ok()
                && probe.is_supported(opcode::SendZc::CODE)
        });
        Self::ALL.into_iter().filter(|reader| uring || *reader != Self::Uring).collect()
    }

    /// Reads the whole stream from `socket`, at most `size` bytes at a time.
    pub(super) fn read(self, socket: &TcpStream, size: usize, expected: &mut Expected) {
        match self {
            Self::Uring => by_uring(socket, size, expected),
            Self::Blocking | Self::Peek | Self::Vectored => self.waiting(socket, size, expected),
            Self::Poll | Self::Level | Self::Edge | Self::OneShot => {
                socket.set_nonblocking(true).unwrap();
                self.by_events(socket, size, expected);
                socket.set_nonblocking(false).unwrap();
            }
        }
    }

    fn waiting(self, socket: &TcpStream, size: usize, expected: &mut Expected) {
        socket.set_read_timeout(Some(SLEEP)).unwrap();
        let mut buffer = vec![0; size];
        while !expected.is_complete() {
            let outcome = match self {
                Self::Peek => recv(socket, &mut buffer, libc::MSG_PEEK).and_then(|peeked| {
                    expected.look_at(&buffer[..peeked]);
                    recv(socket, &mut buffer, 0)
                }),
                Self::Vectored => {
                    let (first, rest) = buffer.split_at_mut(size / 3);
                    let (second, third) = rest.split_at_mut(rest.len() / 2);
                    let mut pieces = [first, second, third].map(io::IoSliceMut::new);
                    io::Read::read_vectored(&mut &*socket, &mut pieces)
                }
                _ => recv(socket, &mut buffer, 0),
            };
            match outcome {
                Ok(0) => panic!("{self:?}: an early end, {expected:?}"),
                Ok(many) => expected.take(&buffer[..many]),
                Err(error) if waits_on(&error) => {
                    assert!(
                        !readable(socket, Duration::ZERO) || readable(socket, SLEEP),
                        "{self:?}: asleep beside data, {expected:?}"
                    );
                    expected.waits();
                }
                Err(error) => panic!("{self:?}: {error}, {expected:?}"),
            }
        }
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    fn by_events(self, socket: &TcpStream, size: usize, expected: &mut Expected) {
        let epoll = Epoll::new(EpollCreateFlags::empty()).unwrap();
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLRDHUP
            | match self {
                Self::Edge => EpollFlags::EPOLLET,
                Self::OneShot => EpollFlags::EPOLLONESHOT,
                _ => EpollFlags::empty(),
            };
        if self != Self::Poll {
            epoll.add(socket.as_fd(), EpollEvent::new(flags, 0)).unwrap();
        }
        let told = |time: Duration| {
            if self == Self::Poll {
                return readable(socket, time);
            }
            let mut events = [EpollEvent::empty()];
            let time = EpollTimeout::try_from(time).unwrap();
            epoll.wait(&mut events, time).expect("nothing interrupts it") > 0
        };
        let mut buffer = vec![0; size];
        while !expected.is_complete() {
            if !told(SLEEP) {
                let waiting = recv(socket, &mut [0], libc::MSG_PEEK | libc::MSG_DONTWAIT);
                // What came just now has its event.
                let forgotten = waiting.is_ok_and(|many| many > 0) && !told(Duration::ZERO);
                assert!(!forgotten, "{self:?}: no event, and yet there is data, {expected:?}");
                expected.waits();
                if self == Self::OneShot {
                    epoll.modify(socket, &mut EpollEvent::new(flags, 0)).unwrap();
                }
                continue;
            }
            loop {
                match recv(socket, &mut buffer, 0) {
                    Ok(0) => panic!("{self:?}: an early end, {expected:?}"),
                    Ok(many) => {
                        expected.take(&buffer[..many]);
                        if expected.is_complete() || many < size || self != Self::Edge {
                            break;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{self:?}: {error}, {expected:?}"),
                }
            }
            if self == Self::OneShot {
                epoll.modify(socket, &mut EpollEvent::new(flags, 0)).unwrap();
            }
        }
    }
}

/// A read that waits, with a time limit, may end with EINTR for io_uring's sake, too.
fn waits_on(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The end of a stream. A read that waits may fail with EAGAIN while another thread writes to the socket (`differences`).
pub(super) fn assert_end(socket: &TcpStream, name: &str) {
    let begin = Instant::now();
    loop {
        match recv(socket, &mut [0], 0) {
            Ok(0) => return,
            Ok(_) => panic!("{name}: more than was sent"),
            Err(error) if waits_on(&error) && begin.elapsed() < PATIENCE => {}
            Err(error) => panic!("{name}: at the end: {error}"),
        }
    }
}

/// A ring of buffers that the kernel fills one after the other.
fn by_uring(socket: &TcpStream, size: usize, expected: &mut Expected) {
    const BUFFERS: u16 = 16;
    const GROUP: u16 = 7;
    const RECEIVED: u64 = 1;
    let mut ring = IoUring::new(64).unwrap();
    let mut memory = vec![0_u8; size * usize::from(BUFFERS)];
    let start = memory.as_mut_ptr();
    let provide = |number: u16, many: u16| {
        // SAFETY: within `memory`, which outlives the ring's use of it: both end with this function, the ring first.
        let at = unsafe { start.add(size * usize::from(number)) };
        opcode::ProvideBuffers::new(at, size as i32, many, GROUP, number).build().user_data(0)
    };
    let submit = |ring: &mut IoUring, entry: &squeue::Entry| {
        // SAFETY: what the entry refers to lives until the ring is dropped.
        unsafe { ring.submission().push(entry) }.expect("there is room");
    };
    submit(&mut ring, &provide(0, BUFFERS));
    let mut armed = false;
    while !expected.is_complete() {
        if !armed {
            let receive = opcode::RecvMulti::new(types::Fd(socket.as_raw_fd()), GROUP).build();
            submit(&mut ring, &receive.user_data(RECEIVED));
            armed = true;
        }
        let time = types::Timespec::from(SLEEP);
        let args = types::SubmitArgs::new().timespec(&time);
        if let Err(error) = ring.submitter().submit_with_args(1, &args) {
            assert_eq!(error.raw_os_error(), Some(libc::ETIME), "io_uring: {error}");
        }
        let completions: Vec<(u64, i32, u32)> =
            ring.completion().map(|it| (it.user_data(), it.result(), it.flags())).collect();
        let received = completions.iter().any(|(of, _, _)| *of == RECEIVED);
        if !received {
            let waiting = recv(socket, &mut [0], libc::MSG_PEEK | libc::MSG_DONTWAIT);
            let forgotten = waiting.is_ok_and(|many| many > 0) && {
                std::thread::sleep(SLEEP);
                ring.completion().is_empty()
            };
            assert!(!forgotten, "Uring: no completion, and yet there is data, {expected:?}");
            expected.waits();
        }
        for (_, result, flags) in completions.into_iter().filter(|(of, _, _)| *of == RECEIVED) {
            armed &= io_uring::cqueue::more(flags);
            // The end may come with the last bytes.
            if expected.is_complete() && result == 0 {
                break;
            }
            match result {
                // All buffers are full, and will be provided again.
                error if error == -libc::ENOBUFS => {}
                1.. => {
                    let number = io_uring::cqueue::buffer_select(flags).expect("it has a buffer");
                    let first = size * usize::from(number);
                    // SAFETY: the kernel is done with this buffer, and has written that many bytes.
                    let got =
                        unsafe { std::slice::from_raw_parts(start.add(first), result as usize) };
                    expected.take(got);
                    submit(&mut ring, &provide(number, 1));
                }
                0 => panic!("Uring: an early end, {expected:?}"),
                error => {
                    panic!("Uring: {}, {expected:?}", io::Error::from_raw_os_error(-error))
                }
            }
        }
    }
}

/// A stream as its reader expects it.
pub(super) struct Expected {
    stream: u64,
    at: u64,
    end: u64,
    since: Instant,
    name: String,
}

impl std::fmt::Debug for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {} of {}", self.name, self.at, self.end)
    }
}

impl Expected {
    /// So many bytes; `name` says which transfer this is, if it fails.
    pub(super) fn new(stream: u64, many: u64, name: String) -> Self {
        Self { stream, at: 0, end: many, since: Instant::now(), name }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.at == self.end
    }

    /// It sleeps because there is nothing to read yet. On a busy machine that may be.
    fn waits(&self) {
        assert!(self.since.elapsed() < 4 * PATIENCE, "nothing comes: {self:?}");
    }

    fn look_at(&self, got: &[u8]) {
        for (at, byte) in (self.at..).zip(got) {
            assert!(at < self.end, "more than was sent: {self:?}");
            assert_eq!(*byte, self::byte(self.stream, at), "at {at}, {self:?}");
        }
    }

    fn take(&mut self, got: &[u8]) {
        self.look_at(got);
        self.at += got.len() as u64;
        self.since = Instant::now();
    }
}
