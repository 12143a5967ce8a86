//! The flags of `import`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
#[command(after_help = "Example:
  ferry import --from kvm-registers dump.json -o host.json")]
pub(crate) struct ImportArgs {
    /// The form of the dump.
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) from: ImportFormat,
    /// The dump.
    pub(crate) file: PathBuf,
    /// Write the profile to this file, as JSON.
    #[arg(short = 'o', value_name = "FILE")]
    pub(crate) into: Option<PathBuf>,
}

/// A form of dumps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImportFormat {
    /// Registers of arm64 vCPUs, with masks, as JSON.
    KvmRegisters,
}
