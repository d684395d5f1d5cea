// SPDX-License-Identifier: MIT OR Apache-2.0

//! What programs see of redirection, as the manual says it: each of these is the kernel's, and a test, so that a kernel
//! that does otherwise is noticed.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};

use super::work::{PATIENCE, exchange, option, pair, readable, recv, reset_on_close, send, take};
use super::*;
use crate::preflight::preempts;
use crate::support::within;

const SOON: Duration = Duration::from_millis(300);

/// Something that one end does, in words.
type Behaviour = fn(TcpStream, TcpStream) -> String;

fn errno(error: &io::Error) -> String {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)).to_string()
}

fn told(result: io::Result<usize>) -> String {
    match result {
        Ok(many) => many.to_string(),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN) => "EAGAIN".into(),
            Some(libc::EINTR) => "EINTR".into(),
            Some(libc::EFAULT) => "EFAULT".into(),
            Some(libc::EINVAL) => "EINVAL".into(),
            Some(libc::ECONNRESET) => "ECONNRESET".into(),
            _ => errno(&error),
        },
    }
}

/// Whether a thread sleeps in this system call.
fn sleeps_in(thread: libc::pid_t, number: libc::c_long) -> bool {
    let read = |file: &str| fs::read_to_string(format!("/proc/{thread}/{file}"));
    let Ok(stat) = read("stat") else { return false };
    // Its name is in parentheses, and may have some itself.
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    let call = read("syscall").unwrap_or_default();
    state.starts_with('S') && call.split(' ').next() == Some(&number.to_string())
}

fn until_it_reads(thread: libc::pid_t) {
    assert!(within(30, || sleeps_in(thread, libc::SYS_recvfrom)), "it does not wait in a read");
}

/// A thread in a read, and what became of it.
struct Reader<'a> {
    thread: libc::pid_t,
    handle: thread::ScopedJoinHandle<'a, String>,
}

impl<'a> Reader<'a> {
    /// Returns when the thread waits in its first read.
    fn waiting<'env>(
        scope: &'a thread::Scope<'a, 'env>,
        read: impl FnOnce() -> String + Send + 'a,
    ) -> Self {
        let (sender, receiver) = std::sync::mpsc::channel();
        let handle = scope.spawn(move || {
            // SAFETY: no memory.
            sender.send(unsafe { libc::gettid() }).unwrap();
            read()
        });
        let thread = receiver.recv().unwrap();
        until_it_reads(thread);
        Self { thread, handle }
    }

    /// Something has been done to it: it waits again, or has returned.
    fn until_it_waits_or_is_back(&self) {
        let done = || self.handle.is_finished() || sleeps_in(self.thread, libc::SYS_recvfrom);
        assert!(within(30, done), "it neither waits nor returns");
    }

    fn told(self) -> String {
        self.handle.join().unwrap()
    }
}

/// How often a signal was handled.
static HANDLED: AtomicUsize = AtomicUsize::new(0);

/// Has a signal handled that does not end calls, and returns what was before.
fn handle_signals() -> SigAction {
    extern "C" fn handler(_: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::SeqCst);
    }
    HANDLED.store(0, Ordering::SeqCst);
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler only counts.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap()
}

fn send_signal(reader: &Reader<'_>) {
    let ours = std::process::id() as libc::pid_t;
    // SAFETY: no memory.
    let status = unsafe { libc::syscall(libc::SYS_tgkill, ours, reader.thread, libc::SIGUSR1) };
    assert_eq!(status, 0);
    assert!(within(30, || HANDLED.load(Ordering::SeqCst) == 1), "the signal is not handled");
}

/// A read that waits is interrupted by a signal whose handler says that it goes on.
fn signal(client: TcpStream, server: TcpStream) -> String {
    let before = handle_signals();
    // With a time limit, no read goes on after a signal.
    server.set_read_timeout(None).unwrap();
    let got = thread::scope(|scope| {
        let reader = Reader::waiting(scope, || told(recv(&server, &mut [0; 8], 0)));
        send_signal(&reader);
        reader.until_it_waits_or_is_back();
        send(&client, b"data", 0).unwrap();
        reader.told()
    });
    // SAFETY: what it was before.
    unsafe { sigaction(Signal::SIGUSR1, &before) }.unwrap();
    got
}

/// A thread that waits for room to write wakes one that waits to read.
fn two_threads(mut client: TcpStream, server: TcpStream) -> String {
    let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::scope(|scope| {
        // To its limit, by TCP at the end; then it waits for room.
        let reader = Reader::waiting(scope, move || told(recv(&client2, &mut [0; 8], 0)));
        let (sender, receiver) = std::sync::mpsc::channel();
        scope.spawn(move || {
            // SAFETY: no memory.
            sender.send(unsafe { libc::gettid() }).unwrap();
            client.write_all(&vec![1; 16 << 20]).unwrap();
        });
        let writer = receiver.recv().unwrap();
        // By write(2), or by sendto(2), as the library has it.
        let waits =
            || [libc::SYS_sendto, libc::SYS_write].iter().any(|&call| sleeps_in(writer, call));
        assert!(within(30, waits), "there is room for everything");
        let mut all = server2;
        assert_eq!(take(&mut all, 16 << 20).len(), 16 << 20);
        reader.until_it_waits_or_is_back();
        send(&server, b"data", 0).unwrap();
        reader.told()
    })
}

/// What comes wakes both, and is enough for one.
fn two_readers(client: TcpStream, server: TcpStream) -> String {
    server.set_read_timeout(None).unwrap();
    thread::scope(|scope| {
        let read = || told(recv(&server, &mut [0], 0));
        let readers = [Reader::waiting(scope, read), Reader::waiting(scope, read)];
        send(&client, b"a", 0).unwrap();
        // One has it; what becomes of the other one is what is asked.
        let one_is_back = || readers.iter().any(|reader| reader.handle.is_finished());
        assert!(within(30, one_is_back), "nobody reads");
        readers.iter().for_each(Reader::until_it_waits_or_is_back);
        send(&client, b"a", 0).unwrap();
        let mut told = readers.map(Reader::told);
        told.sort();
        told.join(" and ")
    })
}

/// The same with a time limit, which is not over yet.
fn signal_within_a_limit(client: TcpStream, server: TcpStream) -> String {
    let before = handle_signals();
    let got = thread::scope(|scope| {
        let reader = Reader::waiting(scope, || told(recv(&server, &mut [0; 8], 0)));
        send_signal(&reader);
        reader.told()
    });
    drop(client);
    // SAFETY: what it was before.
    unsafe { sigaction(Signal::SIGUSR1, &before) }.unwrap();
    got
}

/// A process of its own waits in a read, something is done to it, and then four bytes come.
fn while_it_reads(
    client: &TcpStream,
    server: &TcpStream,
    what: impl FnOnce(nix::unistd::Pid),
) -> String {
    server.set_read_timeout(None).unwrap();
    // SAFETY: the child makes one system call, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut bytes = [0_u8; 8];
        // SAFETY: room for as much as is asked for; ends this process.
        unsafe {
            let got = libc::recv(server.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0);
            let errno = *libc::__errno_location();
            libc::_exit(if got < 0 { 100 + errno } else { got as i32 });
        }
    }
    until_it_reads(child);
    what(nix::unistd::Pid::from_raw(child));
    let ended = || {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap();
        stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z')
    };
    let waits_or_ended = || ended() || sleeps_in(child, libc::SYS_recvfrom);
    assert!(within(30, waits_or_ended), "it neither waits nor ends");
    send(client, b"data", 0).unwrap();
    let mut status = 0;
    // SAFETY: our child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "{status}");
    told(match libc::WEXITSTATUS(status) {
        errno @ 100.. => Err(io::Error::from_raw_os_error(errno - 100)),
        many => Ok(many as usize),
    })
}

fn stop_and_continue(client: TcpStream, server: TcpStream) -> String {
    while_it_reads(&client, &server, |child| {
        kill(child, Signal::SIGSTOP).unwrap();
        let mut status = 0;
        // SAFETY: our child.
        let stopped = unsafe { libc::waitpid(child.as_raw(), &mut status, libc::WUNTRACED) };
        assert!(stopped == child.as_raw() && libc::WIFSTOPPED(status), "{status}");
        kill(child, Signal::SIGCONT).unwrap();
    })
}

/// What pausing a container does.
fn freeze_and_thaw(client: TcpStream, server: TcpStream) -> String {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup v2");
    let cgroup = Cgroup::new(&format!("{own}/frozen")).expect("a cgroup");
    let file = |name: &str| cgroup.path().join(name);
    while_it_reads(&client, &server, |child| {
        fs::write(file("cgroup.procs"), child.to_string()).unwrap();
        fs::write(file("cgroup.freeze"), "1").unwrap();
        let frozen = || fs::read_to_string(file("cgroup.events")).unwrap().contains("frozen 1");
        assert!(within(30, frozen), "it does not freeze");
        fs::write(file("cgroup.freeze"), "0").unwrap();
    })
}

fn trace_for_a_moment(client: TcpStream, server: TcpStream) -> String {
    while_it_reads(&client, &server, |child| {
        let none = std::ptr::null_mut::<libc::c_void>();
        let mut status = 0;
        // SAFETY: a child of ours, and no memory.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_ATTACH, child.as_raw(), none, none), 0);
            assert_eq!(libc::waitpid(child.as_raw(), &mut status, 0), child.as_raw());
            assert_eq!(libc::ptrace(libc::PTRACE_DETACH, child.as_raw(), none, none), 0);
        }
    })
}

/// The C library has all threads of the process take part, by a signal. The user and the group stay what they are.
fn while_another_thread(client: &TcpStream, server: &TcpStream, change: fn()) -> String {
    server.set_read_timeout(None).unwrap();
    thread::scope(|scope| {
        let reader = Reader::waiting(scope, || told(recv(server, &mut [0; 8], 0)));
        change();
        reader.until_it_waits_or_is_back();
        send(client, b"data", 0).unwrap();
        reader.told()
    })
}

fn setgid(client: TcpStream, server: TcpStream) -> String {
    // SAFETY: no memory.
    let change = || unsafe { assert_eq!(libc::setgid(libc::getgid()), 0) };
    while_another_thread(&client, &server, change)
}

fn setuid(client: TcpStream, server: TcpStream) -> String {
    // SAFETY: no memory.
    let change = || unsafe { assert_eq!(libc::setuid(libc::getuid()), 0) };
    while_another_thread(&client, &server, change)
}

fn peer_reset(client: TcpStream, server: TcpStream) -> String {
    server.set_read_timeout(None).unwrap();
    thread::scope(|scope| {
        let reader = Reader::waiting(scope, || {
            let mut buffer = [0; 8];
            let first = told(recv(&server, &mut buffer, 0));
            format!("{first}, then {}", told(recv(&server, &mut buffer, 0)))
        });
        reset_on_close(&client);
        drop(client);
        reader.told()
    })
}

/// The other end acknowledges the end of what was sent after 40 ms, since it has nothing to say meanwhile. So the read
/// follows at once, in the same thread.
fn half_close(client: TcpStream, mut server: TcpStream) -> String {
    server.write_all(b"hello").unwrap();
    assert!(readable(&client, PATIENCE));
    assert_eq!(recv(&client, &mut [0; 8], libc::MSG_DONTWAIT).unwrap(), 5);
    client.set_read_timeout(None).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let acknowledged = || tcp_state(&client) == TCP_FIN_WAIT2;
        // SAFETY: no memory.
        let reader = unsafe { libc::gettid() };
        let (over, mut server) = (&over, &server);
        scope.spawn(move || {
            assert!(within(30, acknowledged), "no acknowledgement");
            let back_or_waits =
                || over.load(Ordering::SeqCst) || sleeps_in(reader, libc::SYS_recvfrom);
            assert!(within(30, back_or_waits), "it neither waits nor returns");
            server.write_all(b"answer").unwrap();
        });
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let got = told(recv(&client, &mut [0; 8], 0));
        over.store(true, Ordering::SeqCst);
        got
    })
}

/// include/net/tcp_states.h
const TCP_FIN_WAIT2: u8 = 5;

fn tcp_state(stream: &TcpStream) -> u8 {
    // include/uapi/linux/tcp.h: tcpi_state
    tcp_info(stream)[0]
}

fn tcp_info(stream: &TcpStream) -> [u8; 256] {
    let mut info = [0_u8; 256];
    let mut length = info.len() as u32;
    // SAFETY: room for as much as is stated.
    let status = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    assert_eq!(status, 0);
    info
}

/// What a proxy does that has a thread for each direction.
fn half_close_in_another_thread(client: TcpStream, mut server: TcpStream) -> String {
    client.set_read_timeout(None).unwrap();
    thread::scope(|scope| {
        let reader = Reader::waiting(scope, || told(recv(&client, &mut [0; 8], 0)));
        client.shutdown(std::net::Shutdown::Write).unwrap();
        reader.until_it_waits_or_is_back();
        server.write_all(b"answer").unwrap();
        reader.told()
    })
}

fn wait_for_all(client: TcpStream, server: TcpStream) -> String {
    thread::scope(|scope| {
        let reader = Reader::waiting(scope, || {
            let mut buffer = [0; 200];
            told(recv(&server, &mut buffer, libc::MSG_WAITALL))
        });
        send(&client, &[1; 100], 0).unwrap();
        // By TCP it waits for the rest, and nobody is woken; else it is back.
        thread::sleep(SOON);
        send(&client, &[2; 100], 0).unwrap();
        reader.told()
    })
}

fn splice(client: TcpStream, server: TcpStream) -> String {
    send(&client, &[1; 1000], 0).unwrap();
    assert!(readable(&server, SOON));
    // Redirected, it waits for TCP, to which nothing comes.
    server.set_read_timeout(Some(SOON)).unwrap();
    let (_read, write) = nix::unistd::pipe().unwrap();
    // SAFETY: descriptors of ours, no offsets.
    let moved = unsafe {
        libc::splice(
            server.as_raw_fd(),
            std::ptr::null_mut(),
            write.as_raw_fd(),
            std::ptr::null_mut(),
            1000,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    told(usize::try_from(moved).map_err(|_| io::Error::last_os_error()))
}

fn zero_copy(client: TcpStream, mut server: TcpStream) -> String {
    option(&client, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1);
    send(&client, &[1; 20_000], libc::MSG_ZEROCOPY).unwrap();
    assert_eq!(take(&mut server, 20_000), [1; 20_000]);
    let mut control = [0_u64; 16];
    // SAFETY: all zero is a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    for _ in 0..10 {
        // SAFETY: the message has the room for control data that it states.
        let got = unsafe { libc::recvmsg(client.as_raw_fd(), &mut message, libc::MSG_ERRQUEUE) };
        if got >= 0 {
            return "completed".into();
        }
        thread::sleep(SOON / 10);
    }
    "never completed".into()
}

fn urgent(client: TcpStream, server: TcpStream) -> String {
    send(&client, b"abc", 0).unwrap();
    send(&client, b"!", libc::MSG_OOB).unwrap();
    thread::sleep(SOON / 3);
    let mut byte = [0];
    let urgent = recv(&server, &mut byte, libc::MSG_OOB).map(|_| byte[0] as char);
    let mut rest = [0; 16];
    let many = recv(&server, &mut rest, libc::MSG_DONTWAIT).unwrap_or(0);
    format!("{:?}, then {}", urgent.ok(), String::from_utf8_lossy(&rest[..many]))
}

fn low_water(client: TcpStream, server: TcpStream) -> String {
    option(&server, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 100);
    send(&client, &[1; 10], 0).unwrap();
    let ready = readable(&server, SOON);
    let _ = recv(&server, &mut [0; 10], libc::MSG_DONTWAIT);
    if ready { "ready".into() } else { "not ready".into() }
}

fn discard(client: TcpStream, server: TcpStream) -> String {
    send(&client, &[1; 100], 0).unwrap();
    assert!(readable(&server, SOON));
    // SAFETY: the kernel is asked to discard, and needs no room.
    let got = unsafe { libc::recv(server.as_raw_fd(), std::ptr::null_mut(), 100, libc::MSG_TRUNC) };
    told(usize::try_from(got).map_err(|_| io::Error::last_os_error()))
}

fn close_with_unread(client: TcpStream, server: TcpStream) -> String {
    send(&client, b"never read", 0).unwrap();
    assert!(readable(&server, SOON));
    drop(server);
    thread::sleep(SOON / 3);
    let mut buffer = [0; 8];
    told(recv(&client, &mut buffer, 0))
}

fn unread_at_reset(client: TcpStream, server: TcpStream) -> String {
    send(&client, b"unread", 0).unwrap();
    assert!(readable(&server, SOON));
    reset_on_close(&client);
    drop(client);
    thread::sleep(SOON / 3);
    let mut buffer = [0; 8];
    told(recv(&server, &mut buffer, libc::MSG_DONTWAIT))
}

fn received_by_tcp(client: TcpStream, mut server: TcpStream) -> String {
    send(&client, &[1; 1000], 0).unwrap();
    take(&mut server, 1000);
    // include/uapi/linux/tcp.h: tcpi_bytes_received
    let info = tcp_info(&server);
    u64::from_ne_bytes(info[128..136].try_into().unwrap()).to_string()
}

fn discard_into(client: TcpStream, server: TcpStream) -> String {
    send(&client, b"abc", 0).unwrap();
    assert!(readable(&server, SOON));
    let mut buffer = *b"---";
    let many = recv(&server, &mut buffer, libc::MSG_TRUNC).unwrap();
    format!("{many} {}", String::from_utf8_lossy(&buffer))
}

fn nothing(_client: TcpStream, server: TcpStream) -> String {
    told(recv(&server, &mut [], libc::MSG_DONTWAIT))
}

/// What this kernel does not have at all.
const NOT_THERE: &str = "not there";

/// Each peek begins where the last one ended. TCP has it since Linux 6.9.
fn peek_on(client: TcpStream, server: TcpStream) -> String {
    let offset = 0_i32;
    // SAFETY: the value is an int, of the length that is stated.
    let status = unsafe {
        let value = (&raw const offset).cast();
        libc::setsockopt(server.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, value, 4)
    };
    if status != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) {
        return NOT_THERE.into();
    }
    assert_eq!(status, 0);
    send(&client, b"abcdef", 0).unwrap();
    assert!(readable(&server, SOON));
    let peek = || {
        let mut bytes = [0; 3];
        recv(&server, &mut bytes, libc::MSG_PEEK | libc::MSG_DONTWAIT).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (first, second) = (peek(), peek());
    assert_eq!(recv(&server, &mut [0; 6], libc::MSG_DONTWAIT).unwrap(), 6);
    format!("{first} {second}")
}

fn left_to_read(client: TcpStream, server: TcpStream) -> String {
    const TCP_INQ: i32 = 36;
    option(&server, libc::IPPROTO_TCP, TCP_INQ, 1);
    control_messages(client, server)
}

fn time_stamp(client: TcpStream, server: TcpStream) -> String {
    option(&server, libc::SOL_SOCKET, libc::SO_TIMESTAMP, 1);
    // The kernel begins to take the time of packets a little later.
    thread::sleep(SOON);
    control_messages(client, server)
}

/// Whether any comes with what is read.
fn control_messages(client: TcpStream, server: TcpStream) -> String {
    send(&client, &[1; 200], 0).unwrap();
    assert!(readable(&server, SOON));
    let (mut bytes, mut control) = ([0_u8; 100], [0_u64; 8]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: one part and control messages, with room for their lengths.
    assert_eq!(unsafe { libc::recvmsg(server.as_raw_fd(), &raw mut message, 0) }, 100);
    if message.msg_controllen > 0 { "told".into() } else { "not told".into() }
}

fn how_much(client: TcpStream, server: TcpStream) -> String {
    send(&client, &[1; 100], 0).unwrap();
    assert!(readable(&server, SOON));
    let mut number = -1;
    // SAFETY: room for the number.
    assert_eq!(unsafe { libc::ioctl(server.as_raw_fd(), libc::FIONREAD, &mut number) }, 0);
    number.to_string()
}

/// One that lets nothing through.
fn socket_filter(client: TcpStream, server: TcpStream) -> String {
    // ret #0
    let mut code = libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut code };
    // SAFETY: a program of the length that is stated.
    let status = unsafe {
        libc::setsockopt(
            server.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as u32,
        )
    };
    assert_eq!(status, 0);
    send(&client, b"abc", 0).unwrap();
    let _ = readable(&server, SOON);
    match recv(&server, &mut [0; 8], libc::MSG_DONTWAIT) {
        Ok(_) => "data".into(),
        Err(_) => "no data".into(),
    }
}

/// What it is called, what happens with TCP, what may happen redirected (kernels differ), and what preflight calls it.
type Difference = (&'static str, Behaviour, &'static str, &'static [&'static str], &'static str);

const DIFFERENCES: &[Difference] = &[
    ("a signal with SA_RESTART", signal, "4", &["EAGAIN"], "signals"),
    ("a signal, and SO_RCVTIMEO", signal_within_a_limit, "EINTR", &["EAGAIN"], "rcvtimeo"),
    ("SIGSTOP and SIGCONT", stop_and_continue, "4", &["EAGAIN"], "blocking"),
    ("cgroup.freeze", freeze_and_thaw, "4", &["EAGAIN"], "blocking"),
    ("a tracer", trace_for_a_moment, "4", &["EAGAIN"], "blocking"),
    ("setgid in another thread", setgid, "4", &["EAGAIN"], "blocking"),
    ("setuid in another thread", setuid, "4", &["EAGAIN"], "blocking"),
    ("another thread waits to write", two_threads, "4", &["4", "EAGAIN"], "threads"),
    ("two threads that read", two_readers, "1 and 1", &["1 and 1", "1 and EAGAIN"], "threads"),
    (
        "a read when the peer resets",
        peer_reset,
        "ECONNRESET, then 0",
        &["EAGAIN, then ECONNRESET", "ECONNRESET, then 0"],
        "blocking",
    ),
    ("another thread half-closes", half_close_in_another_thread, "6", &["EAGAIN"], "threads"),
    // On a busy machine the acknowledgement may come before the read, which is then as any other.
    ("a read after a half-close", half_close, "6", &["EAGAIN", "6"], "half-close"),
    ("MSG_WAITALL", wait_for_all, "200", &["100"], "waitall"),
    ("splice from the socket", splice, "1000", &["EAGAIN"], "splice"),
    ("MSG_ZEROCOPY", zero_copy, "completed", &["never completed"], "zerocopy"),
    ("MSG_OOB", urgent, "Some('!'), then abc", &["Some('a'), then bc!"], "oob"),
    ("SO_RCVLOWAT", low_water, "not ready", &["ready"], "rcvlowat"),
    ("SO_PEEK_OFF", peek_on, "abc def", &["abc abc"], "peek-off"),
    ("MSG_TRUNC without a buffer", discard, "100", &["EFAULT"], "trunc"),
    ("MSG_TRUNC with a buffer", discard_into, "3 ---", &["3 abc"], "trunc"),
    ("a receive of no bytes", nothing, "EAGAIN", &["0"], "zero-length"),
    ("TCP_INQ", left_to_read, "told", &["not told"], "tcp-inq"),
    ("SO_TIMESTAMP", time_stamp, "told", &["not told"], "timestamps"),
    // Where it is right, it is no reason.
    ("FIONREAD", how_much, "100", &["0", "100"], "fionread"),
    ("a socket filter", socket_filter, "no data", &["data"], "socket-filter"),
    ("close with unread data", close_with_unread, "ECONNRESET", &["0"], "unread-at-close"),
    // No difference.
    ("unread data at a reset", unread_at_reset, "6", &["6"], ""),
    ("TCP_INFO's bytes received", received_by_tcp, "1000", &["0"], "tcp-info"),
];

/// Does it by TCP under the eyes of preflight. Returns what happened, and what preflight says: the worst verdict, and
/// all reasons.
fn by_tcp(place: &Place, behaviour: Behaviour) -> (String, &'static str, BTreeSet<String>) {
    let run = Running::json(&["sockredir", "preflight", "--cgroup", place.path(), "-d", "300s"]);
    let (client, server) = place.run(pair);
    let happened = behaviour(client, server);
    let rows: Vec<_> = run.stop().json().into_iter().filter(|line| line["type"] == "row").collect();
    let verdicts = ["unsafe", "caution", "safe"];
    let worst = verdicts.into_iter().find(|it| rows.iter().any(|row| row["verdict"] == *it));
    let reasons = rows.iter().flat_map(|row| row["reasons"].as_array().unwrap());
    let reasons = reasons.map(|reason| reason.as_str().unwrap().to_string()).collect();
    (happened, worst.unwrap_or("safe"), reasons)
}

/// Whether preflight says what it has to of something that differs for this reason.
fn is_told(reason: &str, verdict: &str, reasons: &BTreeSet<String>) -> bool {
    match reason {
        "blocking" => verdict == "caution" && reasons.iter().eq(["blocking"]),
        _ => verdict == "unsafe" && reasons.contains(reason),
    }
}

/// Of these the direction matters; of all others, that the socket is in the map.
const OF_REDIRECTED_BYTES: &[&str] =
    &["MSG_ZEROCOPY", "SO_RCVLOWAT", "TCP_INFO's bytes received", "a socket filter"];

#[test]
fn applications_see_these_differences() {
    let Some(place) = Place::new() else { return };
    let mut wrong = Vec::new();
    for (name, behaviour, plain, redirected, reason) in DIFFERENCES {
        let (mut without, mut verdict, mut reasons) = by_tcp(&place, *behaviour);
        if without == NOT_THERE {
            println!("SKIP {name}: this kernel does not have it");
            continue;
        }
        // Linux 7 may skip preflight's program.
        if preempts() && !reason.is_empty() && !is_told(reason, verdict, &reasons) {
            (without, verdict, reasons) = by_tcp(&place, *behaviour);
        }
        let run = place.start(&[]);
        let (client, server) = place.run(pair);
        let with = behaviour(client, server);
        let summary = run.stop().summary();
        println!("{name}: {without}; redirected: {with}; {verdict}: {reasons:?}");
        let differs = !reason.is_empty() && (*name != "FIONREAD" || with != *plain);
        if differs && !is_told(reason, verdict, &reasons) {
            wrong.push(format!("{name}: preflight says {verdict}: {reasons:?}; expected {reason}"));
        }
        if without != *plain || !redirected.contains(&with.as_str()) {
            wrong.push(format!(
                "{name}: {without}; redirected: {with}; expected {plain}, {redirected:?}"
            ));
        }
        assert_eq!(summary["clients"], 1, "{name}: {summary}");

        // In the map, and all that it sends goes by TCP.
        let run = place.start(&["--comm", "nobody"]);
        let (client, server) = place.run(pair);
        let left = behaviour(client, server);
        let summary = run.stop().summary();
        println!("{name}: left to TCP: {left}");
        let expected = if OF_REDIRECTED_BYTES.contains(name) { &[*plain][..] } else { *redirected };
        if !expected.contains(&left.as_str()) {
            wrong.push(format!("{name}: left to TCP: {left}; expected {expected:?}"));
        }
        assert_eq!(
            (&summary["admitted"], &summary["redirected"]),
            (&2.into(), &0.into()),
            "{name}: {summary}"
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What has passed the loopback interface, in bytes.
fn passed(place: &Place) -> u64 {
    let text = place.run(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Packet filters, tcpdump and the counters of interfaces see the connection, and nothing that is sent on it.
#[test]
fn no_packet_carries_what_is_redirected() {
    let Some(place) = Place::new() else { return };
    let talk = || {
        let before = passed(&place);
        let (mut client, mut server) = place.run(pair);
        for _ in 0..100 {
            client.write_all(&[7; 10_000]).unwrap();
            assert_eq!(take(&mut server, 10_000).len(), 10_000);
        }
        passed(&place) - before
    };
    let plain = talk();
    let run = place.start(&[]);
    let redirected = talk();
    println!("a megabyte: {plain} bytes in packets by TCP, {redirected} redirected");
    assert_eq!(run.stop().summary()["redirected_bytes"], 1_000_000);
    assert!(plain > 1_000_000 && redirected < 2_000, "{plain} {redirected}");
}

/// Nothing of these is different.
#[test]
fn ordinary_calls_are_as_ever() {
    let Some(place) = Place::new() else { return };
    let run = place.start(&[]);
    let (mut client, mut server) = place.run(pair);
    exchange(&mut client, &mut server);
    // What is peeked stays.
    send(&client, b"peeked", 0).unwrap();
    let mut buffer = [0; 16];
    for _ in 0..3 {
        assert_eq!(recv(&server, &mut buffer, libc::MSG_PEEK).unwrap(), 6);
    }
    assert_eq!(take(&mut server, 6), b"peeked");
    // writev, read in pieces.
    let parts = [io::IoSlice::new(b"one "), io::IoSlice::new(b"two")];
    assert_eq!(client.write_vectored(&parts).unwrap(), 7);
    assert_eq!(take(&mut server, 3), b"one");
    assert_eq!(take(&mut server, 4), b" two");
    // sendfile.
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[9; 70_000]).unwrap();
    let mut offset = 0;
    while offset < 70_000 {
        // SAFETY: descriptors of ours, and an offset.
        let sent = unsafe {
            libc::sendfile(
                client.as_raw_fd(),
                file.as_raw_fd(),
                &mut offset,
                70_000 - offset as usize,
            )
        };
        assert!(sent > 0, "{}", io::Error::last_os_error());
    }
    assert_eq!(take(&mut server, 70_000), vec![9; 70_000]);
    // A read that does not wait, and one with a time limit.
    let mut byte = [0];
    assert_eq!(told(recv(&server, &mut byte, libc::MSG_DONTWAIT)), "EAGAIN");
    server.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(told(recv(&server, &mut byte, 0)), "EAGAIN");
    assert!(!readable(&server, Duration::from_millis(10)));
    let summary = run.stop().summary();
    assert_eq!(summary["redirected"], 2, "{summary}");
    assert_eq!(summary["tcp_bytes"], 0, "{summary}");
}
