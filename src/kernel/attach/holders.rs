// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whose a program is: the processes that have it, or a link of it, open.

use std::fs;
use std::os::fd::AsFd;

use crate::kernel::sys;

/// What can be told of somebody's program: `7 "name", of process 123 (comm)`.
pub(super) fn describe(program: u32) -> String {
    let name = sys::program_by_id(program)
        .and_then(|program| sys::program_info(program.as_fd()))
        .map(|info| format!(" `{}`", info.name))
        .unwrap_or_default();
    let holders = holders(program);
    let of = match holders.as_slice() {
        [] => "which no process has open".to_string(),
        [one] => format!("of process {one}"),
        several => format!("of processes {}", several.join(", ")),
    };
    format!("program {program}{name}, {of}")
}

/// Processes that we may look into, by id and name.
fn holders(program: u32) -> Vec<String> {
    let line = format!("prog_id:\t{program}");
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let has_it = pid != std::process::id()
            && fs::read_dir(process.path().join("fdinfo")).is_ok_and(|files| {
                files.flatten().any(|file| {
                    fs::read_to_string(file.path())
                        .is_ok_and(|info| info.lines().any(|found| found == line))
                })
            });
        if has_it {
            let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{pid} ({})", crate::output::printable(comm.trim_end())));
        }
    }
    found
}
