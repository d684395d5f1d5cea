// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the guard does before it knows a program: its connections stay with TCP, and it is watched.

use std::ffi::CStr;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::guard::{ask, ask_for_tcp_info, receive, with_early_clients};
use super::work::{PATIENCE, listen, readable, recv};
use super::*;
use crate::support::Actor;

/// For how long a program is watched here, and somewhat longer: what is tested takes time to pass.
const LEARN: [&str; 2] = ["--learn", "1s"];
const LONGER: Duration = Duration::from_millis(1300);

/// Makes a program of this process that is not the others'.
fn call_myself(name: &CStr) {
    // SAFETY: a string that ends with 0.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }, 0);
}

/// Serves in a process of its own until its end, at a port of its own or at this one, and says which.
fn server(name: &'static CStr, port: u16, serve: fn(&TcpListener)) -> (Actor, u16) {
    let mut actor = Actor::new(move |stage| {
        call_myself(name);
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        stage.put(listener.local_addr().unwrap().port().into());
        serve(&listener);
    });
    actor.go();
    let port = actor.get() as u16;
    (actor, port)
}

/// Sends back what it gets, on several connections at a time.
fn echo(listener: &TcpListener) {
    let mut streams: Vec<TcpStream> = Vec::new();
    loop {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polls = vec![poll(listener.as_raw_fd())];
        polls.extend(streams.iter().map(|stream| poll(stream.as_raw_fd())));
        // SAFETY: as many as are stated.
        assert!(unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) } > 0);
        let mut ready = polls[1..].iter().map(|poll| poll.revents != 0);
        streams.retain(|mut stream| {
            let mut bytes = [0; 4096];
            if !ready.next().unwrap() {
                return true;
            }
            let many = recv(stream, &mut bytes, libc::MSG_DONTWAIT).unwrap_or(0);
            many > 0 && stream.write_all(&bytes[..many]).is_ok()
        });
        if polls[0].revents != 0 {
            streams.push(listener.accept().unwrap().0);
        }
    }
}

/// The same by splice(2), as proxies do it.
fn splice(listener: &TcpListener) {
    let (mut from, into) = std::io::pipe().unwrap();
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(readable(&stream, PATIENCE));
        let none = std::ptr::null_mut();
        let (socket, pipe, flags) = (stream.as_raw_fd(), into.as_raw_fd(), libc::SPLICE_F_NONBLOCK);
        // Redirected, it would move nothing.
        // SAFETY: descriptors without offsets.
        let many = unsafe { libc::splice(socket, none, pipe, none, 4096, flags) };
        let mut bytes = vec![0; usize::try_from(many).unwrap_or(0)];
        from.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    }
}

fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

/// How the next connection went that was closed, in both directions alike: redirected, or why not.
fn next_row(run: &Running) -> String {
    loop {
        let row: Value = serde_json::from_str(&run.line()).unwrap();
        if row["type"] != "event" {
            continue;
        }
        println!("{} {} {}", row["dport"], row["state_to_server"], row["reason_to_server"]);
        let direction = |to: &str| match row[format!("state_{to}")].as_str() {
            Some("tcp") => row[format!("reason_{to}")].as_str().unwrap().to_string(),
            state => state.unwrap_or("?").to_string(),
        };
        let (there, back) = (direction("to_server"), direction("to_client"));
        assert_eq!(there, back, "{row}");
        return there;
    }
}

/// One connection, and how it went.
fn call(run: &Running, port: u16) -> String {
    ask(&connect(port), b"x");
    next_row(run)
}

/// The same by another program, so often.
fn called_by(name: &'static CStr, run: &Running, port: u16, calls: usize) -> Vec<String> {
    let mut actor = Actor::new(move |stage| {
        call_myself(name);
        for _ in 0..calls {
            ask(&connect(port), b"x");
            stage.pause();
        }
    });
    actor.go();
    let mut rows = Vec::new();
    for _ in 0..calls {
        rows.push(next_row(run));
        thread::sleep(LONGER);
        actor.go();
    }
    actor.finish();
    rows
}

#[test]
fn a_program_is_let_in_when_it_was_watched_at_work_and_to_an_end() {
    let Some(place) = Place::new() else { return };
    place.run(|| {
        let (first_server, port) = server(c"echo", 0, echo);
        let run = place.learning(&[&LEARN[..], &["--events"]].concat());
        let long = connect(port);
        let begin = Instant::now();
        while begin.elapsed() < LONGER {
            ask(&long, b"x");
            thread::sleep(Duration::from_millis(30));
        }
        // How they end a connection is not known yet. By this one it is.
        assert_eq!(call(&run, port), "learning");
        // On a slow machine a tenth of a second may have gone by without any work.
        while call(&run, port) != "redirect" {
            assert!(begin.elapsed() < PATIENCE, "it learns without end");
            ask(&long, b"x");
        }
        // A program that is not known, and that is not at work while time passes.
        assert_eq!(called_by(c"idle", &run, port, 2), ["learning", "learning"]);
        // A port that is not known, of a program that is.
        let (_second_server, second) = server(c"echo", 0, echo);
        assert_eq!(call(&run, second), "learning");
        // The program comes back to its port; and then another one does.
        drop((first_server, long));
        assert_eq!(next_row(&run), "learning", "the long one goes on as it began");
        let (again, _) = server(c"echo", port, echo);
        assert_eq!(call(&run, port), "learning", "its first listener was older than the guard");
        drop(again);
        let (_other, _) = server(c"other", port, echo);
        assert_eq!(call(&run, port), "learning");
        let summary = run.stop().summary();
        assert_eq!(summary["reasons"]["guarded"], 0, "{summary}");
    });
}

#[test]
fn who_splices_is_never_redirected_and_others_are_in_time() {
    let Some(place) = Place::new() else { return };
    place.run(|| {
        let run = place.learning(&[&LEARN[..], &["--events"]].concat());
        let (_splicing, splicing) = server(c"splices", 0, splice);
        let (echo_server, port) = server(c"echo", 0, echo);
        let began = Instant::now();
        let mut first = true;
        loop {
            let client = connect(splicing);
            ask(&client, b"x");
            drop(client);
            assert_eq!(next_row(&run), if first { "learning" } else { "guarded" });
            let row = call(&run, port);
            if first {
                run.until_told(&format!("connections to port {splicing} stay with TCP"));
                first = false;
            }
            if row == "redirect" {
                break;
            }
            if row != "learning" {
                panic!("{row}: {}", run.stop().stderr);
            }
            assert!(began.elapsed() < PATIENCE, "it learns without end");
            thread::sleep(Duration::from_millis(20));
        }
        assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
        // This listener was seen to begin: its program comes back to its port, and need not be watched again.
        drop(echo_server);
        let (_echo, _) = server(c"echo", port, echo);
        assert_eq!(call(&run, port), "redirect");
        let client = connect(splicing);
        ask(&client, b"x");
        drop(client);
        assert_eq!(next_row(&run), "guarded");
        let summary = run.stop().summary();
        assert_eq!(with_early_clients(&summary), 4, "{summary}");
    });
}

/// What one process of a program was seen to do is held against the next one; and what would fail in the map is seen on
/// connections that are TCP's.
#[test]
fn processes_of_a_program_are_known_by_each_other() {
    let Some(place) = Place::new() else { return };
    place.run(|| {
        let ((one, first), (other, second)) = (listen("127.0.0.1"), listen("127.0.0.1"));
        let run = place.learning(&["--events"]);
        let process = |name: &'static CStr, addr: SocketAddr, work: fn(TcpStream)| {
            let mut actor = Actor::new(move |_| {
                call_myself(name);
                work(TcpStream::connect(addr).unwrap());
            });
            actor.go();
            actor
        };
        let serve = |listener: &TcpListener| {
            let (mut stream, _) = listener.accept().unwrap();
            receive(&stream, 1);
            stream.write_all(b"y").unwrap();
            stream
        };
        let asks = |stream: TcpStream| {
            (&stream).write_all(b"x").unwrap();
            assert_eq!(receive(&stream, 1), b"y");
        };
        let unsafe_one = process(c"asks", first, |stream| {
            (&stream).write_all(b"x").unwrap();
            assert_eq!(receive(&stream, 1), b"y");
            ask_for_tcp_info(&stream);
        });
        drop(serve(&one));
        unsafe_one.finish();
        run.until_told("tcp-info (1)");
        assert_eq!(next_row(&run), "learning");
        for (name, expected) in [(c"asks", "guarded"), (c"does not", "learning")] {
            let actor = process(name, second, asks);
            drop(serve(&other));
            actor.finish();
            assert_eq!(next_row(&run), expected);
        }
        let half_closing = process(c"half-closes", second, |mut stream| {
            stream.write_all(b"x").unwrap();
            assert_eq!(receive(&stream, 1), b"y");
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        });
        let stream = serve(&other);
        run.until_told("half-close (1)");
        drop(stream);
        half_closing.finish();
    });
}
