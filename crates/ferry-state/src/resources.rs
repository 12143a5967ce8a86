//! What only one host may hold for a guest, as the source says it with the state.
//!
//! The source lets go of it after the pause and lists it in the section `machine.resources`; the
//! target takes all of the list before it says ready.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The most resources of one guest.
pub const MAX_RESOURCES: usize = 256;

/// The longest kind of a resource, in bytes.
pub const MAX_RESOURCE_KIND_BYTES: usize = 64;

/// The longest name of a resource, in bytes: that of a path (`PATH_MAX`).
pub const MAX_RESOURCE_NAME_BYTES: usize = 4096;

/// One thing that only one host may hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(array)]
pub struct ResourceName {
    /// What kind of thing, and so who can take it: for example `file-lock`. 1 to 64 characters of
    /// `a-z 0-9 . _ -`.
    #[n(0)]
    pub kind: String,
    /// Which one, in the words of its kind: for example the lock file's path. 1 to 4096 bytes
    /// without control characters.
    #[n(1)]
    pub name: String,
}

/// All that the source let go of, in the order in which it is taken. None twice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Resources {
    /// The list.
    #[n(0)]
    pub released: Vec<ResourceName>,
}

impl std::fmt::Display for ResourceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

impl ResourceName {
    fn is_well_formed(&self) -> bool {
        let in_kind = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        (1..=MAX_RESOURCE_KIND_BYTES).contains(&self.kind.len())
            && self.kind.bytes().all(in_kind)
            && (1..=MAX_RESOURCE_NAME_BYTES).contains(&self.name.len())
            && !self.name.chars().any(char::is_control)
    }
}

impl Part for Resources {
    const NAME: &'static str = "machine.resources";
    const FIELDS: Fields = Fields::These(&[0]);

    fn check(&self) -> Result<(), String> {
        let count = self.released.len();
        if count > MAX_RESOURCES {
            return Err(format!("{count} resources are listed, the bound is {MAX_RESOURCES}"));
        }
        if let Some(place) = self.released.iter().position(|resource| !resource.is_well_formed()) {
            return Err(format!(
                "the name or the kind of resource {place} is empty, too long or no plain text"
            ));
        }
        let mut seen = std::collections::BTreeSet::new();
        let twice = self.released.iter().find(|resource| !seen.insert((&resource.kind, &resource.name)));
        twice.map_or(Ok(()), |resource| Err(format!("{resource} is listed twice")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Section, StateError};

    fn resource(kind: &str, name: &str) -> ResourceName {
        ResourceName { kind: kind.to_owned(), name: name.to_owned() }
    }

    fn read(released: Vec<ResourceName>) -> Result<Resources, StateError> {
        Section::of(&Resources { released }, 0, Some(&Resources::default()))?.read()
    }

    #[test]
    fn a_list_is_needed_unless_it_is_empty() {
        let none = Section::of(&Resources::default(), 0, Some(&Resources::default())).unwrap();
        assert!(none.needed.is_empty());
        let some = Resources { released: vec![resource("file-lock", "/disks/web-1.lock")] };
        let section = Section::of(&some, 0, Some(&Resources::default())).unwrap();
        assert_eq!(section.needed, [0]);
        assert_eq!(section.read::<Resources>().unwrap(), some);
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        let long = "x".repeat(MAX_RESOURCE_NAME_BYTES + 1);
        let many = (0..=MAX_RESOURCES).map(|number| resource("file-lock", &number.to_string())).collect();
        for (bad, word) in [
            (vec![resource("", "/a")], "resource 0"),
            (vec![resource("File lock", "/a")], "resource 0"),
            (vec![resource("file-lock", "/b"), resource("file-lock", "")], "resource 1"),
            (vec![resource("file-lock", "/a\n/b")], "resource 0"),
            (vec![resource("file-lock", &long)], "resource 0"),
            (vec![resource("file-lock", "/a"), resource("file-lock", "/a")], "twice"),
            (many, "257 resources"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(read(vec![resource("file-lock", "/a"), resource("lease", "/a")]).is_ok());
    }
}
