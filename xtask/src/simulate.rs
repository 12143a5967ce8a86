//! `cargo xtask simulate`: hand-overs from seeds, in the released build of the simulator.

use crate::run::{self, Failure};
use crate::tree::Tree;

/// The crate of the simulator.
const CRATE: &str = "ferry-simulate";

/// Runs the simulator; `arguments` go to it.
pub(crate) fn run(tree: &Tree, arguments: &[String]) -> Result<(), Failure> {
    let mut command = run::cargo(tree, &["run", "--release", "--quiet", "--package", CRATE, "--"]);
    run::pass(command.args(arguments))
}
