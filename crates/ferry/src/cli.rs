//! The command line: verbs, flags and their help.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ferry_migrate::Address;
use ferry_migrate::oneway::Place;
use ferry_protocol::GuestId;
use ferry_vmm::{Backend, GuestConfig, Payload};

use crate::size::{Millis, Seconds, Size};

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
    /// Follow the migration of a guest to its end.
    Watch(OneGuestArgs),
    /// End the migration of a guest before custody passes; the guest runs on here.
    Cancel(OneGuestArgs),
    /// Look into a file that `migrate --to file:PATH` wrote, without taking anything from it.
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
    /// How many vCPUs it has; so far 1.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u32,
    /// What it does: idle (waits) or churn (writes its working set again and again).
    #[arg(long, value_enum, default_value = "churn")]
    pub(crate) payload: PayloadName,
    /// Bytes that churn writes each second.
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub(crate) rate: Size,
    /// Bytes that churn writes again and again; by default a quarter of the memory, at most 128M.
    #[arg(long, value_name = "SIZE")]
    pub(crate) working_set: Option<Size>,
    /// What it runs on: KVM, a simulated machine, or KVM where it can be had.
    #[arg(long, value_name = "auto|kvm|sim", default_value = "auto")]
    pub(crate) backend: Backend,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PayloadName {
    Idle,
    Churn,
}

impl PayloadName {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Churn => "churn",
        }
    }
}

impl GuestArgs {
    /// The most that a working set has by default.
    const WORKING_SET_BYTES: u64 = 128 << 20;

    pub(crate) fn config(&self) -> GuestConfig {
        let quarter = (self.memory.0 / 4 / 4096 * 4096).min(Self::WORKING_SET_BYTES);
        let payload = match self.payload {
            PayloadName::Idle => Payload::Idle,
            PayloadName::Churn => Payload::Churn {
                rate_bytes_per_second: self.rate.0,
                working_set_bytes: self.working_set.map_or(quarter, |size| size.0),
            },
        };
        GuestConfig { memory_bytes: self.memory.0, cpus: self.cpus, payload }
    }
}

/// Hooks of tests; they change nothing that a guest or a peer sees.
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
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry run --id web-1 --memory 1G
  ferry run --payload idle --backend sim")]
pub(crate) struct RunArgs {
    /// The guest's name; by default one is made up.
    #[arg(long)]
    pub(crate) id: Option<GuestId>,
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    #[command(flatten)]
    pub(crate) test: TestArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry receive --listen 127.0.0.1:7000
  ferry receive --listen unix:/run/b.sock --id web-1
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
    #[command(flatten)]
    pub(crate) test: TestArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry migrate web-1 --to 127.0.0.1:7000 --wait      to where `ferry receive` waits
  ferry migrate web-1 --to unix:/run/b.sock --lanes 4
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
    /// Stay until it is over; show progress and the report.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry status
  ferry status web-1 --output json")]
pub(crate) struct StatusArgs {
    /// The guest's name; all guests, if none is given.
    pub(crate) id: Option<GuestId>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry inspect web-1.ferry
  ferry inspect web-1.ferry --output json | jq .custody")]
pub(crate) struct InspectArgs {
    /// The file.
    pub(crate) file: PathBuf,
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
    fn the_default_working_set_fits_a_small_guest() {
        let cli = Cli::try_parse_from(["ferry", "run", "--memory", "8M"]).unwrap();
        let Verb::Run(args) = cli.verb else { panic!("{cli:?}") };
        assert!(args.guest.config().validate().is_ok());
    }
}
