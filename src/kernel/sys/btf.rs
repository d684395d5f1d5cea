// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's own BTF, some megabytes, with as little copying as this kernel allows.

use std::ffi::c_void;
use std::fs::{self, File};
use std::mem::size_of;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;

use libbpf_rs::libbpf_sys;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::from_libbpf;

/// As bytes.
#[derive(Debug)]
pub(in crate::kernel) enum KernelBtf {
    Mapped(Mapping),
    Copied(Vec<u8>),
}

/// The kernel's memory itself.
#[derive(Debug)]
pub(in crate::kernel) struct Mapping {
    start: NonNull<c_void>,
    length: usize,
}

impl KernelBtf {
    /// By the first way that works. `file` is where sysfs has it; to read it takes a system call a page.
    pub(in crate::kernel) fn new(file: &Path) -> Option<Self> {
        mapped(file)
            .map(Self::Mapped)
            .or_else(|| copied().or_else(|| fs::read(file).ok()).map(Self::Copied))
    }
}

impl Deref for KernelBtf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Copied(bytes) => bytes,
            // SAFETY: mapped by `mapped` for as long as `self` lives; read-only, and the kernel never changes its BTF.
            Self::Mapped(mapping) => unsafe {
                std::slice::from_raw_parts(mapping.start.as_ptr().cast(), mapping.length)
            },
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `mapped`, and nobody has a slice of it any more.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

/// kernel/bpf/sysfs_btf.c: Linux 6.18 has it, 6.12 refuses.
fn mapped(file: &Path) -> Option<Mapping> {
    let file = File::open(file).ok()?;
    let size = NonZeroUsize::new(usize::try_from(file.metadata().ok()?.len()).ok()?)?;
    // SAFETY: a new mapping, at a place of the kernel's choice.
    let start =
        unsafe { mmap(None, size, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, &file, 0) }.ok()?;
    Some(Mapping { start, length: size.get() })
}

/// A copy, by asking for the object instead of the file. `None` where that isn't to be had (Linux 5.11, CAP_SYS_ADMIN).
fn copied() -> Option<Vec<u8>> {
    // The kernel registers its own first (kernel/bpf/btf.c, btf_vmlinux_init).
    const FIRST: u32 = 1;
    // SAFETY: a number in, a descriptor or a negative error out.
    let fd = from_libbpf(unsafe { libbpf_sys::bpf_btf_get_fd_by_id(FIRST) }).ok()?;
    let mut name = [0_u8; 16];
    let mut info = libbpf_sys::bpf_btf_info {
        name: name.as_mut_ptr() as u64,
        name_len: name.len() as u32,
        ..Default::default()
    };
    let mut length = size_of::<libbpf_sys::bpf_btf_info>() as u32;
    // SAFETY: `info` and its length; the kernel writes a name into `name`, of the length that is stated.
    let asked =
        unsafe { libbpf_sys::bpf_btf_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut length) };
    if asked != 0 || info.kernel_btf == 0 || !name.starts_with(b"vmlinux\0") {
        return None;
    }
    let mut data = Vec::with_capacity(info.btf_size as usize);
    let capacity = info.btf_size;
    info = libbpf_sys::bpf_btf_info {
        btf: data.as_mut_ptr() as u64,
        btf_size: capacity,
        ..Default::default()
    };
    // SAFETY: as above; the kernel writes at most `capacity` bytes into `data`, which has room for them.
    let copied =
        unsafe { libbpf_sys::bpf_btf_get_info_by_fd(fd.as_raw_fd(), &mut info, &mut length) };
    if copied != 0 || info.btf_size != capacity {
        return None;
    }
    // SAFETY: the kernel has filled in that many bytes.
    unsafe { data.set_len(capacity as usize) };
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::VMLINUX;

    /// Every way there is gives the same bytes, and there is each where it was seen to be.
    #[test]
    fn all_ways_give_the_same() {
        let Ok(read) = fs::read(VMLINUX) else {
            println!("SKIP this kernel has no BTF");
            return;
        };
        let name = nix::sys::utsname::uname().unwrap();
        let release = name.release().to_str().unwrap();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap());
        let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
        match mapped(Path::new(VMLINUX)) {
            Some(mapping) => assert!(*KernelBtf::Mapped(mapping) == read[..]),
            None => assert!(version < (6, 18), "{release} does not map its BTF"),
        }
        // CAP_SYS_ADMIN.
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        match copied() {
            Some(copy) => assert!(copy == read),
            None => assert!(version < (6, 1), "{release} does not give its BTF as an object"),
        }
    }
}
