//! The distribution's own compiler, for another architecture, where rustup cannot add a target.
//!
//! Debian's `rustc` with `libstd-rust-dev` of both architectures, `lld` as the cross linker, and the other
//! architecture's C library, unpacked into one folder of the cache: nothing of it is installed. The compiler and
//! the linker run through their own C library's loader. The linker is called as a linker and not as a C
//! compiler, so the object files that begin and end a static program (`crt1.o(5)` and its like) are given
//! here. Programs are of the target `…-unknown-linux-gnu`, static and at a fixed address.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt::Suite;
use crate::cache::Cache;
use crate::error::Error;
use crate::host::Architecture;
use crate::qemu::loader;

/// The first suite whose compiler is as new as this tree needs, and that needs no other suite.
const SUITE: &str = "sid";

/// A compiler and a linker, for one architecture.
#[derive(Debug)]
pub(crate) struct Toolchain {
    rustc: PathBuf,
    linker: PathBuf,
    triple: String,
}

impl Toolchain {
    /// Fetches it if it is not there.
    pub(crate) fn prepare(
        cache: &Cache,
        architecture: Architecture,
        say: &dyn Fn(&str),
    ) -> Result<Self, Error> {
        let item = format!("rustc/{}-{}", Architecture::NATIVE.debian(), architecture.debian());
        let folder = cache.make(&item, |into| fetch(cache, architecture, into, say))?;
        let triple = format!("{}-unknown-linux-gnu", architecture.machine());
        Ok(Self { rustc: folder.join("rustc"), linker: folder.join("linker"), triple })
    }

    /// The target that it builds for.
    pub(crate) fn triple(&self) -> &str {
        &self.triple
    }

    /// Has cargo build with it.
    pub(crate) fn apply(&self, cargo: &mut Command) {
        let variable =
            |name: &str| format!("CARGO_TARGET_{}_{name}", self.triple.to_uppercase().replace('-', "_"));
        let flags = "-C linker-flavor=ld -C target-feature=+crt-static -C relocation-model=static";
        cargo.env("RUSTC", &self.rustc).env(variable("LINKER"), &self.linker);
        cargo.env(variable("RUSTFLAGS"), flags);
    }
}

fn fetch(cache: &Cache, architecture: Architecture, into: &Path, say: &dyn Fn(&str)) -> Result<(), Error> {
    let tree = into.join("tree");
    say(&format!("Debian's rustc: reading the list of {SUITE}"));
    let own = Suite::open(cache, SUITE, Architecture::NATIVE.debian())?;
    let mut packages = own.closure("rustc")?;
    packages.extend(own.closure("lld")?);
    packages.sort();
    packages.dedup();
    say(&format!("Debian's rustc: fetching {} packages from {SUITE}", packages.len()));
    own.unpack(&packages, &tree)?;
    let other = Suite::open(cache, SUITE, architecture.debian())?;
    let number = |name: &String| name.split('-').nth(1).and_then(|number| number.parse::<u32>().ok());
    let gcc = other.packages("^libgcc-[0-9]+-dev$")?.into_iter().max_by_key(number);
    let missing = || Error::Content {
        what: format!("Debian's {SUITE}"),
        reason: "it has no libgcc-…-dev".to_owned(),
    };
    let gcc = gcc.ok_or_else(missing)?;
    let version = number(&gcc).unwrap_or_default();
    other.unpack(&["libstd-rust-dev".to_owned(), "libc6-dev".to_owned(), gcc], &tree)?;
    let _ = fs::remove_dir_all(tree.join("usr/share"));
    script(&into.join("rustc"), &rustc())?;
    script(&into.join("linker"), &linker(architecture, version))
}

fn script(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::file("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .map_err(Error::file("make a program of", path))
}

/// The first lines of both scripts: where they are, and how a program of the tree is started.
fn head() -> String {
    let (libraries, loader) = loader();
    format!(
        "#!/bin/sh\ntree=$(CDPATH= cd -- \"$(dirname -- \"$0\")\" && pwd)/tree\n\
         libraries=$tree/{libraries}\n\
         for folder in \"$tree\"/usr/lib/llvm-*/lib; do libraries=$libraries:$folder; done\n\
         run() {{ program=$1; shift; exec \"$tree/{loader}\" --library-path \"$libraries\" \"$tree/usr/bin/$program\" \"$@\"; }}\n"
    )
}

fn rustc() -> String {
    head() + "run rustc --sysroot \"$tree/usr\" \"$@\"\n"
}

/// The linker with the files around a static program of C (`gcc -static -###` shows them).
fn linker(architecture: Architecture, gcc: u32) -> String {
    let machine = architecture.machine();
    let emulation = match architecture {
        Architecture::Arm64 => "aarch64linux",
        Architecture::X86_64 => "elf_x86_64",
    };
    head()
        + &format!(
            "c=$tree/usr/lib/{machine}-linux-gnu\ngcc=$tree/usr/lib/gcc/{machine}-linux-gnu/{gcc}\n\
             run ld.lld -m {emulation} -static --sysroot=\"$tree\" \"$c/crt1.o\" \"$c/crti.o\" \"$gcc/crtbeginT.o\" \"$@\" \
             -L \"$gcc\" -L \"$c\" --start-group -lgcc -lgcc_eh -lc --end-group \"$gcc/crtend.o\" \"$c/crtn.o\"\n"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_find_their_programs_beside_them_and_pass_arguments_on_whole() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("a b/tree");
        let own = tree.join(loader().1);
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        fs::create_dir_all(tree.join("usr/lib/llvm-22/lib")).unwrap();
        script(&own, "#!/bin/sh\nfor word; do echo \"$word\"; done\n").unwrap();
        let said = |name: &str, text: &str| {
            let path = folder.path().join("a b").join(name);
            script(&path, text).unwrap();
            let output = Command::new(&path).args(["-o", "x y"]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let tree = tree.canonicalize().unwrap();
        let at = |path: &str| tree.join(path).display().to_string();
        let words = said("rustc", &rustc());
        let libraries = format!("{}:{}", at(loader().0), at("usr/lib/llvm-22/lib"));
        let expected =
            ["--library-path", &libraries, &at("usr/bin/rustc"), "--sysroot", &at("usr"), "-o", "x y"];
        assert_eq!(words.lines().collect::<Vec<_>>(), expected);
        let words = said("linker", &linker(Architecture::Arm64, 16));
        let words: Vec<&str> = words.lines().collect();
        assert_eq!(words[2], at("usr/bin/ld.lld"));
        assert!(words.contains(&at("usr/lib/gcc/aarch64-linux-gnu/16/crtbeginT.o").as_str()), "{words:?}");
        assert!(words.windows(2).any(|pair| pair == ["-o", "x y"]), "{words:?}");
        assert_eq!(words.last(), Some(&at("usr/lib/aarch64-linux-gnu/crtn.o").as_str()));
    }
}
