// SPDX-License-Identifier: MIT OR Apache-2.0

//! Every socket that a process has open, by asking the kernel: bpf/owners_files.bpf.c.

use std::fmt;
use std::io::Read;
use std::mem::MaybeUninit;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Iter, Link};

use super::{RECORD_LEN, Record};
use crate::kernel::btf::BtfSource;
use crate::kernel::refusal;
use crate::kernel::skel::owners_files::{OwnersFilesSkel, OwnersFilesSkelBuilder, RELOCATED_TYPES};
use crate::kernel::{attach, log};

/// A question that can be asked again and again.
pub(super) struct Files {
    /// Dropped before the program.
    link: Link,
    _skel: OwnersFilesSkel<'static>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

impl Files {
    pub(super) fn load(btf: &BtfSource) -> Result<Self> {
        let mut builder = OwnersFilesSkelBuilder::default();
        let _types = btf.apply(&mut builder.obj_builder, RELOCATED_TYPES, &[])?;
        log::clear();
        // The skeleton borrows this cell for as long as it lives; it is a pointer's size.
        let cell = Box::leak(Box::new(MaybeUninit::uninit()));
        let skel = builder
            .open(cell)
            .map_err(|error| anyhow!("cannot open the program: {}", log::explain(error)))?
            .load()
            .map_err(|error| refusal::of_load("the kernel refuses the program", error))?;
        let link = attach::auto(&skel.progs.bpftk_files)?;
        Ok(Self { link, _skel: skel })
    }

    /// Goes through all files of all processes.
    pub(super) fn ask(&self, mut each: impl FnMut(Record)) -> Result<()> {
        let mut files = Iter::new(&self.link).context("cannot go through the open files")?;
        let mut bytes = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        loop {
            let read = match files.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("cannot go through the open files"),
            };
            bytes.extend_from_slice(&chunk[..read]);
            // A read may end in the middle of a record.
            let whole = bytes.len() - bytes.len() % RECORD_LEN;
            for record in bytes[..whole].chunks_exact(RECORD_LEN).filter_map(Record::decode) {
                each(record);
            }
            bytes.drain(..whole);
        }
    }
}
