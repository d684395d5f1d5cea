// SPDX-License-Identifier: MIT OR Apache-2.0

//! Values and options that are wrong: each is named, with what would be right, in one line, and the status is 2.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::{assert_usage, output, stderr, stdout};

#[test]
fn tcpconnect() {
    for (args, parts) in [
        (&["-p", "foo"][..], &["foo", "process id"][..]),
        (&["-p", "1,,2"], &["empty item"]),
        (&["-p", "0"], &["0", "1 to 4194304"]),
        (&["-p", "4194304"], &["4194304", "no such process"]),
        (&["-u", "no-such-user"], &["no-such-user", "names or numbers"]),
        (&["-P", "no-such-service"], &["no-such-service", "1 to 65535", "/etc/services"]),
        (&["-P", "-1"], &["`-1`", "1 to 65535"]),
        (&["-p", "-1"], &["`-1`", "1 to 4194304"]),
        (&["-n", "18446744073709551616"], &["expected a number from 1"]),
        (&["-n", "-1"], &["expected a number from 1"]),
        (&["--dst", "-1"], &["expected an address"]),
        (&["--max-pending", "0"], &["expected a number from 1 to 16777216"]),
        (&["--netns", "no-such-name"], &["no-such-name", "ip netns"]),
        (&["-P", "443-80"], &["443-80", "80-443"]),
        (&["-P", ""], &["empty"]),
        (&["-P", "80-"], &["expected"]),
        (&["--dst", "10.0.0.1/8"], &["10.0.0.1/8", "10.0.0.0/8"]),
        (&["--dst", "example.org"], &["example.org", "CIDR"]),
        (&["-d", "5"], &["5", "unit"]),
        (&["-d", "-5s"], &["-5", "without a sign"]),
        (&["-n", "0"], &["0"]),
        (&["--min-latency", "fast"], &["fast"]),
        (&["--comm", "longer-than-15-bytes"], &["longer-than-15-bytes", "15"]),
        (&["--cgroup", "/tmp"], &["/tmp", "not a cgroup v2 directory"]),
        (&["--cgroup", "/no/such"], &["/no/such"]),
        (&["--netns", "/etc/passwd"], &["/etc/passwd", "not a network namespace"]),
        (&["--netns", "/proc/self/ns/uts"], &["not a network namespace"]),
        (&["--btf", "/etc/passwd"], &["/etc/passwd", "not BTF"]),
        (&["--btf", "/no/such"], &["/no/such"]),
        (&["--format", "xml"], &["xml", "json"]),
        (&["--backend", "magic"], &["magic", "fentry"]),
        (&["-4", "-6"], &["cannot be used with"]),
        (&["-4", "--dst", "::/0"], &["--dst", "no address"]),
        (&["-6", "--dst", "10.0.0.0/8,192.0.2.1"], &["no address"]),
        (&["--dst", "10.1.0.0/16", "--exclude", "10.0.0.0/8"], &["--exclude", "no address"]),
        (&["--exclude", "::/0", "--exclude", "0.0.0.0/0"], &["no address"]),
        (&["--at-start", "--failed"], &["cannot be used with"]),
        (&["--count", "-n", "3"], &["cannot be used with"]),
        (&["-i", "1s"], &["--count"]),
        (&["--at-start", "-i", "1s"], &["--interval", "--count"]),
        (&["--count", "-i", "1us"], &["10ms"]),
        (&["--nope"], &["--nope"]),
        (&["extra"], &["extra"]),
    ] {
        let mut all = vec!["tcpconnect"];
        all.extend_from_slice(args);
        assert_usage(&all, parts);
    }
    assert_usage(&["tcpconect"], &["tcpconect", "tcpconnect"]);
    assert_usage(&["completions", "tcsh"], &["tcsh", "zsh"]);
}

#[test]
fn help_and_version_go_to_standard_output() {
    for args in [&["--help"][..], &["--version"], &["tcpconnect", "--help"], &["help", "doctor"]] {
        let output = output(args);
        assert!(output.status.success() && stderr(&output).is_empty(), "{args:?}");
        assert!(stdout(&output).contains("bpftk"), "{args:?}");
    }
    let output = output(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage"));
}

#[test]
fn completions_are_what_their_shells_take() {
    for (shell, check) in [("bash", "bash"), ("zsh", "zsh"), ("fish", "fish")] {
        let script = output(&["completions", shell]);
        assert!(script.status.success());
        let text = stdout(&script);
        for word in ["tcpconnect", "min-latency", "doctor"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
        let Ok(mut child) =
            Command::new(check).args(["-n", "/dev/stdin"]).stdin(Stdio::piped()).spawn()
        else {
            println!("{check} is not installed: its script's syntax is not checked");
            continue;
        };
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{shell} refuses its script");
    }
}

#[test]
fn clone_trace() {
    for args in [
        &["--backend", "task", "--failed"][..],
        &["--backend", "task", "--args"],
        &["--backend", "task", "--latency"],
        &["--backend", "fentry"],
        &["--kind", "thing"],
        &["--kind", ""],
        &["--kind", "thread,"],
        &["--interval", "1s"],
        &["--count", "--interval", "1ms"],
        &["--count", "-n", "1"],
        &["--count", "--args"],
        &["--count", "--latency"],
        &["-p", "0"],
        &["-p", "4194303"],
        &["-u", "no-such-user"],
        &["-d", "5"],
        &["-n", "0"],
        &["extra"],
    ] {
        let args = [&["clone-trace"], args].concat();
        assert_usage(&args, &[]);
    }
}

#[test]
fn sockredir() {
    assert_usage(&["sockredir"], &["--cgroup PATH, or --all"]);
    for (args, part) in [
        (&["--cgroup", "/tmp"][..], "not a cgroup v2 directory; cgroup v2 is "),
        (&["--cgroup", "/no/such"], "cgroup v2 is "),
        (&["--all", "--cgroup", "/tmp"], "cannot be used with"),
        (&["--all", "--port", "0"], "no port"),
        (&["--all", "--max-queue", "much"], "64K"),
        (&["--all", "--max-messages", "0"], "0"),
        (&["--all", "--comm", "a,b,c,d,e,f,g,h,i"], "more than 8"),
        (&["--all", "--port", "80-82", "--exclude-port", "1-81,82"], "leaves none"),
        (&["--all", "-n", "5"], "--events"),
        (&["--all", "-T"], "--events"),
        (&["--all", "--learn", "5"], "500ms"),
        (&["--all", "--learn", "1s", "--no-guard"], "cannot be used with"),
    ] {
        assert_usage(&[&["sockredir"], args].concat(), &[part]);
    }
}

#[test]
fn preflight() {
    for (args, part) in [
        (&["--duration", "5"][..], "unit"),
        (&["--pid", "0"], "1 to 4194304"),
        (&["--pid", "4194304"], "no such process"),
        (&["--cgroup", "/tmp"], "not a cgroup v2 directory"),
        (&["--cgroup", "/tmp", "--pid", "1"], "cannot be used with"),
        (&["--emit-excludes", "--format", "json"], "cannot be used with"),
        (&["--all"], "--all"),
        (&["extra"], "extra"),
    ] {
        assert_usage(&[&["sockredir", "preflight"], args].concat(), &[part]);
    }
    assert_usage(&["sockredir", "--all", "preflight"], &["preflight"]);
}

#[test]
fn tc_egress() {
    for (args, expected) in [
        (vec![], "IFACE"),
        (vec!["no-such-if"], "no interface `no-such-if`"),
        (vec!["lo", "--by", "dst,foo"], "`foo` is nothing to count by"),
        (vec!["lo", "--by", "net/33"], "1 to 32"),
        (vec!["lo", "--by", "dst,net/8"], "one or the other"),
        (vec!["lo", "--by", "src"], "--direction ingress"),
        (vec!["lo", "--exclude", "10.0.0.1/8"], "did you mean 10.0.0.0/8"),
        (vec!["lo", "--exclude-file", "/no/such/file"], "/no/such/file"),
        (vec!["lo", "--top", "0"], "or all"),
        (vec!["lo", "--max-entries", "0"], "from 1 to 4194304"),
        (vec!["lo", "--all-packets"], "--events"),
        (vec!["lo", "--events", "--by", "dst"], "--by"),
        (vec!["lo", "-n", "1"], "--events"),
        (vec!["lo", "-n", "1", "--top", "5"], "--events"),
        (vec!["lo", "--all-packets", "-i", "1s"], "--events"),
        (vec!["lo", "-i", "1ms"], "10ms"),
        (vec!["lo", "--direction", "both"], "ingress"),
        (vec!["lo", "--by", "process", "--direction", "ingress"], "no socket yet"),
        (vec!["lo", "--senders", "none"], "--by process"),
        (vec!["lo", "--btf", "/x"], "--by process"),
    ] {
        let output = output(&[&["tc-egress"], &args[..]].concat());
        let text = stderr(&output);
        if output.status.code() == Some(3) {
            println!("SKIP needs root, to look further than the options");
            continue;
        }
        assert_eq!(output.status.code(), Some(2), "{args:?} {text}");
        assert!(text.contains(expected) && text.lines().count() == 1, "{args:?} {text}");
    }
}

#[test]
fn xdp_drop_and_tc_drop() {
    let missing = ["xdp-drop", "lo", "--blocklist", "/no/such/file"];
    for (args, expected) in [
        (vec!["xdp-drop"], "IFACE"),
        (vec!["xdp-drop", "no-such-if"], "no interface `no-such-if`"),
        (vec!["tc-drop", "no-such-if"], "no interface `no-such-if`"),
        (vec!["xdp-drop", "lo", "--proto", "foo"], "`foo` is no protocol"),
        (vec!["xdp-drop", "lo", "--src", "10.0.0.1/8"], "did you mean 10.0.0.0/8"),
        (vec!["tc-drop", "lo", "--dport", "0"], "no port"),
        (vec!["xdp-drop", "lo", "--rate", "100"], "100/s"),
        (vec!["tc-drop", "lo", "--direction", "in"], "ingress"),
        (vec!["tc-drop", "lo", "--first", "--last"], "--last"),
        (vec!["xdp-drop", "lo", "-n", "1"], "--sample"),
        (vec!["xdp-drop", "lo", "-i", "1ms"], "10ms"),
        (missing.to_vec(), "/no/such/file"),
    ] {
        let output = output(&args);
        let text = stderr(&output);
        if output.status.code() == Some(3) {
            println!("SKIP needs root, to look further than the options");
            continue;
        }
        assert_eq!(output.status.code(), Some(2), "{args:?} {text}");
        assert!(text.contains(expected) && text.lines().count() == 1, "{args:?} {text}");
    }
}
