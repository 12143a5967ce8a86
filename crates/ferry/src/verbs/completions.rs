//! `ferry completions`: what a shell needs to complete this program's words.

use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArgs};
use crate::output;

pub(crate) fn completions(args: &CompletionsArgs) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ferry", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end());
    0
}
