//! `cargo xtask lint`: the toolchain's checks and the house's own.
//!
//! The house's rules that no tool knows are code here, one file per subject. Each finding is one
//! line, `file:line: what: what to do`. All checks run, also after the first one that fails.

mod floors;
mod links;
mod rust;
mod scan;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::run::{self, Failure};
use crate::say;
use crate::tree::Tree;

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    /// The file, as it is written inside the project.
    path: PathBuf,
    /// The line, counted from 1.
    line: usize,
    /// What is wrong.
    what: String,
    /// What to do about it.
    remedy: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path.display(), self.line, self.what, self.remedy)
    }
}

/// Runs every check; fails if any of them found something.
pub(crate) fn run(tree: &Tree) -> Result<(), Failure> {
    say::step(&"the house's own rules");
    let findings = house(tree)?;
    for finding in &findings {
        say::line(finding);
    }
    let mut failed = Vec::new();
    if !findings.is_empty() {
        failed.push(format!("the house's rules ({})", findings.len()));
    }
    let checks: [(&str, &[&str]); 3] = [
        ("formatting", &["fmt", "--all", "--check"]),
        ("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        ("documentation", &["doc", "--workspace", "--no-deps"]),
    ];
    for (name, arguments) in checks {
        match run::pass(run::cargo(tree, arguments).env("RUSTDOCFLAGS", "-D warnings")) {
            Ok(()) => {}
            Err(Failure::Ended { .. }) => failed.push(name.to_owned()),
            Err(other) => return Err(other),
        }
    }
    if failed.is_empty() {
        say::line(&"lint: all checks passed");
        return Ok(());
    }
    Err(Failure::Found(format!("lint: {}", failed.join(", "))))
}

/// The house's own rules over all files.
fn house(tree: &Tree) -> Result<Vec<Finding>, Failure> {
    let files = tree.files()?;
    let mut findings = floors::check(tree);
    findings.extend(rust::check_roots(tree)?);
    let mut lengths = Vec::new();
    for file in &files {
        let path = tree.inside(file);
        let extension = path.extension().and_then(|extension| extension.to_str());
        let script = extension == Some("sh") || path.starts_with(".ci");
        if script || matches!(extension, Some("rs" | "toml")) {
            let text = read(file)?;
            findings.extend(rust::check_open_ends(path, &text));
            if extension == Some("rs") {
                findings.extend(rust::check_file(path, &text));
                lengths.push((path, text.lines().count()));
            }
        } else if extension == Some("md") {
            findings.extend(links::check(&tree.root, path, &read(file)?));
        }
    }
    findings.extend(rust::check_lengths(&lengths, rust::LONG));
    Ok(findings)
}

fn read(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(Failure::file("read", file))
}
