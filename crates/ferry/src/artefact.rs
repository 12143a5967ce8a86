//! What people hand to the program: files with profiles and contracts, told apart by their `format`, and
//! names of the catalogue. A file of that name goes first.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use ferry_contract::{
    BirthRequest, CONTRACT_FORMAT, Contract, Features, MAX_FILE_BYTES, PROFILE_FORMAT, Profile,
};

use crate::catalog;
use crate::error::CliError;

/// A file, understood.
#[derive(Debug)]
pub(crate) enum Artefact {
    Profile(Box<Profile>),
    Contract(Box<Contract>),
}

/// Where it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A file.
    File,
    /// The catalogue.
    Catalog,
    /// A guest that runs on this machine.
    Running,
}

/// Something of that name, and where it was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) origin: Origin,
}

impl Found {
    pub(crate) fn json(&self) -> serde_json::Value {
        let origin = match self.origin {
            Origin::File => "file",
            Origin::Catalog => "catalog",
            Origin::Running => "running",
        };
        serde_json::json!({ "name": self.name, "from": origin })
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::File => write!(f, "the file {}", self.name),
            Origin::Catalog => write!(f, "{} of the catalogue", self.name),
            Origin::Running => write!(f, "{}, which runs here", self.name),
        }
    }
}

/// As much of a JSON file as says what it is.
#[derive(serde::Deserialize)]
struct Head {
    format: String,
}

impl Artefact {
    /// A file, or a profile of the catalogue if there is no file of that name.
    pub(crate) fn find(path: &Path) -> Result<(Self, Found), CliError> {
        let name = path.to_string_lossy().into_owned();
        let in_catalog = if path.exists() { None } else { catalog::find(&name) };
        let Some(text) = in_catalog else {
            return Ok((Self::read(path)?, Found { name, origin: Origin::File }));
        };
        let artefact =
            Self::parse(&text).map_err(|what| CliError::plain(format!("{name} of the catalogue {what}")))?;
        Ok((artefact, Found { name, origin: Origin::Catalog }))
    }

    fn read(path: &Path) -> Result<Self, CliError> {
        let bad = |what: String| CliError::plain(format!("the file {} {what}", path.display()));
        let bytes = bytes(path)
            .map_err(|error| bad(format!("cannot be read: {error}{}", not_in_catalog(path, &error))))?;
        Self::parse(&bytes).map_err(bad)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.first().is_some_and(|byte| !byte.is_ascii()) {
            let contract = Contract::from_bytes(bytes)
                .map_err(|error| format!("is neither JSON nor a contract on the wire: {error}"))?;
            return Ok(Self::Contract(Box::new(contract)));
        }
        if bytes.len() > MAX_FILE_BYTES {
            return Err(format!("is longer than {MAX_FILE_BYTES} bytes: no profile and no contract is"));
        }
        let format = serde_json::from_slice(bytes).map(|head: Head| head.format).unwrap_or_default();
        match format.as_str() {
            CONTRACT_FORMAT => Contract::from_json(bytes)
                .map(|contract| Self::Contract(Box::new(contract)))
                .map_err(|error| format!("is no contract that this build can use: {error}")),
            // Whatever does not say what it is, is looked at as a profile: the error names the place.
            "" | PROFILE_FORMAT => Profile::from_json(bytes)
                .map(|profile| Self::Profile(Box::new(profile)))
                .map_err(|error| format!("is no profile that this build can use: {error}")),
            _ => {
                Err(format!("is neither a profile (`{PROFILE_FORMAT}`) nor a contract (`{CONTRACT_FORMAT}`)"))
            }
        }
    }

    /// The profile, where only one will do.
    pub(crate) fn find_profile(path: &Path) -> Result<(Profile, Found), CliError> {
        match Self::find(path)? {
            (Self::Profile(profile), found) => Ok((*profile, found)),
            (Self::Contract(_), _) => Err(CliError::plain(format!(
                "the file {} is a contract where a profile is needed: make one with `ferry probe -o FILE` on the host",
                path.display()
            ))),
        }
    }

    /// The contract for a guest that is to be born: of a file, or what a host of the catalogue offers.
    pub(crate) fn find_contract(path: &Path, vcpus: u32) -> Result<Contract, CliError> {
        let (artefact, _) = Self::find(path)?;
        artefact.into_guest(vcpus)
    }

    /// The contract of the guest that a file stands for: its own, or that of a guest with so many vCPUs and
    /// all that a host offers.
    pub(crate) fn into_guest(self, vcpus: u32) -> Result<Contract, CliError> {
        match self {
            Self::Contract(contract) => Ok(*contract),
            Self::Profile(profile) => {
                let request = BirthRequest { vcpus, features: Features::Offered(Vec::new()) };
                Contract::birth(&profile, &request).map_err(|error| CliError::of(&error))
            }
        }
    }
}

/// What to add to the sentence of a file that is not there: it could be meant for a catalogue's name.
fn not_in_catalog(path: &Path, error: &std::io::Error) -> String {
    let nearest = catalog::nearest(&path.to_string_lossy());
    if error.kind() != std::io::ErrorKind::NotFound || path.is_absolute() || nearest.is_empty() {
        return String::new();
    }
    format!(
        "; nor has the catalogue such a host: the nearest are {} (`ferry check --list` names all)",
        nearest.join(", ")
    )
}

/// A file's bytes, or one more than any file may have.
pub(crate) fn bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_file_has_its_sentence() {
        for (bytes, words) in [
            (&b""[..], "is no profile that this build can use"),
            (b"[1]", "is no profile that this build can use: at $, line 1"),
            (b"{\"format\":\"toast\"}", "is neither a profile"),
            (b"{\"format\":\"ferry.contract\"}", "is no contract that this build can use: at $, line 1"),
            (b"{\"format\":\"ferry.profile\",\"format\":1}", "is no profile"),
            (b"\xa0", "is neither JSON nor a contract on the wire"),
        ] {
            let error = Artefact::parse(bytes).unwrap_err();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
