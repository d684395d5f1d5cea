// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's type information, which every CO-RE program is fitted to when it is loaded.

mod minimal;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libbpf_rs::ObjectBuilder;
use libbpf_rs::btf::Btf;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::error::{unsupported, usage};
use crate::kernel::sys::btf::KernelBtf;
use crate::kernel::{log, refusal};

pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Where the types come from: the kernel, or `--btf FILE`.
#[derive(Clone, Debug, Default)]
pub(crate) struct BtfSource(Option<PathBuf>);

/// The types for one object. Must live until the object is loaded.
#[derive(Debug)]
pub(crate) struct Types {
    /// Keeps the file whose path libbpf was given.
    _file: Option<fs::File>,
    /// Ids of what tracing programs attach to, by which they name it. Empty when libbpf is to look them up.
    pub(crate) targets: HashMap<String, u32>,
}

impl BtfSource {
    /// Checks that there is something to take types from.
    pub(crate) fn new(file: Option<&Path>) -> Result<Self> {
        let Some(file) = file else {
            refusal::sysfs()?;
            if !Path::new(VMLINUX).exists() {
                return Err(unsupported(format!(
                    "this kernel has no BTF ({VMLINUX}, CONFIG_DEBUG_INFO_BTF); \
                     give a file that was made for it with --btf"
                )));
            }
            return Ok(Self(None));
        };
        log::clear();
        if let Err(error) = Btf::from_path(file) {
            let cause = match fs::metadata(file) {
                Err(error) => error.to_string(),
                Ok(_) => {
                    log::explain(error);
                    "not BTF; expected raw BTF or an ELF file with a .BTF section".to_string()
                }
            };
            return Err(usage(format!("--btf {}: {cause}", file.display())));
        }
        Ok(Self(Some(file.into())))
    }

    /// Tells libbpf where an object's types are. `types` are the names that build.rs found in its relocations,
    /// `targets` what its tracing programs attach to (`minimal::find`).
    pub(crate) fn apply(
        &self,
        builder: &mut ObjectBuilder,
        types: &str,
        targets: &[&str],
    ) -> Result<Types> {
        if let Some(file) = &self.0 {
            builder.btf_custom_path(file)?;
            return Ok(Types { _file: None, targets: HashMap::new() });
        }
        let wanted: Vec<&str> = types.lines().collect();
        let found = KernelBtf::new(Path::new(VMLINUX))
            .and_then(|data| minimal::find(&data, &wanted, targets));
        let Some(found) = found else {
            // Unknown to us is not unknown to libbpf, which reads the whole.
            return Ok(Types { _file: None, targets: HashMap::new() });
        };
        let mut file = fs::File::from(
            memfd_create(c"bpftk-btf", MFdFlags::MFD_CLOEXEC)
                .context("cannot make a file in memory")?,
        );
        file.write_all(&found.btf).context("cannot write to a file in memory")?;
        builder.btf_custom_path(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        Ok(Types { _file: Some(file), targets: found.targets })
    }
}
