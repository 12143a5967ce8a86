//! Puts the catalogue into the program: a file of `catalog/VENDOR/KERNEL/MODEL.json` becomes one row of a
//! sorted table of names and texts. Lines lose their indentation, which is a third of them.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=catalog");
    let mut rows = Vec::new();
    for vendor in entries(Path::new("catalog"))? {
        for kernel in entries(&vendor)? {
            for model in entries(&kernel)? {
                println!("cargo::rerun-if-changed={}", model.display());
                let name = model.strip_prefix("catalog").unwrap_or(&model).with_extension("");
                let text: String = fs::read_to_string(&model)?.lines().map(str::trim_start).collect();
                rows.push((name.to_string_lossy().into_owned(), text));
            }
        }
    }
    rows.sort();
    let mut table = String::from("&[\n");
    for (name, text) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "({name:?}, {text:?}),");
    }
    table.push_str("]\n");
    let folder = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    fs::write(folder.join("catalog.rs"), table)
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
}
