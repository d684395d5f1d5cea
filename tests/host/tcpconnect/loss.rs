// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is printed, plus what is told as lost, is what happened.

use std::net::SocketAddr;

use nix::sys::signal::Signal;

use super::with_backends;
use crate::support::{Tcp, silent_network};

#[test]
fn a_stopped_reader_loses_rows_and_counts_each() {
    // The ring buffer holds 1 MiB, some 9000 rows.
    let attempts = 15_000;
    with_backends(|traced| {
        let running = traced.start(&[]);
        running.signal(Signal::SIGSTOP);
        traced.netns.run(|| {
            for _ in 0..attempts {
                let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
            }
        });
        running.signal(Signal::SIGCONT);
        let run = running.stop();
        assert!(run.status.success());
        let summary = run.summary();
        let rows = run.events().len() as u64;
        let lost = summary["lost"].as_u64().unwrap();
        assert_eq!(rows + lost, attempts, "{summary}");
        assert!(lost > 0, "the test did not fill the buffer: {summary}");
        assert_eq!(summary["lost_ring_full"], lost);
    });
}

#[test]
fn a_full_table_loses_attempts_and_counts_each() {
    with_backends(|traced| {
        let running = traced.start(&["--max-pending", "10"]);
        let held = traced.netns.run(|| {
            silent_network();
            (0..30_u16)
                .map(|i| {
                    let socket = Tcp::v4().nonblocking();
                    let _ =
                        socket.connect(SocketAddr::new("203.0.113.2".parse().unwrap(), 1000 + i));
                    socket
                })
                .collect::<Vec<_>>()
        });
        let run = running.stop();
        drop(held);
        let summary = run.summary();
        let rows = run.events().len() as u64;
        let lost = summary["lost_table_full"].as_u64().unwrap();
        assert_eq!(rows + lost, 30, "{summary}");
        // A hash with room for 10 may hold some more on several CPUs' free lists, not three times as many.
        assert!(lost > 0 && rows >= 10, "{summary}");
    });
}

#[test]
fn a_slow_reader_of_our_output_loses_nothing_that_fits() {
    with_backends(|traced| {
        let ((), rows, _) = traced.trace(&[], || {
            for _ in 0..2_000 {
                let _ = Tcp::v4().connect("127.0.0.1:1".parse().unwrap());
            }
        });
        assert_eq!(rows.len(), 2_000);
    });
}
