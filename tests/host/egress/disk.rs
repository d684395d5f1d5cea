// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is blocked stays blocked when nothing can be written any more.

use std::io;

use super::block::{BLOCK, BLOCKED4, OPEN4};
use super::ways::*;
use super::*;
use crate::support::within;

/// Neither a full disk nor a limit on files opens what is closed; what was not written is told and counted.
#[test]
fn an_output_that_can_not_be_written_opens_nothing() {
    if !root() {
        return;
    }
    let wire = wire();
    let far = Far::new(&wire);
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows");
    let rows = rows.to_str().unwrap();
    for (script, cause) in [
        ("exec \"$@\" -o /dev/full", "No space left on device"),
        ("exec \"$@\" >/dev/full", "No space left on device"),
        ("ulimit -f 2; exec \"$@\" -o ROWS", "File too large"),
        ("ulimit -f 2; exec \"$@\" >>ROWS.1", "File too large"),
    ] {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script.replace("ROWS", rows), "sh"]);
        command.arg(crate::support::bpftk_path()).args(BLOCK);
        command.args(["-v", "--format", "json", "-i", "50ms", "--max-entries", "2048"]);
        let run = wire.near.run(|| Running::spawn(&mut command));
        for _ in 0..40 {
            assert_eq!(fate(&wire, &far, || datagram(BLOCKED4, 9)), Fate::Refused, "{script}");
            thread::sleep(Duration::from_millis(5));
        }
        run.until_told(cause);
        assert_eq!(fate(&wire, &far, || raw(BLOCKED4)), Fate::Dropped, "{script}");
        let run = run.stop();
        assert_eq!(run.status.code(), Some(1), "{script}: {}", run.stderr);
        assert_eq!(
            run.stderr.matches("the run goes on").count(),
            1,
            "told once: {script}: {}",
            run.stderr
        );
        assert!(run.stderr.contains("lines could not be written"), "{script}: {}", run.stderr);
    }
    // What is there is whole.
    let text = std::fs::read_to_string(rows).unwrap();
    assert!(text.ends_with('\n') && !text.is_empty());
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
    // A reader that leaves ends it, as ever.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "\"$@\" | head -n 1 >/dev/null", "sh"]);
    command.arg(crate::support::bpftk_path()).args(BLOCK);
    command.args(["--format", "json", "-i", "50ms", "--max-entries", "2048"]);
    let mut child = wire.near.run(|| command.spawn().unwrap());
    let ended = within(30, || {
        let _ = wire.near.run(|| datagram(OPEN4, 9));
        child.try_wait().unwrap().is_some()
    });
    let _ = child.kill();
    assert!(ended, "it goes on for nobody");
}

/// The lines that were lost are as many as the summary says, and a disk with room again takes the next ones.
#[test]
fn a_disk_with_room_again_is_written_to() {
    if !root() {
        return;
    }
    let wire = wire();
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=12k none \"$1\" && head -c 8192 /dev/zero >\"$1/ballast\" && exec \"$0\" tc-egress near \
        --block 10.50.0.0/16 --audit-rate all -v --format json --max-entries 2048 -i 1h -o \"$1/rows\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(crate::support::bpftk_path()).arg(dir.path());
    let run = wire.near.run(|| Running::spawn(&mut command));
    let inside = format!("/proc/{}/root{}", run.pid(), dir.path().display());
    let rows = std::fs::File::open(format!("{inside}/rows")).unwrap();
    for _ in 0..100 {
        assert!(wire.near.run(|| datagram(BLOCKED4, 9)).is_err());
    }
    run.until_told("No space left on device");
    settle();
    std::fs::remove_file(format!("{inside}/ballast")).unwrap();
    assert!(wire.near.run(|| datagram("10.50.0.77", 9)).is_err());
    settle();
    let run = run.stop();
    let text = io::read_to_string(rows).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = lines.iter().filter(|line| line["type"] == "event").collect();
    assert!(events.iter().any(|line| line["daddr"] == "10.50.0.77"), "{text}");
    let summary = lines.last().unwrap();
    assert_eq!(summary["type"], "summary", "{text}");
    let unwritten = summary["unwritten"].as_u64().unwrap();
    assert!(unwritten > 0);
    assert_eq!(unwritten + events.len() as u64, summary["events"].as_u64().unwrap(), "{text}");
    assert_eq!(run.status.code(), Some(1), "{}", run.stderr);
}
