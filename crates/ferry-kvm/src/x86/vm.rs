//! What a VM holds beside its vCPUs: the in-kernel interrupt controllers, the in-kernel PIT and
//! the kvmclock.

use ferry_state::x86::{Clock, Irqchip, Pit};
use ferry_state::{MachineState, Part, Section};
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;

use super::restore::{apply, apply_if_there};
use super::{Notice, StateIoError, convert};

/// What a VM held right after its creation, with its irqchip and its PIT.
#[derive(Debug, Clone)]
pub struct VmBaseline {
    irqchip: Option<Irqchip>,
    pit: Option<Pit>,
}

impl VmBaseline {
    /// Captures a VM that has just been created and got its irqchip and its PIT, if it gets
    /// them.
    pub fn capture(vm: &VmFd) -> Result<Self, StateIoError> {
        Ok(Self { irqchip: irqchip(vm)?, pit: pit(vm)? })
    }
}

/// Captures what a VM holds beside its vCPUs, which must all be stopped. Needed is what differs from
/// the baseline; without a baseline, everything.
pub fn capture_vm(vm: &VmFd, baseline: Option<&VmBaseline>) -> Result<Vec<Section>, StateIoError> {
    let mut sections = Vec::new();
    if let Some(irqchip) = irqchip(vm)? {
        let created = baseline.and_then(|baseline| baseline.irqchip.as_ref());
        sections.push(Section::of(&irqchip, 0, created)?);
    }
    // After the irqchip, whose lines it drives, so that a tick in between is seen rather than lost.
    if let Some(pit) = pit(vm)? {
        let created = baseline.and_then(|baseline| baseline.pit.as_ref());
        sections.push(Section::of(&pit, 0, created)?);
    }
    let clock = clock(vm)?;
    // The clock itself is needed; when it was read is not state of the guest.
    let elsewhen = Clock { clock: !clock.clock, ..clock };
    sections.push(Section::of(&clock, 0, Some(&elsewhen))?);
    Ok(sections)
}

/// Puts back what a VM holds beside its vCPUs: after every vCPU was restored, before the first runs.
/// Says what is worth a notice. After an error discard the VM.
pub fn restore_vm(vm: &VmFd, state: &MachineState) -> Result<Vec<Notice>, StateIoError> {
    let mut notices = Vec::new();
    // After the vCPUs' LAPICs: setting the IOAPIC sends the interrupts that wait in it to them
    // (kvm_ioapic_inject_all).
    if !apply_if_there(state, 0, &mut notices, |part| set_irqchip(vm, part))? && irqchip(vm)?.is_some() {
        return Err(StateIoError::NotInState { section: Irqchip::NAME, index: 0 });
    }
    // After the irqchip: it starts to tick at once, and the irqchip's state would overwrite the tick
    // (kvm_vm_ioctl_set_pit2).
    if !apply_if_there(state, 0, &mut notices, |part| set_pit(vm, part))? && pit(vm)?.is_some() {
        return Err(StateIoError::NotInState { section: Pit::NAME, index: 0 });
    }
    // After the vCPUs' TSCs, from which KVM counts it on; as late as can be, because it runs.
    apply(state, 0, &mut notices, |part| set_clock(vm, part))?;
    Ok(notices)
}

/// The kvmclock.
pub(super) fn clock(vm: &VmFd) -> Result<Clock, StateIoError> {
    let clock = vm.get_clock().map_err(|e| failed::<Clock>("KVM_GET_CLOCK", "the VM cannot be read", e))?;
    Ok(convert::clock_from_kvm(&clock))
}

pub(super) fn set_clock(vm: &VmFd, part: &Clock) -> Result<(), StateIoError> {
    vm.set_clock(&convert::clock_to_kvm(part))
        .map_err(|e| failed::<Clock>("KVM_SET_CLOCK", "KVM refuses the clock", e))
}

/// The three chips; None in a VM without an in-kernel irqchip, where KVM says ENXIO.
pub(super) fn irqchip(vm: &VmFd) -> Result<Option<Irqchip>, StateIoError> {
    let read = |chip_id: u32| -> Result<Option<kvm_irqchip>, StateIoError> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        match vm.get_irqchip(&mut chip) {
            Ok(()) => Ok(Some(chip)),
            Err(error) if error.errno() == libc::ENXIO => Ok(None),
            Err(error) => Err(failed::<Irqchip>("KVM_GET_IRQCHIP", "the VM cannot be read", error)),
        }
    };
    let (Some(master), Some(slave), Some(ioapic)) =
        (read(KVM_IRQCHIP_PIC_MASTER)?, read(KVM_IRQCHIP_PIC_SLAVE)?, read(KVM_IRQCHIP_IOAPIC)?)
    else {
        return Ok(None);
    };
    Ok(Some(Irqchip {
        pic_master: convert::pic_from_kvm(&master),
        pic_slave: convert::pic_from_kvm(&slave),
        ioapic: convert::ioapic_from_kvm(&ioapic),
    }))
}

pub(super) fn set_irqchip(vm: &VmFd, part: &Irqchip) -> Result<(), StateIoError> {
    let chips = [
        convert::pic_to_kvm(KVM_IRQCHIP_PIC_MASTER, &part.pic_master),
        convert::pic_to_kvm(KVM_IRQCHIP_PIC_SLAVE, &part.pic_slave),
        convert::ioapic_to_kvm(KVM_IRQCHIP_IOAPIC, &part.ioapic),
    ];
    for chip in &chips {
        vm.set_irqchip(chip).map_err(|e| {
            failed::<Irqchip>("KVM_SET_IRQCHIP", "the VM needs an in-kernel irqchip with PIC and IOAPIC", e)
        })?;
    }
    Ok(())
}

/// The interval timer; None in a VM without an in-kernel one, where KVM says ENXIO.
fn pit(vm: &VmFd) -> Result<Option<Pit>, StateIoError> {
    match vm.get_pit2() {
        Ok(pit) => Ok(Some(convert::pit_from_kvm(&pit))),
        Err(error) if error.errno() == libc::ENXIO => Ok(None),
        Err(error) => Err(failed::<Pit>("KVM_GET_PIT2", "the VM cannot be read", error)),
    }
}

pub(super) fn set_pit(vm: &VmFd, part: &Pit) -> Result<(), StateIoError> {
    vm.set_pit2(&convert::pit_to_kvm(part))
        .map_err(|e| failed::<Pit>("KVM_SET_PIT2", "the VM needs an in-kernel PIT", e))
}

fn failed<T: Part>(ioctl: &'static str, fact: &str, source: errno::Error) -> StateIoError {
    StateIoError::Ioctl { ioctl, section: T::NAME, index: 0, fact: fact.to_owned(), source }
}
