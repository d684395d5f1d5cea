// SPDX-License-Identifier: MIT OR Apache-2.0

//! What nobody owns is found and removed, and nothing else.

use std::fs::{self, File};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::mpsc;
use std::thread;

use libbpf_rs::libbpf_sys;

use super::programs::{
    attach_tc, attach_tc_at, attach_xdp, command, gone, id, link_to_lo, load, load_tc, load_xdp,
    loaded, ours, pin, programs_of, quiet, show_ip,
};
use super::{alone, doctor, kernel_version, lines, rows, usual_status};
use crate::support::{self, Netns, Running, ip};

/// Ids of the programs that doctor tells as left over.
fn leftovers(output: &Output) -> Vec<u64> {
    rows(output, "leftover").iter().filter_map(|row| row["id"].as_u64()).collect()
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

/// Filters and programs on the interfaces of a namespace that only a descriptor keeps.
#[test]
fn removes_ownerless_filters_and_nothing_else() {
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
            (id(&program), format!("{place} priority {priority}"), priority)
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
    assert_eq!(seen.status.code(), usual_status());
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
    assert!(table.contains("HELD BY") && table.contains("tc egress v0"), "{table}");

    // Looking changes nothing.
    assert!(left.iter().all(|(id, _)| loaded(*id)));
    let cleaned = doctor(&["--cleanup", "--format", "json"]);
    assert_eq!(cleaned.status.code(), usual_status(), "{}", support::stdout(&cleaned));
    for (id, place) in &left {
        let told = told(&cleaned, *id);
        assert!(told.iter().all(|(status, _)| status == "removed"), "{told:?}");
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
            show_ip("link show"),
        )
    });
    assert_eq!(filters.matches(&format!(":[{}]", foreign[0])).count(), 2, "{filters}");
    assert_eq!(filters.matches(&format!(":[{}]", id(&owned))).count(), 1, "{filters}");
    assert_eq!(filters.matches("direct-action").count(), 3, "{filters}");
    assert!(links.contains(&format!("prog/xdp id {}", foreign[1])), "{links}");

    let again = doctor(&["--cleanup", "--format", "json"]);
    assert_eq!(again.status.code(), usual_status());
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
fn looks_into_named_namespaces() {
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
    assert_eq!(doctor(&["--cleanup"]).status.code(), usual_status());
    assert!(gone(left));
}

#[test]
fn removes_pins_and_cgroup_programs() {
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
        [("left".to_string(), format!("cgroup {} cgroup_inet_egress", cgroup.0.display()))]
    );
    let held = told(&seen, pinned);
    assert!(
        held.len() == 1 && held[0].1.starts_with("pin ") && held[0].1.ends_with("dir/left"),
        "{held:?}"
    );
    // One row: what a pinned link attaches goes with the pin.
    let held = told(&seen, linked);
    assert!(held.len() == 1 && held[0].1.starts_with("link pinned at "), "{held:?}");
    let all = leftovers(&seen);
    assert!(!all.contains(&foreign) && !all.contains(&foreign_pin), "{all:?}");

    let cleaned = doctor(&["--cleanup"]);
    assert_eq!(cleaned.status.code(), usual_status(), "{}", support::stdout(&cleaned));
    assert!(gone(in_cgroup) && gone(pinned) && gone(linked));
    assert!(loaded(foreign) && loaded(foreign_pin));
    done.send(()).unwrap();
    holder.join().unwrap();
    fs::remove_dir(mount).unwrap();
}

/// Attached by the older call to a hook that also has links, and to a map that is pinned.
#[test]
fn removes_what_has_no_link_from_tcx_and_socket_maps() {
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
        assert!(held.starts_with("sockmap id ") && held.ends_with(" sk_msg_verdict"), "{held}");
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
        nix::mount::mount(Some("bpf"), &path, Some("bpf"), nix::mount::MsFlags::empty(), none)
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
fn in_a_pid_namespace_of_its_own_removes_nothing() {
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
    assert_eq!(output.status.code(), Some(3), "{}", support::stdout(&output));
    let summary = lines(&output).pop().unwrap();
    assert!(summary["leftovers"].is_null());
    let why = summary["leftovers_unknown"].as_str().unwrap();
    assert!(why.contains("PID namespace"), "{why}");
    let links = netns.run(|| show_ip("link show dev lo"));
    assert!(links.contains("prog/xdp id"), "{links}");
}

/// What no place explains is told, and that it can't be removed is a failure.
#[test]
fn says_what_it_can_not_remove() {
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
    assert_eq!(output.status.code(), usual_status());
    assert_eq!(told(&output, left)[0].1, "nothing that was found");
    let output = doctor(&["--cleanup", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(told(&output, left)[0].0, "failed");
    let rows = rows(&output, "leftover");
    let row = rows.iter().find(|row| row["id"] == left).unwrap();
    assert!(row["detail"].as_str().unwrap().contains("a socket"), "{row}");
    assert!(support::stdout(&doctor(&["--cleanup"])).contains("failed"));
    assert!(loaded(left));
    drop(socket);
    assert!(gone(left));
    assert_eq!(doctor(&["--cleanup"]).status.code(), usual_status());
}

/// A bpftk that was killed leaves nothing, not even for a moment that doctor would see.
#[test]
fn finds_nothing_after_a_kill() {
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
