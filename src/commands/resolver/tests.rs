// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names that real programs ask for: a resolver, TLS clients, HTTP clients. What needs none of them runs on every kernel.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::*;
use crate::kernel::btf::BtfSource;
use crate::kernel::names::Ear;
use crate::kernel::netns;
use crate::net::names::Source;

fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP needs root, to load BPF programs");
    }
    root
}

/// Whether these programs are installed.
fn installed(programs: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    programs.iter().all(|program| {
        let found =
            path.split(':').any(|dir| fs::exists(format!("{dir}/{program}")).unwrap_or(false));
        if !found {
            println!("SKIP no {program} here");
        }
        found
    })
}

/// Where nobody else has port 53.
fn in_new_network(work: impl FnOnce() + Send) {
    netns::within_new(|| {
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()), "ip works");
        work();
    })
    .expect("root may make a network namespace");
}

/// Takes in what was heard. Who asked is told apart by socket alone.
fn listen(ear: &Ear, resolver: &mut Resolver) {
    while let Some(heard) = ear.next().unwrap() {
        resolver.hear(&heard, |cookie| Some((1, cookie)));
    }
    assert_eq!(ear.lost().unwrap(), 0);
}

fn packet(addr: &str, port: u16) -> Packet {
    let (cookie, asker, passed_on, believed) = (0, None, false, false);
    let netns = netns::current().unwrap();
    Packet {
        addr: addr.parse().unwrap(),
        port: Some(port),
        cookie,
        asker,
        netns,
        passed_on,
        believed,
    }
}

fn names(resolver: &Resolver, addr: &str, port: u16) -> Vec<(String, Source)> {
    resolver.of(&packet(addr, port)).into_iter().map(|name| (name.text, name.source)).collect()
}

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn answers_of_a_real_resolver_name_addresses() {
    if !root() || !installed(&["dnsmasq", "getent", "unshare"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    // More addresses than a datagram of 512 bytes holds: the answer comes by TCP.
    let many: String = (1..=60).map(|i| format!("192.0.2.{i} many.example\n")).collect();
    let hosts = file("hosts", &many);
    let switch = file("nsswitch.conf", "hosts: dns\n");
    in_new_network(|| {
        let ear = Ear::start(&BtfSource::default()).unwrap();
        let mut resolver = Resolver::default();
        for (i, server) in ["127.0.0.1", "::1"].into_iter().enumerate() {
            let child = Command::new("dnsmasq")
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .args([
                    "--conf-file=/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--keep-in-foreground",
                ])
                .args([
                    "--bind-interfaces",
                    "--except-interface=nothing",
                    "--user=root",
                    "--pid-file=",
                ])
                .arg(format!("--listen-address={server}"))
                .arg(format!("--addn-hosts={hosts}"))
                .args(["--host-record=pop.cdn.example,198.51.100.7,2001:db8::7"])
                .args(["--cname=edge.example,pop.cdn.example", "--cname=www.example,edge.example"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("dnsmasq starts");
            let _server = Server(child);
            for _ in 0..500 {
                if TcpStream::connect(SocketAddr::new(server.parse().unwrap(), 53)).is_ok() {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
            let resolv = file(&format!("resolv{i}"), &format!("nameserver {server}\n"));
            let script = format!(
                "mount --bind {resolv} /etc/resolv.conf && mount --bind {switch} /etc/nsswitch.conf && \
                 getent ahosts www.example && getent ahosts many.example"
            );
            let output =
                Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
            let (text, error) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "by {server}: {text}{error}");
            assert!(text.contains("198.51.100.7") && text.contains("192.0.2.60"), "{text}");
            listen(&ear, &mut resolver);
            // By the name that was asked for, not by that at the end of the chain.
            let www = vec![("www.example".to_string(), Source::Dns)];
            assert_eq!(names(&resolver, "198.51.100.7", 443), www, "by {server}");
            assert_eq!(names(&resolver, "2001:db8::7", 443), www, "by {server}");
            let many = vec![("many.example".to_string(), Source::Dns)];
            for last in 1..=60 {
                assert_eq!(names(&resolver, &format!("192.0.2.{last}"), 0), many, "by {server}");
            }
            assert!(names(&resolver, "192.0.2.61", 0).is_empty());
            resolver = Resolver::default();
        }
    });
}

#[test]
fn real_clients_say_where_they_want_to() {
    if !root() || !installed(&["openssl", "curl"]) {
        return;
    }
    in_new_network(|| {
        let ear = Ear::start(&BtfSource::default()).unwrap();
        let mut resolver = Resolver::default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut run = |program: &str, args: &[&str]| {
            let child = Command::new(program)
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let _client = Server(child);
            let (mut accepted, _) = listener.accept().unwrap();
            // What it says first is all that matters; then it is hung up on.
            assert!(accepted.read(&mut [0; 16_384]).unwrap() > 5);
            listen(&ear, &mut resolver);
            let found = names(&resolver, "127.0.0.1", port);
            resolver = Resolver::default();
            found
        };
        let connect = format!("127.0.0.1:{port}");
        let found =
            run("openssl", &["s_client", "-connect", &connect, "-servername", "Sni.Example"]);
        assert_eq!(found, [("sni.example".to_string(), Source::Sni)]);
        let found = run("openssl", &["s_client", "-connect", &connect, "-noservername"]);
        assert_eq!(found, []);
        for (scheme, source) in [("https", Source::Sni), ("http", Source::Host)] {
            let resolve = format!("host.example:{port}:127.0.0.1");
            let url = format!("{scheme}://host.example:{port}/");
            let found = run("curl", &["-s", "--noproxy", "*", "--resolve", &resolve, &url]);
            assert_eq!(found, [("host.example".to_string(), source)], "{scheme}");
        }
    });
}

/// For the address of a name, 192.0.2.1.
fn a_question_and_its_answer(name: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let question = [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, b"\0\x01\0\x01"].concat();
    let mut answer = question.clone();
    answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
    answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04");
    answer.extend([192, 0, 2, 1]);
    (question, answer)
}

/// On every kernel: what sockets of the test itself hear and say.
#[test]
fn sockets_hear_answers_and_say_hosts() {
    if !root() {
        return;
    }
    in_new_network(|| {
        let ear = Ear::start(&BtfSource::default()).unwrap();
        let mut resolver = Resolver::default();
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut ask = |what: Option<&[u8]>, answer: &[u8]| {
            if let Some(question) = what {
                client.send_to(question, server.local_addr().unwrap()).unwrap();
                server.recv(&mut [0; 512]).unwrap();
            }
            server.send_to(answer, client.local_addr().unwrap()).unwrap();
            client.recv(&mut [0; 512]).unwrap();
            listen(&ear, &mut resolver);
            let found = names(&resolver, "192.0.2.1", 0);
            resolver = Resolver::default();
            found.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let (question, answer) = a_question_and_its_answer(b"\x01a\x07example\0");
        assert_eq!(ask(Some(&question), &answer), ["a.example"]);
        // One datagram from port 53 is nobody's answer, nor is one to another question.
        assert!(ask(None, &answer).is_empty());
        let (other, _) = a_question_and_its_answer(b"\x01b\x07example\0");
        assert!(ask(Some(&other), &answer).is_empty());
        let mut numbered = question.clone();
        numbered[0] ^= 1;
        assert!(ask(Some(&numbered), &answer).is_empty());

        // In two packets, the second of which is sent when the first has arrived; over both families.
        // The first has too little to tell what it is.
        for (addr, first) in [("127.0.0.1", 16), ("::1", 16), ("127.0.0.1", 1), ("::1", 5)] {
            let listener = TcpListener::bind(SocketAddr::new(addr.parse().unwrap(), 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut accepted, _) = listener.accept().unwrap();
            let (begin, end) = "GET / HTTP/1.1\r\nHost: two.example:80\r\n\r\n".split_at(first);
            for piece in [begin, end] {
                stream.write_all(piece.as_bytes()).unwrap();
                accepted.read_exact(&mut vec![0; piece.len()]).unwrap();
            }
            accepted.write_all(b"HTTP/1.1 200 OK\r\nHost: no.example\r\n\r\n").unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
            listen(&ear, &mut resolver);
            assert_eq!(names(&resolver, addr, port), [("two.example".to_string(), Source::Host)]);
            // What the server says is no name of the client.
            let client = stream.local_addr().unwrap();
            assert_eq!(names(&resolver, addr, client.port()), []);
        }
    });
}

/// More than is wanted of a connection is not copied.
#[test]
fn only_beginnings_are_listened_to() {
    if !root() {
        return;
    }
    in_new_network(|| {
        let ear = Ear::start(&BtfSource::default()).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        for first in
            [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01\x02\x00\x01", b"\x00binary", b"xy", b"GE"]
        {
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut accepted, _) = listener.accept().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| accepted.read_to_end(&mut Vec::new()).unwrap());
                stream.write_all(first).unwrap();
                stream.write_all(&vec![b'x'; 1 << 20]).unwrap();
                drop(stream);
            });
            let mut bytes = 0;
            while let Some(heard) = ear.next().unwrap() {
                if let Heard::Opening(opening) = heard
                    && opening.port == port
                {
                    bytes += opening.data.len();
                }
            }
            match first {
                // Too little to tell what it is: as much as TLS may take, and what was sent again.
                b"GE" => assert!((500..=20_000).contains(&bytes), "{bytes}"),
                [b'G' | 0x16, ..] => assert!((500..=8192).contains(&bytes), "{bytes}"),
                _ => assert_eq!(bytes, 0),
            }
        }
    });
}
