// SPDX-License-Identifier: MIT OR Apache-2.0

//! Each command works with the capabilities that the README names for it and no others, and names the one that is missing.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::{fs, io};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use crate::support::{Cgroup, Netns, bpftk, emulated, output, root, stderr, stdout};

/// include/uapi/linux/capability.h
const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const NET_RAW: (u32, &str) = (13, "CAP_NET_RAW");
const SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");
const PERFMON: (u32, &str) = (38, "CAP_PERFMON");
const BPF: (u32, &str) = (39, "CAP_BPF");

type Cap = (u32, &'static str);

/// Still root by number, but of what root may do only this. With a tracefs, which takes more to mount.
fn with_only<'a>(command: &'a mut Command, caps: &[Cap]) -> &'a mut Command {
    let wanted: Vec<u32> = caps.iter().map(|(cap, _)| *cap).collect();
    let limit = move || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
        let (tracefs, place) = ("tracefs", "/sys/kernel/tracing");
        match mount(Some(tracefs), place, Some(tracefs), MsFlags::empty(), None::<&str>) {
            // It is there already.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(error) => return Err(error.into()),
        }
        // Linux before 5.11 counts maps against it, and it takes another capability to raise it.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        for cap in (0..64).filter(|cap| !wanted.contains(cap)) {
            // SAFETY: takes numbers only; one that this kernel doesn't know is refused.
            unsafe { nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, cap, 0, 0, 0) };
        }
        Ok(())
    };
    // SAFETY: only system calls between fork and exec.
    unsafe { command.pre_exec(limit) }
}

fn run(netns: &Netns, args: &[&str], caps: &[Cap]) -> Output {
    netns.run(|| with_only(&mut bpftk(args), caps).output().unwrap())
}

/// kernel.perf_event_paranoid, put back at the end.
struct Paranoid(String);

impl Paranoid {
    const FILE: &str = "/proc/sys/kernel/perf_event_paranoid";

    fn read() -> Self {
        Self(fs::read_to_string(Self::FILE).unwrap().trim().to_string())
    }

    /// A level that Linux doesn't have, at which perf is for CAP_SYS_ADMIN.
    fn wants_more(&self) -> bool {
        self.0.parse::<i32>().unwrap() > 2
    }

    fn set(&self, level: &str) {
        fs::write(Self::FILE, level).unwrap();
    }
}

impl Drop for Paranoid {
    fn drop(&mut self) {
        let _ = fs::write(Self::FILE, &self.0);
    }
}

#[test]
fn what_is_named_is_needed_and_enough() {
    if !root() {
        return;
    }
    let netns = Netns::new();
    let status = netns.run(|| {
        with_only(Command::new("cat").arg("/proc/self/status"), &[BPF, NET_RAW]).output().unwrap()
    });
    let held = format!("CapEff:\t{:016x}", 1_u64 << BPF.0 | 1 << NET_RAW.0);
    assert!(stdout(&status).contains(&held), "{}", stdout(&status));

    let cgroup = Cgroup::new("capabilities");
    let path = cgroup.as_ref().map(|cgroup| cgroup.path().to_str().unwrap());
    let short = ["-d", "200ms"];
    let mut cases: Vec<(Vec<&str>, Vec<Cap>)> = vec![
        (vec!["tcpconnect"], vec![BPF, PERFMON]),
        (vec!["clone-trace"], vec![BPF, PERFMON]),
        (vec!["xdp-drop", "lo"], vec![BPF, PERFMON, NET_ADMIN]),
        (vec!["tc-drop", "lo", "--direction", "both"], vec![BPF, PERFMON, NET_ADMIN]),
        (vec!["xdp-drop", "lo", "udp port 9 and len > 60"], vec![BPF, PERFMON, NET_ADMIN]),
        (vec!["tc-egress", "lo"], vec![BPF, PERFMON, NET_ADMIN]),
        (vec!["tc-egress", "lo", "--events"], vec![BPF, PERFMON, NET_ADMIN]),
        (vec!["filter", "capture", "lo", "arp"], vec![NET_RAW]),
    ];
    if let Some(path) = path {
        cases.push((vec!["tcpconnect", "--dns"], vec![BPF, PERFMON, NET_ADMIN]));
        cases.push((vec!["tc-egress", "lo", "--by", "process"], vec![BPF, PERFMON, NET_ADMIN]));
        cases.push((vec!["tc-egress", "lo", "--names"], vec![BPF, PERFMON, NET_ADMIN]));
        cases
            .push((vec!["tc-egress", "lo", "--block", "192.0.2.1"], vec![BPF, PERFMON, NET_ADMIN]));
        let args = vec!["sockredir", "--cgroup", path, "--force"];
        // Before Linux 6.1 it never runs.
        if output(&[&args[..], &["-d", "10ms"]].concat()).status.code() != Some(4) {
            cases.push((args, vec![BPF, PERFMON, NET_ADMIN]));
        }
    }
    for (args, _) in &mut cases {
        args.extend(short);
    }
    cases.push((vec!["filter", "check", "udp port 9"], vec![BPF, PERFMON, NET_ADMIN]));
    let paranoid = Paranoid::read();
    if paranoid.wants_more() {
        // Debian's kernels, until they are told not to.
        for command in ["clone-trace", "tcpconnect"] {
            let backend = if command == "clone-trace" { "syscall" } else { "tracepoint" };
            let output = run(&netns, &[command, "--backend", backend, "-d", "1s"], &[BPF, PERFMON]);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(3), "{text}");
            assert!(text.contains(SYS_ADMIN.1) && text.contains("perf_event_paranoid"), "{text}");
        }
        if !emulated() {
            println!("SKIP kernel.perf_event_paranoid is this machine's to set");
            return;
        }
        paranoid.set("2");
    }
    for (args, caps) in cases {
        let output = run(&netns, &args, &caps);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        for missing in &caps {
            let rest: Vec<Cap> = caps.iter().filter(|cap| *cap != missing).copied().collect();
            let output = run(&netns, &args, &rest);
            let text = stderr(&output);
            let last = text.lines().last().unwrap_or_default();
            assert_eq!(output.status.code(), Some(3), "{args:?} without {missing:?}: {text}");
            assert!(last.contains(missing.1), "{args:?} without {missing:?}: {text}");
            assert!(rest.iter().all(|(_, name)| !last.contains(name)), "{args:?}: {text}");
        }
    }
}

/// It lacks what trying takes, not what the commands take: that is told apart.
#[test]
fn doctor_tells_what_it_could_not_try() {
    if !root() {
        return;
    }
    let netns = Netns::new();
    let args = ["doctor", "--format", "json"];
    let output = run(&netns, &args, &[BPF, PERFMON, NET_ADMIN]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let lines: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let command = |name: &str| {
        lines.iter().find(|line| line["table"] == "command" && line["name"] == name).unwrap()
    };
    let status = if Paranoid::read().wants_more() { "unavailable" } else { "ok" };
    let tracing = command("clone-trace");
    assert_eq!(tracing["status"], status, "{tracing}");
    for name in ["xdp-drop", "tc-drop", "tc-egress"] {
        let line = command(name);
        assert_eq!(line["status"], "not tried", "{line}");
        assert!(line["detail"].as_str().unwrap().contains(SYS_ADMIN.1), "{line}");
    }
    assert_eq!(lines.last().unwrap()["not_tried"], 3, "{lines:?}");
    let told = stderr(&run(&netns, &["doctor"], &[BPF, PERFMON, NET_ADMIN]));
    assert!(told.contains("not tried: xdp-drop, tc-drop, tc-egress"), "{told}");
}
