//! The mark that the custody of a file was taken: a message behind it, on the disk before the guest
//! runs, written under an exclusive lock (flock(2)).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime};

use ferry_protocol::InstanceId;
use ferry_protocol::frame::{FrameKind, encode};
use ferry_protocol::message::{Message, OfEpoch, Taken, ToTarget};

/// The longest host name that is noted, in bytes.
const MAX_HOST_BYTES: usize = 64;

/// This host's name, for people: what `/proc/sys/kernel/hostname` says (proc(5)).
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "unknown".into() } else { name.chars().take(MAX_HOST_BYTES / 4).collect() }
}

pub(super) fn mark(of: OfEpoch, instance: InstanceId) -> Taken {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Taken { of, instance, pid: std::process::id(), host: host_name(), unix_seconds: now.as_secs() }
}

/// Writes the mark at the file's end and waits until it lasts.
pub(super) fn write(file: &File, at: u64, taken: Taken) -> io::Result<()> {
    let frame = encode(FrameKind::ToTarget, &ToTarget::Taken(taken).to_bytes());
    file.write_all_at(&frame, at)?;
    file.sync_all()
}

/// Takes it away again: no vCPU ran.
pub(super) fn remove(file: &File, at: u64) -> io::Result<()> {
    file.set_len(at)?;
    file.sync_all()
}
