// SPDX-License-Identifier: MIT OR Apache-2.0

//! `sockredir` beside plain TCP and the usual example of redirection: `figures sockredir BPFTK`.
//!
//! A connection of each kind is made in a cgroup of its own; both ends are threads on one processor. All kinds take turns, and the
//! median of the rounds counts.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

use super::{median, ratio};
use crate::naive::Naive;

const ROUNDS: usize = 9;
/// Request and answer of this size, so often in a round; and at most how long it may take beside TCP.
const EXCHANGES: [(usize, usize, f64); 4] =
    [(64, 4000, 0.65), (1024, 4000, 0.65), (16384, 2000, f64::INFINITY), (65536, 1000, 0.5)];
const STREAMS: [usize; 4] = [64, 1024, 16384, 65536];
const STREAM_TIME: Duration = Duration::from_millis(200);

/// A cgroup, and what happens to connections in it.
struct Kind {
    name: &'static str,
    cgroup: PathBuf,
}

impl Drop for Kind {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.cgroup);
    }
}

pub(super) fn figures(bpftk: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    if !Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success() {
        bail!("cannot set lo up");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
        .context("cgroup v2 is not mounted")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup")?;
    let home = Path::new(mount).join(own.trim_start_matches('/'));
    let kind = |name: &'static str| -> Result<Kind> {
        let cgroup = Path::new(mount).join(format!("bpftk-bench-{name}-{}", std::process::id()));
        fs::create_dir(&cgroup)?;
        Ok(Kind { name, cgroup })
    };
    let kinds = [kind("tcp")?, kind("bpftk")?, kind("naive")?];
    let mut redirecting = start(bpftk, &kinds[1].cgroup)?;
    let naive = Naive::attach(&kinds[2].cgroup, true);
    let outcome = measure(&kinds);
    drop(naive);
    nix::sys::signal::kill(Pid::from_raw(redirecting.id() as i32), nix::sys::signal::SIGINT)?;
    redirecting.wait()?;
    enter(&home)?;
    outcome
}

fn start(bpftk: &str, cgroup: &Path) -> Result<Child> {
    let mut child = Command::new(bpftk)
        .args(["sockredir", "-v", "-i", "1h", "--learn", "0", "--cgroup"])
        .arg(cgroup)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take().context("stderr is a pipe")?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
    loop {
        match lines.next() {
            Some(Ok(line)) if line.contains("armed") => break,
            Some(Ok(line)) => eprintln!("{line}"),
            _ => bail!("bpftk sockredir does not start"),
        }
    }
    // It says one thing more, at its end.
    thread::spawn(move || lines.count());
    Ok(child)
}

fn enter(cgroup: &Path) -> Result<()> {
    Ok(fs::write(cgroup.join("cgroup.procs"), "0")?)
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

fn connect(kind: &Kind) -> Result<(TcpStream, TcpStream)> {
    enter(&kind.cgroup)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let server = listener.accept()?.0;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}

/// The median time of a request and its answer, in µs.
fn exchanges(kind: &Kind, size: usize, many: usize) -> Result<f64> {
    let (mut client, mut server) = connect(kind)?;
    let answering = thread::spawn(move || -> Result<()> {
        pin(0)?;
        let mut bytes = vec![0; size];
        while server.read_exact(&mut bytes).is_ok() {
            server.write_all(&bytes)?;
        }
        Ok(())
    });
    let mut bytes = vec![7; size];
    let mut times = Vec::with_capacity(many);
    for _ in 0..many {
        let begin = Instant::now();
        client.write_all(&bytes)?;
        client.read_exact(&mut bytes)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    drop(client);
    answering.join().map_err(|_| anyhow::anyhow!("the server"))??;
    Ok(median(times))
}

/// What gets to the other end, in Mbit/s, by sends of this size.
fn stream(kind: &Kind, size: usize, reader_cpu: usize) -> Result<f64> {
    let (mut client, mut server) = connect(kind)?;
    let reading = thread::spawn(move || -> Result<usize> {
        pin(reader_cpu)?;
        let mut bytes = vec![0; 1 << 18];
        let mut all = 0;
        loop {
            match server.read(&mut bytes) {
                Ok(0) => return Ok(all),
                Ok(many) => all += many,
                // The kernel says so when something else woke it.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    });
    let bytes = vec![7; size];
    let begin = Instant::now();
    while begin.elapsed() < STREAM_TIME {
        for _ in 0..16 {
            client.write_all(&bytes)?;
        }
    }
    drop(client);
    let all = reading.join().map_err(|_| anyhow::anyhow!("the reader"))??;
    Ok(all as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e6)
}

/// A median for each kind, whose rounds took turns.
fn in_turn(
    kinds: &[Kind],
    rounds: usize,
    mut one: impl FnMut(&Kind) -> Result<f64>,
) -> Result<Vec<f64>> {
    let mut values = vec![Vec::new(); kinds.len()];
    for _ in 0..rounds {
        for (kind, values) in kinds.iter().zip(&mut values) {
            values.push(one(kind)?);
        }
    }
    Ok(values.into_iter().map(median).collect())
}

fn measure(kinds: &[Kind; 3]) -> Result<()> {
    pin(0)?;
    let names = kinds.each_ref().map(|kind| kind.name);
    println!("request and answer on one processor, p50 in us: {}", names.join(", "));
    for (size, many, limit) in EXCHANGES {
        let p50 = in_turn(kinds, ROUNDS, |kind| exchanges(kind, size, many))?;
        println!("{size:>6} B  {:>8.2} {:>8.2} {:>8.2}", p50[0], p50[1], p50[2]);
        ratio(
            &format!("{size} B, bpftk / tcp"),
            p50[1] / p50[0],
            limit.is_finite().then_some(limit),
        );
        ratio(&format!("{size} B, bpftk / naive"), p50[1] / p50[2], Some(1.1));
    }
    let last = thread::available_parallelism()?.get() - 1;
    for (cpu, place) in [(0, "one processor"), (last, "two processors")] {
        println!("one way on {place}, Mbit/s: {}", names.join(", "));
        for size in STREAMS {
            let rates = in_turn(kinds, 5, |kind| stream(kind, size, cpu))?;
            println!(
                "{size:>6} B  {:>8.0} {:>8.0} {:>8.0}   bpftk / tcp {:.2}",
                rates[0],
                rates[1],
                rates[2],
                rates[1] / rates[0]
            );
        }
    }
    Ok(())
}
