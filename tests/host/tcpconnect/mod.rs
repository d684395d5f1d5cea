// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk tcpconnect`, by every back end that this kernel has: one attempt is one row.

mod callers;
mod dns;
mod filters;
mod lifecycle;
mod loss;
mod refused;
mod results;
mod room;

use std::net::SocketAddr;

use serde_json::Value;

use crate::support::{Netns, Run, Running, backends, root};

const BACKENDS: [&str; 3] = ["fentry", "kprobe", "tracepoint"];

/// A prime number of attempts: a count that comes out right is no accident.
const MANY: usize = 23;

/// Runs `test` in a namespace of its own for each back end of this kernel.
fn with_backends(test: impl Fn(&Traced)) {
    if !root() {
        return;
    }
    for backend in backends("tcpconnect", &BACKENDS) {
        println!("back end {backend}");
        test(&Traced { backend, netns: Netns::new() });
    }
}

/// Where a test makes its attempts: only its own rows are looked at.
struct Traced {
    backend: &'static str,
    netns: Netns,
}

impl Traced {
    fn start(&self, args: &[&str]) -> Running {
        let path = self.netns.path();
        let mut all = vec!["tcpconnect", "--backend", self.backend, "--netns", &path];
        all.extend_from_slice(args);
        Running::json(&all)
    }

    /// What `work`, done in the namespace, looks like.
    fn trace<T: Send>(
        &self,
        args: &[&str],
        work: impl FnOnce() -> T + Send,
    ) -> (T, Vec<Value>, Run) {
        let running = self.start(args);
        let result = self.netns.run(work);
        let run = running.stop();
        assert!(run.status.success(), "{} {}", run.status, run.stderr);
        let events = run.events();
        let summary = run.summary();
        assert_eq!(summary["backend"], self.backend);
        assert_eq!((&summary["lost"], &summary["lost_dns"]), (&0.into(), &0.into()), "{summary}");
        assert_eq!(summary["attempts"], events.len() as u64, "{summary}");
        assert!(
            run.stderr.contains(" 0 entries left"),
            "an entry outlived its socket: {}",
            run.stderr
        );
        (result, events, run)
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is a string"))
}

/// Asserts what a row says of where from, where to, and how it went.
fn assert_row(row: &Value, from: Option<SocketAddr>, to: SocketAddr, result: &str) {
    let canonical = |addr: SocketAddr| addr.ip().to_canonical().to_string();
    assert_eq!(row["result"], result, "{row}");
    assert_eq!(row["daddr"], canonical(to), "{row}");
    assert_eq!(row["dport"], to.port(), "{row}");
    assert_eq!(row["family"], if to.ip().to_canonical().is_ipv4() { 4 } else { 6 }, "{row}");
    match from {
        Some(from) => {
            assert_eq!(row["saddr"], canonical(from), "{row}");
            assert_eq!(row["sport"], from.port(), "{row}");
        }
        None => assert_eq!(row["sport"], Value::Null, "{row}"),
    }
}
