// SPDX-License-Identifier: MIT OR Apache-2.0

//! The command line: the commands, and the options that they share.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{
    clone_trace, completions, doctor, drop, egress, filter, man, sockredir, tcpconnect,
};
use crate::error::Status;
use crate::output::{ColorChoice, Format};
use crate::values::{number, parse_duration};

/// Trace and steer a live Linux machine with eBPF
#[derive(Debug, Parser)]
#[command(
    name = "bpftk",
    version,
    arg_required_else_help = true,
    infer_subcommands = false,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One line a command: its arguments, its name, and what it is for. The arguments are defined only for the command that
/// is run: start-up time is part of a tracer's work.
macro_rules! commands {
    ($($variant:ident($args:ty), $name:literal, $about:literal;)+) => {
        #[derive(Debug)]
        pub(crate) enum Command {
            $($variant(Box<$args>),)+
        }

        impl Command {
            pub(crate) fn run(self) -> Result<ExitCode> {
                match self {
                    $(Self::$variant(command) => command.run(),)+
                }
            }
        }

        impl FromArgMatches for Command {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                match matches.subcommand() {
                    $(Some(($name, matches)) => {
                        <$args>::from_arg_matches(matches).map(Box::new).map(Self::$variant)
                    })+
                    _ => Err(clap::Error::new(clap::error::ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Subcommand for Command {
            fn augment_subcommands(command: clap::Command) -> clap::Command {
                command
                    .subcommand_required(true)
                    $(.subcommand(clap::Command::new($name).about($about).defer(|command| with_own_words(<$args>::augment_args(command)).about($about))))+
            }

            fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
                Self::augment_subcommands(command)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),+].contains(&name)
            }
        }
    };
}

commands! {
    CloneTrace(clone_trace::CloneTrace), "clone-trace", "Trace every clone, clone3, fork and vfork: who, what, and the child";
    Tcpconnect(tcpconnect::Tcpconnect), "tcpconnect", "Trace every active TCP connect: who, where to, its result and its latency";
    XdpDrop(drop::XdpDrop), "xdp-drop", "Drop packets where the kernel gets them first, and show how many";
    TcDrop(drop::TcDrop), "tc-drop", "Drop packets at the traffic control hooks, in or out, and show how many";
    TcEgress(egress::TcEgress), "tc-egress", "Count packets by where they go, tell of each flow, and stop what shall not go";
    Sockredir(sockredir::Sockredir), "sockredir", "Let local TCP connections bypass the network stack, losing and reordering no byte";
    Filter(filter::Filter), "filter", "Compile, read, write and check packet filters";
    Doctor(doctor::Doctor), "doctor", "Tell what works on this kernel, by which mechanism, and what was left behind";
    Completions(completions::Completions), "completions", "Print a shell's completion script";
    Man(man::Man), "man", "Write the manual pages into a directory";
}

/// How rows are written. On every command that prints rows.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// How to write rows: an aligned table, one JSON object a line, or CSV
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub(crate) format: Format,

    /// Append rows to FILE instead of standard output; SIGHUP reopens it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Leave out the header line of tables and CSV
    #[arg(long)]
    pub(crate) no_header: bool,

    /// When to color tables; NO_COLOR in the environment means never
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: ColorChoice,
}

/// When a run ends by itself, and what each row says of time. On every command that streams rows.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Run")]
pub(crate) struct StreamArgs {
    /// Stop after this long, such as 500ms, 30s or 5m
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) duration: Option<Duration>,

    /// Stop after N rows
    #[arg(short = 'n', long, value_name = "N", value_parser = number::<u64>(1, u64::MAX))]
    pub(crate) max_events: Option<u64>,

    /// Add a TIME column: local time of day, in ms
    #[arg(short = 'T', long)]
    pub(crate) timestamp: bool,
}

/// What the kernel side needs to be told. On every command that loads BPF programs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Kernel")]
pub(crate) struct KernelArgs {
    /// Take the kernel's type information (BTF) from FILE instead of /sys/kernel/btf/vmlinux
    #[arg(long, value_name = "FILE")]
    pub(crate) btf: Option<PathBuf>,

    /// Say on standard error which back end is used and when it is armed; -vv adds libbpf's log
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// A negative number is a value for the option before it, whose parser says what would be one; else it would be an option of its own
/// that is not there.
fn with_own_words(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| {
            let takes_one = !arg.is_positional() && arg.get_action().takes_values();
            if takes_one { arg.allow_negative_numbers(true) } else { arg }
        })
        .mut_subcommands(with_own_words)
}

/// Prints clap's answer: help and version to standard output, anything else as one line.
pub(crate) fn explain(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Status::Usage.into()
        }
        ErrorKind::UnknownArgument if negative(error).is_some() => {
            let number = negative(error).unwrap_or_default();
            let _ = writeln!(
                std::io::stderr(),
                "bpftk: what begins with `{number}` is neither an option nor a value; expected one without a sign"
            );
            Status::Usage.into()
        }
        _ => {
            let _ = writeln!(std::io::stderr(), "bpftk: {}", one_line(error));
            Status::Usage.into()
        }
    }
}

/// What was taken for an option, if it begins like a number.
fn negative(error: &clap::Error) -> Option<&str> {
    use clap::error::{ContextKind, ContextValue};
    match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(text) => {
            let digit = text.strip_prefix('-')?.starts_with(|first: char| first.is_ascii_digit());
            digit.then_some(text)
        }
        _ => None,
    }
}

/// clap explains over several lines; what a script logs should be one.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut parts = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            continue;
        }
        let line = line.strip_prefix("error: ").unwrap_or(line);
        let line = line.strip_prefix("tip: ").unwrap_or(line);
        if !line.is_empty() {
            parts.push(line.to_string());
        }
    }
    parts.join("; ").replace(":;", ":")
}

/// The whole command line, for what is generated from it.
pub(crate) fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    /// The list of commands, a command's own help and its manual page say the same of it.
    #[test]
    fn a_command_is_for_one_thing() {
        let mut root = definition();
        let about = |command: &clap::Command| command.get_about().unwrap().to_string();
        let listed: Vec<_> =
            root.get_subcommands().map(|one| (one.get_name().to_string(), about(one))).collect();
        root.build();
        for (name, said) in listed {
            let command = root.find_subcommand(&name).unwrap();
            assert_eq!(about(command), said, "{name}");
            assert!(command.get_long_about().is_none(), "{name}");
        }
    }

    #[test]
    fn errors_are_one_line() {
        for line in
            ["tcpconnect -P 80-", "tcpconnect --format xml", "tcpconnct", "tcpconnect --nope"]
        {
            let words = std::iter::once("bpftk").chain(line.split(' '));
            let error = Cli::try_parse_from(words).unwrap_err();
            let text = one_line(&error);
            assert!(!text.contains('\n') && !text.is_empty(), "{text}");
        }
    }
}
