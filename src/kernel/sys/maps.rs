// SPDX-License-Identifier: MIT OR Apache-2.0

//! Maps: made by hand, and written through memory.

use std::ffi::{CStr, c_void};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use libbpf_rs::libbpf_sys;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{done, from_libbpf};

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

/// An array of one map, which is to be like `inner`.
pub(in crate::kernel) fn create_of_maps(name: &CStr, inner: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let opts = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        inner_map_fd: inner.as_raw_fd() as u32,
        ..Default::default()
    };
    // SAFETY: a C string, and options of the size that they state.
    from_libbpf(unsafe {
        libbpf_sys::bpf_map_create(
            libbpf_sys::BPF_MAP_TYPE_ARRAY_OF_MAPS,
            name.as_ptr(),
            4,
            4,
            1,
            &opts,
        )
    })
}

/// Sets one entry of a map that was made here, with keys and values of the sizes that these have.
pub(in crate::kernel) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    // SAFETY: `create` and `create_of_maps` are told the sizes, and their callers give the same here.
    done(unsafe {
        libbpf_sys::bpf_map_update_elem(
            map.as_raw_fd(),
            key.as_ptr().cast(),
            value.as_ptr().cast(),
            libbpf_sys::BPF_ANY.into(),
        )
    })
}

/// Empties a hash map, and hands over its keys and values. Exact if nobody writes meanwhile. Linux 5.6.
pub(in crate::kernel) fn take_all(
    map: BorrowedFd<'_>,
    key_size: usize,
    value_size: usize,
    mut take: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    /// Where the kernel goes on: the number of a bucket.
    type Position = u32;
    let mut room: usize = 4096;
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut position: Option<Position> = None;
    loop {
        keys.resize(room * key_size, 0_u8);
        values.resize(room * value_size, 0_u8);
        let mut count = room as u32;
        let mut next: Position = 0;
        let from = position.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut);
        // SAFETY: room for `count` keys and values of the sizes that the caller vouches for, and a position to read and one to write.
        let result = unsafe {
            libbpf_sys::bpf_map_lookup_and_delete_batch(
                map.as_raw_fd(),
                from.cast(),
                (&raw mut next).cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        };
        match result {
            0 => {}
            // The end: what came with it counts.
            error if error == -libc::ENOENT => {}
            // One bucket has more than there is room for; nothing was taken.
            error if error == -libc::ENOSPC => {
                room *= 2;
                continue;
            }
            error if error == -libc::EINTR => continue,
            error => return Err(io::Error::from_raw_os_error(-error)),
        }
        let keys = keys.chunks_exact(key_size);
        let values = values.chunks_exact(value_size);
        keys.zip(values).take(count as usize).for_each(|(key, value)| take(key, value));
        if result != 0 {
            return Ok(());
        }
        position = Some(next);
    }
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
