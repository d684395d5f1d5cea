// SPDX-License-Identifier: MIT OR Apache-2.0

//! Python's asyncio, Node, and Java's sockets and channels, each as a server and as a client, with itself and with the others; and
//! Go, which must not be redirected.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use super::super::programs::{Server, found, free_port, run};
use super::*;
use crate::support::stdout;

/// A program that knows `server PORT` and `client PORT SEED TRANSFERS MOST`.
struct Runtime {
    name: &'static str,
    program: PathBuf,
    args: Vec<String>,
}

impl Runtime {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).args(args);
        command
    }
}

fn written(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Those that are installed here.
fn here(place: &Place, directory: &Path) -> Vec<Runtime> {
    let mut all = Vec::new();
    if let Some(program) = found("python3") {
        let args = vec![written(directory, "echo.py", include_str!("echo.py"))];
        all.push(Runtime { name: "asyncio", program, args });
    }
    if let Some(program) = found("node") {
        let args = vec![written(directory, "echo.js", include_str!("echo.js"))];
        all.push(Runtime { name: "node", program, args });
    }
    if let (Some(program), Some(compiler)) = (found("java"), found("javac")) {
        let source = written(directory, "Echo.java", include_str!("Echo.java"));
        run(place, Command::new(compiler).arg("-d").arg(directory).arg(source));
        let classes = directory.to_str().unwrap();
        for (name, kind) in [("java.net", "blocking"), ("java.nio", "nio")] {
            let args = ["-Xmx512m", "-XX:TieredStopAtLevel=1", "-cp", classes, "Echo", kind];
            let args = args.map(String::from).to_vec();
            all.push(Runtime { name, program: program.clone(), args });
        }
    }
    all
}

fn ask(
    place: &Place,
    client: &Runtime,
    port: &str,
    many: usize,
    most: usize,
    random: &mut fastrand::Rng,
) {
    let (seed, many) = (random.u32(..).to_string(), transfers(many).max(2).to_string());
    let mut command = client.command(&["client", port, &seed, &many, &most.to_string()]);
    assert!(stdout(&run(place, &mut command)).contains(&format!("ok {many}")));
}

#[test]
fn runtimes_echo_to_each_other() {
    let Some(place) = Place::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let all = here(&place, directory.path());
    let mut random = fastrand::Rng::with_seed(seed());
    for server in &all {
        let port = free_port(&place);
        let text = port.to_string();
        let _server = Server::start(&place, &mut server.command(&["server", &text]), port);
        // Without bpftk, first.
        ask(&place, server, &text, 2, most() / 10, &mut random);
        for client in &all {
            println!("{} asks {}", client.name, server.name);
            let args = [&[][..], &["--max-queue", "64K"]][random.usize(..2)];
            let bpftk = place.start(args);
            let most = if client.name == server.name { most() } else { most() / 10 };
            ask(&place, client, &text, 4, most, &mut random);
            ended(bpftk);
        }
    }
}

/// By signals that it can and can't handle, while the two send.
#[test]
fn runtimes_echo_while_bpftk_comes_and_goes() {
    let Some(place) = Place::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let all = here(&place, directory.path());
    let mut random = fastrand::Rng::with_seed(seed());
    for runtime in &all {
        let port = free_port(&place);
        let text = port.to_string();
        let _server = Server::start(&place, &mut runtime.command(&["server", &text]), port);
        let mut ends = random.fork();
        std::thread::scope(|scope| {
            let client = scope.spawn(|| ask(&place, runtime, &text, 8, most(), &mut random));
            while !client.is_finished() {
                let run = place.start(&["--max-queue", ["64K", "4M"][ends.usize(..2)]]);
                std::thread::sleep(std::time::Duration::from_millis(ends.u64(..300)));
                if ends.bool() {
                    run.kill();
                } else {
                    run.signal(Signal::SIGINT);
                    assert_eq!(run.wait().summary()["lost"], 0, "{}", runtime.name);
                }
            }
        });
    }
}

/// io.Copy from a connection is splice(2), which finds nothing in a redirected socket.
#[test]
fn preflight_names_a_go_program_that_copies() {
    let Some(go) = found("go") else { return };
    let Some(place) = Place::without_bpftk() else { return };
    let directory = tempfile::tempdir().unwrap();
    let source = written(directory.path(), "echo.go", include_str!("echo.go"));
    let program = directory.path().join("go-echo");
    let mut command = Command::new(go);
    command.env("GOCACHE", directory.path().join("cache")).env("GOFLAGS", "-mod=mod");
    command.env("GO111MODULE", "off").args(["build", "-o"]).arg(&program).arg(source);
    run(&place, &mut command);
    let preflight =
        Running::json(&["sockredir", "preflight", "-d", "300s", "--cgroup", place.path()]);
    assert!(stdout(&run(&place, &mut Command::new(program))).contains("ok 20"));
    let run = preflight.stop();
    let rows: Vec<_> = run.json().into_iter().filter(|line| line["type"] == "row").collect();
    let row = rows.iter().find(|row| row["comm"] == "go-echo").expect("it has a row");
    assert_eq!(row["verdict"], "unsafe", "{row}");
    assert_eq!(row["reasons"], serde_json::json!(["splice"]), "{row}");
}
