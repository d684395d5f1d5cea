// SPDX-License-Identifier: MIT OR Apache-2.0

//! tokio: edge-triggered epoll, and a read that gives less than was asked for is taken to have emptied the socket.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::tokio::io::{AsyncReadExt, AsyncWriteExt};
use ::tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use ::tokio::net::{TcpListener, TcpStream};
use ::tokio::runtime::Builder;
use ::tokio::time::{sleep, timeout};
use nix::sys::signal::Signal;

use super::super::work::PATIENCE;
use super::*;

const AT_A_TIME: usize = 12;

async fn send(mut to: OwnedWriteHalf, bytes: &[u8], mut random: fastrand::Rng) -> OwnedWriteHalf {
    let mut at = 0;
    while at < bytes.len() {
        let many = (400_000_f64.powf(random.f64()) as usize).min(bytes.len() - at);
        to.write_all(&bytes[at..at + many]).await.expect("it takes bytes");
        at += many;
        if random.u8(..) < 4 {
            sleep(Duration::from_micros(random.u64(..5000))).await;
        }
    }
    to.shutdown().await.expect("it has an end");
    to
}

async fn receive(
    mut from: OwnedReadHalf,
    bytes: &[u8],
    mut random: fastrand::Rng,
    name: &str,
) -> OwnedReadHalf {
    // Small reads of much take long.
    let least = usize::from(bytes.len() > 1_000_000);
    let mut buffer = vec![0; [1000, 16384, 100_000, 1 << 20][random.usize(least..4)]];
    let mut at = 0;
    loop {
        if random.u8(..) < 4 {
            sleep(Duration::from_micros(random.u64(..5000))).await;
        }
        let many =
            from.read(&mut buffer).await.unwrap_or_else(|e| panic!("{name}: {e} after {at}"));
        if many == 0 {
            break;
        }
        let sent = &bytes[at..(at + many).min(bytes.len())];
        assert_same(&buffer[..many], sent, &format!("{name}, after {at}"));
        at += many;
    }
    assert_eq!(at, bytes.len(), "{name}: an early end");
    from
}

/// One end of a connection, which sends a part of the content and expects another.
async fn end(
    stream: TcpStream,
    content: Arc<Content>,
    out: Range<usize>,
    into: Range<usize>,
    mut random: fastrand::Rng,
    name: String,
) {
    let (from, to) = stream.into_split();
    let (sender, receiver) = (random.fork(), random.fork());
    let (all, again) = (Arc::clone(&content), name.clone());
    let sending = ::tokio::spawn(async move { send(to, &all.0[out], sender).await });
    let receiving =
        ::tokio::spawn(async move { receive(from, &content.0[into], receiver, &again).await });
    // The halves end together.
    let _to = sending.await.unwrap_or_else(|e| panic!("{name}: {e}"));
    let _from = receiving.await.unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// So many connections, some at a time. Each has a listener of its own, so that both ends know which it is.
async fn connections(content: Arc<Content>, many: usize, mut random: fastrand::Rng) {
    let next = Arc::new(AtomicUsize::new(0));
    let parts = |random: &mut fastrand::Rng| Arc::new(content.parts(many, random));
    let (to_server, to_client) = (parts(&mut random), parts(&mut random));
    let workers: Vec<_> = (0..AT_A_TIME)
        .map(|_| {
            let (content, next, mut random) =
                (Arc::clone(&content), Arc::clone(&next), random.fork());
            let (to_server, to_client) = (Arc::clone(&to_server), Arc::clone(&to_client));
            ::tokio::spawn(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let addr = listener.local_addr().unwrap();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= many {
                        break;
                    }
                    let (there, back) = (to_server[number].clone(), to_client[number].clone());
                    let name =
                        format!("connection {number}: {} and {} bytes", there.len(), back.len());
                    let client = TcpStream::connect(addr).await.unwrap();
                    let (server, _) = listener.accept().await.unwrap();
                    let ends = [
                        (client, there.clone(), back.clone(), "client"),
                        (server, back, there, "server"),
                    ]
                    .map(|(stream, out, into, which)| {
                        let name = format!("{name}, {which}");
                        ::tokio::spawn(end(
                            stream,
                            Arc::clone(&content),
                            out,
                            into,
                            random.fork(),
                            name,
                        ))
                    });
                    for end in ends {
                        let done = timeout(PATIENCE, end).await;
                        done.unwrap_or_else(|_| panic!("{name}: not done in {PATIENCE:?}"))
                            .unwrap();
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("it says itself what is wrong");
    }
}

/// All of it, in the network namespace.
fn run(place: &Place, content: &Arc<Content>, many: usize, random: &mut fastrand::Rng) {
    let random = random.fork();
    let begin = std::time::Instant::now();
    place.run(|| {
        let runtime = Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap();
        runtime.block_on(connections(Arc::clone(content), many, random));
    });
    println!("{many} connections in {:.1?}", begin.elapsed());
}

#[test]
fn tokio_gets_what_tokio_sent() {
    let Some(place) = Place::new() else { return };
    place.spread();
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let content = Arc::new(Content::new(seed));
    run(&place, &content, 4, &mut random);
    let bounds =
        [&[][..], &["--max-queue", "64K"], &["--max-memory", "1M"], &["--max-messages", "8"]];
    for args in bounds {
        println!("{args:?}");
        let bpftk = place.start(args);
        run(&place, &content, transfers(12), &mut random);
        ended(bpftk);
    }
}

#[test]
fn tokio_gets_what_tokio_sent_while_bpftk_comes_and_goes() {
    let Some(place) = Place::new() else { return };
    place.spread();
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let content = Arc::new(Content::new(seed));
    let mut ends = random.fork();
    std::thread::scope(|scope| {
        let all = scope.spawn(|| run(&place, &content, transfers(30), &mut random));
        while !all.is_finished() {
            let queue = ["16K", "64K", "4M"][ends.usize(..3)];
            let bpftk = place.start(&["--max-queue", queue]);
            std::thread::sleep(Duration::from_millis(ends.u64(..300)));
            if ends.bool() {
                bpftk.kill();
            } else {
                bpftk.signal(Signal::SIGINT);
                assert_eq!(bpftk.wait().summary()["lost"], 0);
            }
        }
    });
}
