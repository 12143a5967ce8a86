//! `ferry import`: another tool's dump of a host as a profile.

use ferry_contract::{Profile, import};

use super::probe::tell;
use crate::artefact;
use crate::cli::{Format, ImportArgs, ImportFormat};
use crate::error::CliError;

pub(crate) fn import(args: &ImportArgs, format: Format) -> Result<u8, CliError> {
    let file = args.file.display();
    let bytes = artefact::bytes(&args.file)
        .map_err(|error| CliError::plain(format!("the file {file} cannot be read: {error}")))?;
    let profile = match args.from {
        ImportFormat::KvmRegisters => import::kvm_registers(&bytes).map(Profile::from),
    };
    let profile =
        profile.map_err(|error| CliError::plain(format!("the file {file} cannot be imported: {error}")))?;
    tell(&profile, args.into.as_deref(), format)
}
