//! The foreign VMM in two processes: its guest moves while it counts, and goes on counting.

#![expect(clippy::unwrap_used, reason = "what helps a test fails the test")]

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A process of the example, killed with its test.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(arguments: &[&str]) -> Self {
        let mut child =
            Command::new(env!("CARGO_BIN_EXE_embed")).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What follows `start` in its next line.
    fn says(&mut self, start: &str) -> String {
        let line = self.lines.next().map_or_else(|| "nothing".to_owned(), Result::unwrap);
        line.strip_prefix(start).unwrap_or_else(|| panic!("`{line}` instead of `{start}…`")).to_owned()
    }

    fn ends_well(&mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The numbers in a line.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[test]
fn the_guest_moves_while_it_counts_and_goes_on() {
    if let Err(error) = ferry_kvm::open() {
        println!("skipped: {error}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for address in ["127.0.0.1:0".to_owned(), format!("unix:{}/embed", folder.path().display())] {
        let mut target = Process::start(&["receive", "--listen", &address]);
        let address = target.says("listening: ");
        let mut source = Process::start(&["run", "--to", &address]);
        let before = numbers(&source.says("running: "));
        let left = numbers(&source.says("moved: "));
        assert!(source.ends_well());
        assert_eq!(target.says("arrived: "), "counter under epoch 2");
        let after = numbers(&target.says("went on: "));
        assert!(target.ends_well());
        assert_eq!((after.len(), after[2]), (3, 0), "two vCPUs, and no faults");
        for vcpu in 0..2 {
            let (born, left, after) = (before[vcpu], left[vcpu], after[vcpu]);
            assert!(born <= left && left < after, "vCPU {vcpu}: {born}, {left}, {after}");
        }
    }
}

#[test]
fn nobody_there_leaves_the_guest_where_it_is() {
    if ferry_kvm::open().is_err() {
        return;
    }
    let mut source = Process::start(&["run", "--to", "unix:/nobody/listens/here"]);
    source.says("running: ");
    let reason = source.says("embed: ");
    assert!(reason.contains("/nobody/listens/here"), "{reason}");
    assert!(!source.ends_well());
}

#[test]
fn a_wrong_command_line_says_the_right_one() {
    let mut process = Process::start(&["run"]);
    assert!(process.says("embed: ").starts_with("usage: embed run --to ADDR"));
    assert!(!process.ends_well());
}

/// What Ferry needs of a VMM stays small, and does not come from Ferry's own.
#[test]
fn ferry_needs_at_most_200_lines_and_the_vmm_none_of_it() {
    let movable = include_str!("../src/movable.rs");
    assert!(movable.lines().count() <= 200, "{} lines", movable.lines().count());
    assert!(!include_str!("../src/vmm.rs").contains("ferry_"), "the mini-VMM knows nothing of Ferry");
    let manifest = include_str!("../Cargo.toml");
    assert!(!manifest.contains("ferry-vmm") && !manifest.contains("ferry-sim"));
}

#[test]
fn the_book_shows_the_code_as_it_is() {
    let book = include_str!("../../../docs/embedding.md");
    let snippets: Vec<&str> =
        book.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(snippets.len() >= 5);
    for snippet in snippets {
        assert!(include_str!("../src/movable.rs").contains(snippet), "not in movable.rs:\n{snippet}");
    }
}
