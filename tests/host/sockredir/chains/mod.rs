// SPDX-License-Identifier: MIT OR Apache-2.0

//! Chains of programs that nobody here wrote: web servers, proxies and runtimes, which read by edge-triggered epoll, by level-triggered
//! epoll or blocking, keep connections for many transfers, and pass on what they get while more comes. Every byte is checked, in both
//! directions. Each chain is right without bpftk first.
//!
//! `BPFTK_ROUNDS` multiplies the transfers; `BPFTK_SEED` repeats the sizes of a run.

mod haproxy;
mod http;
mod nginx;
mod redis;
mod runtimes;
mod tokio_streams;

use std::env;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::programs::found;
use super::*;
use crate::support::emulated;

const LEAST: usize = 1024;
const MOST: usize = 50_000_000;

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}

/// So many transfers in `make test`.
pub(super) fn transfers(many: usize) -> usize {
    let many = if emulated() { many.div_ceil(10) } else { many };
    many * number("BPFTK_ROUNDS").unwrap_or(1) as usize
}

/// The longest transfer.
pub(super) fn most() -> usize {
    if emulated() { MOST / 20 } else { MOST }
}

/// As many from 1 to 10 KB as from 1 to 10 MB.
pub(super) fn random_size(random: &mut fastrand::Rng) -> usize {
    (LEAST as f64 * (most() as f64 / LEAST as f64).powf(random.f64())) as usize
}

/// Where the random sizes begin. It is printed, and `BPFTK_SEED` sets it.
pub(super) fn seed() -> u64 {
    let seed = number("BPFTK_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("BPFTK_SEED={seed}");
    seed
}

/// Bytes of which each transfer carries a part.
struct Content(Vec<u8>);

impl Content {
    fn new(seed: u64) -> Self {
        let mut bytes = vec![0; most()];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        Self(bytes)
    }

    fn part(&self, random: &mut fastrand::Rng) -> Range<usize> {
        self.part_of(random_size(random), random)
    }

    fn part_of(&self, many: usize, random: &mut fastrand::Rng) -> Range<usize> {
        let from = random.usize(..=self.0.len() - many);
        from..from + many
    }

    /// Parts for so many transfers, the shortest and the longest among them.
    fn parts(&self, many: usize, random: &mut fastrand::Rng) -> Vec<Range<usize>> {
        let mut parts: Vec<_> = (0..many).map(|_| self.part(random)).collect();
        for (part, size) in parts.iter_mut().zip([LEAST, self.0.len()]) {
            *part = self.part_of(size, random);
        }
        random.shuffle(&mut parts);
        parts
    }
}

/// Panics where bytes are not those that were sent, and says from where on.
pub(super) fn assert_same(got: &[u8], sent: &[u8], name: &str) {
    if got != sent {
        let same = got.iter().zip(sent).take_while(|(got, sent)| got == sent).count();
        panic!("{name}: {} bytes of {}, wrong from {same} on", got.len(), sent.len());
    }
}

/// A server that is installed here, or that tests/unpack.sh unpacked.
fn server(name: &str) -> Option<Command> {
    let unpacked = env::var_os("BPFTK_SERVERS").map(PathBuf::from);
    let program = unpacked.as_deref().and_then(|root| {
        ["usr/sbin", "usr/bin"]
            .map(|directory| root.join(directory).join(name))
            .into_iter()
            .find(|path| path.is_file())
    });
    let Some(program) = program else { return Some(Command::new(found(name)?)) };
    let libraries = Path::new("usr/lib").join(format!("{}-linux-gnu", env::consts::ARCH));
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", unpacked.unwrap().join(libraries));
    Some(command)
}

/// Ends bpftk, which must have redirected, and have lost nothing.
fn ended(run: Running) {
    let summary = run.stop().summary();
    println!("{summary}");
    assert!(summary["redirected"].as_u64().unwrap() > 0, "{summary}");
    assert_eq!(summary["lost"], 0, "{summary}");
}
