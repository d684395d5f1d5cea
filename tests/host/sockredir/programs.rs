// SPDX-License-Identifier: MIT OR Apache-2.0

//! Programs of the world, with their own checks. A guest has those that tests/vm/initramfs.sh gives it.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::*;
use crate::support::{stdout, within};

/// Where a program is, if it is installed.
pub(super) fn found(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let more = ["/usr/local/bin", "/usr/sbin", "/sbin"].map(String::from);
    let here = path
        .split(':')
        .map(String::from)
        .chain(more)
        .map(|directory| Path::new(&directory).join(name))
        .find(|path| path.is_file());
    match here {
        Some(path) => Some(path),
        None => {
            println!("SKIP {name} is not installed here");
            None
        }
    }
}

/// A server that ends with the test.
pub(super) struct Server {
    child: Child,
    /// Kills the server's group when this process has ended, even if it was killed: then its input ends.
    watch: Child,
    /// What makes it end, and take its children along.
    end: Signal,
}

impl Server {
    pub(super) fn start(place: &Place, command: &mut Command, port: u16) -> Self {
        place.run(|| {
            let child = command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
                .expect("it starts");
            let group = child.id() as i32;
            let watch = Command::new("sh")
                .args(["-c", &format!("read -r _; kill -s KILL -- -{group}")])
                .stdin(Stdio::piped())
                .process_group(group)
                .spawn()
                .expect("there is sh");
            let server = Self { child, watch, end: Signal::SIGTERM };
            let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
            assert!(within(30, listens), "{command:?} does not listen");
            server
        })
    }

    pub(super) fn ended_by(self, end: Signal) -> Self {
        let mut server = self;
        server.end = end;
        server
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id() as i32);
        let _ = kill(pid, self.end);
        let _ = within(2, || self.child.try_wait().is_ok_and(|status| status.is_some()));
        // What is left of it, and of its children that stayed in its group.
        let _ = killpg(pid, Signal::SIGKILL);
        let _ = self.child.wait();
        let _ = self.watch.wait();
    }
}

pub(super) fn free_port(place: &Place) -> u16 {
    place.run(|| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port())
}

pub(super) fn run(place: &Place, command: &mut Command) -> Output {
    let output = place.run(|| command.stdin(Stdio::null()).output().expect("it runs"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

pub(super) fn ended(run: Running) {
    let summary = run.stop().summary();
    println!("{summary}");
    assert!(summary["redirected"].as_u64().unwrap() > 0, "{summary}");
}

/// Any web server will do.
fn web_server(port: u16) -> Option<Command> {
    if let Some(busybox) = std::env::var_os("BPFTK_VM").and_then(|_| found("busybox")) {
        let mut command = Command::new(busybox);
        command.args(["httpd", "-f", "-p", &format!("127.0.0.1:{port}")]);
        return Some(command);
    }
    let mut command = Command::new(found("python3")?);
    command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]);
    Some(command)
}

#[test]
fn curl_gets_what_a_web_server_has() {
    let Some(curl) = found("curl") else { return };
    let Some(place) = Place::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let content: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(9_000_001).collect();
    fs::write(directory.path().join("file"), &content).unwrap();
    let bpftk = place.start(&[]);
    let port = free_port(&place);
    let Some(mut command) = web_server(port) else { return };
    let _server = Server::start(&place, command.current_dir(directory.path()), port);
    for _ in 0..10 {
        let url = format!("http://127.0.0.1:{port}/file");
        let output = run(&place, Command::new(&curl).args(["-sS", "--max-time", "30", &url]));
        assert!(output.stdout == content, "{} bytes of {}", output.stdout.len(), content.len());
    }
    ended(bpftk);
}

#[test]
fn redis_answers_its_benchmark() {
    let (Some(server), Some(benchmark), Some(cli)) =
        (found("redis-check-rdb"), found("redis-benchmark"), found("redis-cli"))
    else {
        return;
    };
    let Some(place) = Place::new() else { return };
    let bpftk = place.start(&[]);
    let port = free_port(&place);
    let text = port.to_string();
    // They are one program, and the tools' package starts no service.
    let mut command = Command::new(server);
    command.arg0("redis-server").args(["--port", &text, "--bind", "127.0.0.1"]);
    let directory = tempfile::tempdir().unwrap();
    command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
    let _server = Server::start(&place, command.current_dir(directory.path()), port);
    let requests = rounds(20_000).to_string();
    let tests =
        ["-p", &text, "-n", &requests, "-c", "20", "-d", "1000", "-q", "-t", "set,get,lpush,mset"];
    let told = stdout(&run(&place, Command::new(benchmark).args(tests)));
    assert!(told.contains("requests per second"), "{told}");
    for number in 0..20 {
        let (key, value) = (format!("key{number}"), "v".repeat(number * 1000 + 1));
        run(&place, Command::new(&cli).args(["-p", &text, "set", &key, &value]));
        let got = stdout(&run(&place, Command::new(&cli).args(["-p", &text, "get", &key])));
        assert_eq!(got.trim_end(), value);
    }
    ended(bpftk);
}

#[test]
fn iperf3_measures() {
    let Some(iperf3) = found("iperf3") else { return };
    let Some(place) = Place::new() else { return };
    let bpftk = place.start(&[]);
    let port = free_port(&place).to_string();
    place.run(|| {
        let mut server = Command::new(&iperf3)
            .args(["-s", "-1", "--forceflush", "-B", "127.0.0.1", "-p", &port])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It serves one client, which must not be a trial; a line says that it listens.
        let mut line = [0; 60];
        server.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        let args = ["-c", "127.0.0.1", "-p", &port, "-t", "2", "-P", "2", "--bidir", "--json"];
        let output = Command::new(&iperf3).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(server.wait().unwrap().success());
    });
    ended(bpftk);
}

/// A server for this test alone: its own keys, its own port, and a home of root's that only it sees.
struct Ssh {
    directory: tempfile::TempDir,
    port: u16,
    _server: Server,
}

impl Ssh {
    fn start(place: &Place) -> Option<Self> {
        let (dropbear, host_key) = (found("dropbear")?, found("dropbearkey")?);
        let (user_key, unshare) = (found("ssh-keygen")?, found("unshare")?);
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path();
        run(place, Command::new(host_key).args(["-t", "ed25519", "-f"]).arg(here.join("host")));
        let key = here.join("user");
        run(place, Command::new(user_key).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
        let settings = here.join("home/.ssh");
        fs::create_dir_all(&settings).unwrap();
        fs::copy(here.join("user.pub"), settings.join("authorized_keys")).unwrap();
        for (path, mode) in
            [("home", 0o700), ("home/.ssh", 0o700), ("home/.ssh/authorized_keys", 0o600)]
        {
            fs::set_permissions(here.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        let port = free_port(place);
        let mut command = Command::new(unshare);
        command.args(["-m", "sh", "-c", "mount --bind \"$1\" /root && shift && exec \"$@\"", "sh"]);
        command.arg(here.join("home")).arg(dropbear).args(["-F", "-s", "-p"]);
        command.arg(format!("127.0.0.1:{port}")).arg("-r").arg(here.join("host"));
        command.arg("-P").arg(here.join("pid"));
        let server = Server::start(place, &mut command, port);
        Some(Self { directory, port, _server: server })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A client that asks nobody anything.
    fn client(&self, program: &Path, port_option: &str) -> Command {
        let mut command = Command::new(program);
        command.args([
            "-F",
            "/dev/null",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-q",
            "-i",
        ]);
        command.arg(self.file("user")).arg("-o");
        command.arg(format!("UserKnownHostsFile={}", self.file("known").display()));
        command.arg(port_option).arg(self.port.to_string());
        command
    }
}

#[test]
fn ssh_carries_what_goes_in() {
    let (Some(ssh), Some(scp)) = (found("ssh"), found("scp")) else { return };
    let Some(place) = Place::new() else { return };
    let bpftk = place.start(&["--events"]);
    let Some(server) = Ssh::start(&place) else { return };
    let length = rounds(20_000_000);
    let content: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(length).collect();
    fs::write(server.file("content"), &content).unwrap();

    // There and back at once.
    let output = place.run(|| {
        let mut command = server.client(&ssh, "-p");
        command.args(["root@127.0.0.1", "cat"]);
        command.stdin(fs::File::open(server.file("content")).unwrap()).output().unwrap()
    });
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout == content, "{} bytes of {length}", output.stdout.len());

    // -O: without the file transfer subsystem, which dropbear does not have by itself.
    let there = format!("root@127.0.0.1:{}", server.file("copy").display());
    run(&place, server.client(&scp, "-P").arg("-O").arg(server.file("content")).arg(&there));
    assert!(fs::read(server.file("copy")).unwrap() == content);
    run(&place, server.client(&scp, "-P").arg("-O").arg(&there).arg(server.file("back")));
    assert!(fs::read(server.file("back")).unwrap() == content);

    drop(server);
    let run = bpftk.stop();
    let events = run.events();
    let sessions: Vec<_> = events.iter().filter(|event| event["client_comm"] == "ssh").collect();
    assert_eq!(sessions.len(), 3, "{events:#?}");
    for session in sessions {
        // Every one of them began redirected, both ways.
        assert_ne!(session["redirected_to_server"], 0, "{session}");
        assert_ne!(session["redirected_to_client"], 0, "{session}");
    }
}
