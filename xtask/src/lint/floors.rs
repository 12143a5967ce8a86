//! The floors: a crate stands only on crates of the floors below it.
//!
//! The facts come from `cargo metadata`, dependencies of every kind: an arrow that runs up for the
//! tests alone is still a circle for whoever reads the crates in order.

use crate::lint::Finding;
use crate::tree::{Package, Tree};

/// The floors from the ground; crates of one floor stand side by side, none on the other.
const FLOORS: &[&[&str]] = &[
    &["ferry-contract", "ferry-memory"],
    &["ferry-state"],
    &["ferry-protocol"],
    &["ferry-migrate"],
    &["ferry-kvm", "ferry-sim"],
    &["ferry-vmm", "embed"], // the example is a VMM of its own, not on Ferry's
    &["ferry"],
];

/// Crates of the workbench: they may stand on any floor, and no floor stands on them.
const OUTSIDE: &[&str] = &["xtask", "ferry-fuzz", "ferry-simulate", "ferry-lab", "ferry-load", "ferry-truth"];

/// Every dependency between two crates of the workspace that does not run down.
pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    tree.packages
        .iter()
        .flat_map(|package| {
            let names = package.dependencies.iter().map(|dependency| dependency.name.as_str());
            breaches(tree, package, names)
        })
        .collect()
}

fn breaches<'a>(tree: &Tree, package: &Package, names: impl Iterator<Item = &'a str>) -> Vec<Finding> {
    let finding = |what, remedy| Finding {
        path: tree.inside(&package.manifest_path).to_owned(),
        line: 1,
        what,
        remedy,
    };
    let name = package.name.as_str();
    if OUTSIDE.contains(&name) {
        return Vec::new();
    }
    let Some(own) = floor(name) else {
        let what = format!("the crate {name} has no floor");
        return vec![finding(what, "give it one in FLOORS, xtask/src/lint/floors.rs")];
    };
    names
        .filter(|other| OUTSIDE.contains(other) || floor(other).is_some_and(|floor| floor >= own))
        .map(|other| {
            let what = format!("{name} depends on {other}, which is not on a floor below it");
            finding(what, "move what both need to a lower floor, or turn the dependency around")
        })
        .collect()
}

fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|crates| crates.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn found(name: &str, on: &[&str]) -> usize {
        let tree = Tree { root: PathBuf::new(), target: PathBuf::new(), packages: Vec::new() };
        let package = Package {
            name: name.to_owned(),
            manifest_path: PathBuf::from("Cargo.toml"),
            dependencies: Vec::new(),
            targets: Vec::new(),
        };
        breaches(&tree, &package, on.iter().copied()).len()
    }

    #[test]
    fn arrows_run_down_only() {
        assert_eq!(found("ferry-vmm", &["ferry-kvm", "ferry-sim", "ferry-contract", "clap"]), 0);
        assert_eq!(found("embed", &["ferry-kvm", "ferry-vmm"]), 1);
        assert_eq!(found("ferry-contract", &["ferry-state"]), 1);
        assert_eq!(found("ferry-kvm", &["ferry-sim"]), 1);
        assert_eq!(found("ferry-memory", &["ferry-contract", "ferry"]), 2);
    }

    #[test]
    fn the_workbench_is_outside_and_a_new_crate_needs_a_floor() {
        assert_eq!(found("ferry-fuzz", &["ferry"]), 0);
        assert_eq!(found("ferry", &["xtask"]), 1);
        assert_eq!(found("ferry-new", &[]), 1);
    }
}
