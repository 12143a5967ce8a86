//! What the program wants of a guest beyond moving it: how it is doing, and its own word that
//! nothing was lost. Guests on KVM and in the simulated machine answer alike.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use ferry_migrate::Machine;
use ferry_state::GuestTime;

use crate::virtio::ConsolePort;
use crate::{DirtyKind, SerialPort, VmmError, Wish};

/// A machine whose payload reports.
pub trait Guest: Machine {
    /// Facts for `status`.
    fn report(&self) -> GuestReport;

    /// Asks the running guest to verify itself all that its payload verifies, and waits for its answer.
    fn verify(&self, timeout: Duration) -> Result<CheckReport, VmmError>;

    /// What its clocks do about the pauses of the moves that follow. One in the simulated machine has none.
    fn set_guest_time(&mut self, time: GuestTime);

    /// Where its machine learns which pages it wrote; none for the simulated machine, which just knows.
    fn dirty_kind(&self) -> Option<DirtyKind> {
        None
    }

    /// What the guest asked of its machine: to be off, or a restart. It runs no more here then; a restart is a new
    /// machine ([`AnyBuilder::anew`](crate::AnyBuilder::anew)). Only guests with a kernel ask.
    fn asked(&self) -> Option<Wish> {
        None
    }

    /// The guest's serial port, if it has one: those in the simulated machine do not.
    fn serial(&self) -> Option<&SerialPort> {
        None
    }

    /// The guest's virtio consoles, in the order of their places.
    fn consoles(&self) -> &[ConsolePort] {
        &[]
    }

    /// Sends what the guest writes to its serial port and its virtio consoles to these files from now on.
    fn write_to(&self, files: &[Arc<File>]) {
        if let Some(port) = self.serial() {
            port.write_to(files.to_vec());
        }
        for console in self.consoles() {
            console.write_to(files.to_vec());
        }
    }
}

/// How a guest is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GuestReport {
    /// The payload's name.
    pub payload: String,
    /// Turns of the payload's main loop since the guest's birth; it moves with the guest.
    pub progress: u64,
    /// Pages that the guest has held against what they should contain; for payloads without pages, what
    /// else they check.
    pub pages_checked: u64,
    /// Times that it found otherwise.
    pub faults: u64,
    /// The first of them, as a sentence.
    pub first_fault: Option<String>,
    /// The largest step between two looks at the time, in microseconds, for payloads that look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_jump_us: Option<u64>,
    /// In which pages of the host its memory lies; on KVM alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_pages: Option<String>,
    /// Why these are no huge pages, unless ordinary ones were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_pages_reason: Option<String>,
    /// Why the guest ended by itself, if it did.
    pub stopped: Option<String>,
}

/// A guest's answer to a check that it was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CheckReport {
    /// Pages that it verified: all that it has written. For payloads without pages, what else they
    /// check: looks at the time, CPUID leaves, instructions, sources of ticks.
    pub pages: u64,
    /// What was not as it should be.
    pub faults: u64,
}
