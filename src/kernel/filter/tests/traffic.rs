// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's own packets, on the loopback of a network namespace: a datagram so long that its payload is in pages.

use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use libbpf_rs::{TC_EGRESS, TC_INGRESS, TcHookBuilder};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{MsgFlags, send};

use super::super::engine::HookFilter;
use super::super::inject::xdp_may_miss_tags;
use super::root;
use crate::filter::classic::insn::*;
use crate::filter::ebpf::insn::{Insn as Ebpf, class, jmp, pseudo};
use crate::filter::ebpf::translate::{Fault, Hook, Link, Options, translate};
use crate::random::seeded;

/// Ethernet, IPv4, UDP.
const HEADERS: usize = 42;
const PAYLOAD: usize = 30_000;
/// How much of the payload is in the first piece.
const LINEAR: usize = 8;
const LOOPBACK: i32 = 1;

/// Drops what the filter matches, passes the rest on.
fn dropping(program: &[Insn], options: &Options) -> HookFilter {
    const TC_ACT_SHOT: i32 = 2;
    let function = translate(&[program], options).unwrap();
    let mut insns = vec![
        Ebpf::new(class::JMP | jmp::CALL, 0, pseudo::CALL, 0, 5),
        Ebpf::new(class::JMP32 | jmp::JEQ, 0, 0, 2, 0),
        Ebpf::new(class::ALU64 | 0xb0, 0, 0, 0, TC_ACT_SHOT),
        Ebpf::new(class::JMP | jmp::JA, 0, 0, 1, 0),
        Ebpf::new(class::ALU64 | 0xb0, 0, 0, 0, -1),
        Ebpf::new(class::JMP | jmp::EXIT, 0, 0, 0, 0),
    ];
    insns.extend(function.insns);
    HookFilter::load(options.hook, false, &insns)
        .unwrap_or_else(|failed| panic!("{}\n{}", failed.error, failed.log))
}

/// Whether a datagram of `payload` gets through with the filter in place.
fn passes(program: &[Insn], options: &Options, payload: &[u8]) -> bool {
    let loaded = dropping(program, options);
    let point = if options.hook == Hook::TcIngress { TC_INGRESS } else { TC_EGRESS };
    let mut hook = TcHookBuilder::new(loaded.as_fd());
    let mut hook = hook.ifindex(LOOPBACK).handle(1).priority(1).hook(point);
    let mut attached = hook.attach().unwrap();
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver.set_nonblocking(true).unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Across the loopback a packet is delivered before the call returns, but for a softirq that is put off.
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    // What is appended to a packet goes to pages.
    let _ =
        send(sender.as_raw_fd(), &payload[..LINEAR], MsgFlags::from_bits_retain(libc::MSG_MORE));
    let _ = send(sender.as_raw_fd(), &payload[LINEAR..], MsgFlags::empty());
    let mut buffer = vec![0; PAYLOAD + 1];
    let got = (0..20).any(|_| {
        let got = receiver.recv(&mut buffer).is_ok_and(|length| buffer[..length] == *payload);
        if !got {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        got
    });
    attached.detach().unwrap();
    got
}

#[test]
fn a_payload_in_pages_is_read() {
    if !root() {
        return;
    }
    let mut rng = seeded();
    // The namespace is this thread's, and ends with it.
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for command in ["ip link set lo up", "tc qdisc add dev lo clsact"] {
            let words: Vec<&str> = command.split(' ').collect();
            assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success());
        }
        let payload: Vec<u8> = (0..PAYLOAD).map(|_| rng.u8(..)).collect();
        for hook in [Hook::TcEgress, Hook::TcIngress] {
            let options = Options::new(hook, Link::Ethernet);
            for round in 0..4 {
                let offset = if round == 0 { LINEAR } else { rng.usize(LINEAR..PAYLOAD - 4) };
                let value = u32::from_be_bytes(payload[offset..offset + 4].try_into().unwrap());
                let at = (offset + HEADERS) as u32;
                let is = |value: u32, indirect: bool| {
                    vec![
                        Insn::stmt(BPF_LDX | BPF_IMM, if indirect { at - 10 } else { 0 }),
                        Insn::stmt(
                            BPF_LD | BPF_W | if indirect { BPF_IND } else { BPF_ABS },
                            if indirect { 10 } else { at },
                        ),
                        Insn::new(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, value),
                        Insn::stmt(BPF_RET | BPF_K, 1),
                        Insn::stmt(BPF_RET | BPF_K, 0),
                    ]
                };
                let indirect = round % 2 == 1;
                assert!(!passes(&is(value, indirect), &options, &payload), "{hook} {at}");
                assert!(passes(&is(!value, indirect), &options, &payload), "{hook} {at}");
                // It is in pages: who looks at the first piece only doesn't find it.
                let wrong = Options { fault: Some(Fault::FirstPieceOnly), ..options };
                assert!(passes(&is(value, indirect), &wrong, &payload), "{hook} {at}");
            }
            let length = |length: usize| {
                [
                    Insn::stmt(BPF_LD | BPF_W | BPF_LEN, 0),
                    Insn::new(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, length as u32),
                    Insn::stmt(BPF_RET | BPF_K, 1),
                    Insn::stmt(BPF_RET | BPF_K, 0),
                ]
            };
            assert!(!passes(&length(PAYLOAD + HEADERS), &options, &payload), "{hook}");
            assert!(passes(&length(PAYLOAD), &options, &payload), "{hook}");
        }
    })
    .join()
    .unwrap();
}

/// A veth hands a tag over beside the packet, as a network card does that takes tags off; a loopback does not.
#[test]
fn where_xdp_may_miss_a_tag_is_known() {
    if !root() {
        return;
    }
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let added = ["link", "add", "left", "type", "veth", "peer", "name", "right"];
        assert!(Command::new("ip").args(added).status().unwrap().success());
        assert!(xdp_may_miss_tags("left").unwrap());
        assert!(!xdp_may_miss_tags("lo").unwrap());
        let error = format!("{:#}", xdp_may_miss_tags("nowhere").unwrap_err());
        assert!(error.starts_with("nowhere: ") && error.contains("No such device"), "{error}");
    })
    .join()
    .unwrap();
}
