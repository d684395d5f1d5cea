// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk filter run --step`: the interpreter, instruction by instruction.

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::OutputArgs;
use crate::error::usage;
use crate::filter::classic::disasm::image;
use crate::filter::classic::insn::Insn;
use crate::filter::classic::interp::{self, Rules};
use crate::filter::savefile::Captured;
use crate::output::{Column, Field, Kind, Record, Sink, Value};

/// The schema of a row.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("step", "how many instructions were carried out before"),
    Field::new("pc", "number of the instruction in the program, from 0"),
    Field::new("instruction", "what it is, as tcpdump -d prints it"),
    Field::new("a", "the accumulator before it"),
    Field::new("x", "the index register before it"),
    Field::new("mem", "the 16 words of M[] before it"),
];

/// The schema of the summary.
pub(crate) const SUMMARY: &[Field] = &[
    Field::new("command", "filter run"),
    Field::new("packet", "number of the packet"),
    Field::new("verdict", "match or no match"),
    Field::new("returned", "what the program returned"),
    Field::new("steps", "instructions that were carried out"),
];

fn hexadecimal(value: &Value) -> String {
    match value {
        Value::Unsigned(number) => format!("{number:#x}"),
        other => other.text(),
    }
}

/// Only words that are not 0.
fn words(value: &Value) -> String {
    match value {
        Value::Numbers(words) => {
            let used = words.iter().enumerate().filter(|(_, word)| **word != 0);
            used.map(|(i, word)| format!("M[{i}]={word:#x}")).collect::<Vec<_>>().join(" ")
        }
        other => other.text(),
    }
}

const COLUMNS: [Column; 4] = [
    Column::left("INSTRUCTION", "instruction", 40),
    Column::right("A", "a", 10).shown_by(hexadecimal),
    Column::right("X", "x", 10).shown_by(hexadecimal),
    Column::left("M", "mem", 16).shown_by(words),
];

pub(super) fn show(output: &OutputArgs, program: &[Insn], packet: &Captured) -> Result<ExitCode> {
    let mut sink = Sink::open(&output.sink(), COLUMNS.to_vec(), FIELDS)?;
    let known = interp::Packet { length: packet.length, ..interp::Packet::new(&packet.data) };
    let mut states = Vec::new();
    let returned =
        interp::trace(program, &known, Rules::Libpcap, |state| states.push(state.clone()))
            .map_err(|stuck| usage(format!("packet {}: {stuck}", packet.number)))?;
    for (step, state) in states.iter().enumerate() {
        // A tab would not take its place in a column.
        let instruction = image(program[state.pc], state.pc).replace('\t', " ");
        let record = Record::new(Kind::Event)
            .with("step", step as u64)
            .with("pc", state.pc as u64)
            .with("instruction", instruction)
            .with("a", state.a)
            .with("x", state.x)
            .with("mem", state.mem.to_vec());
        sink.event(&record)?;
    }
    let verdict = if returned == 0 { "no match" } else { "match" };
    let record = Record::new(Kind::Summary)
        .with("command", "filter run")
        .with("packet", packet.number)
        .with("verdict", verdict)
        .with("returned", returned)
        .with("steps", states.len() as u64);
    let sentence = format!(
        "packet {}: {verdict}, returned {returned} after {} instructions",
        packet.number,
        states.len()
    );
    sink.summary(&record, &sentence)?;
    Ok(ExitCode::SUCCESS)
}
