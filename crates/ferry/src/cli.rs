//! The command line: verbs, flags and their help.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ferry_migrate::Address;
use ferry_migrate::oneway::Place;
use ferry_protocol::GuestId;
use ferry_vmm::{
    Backend, DEFAULT_COMMAND_LINE, DirtyKind, GuestConfig, GuestTime, HugePages, Level, Payload,
};

use crate::size::{Millis, Seconds, Size};

mod bench;
mod devices;
mod importing;
mod looking;
mod settling;
mod timing;

pub(crate) use bench::{Bench, BenchArgs, BenchJournalArgs, BenchPrecopyArgs, Peer};
pub(crate) use devices::{DeviceArgs, PlaceArgs, absolute};
pub(crate) use importing::{ImportArgs, ImportFormat};
pub(crate) use looking::{CheckArgs, InspectArgs, ProbeArgs, StatusArgs};
pub(crate) use settling::{RecoverArgs, StateArgs};
pub(crate) use timing::TimeArgs;

/// Moves running KVM guests between hosts that are not alike.
#[derive(Debug, Parser)]
#[command(name = "ferry", version, about, disable_help_subcommand = true)]
#[command(after_help = "Exit status: 0 done, 1 something is not what it should be, 2 wrong usage, \
    3 refused as incompatible, 4 failed and the source still runs the guest, 5 cancelled, \
    6 nobody knows who runs the guest, 7 timed out.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    /// How to print: for people, or as one JSON document.
    #[arg(long, value_enum, default_value = "text", global = true)]
    pub(crate) output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Start a guest and move it, while it runs, into a second process of this machine.
    Demo(DemoArgs),
    /// Run a guest until it is moved away or ended.
    Run(RunArgs),
    /// Wait for a guest, then run it.
    Receive(ReceiveArgs),
    /// Move a running guest of this machine to where `ferry receive` waits.
    Migrate(MigrateArgs),
    /// Show the guests of this machine, or one of them.
    Status(StatusArgs),
    /// Measure, beside the limit of the same machine in the same run.
    Bench(BenchArgs),
    /// Follow the migration of a guest to its end.
    Watch(OneGuestArgs),
    /// End the migration of a guest before custody passes; the guest runs on here.
    Cancel(OneGuestArgs),
    /// Find out what became of a guest whose move the two sides could not settle, and decide it.
    Recover(RecoverArgs),
    /// Write down what this host's KVM can offer a guest: its profile.
    Probe(ProbeArgs),
    /// Turn another tool's dump of a host into a profile.
    Import(ImportArgs),
    /// Say whether a guest could be moved to a host, with every reason.
    Check(CheckArgs),
    /// Show what a file holds: a profile, a contract, or a guest that `migrate --to file:PATH` wrote.
    /// Nothing is taken from it.
    Inspect(InspectArgs),
    /// Print the completions of a shell.
    Completions(CompletionsArgs),
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct GuestArgs {
    /// The guest's memory: a number with K, M, G or T; a bare number is bytes.
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub(crate) memory: Size,
    /// How many vCPUs it has; the simulated machine has 1.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u32,
    /// What it does: idle (waits), churn (writes its working set again and again), clock (time never goes
    /// back nor leaps), features (CPUID, on arm64 the identification registers, show what they showed at birth), exercise (x86-64:
    /// uses an instruction of every feature), msrs (x86-64: RDMSR gives what it gave at birth), ticks (counts interrupts); or a file, an ELF64 executable or a flat binary.
    #[arg(long, value_name = "NAME|FILE", default_value = "churn")]
    pub(crate) payload: PayloadName,
    /// The largest step of time that clock allows.
    #[arg(long, value_name = "MS", default_value = "5000")]
    pub(crate) jump_limit: Millis,
    /// The privilege level at which a file's program begins on x86-64: 0 or 3; on arm64 it is EL1.
    #[arg(long, value_name = "0|3", default_value = "3", value_parser = level)]
    pub(crate) image_level: Level,
    /// Bytes that churn writes each second.
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub(crate) rate: Size,
    /// Bytes that churn writes again and again; by default a quarter of the memory, at most 128M.
    #[arg(long, value_name = "SIZE")]
    pub(crate) working_set: Option<Size>,
    /// What it runs on: KVM, a simulated machine, or KVM where it can be had.
    #[arg(long, value_name = "auto|kvm|sim", default_value = "auto")]
    pub(crate) backend: Backend,
    /// In which pages of this host its memory lies: reserved ones of a size, transparent huge pages, or
    /// (auto) the largest of 2M, transparent and ordinary ones that can be had.
    #[arg(long, value_name = "auto|off|2M|1G|transparent", default_value = "auto")]
    pub(crate) huge_pages: HugePages,
    #[command(flatten)]
    pub(crate) dirty: DirtyArgs,
    /// How much of the memory lies below the hole under 4 GiB; a hook of tests.
    #[arg(long, value_name = "SIZE", hide = true)]
    pub(crate) low_memory: Option<Size>,
}

#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct DirtyArgs {
    /// How KVM notes the pages that the guest writes: log (a bitmap, which loses nothing however fast the
    /// guest writes) or ring (a ring for each vCPU, which costs by the pages written and not by the memory).
    #[arg(long = "dirty", value_name = "log|ring", default_value = "log")]
    pub(crate) kind: DirtyKind,
}

/// A built-in payload's name, or a file; a file named like a payload is given with its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PayloadName {
    Idle,
    Churn,
    Clock,
    Features,
    Exercise,
    Msrs,
    Ticks,
    File(PathBuf),
}

fn level(text: &str) -> Result<Level, String> {
    match text {
        "0" => Ok(Level::Kernel),
        "3" => Ok(Level::User),
        _ => Err("a program begins at level 0 or 3".to_owned()),
    }
}

impl FromStr for PayloadName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known =
            [Self::Idle, Self::Churn, Self::Clock, Self::Features, Self::Exercise, Self::Msrs, Self::Ticks];
        if let Some(payload) = known.into_iter().find(|payload| payload.to_string() == text) {
            return Ok(payload);
        }
        let file = PathBuf::from(text);
        if file.is_file() {
            return Ok(Self::File(file));
        }
        Err("neither a payload nor a file: use idle, churn, clock, features, exercise, msrs or ticks, or an image's path"
            .to_owned())
    }
}

impl fmt::Display for PayloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Churn => "churn",
            Self::Clock => "clock",
            Self::Features => "features",
            Self::Exercise => "exercise",
            Self::Msrs => "msrs",
            Self::Ticks => "ticks",
            Self::File(path) => return write!(f, "{}", path.display()),
        })
    }
}

impl GuestArgs {
    /// The most that a working set has by default.
    const WORKING_SET_BYTES: u64 = 128 << 20;

    pub(crate) fn config(&self) -> GuestConfig {
        let quarter = (self.memory.0 / 4 / 4096 * 4096).min(Self::WORKING_SET_BYTES);
        let payload = match &self.payload {
            PayloadName::Idle => Payload::Idle,
            PayloadName::Clock => Payload::Clock {
                jump_limit_ms: u32::try_from(self.jump_limit.0.as_millis()).unwrap_or(u32::MAX),
            },
            PayloadName::Features => Payload::Features,
            PayloadName::Exercise => Payload::Exercise,
            PayloadName::Msrs => Payload::Msrs,
            PayloadName::Ticks => Payload::Ticks,
            PayloadName::File(_) => Payload::Image { level: self.image_level },
            PayloadName::Churn => Payload::Churn {
                rate_bytes_per_second: self.rate.0,
                working_set_bytes: self.working_set.map_or(quarter, |size| size.0),
            },
        };
        let low_bytes = self.low_memory.map(|size| size.0);
        GuestConfig { memory_bytes: self.memory.0, cpus: self.cpus, payload, low_bytes }
    }
}

/// A Linux kernel instead of a payload.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct KernelArgs {
    /// Boot this Linux kernel: on x86-64 a bzImage or a `vmlinux` with a PVH entry, on arm64 an uncompressed `Image`.
    /// It is read again when the guest restarts. Needs KVM.
    #[arg(long, value_name = "FILE", conflicts_with = "payload")]
    pub(crate) kernel: Option<PathBuf>,
    /// The kernel's initramfs.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initramfs: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = DEFAULT_COMMAND_LINE)]
    pub(crate) cmdline: String,
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SerialArgs {
    /// Append what the guest writes to its serial port to this file; - is standard output. By
    /// default it goes nowhere.
    #[arg(long, value_name = "FILE|-")]
    pub(crate) serial: Option<PathBuf>,
    /// Make this terminal the guest's serial console: what is typed goes to it. Ctrl-A x ends the guest, Ctrl-A
    /// Ctrl-A types Ctrl-A.
    #[arg(long)]
    pub(crate) console: bool,
}

/// Hooks of tests and benchmarks; they change nothing of the protocol.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TestArgs {
    /// Keep a journal of vCPU runs in this file.
    #[arg(long, value_name = "FILE", hide = true)]
    pub(crate) run_log: Option<PathBuf>,
    /// Stop this process (SIGSTOP) when a migration enters this phase.
    #[arg(long, value_name = "PHASE", hide = true)]
    pub(crate) stop_at: Option<String>,
    /// Make every wait of a migration last this many milliseconds.
    #[arg(long, value_name = "MS", hide = true)]
    pub(crate) wait_limit: Option<Millis>,
    /// Fill the guest's memory with random bytes before it starts.
    #[arg(long, hide = true)]
    pub(crate) fill_random: bool,
    /// Keep the journal in memory: it is forgotten with this process.
    #[arg(long, hide = true)]
    pub(crate) volatile_journal: bool,
    /// End when the process that started this one ends.
    #[arg(long, hide = true)]
    pub(crate) die_with_parent: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry demo
  ferry demo --memory 4G --lanes 2 --moves 3 --output json")]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    /// How often the guest is moved, each time into a new process.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) moves: u32,
    /// How many connections carry pages, 1 to 16.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) lanes: u8,
    /// Hash all memory on both sides while the guest is paused; adds to the downtime.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Pause the guest when the rest is predicted to take at most this long.
    #[arg(long, value_name = "MS", default_value = "30")]
    pub(crate) downtime_limit: Millis,
    #[command(flatten)]
    pub(crate) time: TimeArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry run --id web-1 --memory 1G
  ferry run --payload idle --backend sim
  ferry run --id deb-1 --kernel /boot/vmlinuz --initramfs /boot/initrd.img --serial -")]
pub(crate) struct RunArgs {
    /// The guest's name; by default one is made up.
    #[arg(long)]
    pub(crate) id: Option<GuestId>,
    /// What it may see of its processors: a contract, or a profile or a host of the catalogue for all that that
    /// host offers; by default all that this host offers. Needs KVM.
    #[arg(long, value_name = "FILE")]
    pub(crate) contract: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    #[command(flatten)]
    pub(crate) kernel: KernelArgs,
    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
    /// A lock file that only one host may hold for the guest, on storage that the hosts share; made
    /// if it is not there. Give it once for each lock: the target takes them before the guest moves.
    #[arg(long, value_name = "FILE")]
    pub(crate) lock: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) serial: SerialArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) test: TestArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry receive --listen 127.0.0.1:7000
  ferry receive --listen unix:/run/b.sock --id web-1
  ferry receive --listen 127.0.0.1:7000 --disk 0=/disks/deb-1.img --net 0=tap3
                --kernel /boot/vmlinuz --initramfs /boot/initrd.img
  ferry receive --from file:/backup/web-1.ferry
  ferry receive --from file:/backup/web-1.ferry --clone --id web-2
  ferry receive --from fd:0 < /run/pipe

The guest of a file is taken once: the file is marked before it runs. A copy (--clone) is a guest of its
own and leaves the file as it is.")]
pub(crate) struct ReceiveArgs {
    /// Where to wait: HOST:PORT on a loopback address (port 0: a free one), or unix:PATH.
    #[arg(long, value_name = "ADDR", required_unless_present = "from")]
    pub(crate) listen: Option<Address>,
    /// Take the guest from `file:PATH`, or from the open descriptor `fd:N`, instead of waiting for one.
    #[arg(long, value_name = "file:PATH|fd:N", value_parser = one_way, conflicts_with_all = ["listen", "insecure"])]
    pub(crate) from: Option<Place>,
    /// Run a copy of a file's guest under the name --id: the file keeps its custody.
    #[arg(long, requires_all = ["from", "id"])]
    pub(crate) clone: bool,
    /// Take only the guest of this name; with --clone the copy's own name.
    #[arg(long)]
    pub(crate) id: Option<GuestId>,
    /// Listen on an address that other machines can reach, though whoever reaches it can read and
    /// change the guest: there is no TLS yet.
    #[arg(long)]
    pub(crate) insecure: bool,
    /// What the guest will run on; it must be what it ran on before.
    #[arg(long, value_name = "auto|kvm|sim", default_value = "auto")]
    pub(crate) backend: Backend,
    /// In which pages of this host its memory will lie, whatever it lies in now; as with `ferry run`.
    #[arg(long, value_name = "auto|off|2M|1G|transparent", default_value = "auto")]
    pub(crate) huge_pages: HugePages,
    #[command(flatten)]
    pub(crate) dirty: DirtyArgs,
    /// What its clocks do about the pause, whatever `ferry migrate` was told: stops or catches-up.
    #[arg(long, value_name = "stops|catches-up")]
    pub(crate) guest_time: Option<GuestTime>,
    #[command(flatten)]
    pub(crate) places: PlaceArgs,
    #[command(flatten)]
    pub(crate) serial: SerialArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) test: TestArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry migrate web-1 --to 127.0.0.1:7000 --wait      to where `ferry receive` waits
  ferry migrate web-1 --to unix:/run/b.sock --lanes 4
  ferry migrate web-1 --to 127.0.0.1:7000 --copy-storage
                                                      with its disks, which the other host does not see
  ferry migrate web-1 --to file:/backup/web-1.ferry --wait
                                                      into a file; the guest ends here
  ferry migrate web-1 --to fd:4 --wait 4>&1 >report | ssh b ferry receive --from fd:0
                                                      through a pipe

A file or descriptor cannot answer: custody is in it, and the guest is gone from here once it was
written. Until then every failure leaves the guest running.")]
pub(crate) struct MigrateArgs {
    /// The guest's name.
    pub(crate) id: GuestId,
    /// Where `ferry receive` waits (HOST:PORT or unix:PATH), a new file (`file:PATH`), or a pipe or socket
    /// that is open here (`fd:N`).
    #[arg(long, value_name = "ADDR|file:PATH|fd:N")]
    pub(crate) to: Place,
    /// Pause the guest when the rest is predicted to take at most this long.
    #[arg(long, value_name = "MS", default_value = "30")]
    pub(crate) downtime_limit: Millis,
    /// Give up when custody has not passed after this many seconds.
    #[arg(long, value_name = "S", default_value = "600")]
    pub(crate) timeout: Seconds,
    /// Send at most so many bytes of pages a second while the guest runs.
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_bandwidth: Option<Size>,
    /// Hash all memory on both sides while the guest is paused; adds to the downtime.
    #[arg(long)]
    pub(crate) verify: bool,
    /// How many connections carry pages, 1 to 16.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) lanes: u8,
    #[command(flatten)]
    pub(crate) time: TimeArgs,
    /// Send the images of the guest's disks, too; without it the target must find them on storage that both hosts see.
    #[arg(long)]
    pub(crate) copy_storage: bool,
    /// Stay until it is over; show progress and the report.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry completions bash > ~/.local/share/bash-completion/completions/ferry
  ferry completions zsh > \"${fpath[1]}/_ferry\"
  ferry completions fish > ~/.config/fish/completions/ferry.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry watch web-1
  ferry cancel web-1")]
pub(crate) struct OneGuestArgs {
    /// The guest's name.
    pub(crate) id: GuestId,
}

fn one_way(text: &str) -> Result<Place, String> {
    match text.parse::<Place>() {
        Ok(Place::Link(_)) => Err("use file:PATH or fd:N; to wait on an address use --listen".into()),
        other => other.map_err(|error| error.to_string()),
    }
}

impl TestArgs {
    /// The same waits for every name, or the defaults.
    pub(crate) fn timeouts(&self) -> ferry_protocol::Timeouts {
        let defaults = ferry_protocol::Timeouts::default();
        let Some(Millis(all)) = self.wait_limit else { return defaults };
        ferry_protocol::Timeouts {
            connect: all,
            hello: all,
            offer: all,
            verdict: all,
            build: all,
            silence: all,
            state: all,
            paused: all * 2,
            ready: all,
            custody: all,
            running: all,
            ask: all,
            ask_interval: all.min(Duration::from_millis(100)),
            settle: all,
            release: all,
            total: defaults.total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_payload_is_a_name_or_a_file() {
        let parse = |payload: &str| Cli::try_parse_from(["ferry", "run", "--payload", payload]);
        let Verb::Run(args) = parse("ticks").unwrap().verb else { panic!() };
        assert_eq!(args.guest.config().payload, Payload::Ticks);
        let Verb::Run(args) = parse(file!().trim_start_matches("crates/ferry/")).unwrap().verb else {
            panic!()
        };
        assert_eq!(args.guest.config().payload, Payload::Image { level: Level::User });
        let error = parse("tocks").unwrap_err().to_string();
        assert!(error.contains("neither a payload nor a file"), "{error}");
    }

    #[test]
    fn the_default_working_set_fits_a_small_guest() {
        let cli = Cli::try_parse_from(["ferry", "run", "--memory", "8M"]).unwrap();
        let Verb::Run(args) = cli.verb else { panic!("{cli:?}") };
        assert!(args.guest.config().validate().is_ok());
    }
}
