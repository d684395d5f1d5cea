// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can't be taken back: by its name the last module to run, and only in a guest of the kernel matrix.

use std::fs;

use crate::support::{output, stderr};

#[test]
fn lockdown_is_explained() {
    if std::env::var_os("BPFTK_VM").is_none() {
        println!("SKIP locks the kernel down for good: only in a guest of the kernel matrix");
        return;
    }
    let path = "/sys/kernel/security/lockdown";
    if fs::write(path, "confidentiality").is_err() {
        println!("SKIP this kernel has no lockdown");
        return;
    }
    let output = output(&["tcpconnect", "-d", "10ms"]);
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(stderr(&output).contains("locked down (confidentiality)"), "{}", stderr(&output));
}
