//! The decisions of a live migration as plain values.
//!
//! [`Source`] and [`Target`] are state machines: events and the time go in, actions come out. They
//! read no clock, own no thread and hold no page of guest memory, and they are `Clone + Eq + Hash`,
//! so that the same values run in the engine (`ferry-migrate`), under a model checker and in a
//! simulation. [`frame`] and [`message`] give their messages a wire form.
//!
//! ```
//! use ferry_protocol::{MachineDescription, RegionSpan, Source, SourceAction, SourceConfig, SourceEvent, Time};
//! use ferry_protocol::message::ToTarget;
//! use ferry_protocol::{Epoch, SessionId};
//!
//! let mut source = Source::new(SourceConfig::new(
//!     "web-1".parse().unwrap(),
//!     SessionId(7),
//!     Epoch::BIRTH.next(),
//!     MachineDescription {
//!         kind: "sim".into(),
//!         vcpus: 1,
//!         regions: vec![RegionSpan { start: 0, length: 4096 }],
//!         config: Vec::new(),
//!         contract: Vec::new(),
//!         disks: Vec::new(),
//!     },
//! ));
//! let actions = source.step(Time::ZERO, SourceEvent::Connected);
//! assert!(matches!(actions[..], [SourceAction::Send(ToTarget::Hello(_))]));
//! ```

#![forbid(unsafe_code)]

pub mod frame;
mod identity;
pub mod journal;
mod ledger;
mod machine;
pub mod message;
mod outcome;
mod pace;
mod precopy;
mod rules;
mod source;
mod target;
mod timing;
mod witness;

pub use identity::{Epoch, GuestId, GuestIdError, InstanceId, MAX_GUEST_ID_BYTES, SessionId};
pub use ledger::{Answer, Ledger};
pub use machine::{
    DISKS_START, DescriptionError, DiskSpan, MAX_CONFIG_BYTES, MAX_DISK_BYTES, MAX_DISKS, MAX_KIND_BYTES,
    MAX_REGIONS, MAX_VCPUS, MachineDescription, RegionSpan,
};
pub use outcome::{Cause, EXIT_AMBIGUOUS, LinkFault, SourceOutcome, TargetOutcome};
pub use pace::Pace;
pub use precopy::{Decision, Precopy, RoundFigures};
pub use rules::{Rule, Rules, UnknownRule};
pub use source::{
    MAX_REASON_BYTES, PersonsChoice, ReasonError, Source, SourceAction, SourceConfig, SourceEvent,
    SourcePhase,
};
pub use target::{LinkId, Target, TargetAction, TargetEvent, TargetPhase};
pub use timing::{Time, Timeouts, TimerName};
pub use witness::{Claim, ClaimAnswer};
