//! Where this machine's apt takes Debian's packages from.
//!
//! Both forms of `sources.list(5)` are read: one line each, and paragraphs of fields (`.sources`).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::SOURCES_VARIABLE;
use crate::command;
use crate::error::Error;

/// The suites by which a mirror of Debian itself is told from others'.
const SUITES: &[&str] = &[
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// A mirror of Debian, with the options that this machine's apt uses it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its address.
    address: String,
    /// Options such as `signed-by=…`.
    options: Vec<String>,
}

impl Source {
    /// The first one in the machine's apt configuration.
    pub(super) fn of_this_machine() -> Result<Self, Error> {
        let configured = command::capture(Command::new("apt-config").args([
            "shell",
            "LIST",
            "Dir::Etc::sourcelist/f",
            "PARTS",
            "Dir::Etc::sourceparts/d",
        ]))?;
        let configured = String::from_utf8_lossy(&configured).into_owned();
        let value = |name: &str| {
            let line = configured.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(|value| PathBuf::from(value.trim_matches('\''))).unwrap_or_default()
        };
        let mut looked = value("PARTS");
        let mut files = vec![value("LIST")];
        if let Some(named) = std::env::var_os(SOURCES_VARIABLE) {
            files = vec![PathBuf::from(named)];
            looked.clone_from(&files[0]);
        } else if let Ok(folder) = fs::read_dir(&looked) {
            let mut parts: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).collect();
            parts.sort();
            files.extend(parts);
        }
        files.iter().find_map(|file| read(file)).ok_or(Error::NoSource { looked })
    }

    /// The line of a `sources.list` for that suite.
    pub(super) fn line(&self, suite: &str) -> String {
        let options =
            if self.options.is_empty() { String::new() } else { format!("[{}] ", self.options.join(" ")) };
        format!("deb {options}{} {suite} main\n", self.address)
    }
}

/// The first source of Debian in a file.
fn read(file: &Path) -> Option<Source> {
    let text = fs::read_to_string(file).ok()?;
    if file.extension() == Some(OsStr::new("sources")) { from_fields(&text) } else { from_lines(&text) }
}

/// `deb [signed-by=…] ADDRESS SUITE COMPONENT…`
fn from_lines(text: &str) -> Option<Source> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (address, suite) = (words.next()?, words.next()?);
        let options = options.split_whitespace().filter(|option| !option.starts_with("arch="));
        chosen(address, &[suite], &words.collect::<Vec<_>>(), options.map(str::to_owned).collect())
    })
}

/// Paragraphs of `Field: value`, apart by empty lines.
fn from_fields(text: &str) -> Option<Source> {
    let plain: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    plain.split(|line| line.trim().is_empty()).find_map(|paragraph| {
        let field = |name: &str| {
            let lines = paragraph.iter().filter_map(|line| line.split_once(':'));
            let mut found =
                lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
            found.next_back().unwrap_or_default()
        };
        let list = |name: &str| field(name).split_whitespace().collect::<Vec<&str>>();
        if field("Enabled").eq_ignore_ascii_case("no") || !list("Types").contains(&"deb") {
            return None;
        }
        // A key written out in the file itself goes over several lines: the trusted keys serve as well.
        let key = Some(field("Signed-By")).filter(|key| key.starts_with('/'));
        let options = key.map(|key| format!("signed-by={}", key.replace(' ', ",")));
        let addresses = list("URIs");
        chosen(addresses.first()?, &list("Suites"), &list("Components"), options.into_iter().collect())
    })
}

fn chosen(address: &str, suites: &[&str], components: &[&str], options: Vec<String>) -> Option<Source> {
    let debian = suites.iter().any(|suite| SUITES.contains(suite)) && components.contains(&"main");
    (debian && !address.contains("security")).then(|| Source { address: address.to_owned(), options })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_its_mirror_with_only_the_suite_changed() {
        let text = "# deb http://no.example/debian sid main\n\
                    deb https://else.example/apt tools main\n\
                    deb http://a.example/debian-security bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib\n";
        let source = from_lines(text).unwrap();
        assert_eq!(source.line("trixie"), "deb [signed-by=/k.gpg] http://a.example/debian trixie main\n");
        assert_eq!(from_lines("deb http://ubuntu.example/ubuntu noble main\ndeb broken"), None);
        let bare = from_lines("deb http://a.example/debian stable main").unwrap();
        assert_eq!(bare.line("sid"), "deb http://a.example/debian sid main\n");
    }

    #[test]
    fn a_paragraph_gives_its_mirror_unless_it_is_off() {
        let text = "Types: deb\n# from a snapshot\nURIs: http://b.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\nSigned-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\n\
                    URIs: http://b.example/debian-security\nSuites: bookworm-security\nComponents: main\n";
        let source = from_fields(text).unwrap();
        assert_eq!(
            source.line("bullseye"),
            "deb [signed-by=/usr/share/keyrings/k.gpg] http://b.example/debian bullseye main\n"
        );
        assert_eq!(from_fields(&format!("Enabled: no\n{text}")), None);
    }
}
