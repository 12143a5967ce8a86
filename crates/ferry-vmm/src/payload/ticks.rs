//! `ticks`: interrupts, and none may be lost or come twice.
//!
//! Each vCPU has a timer of its own tick a thousand times a second, and sends an interrupt to its
//! neighbour each turn. Once a turn a vCPU closes its interrupts, sends one to itself, and waits in user space: it is
//! in flight then, and this is where a pause finds a vCPU most often. After the wait it must have come exactly once. The
//! rest of the turn it halts until something ticks. A check waits until every source has ticked anew.

/// Microseconds that an interrupt is in flight each turn.
pub(crate) const WAIT_US: u32 = 500;

/// How long every source may take to tick anew in a check; on an idle host it takes 10 ms.
pub(crate) const PATIENCE_MS: u64 = 4000;

/// Turns that an interrupt to oneself may take to come once interrupts are open.
pub(super) const SPINS_MAX: u32 = 100_000;

/// What a fault says.
pub(super) fn fault(source: Option<&str>, expected: u64, found: u64) -> String {
    let name = source.unwrap_or("unknown source");
    format!("the {name} has ticked {found} times instead of {expected}")
}
