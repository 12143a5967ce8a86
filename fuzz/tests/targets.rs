//! Holds the three lists against each other: bodies, targets of `Cargo.toml`, folders of the corpus.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ferry_fuzz::BODIES;

fn bodies() -> BTreeSet<String> {
    BODIES.iter().map(|(name, _)| (*name).to_owned()).collect()
}

fn names_in(folder: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_body_is_a_target_and_every_target_a_body() {
    let manifest = include_str!("../Cargo.toml");
    let declared: Vec<String> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"targets/")?.strip_suffix(".rs\""))
        .map(str::to_owned)
        .collect();
    assert_eq!(declared.len(), BODIES.len());
    assert_eq!(declared.into_iter().collect::<BTreeSet<_>>(), bodies());
    assert_eq!(names_in("targets"), bodies());
}

#[test]
fn every_folder_of_the_corpus_has_a_body() {
    assert_eq!(names_in("corpus"), bodies());
}

#[test]
fn every_part_of_the_state_has_a_body() {
    let known =
        [ferry_state::x86::KNOWN_SECTIONS, ferry_state::arm64::KNOWN_SECTIONS, ferry_state::MACHINE_SECTIONS];
    for part in known.concat() {
        assert!(bodies().contains(&part.replacen(['.', '/'], "_", 1).replace('-', "_")), "{part}");
    }
}
