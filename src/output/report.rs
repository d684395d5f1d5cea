// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tables whose rows are all there before the first is printed.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::record::Record;
use super::table::{Align, BOLD, Column, RED, RESET};

/// How a report is drawn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Look {
    pub(crate) header: bool,
    pub(crate) color: bool,
    /// Wraps the last column, between words, so that lines fit.
    pub(crate) width: Option<usize>,
}

/// A finite table, as wide as its widest cells.
#[derive(Debug)]
pub(crate) struct Report;

impl Report {
    pub(crate) fn render(columns: &[Column], rows: &[Record], look: Look) -> String {
        let mut cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| columns.iter().map(|column| column.cell(row)).collect())
            .collect();
        let starts = starts(columns, &cells, look.header);
        if let (Some(width), Some(start)) = (look.width, starts.last()) {
            // A column of a few letters would be no easier to read than a long line.
            let room = width.saturating_sub(*start).max(20);
            for last in cells.iter_mut().filter_map(|row| row.last_mut()) {
                *last = wrap(last, room);
            }
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if look.header {
            table.set_header(columns.iter().map(|column| column.header));
        }
        for row in &cells {
            table.add_row(row);
        }
        for (i, column) in columns.iter().enumerate() {
            if let Some(shown) = table.column_mut(i) {
                shown.set_padding((0, 1));
                if column.align == Align::Right {
                    shown.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        let mut text = table.trim_fmt();
        if look.color {
            text = paint(&text, columns, rows, &cells, &starts, look.header);
        }
        text.push('\n');
        text
    }
}

/// At which character each column begins.
fn starts(columns: &[Column], cells: &[Vec<String>], header: bool) -> Vec<usize> {
    let mut at = 0;
    let mut starts = Vec::new();
    for (i, column) in columns.iter().enumerate() {
        starts.push(at);
        let widest = cells.iter().map(|row| row[i].chars().count()).max();
        let title = if header { column.header.len() } else { 0 };
        at += widest.unwrap_or(0).max(title) + 1;
    }
    starts
}

/// Breaks lines between words. A word that is longer than a line stays whole: it may be a path.
pub(super) fn wrap(text: &str, room: usize) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines.join("\n")
}

/// The header in bold, and cells that are bad news in red, where they are found at their place.
fn paint(
    text: &str,
    columns: &[Column],
    rows: &[Record],
    cells: &[Vec<String>],
    starts: &[usize],
    header: bool,
) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    let mut at = 0;
    if header && let Some(first) = lines.first_mut() {
        *first = format!("{BOLD}{first}{RESET}");
        at = 1;
    }
    for (row, texts) in rows.iter().zip(cells) {
        let Some(line) = lines.get_mut(at) else { break };
        // From the right, so that what is inserted moves nothing that is still to be found.
        for ((column, cell), &start) in columns.iter().zip(texts).zip(starts).rev() {
            let begin = line.char_indices().nth(start).map(|(byte, _)| byte);
            if (column.alarming)(row.get(column.field))
                && let Some(begin) = begin
                && line[begin..].starts_with(cell.as_str())
            {
                line.replace_range(begin..begin + cell.len(), &format!("{RED}{cell}{RESET}"));
            }
        }
        at += texts.last().map_or(1, |last| last.lines().count());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{Kind, Value};

    const COLUMNS: [Column; 3] = [
        Column::left("FACT", "name", 10),
        Column::left("STATUS", "status", 6)
            .alarming_if(|value| matches!(value, Value::Text(text) if text == "no")),
        Column::left("DETAIL", "detail", 30),
    ];

    fn rows() -> Vec<Record> {
        [("a", "yes", "short"), ("b", "no", "one two three four five six seven")]
            .map(|(name, status, detail)| {
                Record::new(Kind::Row)
                    .with("name", name)
                    .with("status", status)
                    .with("detail", detail)
            })
            .into()
    }

    #[test]
    fn the_last_column_wraps_between_words() {
        let look = Look { header: true, width: Some(32), ..Look::default() };
        assert_eq!(
            Report::render(&COLUMNS, &rows(), look),
            "FACT STATUS DETAIL\n\
             a    yes    short\n\
             b    no     one two three four\n            \
             five six seven\n"
        );
        let wide = Report::render(&COLUMNS, &rows(), Look::default());
        assert_eq!(wide.lines().count(), 2, "{wide}");
        assert_eq!(wrap("/a/very/long/path x", 4), "/a/very/long/path\nx");
    }

    #[test]
    fn color_changes_no_character() {
        for width in [None, Some(32)] {
            for header in [true, false] {
                let look = Look { header, width, color: true };
                let colored = Report::render(&COLUMNS, &rows(), look);
                assert_eq!(colored.matches("\x1b[31mno\x1b[0m").count(), 1, "{colored}");
                assert_eq!(colored.contains(BOLD), header);
                let plain = colored.replace(RED, "").replace(BOLD, "").replace(RESET, "");
                let look = Look { color: false, ..look };
                assert_eq!(plain, Report::render(&COLUMNS, &rows(), look));
            }
        }
    }
}
