// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs that the tests load, attach and leave behind.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use libbpf_rs::libbpf_sys;

/// A name that is bpftk's, and no other test's.
pub(super) fn ours(what: &str) -> String {
    format!("bpftk_{what}{:x}", std::process::id())
}

/// Loads a program `r0 = verdict; exit`.
pub(super) fn load(kind: libbpf_sys::bpf_prog_type, name: &str, verdict: u32) -> OwnedFd {
    let instructions: [u64; 2] = [0xb7 | u64::from(verdict) << 32, 0x95];
    let name = CString::new(name).unwrap();
    // SAFETY: two instructions of 8 bytes, C strings, no options.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
            name.as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            instructions.as_ptr().cast(),
            2,
            std::ptr::null_mut(),
        )
    };
    assert!(fd >= 0, "{name:?} loads: {fd}");
    // SAFETY: libbpf just returned it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(super) fn load_tc(name: &str) -> OwnedFd {
    // TC_ACT_UNSPEC: on to the next filter.
    load(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, name, u32::MAX)
}

pub(super) fn load_xdp(name: &str) -> OwnedFd {
    load(libbpf_sys::BPF_PROG_TYPE_XDP, name, 2)
}

pub(super) fn id(program: &OwnedFd) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
    line.unwrap().trim().parse().unwrap()
}

pub(super) fn loaded(id: u64) -> bool {
    // SAFETY: a number.
    let fd = unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id as u32) };
    if fd < 0 {
        return false;
    }
    // SAFETY: libbpf just returned it, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    true
}

/// The kernel lets go of a program some time after its last holder.
pub(super) fn gone(id: u64) -> bool {
    for _ in 0..200 {
        if !loaded(id) {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

pub(super) fn ifindex(name: &str) -> i32 {
    // Not from sysfs, which shows the namespace that it was mounted in.
    let text = show_ip(&format!("-o link show dev {name}"));
    text.split(':').next().unwrap().trim().parse().unwrap()
}

pub(super) fn show_ip(args: &str) -> String {
    command("ip", args)
}

pub(super) fn command(program: &str, args: &str) -> String {
    let output = Command::new(program).args(args.split_whitespace()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Attaches by clsact, as an older kernel's bpftk does, in the calling thread's namespace. Tells handle and priority;
/// those that are 0 the kernel chooses.
pub(super) fn attach_tc_at(
    name: &str,
    direction: libbpf_sys::bpf_tc_attach_point,
    program: &OwnedFd,
    (handle, priority): (u32, u32),
) -> (u32, u32) {
    let mut hook = libbpf_sys::bpf_tc_hook {
        sz: size_of::<libbpf_sys::bpf_tc_hook>() as _,
        ifindex: ifindex(name),
        attach_point: direction,
        ..Default::default()
    };
    let mut opts = libbpf_sys::bpf_tc_opts {
        sz: size_of::<libbpf_sys::bpf_tc_opts>() as _,
        prog_fd: program.as_raw_fd(),
        handle,
        priority,
        ..Default::default()
    };
    // SAFETY: options of the sizes that they state. The qdisc may be there already.
    let result = unsafe {
        libbpf_sys::bpf_tc_hook_create(&mut hook);
        libbpf_sys::bpf_tc_attach(&hook, &mut opts)
    };
    assert_eq!(result, 0, "the filter is attached");
    (opts.handle, opts.priority)
}

pub(super) fn attach_tc(
    name: &str,
    direction: libbpf_sys::bpf_tc_attach_point,
    program: &OwnedFd,
) -> u32 {
    attach_tc_at(name, direction, program, (0, 0)).1
}

/// Attaches to the interface without a link.
pub(super) fn attach_xdp(name: &str, program: &OwnedFd) {
    const XDP_FLAGS_SKB_MODE: u32 = 2;
    // SAFETY: numbers, no options.
    let result = unsafe {
        libbpf_sys::bpf_xdp_attach(
            ifindex(name),
            program.as_raw_fd(),
            XDP_FLAGS_SKB_MODE,
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "the program is attached");
}

/// Attaches to the loopback by a link.
pub(super) fn link_to_lo(program: &OwnedFd) -> OwnedFd {
    // SAFETY: numbers, no options.
    let fd = unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), 1, libbpf_sys::BPF_XDP, std::ptr::null())
    };
    assert!(fd >= 0, "the link is made: {fd}");
    // SAFETY: libbpf just returned it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub(super) fn pin(program: &OwnedFd, path: &Path) {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a C string.
    let result = unsafe { libbpf_sys::bpf_obj_pin(program.as_raw_fd(), path.as_ptr()) };
    assert_eq!(result, 0, "{path:?} is pinned");
}

/// libbpf tells of what is not an error; the tests' output is not the place.
pub(super) fn quiet() {
    libbpf_rs::set_print(None);
}

/// Ids of the programs that a process has open.
pub(super) fn programs_of(pid: u32) -> Vec<u64> {
    fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .unwrap()
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.ok()?.path()).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("prog_id:"))?;
            line.trim().parse().ok()
        })
        .collect()
}
