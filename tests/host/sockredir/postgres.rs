// SPDX-License-Identifier: MIT OR Apache-2.0

//! PostgreSQL and its benchmark.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{User, chown};

use super::chains::{assert_same, most, random_size, seed, transfers};
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
    /// Those of this machine, else what tests/unpack.sh unpacked. That is copied, for its directory may be closed to others.
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
                "SKIP PostgreSQL is not installed here, and tests/unpack.sh did not unpack it"
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

/// A server with a cluster of its own, which takes clients.
struct Database {
    postgres: Postgres,
    port: String,
    _server: Server,
}

impl Database {
    fn start(place: &Place, postgres: Postgres) -> Self {
        let data = postgres.home.path().join("data");
        let mut command = postgres.command("initdb");
        run(place, command.args(["-A", "trust", "-U", "nobody", "-N", "-D"]).arg(&data));
        let port = free_port(place);
        let mut command = postgres.command("postgres");
        let text = port.to_string();
        command.arg("-D").arg(&data).args(["-h", "127.0.0.1", "-p", &text, "-k", "", "-F"]);
        // It waits for nobody when it ends.
        let server = Server::start(place, &mut command, port).ended_by(Signal::SIGQUIT);
        let database = Self { postgres, port: text, _server: server };
        // It listens before it takes anybody.
        let ready = || {
            place.run(|| {
                let mut ready = database.client("psql");
                ready.args(["-d", "postgres", "-c", "select 1"]);
                ready.output().is_ok_and(|output| output.status.success())
            })
        };
        assert!(within(30, ready), "PostgreSQL is not ready");
        database
    }

    fn client(&self, program: &str) -> Command {
        let mut command = self.postgres.command(program);
        command.args(["-h", "127.0.0.1", "-p", &self.port, "-U", "nobody"]);
        command
    }

    fn tool(&self, place: &Place, program: &str, arguments: &[&str]) -> String {
        stdout(&run(place, self.client(program).args(arguments)))
    }
}

/// The sums of pgbench's tables must agree.
#[test]
fn postgres_keeps_its_books() {
    let Some(place) = Place::new() else { return };
    let Some(postgres) = Postgres::new() else { return };
    let bpftk = place.start(&[]);
    let database = Database::start(&place, postgres);
    let tool = |program: &str, arguments: &[&str]| database.tool(&place, program, arguments);
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

/// COPY into a table, and out of it: the same text. `BPFTK_ROUNDS` times as often, by hand.
#[test]
fn postgres_gives_back_what_it_copied() {
    let Some(place) = Place::new() else { return };
    let Some(postgres) = Postgres::new() else { return };
    let database = Database::start(&place, postgres);
    let psql = |query: &str| {
        let mut command = database.client("psql");
        command.env("PGOPTIONS", "-c statement_timeout=30s");
        command.args(["-qAtX", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", query]);
        command
    };
    run(&place, &mut psql("create unlogged table copied (number int, line text)"));
    // A table has no order of its own.
    let out = "copy (select * from copied order by number) to stdout";
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let file = tempfile::NamedTempFile::new().unwrap();
    for (name, args) in [
        ("without bpftk", None),
        ("redirected", Some(&[][..])),
        ("small bounds", Some(&["--max-queue", "64K"][..])),
    ] {
        let bpftk = args.map(|args| place.start(args));
        let mut sizes = vec![1024, if name == "redirected" { most() } else { most() / 20 }];
        sizes.extend((2..transfers(3)).map(|_| random_size(&mut random)));
        for size in &sizes {
            let mut text = String::with_capacity(size + 1000);
            for number in 0.. {
                if text.len() >= *size {
                    break;
                }
                text.push_str(&format!("{number}\t"));
                let many = random.usize(1..1000);
                text.extend(std::iter::repeat_with(|| random.alphanumeric()).take(many));
                text.push('\n');
            }
            fs::write(file.path(), &text).unwrap();
            run(&place, &mut psql("truncate copied"));
            let mut into = psql("copy copied from stdin");
            let told = place.run(|| into.stdin(fs::File::open(file.path()).unwrap()).output());
            let told = told.expect("psql runs");
            assert!(told.status.success(), "{name}, {size} bytes: {told:?}");
            let got = run(&place, &mut psql(out)).stdout;
            assert_same(&got, text.as_bytes(), &format!("{name}, {size} bytes"));
        }
        if let Some(bpftk) = bpftk {
            ended(bpftk);
        }
    }
}
