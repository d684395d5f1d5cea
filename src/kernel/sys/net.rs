// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs on interfaces.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libbpf_rs::libbpf_sys;

use super::from_libbpf;

/// Attaches a program to an interface by link. `flags` are XDP_FLAGS_* or, of tcx, BPF_F_BEFORE and BPF_F_AFTER.
pub(in crate::kernel) fn link_to_interface(
    program: BorrowedFd<'_>,
    ifindex: i32,
    attach_type: libbpf_sys::bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let opts = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags,
        ..Default::default()
    };
    // SAFETY: options of the size that they state, all zero but for the flags.
    from_libbpf(unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, attach_type, &opts)
    })
}

/// Whether a link that was made to an interface still runs its program there. Who detaches it by force, or removes the
/// interface, leaves the link with the interface 0.
pub(in crate::kernel) fn link_is_attached(link: BorrowedFd<'_>) -> io::Result<bool> {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut size = size_of::<libbpf_sys::bpf_link_info>() as u32;
    // SAFETY: room of the size that is stated, which the kernel fills as far as it knows it.
    let result = unsafe {
        libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &raw mut info, &raw mut size)
    };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: of both kinds of links the union begins with the interface.
    Ok(unsafe { info.__bindgen_anon_1.xdp.ifindex } != 0)
}

/// Whether XDP programs may say that they can do with packets in several buffers (Linux 5.18).
pub(in crate::kernel) fn xdp_knows_frags() -> bool {
    let instructions: [u64; 2] = [0xb7, 0x95];
    let mut opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        prog_flags: libbpf_sys::BPF_F_XDP_HAS_FRAGS,
        attempts: 1,
        ..Default::default()
    };
    // SAFETY: two instructions of 8 bytes, C strings, and options of the size that they state.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_XDP,
            c"bpftk_probe".as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            instructions.as_ptr().cast(),
            instructions.len() as libbpf_sys::size_t,
            &mut opts,
        )
    };
    from_libbpf(fd).is_ok()
}

/// Of a program that can do with packets in several buffers.
pub(in crate::kernel) const XDP_HAS_FRAGS: u32 = libbpf_sys::BPF_F_XDP_HAS_FRAGS;
