// SPDX-License-Identifier: MIT OR Apache-2.0

//! What packet filters need: loading instructions as they are, running a program on a packet, a socket's classic filter.

use std::ffi::CStr;
use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libbpf_rs::libbpf_sys;

use super::{done, from_libbpf};
use crate::filter::classic;
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
    assert!(what.bytes.len().is_multiple_of(8), "an instruction is 8 bytes");
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

/// Whether an interface may take VLAN tags off before anybody sees the packet: ETHTOOL_GFLAGS, ETH_FLAG_RXVLAN of
/// include/uapi/linux/ethtool.h.
pub(crate) fn takes_tags_off(interface: &str) -> io::Result<bool> {
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETH_FLAG_RXVLAN: u32 = 1 << 8;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        data: u32,
    }
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)))?;
    let mut value = EthtoolValue { command: ETHTOOL_GFLAGS, data: 0 };
    // SAFETY: zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, &from) in request.ifr_name.iter_mut().zip(name) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: an ifreq with a name that ends in NUL, and a value as the command asks for, which the kernel fills in.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data & ETH_FLAG_RXVLAN != 0)
}
