// SPDX-License-Identifier: MIT OR Apache-2.0

//! What an actor can do: the system calls, as plain as they come.

use std::ffi::c_void;

pub(super) const STACK: usize = 64 * 1024;

/// The child returns 0 from the call, as the caller gets an id or a negative errno.
pub(super) fn raw(number: libc::c_long, args: [u64; 5]) -> i64 {
    // SAFETY: the callers pass what the system call expects; none asks for shared memory without a stack.
    let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4]) };
    if result < 0 { -i64::from(nix::errno::Errno::last_raw()) } else { result }
}

pub(super) fn exit_now() -> ! {
    // SAFETY: ends the process, without anybody's clean-up.
    unsafe { libc::_exit(0) }
}

pub(super) fn reap(pid: i64) {
    // SAFETY: no status is asked for. `__WALL` is for children that send no SIGCHLD.
    unsafe { libc::waitpid(pid as i32, std::ptr::null_mut(), libc::__WALL) };
}

/// clone with these flags and no stack: a copy, which ends at once. Returns what the call returned.
pub(super) fn clone_exit(flags: u64) -> i64 {
    let child = raw(libc::SYS_clone, [flags, 0, 0, 0, 0]);
    if child == 0 {
        exit_now();
    }
    if child > 0 {
        reap(child);
    }
    child
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct CloneArgs {
    pub(super) flags: u64,
    pub(super) pidfd: u64,
    pub(super) child_tid: u64,
    pub(super) parent_tid: u64,
    pub(super) exit_signal: u64,
    pub(super) stack: u64,
    pub(super) stack_size: u64,
    pub(super) tls: u64,
    pub(super) set_tid: u64,
    pub(super) set_tid_size: u64,
    pub(super) cgroup: u64,
}

pub(super) fn clone3_sized(args: *const CloneArgs, size: u64) -> i64 {
    let child = raw(libc::SYS_clone3, [args as u64, size, 0, 0, 0]);
    if child == 0 {
        exit_now();
    }
    if child > 0 {
        reap(child);
    }
    child
}

pub(super) fn clone3(args: &CloneArgs) -> i64 {
    clone3_sized(args, size_of::<CloneArgs>() as u64)
}

pub(super) extern "C" fn end(_: *mut c_void) -> libc::c_int {
    0
}

/// A child in the caller's memory, on a stack of its own, that runs `child`.
pub(super) fn clone_vm(
    flags: libc::c_int,
    child: extern "C" fn(*mut c_void) -> libc::c_int,
    arg: i32,
) -> i64 {
    let mut stack = vec![0_u8; STACK];
    // SAFETY: the child ends before the stack is freed: the caller waits for it in the call.
    unsafe {
        let top = stack.as_mut_ptr().add(STACK).cast::<c_void>();
        let pid = libc::clone(child, top, flags | libc::CLONE_VM, arg as usize as *mut c_void);
        i64::from(pid)
    }
}

pub(super) fn vfork_like() -> i64 {
    let child = clone_vm(libc::CLONE_VFORK | libc::SIGCHLD, end, 0);
    reap(child);
    child
}

/// The real fork(2), where there is one.
#[cfg(target_arch = "x86_64")]
pub(super) fn fork() -> i64 {
    let child = raw(libc::SYS_fork, [0; 5]);
    if child == 0 {
        exit_now();
    }
    reap(child);
    child
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[allow(deprecated)]
pub(super) fn vfork() -> i64 {
    // SAFETY: the child only exits.
    let child = unsafe { libc::vfork() };
    if child == 0 {
        exit_now();
    }
    reap(child.into());
    child.into()
}

/// The actor's children are followed by their name.
pub(super) fn call_me(name: &str) {
    let name = std::ffi::CString::new(name).unwrap();
    // SAFETY: a C string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

pub(super) fn pipe() -> [i32; 2] {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(fds.as_mut_ptr()) }, 0);
    fds
}
