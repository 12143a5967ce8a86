//! What a vCPU holds, read in the order that reads it whole.
//!
//! The vCPU must be stopped, with its last exit completed (`KVM_RUN` with `immediate_exit` set): an
//! exit that waits for its answer is state that no ioctl gives.

use std::collections::BTreeSet;

use ferry_state::x86::{
    DebugRegs, Lapic, MpState, Msrs, Nested, Regs, Sregs, TscFrequency, TscOffset, VcpuEvents, Xcrs, Xsave,
};
use ferry_state::{Part, Section, StateError};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use super::{FirstTsc, StateIoError, X86Caps, convert, ioctls, msrs, nested, tsc};

/// What a vCPU held right after its creation, against which a capture finds what the guest changed.
#[derive(Debug, Clone)]
pub struct VcpuBaseline {
    values: Values,
}

impl VcpuBaseline {
    /// Captures a vCPU that has just been created and got its CPUID (`KVM_SET_CPUID2`), before anything
    /// else is set. MSRs that KVM lists and cannot read are found here, and noted in `caps`.
    pub fn capture(vcpu: &VcpuFd, index: u32, caps: &mut X86Caps) -> Result<Self, StateIoError> {
        let (values, refused) = Values::read(vcpu, index, caps)?;
        caps.msrs.retain(|msr| !refused.contains(msr));
        caps.unreadable.extend(refused);
        Ok(Self { values })
    }
}

/// Captures what a stopped vCPU holds, one section a part. Needed is what differs from the baseline;
/// without a baseline, everything. The vCPUs of a VM are captured from 0 on with the same `first`.
pub fn capture_vcpu(
    vcpu: &VcpuFd,
    index: u32,
    baseline: Option<&VcpuBaseline>,
    caps: &X86Caps,
    first: &mut FirstTsc,
) -> Result<Vec<Section>, StateIoError> {
    let (values, refused) = Values::read(vcpu, index, caps)?;
    if let Some(msr) = refused.first() {
        return Err(StateIoError::MsrUnreadable { index, msr: *msr });
    }
    let mut sections = values.sections(index, baseline.map(|baseline| &baseline.values))?;
    if index == 0 {
        first.offset = values.tsc_offset;
    } else if let (Some(first), Some(own)) = (first.offset, values.tsc_offset) {
        let part = TscOffset { from_first: own.wrapping_sub(first) };
        sections.push(Section::of(&part, index, Some(&TscOffset::default()))?);
    }
    Ok(sections)
}

/// Every part of one vCPU.
#[derive(Debug, Clone)]
struct Values {
    mp_state: MpState,
    events: VcpuEvents,
    regs: Regs,
    sregs: Sregs,
    xcrs: Option<Xcrs>,
    xsave: Xsave,
    lapic: Option<Lapic>,
    debug_regs: DebugRegs,
    nested: Option<Nested>,
    msrs: Msrs,
    tsc_frequency: Option<TscFrequency>,
    tsc_offset: Option<u64>,
}

impl Values {
    /// Reads all parts, and the MSRs that KVM refuses to read.
    fn read(vcpu: &VcpuFd, index: u32, caps: &X86Caps) -> Result<(Self, BTreeSet<u32>), StateIoError> {
        let read = Reader { vcpu, index, caps };
        // First, because it makes the vCPU take a pending INIT or SIPI, which changes its registers and
        // its LAPIC (kvm_apic_accept_events in kvm_arch_vcpu_ioctl_get_mpstate).
        let mp_state = read.mp_state()?;
        // Before the registers: a pending exception's payload may be delivered into CR2 or DR6 by this
        // (kvm_deliver_exception_payload in the same ioctl).
        let events = read.events()?;
        let regs = read.regs()?;
        let sregs = read.sregs()?;
        // XCR0 and the area that it governs; neither changes anything else.
        let xcrs = read.xcrs()?;
        let xsave = read.xsave()?;
        // After MP_STATE, which changes it.
        let lapic = read.lapic()?;
        // After the events: see there about DR6.
        let debug_regs = read.debug_regs()?;
        // Once in a capture, and with all vCPUs stopped: outside of L2 it copies an enlightened VMCS from
        // guest memory into KVM's own. After MP_STATE and events, which may leave L2; before the MSRs, as
        // in the kernel's own tests (vcpu_save_state in lib/x86/processor.c), the only order that their
        // nested tests pass with.
        let nested = read.nested()?;
        // Last of the parts that hold time: the TSC and its deadline are among them.
        let (msrs, refused) = msrs::read(vcpu, index, &caps.msrs)?;
        let tsc_frequency = read.tsc_frequency()?;
        // Where the host's TSC is not stable the offset follows it about and is not the guest's.
        let tsc_offset = if tsc_frequency.is_some() { read.tsc_offset()? } else { None };
        // A vCPU that stands still has the same events as before.
        if read.events()? != events {
            return Err(StateIoError::Moving { index });
        }
        Ok((
            Self {
                mp_state,
                events,
                regs,
                sregs,
                xcrs,
                xsave,
                lapic,
                debug_regs,
                nested,
                msrs,
                tsc_frequency,
                tsc_offset,
            },
            refused,
        ))
    }

    /// The sections, in the order in which the parts were read.
    fn sections(&self, index: u32, created: Option<&Self>) -> Result<Vec<Section>, StateError> {
        let mut sections = vec![
            Section::of(&self.mp_state, index, created.map(|c| &c.mp_state))?,
            Section::of(&self.events, index, created.map(|c| &c.events))?,
            Section::of(&self.regs, index, created.map(|c| &c.regs))?,
            Section::of(&self.sregs, index, created.map(|c| &c.sregs))?,
        ];
        if let Some(xcrs) = &self.xcrs {
            sections.push(Section::of(xcrs, index, created.and_then(|c| c.xcrs.as_ref()))?);
        }
        sections.push(Section::of(&self.xsave, index, created.map(|c| &c.xsave))?);
        if let Some(lapic) = &self.lapic {
            sections.push(Section::of(lapic, index, created.and_then(|c| c.lapic.as_ref()))?);
        }
        sections.push(Section::of(&self.debug_regs, index, created.map(|c| &c.debug_regs))?);
        if let Some(nested) = &self.nested {
            sections.push(Section::of(nested, index, created.and_then(|c| c.nested.as_ref()))?);
        }
        let msrs = created.map(|created| msrs::at_creation(&created.msrs, &self.msrs));
        sections.push(Section::of(&self.msrs, index, msrs.as_ref())?);
        if let Some(tsc_frequency) = &self.tsc_frequency {
            // No baseline: a new vCPU counts as fast as its host, and the target's host is another.
            sections.push(Section::of(tsc_frequency, index, None)?);
        }
        Ok(sections)
    }
}

/// One vCPU to read from.
pub(super) struct Reader<'a> {
    pub(super) vcpu: &'a VcpuFd,
    pub(super) index: u32,
    pub(super) caps: &'a X86Caps,
}

impl Reader<'_> {
    fn mp_state(&self) -> Result<MpState, StateIoError> {
        let state = self.vcpu.get_mp_state().map_err(|e| self.failed::<MpState>("KVM_GET_MP_STATE", e))?;
        Ok(MpState { mp_state: state.mp_state })
    }

    fn events(&self) -> Result<VcpuEvents, StateIoError> {
        let events =
            self.vcpu.get_vcpu_events().map_err(|e| self.failed::<VcpuEvents>("KVM_GET_VCPU_EVENTS", e))?;
        Ok(convert::events_from_kvm(&events))
    }

    pub(super) fn regs(&self) -> Result<Regs, StateIoError> {
        let regs = self.vcpu.get_regs().map_err(|e| self.failed::<Regs>("KVM_GET_REGS", e))?;
        Ok(convert::regs_from_kvm(&regs))
    }

    pub(super) fn sregs(&self) -> Result<Sregs, StateIoError> {
        let sregs = if self.caps.sregs2 {
            ioctls::sregs2(self.vcpu).map_err(|e| self.failed::<Sregs>("KVM_GET_SREGS2", e))?
        } else {
            let sregs = self.vcpu.get_sregs().map_err(|e| self.failed::<Sregs>("KVM_GET_SREGS", e))?;
            convert::sregs2_from_sregs(&sregs)
        };
        Ok(convert::sregs_from_kvm(&sregs))
    }

    /// None on a host whose processor has no XSAVE.
    pub(super) fn xcrs(&self) -> Result<Option<Xcrs>, StateIoError> {
        if !self.caps.xcrs {
            return Ok(None);
        }
        let xcrs = self.vcpu.get_xcrs().map_err(|e| self.failed::<Xcrs>("KVM_GET_XCRS", e))?;
        Ok(Some(convert::xcrs_from_kvm(&xcrs)))
    }

    pub(super) fn xsave(&self) -> Result<Xsave, StateIoError> {
        let ioctl = if self.caps.xsave2 { "KVM_GET_XSAVE2" } else { "KVM_GET_XSAVE" };
        let region = ioctls::xsave(self.vcpu, self.caps.xsave_bytes, self.caps.xsave2)
            .map_err(|e| self.failed::<Xsave>(ioctl, e))?;
        Ok(Xsave { region })
    }

    /// None in a VM without an in-kernel irqchip, where KVM says EINVAL.
    pub(super) fn lapic(&self) -> Result<Option<Lapic>, StateIoError> {
        match self.vcpu.get_lapic() {
            Ok(lapic) => Ok(Some(convert::lapic_from_kvm(&lapic))),
            Err(error) if error.errno() == libc::EINVAL => Ok(None),
            Err(error) => Err(self.failed::<Lapic>("KVM_GET_LAPIC", error)),
        }
    }

    pub(super) fn debug_regs(&self) -> Result<DebugRegs, StateIoError> {
        let regs =
            self.vcpu.get_debug_regs().map_err(|e| self.failed::<DebugRegs>("KVM_GET_DEBUGREGS", e))?;
        Ok(convert::debug_regs_from_kvm(&regs))
    }

    /// None where KVM runs no nested guests.
    fn nested(&self) -> Result<Option<Nested>, StateIoError> {
        if self.caps.nested_bytes == 0 {
            return Ok(None);
        }
        nested::read(self.vcpu, self.caps.nested_bytes)
            .map(Some)
            .map_err(|e| self.failed::<Nested>("KVM_GET_NESTED_STATE", e))
    }

    /// None on a KVM before 5.16.
    fn tsc_offset(&self) -> Result<Option<u64>, StateIoError> {
        if !self.caps.tsc_offset {
            return Ok(None);
        }
        tsc::offset(self.vcpu).map(Some).map_err(|e| self.failed::<TscOffset>("KVM_GET_DEVICE_ATTR", e))
    }

    /// None on a host whose TSC is not stable, where KVM says EIO.
    fn tsc_frequency(&self) -> Result<Option<TscFrequency>, StateIoError> {
        match self.vcpu.get_tsc_khz() {
            Ok(khz) => Ok(Some(TscFrequency { khz })),
            Err(error) if error.errno() == libc::EIO => Ok(None),
            Err(error) => Err(self.failed::<TscFrequency>("KVM_GET_TSC_KHZ", error)),
        }
    }

    fn failed<T: Part>(&self, ioctl: &'static str, source: errno::Error) -> StateIoError {
        let fact = "the vCPU cannot be read".to_owned();
        StateIoError::Ioctl { ioctl, section: T::NAME, index: self.index, fact, source }
    }
}

/// Whether the VM of this vCPU has an in-kernel LAPIC.
pub(super) fn has_lapic(vcpu: &VcpuFd, index: u32, caps: &X86Caps) -> Result<bool, StateIoError> {
    Ok(Reader { vcpu, index, caps }.lapic()?.is_some())
}

/// The events of a vCPU.
pub(super) fn events(vcpu: &VcpuFd, index: u32, caps: &X86Caps) -> Result<VcpuEvents, StateIoError> {
    Reader { vcpu, index, caps }.events()
}
