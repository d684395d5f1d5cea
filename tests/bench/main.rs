// SPDX-License-Identifier: MIT OR Apache-2.0

//! The figures of `make bench`: `figures guest BPFTK [NAME COMMAND...]...` on the kernel where all tools run, and `figures host
//! BPFTK` and `figures sockredir BPFTK` on this machine's own. Peers are separated by `--`. See README.md here.

#[path = "../host/sockredir/naive.rs"]
mod naive;
mod sockredir;
mod tool;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

use tool::{Tool, count_lines};

/// Our name as a task: rows of ours have it. libbpf-tools cuts at 12.
const COMM: &str = "figures";
/// Where nobody listens.
const CLOSED: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));

/// How often each tool is started.
const STARTS: usize = 7;
/// Connects in one measured round, half of them refused; rounds in a session; sessions of each tool.
const CONNECTS: u32 = 400;
const ROUNDS: usize = 4;
const PASSES: usize = 3;
/// The load on the host: this many a second, for so long, from two threads.
const RATE: u32 = 10_000;
const SECONDS: u32 = 5;
const THREADS: u32 = 2;

fn main() -> ExitCode {
    // `cargo test --benches` runs it without arguments of ours.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["guest", bpftk, ref peers @ ..] => guest(bpftk, peers),
        ["host", bpftk] => host(bpftk),
        ["sockredir", bpftk] => sockredir::figures(bpftk),
        _ => {
            eprintln!(
                "usage: figures guest BPFTK [-- NAME COMMAND...]... | figures host BPFTK | figures sockredir BPFTK"
            );
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("figures: cannot measure: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What was measured of one tool.
struct Figures {
    name: String,
    /// From exec to the first row.
    armed: Duration,
    /// From exec to its own word for it.
    said: Option<Duration>,
    peak_rss: u64,
    /// Nanoseconds of its programs in one connect.
    bpf: f64,
    /// Nanoseconds by which a connect takes longer, traps included.
    longer: f64,
}

fn guest(bpftk: &str, peers: &[&str]) -> Result<()> {
    rename()?;
    let mut tools = vec![
        Tool::new("bpftk", &[bpftk, "tcpconnect", "-v"]),
        Tool::new("bpftk kprobe", &[bpftk, "tcpconnect", "-v", "--backend", "kprobe"]),
        Tool::new("bpftk tracepoint", &[bpftk, "tcpconnect", "-v", "--backend", "tracepoint"]),
    ];
    for peer in peers.split(|word| *word == "--").filter(|p| !p.is_empty()) {
        tools.push(Tool::new(peer[0], &peer[1..]));
    }
    // The caches are warm for all of them, then.
    for tool in &tools {
        tool.start()?.stop()?;
    }
    // In turn, so that a change of the machine's load meets all of them alike; and the best of each counts, since other
    // work on the machine only ever adds.
    let mut starts: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); tools.len()];
    for _ in 0..STARTS {
        for (tool, (rows, said)) in tools.iter().zip(&mut starts) {
            let session = tool.start()?;
            rows.push(session.first_row.as_secs_f64());
            said.extend(session.said_armed.map(|time| time.as_secs_f64()));
            session.stop()?;
        }
    }
    let load = Load::new()?;
    load.round()?;
    let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); tools.len()];
    for _ in 0..PASSES {
        for (tool, costs) in tools.iter().zip(&mut costs) {
            costs.push(cost(tool, &load).with_context(|| tool.name.clone())?);
        }
    }
    let mut figures = Vec::new();
    for ((tool, (rows, said)), costs) in tools.iter().zip(starts).zip(&costs) {
        let least = |what: fn(&Cost) -> f64| best(costs.iter().map(what));
        figures.push(Figures {
            name: tool.name.clone(),
            armed: Duration::from_secs_f64(best(rows)),
            said: (!said.is_empty()).then(|| Duration::from_secs_f64(best(said))),
            peak_rss: costs.iter().map(|cost| cost.peak_rss).max().unwrap_or(0),
            bpf: least(|cost| cost.bpf),
            longer: least(|cost| cost.with) - least(|cost| cost.without),
        });
    }
    print(&figures);
    Ok(())
}

/// One session of a tool. The times are nanoseconds a connect, of its best round.
#[derive(Clone, Copy)]
struct Cost {
    peak_rss: u64,
    bpf: f64,
    with: f64,
    without: f64,
}

fn cost(tool: &Tool, load: &Load) -> Result<Cost> {
    let (mut without, mut with, mut bpf) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(load.round()?);
    }
    let session = tool.start()?;
    session.settle(0);
    let mut rows = session.rows.load(Ordering::Relaxed);
    // Statistics only in the second part: keeping them takes time as well.
    let statistics = "/proc/sys/kernel/bpf_stats_enabled";
    for round in 0..2 * ROUNDS {
        if round == ROUNDS {
            fs::write(statistics, "1").context(statistics)?;
        }
        let before = session.bpf_time()?;
        let time = load.round()?;
        if round < ROUNDS {
            with.push(time);
        } else {
            bpf.push((session.bpf_time()? - before) as f64 / f64::from(CONNECTS));
        }
        // It has caught up before the next one: what is lost costs less.
        rows += u64::from(CONNECTS);
        session.settle(rows);
    }
    fs::write(statistics, "0").context(statistics)?;
    let peak_rss = session.peak_rss()?;
    let printed = session.rows.load(Ordering::Relaxed);
    if printed < rows {
        eprintln!("note: {} printed {} rows too few", tool.name, rows - printed);
    }
    session.stop()?;
    Ok(Cost { peak_rss, bpf: best(bpf), with: best(with), without: best(without) })
}

/// Connects to a port that is open and to one that isn't.
struct Load {
    open: SocketAddr,
}

impl Load {
    fn new() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let open = listener.local_addr()?;
        thread::spawn(move || {
            for stream in listener.incoming() {
                drop(stream);
            }
        });
        Ok(Self { open })
    }

    /// Nanoseconds a connect.
    fn round(&self) -> Result<f64> {
        let begin = Instant::now();
        for number in 0..CONNECTS {
            if number % 2 == 0 {
                let _ = TcpStream::connect(CLOSED);
            } else {
                reset(&TcpStream::connect(self.open)?)?;
            }
        }
        Ok(begin.elapsed().as_nanos() as f64 / f64::from(CONNECTS))
    }
}

/// Closing it then sends a reset: no TIME_WAIT, so the ports never run out.
fn reset(stream: &TcpStream) -> Result<()> {
    use std::os::fd::AsRawFd;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the socket is open while `stream` is borrowed, and the length is that of the value.
    let status = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        )
    };
    if status != 0 {
        bail!(std::io::Error::last_os_error());
    }
    Ok(())
}

fn print(figures: &[Figures]) {
    println!(
        "TOOL                ARMED ms   SAID ms   RSS KiB   BPF ns/connect   LONGER ns/connect"
    );
    for tool in figures {
        let said = tool.said.map_or("-".into(), |time| format!("{:.1}", ms(time)));
        println!(
            "{:<18} {:>9.1} {:>9} {:>9} {:>16.0} {:>19.0}",
            tool.name,
            ms(tool.armed),
            said,
            tool.peak_rss,
            tool.bpf,
            tool.longer
        );
    }
    println!();
    let ours = &figures[0];
    for peer in figures.iter().filter(|f| !f.name.starts_with("bpftk")) {
        // The limits are against libbpf-tools; of others the ratio alone says enough.
        let limit = |limit: f64| peer.name.contains("libbpf").then_some(limit);
        let name = &peer.name;
        ratio(&format!("armed, bpftk / {name}"), ms(ours.armed) / ms(peer.armed), limit(0.5));
        ratio(
            &format!("peak RSS, bpftk / {name}"),
            ours.peak_rss as f64 / peer.peak_rss as f64,
            limit(1.0),
        );
        for ours in figures.iter().filter(|f| f.name.starts_with("bpftk")) {
            // What the kernel chose counts; the others are there to compare.
            let limit = limit(1.2).filter(|_| ours.name == "bpftk");
            ratio(
                &format!("BPF time a connect, {} / {name}", ours.name),
                ours.bpf / peer.bpf,
                limit,
            );
            ratio(
                &format!("connect takes longer, {} / {name}", ours.name),
                ours.longer / peer.longer,
                None,
            );
        }
    }
}

fn ratio(what: &str, value: f64, limit: Option<f64>) {
    let verdict = match limit {
        Some(limit) if value <= limit => format!("   at most {limit:.2}: PASS"),
        Some(limit) => format!("   at most {limit:.2}: OVER"),
        None => String::new(),
    };
    println!("{what:<56} {value:>6.2}{verdict}");
}

fn host(bpftk: &str) -> Result<()> {
    rename()?;
    if !nix::unistd::geteuid().is_root() {
        bail!("tracing needs root");
    }
    // Our own loopback: nobody else's connects, and ours are nobody else's.
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.context("cannot run ip")?.success() {
        bail!("cannot set lo up");
    }

    let tool = Tool::new("bpftk", &[bpftk, "tcpconnect", "-v"]);
    let back_end = tool.start()?.stop()?;
    let back_end = back_end
        .lines()
        .find_map(|line| line.split_once("back end "))
        .map_or("?", |(_, name)| name);
    let (mut rows, mut said) = (Vec::new(), Vec::new());
    for _ in 0..3 * STARTS {
        let session = tool.start()?;
        rows.push(ms(session.first_row));
        said.extend(session.said_armed.map(ms));
        session.stop()?;
    }
    if said.is_empty() {
        bail!("bpftk -v did not say that it is armed");
    }
    let best = best(said.iter().copied());
    let armed = median(said);
    println!(
        "armed, back end {back_end}: {armed:.1} ms from exec (best {best:.1}), first row {:.1} ms   at most 20: {}",
        median(rows),
        if armed <= 20.0 { "PASS" } else { "OVER" }
    );
    under_load(bpftk)
}

/// Connects at a fixed rate, then the books: rows printed and attempts counted against connects made.
fn under_load(bpftk: &str) -> Result<()> {
    let mut child = Command::new(bpftk)
        .args(["tcpconnect", "-v", "--format", "json", "--netns", "self"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().context("stdout is a pipe")?;
    let rows = thread::spawn(move || count_lines(stdout));
    let mut stderr = std::io::BufReader::new(child.stderr.take().context("stderr is a pipe")?);
    let mut line = String::new();
    loop {
        line.clear();
        if std::io::BufRead::read_line(&mut stderr, &mut line)? == 0 {
            bail!("bpftk ended: {}", child.wait()?);
        }
        if line.contains("armed") {
            break;
        }
    }
    thread::spawn(move || count_lines(stderr));

    let begin = Instant::now();
    let each = RATE / THREADS * SECONDS;
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for number in 0..each {
                    let due = Duration::from_secs(1) * number / (RATE / THREADS);
                    if let Some(early) = due.checked_sub(begin.elapsed()) {
                        thread::sleep(early);
                    }
                    let _ = TcpStream::connect(CLOSED);
                }
            });
        }
    });
    let made = u64::from(each * THREADS);
    let rate = made as f64 / begin.elapsed().as_secs_f64();
    thread::sleep(Duration::from_millis(200));
    let rss = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let rss = rss.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let pid = nix::unistd::Pid::from_raw(child.id().try_into()?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    child.wait()?;
    let (lines, last) = rows.join().map_err(|_| anyhow::anyhow!("no rows"))?;
    let summary: serde_json::Value = serde_json::from_str(&last).context("the summary")?;
    let exact = summary["attempts"] == made && lines == made + 1 && summary["lost"] == 0;
    println!(
        "{made} connects, {rate:.0} a second: {} attempts counted, {} rows, {} lost, peak RSS {}   nothing lost at {RATE}: {}",
        summary["attempts"],
        lines - 1,
        summary["lost"],
        rss.unwrap_or("?").trim(),
        match (exact, rate >= f64::from(RATE) * 0.99) {
            (true, true) => "PASS",
            (true, false) => "the machine was too busy for the rate",
            (false, _) => "OVER",
        }
    );
    Ok(())
}

/// Tasks are named after the file, which has a hash in its name.
fn rename() -> Result<()> {
    // The first thread's name is the process's.
    Ok(fs::write("/proc/self/comm", COMM)?)
}

fn best(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
