// SPDX-License-Identifier: MIT OR Apache-2.0

//! Columns, and lines of fixed width for streams, whose widest value isn't known when the first row goes out.

use super::escape::printable;
use super::record::{Record, Value};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// One column of a table: which field it shows, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) header: &'static str,
    pub(crate) field: &'static str,
    /// The field that is shown where the first has no value.
    pub(crate) otherwise: Option<&'static str>,
    pub(crate) width: usize,
    pub(crate) align: Align,
    pub(crate) show: fn(&Value) -> String,
    /// Whether the value is bad news, and stands out where tables have color.
    pub(crate) alarming: fn(&Value) -> bool,
}

impl Column {
    pub(crate) const fn left(header: &'static str, field: &'static str, width: usize) -> Self {
        Self {
            header,
            field,
            otherwise: None,
            width,
            align: Align::Left,
            show: Value::text,
            alarming: |_| false,
        }
    }

    pub(crate) const fn right(header: &'static str, field: &'static str, width: usize) -> Self {
        Self {
            header,
            field,
            otherwise: None,
            width,
            align: Align::Right,
            show: Value::text,
            alarming: |_| false,
        }
    }

    pub(crate) const fn or(mut self, field: &'static str) -> Self {
        self.otherwise = Some(field);
        self
    }

    pub(crate) const fn shown_by(mut self, show: fn(&Value) -> String) -> Self {
        self.show = show;
        self
    }

    pub(crate) const fn alarming_if(mut self, alarming: fn(&Value) -> bool) -> Self {
        self.alarming = alarming;
        self
    }

    fn value<'a>(&self, record: &'a Record) -> &'a Value {
        match (record.get(self.field), self.otherwise) {
            (Value::Null, Some(field)) => record.get(field),
            (value, _) => value,
        }
    }

    /// The cell's text, safe for a terminal. Nothing to show is a dash, so that columns can be counted.
    pub(crate) fn cell(&self, record: &Record) -> String {
        let text = (self.show)(self.value(record));
        if text.is_empty() { "-".into() } else { printable(&text).into_owned() }
    }
}

pub(super) const BOLD: &str = "\x1b[1m";
pub(super) const RED: &str = "\x1b[31m";
pub(super) const RESET: &str = "\x1b[0m";

pub(super) fn header_line(columns: &[Column], color: bool) -> String {
    let cells = columns.iter().map(|column| (column.header.to_string(), false));
    let line = join(columns, cells, false);
    if color { format!("{BOLD}{line}{RESET}\n") } else { line + "\n" }
}

pub(super) fn row_line(columns: &[Column], record: &Record, color: bool) -> String {
    let cells =
        columns.iter().map(|column| (column.cell(record), (column.alarming)(column.value(record))));
    join(columns, cells, color) + "\n"
}

/// A cell wider than its column pushes the rest to the right, and what follows takes back the room it can: no value
/// is ever cut.
fn join(columns: &[Column], cells: impl Iterator<Item = (String, bool)>, color: bool) -> String {
    let mut line = String::new();
    let mut used = 0;
    let mut planned = 0;
    let last = columns.len().saturating_sub(1);
    for (i, (column, (text, alarming))) in columns.iter().zip(cells).enumerate() {
        let chars = text.chars().count();
        if i > 0 {
            line.push(' ');
            used += 1;
            planned += 1;
        }
        planned += column.width;
        let pad = planned.saturating_sub(used + chars);
        if column.align == Align::Right {
            line.extend(std::iter::repeat_n(' ', pad));
        }
        if color && alarming {
            line.push_str(RED);
            line.push_str(&text);
            line.push_str(RESET);
        } else {
            line.push_str(&text);
        }
        if column.align == Align::Left && i != last {
            line.extend(std::iter::repeat_n(' ', pad));
        }
        used += chars + if column.align == Align::Left && i == last { 0 } else { pad };
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Kind;

    const COLUMNS: [Column; 3] = [
        Column::left("PID", "pid", 6),
        Column::left("COMM", "comm", 5),
        Column::right("N", "n", 4).alarming_if(|value| *value == Value::Unsigned(7)),
    ];

    fn row(pid: u32, comm: &str, n: u32) -> Record {
        Record::new(Kind::Event).with("pid", pid).with("comm", comm).with("n", n)
    }

    #[test]
    fn columns_line_up() {
        assert_eq!(header_line(&COLUMNS, false), "PID    COMM     N\n");
        assert_eq!(row_line(&COLUMNS, &row(1, "init", 42), false), "1      init    42\n");
    }

    #[test]
    fn a_wide_value_is_never_cut_and_the_rest_catches_up() {
        assert_eq!(row_line(&COLUMNS, &row(1, "longer-1", 4), false), "1      longer-1 4\n");
        assert_eq!(row_line(&COLUMNS, &row(1, "longer", 4), false), "1      longer   4\n");
    }

    #[test]
    fn names_are_escaped_and_absent_values_are_dashes() {
        let line = row_line(&COLUMNS, &row(1, "\x1b[2J", 1), false);
        assert!(!line.contains('\x1b') && line.contains("\\x1b[2J"), "{line}");
        let empty = Record::new(Kind::Event);
        assert_eq!(row_line(&COLUMNS, &empty, false), "-      -        -\n");
    }

    #[test]
    fn another_field_stands_in_for_no_value() {
        let columns = [Column::left("CHILD", "child", 6).or("result")];
        let record = |child: Option<u32>| {
            Record::new(Kind::Event).with("child", child).with("result", "EAGAIN")
        };
        assert_eq!(row_line(&columns, &record(Some(7)), false), "7\n");
        assert_eq!(row_line(&columns, &record(None), false), "EAGAIN\n");
    }

    #[test]
    fn color_marks_bad_news_only() {
        assert!(row_line(&COLUMNS, &row(1, "a", 7), true).contains("\x1b[31m7\x1b[0m"));
        assert!(!row_line(&COLUMNS, &row(1, "a", 8), true).contains('\x1b'));
    }
}
