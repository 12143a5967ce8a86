//! Where the lab keeps what it fetched: whole items, each behind a lock of its own.
//!
//! An item is a folder. It is made under another name and renamed when it is whole, so what stands
//! there is whole: after a broken download, a full disk or a killed process the unfinished one is
//! cleared away by whoever makes the item next. Two calls that want the same item wait for each
//! other by `flock`; the second finds it made.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::Error;

/// Names the folder, instead of `ferry-lab` in the user's cache folder.
pub const FOLDER_VARIABLE: &str = "FERRY_LAB_CACHE";

/// How many runs this process had.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// The lab's folder.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The folder that the environment says: `FERRY_LAB_CACHE`, else `ferry-lab` in `XDG_CACHE_HOME`
    /// or `~/.cache`.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = variable(FOLDER_VARIABLE).unwrap_or_else(|| {
            variable("XDG_CACHE_HOME")
                .or_else(|| std::env::home_dir().map(|home| home.join(".cache")))
                .unwrap_or_else(std::env::temp_dir)
                .join("ferry-lab")
        });
        // Other programs run in other folders.
        Self { root: std::path::absolute(&root).unwrap_or(root) }
    }

    /// A cache in that folder.
    pub const fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an item stands, whether it is there or not; `name` may have folders in it.
    pub fn item(&self, name: &str) -> PathBuf {
        self.root.join("items").join(name)
    }

    /// Whether the item is there, whole.
    pub fn has(&self, name: &str) -> bool {
        self.item(name).is_dir()
    }

    /// The item's folder; `fill` fills it if it is not there.
    ///
    /// # Errors
    /// What `fill` says; then nothing of the item is left. [`Error::File`] for the cache's own files.
    pub fn make(&self, name: &str, fill: impl FnOnce(&Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
        let whole = self.item(name);
        if whole.is_dir() {
            return Ok(whole);
        }
        let _locked = self.lock(name)?;
        if whole.is_dir() {
            return Ok(whole);
        }
        let partial = self.root.join("partial").join(flat(name));
        clear(&partial)?;
        fs::create_dir_all(&partial).map_err(Error::file("create", &partial))?;
        let made = fill(&partial).and_then(|()| {
            if let Some(parent) = whole.parent() {
                fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
            }
            fs::rename(&partial, &whole).map_err(Error::file("rename", &partial))
        });
        if made.is_err() {
            // The reason is told; that the rest could not be cleared, too, would only hide it.
            let _ = fs::remove_dir_all(&partial);
        }
        made.map(|()| whole)
    }

    /// Waits for the lock of that name and holds it until dropped.
    ///
    /// # Errors
    /// [`Error::File`] if the lock's file cannot be made.
    pub fn lock(&self, name: &str) -> Result<File, Error> {
        let folder = self.root.join("locks");
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        let path = folder.join(flat(name));
        let file = File::create(&path).map_err(Error::file("create", &path))?;
        file.lock().map_err(Error::file("lock", &path))?;
        Ok(file)
    }

    /// A folder of this process for one running host, removed when dropped; those that killed
    /// processes left behind are cleared away first.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn scratch(&self) -> Result<Scratch, Error> {
        let runs = self.root.join("run");
        fs::create_dir_all(&runs).map_err(Error::file("create", &runs))?;
        // Between making a folder and locking it another call would take it for a forgotten one.
        let _locked = self.lock("run")?;
        sweep(&runs)?;
        // A name that this process never had: a thread may still wait for the emulator of an earlier run.
        let names = std::iter::repeat_with(|| {
            let number = RUNS.fetch_add(1, Ordering::Relaxed);
            runs.join(format!("{}-{number}", std::process::id()))
        });
        let free = names.take(1 << 20).find(|path| !path.exists());
        let path = free.unwrap_or_else(|| runs.join("full"));
        fs::create_dir(&path).map_err(Error::file("create", &path))?;
        let lock = path.join("lock");
        let file = File::create(&lock).map_err(Error::file("create", &lock))?;
        file.lock().map_err(Error::file("lock", &lock))?;
        Ok(Scratch { path, _lock: file })
    }

    /// Removes everything, if nobody uses it.
    ///
    /// # Errors
    /// [`Error::Unable`] while a host runs from it or another call fetches into it; [`Error::File`].
    pub fn clean(&self) -> Result<(), Error> {
        let runs = files_in(&self.root.join("run")).into_iter().map(|run| run.join("lock"));
        let locks = files_in(&self.root.join("locks"));
        if let Some(held) = runs.chain(locks).find(|lock| is_held(lock)) {
            let held = held.strip_prefix(&self.root).unwrap_or(&held).display().to_string();
            return Err(Error::Unable(format!("another call uses the lab's cache (it holds {held})")));
        }
        clear(&self.root)
    }
}

/// A folder that lives as long as the value.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the folders whose processes are gone: nobody holds their locks.
fn sweep(runs: &Path) -> Result<(), Error> {
    let forgotten = files_in(runs).into_iter().filter(|run| !is_held(&run.join("lock")));
    forgotten.into_iter().try_for_each(|run| clear(&run))
}

/// What is in a folder; nothing, if it is not there.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Whether somebody holds a lock; a file that is not there nobody holds.
fn is_held(lock: &Path) -> bool {
    File::open(lock).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn clear(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// A name without folders, for locks and unfinished items.
fn flat(name: &str) -> String {
    name.replace('/', "_")
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn failed() -> Error {
        Error::Unable("broken".to_owned())
    }

    #[test]
    fn an_item_that_broke_off_is_not_there_and_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("lab"));
        let broken = cache.make("kernels/6.12", |path| {
            fs::write(path.join("half"), "x").unwrap();
            Err(failed())
        });
        assert!(broken.is_err() && !cache.has("kernels/6.12"));
        // A killed process leaves this behind.
        let partial = folder.path().join("lab/partial/kernels_6.12");
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join("half"), "x").unwrap();
        let made = cache.make("kernels/6.12", |path| {
            assert_eq!(fs::read_dir(path).unwrap().count(), 0);
            fs::write(path.join("whole"), "x").map_err(Error::file("write", path))
        });
        assert!(made.unwrap().join("whole").is_file());
        cache.make("kernels/6.12", |_| panic!("it is there")).unwrap();
        let running = cache.scratch().unwrap();
        assert!(cache.clean().unwrap_err().to_string().contains("run/"));
        drop(running);
        let fetching = cache.lock("kernels/6.1").unwrap();
        assert!(cache.clean().unwrap_err().to_string().contains("kernels_6.1"));
        drop(fetching);
        cache.clean().unwrap();
        assert!(!cache.has("kernels/6.12"));
    }

    #[test]
    fn of_many_calls_at_once_one_makes_the_item() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned());
        let made = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let item = cache.make("a", |path| {
                        made.fetch_add(1, Ordering::SeqCst);
                        fs::write(path.join("file"), "x").map_err(Error::file("write", path))
                    });
                    assert!(item.unwrap().join("file").is_file());
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn folders_of_gone_processes_are_cleared_and_those_in_use_stay() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned());
        let forgotten = folder.path().join("run/1-0");
        fs::create_dir_all(&forgotten).unwrap();
        fs::write(forgotten.join("lock"), "").unwrap();
        let first = cache.scratch().unwrap();
        let second = cache.scratch().unwrap();
        assert!(!forgotten.exists() && first.path().is_dir() && second.path() != first.path());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().is_dir());
        assert_ne!(cache.scratch().unwrap().path(), path, "no path serves twice");
    }
}
