//! The ACPI tables of a machine of x86-64: hardware-reduced, so that there is nothing to drive but two registers of
//! power, which [`crate::power`] answers.
//!
//! | table | says |
//! |---|---|
//! | RSDP, XSDT | where the others are |
//! | FADT | hardware-reduced; where the registers of sleep and reset are; no keyboard controller, no VGA, no clock of CMOS |
//! | MADT | a local APIC for each vCPU, the I/O APIC |
//! | DSDT | how to switch off (`\_S5`), the serial port with interrupt 4, each virtio device (`LNRO0005`) with its window and interrupt |
//!
//! A hardware-reduced machine has no legacy interrupt controller for Linux, nor an interval timer: the serial port's
//! interrupt comes to it by the DSDT alone.
//!
//! Facts: ACPI specification 6.5: 5.2.5 RSDP, 5.2.8 XSDT, 5.2.9 FADT, 5.2.12 MADT, 4.8.3.7 "Sleep control and status
//! registers", 7.4.2 `\_S`, 6.4.3.6 "Extended Interrupt Descriptor"; the kernel's `drivers/virtio/virtio_mmio.c` (`LNRO0005`).

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::super::{LinuxError, align_up};
use crate::power;
use crate::serial::IRQ as SERIAL_INTERRUPT;
use crate::{DEVICE_BYTES, DEVICE_INTERRUPTS, DEVICES, ports};

const OEM: [u8; 6] = *b"FERRY ";
const OEM_TABLE: [u8; 8] = *b"FERRYVMM";
const OEM_REVISION: u32 = 1;

/// Where KVM has its I/O APIC and local APICs.
const IO_APIC: u32 = 0xfec0_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;

/// FADT `IAPC_BOOT_ARCH`: no VGA to probe for, no clock of CMOS. Bit 1, a keyboard controller, is clear.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// A table begins at a multiple of this.
const ALIGNMENT: u64 = 16;

/// The tables as they lie in memory from `start` on, where the RSDP comes first. `apics` are the ids of the vCPUs' local
/// APICs.
pub(super) fn tables(start: u64, apics: &[u64], devices: u32) -> Result<Vec<u8>, LinuxError> {
    let mut placed = Placed { start, bytes: vec![0; Rsdp::len()] };
    let dsdt = placed.add(dsdt(devices)?.as_slice())?;
    let fadt = placed.add(&bytes_of(&fadt(dsdt)))?;
    let madt = placed.add(&bytes_of(&madt(apics)?))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = placed.add(&bytes_of(&xsdt))?;
    let rsdp = bytes_of(&Rsdp::new(OEM, xsdt));
    placed.bytes.splice(..rsdp.len(), rsdp);
    Ok(placed.bytes)
}

fn bytes_of(what: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    what.to_aml_bytes(&mut bytes);
    bytes
}

/// Tables one after the other.
struct Placed {
    start: u64,
    bytes: Vec<u8>,
}

impl Placed {
    /// Adds one; its address.
    fn add(&mut self, table: &[u8]) -> Result<u64, LinuxError> {
        let at = align_up(self.bytes.len() as u64, ALIGNMENT);
        let place = usize::try_from(at).map_err(|error| LinuxError::Tables(error.to_string()))?;
        self.bytes.resize(place, 0);
        self.bytes.extend_from_slice(table);
        Ok(self.start + at)
    }
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless)
        // No fixed buttons: with these bits set there are none.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = port(power::RESET_CONTROL);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(apics: &[u64]) -> Result<MADT, LinuxError> {
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    if apics.len() > usize::from(u8::MAX) {
        return Err(LinuxError::Tables(format!("they have no room for {} vCPUs", apics.len())));
    }
    for (uid, apic) in (0_u8..u8::MAX).zip(apics) {
        // 255 is everybody. More vCPUs than have an id of eight bits are not to be had: see MAX_CPUS.
        let id = u8::try_from(*apic).ok().filter(|id| *id != u8::MAX);
        let id = id.ok_or_else(|| LinuxError::Tables(format!("a vCPU has the APIC id {apic}")))?;
        madt.add_structure(ProcessorLocalApic::new(uid, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    Ok(madt)
}

fn dsdt(devices: u32) -> Result<Sdt, LinuxError> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    let off = Name::new("_S5_".into(), &Package::new(vec![&power::SLEEP_OFF]));
    let mut below = serial();
    for place in 0..devices {
        below.extend(virtio(place)?);
    }
    let mut body = Vec::new();
    off.to_aml_bytes(&mut body);
    body.extend(Scope::raw("_SB_".into(), below));
    dsdt.append_slice(&body);
    Ok(dsdt)
}

/// The serial port, as every PC's first.
fn serial() -> Vec<u8> {
    let window = IO::new(ports::SERIAL, ports::SERIAL, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_INTERRUPT);
    let resources = ResourceTemplate::new(vec![&window, &interrupt]);
    let id = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let unique = Name::new("_UID".into(), &0_u8);
    let resources = Name::new("_CRS".into(), &resources);
    bytes_of(&Device::new("COM1".into(), vec![&id, &unique, &resources]))
}

/// The virtio device at a place, whose interrupt is triggered by its level.
fn virtio(place: u32) -> Result<Vec<u8>, LinuxError> {
    let window = DEVICES + u64::from(place) * DEVICE_BYTES;
    let [base, length] = [window, DEVICE_BYTES].map(u32::try_from);
    let far = |error: std::num::TryFromIntError| LinuxError::Tables(error.to_string());
    let memory = Memory32Fixed::new(true, base.map_err(far)?, length.map_err(far)?);
    let interrupt = Interrupt::new(true, false, false, false, DEVICE_INTERRUPTS + place);
    let id = Name::new("_HID".into(), &"LNRO0005");
    let unique = Name::new("_UID".into(), &place);
    let coherent = Name::new("_CCA".into(), &1_u8);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&memory, &interrupt]));
    let name = format!("V{place:03X}").as_str().into();
    Ok(bytes_of(&Device::new(name, vec![&id, &unique, &coherent, &resources])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0xe_0000;

    /// The table at an address, whose bytes sum up to 0.
    fn table(all: &[u8], address: u64) -> &[u8] {
        let from = &all[usize::try_from(address - START).unwrap()..];
        let length = u32::from_le_bytes(from[4..8].try_into().unwrap());
        let table = &from[..length as usize];
        assert_eq!(sum(table), 0, "{:?}", String::from_utf8_lossy(&table[..4]));
        assert_eq!(address % ALIGNMENT, 0);
        table
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    fn word(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn count(bytes: &[u8], what: &[u8]) -> usize {
        bytes.windows(what.len()).filter(|window| *window == what).count()
    }

    #[test]
    fn the_tables_lead_to_each_other_and_say_what_the_machine_is() {
        let all = tables(START, &[0, 1, 5], 2).unwrap();
        assert_eq!((&all[..8], sum(&all[..20]), sum(&all[..36])), (&b"RSD PTR "[..], 0, 0));
        let xsdt = table(&all, word(&all, 24));
        assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 36 + 2 * 8));
        let fadt = table(&all, word(xsdt, 36));
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!((&fadt[..4], flags >> 20 & 1, flags >> 10 & 1), (&b"FACP"[..], 1, 1));
        assert_eq!(fadt[109..111], (NO_VGA | NO_CMOS_CLOCK).to_le_bytes());
        assert_eq!((word(fadt, 120), fadt[128]), (0xcf9, 6));
        assert_eq!((fadt[244], word(fadt, 248), word(fadt, 260)), (1, 0x600, 0x601));
        let dsdt = table(&all, word(fadt, 140));
        assert_eq!((&dsdt[..4], count(dsdt, b"LNRO0005\0")), (&b"DSDT"[..], 2));
        // Package of one element, 5.
        assert_eq!(count(dsdt, b"_S5_\x12\x04\x01\x0a\x05"), 1);
        // The serial port: ports 0x3f8 to 0x3ff; interrupt 4, by its edge.
        assert_eq!(count(dsdt, &[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x89, 6, 0, 3, 1, 4, 0, 0, 0]), 1);
        for (place, interrupt) in [(0_u8, 16), (1, 17)] {
            let window = [0x86, 9, 0, 1, 0, place << 4, 0, 0xd0, 0, 0x10, 0, 0];
            let interrupt = [0x89, 6, 0, 1, 1, interrupt, 0, 0, 0];
            assert_eq!(count(dsdt, &[&window[..], &interrupt[..]].concat()), 1, "{place}");
        }
        let madt = table(&all, word(xsdt, 44));
        assert_eq!((&madt[..4], &madt[36..44]), (&b"APIC"[..], &[0, 0, 0xe0, 0xfe, 0, 0, 0, 0][..]));
        assert_eq!(madt[44..52], [0, 8, 0, 0, 1, 0, 0, 0]);
        assert_eq!(madt[60..68], [0, 8, 2, 5, 1, 0, 0, 0]);
        assert_eq!(madt[68..], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    }

    #[test]
    fn the_largest_machine_has_its_tables() {
        let apics: Vec<u64> = (0..u64::from(crate::MAX_CPUS)).collect();
        let all = tables(START, &apics, u32::try_from(crate::MAX_DEVICES).unwrap()).unwrap();
        assert!((all.len() as u64) < super::super::ACPI_BYTES);
        assert!(tables(START, &[255], 0).unwrap_err().to_string().contains("APIC id 255"));
        assert!(tables(START, &[0; 256], 0).unwrap_err().to_string().contains("no room for 256 vCPUs"));
    }
}
