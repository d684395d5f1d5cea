// SPDX-License-Identifier: MIT OR Apache-2.0

//! `bpftk man`: the manual pages, rendered from the command line's definition and what the commands know of
//! themselves. `make man` and packagers use it.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use clap_mangen::Man as Page;
use clap_mangen::roff::{Roff, bold, roman};

use super::{clone_trace, doctor, drop, egress, filter, sockredir, tcpconnect};
use crate::cli::definition;
use crate::output::Field;

/// What a command's page says beside its options.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manual {
    pub(crate) command: &'static str,
    /// Command lines, each with what it does.
    pub(crate) examples: &'static [(&'static str, &'static str)],
    /// Columns of the table, each with its unit and meaning.
    pub(crate) columns: &'static [(&'static str, &'static str)],
    /// Fields of JSON lines and CSV, by what the rows are.
    pub(crate) fields: &'static [(&'static str, &'static [Field])],
    /// Paragraphs on how it is done, by which back end, and what each can't see.
    pub(crate) mechanism: &'static [&'static str],
    /// Paragraphs on what it costs the machine.
    pub(crate) overhead: &'static [&'static str],
    /// Exit statuses of its own, beside those that all commands have.
    pub(crate) exit_status: &'static [(&'static str, &'static str)],
}

const MANUALS: &[Manual] = &[
    clone_trace::MANUAL,
    tcpconnect::MANUAL,
    drop::XDP_MANUAL,
    drop::TC_MANUAL,
    egress::MANUAL,
    sockredir::MANUAL,
    filter::MANUAL,
    doctor::MANUAL,
];

const SIGNALS: &[(&str, &str)] = &[
    (
        "SIGINT, SIGTERM, SIGQUIT",
        "end the run in order: programs are detached, and the account is printed. Also where they were ignored at the start, since shells \
         have the background jobs of scripts ignore SIGINT and SIGQUIT.",
    ),
    (
        "SIGHUP",
        "has --output opened anew, for log rotation, and lists of addresses read anew; where there are neither, it ends the run in order. If \
         it was ignored at the start, as under nohup(1), it stays ignored, unless there is something to be opened or read anew, which \
         is then told.",
    ),
];

const FILES: &[&str] = &[
    "Files that bpftk makes (--output, --write, --suggest) are for their owner alone (mode 0600). In a directory that somebody else than \
     root or the caller owns, or that others may write to, such as /tmp, a symbolic link is not followed, be it the file or a directory on the way. A list of --suggest is put in the \
     place of what was there in one step, when it is whole.",
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("NO_COLOR", "if set and not empty: tables have no color."),
    (
        "TZ",
        "the zone of the times of day in tables, such as Europe/Berlin; the system's, if not set. JSON and CSV have UTC.",
    ),
];

const EXIT_STATUS: &[(&str, &str)] = &[
    (
        "0",
        "finished, or ended by SIGINT, SIGTERM, SIGQUIT, SIGHUP or a reader that closed the pipe",
    ),
    ("1", "failed while running"),
    ("2", "wrong usage: the message names the value and what would be valid"),
    ("3", "not permitted: the message names the capability"),
    ("4", "this kernel can't do it: the message says what is missing"),
];

/// Of commands that follow a cgroup.
pub(crate) const REMOVED_CGROUP: (&str, &str) = (
    "1, with --cgroup",
    "the cgroup was removed, so nothing more can come: it is noticed within a second, and totals and losses are told first",
);

/// Write the manual pages into DIR
#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Where to write bpftk.1 and one page a command
    dir: PathBuf,
}

impl Man {
    pub(crate) fn run(self) -> Result<ExitCode> {
        for (name, text) in pages() {
            let path = self.dir.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// File names and contents.
fn pages() -> Vec<(String, String)> {
    let mut root = definition();
    root.build();
    let mut pages = vec![("bpftk.1".to_string(), overview(&root))];
    for command in root.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name().to_string();
        if name == "help" {
            continue;
        }
        let manual = MANUALS.iter().find(|manual| manual.command == name);
        // The page of `tcpconnect` is called, and calls itself, bpftk-tcpconnect.
        let full = format!("bpftk-{name}");
        let command =
            command.clone().name(full.clone()).bin_name(format!("bpftk {name}")).after_help("");
        pages.push((format!("{full}.1"), command_page(command, manual)));
    }
    pages
}

fn page(command: clap::Command) -> Page {
    let version = concat!("bpftk ", env!("CARGO_PKG_VERSION"));
    // A date would make every day's pages differ.
    Page::new(command).manual("bpftk manual").source(version).date("")
}

fn render(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> String {
    let mut text = Vec::new();
    write(&mut text).expect("memory takes what is written");
    String::from_utf8(text).expect("pages are text")
}

fn overview(root: &clap::Command) -> String {
    let page = page(root.clone());
    render(|text| {
        page.render_title(text)?;
        page.render_name_section(text)?;
        page.render_synopsis_section(text)?;
        page.render_description_section(text)?;
        page.render_options_section(text)?;
        page.render_subcommands_section(text)?;
        terms("SIGNALS", SIGNALS).to_writer(text)?;
        paragraphs("FILES", FILES).to_writer(text)?;
        terms("ENVIRONMENT", ENVIRONMENT).to_writer(text)?;
        exit_status(&[]).to_writer(text)
    })
}

/// What a command's own subcommand is and takes, as a section of the command's page.
fn verb_section(verb: &clap::Command, of: &str) -> String {
    let name = verb.get_name();
    let page = page(verb.clone().bin_name(format!("{of} {name}")));
    let text = render(|text| {
        page.render_synopsis_section(text)?;
        page.render_description_section(text)?;
        page.render_options_section(text)
    });
    let parts = text.replace(".SH ", ".SS ");
    format!(".SH {}\n{parts}", name.to_uppercase())
}

fn command_page(command: clap::Command, manual: Option<&Manual>) -> String {
    let of = command.get_bin_name().unwrap_or_default().to_string();
    let verbs: Vec<String> = command
        .get_subcommands()
        .filter(|verb| verb.get_name() != "help")
        .map(|verb| verb_section(verb, &of))
        .collect();
    let page = page(command);
    render(|text| {
        page.render_title(text)?;
        page.render_name_section(text)?;
        page.render_synopsis_section(text)?;
        page.render_description_section(text)?;
        page.render_options_section(text)?;
        text.extend(verbs.concat().bytes());
        if let Some(manual) = manual {
            examples(manual).to_writer(text)?;
            output(manual).to_writer(text)?;
            paragraphs("MECHANISM", manual.mechanism).to_writer(text)?;
            paragraphs("OVERHEAD", manual.overhead).to_writer(text)?;
        }
        exit_status(manual.map_or(&[], |manual| manual.exit_status)).to_writer(text)?;
        let mut see = Roff::default();
        see.control("SH", ["SEE ALSO"]).text([bold("bpftk"), roman("(1)")]);
        see.to_writer(text)
    })
}

fn term(roff: &mut Roff, name: &str, text: &str) {
    roff.control("TP", []).text([bold(name)]).text([roman(text)]);
}

fn terms(title: &str, terms: &[(&str, &str)]) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", [title]);
    for (name, text) in terms {
        term(&mut roff, name, text);
    }
    roff
}

fn examples(manual: &Manual) -> Roff {
    terms("EXAMPLES", manual.examples)
}

fn output(manual: &Manual) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", ["OUTPUT"]);
    roff.text([roman(
        "The columns of the table. A value that there is none of is a dash; control characters in \
                      names are escaped.",
    )]);
    for (name, text) in manual.columns {
        term(&mut roff, name, text);
    }
    for (what, fields) in manual.fields {
        roff.control("SS", [*what]);
        for field in *fields {
            term(&mut roff, field.name, field.doc);
        }
    }
    roff
}

fn paragraphs(title: &str, texts: &[&str]) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", [title]);
    for (i, text) in texts.iter().enumerate() {
        if i > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(*text)]);
    }
    roff
}

fn exit_status(own: &[(&str, &str)]) -> Roff {
    terms("EXIT STATUS", &[EXIT_STATUS, own].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_committed_pages_are_current() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
        if !dir.is_dir() {
            println!("SKIP the sources are not here");
            return;
        }
        let pages = pages();
        for (name, text) in &pages {
            let committed = fs::read_to_string(dir.join(name)).unwrap_or_default();
            assert!(committed == *text, "man/{name} is stale: run `make man`");
        }
        let mut committed = 0;
        for entry in fs::read_dir(dir).unwrap() {
            committed += usize::from(entry.unwrap().path().extension().is_some_and(|e| e == "1"));
        }
        assert_eq!(committed, pages.len(), "man/ has a page of a command that is gone");
    }

    #[test]
    fn every_command_that_prints_rows_has_all_sections() {
        for manual in MANUALS {
            let name = format!("bpftk-{}.1", manual.command);
            let (_, text) = pages().into_iter().find(|(page, _)| *page == name).unwrap();
            for section in ["EXAMPLES", "OUTPUT", "MECHANISM", "OVERHEAD", "EXIT STATUS"] {
                let (_, rest) = text
                    .split_once(&format!(".SH {section}\n"))
                    .or_else(|| text.split_once(&format!(".SH \"{section}\"\n")))
                    .expect(section);
                let body = rest.split(".SH").next().unwrap().trim();
                assert!(!body.is_empty(), "{name}: {section} is empty");
            }
        }
    }
}
