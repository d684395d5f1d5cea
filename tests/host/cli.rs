// SPDX-License-Identifier: MIT OR Apache-2.0

//! Bad input and bad days: one line that says what is wrong, and the exit status that says whose turn it is.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::{
    Cgroup, Netns, Running, Tcp, as_nobody, assert_usage, bpftk, output, public_copy, root, stderr,
    stdout,
};

#[test]
fn a_thread_is_no_process() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        sender.send(nix::unistd::gettid()).unwrap();
        let _ = wait.recv();
    });
    let tid = receiver.recv().unwrap().to_string();
    let pid = std::process::id().to_string();
    assert_usage(&["tcpconnect", "-p", &tid], &[&tid, "thread of process", &pid]);
    drop(done);
    thread.join().unwrap();
}

#[test]
fn without_privileges_the_capability_is_named() {
    if !root() {
        return;
    }
    let dir = public_copy();
    for args in
        [&["tcpconnect", "-d", "1s"][..], &["tcpconnect", "--dns"], &["clone-trace", "-d", "1s"]]
    {
        let output = as_nobody(Command::new(dir.path().join("bpftk")).args(args)).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {text}");
        assert!(text.contains("CAP_BPF") && text.contains("CAP_PERFMON"), "{text}");
        assert_eq!(text.contains("CAP_NET_ADMIN"), args.contains(&"--dns"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    // What needs no privileges works without them, wrong usage included.
    let output = as_nobody(Command::new(dir.path().join("bpftk")).args(["completions", "bash"]))
        .output()
        .unwrap();
    assert!(output.status.success());
    let output = as_nobody(Command::new(dir.path().join("bpftk")).args(["tcpconnect", "-P", "x"]))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// A bpftk that follows `netns`, and something to see in it.
struct Scene {
    netns: Netns,
}

impl Scene {
    fn new() -> Self {
        Self { netns: Netns::new() }
    }

    fn refuse(&self, times: usize) {
        self.netns.run(|| {
            for _ in 0..times {
                let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
            }
        });
    }
}

#[test]
fn a_full_disk_is_an_error_and_the_rows_before_it_stay_whole() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    // A file system of one page, in a mount namespace of bpftk's own, seen through its root directory.
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=8k none \"$1\" && exec \"$0\" tcpconnect -v --format json --netns \"$2\" -o \"$1/rows\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(crate::support::bpftk_path()).arg(dir.path());
    let running = Running::spawn(command.arg(scene.netns.path()));
    let rows = format!("/proc/{}/root{}/rows", running.pid(), dir.path().display());
    let file = fs::File::open(rows).expect("the output file is there before the first row");
    scene.refuse(200);
    let run = running.wait();
    assert_eq!(run.status.code(), Some(1), "{}", run.stderr);
    assert!(
        run.stderr.contains("No space left on device") && run.stderr.contains("rows"),
        "{}",
        run.stderr
    );
    let mut text = String::new();
    { &file }.read_to_string(&mut text).unwrap();
    assert!(text.ends_with('\n') && text.lines().count() > 5, "{text}");
    // As many as there was room for.
    let longest = text.lines().map(str::len).max().unwrap();
    assert!(text.len() + longest + 1 > 8192, "{} bytes", text.len());
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("every row is whole");
    }
}

#[test]
fn hangup_reopens_the_output() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("rows"), dir.path().join("rows.1"));
    fs::write(&path, "what was there\n").unwrap();
    let running = Running::start(&[
        "tcpconnect",
        "--format",
        "csv",
        "--netns",
        &scene.netns.path(),
        "-o",
        path.to_str().unwrap(),
    ]);
    let wait_for = |path: &std::path::Path, rows: usize| {
        let begin = std::time::Instant::now();
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if text.matches(",ECONNREFUSED,").count() >= rows {
                return text;
            }
            assert!(begin.elapsed().as_secs() < 60, "{text}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    };
    scene.refuse(2);
    let first = wait_for(&path, 2);
    assert!(first.starts_with("what was there\ntime,pid,"), "it appends: {first}");
    fs::rename(&path, &old).unwrap();
    running.signal(Signal::SIGHUP);
    let begin = std::time::Instant::now();
    while !path.exists() {
        assert!(begin.elapsed().as_secs() < 60, "the file was not reopened");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    scene.refuse(3);
    wait_for(&path, 3);
    assert!(running.stop().status.success());
    assert_eq!(fs::read_to_string(&old).unwrap(), first);
}

/// nohup(1) and shells have SIGHUP ignored for what shall outlive the terminal.
#[test]
fn a_hangup_that_was_ignored_stays_ignored_unless_it_is_asked_for() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows");
    let start = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "trap '' HUP; exec \"$0\" \"$@\"",
            crate::support::bpftk_path().to_str().unwrap(),
        ]);
        Running::spawn(
            command.args(["tcpconnect", "-v", "--netns", &scene.netns.path()]).args(arguments),
        )
    };
    let running = start(&["--format", "json"]);
    running.signal(Signal::SIGHUP);
    scene.refuse(1);
    assert!(running.line().contains("ECONNREFUSED"));
    let run = running.stop();
    assert!(run.status.success() && !run.stderr.contains("SIGHUP"), "{}", run.stderr);

    let running = start(&["-o", rows.to_str().unwrap()]);
    fs::remove_file(&rows).unwrap();
    running.signal(Signal::SIGHUP);
    let begin = std::time::Instant::now();
    while !rows.exists() {
        assert!(begin.elapsed().as_secs() < 60, "the file was not reopened");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let run = running.stop();
    assert!(
        run.status.success() && run.stderr.contains("SIGHUP was ignored at the start"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_quit_is_an_orderly_end() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    let running = Running::start(&["tcpconnect", "--netns", &scene.netns.path()]);
    scene.refuse(1);
    running.line();
    running.signal(Signal::SIGQUIT);
    let run = running.wait();
    assert!(run.status.success(), "{:?} {}", run.status, run.stderr);
    assert!(run.stderr.contains("1 attempt"), "{}", run.stderr);
}

#[test]
fn times_are_those_of_the_zone_that_is_asked_for() {
    if !root() {
        return;
    }
    if !std::path::Path::new("/usr/share/zoneinfo/Asia/Kathmandu").exists() {
        println!("SKIP no time zones are installed here (Debian: tzdata)");
        return;
    }
    let scene = Scene::new();
    let minutes = |zone: &str| {
        let mut command = Command::new(crate::support::bpftk_path());
        command.args([
            "tcpconnect",
            "-v",
            "--timestamp",
            "--no-header",
            "--netns",
            &scene.netns.path(),
        ]);
        let running = Running::spawn(command.env("TZ", zone));
        scene.refuse(1);
        let row = running.line();
        let clock: Vec<i64> = row[..5].split(':').map(|part| part.parse().unwrap()).collect();
        (clock[0] * 60 + clock[1], running.stop().stderr)
    };
    let (utc, said) = minutes("UTC");
    assert!(!said.contains("TZ"), "{said}");
    // Five hours and three quarters ahead, all the year; a minute may have passed.
    let (there, said) = minutes("Asia/Kathmandu");
    assert!(!said.contains("TZ"), "{said}");
    assert!((345..=347).contains(&(there - utc).rem_euclid(24 * 60)), "{utc} {there}");
    let (nowhere, said) = minutes("Middle/Earth");
    assert!(said.contains("TZ=Middle/Earth: no such time zone"), "{said}");
    assert!((0..=3).contains(&(nowhere - utc).rem_euclid(24 * 60)), "{utc} {nowhere}");
}

/// A link in /tmp may be anybody's, and lead to a file of root's.
#[test]
fn an_output_is_its_owners_and_no_strangers_link_is_followed() {
    use std::os::unix::fs::PermissionsExt;
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (rows, link, target) =
        (dir.path().join("rows"), dir.path().join("link"), dir.path().join("target"));
    let to =
        |path: &std::path::Path| output(&["tcpconnect", "-d", "1ms", "-o", path.to_str().unwrap()]);
    assert!(to(&rows).status.success());
    assert_eq!(fs::metadata(&rows).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&target, "root's").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let run = to(&link);
    assert_eq!(run.status.code(), Some(2), "{}", stderr(&run));
    assert!(stderr(&run).contains("symbolic link"), "{}", stderr(&run));
    assert_eq!(fs::read_to_string(&target).unwrap(), "root's");
}

#[test]
fn an_output_that_cannot_be_opened_is_told_before_anything_is_loaded() {
    let output = output(&["tcpconnect", "-o", "/no/such/dir/rows"]);
    // Without privileges those are what is missing first.
    let expected = if nix::unistd::geteuid().is_root() { 2 } else { 3 };
    assert_eq!(output.status.code(), Some(expected), "{}", stderr(&output));
}

#[test]
fn names_cannot_write_to_the_terminal() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    let name = "a\x1b[31m\n\u{202e}b";
    let path = scene.netns.path();
    for (format, expected) in
        [("table", "a\\x1b[31m\\n\\u{202e}b"), ("json", "a\\u001b[31m\\n\u{202e}b")]
    {
        let running =
            Running::start(&["tcpconnect", "--netns", &path, "--format", format, "--no-header"]);
        scene.netns.run(|| {
            fs::write("/proc/thread-self/comm", name).unwrap();
            let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
        });
        let row = running.line();
        assert!(row.contains(expected), "{row}");
        assert!(!row.contains('\x1b'), "{row}");
        running.stop();
    }
}

#[test]
fn csv_has_every_field_and_no_header_when_not_wanted() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    let path = scene.netns.path();
    let running = Running::start(&["tcpconnect", "--netns", &path, "--format", "csv"]);
    scene.refuse(1);
    let run = running.stop();
    let mut lines = run.stdout.lines();
    assert_eq!(
        lines.next().unwrap(),
        "time,pid,tid,uid,comm,cgroup,netns,family,saddr,sport,daddr,dport,result,errno,latency_us,name"
    );
    let row: Vec<&str> = lines.next().unwrap().split(',').collect();
    assert_eq!((row.len(), row[12], row[13]), (16, "ECONNREFUSED", "111"));
    let running =
        Running::start(&["tcpconnect", "--netns", &path, "--format", "csv", "--no-header"]);
    scene.refuse(1);
    assert_eq!(running.stop().stdout.lines().count(), 1);
}

#[test]
fn color_is_for_terminals_or_for_who_asks() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    for (args, colored) in
        [(&[][..], false), (&["--color", "always"], true), (&["--color", "never"], false)]
    {
        let path = scene.netns.path();
        let mut all = vec!["tcpconnect", "--netns", &path];
        all.extend_from_slice(args);
        let running = Running::start(&all);
        scene.refuse(1);
        let run = running.stop();
        assert_eq!(run.stdout.contains("\x1b[31mECONNREFUSED\x1b[0m"), colored, "{}", run.stdout);
        assert_eq!(run.stdout.contains('\x1b'), colored, "{}", run.stdout);
    }
}

#[test]
fn head_ends_it_cleanly() {
    if !root() {
        return;
    }
    let scene = Scene::new();
    let mut tracer = bpftk(&["tcpconnect", "--netns", &scene.netns.path(), "--no-header"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .arg("-v")
        .spawn()
        .unwrap();
    let rows = tracer.stdout.take().unwrap();
    let head = Command::new("head").arg("-1").stdin(rows).stdout(Stdio::piped()).spawn().unwrap();
    // Until it is armed, attempts are not seen: make some until head has its line.
    let waiting = std::thread::spawn(move || head.wait_with_output().unwrap());
    while !waiting.is_finished() {
        scene.refuse(1);
    }
    let seen = waiting.join().unwrap();
    assert_eq!(stdout(&seen).lines().count(), 1);
    let output = tracer.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stderr(&output).contains("roken pipe"), "{}", stderr(&output));
}

#[test]
fn tracefs_and_bpffs_need_not_be_mounted() {
    if !root() {
        return;
    }
    let script = "for fs in tracefs bpf debugfs; do for m in $(awk -v fs=$fs '$0 ~ \" - \" fs \" \" {print $5}' /proc/self/mountinfo | tac); do umount -l $m; done; done; \
         ! test -e /sys/kernel/tracing/events && exec \"$0\" tcpconnect --backend tracepoint -d 10ms";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(crate::support::bpftk_path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

/// Nobody could come into it any more: that is an end, with the account of what there was.
#[test]
fn a_cgroup_that_is_removed_ends_what_follows_it() {
    if !root() {
        return;
    }
    for command in ["tcpconnect", "clone-trace", "sockredir"] {
        let name = format!("bpftk-removed-{}", std::process::id());
        let Some(cgroup) = Cgroup::new(&name) else {
            println!("SKIP cgroup v2 is not mounted here");
            return;
        };
        let path = cgroup.path().to_str().unwrap().to_string();
        let args = [command, "--cgroup", &path];
        if output(&[&args[..], &["-d", "10ms"]].concat()).status.code() == Some(4) {
            println!("{command} does not run on this kernel");
            continue;
        }
        let run = Running::json(&args);
        drop(cgroup);
        let run = run.wait();
        assert_eq!(run.status.code(), Some(1), "{command}: {}", run.stderr);
        let text = format!("bpftk: the cgroup {path} was removed, so nothing more can come");
        assert!(run.stderr.ends_with(&format!("{text}\n")), "{command}: {}", run.stderr);
        assert_eq!(run.summary()["command"], command);
    }
}
