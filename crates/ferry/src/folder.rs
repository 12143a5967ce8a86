//! The folders of the program. That of control sockets: `$XDG_RUNTIME_DIR/ferry`, else `/run/ferry` for root, else a folder
//! of the user's own under the temporary folder.
//!
//! Whoever can write there can pose as a guest, and whoever can connect can move one: the folder has
//! mode 0700 and must belong to the user. So must that of journals, for whoever can write there can make
//! a guest run twice: `--state-dir`, else `$FERRY_STATE_DIR`, else `/var/lib/ferry` for root, else
//! `$XDG_STATE_HOME/ferry`, else `~/.local/state/ferry`.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ferry_migrate::journal::StateFolder;

use crate::cli::StateArgs;
use crate::error::CliError;

/// The folder, made if it is not there.
pub(crate) fn open() -> Result<PathBuf, CliError> {
    let path = place(
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
        rustix::process::geteuid().as_raw(),
        &std::env::temp_dir(),
    );
    prepare(&path, &SOCKETS)?;
    Ok(path)
}

/// What a folder is for, and what helps if it cannot be used.
struct Purpose {
    name: &'static str,
    remedy: &'static str,
}

const SOCKETS: Purpose = Purpose { name: "control sockets", remedy: "set XDG_RUNTIME_DIR" };
const JOURNALS: Purpose = Purpose { name: "journals", remedy: "set --state-dir or FERRY_STATE_DIR" };

/// The folder of journals, made if it is not there.
pub(crate) fn state(args: &StateArgs) -> Result<StateFolder, CliError> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let asked = args.state_dir.clone().or_else(|| variable("FERRY_STATE_DIR"));
    let user = rustix::process::geteuid().as_raw();
    let path = asked.or_else(|| state_place(variable("XDG_STATE_HOME"), variable("HOME"), user)).ok_or_else(
        || {
            CliError::plain(
                "there is no place for journals, since HOME is not set: set --state-dir to a folder of yours",
            )
        },
    )?;
    let path = std::path::absolute(&path).map_err(|error| CliError::of(&error))?;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| unmade(&path, &JOURNALS, &error))?;
    }
    prepare(&path, &JOURNALS)?;
    StateFolder::open(&path).map_err(|error| CliError::of(&error))
}

fn state_place(state_home: Option<PathBuf>, home: Option<PathBuf>, user: u32) -> Option<PathBuf> {
    let folder = |path: PathBuf| path.is_absolute().then_some(path);
    if user == 0 {
        return Some(PathBuf::from("/var/lib/ferry"));
    }
    let home = || home.and_then(folder).map(|home| home.join(".local/state"));
    Some(state_home.and_then(folder).or_else(home)?.join("ferry"))
}

fn unmade(path: &Path, purpose: &Purpose, error: &std::io::Error) -> CliError {
    let (shown, Purpose { name, remedy }) = (path.display(), purpose);
    CliError::plain(format!(
        "the folder of {name} {shown} cannot be made: {error}; {remedy} to a folder of yours"
    ))
}

fn place(runtime: Option<PathBuf>, user: u32, temporary: &Path) -> PathBuf {
    match runtime {
        Some(folder) if folder.is_absolute() => folder.join("ferry"),
        _ if user == 0 => PathBuf::from("/run/ferry"),
        _ => temporary.join(format!("ferry-{user}")),
    }
}

fn prepare(path: &Path, purpose: &Purpose) -> Result<(), CliError> {
    let shown = path.display();
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unmade(path, purpose, &error)),
    }
    let meta = std::fs::symlink_metadata(path)
        .map_err(|error| CliError::plain(format!("the folder {shown} cannot be read: {error}")))?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(CliError::plain(format!(
            "{shown} is not a folder of yours: remove it, or {} to a folder of yours",
            purpose.remedy
        )));
    }
    if meta.mode() & 0o777 != 0o700 {
        std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(|error| {
            CliError::plain(format!("the folder {shown} cannot be closed to others: {error}"))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_where_the_documents_say() {
        let temporary = Path::new("/t");
        let runtime = || Some(PathBuf::from("/run/user/7"));
        assert_eq!(place(runtime(), 7, temporary), Path::new("/run/user/7/ferry"));
        assert_eq!(place(runtime(), 0, temporary), Path::new("/run/user/7/ferry"));
        assert_eq!(place(None, 0, temporary), Path::new("/run/ferry"));
        assert_eq!(place(None, 7, temporary), Path::new("/t/ferry-7"));
        assert_eq!(place(Some("relative".into()), 7, temporary), Path::new("/t/ferry-7"));
    }

    #[test]
    fn journals_are_where_the_documents_say() {
        let (state, home) = (|| Some(PathBuf::from("/h/state")), || Some(PathBuf::from("/h")));
        let place = |state, home, user| state_place(state, home, user).unwrap();
        assert_eq!(place(state(), home(), 0), Path::new("/var/lib/ferry"));
        assert_eq!(place(state(), home(), 7), Path::new("/h/state/ferry"));
        assert_eq!(place(None, home(), 7), Path::new("/h/.local/state/ferry"));
        assert_eq!(state_place(Some("relative".into()), None, 7), None);
    }

    #[test]
    fn others_are_shut_out_and_links_refused() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("ferry");
        prepare(&folder, &SOCKETS).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        prepare(&folder, &SOCKETS).unwrap();
        assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let link = outer.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(prepare(&link, &JOURNALS).unwrap_err().message.contains("not a folder of yours"));
    }
}
