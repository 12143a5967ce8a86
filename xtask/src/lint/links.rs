//! Relative links in Markdown files point to files that exist.
//!
//! Inline links `[text](target)`, images, and definitions `[name]: target` are read; code blocks
//! and code spans are not. Links with a scheme, and those to a heading of the same page, are left
//! to the reader.

use std::path::Path;

use crate::lint::Finding;

/// Links of one Markdown file whose file does not exist.
pub(super) fn check(root: &Path, path: &Path, text: &str) -> Vec<Finding> {
    let folder = path.parent().unwrap_or(Path::new(""));
    links(text)
        .into_iter()
        .filter(|(_, target)| {
            let file = target.split('#').next().unwrap_or_default();
            let place = match file.strip_prefix('/') {
                Some(from_root) => root.join(from_root),
                None => root.join(folder).join(file),
            };
            !file.is_empty() && !place.exists()
        })
        .map(|(line, target)| Finding {
            path: path.to_owned(),
            line,
            what: format!("a link to `{target}`, which does not exist"),
            remedy: "mend the link, or add the file",
        })
        .collect()
}

/// Lines and targets of all relative links.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("```") || trimmed.starts_with("~~~") {
            fenced = !fenced;
        } else if !fenced {
            found.extend(links_of(&without_spans(line)).map(|target| (index + 1, target)));
        }
    }
    found
}

fn links_of(line: &str) -> impl Iterator<Item = String> {
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let defined = line.strip_prefix('[').and_then(|rest| rest.split_once("]:")).map(|(_, target)| target);
    let targets: Vec<String> = inline
        .chain(defined)
        .filter_map(|target| target.split_whitespace().next())
        .map(|target| target.trim_matches(['<', '>']).to_owned())
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .collect();
    targets.into_iter()
}

/// The line without its code spans.
fn without_spans(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_links_are_read_and_others_are_not() {
        let text = "[a](b.md) and ![c](d/e.png \"t\")\n```\n[x](no.md)\n```\n\
                    `[y](no.md)` [z](https://e.org) [w](mailto:a@b)\n[n]: <f.md#g>\n";
        let found: Vec<_> =
            links(text).into_iter().map(|(line, target)| format!("{line} {target}")).collect();
        assert_eq!(found, ["1 b.md", "1 d/e.png", "6 f.md#g"]);
    }

    #[test]
    fn a_link_must_point_to_a_file() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = "[here](lint.rs) [up](../Cargo.toml#x) [root](/Cargo.toml) [self](#a)\n[gone](gone.md)";
        let findings = check(root, Path::new("src/a.md"), text);
        assert_eq!(findings.iter().map(|finding| finding.line).collect::<Vec<_>>(), [2]);
    }
}
