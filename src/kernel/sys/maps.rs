// SPDX-License-Identifier: MIT OR Apache-2.0

//! Maps: made by hand, and written through memory.

use std::ffi::{CStr, c_void};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use libbpf_rs::libbpf_sys;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::from_libbpf;

/// `sizes` are those of a key and a value, and how many there may be. libbpf raises the limit of locked memory where
/// that counts, if it may.
pub(in crate::kernel) fn create(
    name: &CStr,
    kind: libbpf_sys::bpf_map_type,
    sizes: (u32, u32, u32),
    flags: u32,
) -> io::Result<OwnedFd> {
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        map_flags: flags,
        ..Default::default()
    };
    // SAFETY: a C string, and options of the size that they state.
    from_libbpf(unsafe {
        libbpf_sys::bpf_map_create(kind, name.as_ptr(), sizes.0, sizes.1, sizes.2, &opts)
    })
}

/// An array map's values, as memory.
#[derive(Debug)]
pub(in crate::kernel) struct MapMemory {
    start: NonNull<c_void>,
    length: usize,
}

/// Maps the first `length` bytes of an array's values (BPF_F_MMAPABLE). More than the array has is an error.
pub(in crate::kernel) fn map_memory(map: BorrowedFd<'_>, length: usize) -> io::Result<MapMemory> {
    let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a new mapping, at a place of the kernel's choice.
    let start = unsafe {
        mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, map, 0)
    }?;
    Ok(MapMemory { start, length })
}

impl MapMemory {
    /// For what no program sees yet: programs write without our knowledge.
    pub(in crate::kernel) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: mapped by `map_memory` for as long as `self` lives, and lent out only with it. Any bytes are u8.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.length) }
    }
}

impl Drop for MapMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map_memory`, and nobody has a slice of it any more.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
