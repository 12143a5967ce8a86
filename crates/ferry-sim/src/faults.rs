//! Machines that fail on demand: which call fails, and when.
//!
//! [`SimFaults`] belongs to one instance of a machine in one process. It is no part of the guest and
//! is not carried. Its text form lets a test hand it to another process: `pause` fails once,
//! `harvest_dirty:3` the third time, `resume:always` every time.

use std::fmt;
use std::str::FromStr;

use ferry_migrate::MachineError;

/// A call of the engine that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Call {
    /// `Builder::build`.
    Build,
    /// `Machine::start_dirty_tracking`.
    StartDirtyTracking,
    /// `Machine::harvest_dirty`, while the guest runs and after.
    HarvestDirty,
    /// `Machine::stop_dirty_tracking`.
    StopDirtyTracking,
    /// `Machine::pause`.
    Pause,
    /// `Machine::resume`.
    Resume,
    /// `Machine::capture`.
    Capture,
    /// `Machine::restore`.
    Restore,
    /// `Machine::capture_devices`.
    CaptureDevices,
    /// `Machine::restore_devices`.
    RestoreDevices,
    /// `Machine::release_resources`.
    ReleaseResources,
    /// `Machine::take_resources`.
    TakeResources,
}

impl Call {
    /// Every call.
    pub const ALL: [Self; 12] = [
        Self::Build,
        Self::StartDirtyTracking,
        Self::HarvestDirty,
        Self::StopDirtyTracking,
        Self::Pause,
        Self::Resume,
        Self::Capture,
        Self::Restore,
        Self::CaptureDevices,
        Self::RestoreDevices,
        Self::ReleaseResources,
        Self::TakeResources,
    ];

    /// The method's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::StartDirtyTracking => "start_dirty_tracking",
            Self::HarvestDirty => "harvest_dirty",
            Self::StopDirtyTracking => "stop_dirty_tracking",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Capture => "capture",
            Self::Restore => "restore",
            Self::CaptureDevices => "capture_devices",
            Self::RestoreDevices => "restore_devices",
            Self::ReleaseResources => "release_resources",
            Self::TakeResources => "take_resources",
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which of the calls fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum When {
    /// Only the nth call, counted from 1.
    Nth(u32),
    /// Every call.
    Always,
}

/// Which call of this machine fails, if any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SimFaults {
    fail: Option<(Call, When)>,
    seen: u32,
}

impl SimFaults {
    /// Nothing fails.
    pub fn none() -> Self {
        Self::default()
    }

    /// The call fails the first time.
    pub fn once(call: Call) -> Self {
        Self::at(call, When::Nth(1))
    }

    /// The call fails every time.
    pub fn always(call: Call) -> Self {
        Self::at(call, When::Always)
    }

    /// The call fails then.
    pub fn at(call: Call, when: When) -> Self {
        Self { fail: Some((call, when)), seen: 0 }
    }

    /// Notes that the engine makes this call; an error if it is to fail.
    pub(crate) fn meet(&mut self, call: Call) -> Result<(), MachineError> {
        let Some((wanted, when)) = self.fail.filter(|(wanted, _)| *wanted == call) else {
            return Ok(());
        };
        self.seen = self.seen.saturating_add(1);
        let fails = match when {
            When::Nth(nth) => self.seen == nth,
            When::Always => true,
        };
        if fails {
            Err(MachineError::new(format!("the simulated machine was told to fail at {wanted}")))
        } else {
            Ok(())
        }
    }
}

/// A text that names no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no fault: use CALL, CALL:N or CALL:always, for example `pause:2`")]
pub struct SimFaultsError(String);

impl FromStr for SimFaults {
    type Err = SimFaultsError;

    fn from_str(text: &str) -> Result<Self, SimFaultsError> {
        let (name, when) = text.split_once(':').unwrap_or((text, "1"));
        let when = match when {
            "always" => Some(When::Always),
            number => number.parse().ok().filter(|nth| *nth > 0).map(When::Nth),
        };
        let call = Call::ALL.into_iter().find(|call| call.name() == name);
        match (call, when) {
            (Some(call), Some(when)) => Ok(Self::at(call, when)),
            _ => Err(SimFaultsError(text.chars().take(64).flat_map(char::escape_default).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(faults: &mut SimFaults, call: Call) -> Vec<bool> {
        (0..4).map(|_| faults.meet(call).is_ok()).collect()
    }

    #[test]
    fn the_named_call_fails_when_it_is_told_to() {
        assert_eq!(outcomes(&mut SimFaults::once(Call::Pause), Call::Pause), [false, true, true, true]);
        assert_eq!(outcomes(&mut SimFaults::always(Call::Pause), Call::Pause), [false; 4]);
        let third = &mut SimFaults::at(Call::HarvestDirty, When::Nth(3));
        assert_eq!(outcomes(third, Call::Pause), [true; 4]);
        assert_eq!(outcomes(third, Call::HarvestDirty), [true, true, false, true]);
        assert_eq!(outcomes(&mut SimFaults::none(), Call::Resume), [true; 4]);
    }

    #[test]
    fn every_call_has_a_text_form() {
        for call in Call::ALL {
            assert_eq!(call.name().parse(), Ok(SimFaults::once(call)));
            assert_eq!(format!("{call}:always").parse(), Ok(SimFaults::always(call)));
            assert_eq!(format!("{call}:7").parse(), Ok(SimFaults::at(call, When::Nth(7))));
        }
        for bad in ["", "explode", "pause:", "pause:0", "pause:-1", "pause:never", "pause:1:2"] {
            assert!(bad.parse::<SimFaults>().is_err(), "{bad}");
        }
    }
}
