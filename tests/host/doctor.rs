// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk doctor`: what it says of the machine is true, and it removes what nobody owns, and nothing else.

use std::ffi::CString;
use std::fs::{self, File};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Mutex, MutexGuard, mpsc};
use std::thread;

use libbpf_rs::libbpf_sys;
use serde_json::Value;

use crate::support::{self, Netns, Running, ip};

/// What one test leaves behind another's `--cleanup` would take.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A name that is bpftk's, and no other test's.
fn ours(what: &str) -> String {
    format!("bpftk_{what}{:x}", std::process::id())
}

/// Loads a program `r0 = verdict; exit`.
fn load(kind: libbpf_sys::bpf_prog_type, name: &str, verdict: u32) -> OwnedFd {
    let instructions: [u64; 2] = [0xb7 | u64::from(verdict) << 32, 0x95];
    let name = CString::new(name).unwrap();
    // SAFETY: two instructions of 8 bytes, C strings, no options.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
            name.as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            instructions.as_ptr().cast(),
            2,
            std::ptr::null_mut(),
        )
    };
    assert!(fd >= 0, "{name:?} loads: {fd}");
    // SAFETY: libbpf just returned it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn load_tc(name: &str) -> OwnedFd {
    // TC_ACT_UNSPEC: on to the next filter.
    load(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, name, u32::MAX)
}

fn load_xdp(name: &str) -> OwnedFd {
    load(libbpf_sys::BPF_PROG_TYPE_XDP, name, 2)
}

fn id(program: &OwnedFd) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
    line.unwrap().trim().parse().unwrap()
}

fn loaded(id: u64) -> bool {
    // SAFETY: a number.
    let fd = unsafe { libbpf_sys::bpf_prog_get_fd_by_id(id as u32) };
    if fd < 0 {
        return false;
    }
    // SAFETY: libbpf just returned it, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    true
}

/// The kernel lets go of a program some time after its last holder.
fn gone(id: u64) -> bool {
    for _ in 0..200 {
        if !loaded(id) {
            return true;
        }
        thread::sleep(std::time::Duration::from_millis(10));
    }
    false
}

fn ifindex(name: &str) -> i32 {
    // Not from sysfs, which shows the namespace that it was mounted in.
    let text = support_ip(&format!("-o link show dev {name}"));
    text.split(':').next().unwrap().trim().parse().unwrap()
}

fn support_ip(args: &str) -> String {
    command("ip", args)
}

fn command(program: &str, args: &str) -> String {
    let output = std::process::Command::new(program)
        .args(args.split_whitespace())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Attaches by clsact, as an older kernel's bpftk does, in the calling thread's namespace. Tells handle and priority;
/// those that are 0 the kernel chooses.
fn attach_tc_at(
    name: &str,
    direction: libbpf_sys::bpf_tc_attach_point,
    program: &OwnedFd,
    (handle, priority): (u32, u32),
) -> (u32, u32) {
    let mut hook = libbpf_sys::bpf_tc_hook {
        sz: size_of::<libbpf_sys::bpf_tc_hook>() as _,
        ifindex: ifindex(name),
        attach_point: direction,
        ..Default::default()
    };
    let mut opts = libbpf_sys::bpf_tc_opts {
        sz: size_of::<libbpf_sys::bpf_tc_opts>() as _,
        prog_fd: program.as_raw_fd(),
        handle,
        priority,
        ..Default::default()
    };
    // SAFETY: options of the sizes that they state. The qdisc may be there already.
    let result = unsafe {
        libbpf_sys::bpf_tc_hook_create(&mut hook);
        libbpf_sys::bpf_tc_attach(&hook, &mut opts)
    };
    assert_eq!(result, 0, "the filter is attached");
    (opts.handle, opts.priority)
}

fn attach_tc(name: &str, direction: libbpf_sys::bpf_tc_attach_point, program: &OwnedFd) -> u32 {
    attach_tc_at(name, direction, program, (0, 0)).1
}

/// Attaches to the interface without a link.
fn attach_xdp(name: &str, program: &OwnedFd) {
    const XDP_FLAGS_SKB_MODE: u32 = 2;
    // SAFETY: numbers, no options.
    let result = unsafe {
        libbpf_sys::bpf_xdp_attach(
            ifindex(name),
            program.as_raw_fd(),
            XDP_FLAGS_SKB_MODE,
            std::ptr::null(),
        )
    };
    assert_eq!(result, 0, "the program is attached");
}

/// Attaches to the loopback by a link.
fn link_to_lo(program: &OwnedFd) -> OwnedFd {
    // SAFETY: numbers, no options.
    let fd = unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            1,
            libbpf_sys::BPF_XDP,
            std::ptr::null(),
        )
    };
    assert!(fd >= 0, "the link is made: {fd}");
    // SAFETY: libbpf just returned it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn pin(program: &OwnedFd, path: &Path) {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a C string.
    let result = unsafe { libbpf_sys::bpf_obj_pin(program.as_raw_fd(), path.as_ptr()) };
    assert_eq!(result, 0, "{path:?} is pinned");
}

/// libbpf tells of what is not an error; the tests' output is not the place.
fn quiet() {
    libbpf_rs::set_print(None);
}

fn doctor(args: &[&str]) -> Output {
    let mut all = vec!["doctor"];
    all.extend(args);
    support::output(&all)
}

fn rows(output: &Output, table: &str) -> Vec<Value> {
    lines(output)
        .into_iter()
        .filter(|line| line["table"] == table)
        .collect()
}

fn lines(output: &Output) -> Vec<Value> {
    support::stdout(output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

/// Ids of the programs that doctor tells as left over.
fn leftovers(output: &Output) -> Vec<u64> {
    rows(output, "leftover")
        .iter()
        .filter_map(|row| row["id"].as_u64())
        .collect()
}

/// Ids of the programs that a process has open.
fn programs_of(pid: u32) -> Vec<u64> {
    fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .unwrap()
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.ok()?.path()).ok()?;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("prog_id:"))?;
            line.trim().parse().ok()
        })
        .collect()
}

/// Status and holder of each place of the program, as doctor tells.
fn told(output: &Output, id: u64) -> Vec<(String, String)> {
    rows(output, "leftover")
        .iter()
        .filter(|row| row["id"] == id)
        .map(|row| {
            let text = |field: &str| row[field].as_str().unwrap().to_string();
            (text("status"), text("held_by"))
        })
        .collect()
}

fn fact(output: &Output, name: &str) -> (Option<String>, String) {
    let facts = rows(output, "fact");
    let row = facts.iter().find(|row| row["name"] == name).expect(name);
    (
        row["status"].as_str().map(str::to_string),
        row["detail"].as_str().unwrap_or_default().to_string(),
    )
}

fn is_yes(output: &Output, name: &str) -> bool {
    let (status, detail) = fact(output, name);
    match status.as_deref() {
        Some("yes") => true,
        Some("no") => false,
        other => panic!("{name}: {other:?} {detail}"),
    }
}

const FACTS: [&str; 20] = [
    "kernel",
    "architecture",
    "capabilities",
    "lockdown",
    "BTF",
    "unprivileged BPF",
    "JIT",
    "memlock",
    "kprobes",
    "fentry",
    "tracepoints",
    "raw tracepoints",
    "ring buffer",
    "tcx",
    "XDP link",
    "cgroup v2",
    "bpffs",
    "tracefs",
    "IPv6",
    "io_uring",
];

#[test]
fn doctor_shows_commands_and_facts() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    let output = doctor(&[]);
    let text = support::stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let mut tables = text.split("\n\n");
    let commands = tables.next().unwrap();
    assert!(commands.starts_with("COMMAND"), "{text}");
    assert!(commands.contains("\ntcpconnect"), "{text}");
    let facts = tables.next().unwrap();
    assert!(facts.starts_with("FACT"), "{text}");
    for name in FACTS {
        assert!(
            facts.lines().any(|line| line.starts_with(name)),
            "{name}: {text}"
        );
    }
    assert!(
        tables.next().is_some(),
        "leftovers, or that there are none: {text}"
    );
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "fits a terminal: {line}");
    }
    let headless = support::stdout(&doctor(&["--no-header"]));
    assert!(
        !headless.contains("COMMAND") && headless.contains("tcpconnect"),
        "{headless}"
    );
    let colored = support::stdout(&doctor(&["--color", "always"]));
    assert!(colored.contains("\x1b[1mFACT"), "{colored}");
}

#[test]
fn doctor_writes_json_and_csv() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    let output = doctor(&["--format", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let names: Vec<String> = rows(&output, "fact")
        .iter()
        .map(|row| row["name"].as_str().unwrap().to_string())
        .collect();
    assert_eq!(names, FACTS);
    let commands = rows(&output, "command");
    for row in &commands {
        assert_eq!(row["status"], "ok", "{row}");
    }
    assert!(commands.iter().any(|row| row["name"] == "tcpconnect"));
    let all = lines(&output);
    let (summary, rows) = all.split_last().unwrap();
    assert_eq!(summary["type"], "summary");
    assert_eq!(summary["commands"], commands.len());
    assert_eq!(summary["unavailable"], 0);
    assert!(summary["leftovers"].is_u64(), "{summary}");
    let keys = |row: &Value| -> Vec<String> { row.as_object().unwrap().keys().cloned().collect() };
    for row in rows {
        assert_eq!(row["type"], "row");
        assert_eq!(keys(row), keys(&rows[0]), "every field always");
    }

    let csv = support::stdout(&doctor(&["--format", "csv"]));
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    assert_eq!(&reader.headers().unwrap()[0], "table");
    let count = reader
        .records()
        .map(|record| assert!(!record.unwrap()[1].is_empty()))
        .count();
    assert!(count >= FACTS.len() + commands.len(), "{csv}");
}

/// The back end that doctor names is the one that the command takes.
#[test]
fn doctor_names_the_back_end_that_is_used() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    let output = doctor(&["--format", "json"]);
    for row in rows(&output, "command") {
        let name = row["name"].as_str().unwrap();
        let run = support::output(&[name, "-d", "10ms", "--format", "json"]);
        let summary = lines(&run).pop().unwrap();
        assert_eq!(summary["backend"], row["backend"], "{name}");
    }
}

/// What can be known in another way is the same.
#[test]
fn doctor_tells_the_truth() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    let output = doctor(&["--format", "json"]);
    let kprobes = Path::new("/sys/bus/event_source/devices/kprobe").exists();
    assert_eq!(is_yes(&output, "kprobes"), kprobes);
    let fentry = support::output(&["tcpconnect", "--backend", "fentry", "-d", "10ms"]);
    assert_eq!(is_yes(&output, "fentry"), fentry.status.success());
    assert!(is_yes(&output, "ring buffer") && is_yes(&output, "XDP link"));
    assert!(is_yes(&output, "memlock") && is_yes(&output, "tracepoints"));
    assert!(is_yes(&output, "capabilities") && is_yes(&output, "raw tracepoints"));
    assert_eq!(
        is_yes(&output, "BTF"),
        Path::new("/sys/kernel/btf/vmlinux").exists()
    );
    assert_eq!(
        is_yes(&output, "IPv6"),
        Path::new("/proc/net/if_inet6").exists()
    );

    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(fact(&output, "kernel"), (None, release.trim().to_string()));
    assert_eq!(fact(&output, "architecture").1, std::env::consts::ARCH);
    assert_eq!(
        is_yes(&output, "tcx"),
        kernel_version() >= vec![6, 6],
        "{release}"
    );

    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap();
    assert_eq!(is_yes(&output, "JIT"), jit.trim() != "0");
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    for (name, fstype) in [
        ("cgroup v2", "cgroup2"),
        ("bpffs", "bpf"),
        ("tracefs", "tracefs"),
    ] {
        let point = mounts.lines().find_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[2] == fstype).then(|| words[1].to_string())
        });
        match point {
            Some(_) => assert!(is_yes(&output, name)),
            // Then bpftk has a tracefs of its own.
            None => assert_eq!(is_yes(&output, name), name == "tracefs"),
        }
        let (_, detail) = fact(&output, name);
        let shown = detail.split(' ').next().unwrap();
        assert!(
            point.is_none() || mounts.contains(&format!(" {shown} {fstype} ")),
            "{name}: {detail}"
        );
    }
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    match fact(&output, "lockdown").0.as_deref() {
        Some("yes") => assert!(!lockdown.contains("[none]"), "{lockdown}"),
        Some("no") => assert!(lockdown.is_empty() || lockdown.contains("[none]")),
        other => assert!(other == Some("unknown") && lockdown.is_empty(), "{other:?}"),
    }
}

#[test]
fn doctor_without_privileges_says_what_it_could_not_try() {
    if !support::root() {
        return;
    }
    // Wherever the tests were built, nobody may run it from here.
    let copy = std::env::temp_dir().join(format!("bpftk-doctor-{}", std::process::id()));
    fs::copy(support::bpftk_path(), &copy).unwrap();
    for format in ["table", "json"] {
        let output = std::process::Command::new(&copy)
            .args(["doctor", "--format", format])
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        let text = support::stdout(&output);
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.contains("CAP_BPF"), "{text}");
        if format == "table" {
            assert!(text.contains("Leftovers were not looked for"), "{text}");
            assert!(support::stderr(&output).contains("no back end for tcpconnect"));
            continue;
        }
        for name in [
            "JIT",
            "memlock",
            "kprobes",
            "fentry",
            "ring buffer",
            "tcx",
            "XDP link",
        ] {
            let (status, detail) = fact(&output, name);
            assert_eq!(status.as_deref(), Some("not tried"), "{name}");
            assert!(detail.contains("CAP_BPF"), "{name}: {detail}");
        }
        assert!(!is_yes(&output, "capabilities"));
        let command = rows(&output, "command").remove(0);
        assert_eq!(command["status"], "unavailable");
        assert!(
            command["detail"].as_str().unwrap().contains("CAP_PERFMON"),
            "{command}"
        );
        let summary = lines(&output).pop().unwrap();
        assert!(summary["leftovers"].is_null(), "{summary}");
        assert!(
            summary["leftovers_unknown"]
                .as_str()
                .unwrap()
                .contains("CAP_SYS_ADMIN")
        );
    }
    let output = std::process::Command::new(&copy)
        .args(["doctor", "--cleanup"])
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    fs::remove_file(copy).unwrap();
}

#[test]
fn doctor_takes_types_from_a_file_and_says_when_they_do_not_fit() {
    let refused = doctor(&["--btf", "/no/such/file"]);
    assert_eq!(
        refused.status.code(),
        Some(2),
        "{}",
        support::stderr(&refused)
    );
    assert!(support::stderr(&refused).contains("/no/such/file"));
    if !support::root() {
        return;
    }
    let _alone = alone();
    // A BTF without a type: a header of 24 bytes, and strings that are one NUL.
    let path = std::env::temp_dir().join(format!("bpftk-btf-{}", std::process::id()));
    let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
    bytes.extend([1, 0]);
    for word in [24_u32, 0, 0, 0, 1] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.push(0);
    fs::write(&path, bytes).unwrap();
    let output = doctor(&["--format", "json", "--btf", path.to_str().unwrap()]);
    fs::remove_file(&path).unwrap();
    assert_eq!(
        output.status.code(),
        Some(4),
        "{}",
        support::stdout(&output)
    );
    let command = rows(&output, "command").remove(0);
    assert_eq!(command["status"], "unavailable");
    let why = command["detail"].as_str().unwrap();
    for backend in ["fentry", "kprobe", "tracepoint"] {
        assert!(why.contains(backend), "{why}");
    }
    assert!(fact(&output, "BTF").1.contains(path.to_str().unwrap()));
}

/// Filters and programs on the interfaces of a namespace that only a descriptor keeps.
#[test]
fn doctor_removes_ownerless_filters_and_nothing_else() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    quiet();
    let netns = Netns::new();
    netns.run(|| ip("link add v0 type veth peer name v1"));

    let xdp = netns.run(|| {
        let program = load_xdp(&ours("xdp"));
        attach_xdp("v1", &program);
        id(&program)
    });
    let tc = netns.run(|| {
        [
            (libbpf_sys::BPF_TC_INGRESS, "tc ingress v0 handle 0x1"),
            (libbpf_sys::BPF_TC_EGRESS, "tc egress v0 handle 0x1"),
        ]
        .map(|(direction, place)| {
            let program = load_tc(&ours("tc"));
            let priority = attach_tc("v0", direction, &program);
            (
                id(&program),
                format!("{place} priority {priority}"),
                priority,
            )
        })
    });
    // Of others: on the same hooks, by names that are not ours; one even at the same priority.
    let foreign: Vec<u64> = netns.run(|| {
        let program = load_tc("foreign_tc");
        attach_tc("v0", libbpf_sys::BPF_TC_EGRESS, &program);
        let beside = (2, tc[0].2);
        attach_tc_at("v0", libbpf_sys::BPF_TC_INGRESS, &program, beside);
        let xdp = load_xdp("not_bpftk_");
        attach_xdp("v0", &xdp);
        vec![id(&program), id(&xdp)]
    });
    let left: Vec<(u64, String)> = tc
        .into_iter()
        .map(|(id, place, _)| (id, place))
        .chain([(xdp, "xdp (generic) v1".to_string())])
        .collect();
    // Of ours, but somebody has them: this process, and a bpftk at work.
    let owned = load_tc(&ours("own"));
    netns.run(|| attach_tc("v0", libbpf_sys::BPF_TC_EGRESS, &owned));
    let tracer = Running::json(&["tcpconnect", "-p", &std::process::id().to_string()]);

    let seen = doctor(&["--format", "json"]);
    assert_eq!(seen.status.code(), Some(0));
    for (id, place) in &left {
        let told = told(&seen, *id);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, "left");
        assert!(told[0].1.starts_with(place.as_str()), "{told:?}");
    }
    let all = leftovers(&seen);
    for id in foreign.iter().copied().chain([id(&owned)]) {
        assert!(!all.contains(&id), "{id} is not ours to tell: {all:?}");
    }
    assert_eq!(all.len(), left.len(), "the tracer's programs have an owner");
    let table = support::stdout(&doctor(&[]));
    assert!(
        table.contains("HELD BY") && table.contains("tc egress v0"),
        "{table}"
    );

    // Looking changes nothing.
    assert!(left.iter().all(|(id, _)| loaded(*id)));
    let cleaned = doctor(&["--cleanup", "--format", "json"]);
    assert_eq!(
        cleaned.status.code(),
        Some(0),
        "{}",
        support::stdout(&cleaned)
    );
    for (id, place) in &left {
        let told = told(&cleaned, *id);
        assert!(
            told.iter().all(|(status, _)| status == "removed"),
            "{told:?}"
        );
        assert_eq!(told.len(), 1);
        assert!(gone(*id), "{place} is gone");
    }
    let summary = lines(&cleaned).pop().unwrap();
    let removed = rows(&cleaned, "leftover").len();
    assert_eq!(summary["removed"], removed, "{summary}");
    assert_eq!(summary["failed"], 0, "{summary}");

    let (filters, links) = netns.run(|| {
        (
            command("tc", "filter show dev v0 egress")
                + &command("tc", "filter show dev v0 ingress"),
            support_ip("link show"),
        )
    });
    assert_eq!(
        filters.matches(&format!(":[{}]", foreign[0])).count(),
        2,
        "{filters}"
    );
    assert_eq!(
        filters.matches(&format!(":[{}]", id(&owned))).count(),
        1,
        "{filters}"
    );
    assert_eq!(filters.matches("direct-action").count(), 3, "{filters}");
    assert!(
        links.contains(&format!("prog/xdp id {}", foreign[1])),
        "{links}"
    );

    let again = doctor(&["--cleanup", "--format", "json"]);
    assert_eq!(again.status.code(), Some(0));
    let all = leftovers(&again);
    assert!(left.iter().all(|(id, _)| !all.contains(id)), "{all:?}");

    // The bpftk at work is still at it.
    let _ = TcpStream::connect("127.0.0.1:1");
    let run = {
        tracer.line();
        tracer.stop()
    };
    assert_eq!(run.events_of(std::process::id()).len(), 1, "{}", run.stdout);
}

/// `ip netns add`: a namespace that only a mount keeps.
#[test]
fn doctor_looks_into_named_namespaces() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    quiet();
    let name = format!("bpftk-{}", std::process::id());
    struct Named(String);
    impl Drop for Named {
        fn drop(&mut self) {
            ip(&format!("netns del {}", self.0));
        }
    }
    ip(&format!("netns add {name}"));
    let named = Named(name);
    let file = File::open(format!("/run/netns/{}", named.0)).unwrap();
    let left = thread::spawn(move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let program = load_xdp(&ours("ns"));
        attach_xdp("lo", &program);
        id(&program)
    })
    .join()
    .unwrap();
    let held = told(&doctor(&["--format", "json"]), left);
    assert_eq!(held.len(), 1);
    assert!(
        held[0].1.starts_with("xdp (generic) lo in ")
            && held[0].1.ends_with(&format!("/netns/{}", named.0)),
        "{held:?}"
    );
    assert_eq!(doctor(&["--cleanup"]).status.code(), Some(0));
    assert!(gone(left));
}

#[test]
fn doctor_removes_pins_and_cgroup_programs() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    quiet();
    let cgroup = TestCgroup::new();
    let directory = File::open(&cgroup.0).unwrap();
    let attach = |program: &OwnedFd| {
        const BPF_F_ALLOW_MULTI: u32 = 2;
        // SAFETY: numbers.
        let result = unsafe {
            libbpf_sys::bpf_prog_attach(
                program.as_raw_fd(),
                directory.as_raw_fd(),
                libbpf_sys::BPF_CGROUP_INET_EGRESS,
                BPF_F_ALLOW_MULTI,
            )
        };
        assert_eq!(result, 0, "the program is attached");
        id(program)
    };
    let in_cgroup = attach(&load(libbpf_sys::BPF_PROG_TYPE_CGROUP_SKB, &ours("cg"), 1));
    let foreign = attach(&load(libbpf_sys::BPF_PROG_TYPE_CGROUP_SKB, "foreign_cg", 1));

    // A bpffs that is mounted for one thread only.
    let (sender, ids) = mpsc::channel();
    let (done, wait) = mpsc::channel::<()>();
    let mount = std::env::temp_dir().join(format!("bpftk-bpffs-{}", std::process::id()));
    fs::create_dir_all(&mount).unwrap();
    let point = mount.clone();
    let holder = thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("bpf"), &point, Some("bpf"), MsFlags::empty(), none).unwrap();
        let program = load_xdp(&ours("pin"));
        fs::create_dir(point.join("dir")).unwrap();
        pin(&program, &point.join("dir/left"));
        let foreign = load_xdp("foreign_pin");
        pin(&foreign, &point.join("foreign"));
        let linked = load_xdp(&ours("ln"));
        pin(&link_to_lo(&linked), &point.join("link"));
        let ids = [id(&program), id(&foreign), id(&linked)];
        drop((program, foreign, linked));
        sender.send(ids).unwrap();
        let _ = wait.recv();
    });
    let [pinned, foreign_pin, linked] = ids.recv().unwrap();

    let seen = doctor(&["--format", "json"]);
    let held = told(&seen, in_cgroup);
    assert_eq!(
        held,
        [(
            "left".to_string(),
            format!("cgroup {} cgroup_inet_egress", cgroup.0.display())
        )]
    );
    let held = told(&seen, pinned);
    assert!(
        held.len() == 1 && held[0].1.starts_with("pin ") && held[0].1.ends_with("dir/left"),
        "{held:?}"
    );
    // One row: what a pinned link attaches goes with the pin.
    let held = told(&seen, linked);
    assert!(
        held.len() == 1 && held[0].1.starts_with("link pinned at "),
        "{held:?}"
    );
    let all = leftovers(&seen);
    assert!(
        !all.contains(&foreign) && !all.contains(&foreign_pin),
        "{all:?}"
    );

    let cleaned = doctor(&["--cleanup"]);
    assert_eq!(
        cleaned.status.code(),
        Some(0),
        "{}",
        support::stdout(&cleaned)
    );
    assert!(gone(in_cgroup) && gone(pinned) && gone(linked));
    assert!(loaded(foreign) && loaded(foreign_pin));
    done.send(()).unwrap();
    holder.join().unwrap();
    fs::remove_dir(mount).unwrap();
}

/// Attached by the older call to a hook that also has links, and to a map that is pinned.
#[test]
fn doctor_removes_what_has_no_link_from_tcx_and_socket_maps() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    quiet();
    let attach = |program: &OwnedFd, target: i32, hook: libbpf_sys::bpf_attach_type| {
        // SAFETY: numbers.
        unsafe { libbpf_sys::bpf_prog_attach(program.as_raw_fd(), target, hook, 0) }
    };
    let netns = Netns::new();
    let tcx = netns.run(|| {
        let program = load_tc(&ours("tcx"));
        let foreign = load_tc("foreign_tcx");
        let result = attach(&program, 1, libbpf_sys::BPF_TCX_INGRESS);
        if result != 0 {
            return None;
        }
        assert_eq!(attach(&foreign, 1, libbpf_sys::BPF_TCX_INGRESS), 0);
        Some((id(&program), id(&foreign)))
    });
    let mount = Bpffs::new();
    // SAFETY: a C string, no options.
    let map = unsafe {
        let fd = libbpf_sys::bpf_map_create(
            libbpf_sys::BPF_MAP_TYPE_SOCKHASH,
            c"foreign_map".as_ptr(),
            4,
            4,
            1,
            std::ptr::null(),
        );
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    };
    let program = load(libbpf_sys::BPF_PROG_TYPE_SK_MSG, &ours("msg"), 1);
    let result = attach(&program, map.as_raw_fd(), libbpf_sys::BPF_SK_MSG_VERDICT);
    assert_eq!(result, 0);
    pin(&map, &mount.0.join("map"));
    let verdict = id(&program);
    drop((map, program));

    let seen = doctor(&["--format", "json"]);
    if let Some((left, foreign)) = tcx {
        assert!(told(&seen, left)[0].1.starts_with("tcx ingress lo in "));
        assert!(told(&seen, foreign).is_empty());
    }
    let held = told(&seen, verdict).remove(0).1;
    // Kernels before 5.19 don't tell what a map holds.
    let explained = kernel_version() >= vec![5, 19];
    if explained {
        assert!(
            held.starts_with("sockmap id ") && held.ends_with(" sk_msg_verdict"),
            "{held}"
        );
    } else {
        assert_eq!(held, "nothing that was found");
    }
    let cleaned = doctor(&["--cleanup", "--format", "json"]);
    assert_eq!(cleaned.status.code(), Some(if explained { 0 } else { 1 }));
    if let Some((left, foreign)) = tcx {
        assert!(gone(left) && loaded(foreign));
    }
    assert_eq!(gone(verdict), explained);
    assert!(mount.0.join("map").exists(), "the map is not ours");
}

/// A bpffs, for as long as a test.
struct Bpffs(PathBuf);

impl Bpffs {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("bpftk-maps-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let none = None::<&str>;
        nix::mount::mount(
            Some("bpf"),
            &path,
            Some("bpf"),
            nix::mount::MsFlags::empty(),
            none,
        )
        .unwrap();
        Self(path)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.0);
        let _ = fs::remove_dir(&self.0);
    }
}

fn kernel_version() -> Vec<u32> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    release
        .split(['.', '-'])
        .take(2)
        .map(|part| part.parse().unwrap())
        .collect()
}

/// A cgroup of the test's own.
struct TestCgroup(PathBuf);

impl TestCgroup {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let root = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|words| words[2] == "cgroup2")
            .map(|words| words[1].to_string())
            .expect("cgroup v2 is mounted");
        let path = Path::new(&root).join(format!("bpftk-doctor-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Where the owners can't be seen, nothing is called ownerless.
#[test]
fn doctor_in_a_pid_namespace_of_its_own_removes_nothing() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    quiet();
    let netns = Netns::new();
    let owned = load_xdp(&ours("pns"));
    netns.run(|| attach_xdp("lo", &owned));
    let bpftk = support::bpftk_path();
    let output = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", bpftk.to_str().unwrap()])
        .args(["doctor", "--cleanup", "--format", "json"])
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}",
        support::stdout(&output)
    );
    let summary = lines(&output).pop().unwrap();
    assert!(summary["leftovers"].is_null());
    let why = summary["leftovers_unknown"].as_str().unwrap();
    assert!(why.contains("PID namespace"), "{why}");
    let links = netns.run(|| support_ip("link show dev lo"));
    assert!(links.contains("prog/xdp id"), "{links}");
}

/// What no place explains is told, and that it can't be removed is a failure.
#[test]
fn doctor_says_what_it_can_not_remove() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let program = load(libbpf_sys::BPF_PROG_TYPE_SOCKET_FILTER, &ours("so"), 0);
    let number = program.as_raw_fd();
    // SAFETY: the option takes a descriptor.
    let result = unsafe {
        nix::libc::setsockopt(
            socket.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            nix::libc::SO_ATTACH_BPF,
            std::ptr::from_ref(&number).cast(),
            4,
        )
    };
    assert_eq!(result, 0);
    let left = id(&program);
    drop(program);

    let output = doctor(&["--format", "json"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(told(&output, left)[0].1, "nothing that was found");
    let output = doctor(&["--cleanup", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(told(&output, left)[0].0, "failed");
    let rows = rows(&output, "leftover");
    let row = rows.iter().find(|row| row["id"] == left).unwrap();
    assert!(
        row["detail"].as_str().unwrap().contains("a socket"),
        "{row}"
    );
    assert!(support::stdout(&doctor(&["--cleanup"])).contains("failed"));
    assert!(loaded(left));
    drop(socket);
    assert!(gone(left));
    assert_eq!(doctor(&["--cleanup"]).status.code(), Some(0));
}

/// A bpftk that was killed leaves nothing, not even for a moment that doctor would see.
#[test]
fn doctor_finds_nothing_after_a_kill() {
    if !support::root() {
        return;
    }
    let _alone = alone();
    for _ in 0..3 {
        let tracer = Running::start(&["tcpconnect"]);
        let programs = programs_of(tracer.pid());
        assert!(!programs.is_empty());
        tracer.kill();
        let all = leftovers(&doctor(&["--format", "json"]));
        assert!(programs.iter().all(|id| !all.contains(id)), "{all:?}");
    }
}
