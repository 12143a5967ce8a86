//! Files on the guest's disk: written, made durable, read back, removed, over and over.
//!
//! What a file must hold follows from its name and from how often it was written. It is read from the page cache, or from the disk itself:
//! past the cache (`O_DIRECT`), or after the cache was told to forget it. A new content goes over the old one in place, or under
//! another name that then takes the old one's place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Advice, OFlags, fadvise};

use crate::tally::{Numbers, Stop, Tally};

/// How many files there are.
const FILES: usize = 24;

/// What `O_DIRECT` wants of addresses and lengths, on every disk.
const BLOCK_BYTES: usize = 4096;

/// Between two turns: the disk is not all that the guest does.
const PAUSE: Duration = Duration::from_millis(20);

/// How a file is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Cached,
    Forgotten,
    Direct,
}

/// The files, and what each must hold.
#[derive(Debug)]
pub(crate) struct Files {
    folder: PathBuf,
    written: [u64; FILES],
    largest_bytes: usize,
    numbers: Numbers,
}

impl Files {
    /// Files in that folder, together not larger than `bytes`.
    pub(crate) fn new(folder: PathBuf, bytes: u64) -> Self {
        let largest = usize::try_from(bytes).unwrap_or(usize::MAX) / (2 * FILES) / BLOCK_BYTES * BLOCK_BYTES;
        Self { folder, written: [0; FILES], largest_bytes: largest.max(BLOCK_BYTES), numbers: Numbers(2) }
    }

    /// Works until the word to stop, and looks at all files once more then.
    pub(crate) fn run(mut self, stop: &Stop, tally: &Tally) {
        if let Err(error) = fs::create_dir_all(self.folder.join("kept")) {
            return tally.fault(format!("{}: {error}", self.folder.display()));
        }
        while stop.pause(PAUSE) {
            let file = self.numbers.below(FILES);
            tally.judge(self.write(file));
            let way = [Way::Cached, Way::Forgotten, Way::Direct][self.numbers.below(3)];
            let file = self.numbers.below(FILES);
            tally.judge(self.verify(file, way));
        }
        for file in 0..FILES {
            tally.judge(self.verify(file, Way::Forgotten));
        }
    }

    fn path(&self, file: usize) -> PathBuf {
        self.folder.join("kept").join(format!("file-{file}"))
    }

    /// Gives the file its next content; every eighth turn it is removed instead.
    fn write(&mut self, file: usize) -> Result<(), String> {
        let path = self.path(file);
        let turn = self.numbers.next();
        let what = |error: io::Error| format!("writing {}: {error}", path.display());
        if turn.is_multiple_of(8) {
            if self.written[file] > 0 {
                fs::remove_file(&path).map_err(what)?;
            }
            self.written[file] = 0;
            return Ok(());
        }
        let written = turn.max(1);
        let bytes = self.content(file, written);
        if turn.is_multiple_of(3) {
            // What is left of an older, longer content is cut off.
            let mut open = OpenOptions::new();
            let mut file = open.write(true).create(true).truncate(false).open(&path).map_err(what)?;
            file.write_all(&bytes).and_then(|()| file.set_len(bytes.len() as u64)).map_err(what)?;
            file.sync_all().map_err(what)?;
        } else {
            let new = self.folder.join("new");
            let mut file = File::create(&new).map_err(what)?;
            file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(what)?;
            fs::rename(&new, &path).map_err(what)?;
            File::open(self.folder.join("kept")).and_then(|folder| folder.sync_all()).map_err(what)?;
        }
        self.written[file] = written;
        Ok(())
    }

    /// What a file holds that was written with that number: a length and bytes of its own.
    fn content(&self, file: usize, written: u64) -> Vec<u8> {
        let mut numbers = Numbers(written ^ ((file as u64) << 56));
        let length = numbers.below(self.largest_bytes) + 1;
        let words = length.div_ceil(8);
        let mut bytes: Vec<u8> = (0..words).flat_map(|_| numbers.next().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }

    fn verify(&self, file: usize, way: Way) -> Result<(), String> {
        let path = self.path(file);
        if self.written[file] == 0 {
            return match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                found => Err(format!("{} was removed, and is there: {found:?}", path.display())),
            };
        }
        let found = self.read(file, way).map_err(|error| {
            let path = path.display();
            format!("reading {path} ({way:?}): {error}")
        })?;
        let expected = self.content(file, self.written[file]);
        if found == expected {
            return Ok(());
        }
        let same = found.iter().zip(&expected).take_while(|(found, expected)| found == expected).count();
        let (path, found, expected) = (path.display(), found.len(), expected.len());
        Err(format!(
            "{path} ({way:?}) has {found} bytes of {expected}, the first {same} as they were written"
        ))
    }

    fn read(&self, file: usize, way: Way) -> io::Result<Vec<u8>> {
        let path = self.path(file);
        if way == Way::Direct {
            let flag = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
            // A file system in memory has no O_DIRECT.
            match OpenOptions::new().read(true).custom_flags(flag).open(&path) {
                Ok(file) => return read_blocks(file),
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(error),
            }
        }
        let mut file = File::open(&path)?;
        if way != Way::Cached {
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Reads whole blocks into memory that begins where a block may.
fn read_blocks(mut file: File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    let room = length.next_multiple_of(BLOCK_BYTES);
    let mut memory = vec![0; room + BLOCK_BYTES];
    let skip = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
    let mut at = 0;
    while at < length {
        match file.read(&mut memory[skip + at..skip + room])? {
            0 => break,
            count => at += count,
        }
    }
    Ok(memory[skip..skip + at.min(length)].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_however_they_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::new(folder.path().to_owned(), 4 << 20);
        fs::create_dir(folder.path().join("kept")).unwrap();
        for turn in 0..200 {
            assert_eq!(files.write(turn % FILES), Ok(()));
            for way in [Way::Cached, Way::Forgotten, Way::Direct] {
                assert_eq!(files.verify(turn % FILES, way), Ok(()), "{turn}");
            }
        }
        assert!(files.written.contains(&0) || files.written.iter().all(|written| *written > 0));
    }

    #[test]
    fn a_file_that_is_another_or_shorter_or_there_again_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::new(folder.path().to_owned(), 4 << 20);
        fs::create_dir(folder.path().join("kept")).unwrap();
        let write = |files: &mut Files, file| {
            while files.written[file] == 0 || fs::metadata(files.path(file)).unwrap().len() < 2 {
                files.write(file).unwrap();
            }
        };
        write(&mut files, 0);
        write(&mut files, 1);
        fs::copy(files.path(1), files.path(0)).unwrap();
        assert!(files.verify(0, Way::Direct).unwrap_err().contains("as they were written"));
        let length = fs::metadata(files.path(1)).unwrap().len();
        File::options().write(true).open(files.path(1)).unwrap().set_len(length - 1).unwrap();
        assert!(
            files.verify(1, Way::Cached).unwrap_err().contains(&format!("{} bytes of {length}", length - 1))
        );
        files.written[1] = 0;
        assert!(files.verify(1, Way::Cached).unwrap_err().contains("was removed"));
    }
}
