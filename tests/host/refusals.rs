// SPDX-License-Identifier: MIT OR Apache-2.0

//! Why BPF is refused, in each of the places where it is: the cause is named, with the status of what is not permitted.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::{fs, io};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};

use crate::support::{as_nobody, bpftk, public_copy, root, seccomp, stderr, stdout};

/// A place to run in: what it is called, how the child gets there, and what is to be said of it.
struct Place {
    name: &'static str,
    enter: fn() -> io::Result<()>,
    says: &'static str,
}

const PLACES: [Place; 4] = [
    Place { name: "user namespace", enter: user_namespace, says: "user namespace" },
    Place {
        name: "seccomp, EPERM",
        enter: || filtered(libc::EPERM),
        says: "seccomp filter of this process forbids",
    },
    Place {
        name: "seccomp, ENOSYS",
        enter: || filtered(libc::ENOSYS),
        says: "as if the kernel had none",
    },
    Place { name: "no /sys", enter: without_sys, says: "/sys is empty" },
];

/// Root of its own, with every capability in it.
fn user_namespace() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", "0 0 1")?;
    fs::write("/proc/self/gid_map", "0 0 1")
}

fn filtered(errno: i32) -> io::Result<()> {
    let action = libc::SECCOMP_RET_ERRNO | errno as u32;
    match seccomp::answer(libc::SYS_bpf, action, 0) {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn without_sys() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    Ok(mount(Some("none"), "/sys", Some("tmpfs"), MsFlags::empty(), none)?)
}

/// Before Linux 5.11, maps count against it; and without CAP_SYS_RESOURCE nobody raises it.
fn without_locked_memory() -> io::Result<()> {
    const SYS_RESOURCE: libc::c_ulong = 24;
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0)?;
    // SAFETY: takes numbers only.
    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, SYS_RESOURCE, 0, 0, 0) };
    Ok(())
}

fn run(args: &[&str], enter: fn() -> io::Result<()>) -> Output {
    let mut command = bpftk(args);
    // SAFETY: only system calls between fork and exec.
    unsafe { command.pre_exec(enter) };
    command.output().expect("bpftk runs")
}

const COMMANDS: [&[&str]; 7] = [
    &["tcpconnect", "-d", "100ms"],
    &["clone-trace", "-d", "100ms"],
    &["xdp-drop", "lo", "--proto", "250", "-d", "100ms"],
    &["tc-drop", "lo", "--proto", "250", "-d", "100ms"],
    &["tc-egress", "lo", "-d", "100ms"],
    &["sockredir", "preflight", "-d", "100ms"],
    &["filter", "check", "arp"],
];

#[test]
fn every_command_names_the_cause() {
    if !root() {
        return;
    }
    for (at, place) in PLACES.iter().enumerate() {
        // All of them ask in one place: in each place two, in the first all.
        let commands = if at == 0 { &COMMANDS[..] } else { &COMMANDS[2 * at - 1..2 * at + 1] };
        for args in commands {
            let output = run(args, place.enter);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(3), "{}: {args:?}: {text}", place.name);
            assert!(text.contains(place.says), "{}: {args:?}: {text}", place.name);
            assert!(output.stdout.is_empty(), "{}: {args:?}: {}", place.name, stdout(&output));
            assert_eq!(text.lines().count(), 1, "{}: {args:?}: {text}", place.name);
            for guess in ["memory", "libbpf", "MEMLOCK", "CONFIG_", "os error"] {
                assert!(!text.contains(guess), "{}: {args:?}: {text}", place.name);
            }
        }
    }
}

#[test]
fn doctor_names_the_cause() {
    if !root() {
        return;
    }
    for place in PLACES {
        let output = run(&["doctor", "--format", "json"], place.enter);
        let rows: Vec<serde_json::Value> =
            stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let row = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap();
        for name in ["bpf(2)", "tc-egress", "xdp-drop"] {
            let detail = row(name)["detail"].as_str().unwrap();
            assert!(detail.contains(place.says), "{}: {name}: {detail}", place.name);
        }
        assert_eq!(row("tcx")["status"], "not tried", "{}", place.name);
        assert_eq!(output.status.code(), Some(3), "{}: {}", place.name, stderr(&output));
    }
}

#[test]
fn locked_memory_is_named_where_it_counts() {
    if !root() {
        return;
    }
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let counts = (numbers.next(), numbers.next()) < (Some(5), Some(11));
    for args in [&COMMANDS[2], &COMMANDS[4]] {
        let output = run(args, without_locked_memory);
        let text = stderr(&output);
        if counts {
            assert_eq!(output.status.code(), Some(3), "{args:?}: {text}");
            assert!(text.contains("ulimit -l") && text.contains("0 KiB"), "{args:?}: {text}");
        } else {
            assert_eq!(output.status.code(), Some(0), "{args:?}: {text}");
        }
    }
}

/// A packet socket is no BPF, and is refused for the same reasons.
#[test]
fn a_capture_names_the_cause() {
    if !root() {
        return;
    }
    let args = ["filter", "capture", "lo", "arp", "-d", "100ms"];
    let output = run(&args, user_namespace);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("user namespace"), "{text}");
    let output = run(&args, || {
        match seccomp::answer(libc::SYS_socket, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    });
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("seccomp filter"), "{text}");
}

#[test]
fn nobody_is_told_which_capabilities() {
    if !root() {
        return;
    }
    let copy = public_copy();
    for args in [&COMMANDS[0], &COMMANDS[4]] {
        let mut command = Command::new(copy.path().join("bpftk"));
        let output = as_nobody(command.args(*args)).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {text}");
        assert!(text.contains("CAP_BPF") && text.contains("CAP_PERFMON"), "{args:?}: {text}");
    }
}
