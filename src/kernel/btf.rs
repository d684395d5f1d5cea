// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's type information, which every CO-RE program is fitted to when it is loaded.

use std::path::{Path, PathBuf};

use anyhow::Result;
use libbpf_rs::ObjectBuilder;
use libbpf_rs::btf::Btf;

use crate::error::{unsupported, usage};
use crate::kernel::log;

pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Where the types come from: the kernel, or `--btf FILE`.
#[derive(Clone, Debug, Default)]
pub(crate) struct BtfSource(Option<PathBuf>);

impl BtfSource {
    /// Checks that there is something to take types from.
    pub(crate) fn new(file: Option<&Path>) -> Result<Self> {
        let Some(file) = file else {
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
            let cause = match std::fs::metadata(file) {
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

    pub(crate) fn apply(&self, builder: &mut ObjectBuilder) -> Result<()> {
        if let Some(file) = &self.0 {
            builder.btf_custom_path(file)?;
        }
        Ok(())
    }
}
