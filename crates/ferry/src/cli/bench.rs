//! Flags of `ferry bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{GuestArgs, Millis, StateArgs};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: Bench,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// How fast a guest of random memory moves, beside a raw loop from memory to memory over TCP.
    Precopy(BenchPrecopyArgs),
    /// What journals add to the whole time and to the downtime of a move.
    Journal(BenchJournalArgs),
}

/// Another VMM that moves guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// `qemu-system-x86_64`.
    Qemu,
}

#[derive(Debug, Args)]
pub(crate) struct BenchPrecopyArgs {
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    /// How many connections carry pages, and streams the raw loop.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) lanes: u8,
    /// Measure another VMM beside it, where it is found: the same migration by QEMU, after each pair.
    #[arg(long, value_enum, value_name = "qemu")]
    pub(crate) peer: Option<Peer>,
    /// The other VMM's program; by default it is looked for in PATH.
    #[arg(long, value_name = "FILE", requires = "peer")]
    pub(crate) peer_binary: Option<PathBuf>,
    /// How many pairs of raw loop and migration are measured.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) pairs: u32,
    /// Pause the guest when the rest is predicted to take at most this long.
    #[arg(long, value_name = "MS", default_value = "30")]
    pub(crate) downtime_limit: Millis,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ferry bench journal --memory 64M
  ferry bench journal --memory 64M --state-dir /var/lib/ferry --moves 50

Moves of two equal guests are interleaved: one between processes with journals on disk, one between
processes that forget.")]
pub(crate) struct BenchJournalArgs {
    #[command(flatten)]
    pub(crate) guest: GuestArgs,
    #[command(flatten)]
    pub(crate) state: StateArgs,
    /// How many moves of each guest are measured.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) moves: u32,
    /// Pause the guest when the rest is predicted to take at most this long.
    #[arg(long, value_name = "MS", default_value = "30")]
    pub(crate) downtime_limit: Millis,
}
