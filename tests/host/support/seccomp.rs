// SPDX-License-Identifier: MIT OR Apache-2.0

//! Seccomp filters of a test's own process, and of a bpftk whose system calls the test answers.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// From now on, seccomp answers this system call by `action` (include/uapi/linux/seccomp.h) and allows all others. Returns
/// what seccomp(2) does with these flags: 0, or the listener's descriptor.
pub(crate) fn answer(number: libc::c_long, action: u32, flags: libc::c_ulong) -> i64 {
    answer_both([number; 2], action, flags)
}

fn answer_both(numbers: [libc::c_long; 2], action: u32, flags: libc::c_ulong) -> i64 {
    let [first, second] = numbers.map(|number| number as u32);
    let mut code = [
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: 0x15, jt: 1, jf: 0, k: first },
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: second },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: action },
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    // SAFETY: a valid program, for this process alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        libc::syscall(libc::SYS_seccomp, libc::c_ulong::from(mode), flags, &raw const program)
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The kernel does it.
    Go,
    /// It fails by this number, and nothing is done.
    Fail(i32),
    /// Its process is killed before it is done.
    Kill,
}

/// A call that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) number: libc::c_long,
    pub(crate) args: [u64; 6],
    tid: u32,
}

impl Call {
    /// Of a message to netlink: what it asks for.
    pub(crate) fn netlink_type(&self) -> Option<u16> {
        use std::os::unix::fs::FileExt;
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.tid)).ok()?;
        let mut bytes = [0; 2];
        memory.read_exact_at(&mut bytes, self.args[1] + 4).ok()?;
        (self.number == libc::SYS_sendto).then(|| u16::from_ne_bytes(bytes))
    }
}

/// Answers a process's calls for as long as this lives.
#[derive(Debug)]
pub(crate) struct Supervisor {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// What the process sends its listener through.
    receiver: UnixStream,
    sender: Option<UnixStream>,
}

impl Supervisor {
    /// Has what `command` starts ask before it does one of these two calls.
    pub(crate) fn of(command: &mut Command, calls: [libc::c_long; 2]) -> Self {
        let (receiver, sender) = UnixStream::pair().unwrap();
        let to = sender.as_raw_fd();
        let install = move || {
            let flag = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
            let listener = answer_both(calls, libc::SECCOMP_RET_USER_NOTIF, flag);
            if listener < 0 {
                return Err(io::Error::last_os_error());
            }
            send_descriptor(to, listener as RawFd)
        };
        // SAFETY: it makes a few system calls.
        unsafe { command.pre_exec(install) };
        let ended = Arc::new(AtomicBool::new(false));
        Self { ended, thread: None, receiver, sender: Some(sender) }
    }

    /// Begins to answer. To be called before the command is started, which waits for it.
    pub(crate) fn begin(&mut self, mut decide: impl FnMut(&Call) -> Answer + Send + 'static) {
        let receiver = self.receiver.try_clone().unwrap();
        let ended = Arc::clone(&self.ended);
        self.thread = Some(thread::spawn(move || {
            let listener = receive_descriptor(&receiver);
            while !ended.load(Ordering::Relaxed) {
                if waits(&listener) {
                    serve(&listener, &mut decide);
                }
            }
        }));
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.sender = None;
        self.ended.store(true, Ordering::Relaxed);
        // Without a process nobody has sent it anything.
        let _ = self.receiver.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn waits(listener: &OwnedFd) -> bool {
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let _ = poll(&mut fds, PollTimeout::from(50_u8));
    let got = fds[0].revents().unwrap_or(PollFlags::empty());
    if got.contains(PollFlags::POLLHUP) {
        thread::sleep(std::time::Duration::from_millis(5));
    }
    got.contains(PollFlags::POLLIN)
}

fn serve(listener: &OwnedFd, decide: &mut impl FnMut(&Call) -> Answer) {
    // include/uapi/linux/seccomp.h
    const RECV: libc::Ioctl = 0xc050_2100_u32 as libc::Ioctl;
    const SEND: libc::Ioctl = 0xc018_2101_u32 as libc::Ioctl;
    const CONTINUE: u32 = 1;
    // SAFETY: zero bytes are valid, and what the kernel asks for.
    let mut notif: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: of the type that the request is for.
    if unsafe { libc::ioctl(listener.as_raw_fd(), RECV, &raw mut notif) } != 0 {
        return;
    }
    let number = libc::c_long::from(notif.data.nr);
    let call = Call { number, args: notif.data.args, tid: notif.pid };
    let mut answer = libc::seccomp_notif_resp { id: notif.id, val: 0, error: 0, flags: 0 };
    match decide(&call) {
        Answer::Go => answer.flags = CONTINUE,
        Answer::Fail(errno) => answer.error = -errno,
        Answer::Kill => {
            // SAFETY: a thread of a child of ours, which waits for our answer.
            unsafe { libc::kill(call.tid as i32, libc::SIGKILL) };
            return;
        }
    }
    // It may have been killed meanwhile.
    // SAFETY: of the type that the request is for.
    unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw mut answer) };
}

const CONTROL: usize = 24;

/// Runs `work` with a message that has room for one byte and one descriptor.
fn with_message<T>(work: impl FnOnce(*mut libc::msghdr) -> T) -> T {
    let mut byte = [0_u8; 1];
    let mut io = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0_u64; CONTROL / 8];
    // SAFETY: zero bytes are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut io;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = CONTROL as _;
    work(&raw mut message)
}

fn send_descriptor(to: RawFd, what: RawFd) -> io::Result<()> {
    with_message(|message| {
        // SAFETY: the message has room for one header and one descriptor.
        let sent = unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(what);
            libc::sendmsg(to, message, 0)
        };
        if sent == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
    })
}

fn receive_descriptor(from: &UnixStream) -> OwnedFd {
    with_message(|message| {
        // SAFETY: as above; the kernel makes the descriptor, which nobody else has.
        unsafe {
            assert_eq!(libc::recvmsg(from.as_raw_fd(), message, libc::MSG_CMSG_CLOEXEC), 1);
            let header = libc::CMSG_FIRSTHDR(message);
            assert!(!header.is_null(), "a descriptor");
            OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned())
        }
    })
}
