// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk filter capture`: a packet socket with a classic filter.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::args::{CompilerArgs, join, read_classic};
use crate::cli::OutputArgs;
use crate::commands::common::{TIME_COLUMN, note, take_signals, tell};
use crate::error::usage;
use crate::filter::libpcap::{Link, SNAPLEN};
use crate::filter::savefile::Writer;
use crate::kernel::caps::{self, Cap};
use crate::kernel::run::{Flow, Source, Timing, Turn, follow};
use crate::kernel::signals::Signals;
use crate::kernel::socket::{Capture as Socket, Direction, Filter, Interface, Packet};
use crate::net::linktype::LinkType;
use crate::net::packet::{describe, hex, hex_lines};
use crate::output::{Column, Field, Kind, Record, Sink, file};
use crate::values::{number, parse_duration};

/// Show the packets of an interface that a filter matches
#[derive(Args, Debug)]
pub(crate) struct Capture {
    /// The interface
    #[arg(value_name = "IFACE")]
    interface: String,

    /// The expression, as tcpdump takes it; several words are joined. Without one, every packet
    #[arg(value_name = "EXPR")]
    expression: Vec<String>,

    /// Take the filter from FILE (`-` for standard input): assembly, or as tcpdump -dd and -ddd print it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["expression", "unoptimized", "resolve"])]
    asm: Option<PathBuf>,

    #[command(flatten)]
    compiler: CompilerArgs,

    /// Receive what is for other machines too
    #[arg(long, help_heading = "Run")]
    promiscuous: bool,

    /// Stop after this long, such as 500ms, 30s or 5m
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration, help_heading = "Run")]
    duration: Option<Duration>,

    /// Stop after N packets
    #[arg(short = 'n', long, value_name = "N", value_parser = number::<u64>(1, u64::MAX), help_heading = "Run")]
    max_events: Option<u64>,

    /// Show each packet's bytes
    #[arg(short = 'x', long, help_heading = "Output")]
    hex: bool,

    /// Write the packets to FILE as pcap, `-` for standard output, instead of showing them
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["hex", "output", "no_header", "format", "color"], help_heading = "Output")]
    write: Option<PathBuf>,

    /// Say on standard error when packets are captured from now on
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = "Output")]
    verbose: u8,

    #[command(flatten)]
    output: OutputArgs,
}

/// The schema of a row.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("time", "when the kernel had it, RFC 3339"),
    Field::new("iface", "the interface"),
    Field::new("direction", "ingress or egress"),
    Field::new("length", "bytes on the wire, VLAN tag included"),
    Field::new("smac", "source hardware address, or null"),
    Field::new("dmac", "destination hardware address, or null"),
    Field::new("vlan", "list of VLAN ids, the outer first; null when there is no tag"),
    Field::new("family", "4 or 6; null when it is not of IP or ARP"),
    Field::new("proto", "its protocol: tcp, udp, arp and so on"),
    Field::new("saddr", "source address, of ARP the sender's; or null"),
    Field::new("sport", "source port, or null"),
    Field::new("daddr", "destination address, of ARP the target's; or null"),
    Field::new("dport", "destination port, or null"),
    Field::new("info", "ARP operation, TCP flags, or ICMP type and code; or null"),
    Field::new("data", "the packet's bytes in hexadecimal; null without --hex"),
];

/// The schema of the summary.
pub(crate) const SUMMARY: &[Field] = &[
    Field::new("command", "filter capture"),
    Field::new("packets", "packets shown or written"),
    Field::new("matched", "packets that the filter let through, by the kernel's count"),
    Field::new(
        "lost",
        "of these, packets for which the kernel had no room; may have ones with a VLAN tag that the filter would not have matched",
    ),
];

const COLUMNS: [Column; 9] = [
    TIME_COLUMN,
    Column::left("PROTO", "proto", 6),
    Column::right("LEN", "length", 5),
    Column::left("SADDR", "saddr", 15).or("smac"),
    Column::right("SPORT", "sport", 5),
    Column::left("DADDR", "daddr", 15).or("dmac"),
    Column::right("DPORT", "dport", 5),
    Column::left("VLAN", "vlan", 4),
    Column::left("INFO", "info", 8),
];

/// Where packets go.
enum Target {
    Rows(Sink),
    File(Writer<Box<dyn Write>>),
}

impl Capture {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let expression = join(&self.expression);
        // What is wrong with the filter is told without privileges; which link the interface has takes a socket.
        let assembled = self.asm.as_deref().map(read_classic).transpose()?;
        if assembled.is_none() && !self.expression.is_empty() {
            self.compiler.compile(&expression, Link::Ethernet.into())?;
        } else if self.compiler.unoptimized || self.compiler.resolve {
            return Err(usage("--unoptimized, --resolve: of expressions; expected one with them"));
        }
        caps::require(&[Cap::NetRaw])?;
        let interface = Interface::open(&self.interface)?;
        let filter = match assembled {
            Some(program) => Filter::Socket(program),
            None if self.expression.is_empty() => Filter::everything(),
            None => Filter::Wire(self.compiler.compile(&expression, interface.link.into())?),
        };
        let link = interface.link;
        let mut target = self.target(link)?;
        let mut signals = take_signals(self.output.output.is_some())?;
        let socket = interface.capture(&filter, self.promiscuous)?;
        note(self.verbose, || format!("armed, capturing on {}", self.interface));
        if let Target::Rows(sink) = &mut target {
            sink.start()?;
        }
        let mut packets = 0;
        let outcome = self.follow(&socket, link, &mut target, &mut signals, &mut packets);
        socket.stop()?;
        // Without its interface a capture has failed, but what it has is whole.
        if outcome.is_ok() || socket.is_gone() {
            self.finish(&socket, link, &mut target, packets)?;
        }
        outcome.map(|()| ExitCode::SUCCESS)
    }

    fn target(&self, link: Link) -> Result<Target> {
        Ok(match &self.write {
            None => Target::Rows(Sink::open(&self.output.sink(), COLUMNS.to_vec(), FIELDS)?),
            Some(path) => {
                let out: Box<dyn Write> = if path == Path::new("-") {
                    Box::new(std::io::stdout())
                } else {
                    let file = file::create(path)
                        .map_err(|error| usage(format!("--write {}: {error}", path.display())))?;
                    Box::new(BufWriter::new(file))
                };
                let mut writer = Writer::new(out, link.into(), SNAPLEN)?;
                // A reader that waits at a pipe sees that we listen.
                writer.flush()?;
                Target::File(writer)
            }
        })
    }

    fn full(&self, packets: u64) -> bool {
        self.max_events.is_some_and(|most| packets >= most)
    }

    fn follow(
        &self,
        socket: &Socket,
        link: Link,
        target: &mut Target,
        signals: &mut Signals,
        packets: &mut u64,
    ) -> Result<()> {
        let to_stdout = match &self.write {
            Some(path) => path == Path::new("-"),
            None => self.output.output.is_none(),
        };
        // What waits in a buffer is written at least this often, and an interface that went away is missed.
        let interval = Some(Duration::from_millis(500));
        let timing =
            Timing { duration: self.duration, interval, look: false, to_stdout, gather: false };
        follow(socket, signals, timing, |turn| match turn {
            Turn::Event(packet) => {
                self.packet(&packet, (link, &socket.name()), target)?;
                *packets += 1;
                Ok(if self.full(*packets) { Flow::Stop } else { Flow::Continue })
            }
            Turn::Rest => Ok(Flow::Continue),
            Turn::Tick => {
                if let Target::File(writer) = target {
                    writer.flush()?;
                }
                let looked = socket.look_for_it();
                for (before, name) in socket.take_renamed() {
                    tell(&format!("{before} is called {name} now; it goes on"));
                }
                looked?;
                Ok(Flow::Continue)
            }
            Turn::Look => Ok(Flow::Continue),
            Turn::Reopen => {
                if let Target::Rows(sink) = target {
                    sink.reopen()?;
                }
                Ok(Flow::Continue)
            }
        })
    }

    fn packet(&self, packet: &Packet, from: (Link, &str), target: &mut Target) -> Result<()> {
        match target {
            Target::File(writer) => writer.write(packet.time, &packet.data, packet.length),
            Target::Rows(sink) => {
                sink.event(&self.record(packet, from))?;
                if self.hex {
                    sink.detail(&hex_lines(&packet.data))?;
                }
                Ok(())
            }
        }
    }

    fn record(&self, packet: &Packet, (link, iface): (Link, &str)) -> Record {
        let is = describe(&packet.data, LinkType::from(link));
        let direction = match packet.direction {
            Direction::In => "ingress",
            Direction::Out => "egress",
        };
        Record::new(Kind::Event)
            .with("time", packet.time)
            .with("iface", iface)
            .with("direction", direction)
            .with("length", packet.length)
            .with("smac", is.smac)
            .with("dmac", is.dmac)
            .with("vlan", (!is.vlan.is_empty()).then_some(is.vlan))
            .with("family", is.family)
            .with("proto", is.proto)
            .with("saddr", is.saddr)
            .with("sport", is.sport)
            .with("daddr", is.daddr)
            .with("dport", is.dport)
            .with("info", is.info)
            .with("data", self.hex.then(|| hex(&packet.data)))
    }

    /// What is still queued, and the counts.
    fn finish(
        &self,
        socket: &Socket,
        link: Link,
        target: &mut Target,
        mut packets: u64,
    ) -> Result<()> {
        loop {
            let more = socket.fill()?;
            while let Some(packet) = socket.next() {
                if !self.full(packets) {
                    self.packet(&packet, (link, &socket.name()), target)?;
                    packets += 1;
                }
            }
            if !more {
                break;
            }
        }
        let counts = socket.statistics()?;
        let record = Record::new(Kind::Summary)
            .with("command", "filter capture")
            .with("packets", packets)
            .with("matched", counts.matched)
            .with("lost", counts.dropped);
        let lost = match counts.dropped {
            0 => "0 lost".to_string(),
            dropped => format!("{dropped} lost: the kernel had no room for them"),
        };
        let sentence =
            format!("{packets} packets; {} matched by the kernel's count; {lost}", counts.matched);
        match target {
            Target::Rows(sink) => sink.summary(&record, &sentence),
            Target::File(writer) => {
                writer.flush()?;
                tell(&sentence);
                Ok(())
            }
        }
    }
}
