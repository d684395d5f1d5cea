// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk filter run`: what a filter says of the packets of a capture file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use clap::Args;

use super::args::{CompilerArgs, join, read_classic_with_loops};
use super::engines::{Engine, EngineArg, Verdict, needs_only_bytes};
use super::steps;
use crate::cli::OutputArgs;
use crate::error::{Status, status_of, unsupported, usage};
use crate::filter::classic::insn::Insn;
use crate::filter::libpcap::Packets;
use crate::filter::savefile::{Captured, Savefile};
use crate::kernel::caps;
use crate::net::linktype::LinkType;
use crate::net::packet::describe;
use crate::output::{Column, Field, Kind, Record, Sink, Value};
use crate::values::number;

/// Run a filter on the packets of a capture file
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// The expression, as tcpdump takes it; several words are joined
    #[arg(value_name = "EXPR", required_unless_present = "asm")]
    expression: Vec<String>,

    /// Take the filter from FILE (`-` for standard input): assembly, or as tcpdump -dd and -ddd print it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["expression", "unoptimized", "resolve"])]
    asm: Option<PathBuf>,

    /// The packets: a pcap or pcapng file, `-` for standard input
    #[arg(long, value_name = "FILE")]
    read: PathBuf,

    /// What runs the filter
    #[arg(long, value_name = "ENGINE", default_value = "interp")]
    engine: EngineArg,

    /// Show each instruction on packet N, with A, X and M[] before it
    #[arg(long, value_name = "N", value_parser = number::<u64>(1, u64::MAX))]
    step: Option<u64>,

    #[command(flatten)]
    compiler: CompilerArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// The schema of a row.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("packet", "number of the packet in the file, from 1"),
    Field::new("time", "when it was captured; null when the file does not tell"),
    Field::new("length", "bytes on the wire"),
    Field::new("captured", "bytes in the file"),
    Field::new("proto", "its protocol: tcp, udp, arp and so on"),
    Field::new("saddr", "source address, or null"),
    Field::new("sport", "source port, or null"),
    Field::new("daddr", "destination address, or null"),
    Field::new("dport", "destination port, or null"),
    Field::new("verdict", "match, no match, not run, or differ: the engines do not agree"),
    Field::new("returned", "what the program returned, where the engine tells; or null"),
    Field::new(
        "interp",
        "what bpftk's interpreter says: match, no match, not run; null when not asked",
    ),
    Field::new("libpcap", "what libpcap's interpreter says"),
    Field::new("kernel", "what the kernel's socket filter says"),
    Field::new("xdp", "what the translation for XDP says"),
    Field::new("tc", "what the translation for tc says"),
    Field::new("not_run", "why an engine was not given the packet; or null"),
];

/// The schema of the summary.
pub(crate) const SUMMARY: &[Field] = &[
    Field::new("command", "filter run"),
    Field::new("packets", "packets of the file"),
    Field::new("matched", "of these, that the filter matches"),
    Field::new("differ", "of these, that the engines do not agree on"),
    Field::new("not_run", "of these, that an engine could not be given"),
];

fn is_bad(value: &Value) -> bool {
    matches!(value, Value::Text(text) if text == "differ")
}

impl Run {
    fn columns(&self) -> Vec<Column> {
        let mut columns = vec![
            Column::right("PACKET", "packet", 6),
            Column::right("LEN", "length", 5),
            Column::left("PROTO", "proto", 6),
            Column::left("SADDR", "saddr", 15),
            Column::right("SPORT", "sport", 5),
            Column::left("DADDR", "daddr", 15),
            Column::right("DPORT", "dport", 5),
            Column::left("VERDICT", "verdict", 8).alarming_if(is_bad),
        ];
        if self.engine == EngineArg::All {
            columns.extend([
                Column::left("INTERP", "interp", 8),
                Column::left("LIBPCAP", "libpcap", 8),
                Column::left("KERNEL", "kernel", 8),
                Column::left("XDP", "xdp", 8),
                Column::left("TC", "tc", 8),
            ]);
        }
        columns
    }

    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.step.is_some() && self.engine != EngineArg::Interp {
            return Err(usage(
                "--step: shows bpftk's interpreter; expected --engine interp with it",
            ));
        }
        if self.asm.as_deref() == Some(Path::new("-")) && self.read == Path::new("-") {
            return Err(usage("--asm -, --read -: standard input can be only one of these"));
        }
        // What is wrong with the filter is told before the file is opened, if it is wrong for every kind of packet.
        // That is known for Ethernet alone, and another kind may have what Ethernet has not.
        let filter = Filter::new(&self)?;
        let early = filter.program(Packets::File { link: LinkType::ETHERNET, big_endian: false });
        let opened =
            open(&self.read).and_then(|(name, reader)| Ok((Savefile::new(&name, reader)?, name)));
        let ((mut file, name), early) = match (opened, early) {
            (Ok(opened), early) => (opened, early),
            (Err(_), Err(error)) | (Err(error), Ok(_)) => return Err(error),
        };
        if self.engine.loads_ebpf() {
            caps::require(caps::PACKETS)?;
        }
        if let Some(number) = self.step {
            return self.steps(number, &name, &mut file, &filter);
        }
        let first = file.next()?;
        if first.as_ref().is_none_or(|packet| packet.link == LinkType::ETHERNET) {
            early?;
        }
        let mut session = Session::new(self.engine.engines(), filter);
        if let Some(packet) = &first {
            session.engines(packet)?;
        }
        let mut sink = Sink::open(&self.output.sink(), self.columns(), FIELDS)?;
        sink.start()?;
        let mut next = first;
        while let Some(packet) = next {
            let record = session.packet(&packet)?;
            sink.event(&record)?;
            next = file.next()?;
        }
        session.finish(&mut sink)
    }

    fn steps(
        &self,
        number: u64,
        name: &str,
        file: &mut Savefile<'_>,
        filter: &Filter,
    ) -> Result<ExitCode> {
        let mut last = 0;
        while let Some(packet) = file.next()? {
            last = packet.number;
            if last == number {
                let program = filter.program_for(&packet)?;
                return steps::show(&self.output, &program, &packet);
            }
        }
        Err(usage(format!("--step {number}: {name} has {last} packets")))
    }
}

/// Where the program for a packet comes from.
#[derive(Debug)]
enum Filter {
    /// The same for every kind of packet, read but once.
    Assembled(Vec<Insn>),
    /// A file has one kind of packet but for pcapng, where each interface may have its own.
    Expression(String, CompilerArgs),
}

impl Filter {
    fn new(args: &Run) -> Result<Self> {
        Ok(match &args.asm {
            Some(path) => Self::Assembled(read_classic_with_loops(path)?),
            None => Self::Expression(join(&args.expression), args.compiler),
        })
    }

    fn program(&self, packets: Packets) -> Result<Vec<Insn>> {
        let program = match self {
            Self::Assembled(program) => program.clone(),
            Self::Expression(expression, compiler) => compiler.compile(expression, packets)?,
        };
        needs_only_bytes(&program)?;
        Ok(program)
    }

    fn program_for(&self, packet: &Captured) -> Result<Vec<Insn>> {
        self.program(packets(packet))
            .with_context(|| format!("packet {}, of link type {}", packet.number, packet.link.0))
    }
}

fn open(path: &Path) -> Result<(String, Box<dyn Read + Send>)> {
    if path == Path::new("-") {
        return Ok(("standard input".into(), Box::new(std::io::stdin())));
    }
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| usage(format!("cannot open {name}: {error}")))?;
    Ok((name, Box::new(file)))
}

fn packets(packet: &Captured) -> Packets {
    Packets::File { link: packet.link, big_endian: packet.big_endian }
}

/// What a run knows beside the file.
struct Session {
    which: Vec<EngineArg>,
    filter: Filter,
    /// For each kind of packet, made when the first of the kind comes.
    engines: Vec<(Packets, Vec<Engine>)>,
    packets: u64,
    matched: u64,
    differ: u64,
    not_run: u64,
}

impl Session {
    fn new(which: Vec<EngineArg>, filter: Filter) -> Self {
        Self { which, filter, engines: Vec::new(), packets: 0, matched: 0, differ: 0, not_run: 0 }
    }

    /// The engines for such a packet.
    fn engines(&mut self, packet: &Captured) -> Result<&mut Vec<Engine>> {
        let kind = packets(packet);
        let at = match self.engines.iter().position(|(known, _)| *known == kind) {
            Some(at) => at,
            None => {
                let engines = match self.filter.program_for(packet) {
                    Ok(program) => Engine::all(&self.which, &program, packet.link)?,
                    // It has run on packets of another kind, and does so on those that are still to come.
                    Err(error)
                        if !self.engines.is_empty() && status_of(&error) == Status::Usage =>
                    {
                        self.which.iter().map(|_| Engine::None(format!("{error:#}"))).collect()
                    }
                    Err(error) => return Err(error),
                };
                // The only one, and for the first packet: then it is not worth to go on.
                if let ([Engine::None(why)], true) = (&engines[..], self.engines.is_empty()) {
                    return Err(unsupported(why.clone()));
                }
                self.engines.push((kind, engines));
                self.engines.len() - 1
            }
        };
        Ok(&mut self.engines[at].1)
    }

    fn packet(&mut self, packet: &Captured) -> Result<Record> {
        let engines = self.engines(packet)?;
        let verdicts: Result<Vec<Verdict>> =
            engines.iter_mut().map(|engine| engine.run(packet)).collect();
        let verdicts = verdicts?;
        let verdict = agreement(&verdicts);
        self.packets += 1;
        self.matched += u64::from(verdict == "match");
        self.differ += u64::from(verdict == "differ");
        let not_run = verdicts.iter().find_map(|verdict| match verdict {
            Verdict::NotRun(why) => Some(why.to_string()),
            _ => None,
        });
        self.not_run += u64::from(not_run.is_some());
        let returned = verdicts.iter().find_map(|verdict| match verdict {
            Verdict::Match(value) => *value,
            Verdict::NoMatch => Some(0),
            Verdict::NotRun(_) => None,
        });
        let said = |which: EngineArg| {
            let at = self.which.iter().position(|&engine| engine == which);
            at.map(|at| verdicts[at].name())
        };
        let is = describe(&packet.data, packet.link);
        Ok(Record::new(Kind::Event)
            .with("packet", packet.number)
            .with("time", packet.time)
            .with("length", packet.length)
            .with("captured", packet.data.len() as u64)
            .with("proto", is.proto)
            .with("saddr", is.saddr)
            .with("sport", is.sport)
            .with("daddr", is.daddr)
            .with("dport", is.dport)
            .with("verdict", verdict)
            .with("returned", returned)
            .with("interp", said(EngineArg::Interp))
            .with("libpcap", said(EngineArg::Libpcap))
            .with("kernel", said(EngineArg::Kernel))
            .with("xdp", said(EngineArg::Xdp))
            .with("tc", said(EngineArg::Tc))
            .with("not_run", not_run))
    }

    fn finish(&self, sink: &mut Sink) -> Result<ExitCode> {
        let Self { packets, matched, differ, not_run, .. } = self;
        let record = Record::new(Kind::Summary)
            .with("command", "filter run")
            .with("packets", *packets)
            .with("matched", *matched)
            .with("differ", *differ)
            .with("not_run", *not_run);
        let mut sentence = format!("{packets} packets: {matched} match");
        if *not_run > 0 {
            sentence.push_str(&format!("; {not_run} could not be given to every engine"));
        }
        sink.summary(&record, &sentence)?;
        if *differ > 0 {
            return Err(anyhow!("the engines differ on {differ} of {packets} packets"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What all engines say that were given the packet.
fn agreement(verdicts: &[Verdict]) -> &'static str {
    let mut values = verdicts.iter().filter_map(|verdict| match verdict {
        Verdict::Match(value) => *value,
        _ => None,
    });
    if let Some(first) = values.next()
        && values.any(|value| value != first)
    {
        return "differ";
    }
    let mut said = verdicts.iter().filter_map(|verdict| verdict.matches());
    match said.next() {
        None => "not run",
        Some(first) if said.any(|other| other != first) => "differ",
        Some(true) => "match",
        Some(false) => "no match",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_that_differ_are_found() {
        use Verdict::{Match, NoMatch};
        let not_run = || Verdict::NotRun("x".into());
        for (verdicts, expected) in [
            (&[Match(Some(5)), Match(Some(5)), Match(None)][..], "match"),
            (&[NoMatch, NoMatch], "no match"),
            (&[Match(Some(5)), Match(Some(6))], "differ"),
            (&[NoMatch, Match(None)], "differ"),
            (&[Match(None), not_run(), NoMatch], "differ"),
            (&[not_run(), NoMatch], "no match"),
            (&[not_run()], "not run"),
        ] {
            assert_eq!(agreement(verdicts), expected, "{verdicts:?}");
        }
    }
}
