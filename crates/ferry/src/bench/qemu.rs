//! QEMU beside a migration of Ferry: a guest of the same size, full of random bytes, moved between two
//! processes over as many multifd channels as there are lanes, without a bandwidth limit.
//!
//! The guest's memory is a memfd of this process, filled once, which each source maps; both sides' memory
//! is provided and mapped before the migration, as Ferry's and the raw loop's is. Its firmware is one loop that waits:
//! the guest runs, and writes nothing. Facts: QEMU's docs/interop/qemu-qmp-ref, "Migration"; `total-time`,
//! `setup-time` and `downtime` of `query-migrate` are whole milliseconds.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

use super::qmp::Qemu;
use crate::noise;

/// The program that is looked for in `PATH`.
const PROGRAM: &str = "qemu-system-x86_64";

/// What is as good as no limit of bandwidth, in bytes a second.
const NO_LIMIT: u64 = 1 << 40;

/// A firmware's size, and where in it the processor begins after a reset.
const FIRMWARE_BYTES: usize = 64 << 10;
const RESET_VECTOR: usize = FIRMWARE_BYTES - 16;

/// `cli; again: hlt; jmp again`
const WAIT_FOR_EVER: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

/// Bytes that are filled at once.
const CHUNK_BYTES: usize = 1 << 20;

/// A QEMU to measure, and its guest.
#[derive(Debug)]
pub(super) struct Peer {
    program: PathBuf,
    pub(super) version: String,
    memory: File,
    firmware: File,
    bytes: usize,
    lanes: u8,
    downtime_limit: Duration,
}

/// One migration's figures.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(super) struct Figures {
    /// Everything sent over the time without setup.
    pub(super) throughput_bytes_per_second: u64,
    pub(super) downtime_ms: u64,
    pub(super) total_ms: u64,
    pub(super) setup_ms: u64,
    pub(super) transferred_bytes: u64,
    /// Processor time of both processes.
    pub(super) cpu_ms: u64,
}

impl Peer {
    /// Finds the program and fills the guest's memory. An error is the sentence that says why there is nothing
    /// to measure.
    pub(super) fn find(
        program: Option<&Path>,
        bytes: usize,
        lanes: u8,
        downtime_limit: Duration,
    ) -> Result<Self, String> {
        let program = program.map_or_else(in_path, |program| Ok(program.to_owned()))?;
        let version = version(&program)?;
        let failed = |error: std::io::Error| format!("QEMU's guest has no memory: {error}");
        let memory = random_file(bytes).map_err(failed)?;
        let firmware = firmware().map_err(failed)?;
        Ok(Self { program, version, memory, firmware, bytes, lanes, downtime_limit })
    }

    /// Moves a guest with the random memory from one new process to another.
    pub(super) fn moved(&self) -> Result<Figures, String> {
        let provided = format!("memory-backend-memfd,id=ram,size={},share=on,prealloc=on", self.bytes);
        let mut target = self.start(&provided, &["-incoming", "defer"])?;
        let file = own_path(&self.memory);
        let filled =
            format!("memory-backend-file,id=ram,size={},mem-path={file},share=on,prealloc=on", self.bytes);
        let mut source = self.start(&filled, &[])?;
        let began = [source.cpu_time(), target.cpu_time()];
        target.ask("migrate-incoming", &json!({ "uri": "tcp:127.0.0.1:0" }))?;
        let waiting = target.ask("query-migrate", &json!({}))?;
        let port = waiting["socket-address"][0]["port"].as_str();
        let port = port.ok_or("QEMU does not say where it waits: use QEMU 4.0 or newer")?.to_owned();
        source.ask("migrate", &json!({ "uri": format!("tcp:127.0.0.1:{port}") }))?;
        source.await_migration()?;
        target.await_migration()?;
        let ended = [source.cpu_time(), target.cpu_time()];
        let used = began.into_iter().zip(ended).map(|(began, ended)| Some(ended?.saturating_sub(began?)));
        let cpu = used.flatten().fold(Duration::ZERO, |sum, side| sum + side);
        figures(&source.ask("query-migrate", &json!({}))?, cpu)
    }

    fn start(&self, memory: &str, more: &[&str]) -> Result<Qemu, String> {
        let firmware = own_path(&self.firmware);
        let size = format!("{}B", self.bytes);
        let words = [
            &["-machine", "pc,accel=kvm:tcg,memory-backend=ram", "-cpu", "max"],
            &["-object", memory, "-m", &size, "-bios", &firmware][..],
            more,
        ];
        let words: Vec<String> = words.concat().into_iter().map(str::to_owned).collect();
        let mut qemu = Qemu::start(&self.program, &words)?;
        let on = |name| json!({ "capability": name, "state": true });
        let capabilities = json!({ "capabilities": [on("multifd"), on("events")] });
        qemu.ask("migrate-set-capabilities", &capabilities)?;
        let limit = u64::try_from(self.downtime_limit.as_millis()).unwrap_or(u64::MAX).max(1);
        let parameters =
            json!({ "multifd-channels": self.lanes, "max-bandwidth": NO_LIMIT, "downtime-limit": limit });
        qemu.ask("migrate-set-parameters", &parameters)?;
        Ok(qemu)
    }
}

/// What `query-migrate` says of a migration that is over.
fn figures(said: &Value, cpu: Duration) -> Result<Figures, String> {
    let number = |value: &Value, name: &str| {
        value[name].as_u64().ok_or_else(|| format!("QEMU does not say `{name}` of its migration"))
    };
    let (total_ms, setup_ms) = (number(said, "total-time")?, number(said, "setup-time")?);
    let transferred_bytes = number(&said["ram"], "transferred")?;
    let during = u128::from(total_ms.saturating_sub(setup_ms).max(1));
    let rate = u128::from(transferred_bytes) * 1000 / during;
    Ok(Figures {
        throughput_bytes_per_second: u64::try_from(rate).unwrap_or(u64::MAX),
        downtime_ms: number(said, "downtime")?,
        total_ms,
        setup_ms,
        transferred_bytes,
        cpu_ms: u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX),
    })
}

fn in_path() -> Result<PathBuf, String> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&folders).map(|folder| folder.join(PROGRAM)).find(|file| file.is_file());
    found.ok_or_else(|| format!("{PROGRAM} is not in PATH: install QEMU, or name it with --peer-binary"))
}

/// The version that the program tells of itself.
fn version(program: &Path) -> Result<String, String> {
    let name = program.display();
    let told = Command::new(program).arg("--version").output();
    let told = told.map_err(|error| format!("{name} cannot be started: {error}"))?;
    let text = String::from_utf8_lossy(&told.stdout);
    let version = text.strip_prefix("QEMU emulator version ").and_then(|rest| rest.split_whitespace().next());
    version.map(str::to_owned).ok_or_else(|| format!("{name} does not say that it is a QEMU emulator"))
}

/// Where another process finds a file that this one has open.
fn own_path(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

fn memfd(name: &str) -> std::io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}

fn random_file(bytes: usize) -> std::io::Result<File> {
    let mut file = memfd("qemu-memory")?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut state = 0x2545_f491_4f6c_dd1d;
    let mut left = bytes;
    while left > 0 {
        let here = chunk.get_mut(..left.min(CHUNK_BYTES)).unwrap_or_default();
        noise::fill(here, &mut state);
        file.write_all(here)?;
        left -= here.len();
    }
    Ok(file)
}

fn firmware() -> std::io::Result<File> {
    let mut bytes = vec![0; FIRMWARE_BYTES];
    if let Some(place) = bytes.get_mut(RESET_VECTOR..).and_then(|rest| rest.first_chunk_mut()) {
        *place = WAIT_FOR_EVER;
    }
    let mut file = memfd("qemu-firmware")?;
    file.write_all(&bytes)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_what_is_missing_is_named() {
        let mut said = json!({
            "status": "completed", "total-time": 520, "setup-time": 20, "downtime": 31,
            "ram": { "transferred": 1_000_000_000_u64, "normal-bytes": 7 },
        });
        let read = figures(&said, Duration::from_millis(900)).unwrap();
        assert_eq!(read.throughput_bytes_per_second, 2_000_000_000);
        assert_eq!((read.downtime_ms, read.total_ms, read.cpu_ms), (31, 520, 900));
        said["ram"] = json!({});
        let error = figures(&said, Duration::ZERO).unwrap_err();
        assert_eq!(error, "QEMU does not say `transferred` of its migration");
    }

    #[test]
    fn a_program_that_is_no_qemu_is_named() {
        let find =
            |path: &str| Peer::find(Some(Path::new(path)), 4096, 1, Duration::from_millis(1)).unwrap_err();
        assert!(find("/no/such/qemu").starts_with("/no/such/qemu cannot be started: "));
        assert_eq!(find("/bin/true"), "/bin/true does not say that it is a QEMU emulator");
    }

    #[test]
    fn the_memory_is_full_and_the_firmware_waits() {
        use std::os::unix::fs::FileExt;
        let file = random_file(CHUNK_BYTES + 8).unwrap();
        assert_eq!(file.metadata().unwrap().len(), CHUNK_BYTES as u64 + 8);
        let mut last = [0; 8];
        file.read_exact_at(&mut last, CHUNK_BYTES as u64).unwrap();
        assert_ne!(last, [0; 8]);
        let mut first = [0; 4];
        firmware().unwrap().read_exact_at(&mut first, 0xfff0).unwrap();
        assert_eq!(first, WAIT_FOR_EVER);
    }
}
