//! `cargo xtask bench`: benchmarks of single functions, and of a whole migration.
//!
//! Benchmarks of functions are the bench targets of the crates. `move` is no bench target: it runs
//! the released program and sets its downtime beside what the same machine can do at best.

mod limit;
mod moves;

use crate::run::{self, Failure};
use crate::say;
use crate::tree::Tree;

/// The bench of a whole migration.
const MOVE: &str = "move";

/// Runs the bench of that name, or all.
pub(crate) fn run(tree: &Tree, name: Option<&str>) -> Result<(), Failure> {
    let benches = benches(tree);
    let chosen = |bench: &str| name.is_none_or(|name| name == bench);
    for (package, bench) in benches.iter().filter(|(_, bench)| chosen(bench)) {
        run::pass(&mut run::cargo(tree, &["bench", "--package", package, "--bench", bench]))?;
    }
    if chosen(MOVE) {
        return moves::run(tree);
    }
    if let Some(name) = name.filter(|name| benches.iter().all(|(_, bench)| bench != name)) {
        let known: Vec<&str> = benches.iter().map(|(_, bench)| *bench).chain([MOVE]).collect();
        return Err(Failure::Unknown(format!(
            "there is no bench `{name}`: choose one of {}",
            known.join(", ")
        )));
    }
    say::line(&"bench: done");
    Ok(())
}

/// Crate and name of every bench target.
fn benches(tree: &Tree) -> Vec<(&str, &str)> {
    tree.packages
        .iter()
        .flat_map(|package| package.targets.iter().map(move |target| (package, target)))
        .filter(|(_, target)| target.kind.iter().any(|kind| kind == "bench"))
        .map(|(package, target)| (package.name.as_str(), target.name.as_str()))
        .collect()
}
