//! Files into a running host, and out of it.
//!
//! A host has no disk: its files lie in its memory. They cross as one tar archive. QEMU's streams carry it
//! at 10 MiB a second and more. Bochs' serial lines carry a few KiB a second, so an Intel host has a disk
//! that carries an archive at a time: one side writes it, then the other reads it, never both at once.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command;
use crate::error::Error;
use crate::machine::Machine;

/// The disk, as the host's kernel calls it.
const DISK: &str = "/dev/sda";

/// How archives get into a host and out of it.
#[derive(Debug)]
pub(crate) enum Way {
    /// Over the stream of scripts and of standard output.
    Stream,
    /// Over the disk whose image that is.
    Disk(PathBuf),
}

impl Machine {
    /// Puts everything that is in a folder of this machine into a folder of the host, which is made if
    /// it is not there.
    ///
    /// # Errors
    /// Those of [`Machine::expect`]; [`Error::File`] and [`Error::Command`] for what happens here.
    pub fn put(&mut self, folder: &Path, into: &str, within: Duration) -> Result<(), Error> {
        let archive = self.folder().join("in.tar");
        command::capture(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(folder).arg("."))?;
        let into = quoted(into);
        match self.way() {
            Way::Stream => {
                let bytes = fs::read(&archive).map_err(Error::file("read", &archive))?;
                // Whatever becomes of the archive, all of it is read: what follows it is a script again.
                let count = bytes.len();
                let unpack = format!("mkdir -p {into} && tar -x -C {into}");
                let script =
                    format!("head -c {count} <&3 | {{ {unpack}; status=$?; cat >/dev/null; exit $status; }}");
                self.expect_with(&script, &bytes, within)?;
            }
            Way::Disk(image) => {
                let count = write_over(&archive, image)?;
                // The host's kernel must not give what it read earlier; and busybox's tar, having found the
                // archive's end, would read on to the disk's.
                let script = format!(
                    "blockdev --flushbufs {DISK} && mkdir -p {into} && head -c {count} {DISK} | tar -x -C {into}"
                );
                self.expect(&format!("{}{script}", wait_for_disk()), within)?;
            }
        }
        fs::remove_file(&archive).map_err(Error::file("remove", &archive))
    }

    /// Brings a folder of the host here, with all that is in it.
    ///
    /// # Errors
    /// Those of [`Machine::expect`]; [`Error::File`] and [`Error::Command`] for what happens here.
    pub fn fetch(&mut self, folder: &str, into: &Path, within: Duration) -> Result<(), Error> {
        fs::create_dir_all(into).map_err(Error::file("create", into))?;
        let pack = format!("tar -c -C {} .", quoted(folder));
        let archive = match self.way() {
            Way::Stream => {
                let archive = self.folder().join("out.tar");
                let output = self.run(&pack, within)?;
                let output = self.well(&pack, output)?;
                fs::write(&archive, &output.stdout).map_err(Error::file("write", &archive))?;
                archive
            }
            Way::Disk(image) => {
                let image = image.clone();
                self.expect(&format!("{}{pack} >{DISK} && sync", wait_for_disk()), within)?;
                image
            }
        };
        command::capture(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(into)).map(drop)
    }
}

/// Disks are found while the host does other things already.
fn wait_for_disk() -> String {
    format!("until [ -b {DISK} ]; do usleep 100000; done; ")
}

/// All files below a folder, sorted.
pub(crate) fn below(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    walk(folder, &mut |path| found.push(path.to_owned()))?;
    found.sort();
    Ok(found)
}

/// Shows every file below a folder.
pub(crate) fn walk(folder: &Path, each: &mut dyn FnMut(&Path)) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let entry = entry.map_err(Error::file("read", folder))?;
        let kind = entry.file_type().map_err(Error::file("read", folder))?;
        if kind.is_dir() {
            walk(&entry.path(), each)?;
        } else if kind.is_file() {
            each(&entry.path());
        }
    }
    Ok(())
}

/// Writes a file over the beginning of another, which keeps its size; answers with the file's length.
fn write_over(from: &Path, to: &Path) -> Result<u64, Error> {
    let mut source = File::open(from).map_err(Error::file("read", from))?;
    let mut target = OpenOptions::new().write(true).open(to).map_err(Error::file("write", to))?;
    io::copy(&mut source, &mut target).map_err(Error::file("write", to))
}

/// A word as the shell takes it for one.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words_in_the_shell() {
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }

    #[test]
    fn an_archive_leaves_the_disk_as_large_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("disk"), [1; 8]).unwrap();
        fs::write(at("archive"), [2; 3]).unwrap();
        assert_eq!(write_over(&at("archive"), &at("disk")).unwrap(), 3);
        assert_eq!(fs::read(at("disk")).unwrap(), [2, 2, 2, 1, 1, 1, 1, 1]);
    }
}
