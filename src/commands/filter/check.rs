// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk filter check`: whether an expression runs at every hook of this kernel, and what it costs the verifier.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::args::{CompilerArgs, LinkArg, join};
use crate::cli::OutputArgs;
use crate::error::{Status, usage};
use crate::filter::classic::insn::Insn;
use crate::filter::ebpf::translate::{Hook, Link, Options, Refused, translate};
use crate::kernel::caps;
use crate::kernel::filter::engine::{self, SocketFilter};
use crate::output::{Column, Field, Kind, Record, Sink, Value};

/// Load an expression at every hook of this kernel, attached to nothing, and tell what the kernel makes of it
#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The expression, as tcpdump takes it; several words are joined
    #[arg(value_name = "EXPR", required = true)]
    expression: Vec<String>,

    /// What packets begin with
    #[arg(long, value_name = "LINK", default_value = "ethernet")]
    link: LinkArg,

    #[command(flatten)]
    compiler: CompilerArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// The schema of a row.
pub(crate) const FIELDS: &[Field] = &[
    Field::new(
        "hook",
        "socket, xdp, xdp frags (packets in several buffers), tc ingress or tc egress",
    ),
    Field::new(
        "status",
        "ok; refused (this hook has not what the filter asks for); failed (the kernel did not take it)",
    ),
    Field::new("classic", "instructions of classic BPF"),
    Field::new(
        "ebpf",
        "instructions of eBPF; null where the kernel translates, or nothing was translated",
    ),
    Field::new(
        "verified",
        "instructions that the verifier went through, on all ways together; or null",
    ),
    Field::new(
        "jited_bytes",
        "bytes of machine code; null where the kernel does not tell or interprets",
    ),
    Field::new("verifier_us", "microseconds that the verifier took; or null"),
    Field::new("detail", "why not; or null"),
    Field::new("log", "the verifier's last lines, where it refused; or null"),
];

/// The schema of the summary.
pub(crate) const SUMMARY: &[Field] = &[
    Field::new("command", "filter check"),
    Field::new("expression", "that was checked"),
    Field::new("hooks", "that were tried"),
    Field::new("failed", "that the filter does not run at"),
];

const COLUMNS: [Column; 8] = [
    Column::left("HOOK", "hook", 10),
    Column::left("STATUS", "status", 7)
        .alarming_if(|value| matches!(value, Value::Text(text) if text != "ok")),
    Column::right("CLASSIC", "classic", 7),
    Column::right("EBPF", "ebpf", 5),
    Column::right("VERIFIED", "verified", 8),
    Column::right("JITED", "jited_bytes", 6),
    Column::right("VERIFIER", "verifier_us", 8).shown_by(micros),
    Column::left("WHY NOT", "detail", 20),
];

fn micros(value: &Value) -> String {
    match value {
        Value::Unsigned(us) => format!("{us}us"),
        other => other.text(),
    }
}

/// How many of the verifier's lines are shown.
const LOG_LINES: usize = 12;

/// What came out at one hook.
#[derive(Debug)]
struct Outcome {
    hook: String,
    status: &'static str,
    ebpf: Option<u64>,
    figures: Option<engine::Figures>,
    detail: Option<String>,
    log: Option<Vec<String>>,
}

impl Outcome {
    fn new(hook: impl Display, status: &'static str) -> Self {
        Self { hook: hook.to_string(), status, ebpf: None, figures: None, detail: None, log: None }
    }

    fn record(&self, classic: usize) -> Record {
        let figures = self.figures.as_ref();
        Record::new(Kind::Row)
            .with("hook", self.hook.as_str())
            .with("status", self.status)
            .with("classic", classic as u64)
            .with("ebpf", self.ebpf)
            .with("verified", figures.and_then(|figures| figures.verified))
            .with("jited_bytes", figures.and_then(|figures| figures.machine_code))
            .with("verifier_us", figures.and_then(|figures| figures.verifier_us))
            .with("detail", self.detail.as_deref())
            .with("log", self.log.clone())
    }
}

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let expression = join(&self.expression);
        let link = Link::from(self.link);
        let program = self.compiler.compile(&expression, link.into())?;
        // The filter is no filter, at any hook.
        if let Err(refused @ Refused::Backward { .. }) =
            translate(&[&program], &Options::new(Hook::TcIngress, link))
        {
            return Err(usage(format!("`{expression}`: {refused}")));
        }
        caps::require(caps::PACKETS)?;
        let mut sink = Sink::open(&self.output.sink(), Vec::new(), FIELDS)?;

        let mut outcomes = vec![socket(&program)];
        outcomes.push(hook("xdp", &program, &Options::new(Hook::Xdp, link)));
        if engine::xdp_takes_frags() {
            let options = Options { frags: true, ..Options::new(Hook::Xdp, link) };
            outcomes.push(hook("xdp frags", &program, &options));
        }
        for (name, at) in [("tc ingress", Hook::TcIngress), ("tc egress", Hook::TcEgress)] {
            outcomes.push(hook(name, &program, &Options::new(at, link)));
        }

        let rows: Vec<Record> =
            outcomes.iter().map(|outcome| outcome.record(program.len())).collect();
        sink.section(&COLUMNS, &rows, "")?;
        if sink.is_table() {
            for outcome in &outcomes {
                for line in outcome.log.iter().flatten() {
                    let _ = writeln!(std::io::stderr(), "{}: {line}", outcome.hook);
                }
            }
        }
        let failed = outcomes.iter().filter(|outcome| outcome.status != "ok").count();
        let record = Record::new(Kind::Summary)
            .with("command", "filter check")
            .with("expression", expression.as_str())
            .with("hooks", outcomes.len() as u64)
            .with("failed", failed as u64);
        let sentence = match failed {
            0 => "the filter runs at every hook".to_string(),
            failed => format!("the filter does not run at {failed} of {} hooks", outcomes.len()),
        };
        sink.summary(&record, &sentence)?;
        Ok(if failed == 0 { ExitCode::SUCCESS } else { Status::Failed.into() })
    }
}

fn socket(program: &[Insn]) -> Outcome {
    match SocketFilter::attach(program) {
        Ok(_) => Outcome::new("socket", "ok"),
        Err(error) => {
            Outcome { detail: Some(format!("{error:#}")), ..Outcome::new("socket", "failed") }
        }
    }
}

fn hook(name: &str, program: &[Insn], options: &Options) -> Outcome {
    let function = match translate(&[program], options) {
        Ok(function) => function,
        Err(refused) => {
            return Outcome { detail: Some(refused.to_string()), ..Outcome::new(name, "refused") };
        }
    };
    let ebpf = Some(function.insns.len() as u64);
    match engine::load(&function, options.hook, options.frags) {
        Ok(loaded) => Outcome { ebpf, figures: Some(loaded.figures()), ..Outcome::new(name, "ok") },
        Err(failed) => {
            let lines: Vec<&str> = failed.log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            let detail = match failed.complaint() {
                Some(complaint) => format!("{}: {complaint}", failed.error),
                None => failed.error.to_string(),
            };
            Outcome {
                ebpf,
                detail: Some(detail),
                log: Some(last.iter().map(|line| (*line).to_string()).collect()),
                ..Outcome::new(name, "failed")
            }
        }
    }
}
