// SPDX-License-Identifier: MIT OR Apache-2.0

//! Seccomp filters of a test's own process.

/// From now on, seccomp answers this system call by `action` (include/uapi/linux/seccomp.h) and allows all others. Returns
/// what seccomp(2) does with these flags: 0, or the listener's descriptor.
pub(crate) fn answer(number: libc::c_long, action: u32, flags: libc::c_ulong) -> i64 {
    let mut code = [
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: number as u32 },
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
