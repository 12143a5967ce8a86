//! The control socket of a process that has a guest: newline-delimited JSON, described in
//! `docs/control-socket.md`.
//!
//! A client sends one [`Request`] a line; each is answered by one or more [`Reply`] lines, the last of
//! which is not [`Reply::Progress`]. Only the user who owns the socket's folder can connect.

pub(crate) mod client;
mod deciding;
pub(crate) mod host;
mod looking;
pub(crate) mod observer;
pub(crate) mod passing;
mod planning;
mod route;
pub(crate) mod server;

use ferry_contract::Contract;
use ferry_protocol::journal::Choice;
use ferry_vmm::GuestTime;
use serde::{Deserialize, Serialize};

use crate::error::{CliError, Kind};
use crate::form::{MigrationReport, ProgressForm, Status};

/// The longest line of a request or a reply, in bytes.
pub(crate) const MAX_LINE_BYTES: u64 = 1 << 20;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Answered by [`Reply::Status`].
    Status {},
    /// Moves the guest; answered by [`Reply::Started`], then, with `wait`, by progress and the report.
    Migrate {
        /// Where `ferry receive` waits, `file:PATH`, or `fd:N`: then a descriptor comes with the request.
        to: String,
        /// Pause when the rest is predicted to take at most this long.
        downtime_limit_ms: f64,
        /// Give up when custody has not passed after this long.
        timeout_ms: f64,
        /// Hash all memory on both sides.
        #[serde(default)]
        verify: bool,
        /// How many connections carry pages, 1 to 16.
        #[serde(default = "one_lane")]
        lanes: u8,
        /// Send the images of the guest's disks, too.
        #[serde(default)]
        copy_storage: bool,
        /// How many bytes of pages live rounds may send a second; no bound without it.
        #[serde(default)]
        bandwidth_limit_bytes_per_second: Option<u64>,
        /// What the guest's clocks do about the pause: `stops` or `catches-up`.
        #[serde(default = "stops")]
        guest_time: String,
        /// Stay for progress and report.
        #[serde(default)]
        wait: bool,
    },
    /// Ends the migration under way before custody passes; answered by [`Reply::Cancelling`].
    Cancel {},
    /// Progress and report of the migration under way, or the report of the last one.
    Watch {},
    /// Asks the guest to verify its pages itself; answered by [`Reply::Checked`].
    Check {},
    /// Asks for the guest's contract; answered by [`Reply::Contract`].
    Contract {},
    /// Settles a migration whose outcome is open: what its file says, or what a person decides; answered by
    /// [`Reply::Report`] of the migration's end.
    Decide {
        /// `source-runs`, `target-runs` or `abandon`; without one only a file is looked into.
        #[serde(default)]
        choice: Option<ChoiceForm>,
        /// Why, and by whom; needed with a choice.
        #[serde(default)]
        reason: Option<String>,
    },
    /// Ends the guest and its process; answered by [`Reply::Stopped`].
    Stop {},
}

/// A person's choice, as [`Choice`] names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ChoiceForm {
    SourceRuns,
    TargetRuns,
    Abandon,
}

impl From<Choice> for ChoiceForm {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::SourceRuns => Self::SourceRuns,
            Choice::TargetRuns => Self::TargetRuns,
            Choice::Abandon => Self::Abandon,
        }
    }
}

impl From<ChoiceForm> for Choice {
    fn from(choice: ChoiceForm) -> Self {
        match choice {
            ChoiceForm::SourceRuns => Self::SourceRuns,
            ChoiceForm::TargetRuns => Self::TargetRuns,
            ChoiceForm::Abandon => Self::Abandon,
        }
    }
}

fn stops() -> String {
    GuestTime::Stops.to_string()
}

fn one_lane() -> u8 {
    1
}

/// What a process answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// What the process does and how its guest is.
    Status(Box<Status>),
    /// The migration has begun.
    Started {
        /// The epoch that is offered.
        epoch: u64,
    },
    /// Where the migration is.
    Progress(ProgressForm),
    /// Custody was given and nobody answers; the process goes on asking.
    Ambiguous {
        /// One sentence.
        message: String,
    },
    /// The migration is over.
    Report(Box<MigrationReport>),
    /// The guest's own word on its pages.
    Checked {
        /// Pages that it verified.
        pages: u64,
        /// Pages that did not hold what they should.
        faults: u64,
    },
    /// The migration was told to end; its report says how it ended.
    Cancelling,
    /// What the guest may see, in the form of a contract file.
    Contract(Box<Contract>),
    /// The guest is ended.
    Stopped,
    /// The request cannot be fulfilled.
    Error {
        /// As in the program's own errors.
        kind: String,
        /// One sentence.
        message: String,
    },
}

impl Reply {
    /// A refusal of a request.
    pub(crate) fn error(error: &CliError) -> Self {
        Self::Error { kind: error.kind.name().into(), message: error.message.clone() }
    }

    /// The reply as an error, if it is one or is not what was expected.
    pub(crate) fn into_error(self) -> CliError {
        match self {
            Self::Error { kind, message } => {
                let kinds = [1, 2, 3, 4, 5, 6, 7].map(Kind::of_status);
                let kind = kinds.into_iter().find(|known| known.name() == kind);
                CliError::new(kind.unwrap_or(Kind::NotAsItShould), message)
            }
            other => {
                CliError::plain(format!("the guest's process gave an answer that does not fit: {other:?}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_the_document_says() {
        let text = r#"{"command":"migrate","to":"unix:x","downtime_limit_ms":30,"timeout_ms":600000}"#;
        let request = Request::Migrate {
            to: "unix:x".into(),
            downtime_limit_ms: 30.0,
            timeout_ms: 600_000.0,
            verify: false,
            lanes: 1,
            copy_storage: false,
            bandwidth_limit_bytes_per_second: None,
            guest_time: "stops".into(),
            wait: false,
        };
        assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        assert_eq!(serde_json::from_str::<Request>(r#"{"command":"stop"}"#).unwrap(), Request::Stop {});
        for bad in [r#"{"command":"fly"}"#, r#"{"command":"stop","now":1}"#, "[]", "7"] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_comes_back_with_its_kind() {
        let error = CliError::new(Kind::TimedOut, "late");
        let back = Reply::error(&error).into_error();
        assert_eq!((back.kind, back.message), (error.kind, error.message));
    }
}
