//! The exits of vCPUs of arm64: devices are behind memory, and PSCI ends the guest.
//!
//! Facts from the kernel's Documentation/virt/kvm/api.rst, 5 (`KVM_EXIT_MMIO`, `KVM_EXIT_SYSTEM_EVENT`).

use ferry_contract::arm64::{RegisterId, SystemRegister};
use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::Stopped;
use crate::boot::{ELR_EL1, PC, core};
use crate::devices::PortDevices;
use crate::ports;
use crate::power::Wish;

const FAR_EL1: SystemRegister = SystemRegister::new(3, 0, 6, 0, 0);
const VBAR_EL1: SystemRegister = SystemRegister::new(3, 0, 12, 0, 0);

/// Bytes of the exception vectors.
const VECTORS_BYTES: u64 = 0x800;

/// Answers an exit, or says why the guest stopped.
pub(super) fn answer(devices: &PortDevices, index: usize, exit: VcpuExit<'_>) -> Result<(), Stopped> {
    let has_kernel = devices.power().is_some();
    let port = match &exit {
        VcpuExit::MmioWrite(address, _) | VcpuExit::MmioRead(address, _) => {
            address.checked_sub(ports::WINDOW).and_then(|offset| u16::try_from(offset).ok())
        }
        _ => None,
    };
    let answered = match (port, exit) {
        (Some(ports::EXCEPTION), VcpuExit::MmioWrite(_, data)) if !has_kernel => Err(exception(data)),
        (Some(port), VcpuExit::MmioWrite(_, data)) => {
            devices.write(index, port, data);
            Ok(())
        }
        (Some(port), VcpuExit::MmioRead(_, data)) => {
            devices.read(index, port, data);
            Ok(())
        }
        (None, VcpuExit::MmioRead(address, data)) => behind_memory(devices.mmio_read(address, data), address),
        (None, VcpuExit::MmioWrite(address, data)) => {
            behind_memory(devices.mmio_write(address, data), address)
        }
        (_, VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) if has_kernel => {
            return Err(Stopped::Asked(Wish::Off));
        }
        (_, VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) if has_kernel => {
            return Err(Stopped::Asked(Wish::Restart));
        }
        (_, VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
            Err("it switched itself off (PSCI SYSTEM_OFF)".to_owned())
        }
        (_, VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
            Err("it asked for a reset (PSCI SYSTEM_RESET), and no payload starts anew".to_owned())
        }
        (_, exit) => Err(format!("it did what this machine does not answer ({exit:x?})")),
    };
    answered.map_err(Stopped::Broken)
}

/// Whether a device answered.
fn behind_memory(answered: bool, address: u64) -> Result<(), String> {
    if answered { Ok(()) } else { Err(format!("it reached for {address:#x}, where nothing is")) }
}

/// What the vectors of the boot say.
fn exception(data: &[u8]) -> String {
    let syndrome = <[u8; 4]>::try_from(data).map_or(0, u32::from_le_bytes);
    format!("an exception that it does not handle (ESR_EL1 {syndrome:#010x})")
}

/// Where a vCPU stands; in the exception vectors, where it came from.
pub(super) fn place(vcpu: &VcpuFd) -> String {
    let read = |id: Option<RegisterId>| {
        let mut value = [0; 8];
        vcpu.get_one_reg(id?.raw(), &mut value).ok()?;
        Some(u64::from_le_bytes(value))
    };
    let Some(pc) = read(core(PC)) else { return String::new() };
    let vectors = read(Some(RegisterId::system(VBAR_EL1))).unwrap_or(0);
    if !(vectors..vectors.saturating_add(VECTORS_BYTES)).contains(&pc) {
        return format!(" at {pc:#x}");
    }
    let [from, fault] = [core(ELR_EL1), Some(RegisterId::system(FAR_EL1))].map(|id| read(id).unwrap_or(0));
    format!(" at {from:#x}, FAR_EL1 {fault:#x}")
}
