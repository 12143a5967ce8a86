//! What a guest's kernel warned of, by kind: its log without times and numbers.

use std::collections::BTreeSet;

/// Messages of this level and below are warnings or worse (kernel, `include/linux/kern_levels.h`).
const WARNING: u32 = 4;

/// Words of troubles that a kernel may tell at any level.
const TROUBLES: &[&str] = &[
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "clocksource: timekeeping watchdog",
    "Marking clocksource",
    "Marking TSC unstable",
    "WARNING:",
    "BUG:",
    "Oops",
    "I/O error",
    "EXT4-fs error",
    "EXT4-fs warning",
    "detected stall",
    "self-detected stall",
    "NETDEV WATCHDOG",
    "Call trace",
    "Call Trace",
];

/// The kinds of warnings in a log as `dmesg -r` writes it: `<4>[   12.345678] text`.
pub(super) fn kinds(log: &str) -> BTreeSet<String> {
    log.lines().filter_map(kind).collect()
}

fn kind(line: &str) -> Option<String> {
    let (level, rest) = line.strip_prefix('<')?.split_once('>')?;
    let text = rest
        .trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .map_or(rest, |(_, text)| text);
    let is_warning = level.parse::<u32>().is_ok_and(|level| level & 7 <= WARNING);
    let is_trouble = TROUBLES.iter().any(|trouble| text.contains(trouble));
    (is_warning || is_trouble).then(|| without_numbers(text))
}

/// Every word with a digit in it becomes `#`.
fn without_numbers(text: &str) -> String {
    let word = |word: &str| {
        if word.chars().any(|letter| letter.is_ascii_digit()) { "#".to_owned() } else { word.to_owned() }
    };
    text.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// What the first warned of and the second did not.
pub(super) fn more(first: &BTreeSet<String>, second: &BTreeSet<String>) -> Vec<String> {
    first.difference(second).cloned().collect()
}

#[test]
fn warnings_are_told_from_other_messages_whatever_their_numbers() {
    let log = "<6>[    0.000000] Linux version 6.12\n<4>[    1.5] hrtimer: interrupt took 1234 ns\n\
               <2>[  100.1] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:12]\n<30>[ 3.0] a daemon said this\n\
               <6>[  7.0] clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as unstable";
    let first = kinds(log);
    let said: Vec<&str> = first.iter().map(String::as_str).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said.contains(&"hrtimer: interrupt took # ns"));
    let second = kinds("<4>[ 9.75] hrtimer: interrupt took 99 ns");
    assert_eq!(more(&first, &second).len(), 2);
    assert!(more(&second, &first).is_empty());
}
