// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counts and events as rows.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::block::RuleNames;
use super::book::{Line, Share, What};
use super::by::Columns;
use super::whose::{RowKey, Whose};
use crate::commands::common::{TIME_COLUMN, USER_COLUMN, amount};
use crate::kernel::attach::tc::Direction;
use crate::kernel::bypass::Refusal;
use crate::kernel::clock::wall_time;
use crate::kernel::count::Count;
use crate::kernel::egress::{Event, Rule, RuleHook};
use crate::net::names::Name;
use crate::net::protos;
use crate::output::{Column, Field, Kind, Record};

/// The schema of a table's row.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("time", "end of the interval, RFC 3339"),
    Field::new("scope", "interval, or total for the table at the end"),
    Field::new("direction", "egress or ingress"),
    Field::new(
        "row",
        "key: what the other fields say; other: what is beyond --top, had no room in the kernel's table, or was forgotten; excluded; not-ip; malformed; or unseen: what left without passing tc, which is beside what rows add up to",
    ),
    Field::new("daddr", "at egress, by dst: where it goes; else null"),
    Field::new("saddr", "at ingress, by src: where it comes from; else null"),
    Field::new("net", "by net/N or net6/N: the network that it goes to or comes from; else null"),
    Field::new("proto", "by proto: the protocol, or unknown; else null"),
    Field::new(
        "dport",
        "at egress, by port: the port that it goes to, where there is one; else null",
    ),
    Field::new(
        "sport",
        "at ingress, by port: the port that it comes from, where there is one; else null",
    ),
    Field::new(
        "owner",
        "by process, user or cgroup: process; kernel: no process sent it; forwarded: from elsewhere; or unknown; else null",
    ),
    Field::new("pid", "by process: of the process that owns the socket; else null"),
    Field::new("comm", "by process: its name; else null"),
    Field::new(
        "exe",
        "by process: its program, if it was there long enough to be asked; else null",
    ),
    Field::new("uid", "by user: real user id of the process; else null"),
    Field::new("cgroup", "by cgroup: its cgroup, below the root of cgroup v2; else null"),
    Field::new(
        "name",
        "with --names: list of names that the address may be meant by, the most likely first; null when there is none; else null",
    ),
    Field::new("name_source", "for each of these: dns, sni or host; null likewise"),
    Field::new(
        "verdict",
        "with --block and its like: pass; drop: packets that were dropped; refuse: calls of processes that failed with EPERM, which are no packets; with --dry-run would-drop and would-refuse; else null",
    ),
    Field::new("rule", "what decided: see MECHANISM; null when nothing did"),
    Field::new("packets", "packets of the interval; in the last table, of the whole run"),
    Field::new("bytes", "their bytes"),
    Field::new("packets_total", "packets since the beginning"),
    Field::new("bytes_total", "bytes since the beginning"),
    Field::new(
        "calls",
        "with verdict refuse: calls of the interval; in the last table, of the whole run; else null",
    ),
    Field::new("calls_total", "calls since the beginning; null likewise"),
];

/// The schema of a row of --events.
pub(crate) const EVENT_FIELDS: &[Field] = &[
    Field::new("time", "when the packet was there, or the call was made, RFC 3339"),
    Field::new(
        "seq",
        "number of the row, from 1; where rows were lost or left out, so many numbers are missing",
    ),
    Field::new("lost", "rows that were lost so far"),
    Field::new("left_out", "rows of this flow that --audit-rate left out since its last one"),
    Field::new(
        "verdict",
        "with --block and its like: pass, drop or refuse, with --dry-run would-drop or would-refuse; else null",
    ),
    Field::new("rule", "what decided: see MECHANISM; null when nothing did"),
    Field::new(
        "hook",
        "where: tc, of a packet; connect or sendmsg, of a process's call; setsockopt, of one for a way past tc, whose rule is the option",
    ),
    Field::new("iface", "the interface; null of a call"),
    Field::new("direction", "egress or ingress"),
    Field::new("family", "4 or 6"),
    Field::new("proto", "the protocol; null when it could not be told"),
    Field::new("saddr", "source address; null of a call"),
    Field::new("sport", "source port; null when there is none to be seen, and of a call"),
    Field::new("daddr", "destination address; null of setsockopt"),
    Field::new("dport", "destination port"),
    Field::new(
        "owner",
        "process; kernel: no process sent it; forwarded: from elsewhere; or unknown; null at ingress, and where owners can't be found",
    ),
    Field::new("pid", "of the process that owns the socket; null of other owners"),
    Field::new("comm", "its name"),
    Field::new("exe", "its program, if it was there long enough to be asked"),
    Field::new("uid", "its real user id"),
    Field::new("cgroup", "its cgroup, below the root of cgroup v2"),
    Field::new(
        "name",
        "with --names: list of names that the address may be meant by, the most likely first; null when there is none; else null",
    ),
    Field::new("name_source", "for each of these: dns, sni or host; null likewise"),
    Field::new("packets", "packets on the wire: the segments of a large one"),
    Field::new("bytes", "their length, link layer included"),
];

/// A socket option that was refused, as it would get packets past tc: of no address, and of no packet yet.
pub(super) fn bypass(refusal: &Refusal, seq: u64, lost: u64) -> Record {
    EVENT_FIELDS.iter().fold(Record::new(Kind::Event), |record, field| match field.name {
        "time" => record.with("time", wall_time(refusal.time_ns)),
        "seq" => record.with("seq", seq),
        "lost" => record.with("lost", lost),
        "verdict" => record.with("verdict", "refuse"),
        "rule" => record.with("rule", refusal.option),
        "hook" => record.with("hook", "setsockopt"),
        "direction" => record.with("direction", "egress"),
        "owner" => record.with("owner", "process"),
        "pid" => record.with("pid", refusal.tgid),
        "comm" => record.with("comm", refusal.comm.clone()),
        "packets" | "bytes" => record.with(field.name, 0_u64),
        name => record.with(name, None::<&str>),
    })
}

/// What a row without a key is called.
fn name<K>(what: &What<K>) -> &'static str {
    match what {
        What::Row(_) => "key",
        What::Other => "other",
        What::Malformed => "malformed",
        What::NotIp => "not-ip",
        What::MalformedBlocked => "malformed",
        What::NotIpBlocked => "not-ip",
        What::Excluded => "excluded",
        What::Unseen => "unseen",
    }
}

/// Where the far end's address and port are.
fn fields(direction: Direction) -> (&'static str, &'static str) {
    match direction {
        Direction::Egress => ("daddr", "dport"),
        Direction::Ingress => ("saddr", "sport"),
    }
}

/// Widths of 0 fit the rows.
const NAME: Column = Column::left("NAME", "name", 20);
const NAME_KEY: Column = Column::left("NAME", "named", 0);
const SOURCE: Column = Column::left("BY", "name_source", 4);
const DECISION: [Column; 2] =
    [Column::left("VERDICT", "verdict", 0), Column::left("RULE", "rule", 0)];

pub(super) fn columns(
    shown: Columns,
    direction: Direction,
    names: bool,
    blocking: bool,
) -> Vec<Column> {
    let (addr, port) = fields(direction);
    let mut columns = Vec::new();
    if shown.name {
        columns.push(NAME_KEY.or("row"));
    }
    if shown.addr {
        let field = if shown.nets { "net" } else { addr };
        let header = if direction == Direction::Egress { "DESTINATION" } else { "SOURCE" };
        let column = Column::left(header, field, 0);
        columns.push(if columns.is_empty() { column.or("row") } else { column });
    } else if !shown.by.proto && !shown.process && !shown.name {
        columns.push(Column::left("ROW", "row", 0));
    }
    if shown.by.proto {
        let column = Column::left("PROTO", "proto", 0);
        columns.push(if columns.is_empty() { column.or("row") } else { column });
    }
    if shown.by.port {
        columns.push(Column::right("PORT", port, 0));
    }
    if shown.process {
        let column = Column::left("PROCESS", "process", 0);
        columns.push(if columns.is_empty() { column.or("row") } else { column });
    }
    if shown.user {
        columns.push(USER_COLUMN.or("owner"));
    }
    if shown.cgroup {
        columns.push(Column::left("CGROUP", "cgroup", 0).or("owner"));
    }
    if blocking {
        columns.extend(DECISION);
    }
    columns.extend([
        Column::right("PACKETS", "packets", 0),
        Column::right("BYTES", "bytes", 0).shown_by(amount),
        Column::right("TOTAL", "packets_total", 0),
        Column::right("TOTAL BYTES", "bytes_total", 0).shown_by(amount),
    ]);
    if blocking {
        columns.push(Column::right("CALLS", "calls_total", 0));
    }
    if names {
        columns.push(SOURCE);
        if !shown.name {
            columns.push(NAME);
        }
    }
    columns
}

pub(super) fn event_columns(
    timestamp: bool,
    several: bool,
    names: bool,
    owners: bool,
    blocking: bool,
) -> Vec<Column> {
    let mut columns = Vec::new();
    if timestamp {
        columns.push(TIME_COLUMN);
    }
    if several {
        columns.push(Column::left("IFACE", "iface", 8));
    }
    columns.extend([
        Column::left("PROTO", "proto", 5),
        Column::left("SADDR", "saddr", 15),
        Column::right("SPORT", "sport", 5),
        Column::left("DADDR", "daddr", 15),
        Column::right("DPORT", "dport", 5),
        Column::right("PACKETS", "packets", 7),
        Column::right("BYTES", "bytes", 6),
    ]);
    if owners {
        columns.push(Column::left("PROCESS", "process", 16));
    }
    if blocking {
        columns.extend([Column::left("VERDICT", "verdict", 12), Column::left("RULE", "rule", 16)]);
    }
    if names {
        columns.extend([SOURCE, NAME]);
    }
    columns
}

fn owner(share: Share) -> &'static str {
    match share {
        Share::Process => "process",
        Share::Kernel => "kernel",
        Share::Forwarded => "forwarded",
        Share::Unknown => "unknown",
    }
}

/// What the table shows of a process beside the schema's fields.
pub(super) fn process_cell(whose: &Whose) -> String {
    match &whose.process {
        Some(process) => format!("{}/{}", process.comm, process.id.tgid),
        None => owner(whose.share).into(),
    }
}

/// What the table shows of an address by name: that, if it has none.
pub(super) fn name_cell(row: &RowKey) -> Option<String> {
    match &row.name {
        Some(name) => Some(name.text.clone()),
        None => row.key.addr.map(|addr| addr.to_string()),
    }
}

/// How a row is to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style<'a> {
    pub(super) shown: Columns,
    pub(super) direction: Direction,
    /// Of the last interval, or of the whole run.
    pub(super) interval: bool,
    pub(super) rules: Option<&'a RuleNames>,
    /// Of packets, or of calls that were refused.
    pub(super) hook: RuleHook,
}

pub(super) fn record(line: &Line<RowKey>, style: Style<'_>, names: Option<Vec<Name>>) -> Record {
    let Style { shown, direction, interval, rules: _, hook } = style;
    let calls = hook != RuleHook::Tc;
    let (names, sources) = named(names);
    let row = line.what.row();
    let key = row.map(|row| row.key);
    let addr = key.and_then(|key| key.addr);
    let whole = addr.filter(|_| !shown.nets);
    let net = addr.filter(|_| shown.nets).map(|addr| net(addr, shown).to_string());
    let proto = key.filter(|_| shown.by.proto).map(|key| proto(key.proto));
    let port = key.and_then(|key| key.port);
    let egress = direction == Direction::Egress;
    let count = if interval { line.new } else { line.total };
    let (verdict, rule) = decision(&line.what, whole, style);
    let packets = |count: Count| if calls { Count::default() } else { count };
    let number = |count: Count| calls.then_some(count.packets);
    let whose = row.and_then(|row| row.whose.as_ref());
    let process = whose.and_then(|whose| whose.process.as_ref());
    Record::new(Kind::Row)
        .with("time", Timestamp::now())
        .with("scope", if interval { "interval" } else { "total" })
        .with("direction", direction.to_string())
        .with("row", name(&line.what))
        .with("daddr", whole.filter(|_| egress))
        .with("saddr", whole.filter(|_| !egress))
        .with("net", net)
        .with("proto", proto)
        .with("dport", port.filter(|_| egress))
        .with("sport", port.filter(|_| !egress))
        .with("owner", whose.map(|whose| owner(whose.share)))
        .with("pid", process.map(|process| process.id.tgid))
        .with("comm", process.map(|process| process.comm.clone()))
        .with("exe", process.and_then(|process| process.exe.clone()))
        .with("uid", whose.and_then(|whose| whose.user))
        .with("cgroup", whose.and_then(|whose| whose.cgroup.clone()))
        .with("name", names)
        .with("name_source", sources)
        .with("verdict", verdict)
        .with("rule", rule)
        .with("packets", packets(count).packets)
        .with("bytes", packets(count).bytes)
        .with("packets_total", packets(line.total).packets)
        .with("bytes_total", packets(line.total).bytes)
        .with("calls", number(count))
        .with("calls_total", number(line.total))
}

/// The verdict, and the rule that led to it.
fn decision(
    what: &What<RowKey>,
    addr: Option<IpAddr>,
    style: Style<'_>,
) -> (Option<&'static str>, Option<String>) {
    let Some(rules) = style.rules else { return (None, None) };
    let blocked = match what {
        What::Row(row) => row.key.rule.is_some_and(Rule::blocks),
        What::MalformedBlocked | What::NotIpBlocked => true,
        What::Malformed | What::NotIp | What::Excluded | What::Unseen => false,
        // Of packets, both are in it.
        What::Other if style.hook != RuleHook::Tc => true,
        What::Other => return (None, None),
    };
    let rule = what.row().and_then(|row| row.key.rule);
    (Some(rules.verdict(blocked, style.hook)), rule.map(|rule| rules.rule(rule, addr)))
}

fn net(addr: IpAddr, shown: Columns) -> IpNet {
    let (v4, v6) = shown.by.addr.unwrap_or((32, 128));
    let bits = if addr.is_ipv4() { v4 } else { v6 };
    // The lengths were checked; and if not, it is a network of one.
    IpNet::new(addr, bits).unwrap_or_else(|_| addr.into())
}

fn proto(proto: Option<u8>) -> String {
    proto.map_or_else(|| "unknown".into(), protos::name)
}

/// Names, and what says each; nothing when there is none.
fn named(names: Option<Vec<Name>>) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let names = names.filter(|names| !names.is_empty());
    names
        .map(|names| names.into_iter().map(|name| (name.text, name.source.to_string())).unzip())
        .unzip()
}

/// What is to be told of an event beside itself.
#[derive(Debug)]
pub(super) struct About<'a> {
    pub(super) iface: Option<&'a str>,
    pub(super) direction: Direction,
    pub(super) seq: u64,
    pub(super) lost: u64,
    pub(super) left_out: u64,
    pub(super) whose: Option<Whose>,
    pub(super) names: Option<Vec<Name>>,
    pub(super) rules: Option<&'a RuleNames>,
}

pub(super) fn event(event: &Event, about: About<'_>) -> Record {
    let About { iface, direction, seq, lost, left_out, whose, names, rules } = about;
    let (names, sources) = named(names);
    let blocked = event.rule.is_some_and(Rule::blocks);
    let process = whose.as_ref().and_then(|whose| whose.process.as_ref());
    // A call has a process in any case.
    let pid = event.tgid.or(process.map(|process| process.id.tgid));
    let rule = rules.zip(event.rule).map(|(rules, rule)| rules.rule(rule, Some(event.daddr)));
    Record::new(Kind::Event)
        .with("time", wall_time(event.time_ns))
        .with("seq", seq)
        .with("lost", lost)
        .with("left_out", left_out)
        .with("verdict", rules.map(|rules| rules.verdict(blocked, event.hook)))
        .with("rule", rule)
        .with("hook", event.hook.to_string())
        .with("iface", iface)
        .with("direction", direction.to_string())
        .with("family", if event.daddr.is_ipv4() { 4_u8 } else { 6 })
        .with("proto", event.proto.map(protos::name))
        .with("saddr", event.saddr)
        .with("sport", event.sport)
        .with("daddr", event.daddr)
        .with("dport", event.dport)
        .with("owner", whose.as_ref().map(|whose| owner(whose.share)))
        .with("pid", pid)
        .with("comm", process.map(|process| process.comm.clone()))
        .with("exe", process.and_then(|process| process.exe.clone()))
        .with("uid", whose.as_ref().and_then(|whose| whose.user))
        .with("cgroup", whose.as_ref().and_then(|whose| whose.cgroup.clone()))
        .with("name", names)
        .with("name_source", sources)
        .with("packets", event.packets)
        .with("bytes", event.bytes)
}
