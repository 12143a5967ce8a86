//! Flags of journals, and of `ferry recover`.

use std::path::PathBuf;

use clap::Args;
use ferry_protocol::GuestId;
use ferry_protocol::journal::Choice;

/// Where processes keep their journals.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct StateArgs {
    /// The folder of journals: what this process may have given away or run, for later ones. It must
    /// survive a restart of this host and be this host's alone. By default `$FERRY_STATE_DIR`, else
    /// `/var/lib/ferry` for root, else `$XDG_STATE_HOME/ferry` or `~/.local/state/ferry`.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry recover web-1
  ferry recover web-1 --target-runs --reason 'saw it answer on host b'
  ferry recover web-1 --source-runs --reason 'host b burned'

Without a choice it shows what each side knows, asks the other side, and settles what can be settled.
Status 0: nothing is open any more; 6: a person must decide.")]
pub(crate) struct RecoverArgs {
    /// The guest's name.
    pub(crate) id: GuestId,
    #[command(flatten)]
    pub(crate) choice: ChoiceArgs,
    /// Why, for the journal; your user's name and the time are added.
    #[arg(long, value_name = "TEXT", requires = "choice")]
    pub(crate) reason: Option<String>,
    #[command(flatten)]
    pub(crate) state: StateArgs,
}

/// What a person decides.
#[derive(Debug, Clone, Copy, Default, Args)]
#[group(id = "choice", multiple = false)]
pub(crate) struct ChoiceArgs {
    /// You know that the target does not run the guest and never will: the source does.
    #[arg(long, requires = "reason")]
    pub(crate) source_runs: bool,
    /// You know that the target has the guest: the source lets it go.
    #[arg(long, requires = "reason")]
    pub(crate) target_runs: bool,
    /// Nobody shall run it.
    #[arg(long, requires = "reason")]
    pub(crate) abandon: bool,
}

impl ChoiceArgs {
    pub(crate) fn choice(self) -> Option<Choice> {
        let all = [
            (self.source_runs, Choice::SourceRuns),
            (self.target_runs, Choice::TargetRuns),
            (self.abandon, Choice::Abandon),
        ];
        all.into_iter().find_map(|(is_it, choice)| is_it.then_some(choice))
    }
}
