//! Programs for the lab's hosts: static, because a host has no libraries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cache::Cache;
use crate::error::Error;
use crate::host::Architecture;
use crate::toolchain::Toolchain;

/// `distribution` in it has Debian's compiler build, also where rustup could add the target.
const COMPILER_VARIABLE: &str = "FERRY_LAB_COMPILER";

/// Builds static programs of this tree. They have a build folder of their own, `lab` in `target`, so no other
/// build waits for them or is thrown away by them.
pub struct Programs<'a> {
    /// The tree.
    pub root: &'a Path,
    /// Where it is built usually.
    pub target: &'a Path,
    /// Hears of progress.
    pub say: &'a dyn Fn(&str),
}

impl std::fmt::Debug for Programs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Programs<'_> {
    /// This tree's `ferry` for hosts of an architecture; answers with its path.
    ///
    /// # Errors
    /// [`Error::Command`] if the build fails; cargo has said why on standard error. [`Error::NoTarget`] if
    /// nothing here can build for the architecture.
    pub fn ferry(&self, architecture: Architecture) -> Result<PathBuf, Error> {
        self.program(architecture, "ferry", "ferry")
    }

    /// This tree's `ferry-truth` for hosts of an architecture, which tells what a verdict was worth.
    ///
    /// # Errors
    /// As [`Programs::ferry`].
    pub fn truth(&self, architecture: Architecture) -> Result<PathBuf, Error> {
        self.program(architecture, "ferry-truth", "ferry-truth")
    }

    /// This tree's `ferry-load` for Linux guests of an architecture and their hosts.
    ///
    /// # Errors
    /// As [`Programs::ferry`].
    pub fn load(&self, architecture: Architecture) -> Result<PathBuf, Error> {
        self.program(architecture, "ferry-load", "ferry-load")
    }

    /// This tree's `ferry-contract-truth` for arm64 hosts, which tells the same of contracts alone.
    ///
    /// # Errors
    /// As [`Programs::ferry`].
    pub fn contract_truth(&self) -> Result<PathBuf, Error> {
        self.program(Architecture::Arm64, "ferry-truth", "ferry-contract-truth")
    }

    /// The tests of a package for hosts of an architecture, one program for each of its test targets.
    ///
    /// # Errors
    /// As [`Programs::ferry`].
    pub fn tests(&self, architecture: Architecture, package: &str) -> Result<Vec<PathBuf>, Error> {
        let form = "--message-format=json-render-diagnostics";
        let said = self.cargo(architecture, &["test", "--no-run", form, "--package", package])?.1;
        let said = String::from_utf8_lossy(&said).into_owned();
        let messages = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(messages.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect())
    }

    fn program(&self, architecture: Architecture, package: &str, name: &str) -> Result<PathBuf, Error> {
        let folder = self.cargo(architecture, &["build", "--package", package, "--bin", name])?.0;
        Ok(folder.join(name))
    }

    /// Runs cargo for a target whose programs are static; answers with the folder of its programs, and with what it said.
    fn cargo(&self, architecture: Architecture, arguments: &[&str]) -> Result<(PathBuf, Vec<u8>), Error> {
        let compiler = Compiler::choose(architecture, self.say)?;
        let triple = compiler.triple();
        let folder = self.target.join("lab");
        let shown = format!("cargo {} --target {triple}", arguments.join(" "));
        (self.say)(&shown);
        let output = command(self.root, &folder, &compiler, arguments)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| Error::Command { command: shown.clone(), reason: error.to_string() })?;
        if !output.status.success() {
            return Err(Error::Command {
                command: shown,
                reason: format!("it ended with {}", output.status),
            });
        }
        Ok((folder.join(triple).join("debug"), output.stdout))
    }
}

fn command(root: &Path, folder: &Path, compiler: &Compiler, arguments: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(arguments).arg("--quiet");
    command.args(["--target", compiler.triple(), "--target-dir"]).arg(folder);
    // It goes into the host's memory at every boot: without symbols it is a tenth.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0").env("CARGO_PROFILE_DEV_STRIP", "symbols");
    // Cargo tells its children about the crate under test; another cargo must not take it as its own.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_ENCODED_RUSTFLAGS" {
            command.env_remove(name);
        }
    }
    match compiler {
        Compiler::Musl(_) => {}
        Compiler::Own(_) => drop(command.env("RUSTFLAGS", "-C target-feature=+crt-static")),
        Compiler::Distribution(toolchain) => toolchain.apply(&mut command),
    }
    command
}

/// What builds static programs.
enum Compiler {
    /// This machine's, for musl: such programs are static by themselves, and need no C compiler.
    Musl(String),
    /// This machine's, for its own architecture.
    Own(String),
    /// The distribution's.
    Distribution(Toolchain),
}

impl Compiler {
    fn choose(architecture: Architecture, say: &dyn Fn(&str)) -> Result<Self, Error> {
        let musl = format!("{}-unknown-linux-musl", architecture.machine());
        let distribution = std::env::var_os(COMPILER_VARIABLE).is_some_and(|wish| wish == "distribution");
        if !distribution && (has_target(&musl) || add_target(&musl, say)) {
            return Ok(Self::Musl(musl));
        }
        if !distribution && architecture == Architecture::NATIVE {
            return Ok(Self::Own(format!("{}-unknown-linux-gnu", architecture.machine())));
        }
        Toolchain::prepare(&Cache::from_environment(), architecture, say)
            .map(Self::Distribution)
            .map_err(|reason| Error::NoTarget { target: musl, reason: Box::new(reason) })
    }

    fn triple(&self) -> &str {
        match self {
            Self::Musl(triple) | Self::Own(triple) => triple,
            Self::Distribution(toolchain) => toolchain.triple(),
        }
    }
}

/// Whether the compiler has the target's library.
fn has_target(triple: &str) -> bool {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output();
    output.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Path::new(&sysroot).join("lib/rustlib").join(triple).join("lib").is_dir()
    })
}

/// Asks rustup for the target; a machine without rustup, or offline, does without.
fn add_target(triple: &str, say: &dyn Fn(&str)) -> bool {
    say(&format!("asking rustup for {triple}"));
    let output = Command::new("rustup").args(["target", "add", triple]).output();
    output.is_ok_and(|output| output.status.success())
}

/// Checks that a program needs no libraries: its ELF header names no interpreter (`elf(5)`, `PT_INTERP`).
///
/// # Errors
/// [`Error::NotStatic`]; [`Error::File`] if it cannot be read. A script passes: it names its own.
pub fn check_static(path: &Path) -> Result<(), Error> {
    let bytes = fs::read(path).map_err(Error::file("read", path))?;
    if names_interpreter(&bytes).unwrap_or(false) {
        return Err(Error::NotStatic { path: path.to_owned() });
    }
    Ok(())
}

/// Whether a 64-bit little-endian ELF file has a `PT_INTERP` header; none if it is no such file.
fn names_interpreter(bytes: &[u8]) -> Option<bool> {
    const INTERPRETER: u32 = 3;
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let half = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let table = u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?);
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    let table = usize::try_from(table).ok()?;
    for index in 0..count {
        let at = table.checked_add(index.checked_mul(size)?)?;
        let kind = bytes.get(at..at.checked_add(4)?)?;
        if u32::from_le_bytes(kind.try_into().ok()?) == INTERPRETER {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_interpreter_is_told_from_one_without() {
        let mut file = vec![0; 64 + 2 * 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = 2;
        assert_eq!(names_interpreter(&file), Some(false));
        file[64 + 56] = 3;
        assert_eq!(names_interpreter(&file), Some(true));
        assert_eq!(names_interpreter(&file[..70]), None);
        assert_eq!(names_interpreter(b"#!/bin/sh"), None);
        file[32..40].copy_from_slice(&[0xff; 8]);
        assert_eq!(names_interpreter(&file), None);
    }

    #[test]
    fn this_test_itself_is_no_program_for_a_host_unless_static() {
        let own = std::env::current_exe().unwrap();
        let linked = cfg!(not(target_feature = "crt-static"));
        assert_eq!(matches!(check_static(&own), Err(Error::NotStatic { .. })), linked);
    }
}
