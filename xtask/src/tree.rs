//! The project's tree: where it is, its crates by `cargo metadata`, and its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::run::{self, Failure};

/// The tree that xtask works on.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The project's root.
    pub(crate) root: PathBuf,
    /// Where cargo builds.
    pub(crate) target: PathBuf,
    /// The crates of the workspace.
    pub(crate) packages: Vec<Package>,
}

/// One crate, as `cargo metadata` tells it.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its `Cargo.toml`, absolute.
    pub(crate) manifest_path: PathBuf,
    /// What it depends on, of every kind.
    pub(crate) dependencies: Vec<Dependency>,
    /// What it builds.
    pub(crate) targets: Vec<Target>,
}

/// One dependency of a crate.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    /// Its name.
    pub(crate) name: String,
}

/// One thing that a crate builds.
#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: String,
    /// `lib`, `bin`, `test`, `bench`, `example` or `custom-build`.
    pub(crate) kind: Vec<String>,
    /// Its root file, absolute.
    pub(crate) src_path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    workspace_root: PathBuf,
    target_directory: PathBuf,
    packages: Vec<Package>,
}

impl Tree {
    /// Asks cargo for the workspace that xtask belongs to.
    pub(crate) fn load() -> Result<Self, Failure> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(program);
        command.current_dir(here).args(["metadata", "--no-deps", "--format-version", "1"]);
        let json = run::capture(&mut command)?;
        let metadata: Metadata = serde_json::from_slice(&json)
            .map_err(|source| Failure::Json { command: run::shown(&command), source })?;
        let Metadata { workspace_root: root, target_directory: target, packages } = metadata;
        Ok(Self { root, target, packages })
    }

    /// A path as it is written inside the project.
    pub(crate) fn inside<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }

    /// The crate of that name.
    pub(crate) fn package(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.name == name)
    }

    /// All text files that belong to the project, sorted; build folders and `.git` are left out.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>, Failure> {
        let mut files = Vec::new();
        collect(&self.root, &mut files)?;
        files.sort();
        Ok(files)
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Failure> {
    for entry in fs::read_dir(folder).map_err(Failure::file("read", folder))? {
        let entry = entry.map_err(Failure::file("read", folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(Failure::file("read", &path))?;
        if kind.is_dir() {
            // Cargo marks each of its build folders with this file, whatever the folder's name.
            let built = path.join("CACHEDIR.TAG").exists();
            if !built && entry.file_name() != ".git" {
                collect(&path, files)?;
            }
        } else if kind.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_holds_this_crate_and_its_files() {
        let tree = Tree::load().unwrap();
        let own = tree.package("xtask").unwrap();
        assert_eq!(tree.inside(&own.manifest_path), Path::new("xtask/Cargo.toml"));
        assert!(tree.files().unwrap().iter().any(|file| tree.inside(file) == Path::new("xtask/src/tree.rs")));
    }

    #[test]
    fn build_folders_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["target", ".git", "src"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("a.rs"), "").unwrap();
        }
        fs::write(at("target/CACHEDIR.TAG"), "").unwrap();
        let mut files = Vec::new();
        collect(folder.path(), &mut files).unwrap();
        assert_eq!(files, [at("src/a.rs")]);
    }
}
