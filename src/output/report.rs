// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tables whose rows are all there before the first is printed.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::record::Record;
use super::table::{Align, Column};

/// A finite table, as wide as its widest cells.
#[derive(Debug)]
pub(crate) struct Report;

impl Report {
    pub(crate) fn render(columns: &[Column], rows: &[Record], header: bool) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if header {
            table.set_header(columns.iter().map(|column| column.header));
        }
        for row in rows {
            table.add_row(columns.iter().map(|column| column.cell(row)));
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
        text.push('\n');
        text
    }
}
