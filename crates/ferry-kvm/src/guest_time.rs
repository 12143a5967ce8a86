//! What a machine's clocks do about a pause: they stand still, or they catch up ([`GuestTime`]).
//!
//! KVM stops no clock for a machine whose vCPUs do not run: the TSC, the kvmclock and the counters of arm64 go on with
//! the host's. So time that catches up needs nothing on one host, and a move to another adds what passed from the capture to the
//! restore, by the hosts' wall clocks. Time that stands still is put back to where it stood when the last vCPU
//! stopped: before a capture, and before the guest runs again, here or where it was restored.

use std::time::{Duration, SystemTime};

use ferry_migrate::MachineError;
use ferry_state::{GuestTime, MachineState, Part, Passed, Pause, StateError};
use kvm_ioctls::VmFd;

use crate::Vcpus;
#[cfg(target_arch = "aarch64")]
use crate::arm64::{Clocks, KvmState};
use crate::machine::failed;
#[cfg(target_arch = "x86_64")]
use crate::x86::{Clocks, KvmState};

/// What one machine's clocks are to do, and where they stand.
#[derive(Debug, Default)]
pub(crate) struct Time {
    /// Unless it is said here, what a state says that is restored.
    wish: Option<GuestTime>,
    /// Where they stood when the guest was paused, if they are to stand still.
    held: Option<Clocks>,
}

impl Time {
    pub(crate) fn set(&mut self, wish: GuestTime) {
        self.wish = Some(wish);
    }

    fn wish(&self) -> GuestTime {
        self.wish.unwrap_or_default()
    }

    /// The last vCPU has just stopped.
    pub(crate) fn paused(&mut self, vm: &VmFd, vcpus: &mut impl Vcpus) {
        self.held = None;
        if self.wish() == GuestTime::Stops {
            match Clocks::read(vm, vcpus) {
                Ok(clocks) => self.held = Some(clocks),
                // No reason to leave a guest paused, nor to let a migration fail.
                Err(error) => tracing::warn!(%error, "the guest's clocks go on during the pause"),
            }
        }
    }

    /// Before the clocks are read, or the guest runs on: they stand where they stood.
    pub(crate) fn hold(&self, state: &KvmState, vm: &VmFd, vcpus: &mut impl Vcpus) {
        if let Some(clocks) = &self.held
            && let Err(error) = state.set_clocks(clocks, vm, vcpus)
        {
            tracing::warn!(%error, "the guest's clocks went on during the pause");
        }
    }

    /// The guest runs.
    pub(crate) fn runs(&mut self) {
        self.held = None;
    }

    /// What goes with a state that is captured now.
    pub(crate) fn pause(&self) -> Pause {
        Pause { guest_time: self.wish(), realtime_ns: realtime_ns() }
    }

    /// The state that is to be restored into so many vCPUs, with its clocks moved on if they are to catch up.
    pub(crate) fn restored(
        &mut self,
        state: &MachineState,
        vcpus: u32,
    ) -> Result<MachineState, MachineError> {
        let refused = |error| failed("the guest's clocks cannot go on as they are told to", error);
        let pause: Option<Pause> = state.find(0).map_err(refused)?;
        let time = self.wish.or(pause.map(|pause| pause.guest_time)).unwrap_or_default();
        let others =
            state.sections.iter().filter(|section| (&*section.name, section.index) != (Pause::NAME, 0));
        let mut state = MachineState { sections: others.cloned().collect() };
        self.held = None;
        match time {
            GuestTime::Stops => self.held = Some(Clocks::of(&state, vcpus).map_err(refused)?),
            GuestTime::CatchesUp => {
                let missing = StateError::MissingSection { section: Pause::NAME, index: 0 };
                let pause = pause.ok_or_else(|| refused(missing))?;
                state = state.catch_up(passed(&pause, realtime_ns())).map_err(refused)?;
            }
        }
        self.wish = Some(time);
        Ok(state)
    }
}

/// A captured state that says when that was.
pub(crate) fn noted(pause: &Pause, mut state: MachineState) -> Result<MachineState, MachineError> {
    let section = pause.section().map_err(|error| failed("the pause cannot be written", error))?;
    state.sections.push(section);
    Ok(state)
}

/// How long the pause was.
fn passed(pause: &Pause, now_ns: u64) -> Duration {
    let passed = Passed::between(pause.realtime_ns, now_ns);
    match passed {
        Passed::Time(by) => tracing::info!(?by, "the guest's clocks catch up"),
        Passed::Behind(by) => {
            tracing::warn!(
                ?by,
                "this host's wall clock is behind the source's: the guest's clocks stood still"
            );
        }
    }
    passed.advance()
}

/// This host's `CLOCK_REALTIME`.
fn realtime_ns() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
