//! The live-migration engine: pumps around the decisions of `ferry-protocol`, and the trait
//! [`Machine`] that a VMM implements to become movable.
//!
//! On the source, [`Migration::run`] moves one machine; on the target, [`Reception::wait`] waits for
//! one. Both block the calling thread, and the caller owns threads, sockets' addresses and files.
//! Nothing here decides: the pumps carry out the actions of [`ferry_protocol::Source`] and
//! [`ferry_protocol::Target`] and report back. The one thing that they add is [`Custody`], the value
//! without which no guest runs.

#![forbid(unsafe_code)]

mod custody;
mod device;
mod disk;
mod file_lock;
mod framing;
mod intake;
pub mod journal;
mod lane;
mod link;
mod machine;
pub mod oneway;
mod report;
mod resource;
mod send;
mod source;
mod target;
mod turn;
mod witness;

pub use custody::Custody;
pub use device::{Device, DevicePages, DeviceSet, Saved};
pub use disk::{DiskImage, DiskImageError, DiskPlace, DiskPlaces, SECTOR_BYTES};
pub use file_lock::{FileLock, FileLockError};
pub use intake::Received;
pub use link::{Address, AddressError, ListenError, Listener};
pub use machine::{Builder, Harvest, Machine, MachineError, ResumeError, RunWatch};
pub use report::{Arrival, DowntimeParts, Observer, Progress, Report, Word, cpu_time};
pub use resource::{Resource, ResourceKind, ResourceSet};
use source::sentence;
pub use source::{Asked, Canceller, Decider, MigrateOptions, Migration, ask};
pub use target::{Answering, Arrived, ReceiveOptions, Reception};
pub use witness::{MemoryWitness, Witness};
