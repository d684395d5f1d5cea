// SPDX-License-Identifier: MIT OR Apache-2.0

//! How a run ends: the exit codes, and errors that choose one.

use std::fmt;
use std::process::ExitCode;

/// The exit status of bpftk. `0` is a finished or interrupted run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// Failed while running.
    Failed = 1,
    /// Wrong usage: a value that means nothing here, or options that contradict each other.
    Usage = 2,
    /// A capability is missing.
    NotPermitted = 3,
    /// This kernel can't do it.
    Unsupported = 4,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// An error that knows its exit status. The message is a whole sentence for the user.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: Status,
    message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// Wrong usage: names the value and what would be valid.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    refusal(Status::Usage, message)
}

/// A missing capability.
pub(crate) fn not_permitted(message: impl Into<String>) -> anyhow::Error {
    refusal(Status::NotPermitted, message)
}

/// Something that this kernel lacks.
pub(crate) fn unsupported(message: impl Into<String>) -> anyhow::Error {
    refusal(Status::Unsupported, message)
}

/// A limit of the process or of the machine, which is named.
pub(crate) fn limited(message: impl Into<String>) -> anyhow::Error {
    refusal(Status::Failed, message)
}

fn refusal(status: Status, message: impl Into<String>) -> anyhow::Error {
    let message = message.into();
    Refusal { status, message }.into()
}

/// The status that `error` asks for, from whichever cause in its chain knows one.
pub(crate) fn status_of(error: &anyhow::Error) -> Status {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Refusal>())
        .map_or(Status::Failed, |refusal| refusal.status)
}

/// Whether the reader of our output went away, which is a clean end.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_status_survives_context() {
        let error = Err::<(), _>(unsupported("no BTF")).context("tcpconnect").unwrap_err();
        assert_eq!(status_of(&error), Status::Unsupported);
        assert_eq!(format!("{error:#}"), "tcpconnect: no BTF");
        assert_eq!(status_of(&anyhow::anyhow!("other")), Status::Failed);
    }

    #[test]
    fn a_closed_pipe_is_found_in_the_chain() {
        let closed = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let error = Err::<(), _>(closed).context("writing").unwrap_err();
        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("other")));
    }
}
