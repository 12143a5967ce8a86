//! What goes wrong in the program, with the exit status that says so.

use ferry_contract::Finding;

/// What a failure is about; its name is in the JSON form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file, an address, a guest or a permission is not what it should be, or something unexpected.
    NotAsItShould,
    /// A wrong verb, flag or value.
    Usage,
    /// Refused as incompatible.
    Refused,
    /// A migration that had begun failed; the source still has the guest.
    Failed,
    /// The user cancelled.
    Cancelled,
    /// Nobody knows who runs the guest.
    Ambiguous,
    /// A wait timed out.
    TimedOut,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NotAsItShould => "not_as_it_should",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Ambiguous => "ambiguous",
            Self::TimedOut => "timed_out",
        }
    }

    pub(crate) fn exit_status(self) -> u8 {
        match self {
            Self::NotAsItShould => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Failed => 4,
            Self::Cancelled => 5,
            Self::Ambiguous => 6,
            Self::TimedOut => 7,
        }
    }

    pub(crate) fn of_status(status: u8) -> Self {
        let all =
            [Self::Usage, Self::Refused, Self::Failed, Self::Cancelled, Self::Ambiguous, Self::TimedOut];
        all.into_iter().find(|kind| kind.exit_status() == status).unwrap_or(Self::NotAsItShould)
    }
}

/// One sentence that says what happened, to what, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CliError {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    pub(crate) findings: Vec<Finding>,
}

impl CliError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), findings: Vec::new() }
    }

    pub(crate) fn plain(message: impl Into<String>) -> Self {
        Self::new(Kind::NotAsItShould, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// An error of a library with its causes, as one sentence.
    pub(crate) fn of(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Errors that pass their cause's text on would say it twice.
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            source = cause.source();
        }
        Self::plain(message)
    }
}
