//! Debian's packages, without touching the machine's own.
//!
//! The mirror comes from the machine's own apt configuration with only the suite changed; lists,
//! state and downloads lie in the lab's cache. apt checks what it fetches against the SHA-256 sums of
//! the signed lists. An empty status file makes apt believe that nothing is installed, so a closure
//! holds everything that a program needs, its C library included (`apt.conf(5)`, `sources.list(5)`).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::command;
use crate::error::Error;
use crate::process::tied;

mod sources;

pub use crate::apt::sources::Source;

/// Names a file of sources, instead of the machine's own configuration.
pub const SOURCES_VARIABLE: &str = "FERRY_LAB_SOURCES";

/// One suite of Debian, seen through a private apt root.
#[derive(Debug)]
pub struct Suite {
    name: String,
    architecture: String,
    root: PathBuf,
    /// Two calls that fetch from one suite do so one after the other.
    _locked: File,
}

impl Suite {
    /// Opens the suite for one of Debian's architectures and fetches its list of packages.
    ///
    /// # Errors
    /// [`Error::NoApt`], [`Error::NoSource`], [`Error::Fetch`] when offline, [`Error::File`].
    pub fn open(cache: &Cache, name: &str, architecture: &str) -> Result<Self, Error> {
        let source = Source::of_this_machine()?;
        let root = cache.root().join("apt").join(format!("{name}-{architecture}"));
        let locked = cache.lock(&format!("apt-{name}-{architecture}"))?;
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        }
        let write = |file: &str, text: &str| {
            let path = root.join(file);
            fs::write(&path, text).map_err(Error::file("write", &path))
        };
        write("status", "")?;
        write("sources.list", &source.line(name))?;
        let suite =
            Self { name: name.to_owned(), architecture: architecture.to_owned(), root, _locked: locked };
        command::capture(suite.apt("apt-get").args(["-o", "APT::Update::Error-Mode=any", "-q", "update"]))
            .map_err(|error| suite.not_fetched("the list of packages", error))?;
        Ok(suite)
    }

    /// The suite's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of all packages that match apt's regular expression.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn packages(&self, pattern: &str) -> Result<Vec<String>, Error> {
        let found = command::capture(self.apt("apt-cache").args(["search", "--names-only", pattern]))?;
        let text = String::from_utf8_lossy(&found).into_owned();
        Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// A package and all that it needs, as `name=version`.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn closure(&self, package: &str) -> Result<Vec<String>, Error> {
        let mut apt = self.apt("apt-get");
        apt.args(["--simulate", "--no-install-recommends", "install", package]);
        let output = command::capture(&mut apt)?;
        Ok(to_install(&String::from_utf8_lossy(&output)))
    }

    /// Fetches the packages and unpacks them into the folder.
    ///
    /// # Errors
    /// [`Error::Fetch`], [`Error::Command`], [`Error::File`].
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<(), Error> {
        let folder = self.root.join("downloads");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        let done = self.unpack_by(&folder, packages, into);
        // Whatever came of it: nobody looks at them again.
        let _ = fs::remove_dir_all(&folder);
        done
    }

    fn unpack_by(&self, folder: &Path, packages: &[String], into: &Path) -> Result<(), Error> {
        let mut apt = self.apt("apt-get");
        apt.current_dir(folder).args(["-q", "download"]).args(packages);
        let what = packages.first().map_or("", String::as_str);
        command::capture(&mut apt).map_err(|error| self.not_fetched(what, error))?;
        let mut files = 0;
        for entry in fs::read_dir(folder).map_err(Error::file("read", folder))?.flatten() {
            command::capture(Command::new("dpkg").arg("-x").arg(entry.path()).arg(into))?;
            files += 1;
        }
        if files < packages.len() {
            let reason = format!("{files} of {} packages came", packages.len());
            return Err(Error::Content { what: format!("Debian's {}", self.name), reason });
        }
        Ok(())
    }

    /// A program of apt that sees this root only.
    fn apt(&self, program: &str) -> Command {
        // One that outlives us would go on in folders that the next call clears.
        let mut command = tied(OsStr::new(program));
        let mut set = |option: &str, value: &str| {
            command.arg("-o").arg(format!("{option}={value}"));
        };
        let at = |path: &str| self.root.join(path).to_string_lossy().into_owned();
        set("Dir::State", &at(""));
        set("Dir::State::lists", &at("lists"));
        set("Dir::State::status", &at("status"));
        set("Dir::Cache", &at("cache"));
        set("Dir::Etc::sourcelist", &at("sources.list"));
        for nothing in ["sourceparts", "preferences", "preferencesparts"] {
            set(&format!("Dir::Etc::{nothing}"), "/dev/null");
        }
        // Emulated hosts may be of another architecture than this machine.
        set("APT::Architecture", &self.architecture);
        set("APT::Architectures", &self.architecture);
        // An older suite's lists are past their day.
        set("Acquire::Check-Valid-Until", "false");
        set("Acquire::Languages", "none");
        set("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false");
        set("Acquire::Retries", "3");
        // Started by root, apt would fetch as a user who may not write into the cache.
        set("APT::Sandbox::User", "root");
        command
    }

    fn not_fetched(&self, what: &str, error: Error) -> Error {
        match error {
            Error::Command { reason, .. } => {
                Error::Fetch { what: what.to_owned(), suite: self.name.clone(), reason }
            }
            other => other,
        }
    }
}

/// What `apt-get --simulate install` would install: lines as `Inst libc6 (2.41-12 Debian:13 [amd64])`.
fn to_install(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("Inst ")?.split_whitespace();
            let name = words.next()?;
            let version = words.find_map(|word| word.strip_prefix('('))?;
            Some(format!("{name}={}", version.trim_end_matches(')')))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_install_is_read_with_its_versions() {
        let output = "Reading package lists...\nInst gcc-14-base (14.2.0-19 Debian:13.1/stable [amd64])\n\
                      Inst libc6 [2.36-9] (2.41-12 Debian:13.1/stable [amd64]) []\nConf libc6 (2.41-12 Debian)\n";
        assert_eq!(to_install(output), ["gcc-14-base=14.2.0-19", "libc6=2.41-12"]);
        assert!(to_install("Inst\nInst a\n").is_empty());
    }
}
