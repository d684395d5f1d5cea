// SPDX-License-Identifier: MIT OR Apache-2.0

//! PostgreSQL and its benchmark.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{User, chown};

use super::programs::{Server, ended, free_port, run};
use super::*;
use crate::support::{stdout, within};

/// Where its programs are below `root`: the newest version of them.
fn programs_below(root: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(root.join("usr/lib/postgresql")).ok()?;
    let programs = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    programs.filter(|bin| are_in(bin)).max()
}

/// Whether all that the test runs is there: distributions put pgbench elsewhere.
fn are_in(bin: &Path) -> bool {
    ["postgres", "initdb", "psql", "pgbench"].iter().all(|program| bin.join(program).is_file())
}

/// PostgreSQL's programs, which refuse to run as root.
struct Postgres {
    bin: PathBuf,
    /// Of libraries that the machine lacks.
    libraries: Option<PathBuf>,
    user: User,
    /// The user's own.
    home: tempfile::TempDir,
}

impl Postgres {
    /// Those of this machine, else what tests/postgres.sh unpacked. That is copied, for its directory may be closed to others.
    fn new() -> Option<Self> {
        let user = User::from_name("nobody").unwrap().expect("there is nobody");
        let home = tempfile::tempdir().unwrap();
        chown(home.path(), Some(user.uid), Some(user.gid)).unwrap();
        let path = env::var_os("PATH").unwrap_or_default();
        let installed = programs_below(Path::new("/"))
            .or_else(|| env::split_paths(&path).find(|directory| are_in(directory)));
        if let Some(bin) = installed {
            return Some(Self { bin, libraries: None, user, home });
        }
        let Some(unpacked) = env::var_os("BPFTK_POSTGRES").filter(|path| Path::new(path).is_dir())
        else {
            println!(
                "SKIP PostgreSQL is not installed here, and tests/postgres.sh did not unpack it"
            );
            return None;
        };
        let root = home.path().join("root");
        let copied = Command::new("cp").arg("-R").arg(unpacked).arg(&root).status().unwrap();
        assert!(copied.success());
        let libraries = root.join(format!("usr/lib/{}-linux-gnu", env::consts::ARCH));
        let bin = programs_below(&root).expect("it was unpacked");
        Some(Self { bin, libraries: Some(libraries), user, home })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.uid(self.user.uid.as_raw()).gid(self.user.gid.as_raw()).current_dir("/");
        command.env("HOME", self.home.path()).env("LC_ALL", "C");
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }
}

/// The sums of pgbench's tables must agree.
#[test]
fn postgres_keeps_its_books() {
    let Some(place) = Place::new() else { return };
    let Some(postgres) = Postgres::new() else { return };
    let data = postgres.home.path().join("data");
    run(
        &place,
        postgres.command("initdb").args(["-A", "trust", "-U", "nobody", "-N", "-D"]).arg(&data),
    );
    let bpftk = place.start(&[]);
    let port = free_port(&place).to_string();
    let mut command = postgres.command("postgres");
    command.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &port, "-k", "", "-F"]);
    let _server = Server::start(&place, &mut command, port.parse().unwrap());
    let to = ["-h", "127.0.0.1", "-p", &port, "-U", "nobody"];
    // It listens before it takes anybody.
    let ready = || {
        place.run(|| {
            let mut ready = postgres.command("psql");
            ready.args(to).args(["-d", "postgres", "-c", "select 1"]);
            ready.output().is_ok_and(|output| output.status.success())
        })
    };
    assert!(within(30, ready), "PostgreSQL is not ready");
    let tool = |program: &str, arguments: &[&str]| {
        stdout(&run(&place, postgres.command(program).args(to).args(arguments)))
    };
    tool("pgbench", &["-i", "-q", "postgres"]);
    let told = tool("pgbench", &["-c", "4", "-T", "4", "postgres"]);
    assert!(told.contains("number of failed transactions: 0"), "{told}");
    let query = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
                 (select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)";
    let sums = tool("psql", &["-d", "postgres", "-Atc", query]);
    let sums: Vec<&str> = sums.trim().split('|').collect();
    assert!(sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    ended(bpftk);
}
