// SPDX-License-Identifier: MIT OR Apache-2.0

//! Redis with values of all sizes. Its benchmark is in `programs`.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::super::programs::{Server, found, free_port, run};
use super::*;

/// redis-cli sends all and then waits in a blocking read, which a redirected socket may end with EAGAIN when TCP makes room for more to
/// send: one of hundreds. Then it is asked again, and told.
fn set(place: &Place, cli: &Path, port: &str, file: &Path) {
    for _ in 0..5 {
        let mut command = Command::new("sh");
        command.args(["-c", "timeout 30 \"$1\" -p \"$2\" -x set key <\"$3\"", "sh"]);
        command.arg(cli).arg(port).arg(file);
        let output = place.run(|| command.output().expect("sh runs"));
        if output.status.success() {
            return;
        }
        assert_eq!(stderr(&output), "Error: Resource temporarily unavailable\n", "{output:?}");
        println!("redis-cli: EAGAIN of a blocking read");
    }
    panic!("EAGAIN, again and again");
}

#[test]
fn redis_keeps_large_values() {
    let (Some(server), Some(cli)) = (found("redis-check-rdb"), found("redis-cli")) else { return };
    let Some(place) = Place::new() else { return };
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let content = Content::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let port = free_port(&place);
    let text = port.to_string();
    let mut command = Command::new(server);
    command.arg0("redis-server").args(["--port", &text, "--bind", "127.0.0.1"]);
    command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
    let _server = Server::start(&place, command.current_dir(directory.path()), port);
    let file = directory.path().join("value");
    for (name, many, args) in [
        ("without bpftk", 3, None),
        ("redirected", 6, Some(&[][..])),
        ("small bounds", 6, Some(&["--max-queue", "64K", "--max-messages", "16"][..])),
    ] {
        let bpftk = args.map(|args| place.start(args));
        for part in content.parts(transfers(many), &mut random) {
            fs::write(&file, &content.0[part.clone()]).unwrap();
            let asks = |args: &[&str]| {
                let mut command = Command::new("timeout");
                command.args(["30"]).arg(&cli).args(["-p", &text]).args(args);
                command
            };
            set(&place, &cli, &text, &file);
            let got = run(&place, &mut asks(&["get", "key"])).stdout;
            let got = got.strip_suffix(b"\n").unwrap_or(&got);
            assert_same(got, &content.0[part.clone()], &format!("{name}, {} bytes", part.len()));
        }
        if let Some(bpftk) = bpftk {
            ended(bpftk);
        }
    }
}
