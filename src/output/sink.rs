// SPDX-License-Identifier: MIT OR Apache-2.0

//! Records in, text out: the table, JSON lines, CSV.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;

use super::record::{Field, Record, Value};
use super::report::{Look, Report, wrap};
use super::table::{Column, header_line, row_line};
use super::writer::Writer;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people
    #[default]
    Table,
    /// One JSON object a line, every field always
    Json,
    /// Comma-separated values, every field always
    Csv,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct SinkOptions {
    pub(crate) format: Format,
    pub(crate) output: Option<PathBuf>,
    pub(crate) no_header: bool,
    pub(crate) color: ColorChoice,
}

/// Where a command's records go.
#[derive(Debug)]
pub(crate) struct Sink {
    writer: Writer,
    format: Format,
    columns: Vec<Column>,
    fields: &'static [Field],
    /// Of events among rows of another schema.
    events: Option<&'static [Field]>,
    header: bool,
    header_written: bool,
    color: bool,
    terminal: bool,
    /// Lines of the last interval's table, to draw over on a terminal.
    drawn: usize,
    /// Whether rows of a stream wait for `flush`.
    holds: bool,
}

impl Sink {
    pub(crate) fn open(
        options: &SinkOptions,
        columns: Vec<Column>,
        fields: &'static [Field],
    ) -> Result<Self> {
        let terminal = options.output.is_none() && std::io::stdout().is_terminal();
        let color = match options.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            // https://no-color.org: set and not empty.
            ColorChoice::Auto => {
                terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        Ok(Self {
            writer: Writer::open(options.output.as_deref())?,
            format: options.format,
            columns,
            fields,
            events: None,
            header: !options.no_header,
            header_written: false,
            color,
            terminal,
            drawn: 0,
            holds: false,
        })
    }

    /// From now on, rows of a stream may wait until `flush`: whoever gets many at a time writes them together.
    pub(crate) fn hold_rows(&mut self) {
        self.holds = true;
    }

    /// Writes the rows that wait.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.writer.flush()
    }

    /// Lets events of this schema be among the rows. Their kinds tell JSON lines apart; other formats have room for one schema.
    pub(crate) fn takes_events(&mut self, fields: &'static [Field]) {
        debug_assert_eq!(self.format, Format::Json, "rows are alike");
        self.events = Some(fields);
    }

    /// Whether the run outlives an output that can't be written: what it does beside it matters more. Lines that are lost so
    /// are counted.
    pub(crate) fn set_lasting(&mut self, lasting: bool) {
        self.writer.set_lasting(lasting);
    }

    /// Lines that could not be written.
    pub(crate) fn unwritten(&self) -> u64 {
        self.writer.unwritten()
    }

    /// At the end of such a run.
    pub(crate) fn unwritten_is_an_error(&self) -> Result<()> {
        match self.unwritten() {
            0 => Ok(()),
            1 => Err(anyhow!("1 line could not be written")),
            lines => Err(anyhow!("{lines} lines could not be written")),
        }
    }

    /// After SIGHUP.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        self.writer.reopen()
    }

    /// Whether the rows are in the user's terminal, where messages may disturb them.
    pub(crate) fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// Before the first row: what the columns are may depend on what was found meanwhile.
    pub(crate) fn set_columns(&mut self, columns: Vec<Column>) {
        self.columns = columns;
    }

    /// Whether an interval's table is drawn over the one before.
    pub(crate) fn redraws(&self) -> bool {
        self.terminal && self.is_table()
    }

    /// Writes the header of a stream before its first row, so that it is seen that we listen.
    pub(crate) fn start(&mut self) -> Result<()> {
        if self.header_written || !self.header {
            return Ok(());
        }
        self.header_written = true;
        match self.format {
            Format::Table => self.writer.write(&header_line(&self.columns, self.color)),
            Format::Json => Ok(()),
            Format::Csv => {
                let names = self.fields.iter().map(|field| field.name);
                self.writer.write(&csv_line(names)?)
            }
        }
    }

    /// Writes one row of a stream, at once unless it may wait.
    pub(crate) fn event(&mut self, record: &Record) -> Result<()> {
        // A table may have cells that are made of several fields.
        debug_assert!(
            self.events.unwrap_or(self.fields).iter().map(|field| field.name).eq(record
                .fields
                .iter()
                .map(|(name, _)| *name)
                .take(if self.is_table() { self.fields.len() } else { usize::MAX })),
            "a record has its schema's fields, in order: {:?}",
            record.fields
        );
        self.start()?;
        let line = match self.format {
            Format::Table => row_line(&self.columns, record, self.color),
            Format::Json => json_line(record)?,
            Format::Csv => csv_record(record)?,
        };
        if self.holds { self.writer.hold(&line) } else { self.writer.write(&line) }
    }

    /// Writes lines that belong to the row before them, where rows are for people.
    pub(crate) fn detail(&mut self, lines: &str) -> Result<()> {
        if self.format == Format::Table { self.writer.write(lines) } else { Ok(()) }
    }

    /// Writes one interval's rows: drawn over the last ones on a terminal, appended elsewhere.
    pub(crate) fn interval(&mut self, title: &str, rows: &[Record]) -> Result<()> {
        match self.format {
            Format::Table => {
                let mut text = String::new();
                if self.terminal && self.drawn > 0 {
                    text = format!("\x1b[{}A\x1b[J", self.drawn);
                }
                let mut body = format!("{title}\n");
                let look = Look { header: self.header, color: self.color, width: None };
                body.push_str(&Report::render(&self.columns, rows, look));
                self.drawn = body.lines().count();
                text.push_str(&body);
                self.writer.write(&text)
            }
            Format::Json => {
                let lines: Result<String> = rows.iter().map(json_line).collect();
                self.writer.write(&lines?)
            }
            Format::Csv => {
                self.start()?;
                let lines: Result<String> = rows.iter().map(csv_record).collect();
                self.writer.write(&lines?)
            }
        }
    }

    /// Writes one of several finite tables, with columns of its own. `empty` is said in place of a table without rows.
    pub(crate) fn section(
        &mut self,
        columns: &[Column],
        rows: &[Record],
        empty: &str,
    ) -> Result<()> {
        const WIDTH: usize = 80;
        match self.format {
            Format::Table => {
                let mut text = String::new();
                if std::mem::replace(&mut self.header_written, true) {
                    text.push('\n');
                }
                if rows.is_empty() {
                    text.push_str(&wrap(empty, WIDTH));
                    text.push('\n');
                } else {
                    let look = Look { header: self.header, color: self.color, width: Some(WIDTH) };
                    text.push_str(&Report::render(columns, rows, look));
                }
                self.writer.write(&text)
            }
            Format::Json | Format::Csv => self.interval("", rows),
        }
    }

    /// Keeps the last interval's table: what follows is drawn below it.
    pub(crate) fn settle(&mut self) {
        self.drawn = 0;
    }

    /// The end: a last line of JSON, or `sentence` on standard error where only rows belong in the output.
    pub(crate) fn summary(&mut self, record: &Record, sentence: &str) -> Result<()> {
        if self.format == Format::Json {
            return self.writer.write(&json_line(record)?);
        }
        self.flush()?;
        // Nobody may be listening any more, and that is no failure of the run.
        let _ = writeln!(std::io::stderr(), "bpftk: {sentence}");
        Ok(())
    }
}

fn json_line(record: &Record) -> Result<String> {
    let mut line = serde_json::to_string(record).context("cannot encode a row as JSON")?;
    line.push('\n');
    Ok(line)
}

fn csv_record(record: &Record) -> Result<String> {
    csv_line(record.fields.iter().map(|(_, value)| Value::text(value)))
}

fn csv_line<T: AsRef<[u8]>>(cells: impl Iterator<Item = T>) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(cells).context("cannot encode a row as CSV")?;
    let bytes = writer.into_inner().context("cannot encode a row as CSV")?;
    String::from_utf8(bytes).context("cannot encode a row as CSV")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Kind;

    #[test]
    fn csv_quotes_what_needs_it() {
        let record = Record::new(Kind::Event).with("a", "x,\"y\"\n").with("b", None::<u32>);
        assert_eq!(csv_record(&record).unwrap(), "\"x,\"\"y\"\"\n\",\n");
    }

    const FIELDS: &[Field] = &[Field::new("pid", "")];

    fn sink(path: &std::path::Path) -> Sink {
        let options = SinkOptions {
            format: Format::Csv,
            output: Some(path.into()),
            ..SinkOptions::default()
        };
        Sink::open(&options, Vec::new(), FIELDS).unwrap()
    }

    fn row(pid: u32) -> Record {
        Record::new(Kind::Event).with("pid", pid)
    }

    #[test]
    fn a_file_gets_whole_rows_and_is_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows");
        let mut sink = sink(&path);
        sink.event(&row(1)).unwrap();
        std::fs::rename(&path, dir.path().join("rows.1")).unwrap();
        sink.reopen().unwrap();
        sink.event(&row(2)).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("rows.1")).unwrap(), "pid\n1\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n");
    }

    #[test]
    fn rows_that_may_wait_do_and_none_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("rows"), dir.path().join("rows.1"));
        let text = |path| std::fs::read_to_string(path).unwrap();
        let mut sink = sink(&path);
        sink.start().unwrap();
        sink.hold_rows();
        sink.event(&row(1)).unwrap();
        assert_eq!(text(&path), "pid\n");
        sink.flush().unwrap();
        assert_eq!(text(&path), "pid\n1\n");
        // What was there before the file was rotated belongs into the old one.
        sink.event(&row(2)).unwrap();
        std::fs::rename(&path, &old).unwrap();
        sink.reopen().unwrap();
        assert_eq!(text(&old), "pid\n1\n2\n");
        // They wait for 64 KiB at most, and not longer than for whatever is not a row of the stream.
        for pid in 0..20_000 {
            sink.event(&row(pid)).unwrap();
        }
        let many = text(&path).lines().count();
        assert!((1..20_000).contains(&many), "{many}");
        sink.interval("", &[row(3)]).unwrap();
        assert_eq!(text(&path).lines().count(), 20_001);
        sink.event(&row(4)).unwrap();
        sink.summary(&row(5), "the end").unwrap();
        assert_eq!(text(&path).lines().count(), 20_002);
        sink.event(&row(6)).unwrap();
        drop(sink);
        assert!(text(&path).ends_with("\n4\n6\n"));
    }
}
