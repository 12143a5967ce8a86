//! The state of a simulated machine on the wire: `sim.core` and `device/sim-debug-port`.
//!
//! The saved types stand apart from the running ones, so that the running ones may change. A state
//! comes from the other side: besides what `ferry-state` refuses, everything is refused here that no
//! core of that config can hold after that many steps.

use ferry_memory::PAGE_SIZE;
use ferry_state::{Fields, MachineState, Part, Section, StateError};
use minicbor::{Decode, Encode};

use crate::page::Fault;
use crate::sim_core::{DebugPort, GENERAL_REGISTERS, MAX_STEPS, PORT_EVERY, SimCore, SimRegisters};

/// The processor's registers on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct CorePart {
    #[n(0)]
    steps: u64,
    #[n(1)]
    general: [u64; GENERAL_REGISTERS],
    #[n(2)]
    faults: u64,
    /// Page, offset, expected, found; four zeros if there is no fault.
    #[n(3)]
    first_fault: [u64; 4],
}

/// The debug port's counters on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct PortPart {
    #[n(0)]
    writes: u64,
    #[n(1)]
    last: u64,
}

impl Part for CorePart {
    const NAME: &'static str = "sim.core";
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3]);

    fn check(&self) -> Result<(), String> {
        let [page, offset, expected, found] = self.first_fault;
        if self.steps > MAX_STEPS {
            return Err(format!("{} steps, a guest's life has {MAX_STEPS}", self.steps));
        }
        if self.faults == 0 && self.first_fault != [0; 4] {
            return Err("a first fault where there is none".to_owned());
        }
        if self.faults != 0 && (expected == found || offset >= PAGE_SIZE || !offset.is_multiple_of(8)) {
            return Err(format!("page {page}, offset {offset}: no fault that a check of pages finds"));
        }
        Ok(())
    }
}

impl Part for PortPart {
    const NAME: &'static str = "device/sim-debug-port";
    const FIELDS: Fields = Fields::These(&[0, 1]);
}

impl From<&SimRegisters> for CorePart {
    fn from(registers: &SimRegisters) -> Self {
        let first_fault = registers.first_fault.map_or([0; 4], |f| [f.page, f.offset, f.expected, f.found]);
        Self { steps: registers.steps, general: registers.general, faults: registers.faults, first_fault }
    }
}

impl From<CorePart> for SimRegisters {
    fn from(part: CorePart) -> Self {
        let [page, offset, expected, found] = part.first_fault;
        let first_fault = (part.faults != 0).then_some(Fault { page, offset, expected, found });
        Self { steps: part.steps, general: part.general, faults: part.faults, first_fault }
    }
}

impl From<&DebugPort> for PortPart {
    fn from(port: &DebugPort) -> Self {
        Self { writes: port.writes, last: port.last }
    }
}

/// A state that this machine cannot take.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A section is missing, garbled, or holds more than this build knows.
    #[error("the state cannot be read")]
    State(#[from] StateError),
    /// A section of a vCPU that a simulated machine does not have.
    #[error("the state has section {section} of vCPU {index}, a simulated machine has one vCPU")]
    NoSuchVcpu {
        /// The section's name.
        section: String,
        /// Its index.
        index: u32,
    },
    /// More faults than pages were checked.
    #[error("the state has {faults} faults on {checked} checked pages")]
    Faults {
        /// Faults in the state.
        faults: u64,
        /// Pages that a guest has checked after so many steps.
        checked: u64,
    },
    /// The first fault lies outside the workload's pages.
    #[error("the state has a fault on page {page}, the workload has {pages} pages")]
    FaultPage {
        /// The page of the fault.
        page: u64,
        /// Pages of the workload.
        pages: u64,
    },
    /// The debug port counted otherwise than the processor.
    #[error("the debug port has {writes} writes, after {steps} steps it has {expected}")]
    Port {
        /// Writes in the state.
        writes: u64,
        /// Steps of the restored processor.
        steps: u64,
        /// Writes that so many steps make.
        expected: u64,
    },
    /// The debug port holds a word that nobody wrote.
    #[error("the debug port holds {0:#x}, and nothing was written to it")]
    PortWord(u64),
}

/// The processor's section.
pub(crate) fn capture_core(core: &SimCore) -> Result<MachineState, StateError> {
    let fresh = CorePart::from(&SimRegisters::at_birth(core.config().seed));
    let section = Section::of(&CorePart::from(core.registers()), 0, Some(&fresh))?;
    MachineState::from_sections(vec![section])
}

/// The device's section.
pub(crate) fn capture_port(core: &SimCore) -> Result<MachineState, StateError> {
    let fresh = PortPart::from(&DebugPort::default());
    let section = Section::of(&PortPart::from(core.port()), 0, Some(&fresh))?;
    MachineState::from_sections(vec![section])
}

/// Puts the processor's section into a core; on an error the core is as it was.
pub(crate) fn restore_core(core: &mut SimCore, state: &MachineState) -> Result<(), RestoreError> {
    let part: CorePart = only(state)?;
    let checked = core.pages_checked_after(part.steps);
    if part.faults > checked {
        return Err(RestoreError::Faults { faults: part.faults, checked });
    }
    let ([page, ..], pages) = (part.first_fault, core.checked_pages());
    if page >= pages {
        return Err(RestoreError::FaultPage { page, pages });
    }
    core.set_registers(part.into());
    Ok(())
}

/// Puts the device's section into a core whose registers are restored.
pub(crate) fn restore_port(core: &mut SimCore, state: &MachineState) -> Result<(), RestoreError> {
    let PortPart { writes, last } = only(state)?;
    let steps = core.registers().steps;
    let expected = steps / PORT_EVERY;
    if writes != expected {
        return Err(RestoreError::Port { writes, steps, expected });
    }
    if writes == 0 && last != 0 {
        return Err(RestoreError::PortWord(last));
    }
    core.set_port(DebugPort { writes, last });
    Ok(())
}

/// The one part of a state that must hold it, and nothing else that is needed.
fn only<T: Part>(state: &MachineState) -> Result<T, RestoreError> {
    state.refuse_unknown(&[T::NAME])?;
    if let Some(other) = state.sections.iter().find(|section| section.name == T::NAME && section.index != 0) {
        return Err(RestoreError::NoSuchVcpu { section: other.name.clone(), index: other.index });
    }
    Ok(state.require(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SimConfig, Workload};

    const CONFIG: SimConfig = SimConfig {
        seed: 5,
        memory_bytes: 16 * PAGE_SIZE,
        workload: Workload::Churn { working_set_bytes: 8 * PAGE_SIZE, rate_bytes_per_second: 1 << 20 },
    };

    /// Whether an error is the right one.
    type Judge = fn(&RestoreError) -> bool;

    fn ran(steps: u64) -> SimCore {
        let mut core = SimCore::born(CONFIG).unwrap();
        core.step(steps).unwrap();
        core
    }

    fn state_of<T: Part>(part: &T) -> MachineState {
        MachineState { sections: vec![Section::of(part, 0, None).unwrap()] }
    }

    #[test]
    fn what_was_captured_is_restored() {
        let source = ran(1000);
        let mut target = SimCore::born(CONFIG).unwrap();
        restore_core(&mut target, &capture_core(&source).unwrap()).unwrap();
        restore_port(&mut target, &capture_port(&source).unwrap()).unwrap();
        assert_eq!(target.registers(), source.registers());
        assert_eq!(target.port(), source.port());
    }

    #[test]
    fn only_what_differs_from_birth_is_needed() {
        assert_eq!(capture_core(&ran(0)).unwrap().sections[0].needed, [0_u32; 0]);
        assert_eq!(capture_core(&ran(1)).unwrap().sections[0].needed, [0, 1]);
        assert_eq!(capture_port(&ran(63)).unwrap().sections[0].needed, [0_u32; 0]);
        assert_eq!(capture_port(&ran(64)).unwrap().sections[0].needed, [0, 1]);
    }

    #[test]
    fn the_wire_form_of_today_is_this() {
        let part = CorePart { steps: 9, general: [1; 16], faults: 1, first_fault: [2, 8, 3, 4] };
        let body = &state_of(&part).sections[0].body;
        let mut today = vec![0xa4, 0x00, 0x09, 0x01, 0x90];
        today.extend([1; 16]);
        today.extend([0x02, 0x01, 0x03, 0x84, 0x02, 0x08, 0x03, 0x04]);
        assert_eq!(body, &today);
        let body = &state_of(&PortPart { writes: 1, last: 2 }).sections[0].body;
        assert_eq!(body, &[0xa2, 0x00, 0x01, 0x01, 0x02]);
    }

    #[test]
    fn a_core_that_cannot_be_is_refused_and_changes_nothing() {
        let good = CorePart::from(ran(100).registers());
        let fault = |faults, first_fault| CorePart { faults, first_fault, ..good.clone() };
        let bad: [(CorePart, Judge); 7] = [
            (CorePart { steps: MAX_STEPS + 1, ..good.clone() }, |e| matches!(e, RestoreError::State(_))),
            (fault(0, [1, 0, 0, 0]), |e| matches!(e, RestoreError::State(_))),
            (fault(1, [1, 0, 7, 7]), |e| matches!(e, RestoreError::State(_))),
            (fault(1, [1, 4096, 7, 8]), |e| matches!(e, RestoreError::State(_))),
            (fault(1, [1, 12, 7, 8]), |e| matches!(e, RestoreError::State(_))),
            (fault(93, [1, 8, 7, 8]), |e| matches!(e, RestoreError::Faults { faults: 93, checked: 92 })),
            (fault(1, [8, 8, 7, 8]), |e| matches!(e, RestoreError::FaultPage { page: 8, pages: 8 })),
        ];
        for (part, is_right) in bad {
            let mut target = SimCore::born(CONFIG).unwrap();
            let error = restore_core(&mut target, &state_of(&part)).unwrap_err();
            assert!(is_right(&error), "{part:?} gave {error:?}");
            assert_eq!(target.registers(), &SimRegisters::at_birth(CONFIG.seed));
        }
    }

    #[test]
    fn a_port_that_counted_otherwise_is_refused() {
        let mut core = ran(200);
        let error = restore_port(&mut core, &state_of(&PortPart { writes: 4, last: 1 })).unwrap_err();
        assert!(matches!(error, RestoreError::Port { writes: 4, steps: 200, expected: 3 }));
        let error = restore_port(&mut ran(9), &state_of(&PortPart { writes: 0, last: 1 })).unwrap_err();
        assert!(matches!(error, RestoreError::PortWord(1)));
    }

    #[test]
    fn sections_that_do_not_fit_are_refused() {
        let good = capture_core(&ran(100)).unwrap();
        let refuse = |state: &MachineState| restore_core(&mut ran(0), state).unwrap_err();
        assert!(matches!(
            refuse(&MachineState::default()),
            RestoreError::State(StateError::MissingSection { .. })
        ));
        let twice = MachineState { sections: vec![good.sections[0].clone(); 2] };
        assert!(matches!(refuse(&twice), RestoreError::State(StateError::DuplicateSection { .. })));
        let mut second = good.clone();
        second.sections.push(Section { index: 1, ..good.sections[0].clone() });
        assert!(matches!(refuse(&second), RestoreError::NoSuchVcpu { index: 1, .. }));
        let mut foreign = good.clone();
        foreign.sections.push(capture_port(&ran(100)).unwrap().sections[0].clone());
        assert!(matches!(refuse(&foreign), RestoreError::State(StateError::UnknownNeededSection { .. })));
        for cut in 0..good.sections[0].body.len() {
            let mut short = good.clone();
            short.sections[0].body.truncate(cut);
            assert!(matches!(refuse(&short), RestoreError::State(_)), "cut at {cut}");
        }
    }
}
