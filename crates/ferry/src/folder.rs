//! The folder of control sockets: `$XDG_RUNTIME_DIR/ferry`, else `/run/ferry` for root, else a folder
//! of the user's own under the temporary folder.
//!
//! Whoever can write there can pose as a guest, and whoever can connect can move one: the folder has
//! mode 0700 and must belong to the user.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::CliError;

/// The folder, made if it is not there.
pub(crate) fn open() -> Result<PathBuf, CliError> {
    let path = place(
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
        rustix::process::geteuid().as_raw(),
        &std::env::temp_dir(),
    );
    prepare(&path)?;
    Ok(path)
}

fn place(runtime: Option<PathBuf>, user: u32, temporary: &Path) -> PathBuf {
    match runtime {
        Some(folder) if folder.is_absolute() => folder.join("ferry"),
        _ if user == 0 => PathBuf::from("/run/ferry"),
        _ => temporary.join(format!("ferry-{user}")),
    }
}

fn prepare(path: &Path) -> Result<(), CliError> {
    let shown = path.display();
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(CliError::plain(format!(
                "the folder of control sockets {shown} cannot be made: {error}; set XDG_RUNTIME_DIR to a folder of yours"
            )));
        }
    }
    let meta = std::fs::symlink_metadata(path)
        .map_err(|error| CliError::plain(format!("the folder {shown} cannot be read: {error}")))?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(CliError::plain(format!(
            "{shown} is not a folder of yours: remove it, or set XDG_RUNTIME_DIR to a folder of yours"
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
    fn others_are_shut_out_and_links_refused() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("ferry");
        prepare(&folder).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        prepare(&folder).unwrap();
        assert_eq!(std::fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let link = outer.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(prepare(&link).unwrap_err().message.contains("not a folder of yours"));
    }
}
