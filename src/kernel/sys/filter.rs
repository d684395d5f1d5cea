// SPDX-License-Identifier: MIT OR Apache-2.0

//! What packet filters need: loading instructions as they are, running a program on a packet, a socket's classic filter.

use std::ffi::CStr;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use libbpf_rs::libbpf_sys;

use super::{done, from_libbpf};
use crate::filter::classic;
use crate::filter::ebpf::insn::Insn;
use crate::filter::ebpf::splice::{FuncInfo, LineInfo, Loadable};
use crate::output::bytes_to_string;

/// What to load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instructions<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) prog_type: libbpf_sys::bpf_prog_type,
    pub(crate) flags: u32,
    /// As the kernel takes them.
    pub(crate) bytes: &'a [u8],
}

/// What the verifier is asked to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// Its statistics.
    Totals,
    /// What it saw of each instruction.
    Everything,
}

/// Loads a program, with what the verifier writes. A log that doesn't fit is no failure.
pub(crate) fn load(what: Instructions<'_>, log: Log) -> (io::Result<OwnedFd>, String) {
    // include/linux/bpf_verifier.h
    const BPF_LOG_LEVEL1: u32 = 1;
    const BPF_LOG_STATS: u32 = 4;
    let mut text = vec![0_u8; if log == Log::Everything { 8 << 20 } else { 4 << 10 }];
    let mut opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        attempts: 5,
        prog_flags: what.flags,
        log_level: if log == Log::Everything { BPF_LOG_LEVEL1 } else { 0 } | BPF_LOG_STATS,
        log_size: text.len() as u32,
        log_buf: text.as_mut_ptr().cast(),
        ..Default::default()
    };
    assert!(what.bytes.len() % 8 == 0, "an instruction is 8 bytes");
    // SAFETY: C strings, whole instructions and their number, options of the size that they state, and a buffer of the
    // size that they state, all of which outlive the call.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            what.prog_type,
            what.name.as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            what.bytes.as_ptr().cast(),
            (what.bytes.len() / 8) as libbpf_sys::size_t,
            &mut opts,
        )
    };
    (from_libbpf(fd), bytes_to_string(&text))
}

/// One BPF_PROG_TEST_RUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TestRun {
    /// What the program returned, as far as the kernel tells: 32 bits.
    pub(crate) returned: u32,
    /// Nanoseconds for each run, on average.
    pub(crate) ns: u32,
}

/// Runs a program `repeat` times on one packet.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    packet: &[u8],
    context: &[u8],
    repeat: u32,
) -> io::Result<TestRun> {
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        repeat: repeat as i32,
        ..Default::default()
    };
    if !context.is_empty() {
        opts.ctx_in = context.as_ptr().cast();
        opts.ctx_size_in = context.len() as u32;
    }
    // SAFETY: options of the size that they state, with a packet and a context of theirs.
    done(unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut opts) })?;
    Ok(TestRun { returned: opts.retval, ns: opts.duration })
}

/// Bytes of machine code; 0 when it is interpreted, or when that may not be known.
pub(crate) fn machine_code(program: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(super::program_info(program)?.jited_len)
}

/// Gives a socket a classic filter, in place of the one it has.
pub(crate) fn attach_classic(
    socket: BorrowedFd<'_>,
    program: &[classic::insn::Insn],
) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `Insn` is laid out as `struct sock_filter`; there are `len` of them, and the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// While it lives, libbpf puts filters in the place of the stubs of XDP and tc programs that it loads, of sections `xdp` and
/// `tc`.
#[derive(Debug)]
pub(crate) struct FilterHandlers {
    handlers: Vec<i32>,
    /// The callback has its address, so it stays where it is.
    work: Box<Work>,
}

/// What the callback needs, and what it leaves.
struct Work {
    change: Box<Change>,
    state: Mutex<State>,
}

type Change = dyn Fn(&mut Loadable) -> Result<(), String> + Send + Sync;

#[derive(Debug, Default)]
struct State {
    /// Tables that libbpf reads when the callback has returned.
    tables: Vec<(Vec<FuncInfo>, Vec<LineInfo>)>,
    error: Option<String>,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work").field("state", &self.state).finish_non_exhaustive()
    }
}

impl FilterHandlers {
    pub(crate) fn new(
        change: impl Fn(&mut Loadable) -> Result<(), String> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let work = Box::new(Work { change: Box::new(change), state: Mutex::default() });
        let opts = libbpf_sys::libbpf_prog_handler_opts {
            sz: size_of::<libbpf_sys::libbpf_prog_handler_opts>() as libbpf_sys::size_t,
            cookie: std::ptr::from_ref::<Work>(&work) as libc::c_long,
            prog_prepare_load_fn: Some(prepare),
            ..Default::default()
        };
        let mut handlers = Self { handlers: Vec::new(), work };
        for (section, prog_type, attach_type) in [
            (c"xdp", libbpf_sys::BPF_PROG_TYPE_XDP, libbpf_sys::BPF_XDP),
            (c"tc", libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, 0),
        ] {
            // SAFETY: a C string and options of the size that they state, which libbpf copies. The callback gets the
            // address of `work`, which lives until the handlers are unregistered. libbpf's registry is not for several
            // threads: objects are opened on the main thread only.
            let handler = unsafe {
                libbpf_sys::libbpf_register_prog_handler(
                    section.as_ptr(),
                    prog_type,
                    attach_type,
                    &opts,
                )
            };
            if handler < 0 {
                return Err(io::Error::from_raw_os_error(-handler));
            }
            handlers.handlers.push(handler);
        }
        Ok(handlers)
    }

    /// Why the last load failed, if it was for a filter's sake.
    pub(crate) fn error(&self) -> Option<String> {
        self.work.state.lock().unwrap_or_else(PoisonError::into_inner).error.clone()
    }
}

impl Drop for FilterHandlers {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            // SAFETY: registered by `new`, and not unregistered before.
            unsafe { libbpf_sys::libbpf_unregister_prog_handler(handler) };
        }
    }
}

/// A table of libbpf's, copied. None where its records are not of the size that they had in Linux 5.10.
///
/// # Safety
/// `table` is null or points to `count` records of `size` bytes.
unsafe fn table<const N: usize>(
    table: *const libc::c_void,
    count: u32,
    size: u32,
) -> Option<Vec<[u32; N]>> {
    if table.is_null() || count == 0 {
        return Some(Vec::new());
    }
    (size as usize == N * 4).then(|| {
        // SAFETY: the caller's promise, and the records are of numbers.
        unsafe { std::slice::from_raw_parts(table.cast::<[u32; N]>(), count as usize) }.to_vec()
    })
}

unsafe extern "C" fn prepare(
    program: *mut libbpf_sys::bpf_program,
    opts: *mut libbpf_sys::bpf_prog_load_opts,
    cookie: libc::c_long,
) -> libc::c_int {
    // SAFETY: the address of a `Work` that lives as long as the handler is registered.
    let work = unsafe { &*(cookie as *const Work) };
    let mut state = work.state.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: libbpf calls this with a program that it is about to load, and its own options for that.
    let (insns, opts) = unsafe {
        let count = libbpf_sys::bpf_program__insn_cnt(program) as usize;
        let insns = libbpf_sys::bpf_program__insns(program).cast::<[u8; 8]>();
        (std::slice::from_raw_parts(insns, count), &mut *opts)
    };
    // SAFETY: libbpf states the size and the number of its records.
    let tables = unsafe {
        (
            table(opts.func_info, opts.func_info_cnt, opts.func_info_rec_size),
            table(opts.line_info, opts.line_info_cnt, opts.line_info_rec_size),
        )
    };
    let (Some(functions), Some(lines)) = tables else {
        state.error = Some("libbpf's tables of functions and lines have a new layout".into());
        return -libc::EPROTO;
    };
    let insns = insns.iter().map(|&bytes| Insn::decode(bytes)).collect();
    let mut loadable = Loadable { insns, functions, lines };
    if let Err(error) = (work.change)(&mut loadable) {
        state.error = Some(error);
        return -libc::EINVAL;
    }
    let mut bytes: Vec<[u8; 8]> = loadable.insns.iter().map(|insn| insn.encode()).collect();
    opts.func_info = loadable.functions.as_ptr().cast();
    opts.func_info_cnt = loadable.functions.len() as u32;
    opts.line_info = loadable.lines.as_ptr().cast();
    opts.line_info_cnt = loadable.lines.len() as u32;
    state.tables.push((loadable.functions, loadable.lines));
    // SAFETY: the instructions and their number; libbpf copies them.
    unsafe {
        libbpf_sys::bpf_program__set_insns(
            program,
            bytes.as_mut_ptr().cast(),
            bytes.len() as libbpf_sys::size_t,
        )
    }
}
