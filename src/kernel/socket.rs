// SPDX-License-Identifier: MIT OR Apache-2.0

//! A packet socket with a classic filter, as a queue of packets.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use super::run::Source;
use super::sys::{filter, packet};
use crate::error::{unsupported, usage};
use crate::filter::classic::check::check;
use crate::filter::classic::insn::{BPF_ABS, BPF_B, BPF_JEQ, BPF_JMP, BPF_LD, BPF_RET, Ext, Insn};
use crate::filter::classic::interp::{self, Rules};
use crate::filter::libpcap::{Link, SNAPLEN};
use crate::kernel::{interfaces, refusal};

/// include/uapi/linux/if_arp.h
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_PPP: u16 = 512;
const ARPHRD_TUNNEL: u16 = 768;
const ARPHRD_TUNNEL6: u16 = 769;
const ARPHRD_LOOPBACK: u16 = 772;
const ARPHRD_SIT: u16 = 776;
const ARPHRD_IPGRE: u16 = 778;
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_NONE: u16 = 0xfffe;

/// Packets taken out at a time, so that a flood does not keep the loop from its other duties.
const BATCH: usize = 256;

/// What a packet may wait in, until it is read.
const QUEUE_BYTES: usize = 4 << 20;

/// An interface, before anything is captured from it.
#[derive(Debug)]
pub(crate) struct Interface {
    socket: OwnedFd,
    name: String,
    index: i32,
    loopback: bool,
    pub(crate) link: Link,
}

impl Interface {
    pub(crate) fn open(name: &str) -> Result<Self> {
        // By any of its names: the ioctl takes none that are longer than the first may be.
        let name = &interfaces::interfaces(&[name.to_string()])
            .ok()
            .and_then(|mut found| found.pop())
            .map_or_else(|| name.to_string(), |found| found.name);
        let socket =
            packet::socket().map_err(|error| refusal::of_call("a packet socket", error))?;
        let found = packet::interface(socket.as_fd(), name).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::ENODEV) => {
                    usage(format!("no interface `{name}`; expected one that `ip link` shows"))
                }
                _ => anyhow::Error::new(error).context(format!("cannot look at interface {name}")),
            }
        })?;
        let link = match found.hardware {
            ARPHRD_ETHER | ARPHRD_LOOPBACK => Link::Ethernet,
            ARPHRD_NONE | ARPHRD_RAWIP | ARPHRD_PPP | ARPHRD_TUNNEL | ARPHRD_TUNNEL6
            | ARPHRD_SIT | ARPHRD_IPGRE => Link::Raw,
            other => {
                return Err(unsupported(format!(
                    "{name}: packets of hardware type {other} are neither Ethernet frames nor plain IP"
                )));
            }
        };
        let loopback = found.hardware == ARPHRD_LOOPBACK;
        Ok(Self { socket, name: name.clone(), index: found.index, loopback, link })
    }

    /// Starts to capture. No packet is queued that the filter doesn't let through: the socket gets its filter before it is
    /// bound, and nothing before that.
    pub(crate) fn capture(self, filter: &Filter, promiscuous: bool) -> Result<Capture> {
        let socket = self.socket;
        let program = filter.for_kernel(self.link);
        check(&program).map_err(|why| usage(format!("Linux does not take this filter: {why}")))?;
        filter::attach_classic(socket.as_fd(), &program)
            .context("the kernel does not take the filter")?;
        packet::tell_auxiliary(socket.as_fd()).context("cannot ask for packets' lengths")?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)
            .context("cannot ask for packets' times")?;
        // More than the system's limit takes CAP_NET_ADMIN; less than wanted is no failure, what is lost is counted.
        if setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &QUEUE_BYTES);
        }
        if self.loopback {
            // There every packet passes twice: when it is sent, and when it arrives.
            packet::ignore_outgoing(socket.as_fd())
                .context("cannot leave out what the loopback sends to itself")?;
        }
        if promiscuous {
            packet::promiscuous(socket.as_fd(), self.index)
                .context("cannot set promiscuous mode")?;
        }
        packet::bind(socket.as_fd(), self.index).context("cannot bind a packet socket")?;
        Ok(Capture {
            socket,
            name: self.name.into(),
            renamed: RefCell::default(),
            index: self.index,
            down: Cell::new(false),
            gone: Cell::new(false),
            again: filter.for_tagged(self.link),
            buffer: RefCell::new(vec![0; SNAPLEN as usize]),
            queue: RefCell::new(VecDeque::new()),
            passed_over: Cell::new(0),
        })
    }
}

/// What to capture.
#[derive(Clone, Debug)]
pub(crate) enum Filter {
    /// tcpdump's expression, compiled: for packets as they are on the wire
    Wire(Vec<Insn>),
    /// A program for a socket, attached as it is: VLAN tags are beside the packet
    Socket(Vec<Insn>),
}

impl Filter {
    pub(crate) fn everything() -> Self {
        Self::Socket(vec![Insn::stmt(BPF_RET, SNAPLEN)])
    }

    /// The kernel takes a packet's VLAN tag out before a socket's filter sees the packet. So it lets through every packet
    /// that had one, and the filter is run again on the packet with its tag put back.
    fn for_kernel(&self, link: Link) -> Vec<Insn> {
        match (self, link) {
            (Self::Wire(program), Link::Ethernet) => {
                let mut whole = vec![
                    Insn::stmt(BPF_LD | BPF_B | BPF_ABS, Ext::VlanTagPresent.offset()),
                    Insn::new(BPF_JMP | BPF_JEQ, 1, 0, 0),
                    Insn::stmt(BPF_RET, SNAPLEN),
                ];
                whole.extend(program);
                whole
            }
            (Self::Wire(program), Link::Raw) | (Self::Socket(program), _) => program.clone(),
        }
    }

    fn for_tagged(&self, link: Link) -> Option<Vec<Insn>> {
        match (self, link) {
            (Self::Wire(program), Link::Ethernet) => Some(program.clone()),
            _ => None,
        }
    }
}

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    In,
    Out,
}

/// A captured packet, as it is on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) time: Timestamp,
    pub(crate) data: Vec<u8>,
    pub(crate) length: u32,
    pub(crate) direction: Direction,
}

#[derive(Debug)]
pub(crate) struct Capture {
    socket: OwnedFd,
    /// As it is called now.
    name: RefCell<String>,
    renamed: RefCell<Vec<(String, String)>>,
    index: i32,
    /// The interface was told to be down.
    down: Cell<bool>,
    /// The interface is no more.
    gone: Cell<bool>,
    /// The filter for packets that had a tag.
    again: Option<Vec<Insn>>,
    buffer: RefCell<Vec<u8>>,
    queue: RefCell<VecDeque<Packet>>,
    /// Tagged packets that the kernel let through and the filter does not.
    passed_over: Cell<u64>,
}

/// What the kernel counted, over the whole capture.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Statistics {
    /// Packets that the filter let through, lost ones included.
    pub(crate) matched: u64,
    /// Of these, packets for which the queue had no room.
    pub(crate) dropped: u64,
}

impl Capture {
    /// Packets that no longer come: the socket is closed to new ones, and what is queued stays.
    pub(crate) fn stop(&self) -> Result<()> {
        let nothing = [Insn::stmt(BPF_RET, 0)];
        filter::attach_classic(self.socket.as_fd(), &nothing).context("cannot end the capture")
    }

    /// An interface goes down before it goes away, and of that the kernel says nothing more (net/packet/af_packet.c,
    /// packet_notifier): so who has been told the one looks for the other now and then.
    pub(crate) fn look_for_it(&self) -> Result<()> {
        match packet::interface_name(self.socket.as_fd(), self.index) {
            // A name may be another interface's by now; its index is its own.
            Ok(name) if name != *self.name.borrow() => {
                let before = self.name.replace(name.clone());
                self.renamed.borrow_mut().push((before, name));
                Ok(())
            }
            Err(error) if self.down.get() && error.raw_os_error() == Some(libc::ENODEV) => {
                self.gone.set(true);
                bail!("interface {} is gone", self.name.borrow())
            }
            // What can't be seen now is seen at the next look.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Names that it had, and has, since the last time.
    pub(crate) fn take_renamed(&self) -> Vec<(String, String)> {
        self.renamed.take()
    }

    pub(crate) fn name(&self) -> String {
        self.name.borrow().clone()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    pub(crate) fn statistics(&self) -> Result<Statistics> {
        let (packets, dropped) =
            packet::statistics(self.socket.as_fd()).context("cannot read the kernel's counts")?;
        let matched = u64::from(packets).saturating_sub(self.passed_over.get());
        Ok(Statistics { matched, dropped: dropped.into() })
    }

    fn take(&self, received: &packet::Received, bytes: &[u8]) {
        let mut data = bytes.to_vec();
        let mut length = received.length;
        if let Some((protocol, control)) = received.tag
            && data.len() >= 12
        {
            let tag = [protocol.to_be_bytes(), control.to_be_bytes()].concat();
            data.splice(12..12, tag);
            length += 4;
            if let Some(program) = &self.again {
                // Expressions ask the kernel for these: `inbound`, `outbound` and `ifindex`.
                let known =
                    [(Ext::PktType, received.kind.into()), (Ext::Ifindex, self.index as u32)];
                let packet = interp::Packet { length, known: &known, ..interp::Packet::new(&data) };
                // What the program asks for beside that, the kernel has answered.
                if interp::run(program, &packet, Rules::Libpcap) == Ok(0) {
                    self.passed_over.set(self.passed_over.get() + 1);
                    return;
                }
            }
        }
        let time =
            received.time.and_then(|(seconds, nanos)| Timestamp::new(seconds, nanos as i32).ok());
        self.queue.borrow_mut().push_back(Packet {
            time: time.unwrap_or_else(Timestamp::now),
            data,
            length,
            direction: if received.kind == libc::PACKET_OUTGOING {
                Direction::Out
            } else {
                Direction::In
            },
        });
    }
}

impl Source for Capture {
    type Event = Packet;

    fn fill(&self) -> Result<bool> {
        // Rows have the name that it has as they come.
        if !self.gone.get() {
            self.look_for_it()?;
        }
        let mut buffer = self.buffer.borrow_mut();
        for _ in 0..BATCH {
            match packet::receive(self.socket.as_fd(), &mut buffer) {
                Ok(received) => self.take(&received, &buffer[..received.captured]),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
                    // The interface went down, or is gone. Down is no end: it may come up again.
                    Some(Errno::ENETDOWN) => {
                        // What is left is read after it is gone, too.
                        if !self.gone.get() {
                            self.down.set(true);
                            self.look_for_it()?;
                        }
                        return Ok(false);
                    }
                    _ => return Err(error).context("cannot read a packet"),
                },
            }
        }
        Ok(true)
    }

    fn next(&self) -> Option<Packet> {
        self.queue.borrow_mut().pop_front()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
