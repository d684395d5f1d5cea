// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every call that needs `unsafe`: libbpf functions without a safe wrapper, and raw system calls.

pub(super) mod btf;
pub(super) mod filter;
pub(super) mod maps;
pub(super) mod net;
pub(super) mod packet;
pub(super) mod stubs;

use std::ffi::{CStr, CString};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use libbpf_rs::libbpf_sys;

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system call just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Lends out a descriptor that a library gave as a number.
///
/// # Safety
/// `fd` must stay open for as long as `'a`.
pub(super) unsafe fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the caller's promise.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// A file system of its own, mounted nowhere: nobody else sees it, and closing it unmounts it. Linux 5.2.
pub(super) fn private_mount(fstype: &CStr) -> io::Result<OwnedFd> {
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    const FSMOUNT_CLOEXEC: libc::c_uint = 1;
    // SAFETY: the name is a C string; the flags are the documented ones.
    let fs = owned(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) })?;
    // SAFETY: the command takes no key and no value.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            fs.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a file system context's descriptor and documented flags.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

/// include/uapi/linux/perf_event.h, up to PERF_ATTR_SIZE_VER1: all that a trace or kprobe event needs.
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
}

fn perf_event_open(attr: &mut PerfEventAttr) -> io::Result<OwnedFd> {
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    attr.size = size_of::<PerfEventAttr>() as u32;
    // SAFETY: `attr` is a perf_event_attr of the size that it states. A trace event's program runs on every CPU,
    // whichever the event was opened for (kernel/trace/bpf_trace.c, trace_call_bpf).
    owned(unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_mut(attr),
            -1 as libc::pid_t,
            0 as libc::c_int,
            -1 as libc::c_int,
            PERF_FLAG_FD_CLOEXEC,
        )
    })
}

/// The event of a tracepoint, by its id in tracefs.
pub(super) fn perf_tracepoint(id: u64) -> io::Result<OwnedFd> {
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    const PERF_SAMPLE_RAW: u64 = 1 << 10;
    perf_event_open(&mut PerfEventAttr {
        kind: PERF_TYPE_TRACEPOINT,
        config: id,
        sample_period: 1,
        sample_type: PERF_SAMPLE_RAW,
        wakeup_events: 1,
        ..PerfEventAttr::default()
    })
}

/// A kprobe at the entry of `function`; `kind` is the kprobe event source's type.
pub(super) fn perf_kprobe(kind: u32, function: &CStr) -> io::Result<OwnedFd> {
    perf_event_open(&mut PerfEventAttr {
        kind,
        config1: function.as_ptr() as u64,
        ..PerfEventAttr::default()
    })
}

/// What the kernel says to a program `r0 = 0; exit` of this type.
pub(super) fn load_trivial(
    prog_type: libbpf_sys::bpf_prog_type,
    attach_type: libbpf_sys::bpf_attach_type,
    attach_btf_id: u32,
) -> io::Result<OwnedFd> {
    let instructions: [u64; 2] = [0xb7, 0x95];
    let mut opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: attach_type,
        attach_btf_id,
        attempts: 1,
        ..Default::default()
    };
    // SAFETY: two instructions of 8 bytes, C strings, and options of the size that they state.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            prog_type,
            c"bpftk_probe".as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            instructions.as_ptr().cast(),
            instructions.len() as libbpf_sys::size_t,
            &mut opts,
        )
    };
    from_libbpf(fd)
}

/// libbpf's low-level calls return -errno.
fn from_libbpf(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    owned(fd.into())
}

/// Attaches by link: it is gone when the descriptor is closed, however that comes about.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: i32,
    attach_type: libbpf_sys::bpf_attach_type,
) -> io::Result<OwnedFd> {
    // SAFETY: no options; the kernel checks the rest.
    from_libbpf(unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), target, attach_type, std::ptr::null())
    })
}

/// Attaches a tracing program (fentry, raw tracepoint) to what it was loaded for.
pub(super) fn raw_tracepoint_open(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: no name: the target was given at load.
    from_libbpf(unsafe {
        libbpf_sys::bpf_raw_tracepoint_open(std::ptr::null(), program.as_raw_fd())
    })
}

/// The id of a kernel function in the kernel's BTF.
pub(super) fn vmlinux_btf_id(name: &CStr, attach_type: libbpf_sys::bpf_attach_type) -> Option<u32> {
    // SAFETY: a C string.
    let id = unsafe { libbpf_sys::libbpf_find_vmlinux_btf_id(name.as_ptr(), attach_type) };
    u32::try_from(id).ok().filter(|&id| id > 0)
}

/// While it lives, libbpf loads fentry, fexit and tp_btf programs for the targets and ids that it was made with, and does not
/// read the kernel's whole BTF to look them up.
///
/// libbpf decides by a program's type whether it needs that BTF, so the sections get a type that doesn't, and the right
/// one at the last moment before the load.
#[derive(Debug)]
pub(crate) struct TracingTargets {
    handlers: Vec<i32>,
}

/// Names of targets, and ids, for the callback, which libbpf gives nothing of ours but a number.
static TRACING_IDS: Mutex<Vec<(CString, u32)>> = Mutex::new(Vec::new());

impl TracingTargets {
    pub(super) fn new(targets: impl Iterator<Item = (CString, u32)>) -> io::Result<Self> {
        *TRACING_IDS.lock().unwrap_or_else(PoisonError::into_inner) = targets.collect();
        let opts = libbpf_sys::libbpf_prog_handler_opts {
            sz: size_of::<libbpf_sys::libbpf_prog_handler_opts>() as libbpf_sys::size_t,
            prog_prepare_load_fn: Some(prepare_tracing),
            ..Default::default()
        };
        let mut registered = Self { handlers: Vec::new() };
        for (section, attach_type) in [
            (c"fentry+", libbpf_sys::BPF_TRACE_FENTRY),
            (c"fexit+", libbpf_sys::BPF_TRACE_FEXIT),
            (c"tp_btf+", libbpf_sys::BPF_TRACE_RAW_TP),
        ] {
            // SAFETY: a C string and options of the size that they state, which libbpf copies. The callback is a plain
            // function. libbpf's registry is not for several threads: objects are opened on the main thread only.
            let handler = unsafe {
                libbpf_sys::libbpf_register_prog_handler(
                    section.as_ptr(),
                    libbpf_sys::BPF_PROG_TYPE_RAW_TRACEPOINT,
                    attach_type,
                    &opts,
                )
            };
            if handler < 0 {
                return Err(io::Error::from_raw_os_error(-handler));
            }
            registered.handlers.push(handler);
        }
        Ok(registered)
    }
}

impl Drop for TracingTargets {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            // SAFETY: registered by `new`, and not unregistered before.
            unsafe { libbpf_sys::libbpf_unregister_prog_handler(handler) };
        }
    }
}

unsafe extern "C" fn prepare_tracing(
    program: *mut libbpf_sys::bpf_program,
    opts: *mut libbpf_sys::bpf_prog_load_opts,
    _cookie: libc::c_long,
) -> libc::c_int {
    // SAFETY: libbpf calls this with a program that it is about to load; a section's name is a C string.
    let section = unsafe { CStr::from_ptr(libbpf_sys::bpf_program__section_name(program)) };
    let mut parts = section.to_bytes().splitn(2, |&byte| byte == b'/');
    // The kernel's BTF names a tracepoint's arguments in a typedef (include/trace/bpf_probe.h).
    let prefix: &[u8] = if parts.next() == Some(b"tp_btf") { b"btf_trace_" } else { b"" };
    let target = parts.next().unwrap_or_default();
    let ids = TRACING_IDS.lock().unwrap_or_else(PoisonError::into_inner);
    match ids.iter().find(|(name, _)| name.to_bytes().strip_prefix(prefix) == Some(target)) {
        Some((_, id)) => {
            // SAFETY: libbpf's own options for this load, and the program itself.
            unsafe {
                (*opts).attach_btf_id = *id;
                libbpf_sys::bpf_program__set_type(program, libbpf_sys::BPF_PROG_TYPE_TRACING)
            }
        }
        None => -libc::ENOENT,
    }
}

/// The type of a namespace file, as a CLONE_NEW* flag. Linux 4.11.
pub(super) fn namespace_type(file: BorrowedFd<'_>) -> io::Result<i32> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: the request takes no argument.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE as _) };
    if kind < 0 { Err(io::Error::last_os_error()) } else { Ok(kind) }
}

/// The kernel's number of a socket, which it gives out once.
pub(super) fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    cookie(socket, libc::SO_COOKIE)
}

/// The kernel's number of a socket's network namespace (Linux 5.14).
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    cookie(socket, SO_NETNS_COOKIE)
}

fn cookie(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes no more than `size` bytes, which is what there is room for.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// 0 or -errno.
fn done(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(())
}

/// Attaches to a raw tracepoint by its name.
pub(super) fn raw_tracepoint_open_named(
    program: BorrowedFd<'_>,
    name: &CStr,
) -> io::Result<OwnedFd> {
    // SAFETY: a C string.
    from_libbpf(unsafe { libbpf_sys::bpf_raw_tracepoint_open(name.as_ptr(), program.as_raw_fd()) })
}

pub(super) fn map_create(
    kind: libbpf_sys::bpf_map_type,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
) -> io::Result<OwnedFd> {
    // SAFETY: a C string, and no options.
    from_libbpf(unsafe {
        libbpf_sys::bpf_map_create(
            kind,
            c"bpftk_probe".as_ptr(),
            key_size,
            value_size,
            max_entries,
            std::ptr::null(),
        )
    })
}

/// What bpf(2) says to a command that no kernel has.
pub(super) fn bpf_nonsense() -> io::Error {
    // SAFETY: with a length of 0, nothing is read.
    unsafe { libc::syscall(libc::SYS_bpf, 0x7fff_fff0_u32, std::ptr::null::<u8>(), 0_u32) };
    io::Error::last_os_error()
}

/// What the kernel tells of a loaded program.
#[derive(Clone, Debug)]
pub(super) struct ProgramInfo {
    pub(super) id: u32,
    pub(super) kind: u32,
    pub(super) name: String,
    /// Nanoseconds since boot.
    pub(super) loaded_ns: u64,
    /// Bytes of machine code; 0 when it is interpreted, or when that may not be known.
    pub(super) jited_len: u32,
    /// How often the kernel skipped it because the CPU was in the middle of it; 0 before Linux 5.12, which doesn't tell.
    pub(super) skipped: u64,
}

pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut len = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: room for as much as `len` says; no buffer of it asks for more.
    done(unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut len) })?;
    Ok(ProgramInfo {
        id: info.id,
        kind: info.type_,
        name: crate::output::bytes_to_string(&info.name.map(|c| c as u8)),
        loaded_ns: info.load_time,
        jited_len: info.jited_prog_len,
        skipped: info.recursion_misses,
    })
}

/// `xdp`, `sched_cls` and the like.
pub(super) fn program_type_name(kind: u32) -> String {
    // SAFETY: any number may be asked for.
    let name = unsafe { libbpf_sys::libbpf_bpf_prog_type_str(kind) };
    if name.is_null() {
        return format!("type {kind}");
    }
    // SAFETY: a static C string.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// The next id after `after`, of loaded programs.
pub(super) fn next_program(after: u32) -> io::Result<Option<u32>> {
    let mut id = 0;
    // SAFETY: room for one id.
    next(unsafe { libbpf_sys::bpf_prog_get_next_id(after, &mut id) }, id)
}

/// The next id after `after`, of maps.
pub(super) fn next_map(after: u32) -> io::Result<Option<u32>> {
    let mut id = 0;
    // SAFETY: room for one id.
    next(unsafe { libbpf_sys::bpf_map_get_next_id(after, &mut id) }, id)
}

fn next(result: i32, id: u32) -> io::Result<Option<u32>> {
    match done(result) {
        Ok(()) => Ok(Some(id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: a number.
    from_libbpf(unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id) })
}

pub(super) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: a number.
    from_libbpf(unsafe { libbpf_sys::bpf_map_get_fd_by_id(id) })
}

/// What is pinned at `path`.
pub(super) fn pinned(path: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: a C string.
    from_libbpf(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })
}

/// What may be attached at one place. The kernel says ENOSPC when it is more.
const MOST_ATTACHED: usize = 1024;

/// Ids of the programs attached to a cgroup, a map or (tcx) an interface.
pub(super) fn attached(
    target: RawFd,
    attach_type: libbpf_sys::bpf_attach_type,
) -> io::Result<Vec<u32>> {
    let mut ids = vec![0; MOST_ATTACHED];
    let mut count = MOST_ATTACHED as u32;
    // SAFETY: room for as many ids as `count` says.
    done(unsafe {
        libbpf_sys::bpf_prog_query(
            target,
            attach_type,
            0,
            std::ptr::null_mut(),
            ids.as_mut_ptr(),
            &mut count,
        )
    })?;
    ids.truncate(count as usize);
    Ok(ids)
}

/// Ids of the programs at a tcx hook, those without a link. Linux 6.6.
pub(super) fn attached_without_link(
    ifindex: i32,
    attach_type: libbpf_sys::bpf_attach_type,
) -> io::Result<Vec<u32>> {
    let mut programs = vec![0_u32; MOST_ATTACHED];
    let mut links = vec![0_u32; MOST_ATTACHED];
    let mut opts = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as libbpf_sys::size_t,
        prog_ids: programs.as_mut_ptr(),
        link_ids: links.as_mut_ptr(),
        ..Default::default()
    };
    opts.__bindgen_anon_1.count = MOST_ATTACHED as u32;
    // SAFETY: options of the size that they state, with room for `count` ids twice.
    done(unsafe { libbpf_sys::bpf_prog_query_opts(ifindex, attach_type, &mut opts) })?;
    // SAFETY: the union's members are the same number by two names.
    let count = unsafe { opts.__bindgen_anon_1.count } as usize;
    Ok(programs
        .into_iter()
        .zip(links)
        .take(count)
        .filter(|&(_, link)| link == 0)
        .map(|(program, _)| program)
        .collect())
}

/// Detaches `program` from a cgroup, a map or (tcx) an interface.
pub(super) fn detach(
    program: BorrowedFd<'_>,
    target: RawFd,
    attach_type: libbpf_sys::bpf_attach_type,
) -> io::Result<()> {
    // SAFETY: numbers.
    done(unsafe { libbpf_sys::bpf_prog_detach2(program.as_raw_fd(), target, attach_type) })
}

/// Takes `program` off an interface; fails when another one is there (XDP_FLAGS_REPLACE, Linux 5.7).
pub(super) fn xdp_detach(program: BorrowedFd<'_>, ifindex: i32, mode_flag: u32) -> io::Result<()> {
    let opts = libbpf_sys::bpf_xdp_attach_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_attach_opts>() as libbpf_sys::size_t,
        old_prog_fd: program.as_raw_fd(),
        ..Default::default()
    };
    // SAFETY: options of the size that they state.
    done(unsafe { libbpf_sys::bpf_xdp_detach(ifindex, mode_flag, &opts) })
}

/// The program that a process's perf event runs.
pub(super) fn program_of_event(pid: i32, fd: RawFd) -> Option<u32> {
    let mut name = [0_u8; 256];
    let mut len = name.len() as u32;
    let (mut id, mut kind, mut offset, mut address) = (0, 0, 0, 0);
    // SAFETY: room for a name of `len` bytes, and for one number each.
    let result = unsafe {
        libbpf_sys::bpf_task_fd_query(
            pid,
            fd,
            0,
            name.as_mut_ptr().cast(),
            &mut len,
            &mut id,
            &mut kind,
            &mut offset,
            &mut address,
        )
    };
    // A name that does not fit is ENOSPC, with everything else filled in.
    (result == 0 || result == -libc::ENOSPC).then_some(id)
}

/// What the kernel says to a program that asks for an io_uring of no entries: never Ok.
pub(super) fn io_uring_refusal() -> io::Error {
    // SAFETY: the kernel checks the pointer.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<libc::c_void>()) };
    debug_assert!(result < 0);
    io::Error::last_os_error()
}

/// Opens a cgroup by its id, which is its file handle (fs/kernfs/mount.c, kernfs_fh_to_dentry).
pub(super) fn open_cgroup(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    const FILEID_KERNFS: i32 = 0xfe;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: u64,
    }
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id };
    // SAFETY: a file handle with the 8 bytes that it states.
    owned(
        unsafe {
            libc::open_by_handle_at(
                mount.as_raw_fd(),
                std::ptr::from_mut(&mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        }
        .into(),
    )
}

/// Whether SIGHUP was ignored when this process began: nohup(1) does that, and shells for what shall outlive them.
pub(super) fn hangup_is_ignored() -> bool {
    // SAFETY: all zeros is a sigaction; without a new one, sigaction(2) only tells the old one.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut old) == 0
            && old.sa_sigaction == libc::SIG_IGN
    }
}

/// A write beyond the limit of a file's size fails then, as one to a full disk does, and kills nobody.
pub(super) fn ignore_file_size_signal() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler is set. It can't fail for this signal.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

/// Ignores SIGHUP.
pub(super) fn ignore_hangup() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no handler is set.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }?;
    Ok(())
}

/// Sets what happens on a signal.
///
/// # Safety
/// `handler` runs in a signal handler: it may only do what signal-safety(7) allows.
pub(super) unsafe fn on_signal(
    signal: nix::sys::signal::Signal,
    handler: extern "C" fn(libc::c_int),
) -> io::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the caller's promise.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}
