//! The processors of an arm64 host, as the kernel shows them (Documentation/ABI/testing/sysfs-devices-system-cpu,
//! `regs/identification`).

use std::fs;
use std::path::{Path, PathBuf};

use ferry_contract::Arm64Processor;

use crate::probe::ProbeError;

/// Where the kernel shows them.
const FOLDER: &str = "/sys/devices/system/cpu";

/// Each identity that occurs, once, ascending: a host may have processors of several kinds.
pub(super) fn all() -> Result<Vec<Arm64Processor>, ProbeError> {
    of(Path::new(FOLDER))
}

fn of(folder: &Path) -> Result<Vec<Arm64Processor>, ProbeError> {
    let unread = |path: PathBuf| move |source| ProbeError::File { path, source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(unread(folder.to_owned()))? {
        let path = entry.map_err(unread(folder.to_owned()))?.path();
        let number = |name: &str| {
            let text = fs::read_to_string(path.join("regs/identification").join(name)).ok()?;
            u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
        };
        // Other entries have no such file; neither has a processor that is offline.
        if let Some(midr) = number("midr_el1") {
            found.push(Arm64Processor { midr, revidr: number("revidr_el1") });
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}
