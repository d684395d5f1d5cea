// SPDX-License-Identifier: MIT OR Apache-2.0

//! Ends joined to connections, and what a row says of one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Sub;

use jiff::Timestamp;

use super::bytes;
use crate::commands::common::{TIME_COLUMN, amount};
use crate::kernel::clock::{boot_ns, wall_time};
use crate::kernel::sockredir::{End, Key, State, Totals};
use crate::output::{Column, Field, Kind, Record, Value};

/// The schema of a row.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("time", "end of the interval; with --events when the connection closed; RFC 3339"),
    Field::new(
        "scope",
        "interval; closed with --events; totals for the last row of an interval, which has all connections since the beginning and null for what is one's own",
    ),
    Field::new("saddr", "address of the client, which connected"),
    Field::new("sport", "its port"),
    Field::new("daddr", "address of the server"),
    Field::new("dport", "its port"),
    Field::new("client_pid", "process that sent last at the client's end; null when none has"),
    Field::new("client_comm", "its name"),
    Field::new("server_pid", "the same at the server's end"),
    Field::new("server_comm", "its name"),
    Field::new(
        "state_to_server",
        "redirect; tcp for good; idle, when nothing was sent yet; null when that end is not known",
    ),
    Field::new("reason_to_server", "why it is tcp; else null"),
    Field::new("state_to_client", "the same of the other direction"),
    Field::new("reason_to_client", "why it is tcp; else null"),
    Field::new("bytes_to_server", "bytes of the interval, redirected or not; with --events, all"),
    Field::new("bytes_to_client", "the same of the other direction"),
    Field::new(
        "messages",
        "redirected sends of the interval in both directions, as the kernel cut them",
    ),
    Field::new("redirected_to_server", "bytes that were redirected, since the connection began"),
    Field::new("redirected_to_client", "the same of the other direction"),
    Field::new(
        "tcp_to_server",
        "bytes that went by TCP, since the connection began: transmitted, each once",
    ),
    Field::new("tcp_to_client", "the same of the other direction"),
    Field::new("age_us", "for how long the connection is, or was, there"),
    Field::new("closed", "whether the connection is closed; null in the row totals"),
    Field::new("open", "in the row totals: open connections; else null"),
    Field::new("clients", "in the row totals: ends that connected, established in scope"),
    Field::new("servers", "in the row totals: ends that accepted, established in scope"),
    Field::new(
        "directions",
        "in the row totals: directions of connections in scope: one for each end",
    ),
    Field::new("redirected", "in the row totals: of these, redirected from their first byte on"),
    Field::new("redirected_bytes", "in the row totals: bytes redirected"),
    Field::new("redirected_messages", "in the row totals: in how many messages"),
    Field::new("tcp_bytes", "in the row totals: bytes that went by TCP, as in the summary"),
    Field::new(
        "failed_inserts",
        "in the row totals: ends that the kernel did not take into the map",
    ),
    Field::new("reasons", "in the row totals: object of how many were left to TCP, by reason"),
    Field::new("high_water", "in the row totals: largest queue of a direction, in bytes"),
    Field::new(
        "waiting",
        "in the row totals: what waits unread in all directions, as --max-memory counts it: its bytes, and 1 KiB for each message",
    ),
];

pub(super) fn columns(events: bool, timestamp: bool) -> Vec<Column> {
    // Streams have columns of a fixed width.
    let width = |width: usize| if events { width } else { 0 };
    let mut columns = Vec::new();
    if timestamp {
        columns.push(TIME_COLUMN);
    }
    columns.extend([
        Column::left("CLIENT", "client", width(21)),
        Column::left("SERVER", "server", width(21)),
        Column::left("COMM", "comm", width(17)),
        Column::left("STATE", "state", width(8)),
        Column::right("BYTES→", "to_server", width(9)).shown_by(amount),
        Column::right("BYTES←", "to_client", width(9)).shown_by(amount),
        Column::right("MSGS", "all_messages", width(7)),
    ]);
    columns
}

/// What was sent in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    to_server: u64,
    to_client: u64,
    messages: u64,
}

impl Counted {
    pub(super) fn bytes(self) -> u64 {
        self.to_server + self.to_client
    }
}

impl Sub for Counted {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            to_server: self.to_server.saturating_sub(before.to_server),
            to_client: self.to_client.saturating_sub(before.to_client),
            messages: self.messages.saturating_sub(before.messages),
        }
    }
}

/// One connection: at least one of its ends.
#[derive(Debug)]
pub(super) struct Connection {
    client: Option<End>,
    server: Option<End>,
    key: Key,
}

impl Connection {
    pub(super) fn new(one: End, other: Option<End>) -> Self {
        let key = if one.client { one.key } else { one.key.other() };
        let (client, server) = if one.client { (Some(one), other) } else { (other, Some(one)) };
        Self { client, server, key }
    }

    /// The client's.
    pub(super) fn key(&self) -> Key {
        self.key
    }

    fn ends(&self) -> impl Iterator<Item = &End> {
        self.client.iter().chain(&self.server)
    }

    pub(super) fn counted(&self) -> Counted {
        let sent = |end: &Option<End>| end.as_ref().map_or(0, |end| end.bytes + end.tcp_bytes);
        Counted {
            to_server: sent(&self.client),
            to_client: sent(&self.server),
            messages: self.ends().map(|end| end.messages).sum(),
        }
    }

    /// Whether one of the directions is in this state.
    pub(super) fn is(&self, state: State) -> bool {
        self.ends().any(|end| end.state == state)
    }

    fn is_closed(&self) -> bool {
        self.ends().all(|end| end.closed_ns.is_some())
    }

    pub(super) fn closed(&self) -> Timestamp {
        wall_time(self.closed_ns())
    }

    fn closed_ns(&self) -> u64 {
        self.ends().filter_map(|end| end.closed_ns).max().unwrap_or_else(boot_ns)
    }

    fn age_ns(&self) -> u64 {
        let opened = self.ends().map(|end| end.opened_ns).min().unwrap_or_default();
        let until = if self.is_closed() { self.closed_ns() } else { boot_ns() };
        until.saturating_sub(opened)
    }
}

/// Joins the ends of each connection.
pub(super) fn connections(ends: Vec<End>) -> Vec<Connection> {
    let mut found: HashMap<Key, Connection> = HashMap::new();
    for end in ends {
        let key = if end.client { end.key } else { end.key.other() };
        let client = end.client;
        let connection = found.entry(key).or_insert(Connection { client: None, server: None, key });
        if client {
            connection.client = Some(end);
        } else {
            connection.server = Some(end);
        }
    }
    found.into_values().collect()
}

fn state(end: &Option<End>) -> (Option<&'static str>, Option<&'static str>) {
    match end.as_ref().map(|end| end.state) {
        None => (None, None),
        Some(State::Idle) => (Some("idle"), None),
        Some(State::Redirect) => (Some("redirect"), None),
        Some(State::Tcp(reason)) => (Some("tcp"), Some(reason.name())),
    }
}

/// Both directions in one cell, to the server first: `redirect`, `redirect/tcp:backlog`.
fn states(connection: &Connection) -> String {
    let text = |end: &Option<End>| match state(end) {
        (None, _) => "-".to_string(),
        (Some(state), None) => state.to_string(),
        (Some(state), Some(reason)) => format!("{state}:{reason}"),
    };
    let (to_server, to_client) = (text(&connection.client), text(&connection.server));
    if to_server == to_client { to_server } else { format!("{to_server}/{to_client}") }
}

/// `psql/postgres`; of one that has not sent, nothing is known.
fn comms(connection: &Connection) -> String {
    let name = |end: &Option<End>| {
        end.as_ref().filter(|end| end.pid != 0).map_or("?".to_string(), |end| end.comm.clone())
    };
    format!("{}/{}", name(&connection.client), name(&connection.server))
}

fn address(address: SocketAddr) -> String {
    address.to_string()
}

/// `new` is what was sent since the last row.
pub(super) fn record(
    kind: Kind,
    scope: &str,
    connection: &Connection,
    new: Counted,
    time: Timestamp,
) -> Record {
    let Connection { client, server, key } = connection;
    let sender = |end: &Option<End>| {
        let end = end.as_ref().filter(|end| end.pid != 0);
        end.map(|end| (end.pid, end.comm.clone())).unzip()
    };
    let (client_pid, client_comm) = sender(client);
    let (server_pid, server_comm) = sender(server);
    let (state_to_server, reason_to_server) = state(client);
    let (state_to_client, reason_to_client) = state(server);
    let of = |end: &Option<End>, what: fn(&End) -> u64| end.as_ref().map(what);
    // With --events all are.
    let mark = if kind == Kind::Row && connection.is_closed() { " (closed)" } else { "" };
    let state_cell = states(connection) + mark;
    Record::new(kind)
        .with("time", time)
        .with("scope", scope)
        .with("saddr", key.local.ip())
        .with("sport", key.local.port())
        .with("daddr", key.remote.ip())
        .with("dport", key.remote.port())
        .with("client_pid", client_pid)
        .with("client_comm", client_comm)
        .with("server_pid", server_pid)
        .with("server_comm", server_comm)
        .with("state_to_server", state_to_server)
        .with("reason_to_server", reason_to_server)
        .with("state_to_client", state_to_client)
        .with("reason_to_client", reason_to_client)
        .with("bytes_to_server", new.to_server)
        .with("bytes_to_client", new.to_client)
        .with("messages", new.messages)
        .with("redirected_to_server", of(client, |end| end.bytes))
        .with("redirected_to_client", of(server, |end| end.bytes))
        .with("tcp_to_server", of(client, |end| end.tcp_bytes))
        .with("tcp_to_client", of(server, |end| end.tcp_bytes))
        .with("age_us", connection.age_ns() / 1000)
        .with("closed", connection.is_closed())
        .with("open", None::<u64>)
        .with("clients", None::<u64>)
        .with("servers", None::<u64>)
        .with("directions", None::<u64>)
        .with("redirected", None::<u64>)
        .with("redirected_bytes", None::<u64>)
        .with("redirected_messages", None::<u64>)
        .with("tcp_bytes", None::<u64>)
        .with("failed_inserts", None::<u64>)
        .with("reasons", None::<&str>)
        .with("high_water", None::<u64>)
        .with("waiting", None::<u64>)
        .shown("client", address(key.local))
        .shown("server", address(key.remote))
        .shown("comm", comms(connection))
        .shown("state", state_cell)
        .shown("to_server", connection.counted().to_server)
        .shown("to_client", connection.counted().to_client)
        .shown("all_messages", connection.counted().messages)
}

/// The last row of an interval.
pub(super) fn totals(totals: &Totals, open: usize) -> Record {
    let mut record = Record::new(Kind::Row).with("time", Timestamp::now()).with("scope", "totals");
    for field in &FIELDS[2..16] {
        record = record.with(field.name, None::<u64>);
    }
    let reasons: Vec<(&'static str, Value)> =
        totals.reasons.iter().map(|(reason, count)| (reason.name(), (*count).into())).collect();
    record
        .with("messages", totals.messages)
        .with("redirected_to_server", None::<u64>)
        .with("redirected_to_client", None::<u64>)
        .with("tcp_to_server", None::<u64>)
        .with("tcp_to_client", None::<u64>)
        .with("age_us", None::<u64>)
        .with("closed", None::<bool>)
        .with("open", open as u64)
        .with("clients", totals.clients)
        .with("servers", totals.servers)
        .with("directions", totals.clients + totals.servers)
        .with("redirected", totals.redirected)
        .with("redirected_bytes", totals.bytes)
        .with("redirected_messages", totals.messages)
        .with("tcp_bytes", totals.tcp_bytes)
        .with("failed_inserts", totals.failed_inserts())
        .with("reasons", reasons)
        .with("high_water", totals.high_water)
        .with("waiting", totals.waiting)
}

/// Totals for people.
pub(super) fn sentence(totals: &Totals) -> String {
    let reasons: Vec<String> = totals
        .reasons
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| format!("{} {count}", reason.name()))
        .collect();
    let left = match reasons.is_empty() {
        true => String::new(),
        false => format!(": {}", reasons.join(", ")),
    };
    let waiting = match totals.waiting {
        0 => String::new(),
        waiting => format!(", unread {}", bytes(waiting)),
    };
    format!(
        "{} of {} directions redirected, {} in {} messages, largest queue {}{waiting}; {} by TCP{left}",
        totals.redirected,
        totals.clients + totals.servers,
        bytes(totals.bytes),
        totals.messages,
        bytes(totals.high_water),
        bytes(totals.tcp_bytes),
    )
}
