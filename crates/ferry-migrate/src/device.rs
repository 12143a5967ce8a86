//! Devices of a guest, and the set of them that a machine has.
//!
//! A VMM implements [`Device`] for each of its devices and puts them into a [`DeviceSet`], whose
//! methods are the device half of [`Machine`](crate::Machine): a machine on KVM takes the set as it
//! is. The calls come in this order:
//!
//! ```text
//! source   harvest_dirty …            once a round, while the guest runs
//!          quiesce                    the vCPUs have stopped
//!          harvest_dirty              the last round
//!          save                       the VM's own state was captured
//!          resume                     only if the migration failed: before the vCPUs
//! target   restore                    the VM's own state was restored
//!          resume                     custody has passed: before the vCPUs
//!          announce                   the guest runs
//! ```
//!
//! A device is *quiet* from its creation to its first `resume`, and from `quiesce` to the next one.
//!
//! What a device saves has the form of every part of the state: numbered fields, each marked as
//! needed or not ([`Part`]). There is no version beside it. A number stands for a bundle of features,
//! and a target that knows a higher one may still not know a field in it, while one that knows only a
//! lower one may know all that this guest needs; fields and marks say exactly that.
//!
//! ```
//! use ferry_memory::PageSet;
//! use ferry_migrate::{Device, DeviceSet, MachineError, Saved};
//! use ferry_state::{Fields, Part, Section};
//!
//! #[derive(Default, Clone, minicbor::Encode, minicbor::Decode)]
//! #[cbor(map)]
//! struct Lamp {
//!     #[n(0)]
//!     lit: bool,
//! }
//!
//! impl Part for Lamp {
//!     const NAME: &'static str = "device/lamp";
//!     const FIELDS: Fields = Fields::These(&[0]);
//! }
//!
//! impl Device for Lamp {
//!     fn name(&self) -> String {
//!         "lamp".to_owned()
//!     }
//!     fn save(&mut self) -> Result<Saved, MachineError> {
//!         Saved::part(self, Some(&Lamp::default()))
//!     }
//!     fn restore(&mut self, section: &Section) -> Result<(), MachineError> {
//!         *self = section.read().map_err(|error| MachineError::with_source("no state of a lamp", error))?;
//!         Ok(())
//!     }
//!     fn harvest_dirty(&mut self, _: &mut PageSet) -> Result<(), MachineError> {
//!         Ok(()) // it writes no guest memory
//!     }
//! }
//!
//! # fn main() -> Result<(), MachineError> {
//! let mut source = DeviceSet::new();
//! source.add(Lamp { lit: true })?;
//! let state = source.capture()?;
//! assert_eq!((state.sections[0].name.as_str(), &state.sections[0].needed), ("device/lamp", &vec![0]));
//! let mut target = DeviceSet::new();
//! target.add(Lamp::default())?;
//! target.restore(&state)?;
//! # Ok(())
//! # }
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use ferry_memory::PageSet;
use ferry_state::{Part, Section};

use crate::MachineError;

mod pages;
mod set;

pub use pages::DevicePages;
pub use set::DeviceSet;

/// What devices' sections, and no others, begin with.
pub(crate) const PREFIX: &str = "device/";

/// The body of a section that holds nothing: CBOR's empty map.
const EMPTY_BODY: u8 = 0xa0;

/// One device of a guest.
///
/// Devices whose vCPU threads share them go into a set as `Arc<Mutex<D>>`.
pub trait Device: Send {
    /// Its name among the machine's devices; its section is called `device/NAME`. Constant, 1 to 57
    /// characters of `a-z 0-9 . _ -`.
    fn name(&self) -> String;

    /// Which one of several devices of this name. Constant.
    fn index(&self) -> u32 {
        0
    }

    /// What the quiet device holds of the guest. Must not touch guest memory, and not change the
    /// device: the guest may go on here.
    ///
    /// The default fails, so that no device is forgotten: one that holds nothing of the guest says so
    /// with [`Saved::Nothing`].
    fn save(&mut self) -> Result<Saved, MachineError> {
        let name = self.name();
        Err(MachineError::new(format!(
            "device `{name}` does not say what it holds of the guest, so the guest cannot be moved: \
             its `save` is missing"
        )))
    }

    /// Takes what a device of its kind saved. The bytes come from the other side: refuse what makes
    /// no sense, and what is needed and unknown ([`Section::read`] does both). A device on which it
    /// failed is discarded with its machine.
    ///
    /// The default takes a section in which nothing is needed, and refuses any other.
    fn restore(&mut self, section: &Section) -> Result<(), MachineError> {
        if section.needed.is_empty() {
            return Ok(());
        }
        let (name, needed) = (self.name(), &section.needed);
        Err(MachineError::new(format!(
            "device `{name}` restores nothing here, but the guest needs its fields {needed:?}"
        )))
    }

    /// Adds the pages that the device itself wrote to guest memory since the last call, and forgets
    /// them: KVM's dirty log knows nothing of writes from user space. [`DevicePages`] keeps them.
    ///
    /// There is no default: a page too few is a guest that is wrong some day, so a device that writes
    /// no guest memory says so with an empty body. On a running guest the engine reads the pages
    /// after this call; a device that goes on writing must note a page after it wrote it.
    fn harvest_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError>;

    /// Ends what the device does by itself: its threads stand still, its DMA is complete, what it
    /// buffered is with the host. When this returns it changes neither guest memory nor its state,
    /// raises no interrupt, and takes no input. If it fails the device goes on as before.
    ///
    /// The default is for devices that do nothing by themselves.
    fn quiesce(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Lets it go on, after `quiesce` or after it was made or restored. If it fails it stays quiet.
    fn resume(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Tells the network where the guest is now: called on the target, once the guest runs. Must not wait. The
    /// default is for devices that no network knows.
    fn announce(&mut self) {}
}

/// What a device holds of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// Nothing: a device at birth is as good.
    Nothing,
    /// This; its name and index are the device's, whatever they say here.
    Section(Section),
}

impl Saved {
    /// This value. Needed are the fields that differ from those of a device at birth; without one,
    /// all of them.
    pub fn part<T: Part>(value: &T, at_birth: Option<&T>) -> Result<Self, MachineError> {
        let section = Section::of(value, 0, at_birth)
            .map_err(|error| MachineError::with_source("a device's state cannot be written", error))?;
        Ok(Self::Section(section))
    }

    /// The section of the device of this name and index.
    fn into_section(self, name: String, index: u32) -> Section {
        match self {
            Self::Nothing => Section { name, index, needed: Vec::new(), body: vec![EMPTY_BODY] },
            Self::Section(section) => Section { name, index, ..section },
        }
    }
}

/// A device that vCPU threads share.
impl<D: Device + ?Sized> Device for Arc<Mutex<D>> {
    fn name(&self) -> String {
        self.lock().unwrap_or_else(PoisonError::into_inner).name()
    }

    fn index(&self) -> u32 {
        self.lock().unwrap_or_else(PoisonError::into_inner).index()
    }

    fn save(&mut self) -> Result<Saved, MachineError> {
        self.lock().unwrap_or_else(PoisonError::into_inner).save()
    }

    fn restore(&mut self, section: &Section) -> Result<(), MachineError> {
        self.lock().unwrap_or_else(PoisonError::into_inner).restore(section)
    }

    fn harvest_dirty(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        self.lock().unwrap_or_else(PoisonError::into_inner).harvest_dirty(into)
    }

    fn quiesce(&mut self) -> Result<(), MachineError> {
        self.lock().unwrap_or_else(PoisonError::into_inner).quiesce()
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.lock().unwrap_or_else(PoisonError::into_inner).resume()
    }

    fn announce(&mut self) {
        self.lock().unwrap_or_else(PoisonError::into_inner).announce();
    }
}
