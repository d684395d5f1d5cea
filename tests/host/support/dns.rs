// SPDX-License-Identifier: MIT OR Apache-2.0

//! DNS answers by hand, and sockets that receive them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// A record of an answer: owner, then what it says.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    A(&'a str, Ipv4Addr),
    Aaaa(&'a str, Ipv6Addr),
    Cname(&'a str, &'a str),
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// A DNS message by hand: what bpftk parses must not come from the library that it parses with.
pub(crate) fn message(asked: &str, records: &[Record<'_>], padding: usize) -> Vec<u8> {
    let count = (records.len() + padding) as u16;
    let mut bytes = vec![0x12, 0x34, 0x81, 0x80, 0, 1];
    bytes.extend_from_slice(&count.to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0]);
    bytes.extend(encoded(asked));
    bytes.extend_from_slice(&[0, 1, 0, 1]);
    let mut add = |owner: &str, kind: u8, data: &[u8]| {
        bytes.extend(encoded(owner));
        bytes.extend_from_slice(&[0, kind, 0, 1, 0, 0, 0, 60]);
        bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        bytes.extend_from_slice(data);
    };
    // Text records first, so that what matters is at the end of a long message.
    for _ in 0..padding {
        let mut text = vec![200];
        text.extend([b'x'; 200]);
        add(asked, 16, &text);
    }
    for record in records {
        match record {
            Record::A(owner, ip) => add(owner, 1, &ip.octets()),
            Record::Aaaa(owner, ip) => add(owner, 28, &ip.octets()),
            Record::Cname(owner, target) => add(owner, 5, &encoded(target)),
        }
    }
    bytes
}

/// The question that `answer` answers; any bytes, if that is no message.
pub(crate) fn question_of(answer: &[u8]) -> Vec<u8> {
    let labels = answer.get(12..).unwrap_or_default();
    let mut end = 0;
    while let Some(&len) = labels.get(end)
        && (1..64).contains(&len)
    {
        end += 1 + usize::from(len);
    }
    let Some(asked) = labels.get(..end + 5) else { return b"a question".to_vec() };
    let mut bytes = vec![answer[0], answer[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(asked);
    bytes
}

/// Has a socket ask `server`, and be told `answer`.
pub(crate) fn over_udp(server: &str, answer: &[u8]) {
    let server: IpAddr = server.parse().unwrap();
    let resolver =
        UdpSocket::bind(SocketAddr::new(server, 53)).expect("port 53 of the namespace is free");
    let client = UdpSocket::bind(SocketAddr::new(server, 0)).unwrap();
    // Not connected, as many resolvers' sockets are not.
    client.send_to(&question_of(answer), resolver.local_addr().unwrap()).unwrap();
    resolver.send_to(answer, client.local_addr().unwrap()).unwrap();
    let mut buffer = vec![0; 65_536];
    assert_eq!(client.recv(&mut buffer).unwrap(), answer.len());
}

/// The same over TCP, in pieces of `chunk` bytes.
pub(crate) fn over_tcp(server: &str, answers: &[Vec<u8>], chunk: usize) {
    let server: IpAddr = server.parse().unwrap();
    let resolver = TcpListener::bind(SocketAddr::new(server, 53)).unwrap();
    let addr = resolver.local_addr().unwrap();
    let stream_of = |messages: &[Vec<u8>]| {
        let length = |message: &Vec<u8>| (message.len() as u16).to_be_bytes();
        messages.iter().flat_map(|it| [&length(it)[..], it].concat()).collect::<Vec<u8>>()
    };
    let questions: Vec<Vec<u8>> = answers.iter().map(|answer| question_of(answer)).collect();
    let (asked, wire) = (stream_of(&questions), stream_of(answers));
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = resolver.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            stream.read_exact(&mut vec![0; asked.len()]).unwrap();
            for piece in wire.chunks(chunk) {
                stream.write_all(piece).unwrap();
            }
        });
        let mut client = TcpStream::connect(addr).unwrap();
        // The length and the message in calls of their own, as some do.
        client.set_nodelay(true).unwrap();
        for piece in [&asked[..2], &asked[2..]] {
            client.write_all(piece).unwrap();
        }
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert_eq!(all, wire);
    });
}
