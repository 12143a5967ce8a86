//! The exits of vCPUs of x86-64: devices are behind I/O ports and behind memory.

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::Stopped;
use crate::devices::PortDevices;
use crate::power::{self, Wish};

/// Answers an exit, or says why the guest stopped.
pub(super) fn answer(ports: &PortDevices, index: usize, exit: VcpuExit<'_>) -> Result<(), Stopped> {
    let answered = match exit {
        VcpuExit::IoOut(port, data) => {
            if let Some(wish) = ports.power().and_then(|_| power::asked_by(port, data)) {
                return Err(Stopped::Asked(wish));
            }
            ports.write(index, port, data);
            Ok(())
        }
        VcpuExit::IoIn(port, data) => {
            ports.read(index, port, data);
            Ok(())
        }
        VcpuExit::MmioRead(address, data) => behind_memory(ports.mmio_read(address, data), address),
        VcpuExit::MmioWrite(address, data) => behind_memory(ports.mmio_write(address, data), address),
        // A triple fault: what pulls a PC's reset line.
        VcpuExit::Shutdown if ports.power().is_some() => return Err(Stopped::Asked(Wish::Restart)),
        VcpuExit::Shutdown => Err("an exception that it cannot handle (KVM_EXIT_SHUTDOWN)".to_owned()),
        exit => Err(format!("it did what this machine does not answer ({exit:?})")),
    };
    answered.map_err(Stopped::Broken)
}

/// Whether a device answered.
fn behind_memory(answered: bool, address: u64) -> Result<(), String> {
    if answered { Ok(()) } else { Err(format!("it reached for {address:#x}, where nothing is")) }
}

/// Where a vCPU stands.
pub(super) fn place(vcpu: &VcpuFd) -> String {
    vcpu.get_regs().map_or_else(|_| String::new(), |regs| format!(" at {:#x}", regs.rip))
}
