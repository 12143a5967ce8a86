//! The flags of the verbs that look and change nothing.

use std::path::PathBuf;

use clap::Args;
use ferry_protocol::GuestId;

#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// Write the profile to this file, as JSON.
    #[arg(short = 'o', value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry check web-1 host-b.json
  ferry check amd/5.10/EPYC amd/6.12/EPYC-Rome        hosts of the catalogue
  ferry check --list

A file goes before a name of the catalogue.")]
pub(crate) struct CheckArgs {
    /// A file with a contract, or with a profile (then a guest with all that host offers), a host of the
    /// catalogue (the same), or the name of a guest that runs here.
    #[arg(required_unless_present = "list")]
    pub(crate) guest: Option<String>,
    /// The profile of the host to which it would be moved, made there with `ferry probe -o FILE`, or a host
    /// of the catalogue.
    #[arg(required_unless_present = "list")]
    pub(crate) target: Option<PathBuf>,
    /// Print the names of the catalogue.
    #[arg(long, conflicts_with_all = ["guest", "target"])]
    pub(crate) list: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry status
  ferry status web-1 --output json")]
pub(crate) struct StatusArgs {
    /// The guest's name; all guests, if none is given.
    pub(crate) id: Option<GuestId>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry inspect web-1.ferry
  ferry inspect web-1.ferry --output json | jq .custody")]
pub(crate) struct InspectArgs {
    /// The file, or the name of a profile of the catalogue.
    pub(crate) file: PathBuf,
}
