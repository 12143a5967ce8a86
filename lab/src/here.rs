//! This machine itself as two hosts, with its own `/dev/kvm`: namespaces instead of an emulator.
//!
//! Both hosts are in a user namespace and a network namespace that `unshare` (util-linux) makes for the first and `nsenter` enters for the
//! other: a bridge with both addresses, and taps for the guests of each. Each has processes, mounts and a root of its own, with the
//! content of an emulated host's. It takes no privilege (`user_namespaces(7)`). A pid namespace ends with its first process, so nothing
//! of a host outlives its value. What goes on in there is in `here.sh`.

use std::fs::{self, OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::files::Way;
use crate::host::Architecture;
use crate::initramfs::STEPS;
use crate::lab::{Job, Lab, word};
use crate::machine::{Listener, Machine, Start};
use crate::pair::Pair;
use crate::process::{in_path, tied};

/// The first process; see there.
const INIT: &str = include_str!("here.sh");

/// A host of namespaces is there within this time, or it hangs. It takes less than a second.
const START_MAX: Duration = Duration::from_secs(60);

/// Does with busybox, in namespaces that end with it, what a host needs most: mounts, a bridge, a tap.
const TRIAL: &str =
    r#""$0" mount -t sysfs sys /sys && "$0" brctl addbr br0 && "$0" tunctl -t tap0 >/dev/null"#;

/// The namespaces of both hosts, with this user as root.
const SHARED: [&str; 3] = ["--user", "--map-root-user", "--net"];

/// The namespaces of each host, which end with the program.
const OWN: [&str; 4] = ["--mount", "--pid", "--fork", "--kill-child"];

/// The programs of this machine that make namespaces, and the lab's tools.
struct Tools {
    unshare: PathBuf,
    nsenter: PathBuf,
    busybox: PathBuf,
}

impl Lab {
    /// Makes two hosts of this machine, with its own KVM and a network between them as [`Lab::pair`] has it. The taps for the guests of
    /// a host are `${LAB_TAP}0` and `${LAB_TAP}1` in its scripts. Memory, and what KVM was loaded with, are this machine's, whatever
    /// the jobs say.
    ///
    /// # Errors
    /// [`Error::Unable`] if this machine cannot be a host, with the reason: no KVM, no taps, no namespaces for this user. Those
    /// of [`Lab::boot`].
    pub fn pair_here(&self, source: &Job, target: &Job) -> Result<Pair, Error> {
        let tools = self.tools()?;
        let mut first = self.start_here(&tools, 1, source, None)?;
        first.wait(Instant::now(), START_MAX)?;
        let mut second = self.start_here(&tools, 2, target, Some(first.process()))?;
        second.wait(Instant::now(), START_MAX)?;
        Ok(Pair::new(first, second, true, self.cache().scratch()?))
    }

    /// What makes hosts of this machine, once it has shown that it can.
    fn tools(&self) -> Result<Tools, Error> {
        let unable = |reason: String| Error::Unable(format!("this machine itself is no host: {reason}"));
        for device in ["/dev/kvm", "/dev/net/tun"] {
            let opened = OpenOptions::new().read(true).write(true).open(device);
            opened.map_err(|error| unable(format!("{device} cannot be opened ({error})")))?;
        }
        let program = |name: &str| {
            in_path(name).ok_or_else(|| unable(format!("it has no program `{name}` (install util-linux)")))
        };
        let (unshare, nsenter) = (program("unshare")?, program("nsenter")?);
        let busybox = self.busybox(Architecture::NATIVE);
        if !busybox.is_file() {
            let fetch = "`cargo xtask lab prepare --smoke` fetches it";
            return Err(unable(format!("the lab's busybox is not there ({fetch})")));
        }
        let mut trial = tied(unshare.as_os_str());
        trial
            .args(SHARED)
            .args(OWN)
            .arg("--mount-proc")
            .arg(&busybox)
            .args(["sh", "-c", TRIAL])
            .arg(&busybox);
        let tried = trial.env_clear().stdin(Stdio::null()).output();
        let tried =
            tried.map_err(|error| unable(format!("{} does not start ({error})", unshare.display())))?;
        if !tried.status.success() {
            let said = String::from_utf8_lossy(&tried.stderr);
            return Err(unable(format!(
                "this user gets no user namespace with mounts, a bridge and taps of its own there; the sysctl \
                 user.max_user_namespaces or a container may forbid it ({}: {})",
                tried.status,
                said.lines().last().unwrap_or("it said nothing")
            )));
        }
        Ok(Tools { unshare, nsenter, busybox })
    }

    /// Starts a host without waiting for it; `other` is the process of the first host of the pair, if this is the second.
    fn start_here(&self, tools: &Tools, number: u8, job: &Job, other: Option<u32>) -> Result<Machine, Error> {
        let scratch = self.cache().scratch()?;
        let (name, mark) = (format!("here/{number}"), word()?);
        let root = scratch.path().join("root");
        lay(&root, &name, &tools.busybox, &job.files)?;
        let mut command = match other {
            None => {
                let mut command = tied(tools.unshare.as_os_str());
                command.args(SHARED);
                command
            }
            Some(process) => {
                let mut command = tied(tools.nsenter.as_os_str());
                command.args(["--preserve-credentials", "--user", "--net", "--target", &process.to_string()]);
                command.arg(&tools.unshare);
                command
            }
        };
        command.args(OWN).arg(root.join("bin/busybox")).arg("sh").arg(root.join("lab/here"));
        command.arg(&root).args([&number.to_string(), &mark]).env_clear();
        let (out, out_there) = pipe()?;
        let (err, err_there) = pipe()?;
        command.stdin(out_there).stdout(err_there);
        let listeners = [Listener::Joined(out), Listener::Joined(err)];
        Start { name, command, listeners, mark, way: Way::Stream, scratch }.go()
    }
}

/// A stream: this end, and that of the host.
fn pipe() -> Result<(UnixStream, OwnedFd), Error> {
    let (here, there) = UnixStream::pair().map_err(Error::file("make", Path::new("a pair of sockets")))?;
    Ok((here, there.into()))
}

/// Makes the root of a host: busybox, the scripts, the job's files, all of them executable as in an emulated host.
fn lay(root: &Path, name: &str, busybox: &Path, files: &[(String, PathBuf)]) -> Result<(), Error> {
    let copied = files.iter().map(|(at, path)| (at.as_str(), path.as_path()));
    for (at, from) in std::iter::once(("bin/busybox", busybox)).chain(copied) {
        let path = made(root, at)?;
        fs::copy(from, &path).map_err(Error::file("copy to the host", from))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(Error::file("change", &path))?;
    }
    for (at, text) in [("lab/here", INIT), ("lab/steps", STEPS), ("lab/host", &format!("{name}\n"))] {
        let path = made(root, at)?;
        fs::write(&path, text).map_err(Error::file("write", &path))?;
    }
    Ok(())
}

/// The path of a file whose folder is there.
fn made(root: &Path, at: &str) -> Result<PathBuf, Error> {
    let path = root.join(at);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_has_its_scripts_and_the_files_of_the_job_which_can_be_executed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("busybox"), "its tools").unwrap();
        fs::write(at("program"), "the program").unwrap();
        fs::set_permissions(at("program"), Permissions::from_mode(0o400)).unwrap();
        let root = at("root");
        lay(&root, "here/1", &at("busybox"), &[("lab/bin/ferry".to_owned(), at("program"))]).unwrap();
        let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
        assert_eq!((read("bin/busybox"), read("lab/host")), ("its tools".into(), "here/1\n".into()));
        assert!(read("lab/here").contains(". /lab/steps") && read("lab/steps").contains("lab-end:"));
        let mode = fs::metadata(root.join("lab/bin/ferry")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        let missing = lay(&root, "here/1", &at("none"), &[]).unwrap_err().to_string();
        assert!(missing.starts_with("cannot copy to the host") && missing.ends_with("none"), "{missing}");
    }

    #[test]
    fn a_machine_that_is_no_host_says_why() {
        let folder = tempfile::tempdir().unwrap();
        // Whatever else it lacks, the lab's busybox is not in an empty cache.
        let lab = Lab::at(crate::cache::Cache::at(folder.path().to_owned()));
        let Err(Error::Unable(reason)) = lab.pair_here(&Job::new(), &Job::new()) else {
            panic!("it is told as what a machine cannot do");
        };
        assert!(reason.starts_with("this machine itself is no host: "), "{reason}");
        assert!(!lab.cache().root().join("run").exists(), "nothing was begun");
    }
}
