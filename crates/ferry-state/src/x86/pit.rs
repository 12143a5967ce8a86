//! The interval timer of a VM with an in-kernel PIT: what `KVM_GET_PIT2` gives.
//!
//! From `struct kvm_pit_state2` of the kernel's arch/x86/include/uapi/asm/kvm.h; what the fields do is
//! in arch/x86/kvm/i8254.c.

use minicbor::{Decode, Encode};

use crate::{Fields, Part};

/// The channels of an 8254.
pub const PIT_CHANNELS: usize = 3;

/// One channel of the 8254 (`kvm_pit_channel_state`).
///
/// When its count was loaded does not cross: it is the source's own time, and KVM loads the count anew
/// when it is set, so the period under way begins again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct PitChannel {
    /// The count from which it counts down; 0x10000 stands for the 0 that the guest wrote.
    #[n(0)]
    pub count: u32,
    /// The count as it was when it was latched.
    #[n(1)]
    pub latched_count: u16,
    /// Whether and how a latched count waits to be read.
    #[n(2)]
    pub count_latched: u8,
    /// Whether a latched status waits to be read.
    #[n(3)]
    pub status_latched: u8,
    /// The latched status.
    #[n(4)]
    pub status: u8,
    /// Which byte is read next.
    #[n(5)]
    pub read_state: u8,
    /// Which byte is written next.
    #[n(6)]
    pub write_state: u8,
    /// The low byte of a count of which the high one has not come yet.
    #[n(7)]
    pub write_latch: u8,
    /// Which bytes the guest reads and writes.
    #[n(8)]
    pub rw_mode: u8,
    /// The operating mode; 0xff before the guest chose one.
    #[n(9)]
    pub mode: u8,
    /// Counts in BCD.
    #[n(10)]
    pub bcd: u8,
    /// The gate input.
    #[n(11)]
    pub gate: u8,
}

/// The interval timer of one VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pit {
    /// Its channels: the timer tick, the memory refresh of old, the speaker.
    #[n(0)]
    pub channels: [PitChannel; PIT_CHANNELS],
    /// `KVM_PIT_FLAGS_…`: the HPET took the tick's place (1), the speaker is on (2).
    #[n(1)]
    pub flags: u32,
}

impl Part for Pit {
    const NAME: &'static str = "x86.pit";
    const FIELDS: Fields = Fields::These(&[0, 1]);
}
