//! What a guest with a kernel does to its machine as a whole: it switches itself off, or asks for a restart.
//!
//! On x86-64 by three ways that Linux tries: ACPI's registers for sleep and reset, which the guest finds in its FADT,
//! and the keyboard controller's reset line, beside the triple fault; one that jumps to the firmware instead finds
//! instructions there that write to the register for reset. On arm64 by PSCI, which KVM answers.
//!
//! Facts: ACPI 6.5, 4.8.3.7 (`SLP_EN` bit 5, `SLP_TYPx` bits 2 to 4); the kernel's arch/x86/kernel/reboot.c.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_memory::PageSet;
use ferry_migrate::{Device, MachineError, Saved};
use ferry_state::{Fields, Part, Section};
use minicbor::{Decode, Encode};

#[cfg(target_arch = "x86_64")]
mod registers {
    /// Sleep control and status registers.
    pub(crate) const SLEEP_CONTROL: u16 = 0x600;
    pub(crate) const SLEEP_STATUS: u16 = 0x601;

    /// The type of sleep that is off (`\_S5`).
    pub(crate) const SLEEP_OFF: u8 = 5;
    const SLEEP_TYPE_SHIFT: u8 = 2;
    const SLEEP_TYPE: u8 = 7 << SLEEP_TYPE_SHIFT;
    const SLEEP_ENABLE: u8 = 1 << 5;

    /// The reset control register of PC chipsets: bit 2 resets.
    pub(crate) const RESET_CONTROL: u16 = 0xcf9;
    pub(crate) const RESET_VALUE: u8 = 6;
    const RESET: u8 = 1 << 2;

    /// The keyboard controller's command register, and the command that pulls the reset line.
    const KEYBOARD_COMMAND: u16 = 0x64;
    const PULSE_RESET: u8 = 0xfe;

    /// What a write to a port asks of the machine.
    pub(crate) fn asked_by(port: u16, data: &[u8]) -> Option<super::Wish> {
        let [value] = *data else { return None };
        match port {
            SLEEP_CONTROL
                if value & SLEEP_ENABLE != 0 && value & SLEEP_TYPE == SLEEP_OFF << SLEEP_TYPE_SHIFT =>
            {
                Some(super::Wish::Off)
            }
            RESET_CONTROL if value & RESET != 0 => Some(super::Wish::Restart),
            KEYBOARD_COMMAND if value == PULSE_RESET => Some(super::Wish::Restart),
            _ => None,
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use registers::{RESET_CONTROL, RESET_VALUE, SLEEP_CONTROL, SLEEP_OFF, SLEEP_STATUS, asked_by};

/// What a guest asked of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To be off.
    Off,
    /// To begin anew.
    Restart,
}

/// What a guest asked for last; all clones are the same. A restart that was asked for crosses with the guest, so that
/// it begins anew on the host to which it was being moved.
#[derive(Debug, Clone, Default)]
pub(crate) struct Power {
    wish: Arc<Mutex<Option<Wish>>>,
}

/// What crosses of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct PowerState {
    /// It is to begin anew before it runs again.
    #[n(0)]
    restart: bool,
}

impl Part for PowerState {
    const NAME: &'static str = "device/power";
    const FIELDS: Fields = Fields::These(&[0]);
}

impl Power {
    /// Notes a wish; that to be off stays.
    pub(crate) fn ask(&self, wish: Wish) {
        let mut asked = self.lock();
        if *asked != Some(Wish::Off) {
            *asked = Some(wish);
        }
    }

    /// What was asked for.
    pub(crate) fn asked(&self) -> Option<Wish> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Wish>> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Power {
    fn name(&self) -> String {
        "power".to_owned()
    }

    fn save(&mut self) -> Result<Saved, MachineError> {
        let state = PowerState { restart: self.asked() == Some(Wish::Restart) };
        Saved::part(&state, Some(&PowerState::default()))
    }

    fn restore(&mut self, section: &Section) -> Result<(), MachineError> {
        let state: PowerState =
            section.read().map_err(|error| MachineError::with_source("this is no state of power", error))?;
        *self.lock() = state.restart.then_some(Wish::Restart);
        Ok(())
    }

    fn harvest_dirty(&mut self, _: &mut PageSet) -> Result<(), MachineError> {
        Ok(()) // it reads and writes no guest memory
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_registers_of_power_are_read_as_acpi_has_them() {
        assert_eq!(asked_by(SLEEP_CONTROL, &[5 << 2 | 1 << 5]), Some(Wish::Off));
        assert_eq!(asked_by(RESET_CONTROL, &[RESET_VALUE]), Some(Wish::Restart));
        assert_eq!(asked_by(0x64, &[0xfe]), Some(Wish::Restart));
        for (port, value) in
            [(SLEEP_CONTROL, 5 << 2), (SLEEP_CONTROL, 0x20), (RESET_CONTROL, 2), (0x64, 0xd1)]
        {
            assert_eq!(asked_by(port, &[value]), None, "{port:#x} {value:#x}");
        }
        // A register of PCI's configuration overlaps it.
        assert_eq!(asked_by(0xcf8, &[0, 6, 0, 0x80]), None);
        assert_eq!(asked_by(RESET_CONTROL, &[6, 0]), None);
    }
}
