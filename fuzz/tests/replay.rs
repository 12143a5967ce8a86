//! Replays the corpus on the stable toolchain: every file, and many mutants of each.
//!
//! A file that a fuzzer found and that was put into `corpus/BODY/` is tried here for ever after.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Once;

use ferry_fuzz::mutate::Mutants;
use ferry_fuzz::seeds::{self, Seed};
use ferry_fuzz::{BODIES, Body};

/// Mutants of each file.
const MUTANTS: usize = 2000;

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Writes the seeds if `FERRY_BLESS` asks for it, before any test reads them.
fn bless_if_asked() {
    static WRITTEN: Once = Once::new();
    if std::env::var_os("FERRY_BLESS").is_none() {
        return;
    }
    WRITTEN.call_once(|| {
        for seed in seeds::all() {
            let file = file_of(&seed);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, &seed.bytes).unwrap();
        }
    });
}

fn file_of(seed: &Seed) -> PathBuf {
    folder().join("corpus").join(seed.body).join(&seed.name)
}

fn files(name: &str) -> Vec<PathBuf> {
    let folder = folder().join("corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Runs a body; an input that breaks it is kept as a file.
fn run(name: &str, body: Body, bytes: &[u8], what: &str) {
    if catch_unwind(|| body(bytes)).is_err() {
        let artifacts = folder().join("artifacts").join(name);
        fs::create_dir_all(&artifacts).unwrap();
        let file = artifacts.join("replay");
        fs::write(&file, bytes).unwrap();
        panic!("{name} breaks on {what}, kept as {}", file.display());
    }
}

#[test]
fn the_corpus_and_its_mutants_break_nothing() {
    bless_if_asked();
    for &(name, body) in BODIES {
        let files = files(name);
        assert!(!files.is_empty(), "corpus/{name} is empty");
        run(name, body, &[], "no bytes");
        for file in files {
            let bytes = fs::read(&file).unwrap();
            run(name, body, &bytes, &file.display().to_string());
            for (number, mutant) in Mutants::of(&bytes, 1).take(MUTANTS).enumerate() {
                run(name, body, &mutant, &format!("mutant {number} of {}", file.display()));
            }
        }
    }
}

#[test]
fn every_seed_is_in_the_corpus() {
    bless_if_asked();
    for seed in seeds::all() {
        assert!(ferry_fuzz::body(seed.body).is_some(), "a seed for {}, which is no body", seed.body);
        let file = file_of(&seed);
        let is_there = fs::read(&file).is_ok_and(|bytes| bytes == seed.bytes);
        assert!(is_there, "{}: write it with FERRY_BLESS=1 cargo test -p ferry-fuzz", file.display());
    }
}
