//! The house's rules on Rust files: unsafe code, exceptions with reasons, length, no open ends.

use std::path::Path;

use crate::lint::Finding;
use crate::lint::scan::{bracketed, code_of, line_of};
use crate::run::Failure;
use crate::tree::Tree;

/// The most lines of a Rust file: past that it has two subjects.
const MAX_LINES: usize = 500;

/// Files that may be longer, each with its reason.
pub(super) const LONG: &[(&str, &str)] = &[];

/// The crates that may hold unsafe code; all others forbid it in their root. The example calls the one
/// unsafe function of kvm-ioctls that no VMM can do without.
const UNSAFE_CRATES: &[&str] = &["ferry-kvm", "ferry-memory", "embed"];

/// Where libFuzzer's entry macro brings unsafe code with it.
const UNSAFE_ENTRIES: &str = "fuzz/targets";

/// Words that mark something as not done, split so that this file does not find itself.
const OPEN_ENDS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("to", "do!"),
    concat!("unimplem", "ented!"),
];

/// Crate roots that do not forbid unsafe code, and manifests that leave the workspace's lints.
pub(super) fn check_roots(tree: &Tree) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    for package in &tree.packages {
        let manifest = super::read(&package.manifest_path)?;
        if !manifest.contains("[lints]\nworkspace = true") {
            findings.push(Finding {
                path: tree.inside(&package.manifest_path).to_owned(),
                line: 1,
                what: format!("the crate {} does not take the workspace's lints", package.name),
                remedy: "add `[lints]` with `workspace = true`",
            });
        }
        if UNSAFE_CRATES.contains(&package.name.as_str()) {
            continue;
        }
        for target in &package.targets {
            let is_root = target.kind.iter().any(|kind| kind == "lib" || kind == "bin");
            let path = tree.inside(&target.src_path);
            if is_root && !path.starts_with(UNSAFE_ENTRIES) {
                findings.extend(check_forbids_unsafe(path, &super::read(&target.src_path)?));
            }
        }
    }
    Ok(findings)
}

fn check_forbids_unsafe(path: &Path, text: &str) -> Option<Finding> {
    (!code_of(text).contains("#![forbid(unsafe_code)]")).then(|| Finding {
        path: path.to_owned(),
        line: 1,
        what: "a crate root without `#![forbid(unsafe_code)]`".to_owned(),
        remedy: "add it after the module's documentation",
    })
}

/// Exceptions without a reason, and a file that does not say what it is for.
pub(super) fn check_file(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = check_reasons(path, text);
    if !text.trim_start().starts_with("//!") {
        findings.push(Finding {
            path: path.to_owned(),
            line: 1,
            what: "the file does not say what it is for".to_owned(),
            remedy: "begin it with `//!`: what it is for, how it is used, where the facts come from",
        });
    }
    findings
}

fn check_reasons(path: &Path, text: &str) -> Vec<Finding> {
    let code = code_of(text);
    let attributes = code.match_indices('#').filter_map(|(offset, _)| {
        let after = &code[offset + 1..];
        let inner = after.strip_prefix('!').unwrap_or(after);
        let length = inner.starts_with('[').then(|| bracketed(inner, '[', ']')).flatten()?;
        Some((offset, &inner[..length]))
    });
    attributes
        .filter(|(_, attribute)| lifts_without_reason(attribute))
        .map(|(offset, _)| Finding {
            path: path.to_owned(),
            line: line_of(&code, offset),
            what: "an exception to a lint without its reason".to_owned(),
            remedy: "add `reason = \"…\"`, or mend what the lint says",
        })
        .collect()
}

/// Whether an attribute holds an `allow(…)` or `expect(…)`, also inside `cfg_attr`, with no reason.
fn lifts_without_reason(attribute: &str) -> bool {
    ["allow", "expect"].iter().any(|name| {
        attribute.match_indices(name).any(|(offset, _)| {
            let before = attribute[..offset].chars().next_back();
            let whole = before.is_none_or(|letter| !letter.is_alphanumeric() && letter != '_');
            let list = attribute[offset + name.len()..].trim_start();
            whole
                && bracketed(list, '(', ')')
                    .is_some_and(|length| list.starts_with('(') && !list[..length].contains("reason ="))
        })
    })
}

/// Words that mark something as not done, in code and comments alike.
pub(super) fn check_open_ends(path: &Path, text: &str) -> Vec<Finding> {
    let in_word = |letter: Option<char>| letter.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in OPEN_ENDS {
            let stands = line.match_indices(word).any(|(offset, _)| {
                let before = line[..offset].chars().next_back();
                let after = line[offset + word.len()..].chars().next();
                !in_word(before) && (word.ends_with('!') || !in_word(after))
            });
            if stands {
                findings.push(Finding {
                    path: path.to_owned(),
                    line: index + 1,
                    what: format!("an open end, `{word}`"),
                    remedy: "do it now, or open an issue and leave the word out",
                });
            }
        }
    }
    findings
}

/// Files past the limit, and exceptions that nothing needs any more.
pub(super) fn check_lengths(files: &[(&Path, usize)], long: &[(&str, &str)]) -> Vec<Finding> {
    let excepted = |path: &Path| long.iter().any(|(name, _)| Path::new(name) == path);
    let too_long = files.iter().filter(|(path, lines)| *lines > MAX_LINES && !excepted(path)).map(
        |(path, lines)| Finding {
            path: path.to_path_buf(),
            line: MAX_LINES + 1,
            what: format!("{lines} lines, at most {MAX_LINES}"),
            remedy: "split the file by subject, or list it with its reason in LONG, xtask/src/lint/rust.rs",
        },
    );
    let needed =
        |name: &str| files.iter().any(|(path, lines)| *lines > MAX_LINES && *path == Path::new(name));
    let stale = long.iter().filter(|(name, _)| !needed(name)).map(|(name, _)| Finding {
        path: name.into(),
        line: 1,
        what: "an exception to the file length that nothing needs".to_owned(),
        remedy: "take it out of LONG, xtask/src/lint/rust.rs",
    });
    too_long.chain(stale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> &'static Path {
        Path::new("a.rs")
    }

    #[test]
    fn an_exception_needs_its_reason() {
        let bare = [
            "#[allow(dead_code)]",
            "#![expect(dead_code)]",
            "#[cfg_attr(test, allow(dead_code))]",
            "#[expect(\n    a,\n    b\n)]",
        ];
        for text in bare {
            assert_eq!(check_reasons(here(), &format!("\n{text}\nfn f() {{}}"))[0].line, 2, "{text}");
        }
        let fine = [
            "#[expect(dead_code, reason = \"why\")]",
            "#[cfg_attr(test, expect(a, reason = \"why\"))]",
            "// #[allow(dead_code)]",
            "x.expect(\"text\")",
            "let a = \"#[allow(b)]\";",
            "#[disallow(a)]",
        ];
        for text in fine {
            assert_eq!(check_reasons(here(), text), [], "{text}");
        }
    }

    #[test]
    fn unsafe_code_is_forbidden_in_code_and_not_in_a_comment() {
        assert!(check_forbids_unsafe(here(), "//! x\n#![forbid(unsafe_code)]").is_none());
        assert!(check_forbids_unsafe(here(), "// #![forbid(unsafe_code)]").is_some());
    }

    #[test]
    fn open_ends_are_whole_words() {
        for word in OPEN_ENDS {
            assert_eq!(check_open_ends(here(), &format!("ok\n// {word} later")).len(), 1, "{word}");
        }
        let template = concat!("mktemp -t ferry.XX", "XXXX");
        assert_eq!(check_open_ends(here(), template), []);
    }

    #[test]
    fn length_has_a_limit_and_no_stale_exception() {
        let files = [(Path::new("a.rs"), MAX_LINES), (Path::new("b.rs"), MAX_LINES + 1)];
        assert_eq!(check_lengths(&files, &[])[0].path, Path::new("b.rs"));
        assert_eq!(check_lengths(&files, &[("b.rs", "why")]), []);
        assert_eq!(check_lengths(&files, &[("b.rs", "why"), ("a.rs", "why")])[0].path, Path::new("a.rs"));
    }

    #[test]
    fn a_file_says_what_it_is_for() {
        assert_eq!(check_file(here(), "//! What.\nfn f() {}"), []);
        assert_eq!(check_file(here(), "fn f() {}").len(), 1);
    }
}
