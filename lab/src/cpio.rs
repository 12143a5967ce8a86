//! Archives as the kernel reads them for its initial root: `newc`.
//!
//! The form is in the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`: a header of
//! ASCII digits, the name, the data, each padded to 4 bytes; archives may follow one another, so what a
//! run adds is put behind what all runs share.

use std::io::{self, Write};

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    entries: u32,
}

/// What an entry is; the numbers are those of `stat(2)`.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;
const NO_DEVICE: (u32, u32) = (0, 0);

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub const fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// Adds a folder; the one that holds it must be there already.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, FOLDER, NO_DEVICE, &[])
    }

    /// Adds a file that may be executed.
    ///
    /// # Errors
    /// Those of the writer; [`io::ErrorKind::InvalidInput`] from 4 GiB on.
    pub fn file(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        self.entry(name, PROGRAM, NO_DEVICE, data)
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, DEVICE, (major, minor), &[])
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, NO_DEVICE, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a file of 4 GiB or more"))?;
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        self.entries += 1;
        // inode, mode, user, group, links, time, size, the file's device, its own device, name, check.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(6 + 13 * 8 + name.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_the_kernel_reads_it() {
        let mut writer = Writer::new(Vec::new());
        writer.folder("dev").unwrap();
        writer.device("dev/console", 5, 1).unwrap();
        writer.file("init", b"hello").unwrap();
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let (head, rest) = bytes.split_at(110);
        let text = std::str::from_utf8(head).unwrap();
        assert!(text.starts_with("07070100000001000041ed"), "{text}");
        assert!(rest.starts_with(b"dev\0\0\x00070701"), "padded to 4 bytes with its header");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let file = text.find("init\0").unwrap();
        // The header is 110 bytes, the name 5: one byte of padding.
        assert_eq!(&bytes[file + 5..file + 16], b"\0hello\0\0\x0007");
        assert_eq!(&text[file - 110 + 54..file - 110 + 62], "00000005");
        assert!(text.contains("TRAILER!!!"));
    }

    #[test]
    fn the_archive_unpacks_with_the_systems_own_tool() {
        let Some(tool) = crate::process::in_path("cpio") else {
            println!("skipped: this machine has no cpio");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(Vec::new());
        writer.folder("a").unwrap();
        writer.file("a/b", b"text").unwrap();
        std::fs::write(folder.path().join("x.cpio"), writer.finish().unwrap()).unwrap();
        let mut command = std::process::Command::new(tool);
        command.args(["-id", "--quiet", "-F", "x.cpio"]).current_dir(folder.path());
        assert!(command.status().unwrap().success());
        assert_eq!(std::fs::read(folder.path().join("a/b")).unwrap(), b"text");
    }
}
