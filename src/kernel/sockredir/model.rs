// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the programs of `sockredir` tell, decoded.

use std::net::SocketAddr;

use plain::Plain;

use super::super::addr::{canonical, mapped};
use super::super::skel::sockredir::types;

// SAFETY: integers and arrays of integers without hidden padding, as bpf/sockredir.h asserts.
unsafe impl Plain for types::sockredir_key {}
// SAFETY: as above.
unsafe impl Plain for types::sockredir_end {}
// SAFETY: as above.
unsafe impl Plain for types::sockredir_entry {}
// SAFETY: as above.
unsafe impl Plain for types::sockredir_event {}
// SAFETY: as above.
unsafe impl Plain for types::sockredir_look {}

const _: () = assert!(size_of::<types::sockredir_key>() == 44);
const _: () = assert!(size_of::<types::sockredir_end>() == 72);
const _: () = assert!(size_of::<types::sockredir_entry>() == 104);
const _: () = assert!(size_of::<types::sockredir_event>() == 128);
const _: () = assert!(size_of::<types::sockredir_look>() == 56);

/// Why a direction is left to TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reason(pub(super) u32);

impl Reason {
    /// All that there are, and what they are called.
    pub(crate) const NAMES: [(Self, &'static str); 21] = {
        use types::sockredir_reason as reason;
        [
            (Self(reason::SOCKREDIR_PEER_UNKNOWN.0), "peer-unknown"),
            (Self(reason::SOCKREDIR_PRIOR_BYTES.0), "prior-bytes"),
            (Self(reason::SOCKREDIR_BACKLOG.0), "backlog"),
            (Self(reason::SOCKREDIR_NOT_LOCAL.0), "not-local"),
            (Self(reason::SOCKREDIR_FILTERED.0), "filtered"),
            (Self(reason::SOCKREDIR_MAP_FULL.0), "map-full"),
            (Self(reason::SOCKREDIR_EXISTS.0), "exists"),
            (Self(reason::SOCKREDIR_MPTCP.0), "mptcp"),
            (Self(reason::SOCKREDIR_KERNEL.0), "kernel"),
            (Self(reason::SOCKREDIR_ULP.0), "ulp"),
            (Self(reason::SOCKREDIR_READER.0), "reader"),
            (Self(reason::SOCKREDIR_REFUSED.0), "refused"),
            (Self(reason::SOCKREDIR_PEER_CLOSED.0), "peer-closed"),
            (Self(reason::SOCKREDIR_STOPPED.0), "stopped"),
            (Self(reason::SOCKREDIR_MEMORY.0), "memory"),
            (Self(reason::SOCKREDIR_NAMESPACE.0), "other-namespace"),
            (Self(reason::SOCKREDIR_TRANSLATED.0), "translated"),
            (Self(reason::SOCKREDIR_REPAIR.0), "repair"),
            (Self(reason::SOCKREDIR_GUARDED.0), "guarded"),
            (Self(reason::SOCKREDIR_HALF_CLOSED.0), "half-closed"),
            (Self(reason::SOCKREDIR_LEARNING.0), "learning"),
        ]
    };

    pub(crate) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(reason, _)| *reason == self).map_or("unknown", |(_, name)| name)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing was sent yet.
    Idle,
    Redirect,
    Tcp(Reason),
}

/// Which end of which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    sequences: (u32, u32),
}

impl Key {
    /// The key of the other end.
    pub(crate) fn other(self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            sequences: (self.sequences.1, self.sequences.0),
        }
    }

    /// As the kernel's side has it.
    fn raw(self) -> types::sockredir_key {
        types::sockredir_key {
            laddr: mapped(self.local.ip()),
            raddr: mapped(self.remote.ip()),
            lseq: self.sequences.0,
            rseq: self.sequences.1,
            lport: self.local.port(),
            rport: self.remote.port(),
        }
    }
}

/// What was redirected since the queue was last seen empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    bytes: u64,
    pub(super) messages: u32,
    /// How often somebody wanted to send to it.
    sends: u64,
}

/// A socket is to be looked at, and with `settle` whether its queue was read meanwhile.
pub(super) fn look(end: &End, settle: bool) -> Vec<u8> {
    let look =
        types::sockredir_look { key: end.key.raw(), settle: settle.into(), sends: end.queue.sends };
    // SAFETY: without hidden padding, as above.
    unsafe { plain::as_bytes(&look) }.to_vec()
}

/// An end of a connection, and what it sent.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) key: Key,
    pub(crate) client: bool,
    pub(crate) state: State,
    /// Redirected.
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
    /// Left to TCP, as the socket counts it.
    pub(crate) tcp_bytes: u64,
    /// Who sent last; 0 when nobody has.
    pub(crate) pid: u32,
    pub(crate) comm: String,
    pub(crate) opened_ns: u64,
    /// What waits to be read by this end; of one in the map.
    pub(crate) queue: Queue,
    /// When it was closed, if it is.
    pub(crate) closed_ns: Option<u64>,
}

impl End {
    pub(super) fn new(key: &types::sockredir_key, end: &types::sockredir_end) -> Self {
        let local = SocketAddr::new(canonical(key.laddr), key.lport);
        let remote = SocketAddr::new(canonical(key.raddr), key.rport);
        Self {
            key: Key { local, remote, sequences: (key.lseq, key.rseq) },
            client: end.client != 0,
            state: match u32::from(end.state) {
                state if state == types::sockredir_state::SOCKREDIR_REDIRECT.0 => State::Redirect,
                state if state == types::sockredir_state::SOCKREDIR_TCP.0 => {
                    State::Tcp(Reason(end.reason.into()))
                }
                _ => State::Idle,
            },
            bytes: end.bytes,
            messages: end.messages,
            tcp_bytes: end.tcp_bytes,
            pid: end.pid,
            comm: crate::output::bytes_to_string(&end.comm),
            opened_ns: end.opened_ns,
            queue: Queue::default(),
            closed_ns: None,
        }
    }

    pub(super) fn of_entry(key: &types::sockredir_key, entry: &types::sockredir_entry) -> Self {
        let queue = Queue {
            bytes: entry.queued_bytes,
            messages: entry.queued_messages,
            sends: entry.sends,
        };
        Self { queue, ..Self::new(key, &entry.end) }
    }

    pub(super) fn of_event(event: &types::sockredir_event) -> Self {
        Self { closed_ns: Some(event.closed_ns), ..Self::new(&event.key, &event.end) }
    }
}

/// Counts since the beginning.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    /// Ends of connections that were established in scope.
    pub(crate) clients: u64,
    pub(crate) servers: u64,
    pub(crate) admitted: u64,
    pub(crate) redirected: u64,
    /// Of these, left to TCP later.
    pub(crate) fell_back: u64,
    /// Ends that closed without having sent.
    pub(crate) silent: u64,
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
    /// Of ends that are closed.
    pub(crate) tcp_bytes: u64,
    /// Packets that brought bytes a second time, and those of which they could not be cut off.
    pub(crate) overlaps: u64,
    pub(crate) overlaps_kept: u64,
    pub(crate) postponed: u64,
    pub(crate) high_water: u64,
    /// What waits to be read, of all directions.
    pub(crate) waiting: u64,
    /// Directions left to TCP, by reason.
    pub(crate) reasons: Vec<(Reason, u64)>,
}

impl Totals {
    /// Sockets that the kernel did not take into the map.
    pub(crate) fn failed_inserts(&self) -> u64 {
        let failures = ["map-full", "exists", "refused"];
        self.reasons
            .iter()
            .filter(|(reason, _)| failures.contains(&reason.name()))
            .map(|(_, count)| count)
            .sum()
    }
}
