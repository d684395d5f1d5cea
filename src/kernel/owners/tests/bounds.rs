// SPDX-License-Identifier: MIT OR Apache-2.0

//! What there may be much of, and what becomes of it: turns, records, looks at open files.

use super::*;

/// Two processes that take turns at one socket, as workers do that share it.
#[test]
fn turns_at_one_socket_are_told_but_not_all_of_them() {
    if !root() {
        return;
    }
    each_way(|mut owners, way| {
        if way.is_none() {
            return;
        }
        let socket = udp();
        let (cookie, fd) = (cookie_of(&socket), socket.as_raw_fd());
        let test = nix::unistd::getpid().as_raw();
        let mut other = Actor::new(move |stage| {
            let socket = UdpSocket::from(duplicate_of(test, fd));
            for _ in 0..200 {
                socket.send_to(b"x", (Ipv4Addr::LOCALHOST, 9)).unwrap();
                stage.put(0);
                stage.pause();
            }
            // Until it has been the only one for long enough.
            put(stage, &socket);
            loop {
                socket.send_to(b"x", (Ipv4Addr::LOCALHOST, 9)).unwrap();
                thread::sleep(Duration::from_millis(5));
            }
        });
        other.go();
        let begin = Instant::now();
        let (mut told, mut last) = (0, None);
        for _ in 0..200 {
            assert_eq!(other.get(), 0);
            socket.send_to(b"x", (Ipv4Addr::LOCALHOST, 9)).unwrap();
            other.go();
            let by = now(&mut owners, cookie);
            told += usize::from(by != last);
            last = by;
        }
        let most = begin.elapsed().as_millis() / 100 + 3;
        let (same, who) = get(&mut other);
        assert_eq!(same, cookie);
        assert!((1..=most as usize).contains(&told), "{told} of at most {most}");
        let found = (0..500).find_map(|_| {
            thread::sleep(Duration::from_millis(10));
            now(&mut owners, cookie).filter(|(by, _)| *by == who)
        });
        assert_eq!(found, Some((who, Source::Sender)));
    });
}

/// Many more sockets than the ring buffer holds records, with nobody reading.
#[test]
fn what_is_lost_is_counted_and_found_by_a_look_at_open_files() {
    if !root() {
        return;
    }
    const RING: u32 = 64 << 10;
    let options = Options { ring_bytes: RING, ..Options::default() };
    let (mut owners, _) = Owners::start(&options).unwrap();
    for _ in 0..RING / 64 {
        drop(udp());
    }
    let socket = udp();
    let (cookie, rounds) = (cookie_of(&socket), owners.figures().1);
    assert!(matches!(owners.of(cookie), Owner::Unknown));
    assert_eq!(asked(&mut owners, cookie), Some((me(), Source::Descriptor)));
    assert!(owners.lost() > 0);
    assert!(owners.figures().1 > rounds);
}

#[test]
fn rounds_are_not_made_without_end_for_what_nobody_has() {
    if !root() {
        return;
    }
    let mut owners = start(SendersBy::Best);
    let before = owners.figures().1;
    for _ in 0..u32::from(ROUNDS_FOR_ONE) + 2 {
        assert!(matches!(owners.of(1 << 60), Owner::Unknown));
        owners.last_round = owners.last_round.and_then(|last| last.checked_sub(BETWEEN_ROUNDS));
        owners.take().unwrap();
    }
    assert_eq!(owners.figures().1 - before, u64::from(ROUNDS_FOR_ONE));
    // And no more often than it should.
    owners.last_round = Some(Instant::now());
    assert!(matches!(owners.of(1 << 61), Owner::Unknown));
    owners.take().unwrap();
    assert_eq!(owners.figures().1 - before, u64::from(ROUNDS_FOR_ONE));
    assert!(matches!(owners.of(0), Owner::Forwarded));
}
