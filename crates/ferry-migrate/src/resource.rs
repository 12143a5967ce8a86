//! What only one host may hold for a guest: locks on shared disks and the like.
//!
//! The source lets go of all of it after the pause and says so with the state; the target takes what
//! is listed there before it restores anything, and refuses if it cannot; on an abort the target lets
//! go and the source takes it again before it resumes. A machine holds a [`ResourceSet`] and forwards
//! [`Machine`](crate::Machine)'s two methods to it. Each kind of resource has an opener
//! ([`ResourceKind`]), because the target knows of the guest's resources only what the state says:
//! kind and name. [`FileLock`](crate::FileLock)s are there from the start.
//!
//! Names come from the other side. Whoever opens one must not change what is not a resource of its
//! kind, and must not create what is not there: a lock that a target makes itself locks nobody out.

use std::fmt;
use std::sync::Arc;

use ferry_protocol::GuestId;
use ferry_state::{Part, ResourceName, Resources};

use crate::disk::{DiskImage, ImageLocks};
use crate::file_lock::FileLocks;
use crate::{MachineError, sentence};

/// Something that only one host may hold.
pub trait Resource: Send {
    /// Takes it for this guest, or says in one sentence who holds it. Taking what is held already is
    /// no error. Must not wait.
    fn take(&mut self, guest: &GuestId) -> Result<(), MachineError>;

    /// Lets go of it. Letting go of what is not held is no error. If it fails it is still held.
    fn release(&mut self) -> Result<(), MachineError>;
}

/// Opens the resources of one kind by name.
pub trait ResourceKind: Send {
    /// The kind: 1 to 64 characters of `a-z 0-9 . _ -`.
    fn kind(&self) -> &'static str;

    /// The resource of this name, which may come from the other side. It is not taken yet.
    fn open(&self, name: &str) -> Result<Box<dyn Resource>, MachineError>;
}

/// The resources of one guest in one process.
pub struct ResourceSet {
    kinds: Vec<Box<dyn ResourceKind>>,
    resources: Vec<Entry>,
}

struct Entry {
    name: ResourceName,
    resource: Box<dyn Resource>,
    held_for: Option<GuestId>,
    /// The guest cannot run without it, whatever the other side lists.
    is_needed: bool,
}

impl Default for ResourceSet {
    fn default() -> Self {
        Self { kinds: vec![Box::new(FileLocks)], resources: Vec::new() }
    }
}

impl ResourceSet {
    /// No resource yet; file locks can be taken.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with one more kind, instead of an earlier one of that name.
    #[must_use]
    pub fn with_kind(mut self, kind: impl ResourceKind + 'static) -> Self {
        self.kinds.retain(|known| known.kind() != kind.kind());
        self.kinds.push(Box::new(kind));
        self
    }

    /// The same with the locks of a guest's images, without which it does not run here: a list that leaves one out is not
    /// taken.
    #[must_use]
    pub fn with_images(self, images: &[Arc<DiskImage>]) -> Self {
        let mut set = self.with_kind(ImageLocks(images.to_vec()));
        for image in images {
            if let Ok(place) = set.open(&image.resource())
                && let Some(entry) = set.resources.get_mut(place)
            {
                entry.is_needed = true;
            }
        }
        set
    }

    /// Takes all of these, or none: those that this call took are let go of again when one cannot be
    /// had.
    pub fn take(&mut self, guest: &GuestId, wanted: &Resources) -> Result<(), MachineError> {
        wanted.check().map_err(|problem| {
            MachineError::new(format!("the list of the guest's resources is no list: {problem}"))
        })?;
        let is_left_out = |entry: &&Entry| {
            entry.is_needed && entry.held_for.is_none() && !wanted.released.contains(&entry.name)
        };
        if let Some(Entry { name, .. }) = self.resources.iter().find(is_left_out) {
            return Err(MachineError::new(format!(
                "the guest's machine needs the resource `{name}`, and the other side did not let go of it"
            )));
        }
        let mut taken = Vec::new();
        for name in &wanted.released {
            match self.take_one(guest, name) {
                Ok(Some(place)) => taken.push(place),
                Ok(None) => {}
                Err(error) => {
                    for place in taken.into_iter().rev() {
                        self.resources.get_mut(place).map(Entry::release_or_warn);
                    }
                    return Err(MachineError::with_source(
                        format!("the guest's resource `{name}` cannot be taken"),
                        error,
                    ));
                }
            }
        }
        Ok(())
    }

    /// Takes one; gives its place, or none if it was held before.
    fn take_one(&mut self, guest: &GuestId, name: &ResourceName) -> Result<Option<usize>, MachineError> {
        let known = self.resources.iter().position(|entry| entry.name == *name);
        let place = known.map_or_else(|| self.open(name), Ok)?;
        match self.resources.get_mut(place) {
            Some(entry) if entry.held_for.is_none() => {
                entry.resource.take(guest)?;
                entry.held_for = Some(guest.clone());
                Ok(Some(place))
            }
            _ => Ok(None),
        }
    }

    /// Opens one that was not here before; gives its place.
    fn open(&mut self, name: &ResourceName) -> Result<usize, MachineError> {
        let kind = self.kinds.iter().find(|known| known.kind() == name.kind).ok_or_else(|| {
            MachineError::new(format!("this VMM does not know resources of the kind `{}`", name.kind))
        })?;
        let resource = kind.open(&name.name)?;
        self.resources.push(Entry { name: name.clone(), resource, held_for: None, is_needed: false });
        Ok(self.resources.len() - 1)
    }

    /// Lets go of all that is held, the last taken first, and lists it in the order of taking. If one
    /// cannot be let go of, those before it are taken again.
    pub fn release(&mut self) -> Result<Resources, MachineError> {
        let held: Vec<usize> = (0..)
            .zip(&self.resources)
            .filter(|(_, entry)| entry.held_for.is_some())
            .map(|(at, _)| at)
            .collect();
        let names = |set: &Self| -> Vec<ResourceName> {
            held.iter()
                .filter_map(|place| set.resources.get(*place))
                .map(|entry| entry.name.clone())
                .collect()
        };
        let released = Resources { released: names(self) };
        let mut gone: Vec<(usize, GuestId)> = Vec::new();
        for &place in held.iter().rev() {
            let Some(entry) = self.resources.get_mut(place) else { continue };
            if let Err(error) = entry.resource.release() {
                let name = entry.name.clone();
                for (place, guest) in gone.into_iter().rev() {
                    self.retake(place, guest);
                }
                let what = format!("the guest's resource `{name}` cannot be released");
                return Err(MachineError::with_source(what, error));
            }
            gone.extend(entry.held_for.take().map(|guest| (place, guest)));
        }
        Ok(released)
    }

    /// A resource that is not had again keeps the guest from running: see [`missing`](Self::missing).
    fn retake(&mut self, place: usize, guest: GuestId) {
        let Some(entry) = self.resources.get_mut(place) else { return };
        match entry.resource.take(&guest) {
            Ok(()) => entry.held_for = Some(guest),
            Err(error) => {
                tracing::warn!(name = %entry.name, error = sentence(&error), "a resource is not had again");
            }
        }
    }

    /// Fails while a resource that was once taken here is not held: the guest must not run then.
    pub fn missing(&self) -> Result<(), MachineError> {
        match self.resources.iter().find(|entry| entry.held_for.is_none()) {
            None => Ok(()),
            Some(Entry { name, .. }) => Err(MachineError::new(format!(
                "the guest's resource `{name}` is not held: take_resources comes before resume"
            ))),
        }
    }
}

impl Entry {
    fn release_or_warn(&mut self) {
        match self.resource.release() {
            Ok(()) => self.held_for = None,
            Err(error) => {
                tracing::warn!(name = %self.name, error = sentence(&error), "a resource cannot be released");
            }
        }
    }
}

impl Drop for ResourceSet {
    fn drop(&mut self) {
        for entry in self.resources.iter_mut().rev().filter(|entry| entry.held_for.is_some()) {
            entry.release_or_warn();
        }
    }
}

impl fmt::Debug for ResourceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = |entry: &Entry| (entry.name.to_string(), entry.held_for.is_some());
        f.debug_map().entries(self.resources.iter().map(held)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Seats that one guest at a time may have; and those that cannot be left.
    #[derive(Debug, Default)]
    struct Hall {
        taken: Vec<String>,
        stuck: Option<String>,
    }

    struct Seats(Arc<Mutex<Hall>>);

    struct Seat {
        name: String,
        hall: Arc<Mutex<Hall>>,
    }

    impl ResourceKind for Seats {
        fn kind(&self) -> &'static str {
            "seat"
        }

        fn open(&self, name: &str) -> Result<Box<dyn Resource>, MachineError> {
            Ok(Box::new(Seat { name: name.to_owned(), hall: Arc::clone(&self.0) }))
        }
    }

    impl Resource for Seat {
        fn take(&mut self, _: &GuestId) -> Result<(), MachineError> {
            let mut hall = self.hall.lock().unwrap();
            if hall.taken.contains(&self.name) {
                return Err(MachineError::new("somebody sits there"));
            }
            hall.taken.push(self.name.clone());
            Ok(())
        }

        fn release(&mut self) -> Result<(), MachineError> {
            let mut hall = self.hall.lock().unwrap();
            if hall.stuck.as_ref() == Some(&self.name) {
                return Err(MachineError::new("stuck"));
            }
            hall.taken.retain(|name| *name != self.name);
            Ok(())
        }
    }

    fn seats(names: &[&str]) -> Resources {
        let name = |name: &&str| ResourceName { kind: "seat".into(), name: (*name).into() };
        Resources { released: names.iter().map(name).collect() }
    }

    fn set(hall: &Arc<Mutex<Hall>>) -> ResourceSet {
        ResourceSet::new().with_kind(Seats(Arc::clone(hall)))
    }

    fn guest() -> GuestId {
        "guest".parse().unwrap()
    }

    #[test]
    fn all_are_taken_or_none() {
        let hall = Arc::default();
        let (mut one, mut other) = (set(&hall), set(&hall));
        one.take(&guest(), &seats(&["c"])).unwrap();
        let error = other.take(&guest(), &seats(&["a", "b", "c"])).unwrap_err();
        assert_eq!(sentence(&error), "the guest's resource `seat c` cannot be taken: somebody sits there");
        assert_eq!(hall.lock().unwrap().taken, ["c"]);
        assert_eq!(other.release().unwrap(), Resources::default());
        assert_eq!(one.release().unwrap(), seats(&["c"]));
        assert!(one.missing().unwrap_err().to_string().contains("`seat c` is not held"));
        other.take(&guest(), &seats(&["a", "b", "c"])).unwrap();
        other.take(&guest(), &seats(&["b"])).unwrap();
        other.missing().unwrap();
        drop(other);
        assert!(hall.lock().unwrap().taken.is_empty(), "a machine that is gone holds nothing");
    }

    #[test]
    fn a_release_that_fails_leaves_all_held() {
        let hall: Arc<Mutex<Hall>> = Arc::default();
        let mut set = set(&hall);
        set.take(&guest(), &seats(&["a", "b", "c"])).unwrap();
        hall.lock().unwrap().stuck = Some("b".into());
        let error = sentence(&set.release().unwrap_err());
        assert_eq!(error, "the guest's resource `seat b` cannot be released: stuck");
        set.missing().unwrap();
        assert_eq!(hall.lock().unwrap().taken, ["a", "b", "c"]);
    }

    #[test]
    fn unknown_kinds_and_lists_that_are_none_are_refused() {
        let mut set = ResourceSet::new();
        let error = sentence(&set.take(&guest(), &seats(&["a"])).unwrap_err());
        assert!(error.contains("does not know resources of the kind `seat`"), "{error}");
        let error = sentence(&set.take(&guest(), &seats(&["a", "a"])).unwrap_err());
        assert!(error.contains("is no list: seat a is listed twice"), "{error}");
        set.missing().unwrap();
    }
}
