//! Puts the catalogue into the program: a file of `catalog/VENDOR/KERNEL/MODEL.json` becomes one row of a
//! sorted table of names and packed texts: the registers of an arm64 host, which are much alike, pack to
//! a twentieth.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// How hard the texts are packed: what is beyond it costs time and saves next to nothing.
const LEVEL: u8 = 6;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=catalog");
    let mut rows = Vec::new();
    for vendor in entries(Path::new("catalog"))? {
        for kernel in entries(&vendor)? {
            for model in entries(&kernel)? {
                println!("cargo::rerun-if-changed={}", model.display());
                let name = model.strip_prefix("catalog").unwrap_or(&model).with_extension("");
                let text = fs::read(&model)?;
                let packed = miniz_oxide::deflate::compress_to_vec(&text, LEVEL);
                rows.push((name.to_string_lossy().into_owned(), packed));
            }
        }
    }
    rows.sort();
    let mut table = String::from("&[\n");
    for (name, packed) in rows {
        let packed = packed.escape_ascii();
        // Writing to a string cannot fail.
        let _ = writeln!(table, "({name:?}, b\"{packed}\"),");
    }
    table.push_str("]\n");
    let folder = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    fs::write(folder.join("catalog.rs"), table)
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
}
