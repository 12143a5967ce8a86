//! The real-time clock of a guest of arm64, a PL031: vm-superio's emulation. It says the host's time, and by how much the
//! guest set it otherwise crosses with the guest as part `device/rtc`.
//!
//! Linux reads it once, when it boots. On x86-64 a guest has the time from KVM's clock instead (`MSR_KVM_WALL_CLOCK_NEW`).
//!
//! Facts: Arm's DDI 0224 (PL031), 3.3 "Register descriptions". Its alarm never rings.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_memory::PageSet;
use ferry_migrate::{Device, DeviceSet, MachineError, Saved};
use ferry_state::{Fields, Part, Section};
use minicbor::{Decode, Encode};
use vm_superio::rtc_pl031::{NoEvents, Rtc, RtcState};

use crate::mmio::{MmioBus, MmioDevice};

/// Where its window lies, behind the ports.
pub(crate) const ADDRESS: u64 = 0x0a01_0000;
pub(crate) const BYTES: u64 = 0x1000;

/// Its interrupt's number in the GIC; it never comes.
pub(crate) const INTERRUPT: u32 = 34;

/// A handle of the clock; all clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct RealTimeClock {
    inner: Arc<Mutex<Rtc<NoEvents>>>,
}

/// Its registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct State {
    /// RTCLR: what the guest set the clock to last.
    #[n(0)]
    load: u32,
    /// By how many seconds it is off the host's.
    #[n(1)]
    offset_seconds: i64,
    /// RTCMR: when the alarm would ring.
    #[n(2)]
    alarm: u32,
    /// RTCIMSC: whether it would interrupt.
    #[n(3)]
    interrupt_enable: u32,
    /// RTCRIS.
    #[n(4)]
    interrupt: u32,
}

impl Part for State {
    const NAME: &'static str = "device/rtc";
    const FIELDS: Fields = Fields::These(&[0, 1, 2, 3, 4]);
}

impl RealTimeClock {
    /// Puts one at its place.
    pub(crate) fn add(set: &mut DeviceSet, mmio: &mut MmioBus) -> Result<(), MachineError> {
        let clock = Self { inner: Arc::new(Mutex::new(Rtc::new())) };
        set.add(clock.clone())?;
        mmio.add(ADDRESS..ADDRESS + BYTES, Arc::new(clock));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Rtc<NoEvents>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MmioDevice for RealTimeClock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut word = [0; 4];
        if let Ok(offset) = u16::try_from(offset & !3) {
            self.lock().read(offset, &mut word);
        }
        let skip = usize::try_from(offset % 4).unwrap_or(0);
        data.fill(0);
        data.iter_mut().zip(word.iter().skip(skip)).for_each(|(to, from)| *to = *from);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // Registers are words; what is none changes nothing.
        if let (Ok(offset), Ok(word)) = (u16::try_from(offset), <&[u8; 4]>::try_from(data)) {
            self.lock().write(offset, word);
        }
    }
}

impl Device for RealTimeClock {
    fn name(&self) -> String {
        "rtc".to_owned()
    }

    fn save(&mut self) -> Result<Saved, MachineError> {
        let RtcState { lr, offset, mr, imsc, ris } = self.lock().state();
        let state =
            State { load: lr, offset_seconds: offset, alarm: mr, interrupt_enable: imsc, interrupt: ris };
        Saved::part(&state, Some(&State::default()))
    }

    fn restore(&mut self, section: &Section) -> Result<(), MachineError> {
        let state: State = section
            .read()
            .map_err(|error| MachineError::with_source("this is no state of a real-time clock", error))?;
        let state = RtcState {
            lr: state.load,
            offset: state.offset_seconds,
            mr: state.alarm,
            imsc: state.interrupt_enable,
            ris: state.interrupt,
        };
        *self.lock() = Rtc::from_state(&state, NoEvents);
        Ok(())
    }

    fn harvest_dirty(&mut self, _: &mut PageSet) -> Result<(), MachineError> {
        Ok(()) // it reads and writes no guest memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> RealTimeClock {
        RealTimeClock { inner: Arc::new(Mutex::new(Rtc::new())) }
    }

    fn seconds(clock: &RealTimeClock) -> u32 {
        let mut word = [0; 4];
        clock.read(0, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn it_says_the_hosts_time_and_keeps_across_a_move_what_the_guest_set() {
        let (mut source, mut target) = (clock(), clock());
        let now = seconds(&source);
        assert!(now > 1_700_000_000);
        // RTCLR.
        source.write(8, &(now + 1_000_000).to_le_bytes());
        let Saved::Section(section) = source.save().unwrap() else { panic!() };
        assert_eq!(section.needed, [0, 1]);
        target.restore(&section).unwrap();
        assert!((now + 1_000_000..now + 1_000_060).contains(&seconds(&target)));
        // The last byte of the identification, which its driver reads.
        let mut byte = [0];
        target.read(0xffc, &mut byte);
        assert_eq!(byte, [0xb1]);
    }
}
