// SPDX-License-Identifier: MIT OR Apache-2.0

//! Two threads of one connection: a read that waits is woken by what the other does, and redirected it fails then.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::calls::{Pair, pipe, recv, send, splice, wait_for_data, write};
use super::{actor, but_blocking, row, steadily, watch};
use crate::support::{self, Actor};

const LO: &str = "127.0.0.1";
const MUCH: usize = 16 << 20;

/// Runs `work` in another thread, and goes on when it sleeps.
fn asleep<'scope, 'env>(
    scope: &'scope thread::Scope<'scope, 'env>,
    work: impl FnOnce() + Send + 'scope,
) -> thread::ScopedJoinHandle<'scope, ()> {
    let (sender, tid) = mpsc::channel();
    let it = scope.spawn(move || {
        sender.send(nix::unistd::gettid()).unwrap();
        work();
    });
    let path = format!("/proc/self/task/{}/stat", tid.recv().unwrap());
    let sleeps = || {
        let stat = std::fs::read_to_string(&path).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('S')
    };
    // Longer than a lock makes it wait.
    let waits = || {
        (0..5).all(|_| {
            thread::sleep(Duration::from_millis(10));
            sleeps()
        })
    };
    assert!(support::within(60, waits), "it does not wait");
    it
}

fn discard(fd: RawFd, mut many: usize) {
    let mut bytes = vec![0_u8; 1 << 16];
    while many > 0 {
        // SAFETY: room for as many bytes as are asked for.
        let got = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len().min(many), 0) };
        assert!(got > 0, "{many} to go: {}", std::io::Error::last_os_error());
        many -= got as usize;
    }
}

/// The row of an actor that does this.
fn of(work: impl FnOnce()) -> Value {
    let (pids, run) = watch(vec![actor(work)]);
    row(&run, pids[0])
}

#[test]
fn a_read_while_another_thread_waits_for_room_is_unsafe() {
    steadily(|| {
        if !support::root() {
            return;
        }
        let row = of(|| {
            let pair = Pair::new(LO);
            send(pair.server(), b"abc", 0).unwrap();
            wait_for_data(pair.client());
            thread::scope(|scope| {
                let writer = asleep(scope, || {
                    assert_eq!(send(pair.client(), &vec![0; MUCH], 0), Ok(MUCH));
                });
                assert_eq!(recv(pair.client(), 3, 0), Ok(3));
                discard(pair.server(), MUCH);
                writer.join().unwrap();
            });
        });
        // The send itself found nobody.
        assert_eq!(
            (&but_blocking(&row), &row["verdict"]),
            (&json!({"threads": 1, "room": 1}), &json!("unsafe"))
        );
    });
}

#[test]
fn a_send_without_room_while_another_thread_waits_to_read_is_unsafe() {
    type Sending = fn(RawFd);
    let ways: [(&str, Sending); 3] = [
        ("send", |fd| assert_eq!(send(fd, &vec![0; MUCH], 0), Ok(MUCH))),
        ("write", |fd| assert_eq!(write(fd, &vec![0; MUCH]), Ok(MUCH))),
        ("writev", |fd| {
            let bytes = vec![0_u8; MUCH];
            let part = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: MUCH };
            // SAFETY: one part, which is only read.
            assert_eq!(unsafe { libc::writev(fd, &part, 1) }, MUCH as isize);
        }),
    ];
    steadily(|| {
        if !support::root() {
            return;
        }
        let actors: Vec<Actor> = ways
            .iter()
            .map(|(_, sending)| {
                actor(|| {
                    let pair = Pair::new(LO);
                    thread::scope(|scope| {
                        let reader = asleep(scope, || assert_eq!(recv(pair.client(), 3, 0), Ok(3)));
                        let other = scope.spawn(|| discard(pair.server(), MUCH));
                        sending(pair.client());
                        other.join().unwrap();
                        send(pair.server(), b"abc", 0).unwrap();
                        reader.join().unwrap();
                    });
                })
            })
            .collect();
        let (pids, run) = watch(actors);
        for ((name, _), pid) in ways.iter().zip(pids) {
            let row = row(&run, pid);
            assert_eq!(but_blocking(&row), json!({"threads": 1}), "{name}: {row}");
        }
    });
}

#[test]
fn two_readers_are_unsafe() {
    steadily(|| {
        if !support::root() {
            return;
        }
        let row = of(|| {
            let pair = Pair::new(LO);
            thread::scope(|scope| {
                let read = || assert_eq!(recv(pair.client(), 1, 0), Ok(1));
                let readers = [asleep(scope, read), asleep(scope, read)];
                send(pair.server(), b"ab", 0).unwrap();
                for reader in readers {
                    reader.join().unwrap();
                }
            });
        });
        assert_eq!(but_blocking(&row), json!({"threads": 1}), "{row}");
    });
}

/// There is room for what is sent, or nobody waits in a read but only polls.
#[test]
fn a_send_that_does_not_wait_is_safe() {
    steadily(|| {
        if !support::root() {
            return;
        }
        let row = of(|| {
            let pair = Pair::new(LO);
            thread::scope(|scope| {
                let reader = asleep(scope, || assert_eq!(recv(pair.client(), 3, 0), Ok(3)));
                send(pair.client(), b"abc", 0).unwrap();
                write(pair.client(), b"def").unwrap();
                let [r, w] = pipe();
                write(w.as_raw_fd(), b"ghi").unwrap();
                assert_eq!(splice(r.as_raw_fd(), pair.client(), 3), Ok(3));
                discard(pair.server(), 9);
                send(pair.server(), b"abc", 0).unwrap();
                reader.join().unwrap();

                let poller = asleep(scope, || {
                    let mut poll = libc::pollfd { fd: pair.client(), events: 0, revents: 0 };
                    // SAFETY: one descriptor.
                    unsafe { libc::poll(&mut poll, 1, 1000) };
                });
                let other = scope.spawn(|| discard(pair.server(), MUCH));
                assert_eq!(send(pair.client(), &vec![0; MUCH], 0), Ok(MUCH));
                other.join().unwrap();
                poller.join().unwrap();
            });
        });
        assert_eq!(
            (&but_blocking(&row), &row["verdict"]),
            (&json!({}), &json!("caution")),
            "{row}"
        );
    });
}
