// SPDX-License-Identifier: MIT OR Apache-2.0

//! Large sets of addresses in the kernel: bpf/addrset.bpf.h looks addresses up in what is loaded here.

mod image;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use libbpf_rs::{MapCore, MapFlags, libbpf_sys};

use self::image::{FEW, Image, Line, VERY_FEW};
use super::{refusal, sys};
use crate::net::ranges::Ranges;

/// A set that programs may be looking at.
#[derive(Debug, Default)]
pub(crate) struct AddrSet {
    /// Held until its successor is in place and no program can have it any more. The kernel lets go of a replaced map
    /// before it waits for the programs that use it, and waits before it returns to us.
    current: Option<OwnedFd>,
    bytes: usize,
}

impl AddrSet {
    /// Puts `ranges` in the place of what `outer` has at `which`. A program sees the old set or the new one, as a whole.
    pub(crate) fn replace(
        &mut self,
        outer: &impl MapCore,
        which: u32,
        ranges: &Ranges,
    ) -> Result<()> {
        self.put(outer, which, NewSet::new(ranges)?)
    }

    /// The same, with what was made before.
    pub(crate) fn put(&mut self, outer: &impl MapCore, which: u32, new: NewSet) -> Result<()> {
        outer
            .update(&which.to_ne_bytes(), &new.map.as_raw_fd().to_ne_bytes(), MapFlags::ANY)
            .context("cannot put the list of addresses in its place")?;
        self.current = Some(new.map);
        self.bytes = new.bytes;
        Ok(())
    }

    /// What the kernel holds for it.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A set in the kernel that no program looks at yet. To make it takes a second for a million ranges, in any thread.
#[derive(Debug)]
pub(crate) struct NewSet {
    map: OwnedFd,
    bytes: usize,
}

impl NewSet {
    pub(crate) fn new(ranges: &Ranges) -> Result<Self> {
        let image = Image::new(ranges, FEW);
        Self::by(image.lines(), |lines| image.write(lines))
    }

    fn by(lines: usize, write: impl FnOnce(&mut [Line])) -> Result<Self> {
        let bytes = lines * size_of::<Line>();
        let map = create(lines).map_err(|error| refused(&error, bytes))?;
        write_lines(map.as_fd(), bytes, write)?;
        Ok(Self { map, bytes })
    }
}

/// A set that stays as it is, in a map of a program's own (ADDRSET_MAP). Made for speed: IPv4 takes two steps, and 8 MiB for more
/// than a handful of ranges.
#[derive(Debug)]
pub(crate) struct FixedSet<'a>(Image<'a>);

impl<'a> FixedSet<'a> {
    pub(crate) fn new(ranges: &'a Ranges) -> Self {
        Self(Image::new(ranges, VERY_FEW))
    }

    /// How many entries the map has to have.
    pub(crate) fn lines(&self) -> u32 {
        // There are fewer addresses' boundaries than that in any memory.
        u32::try_from(self.0.lines()).unwrap_or(u32::MAX)
    }

    /// Once the map is there, and before programs look at it.
    pub(crate) fn write(&self, map: BorrowedFd<'_>) -> Result<()> {
        write_lines(map, self.0.lines() * size_of::<Line>(), |lines| self.0.write(lines))
    }
}

fn write_lines(map: BorrowedFd<'_>, bytes: usize, write: impl FnOnce(&mut [Line])) -> Result<()> {
    let mut memory = sys::maps::map_memory(map, bytes)
        .with_context(|| format!("cannot map the {} of the list of addresses", mebibytes(bytes)))?;
    let (chunks, rest) = memory.bytes().as_chunks_mut();
    debug_assert!(rest.is_empty());
    write(chunks);
    Ok(())
}

/// BPF_F_INNER_MAP, Linux 5.10: the next one may have another size. BPF_F_MMAPABLE, 5.5: written without system calls.
fn create(lines: usize) -> io::Result<OwnedFd> {
    let lines = u32::try_from(lines).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    sys::maps::create(
        c"bpftk_addrset",
        libbpf_sys::BPF_MAP_TYPE_ARRAY,
        (size_of::<u32>() as u32, size_of::<Line>() as u32, lines),
        libbpf_sys::BPF_F_INNER_MAP | libbpf_sys::BPF_F_MMAPABLE,
    )
}

fn refused(error: &io::Error, bytes: usize) -> anyhow::Error {
    let size = mebibytes(bytes);
    match error.raw_os_error() {
        // The object's other maps exist by now: it isn't BPF that is forbidden.
        Some(libc::EPERM) => {
            let needs =
                format!("the list of addresses needs {size} in the kernel, which it refuses");
            refusal::of_error(error).unwrap_or_else(|| anyhow!("{error}")).context(needs)
        }
        Some(libc::ENOMEM | libc::E2BIG) => {
            anyhow!("the list of addresses needs {size} in the kernel: {error}")
        }
        _ => anyhow!("cannot make a map of {size} for the list of addresses: {error}"),
    }
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
