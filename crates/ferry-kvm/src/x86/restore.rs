//! A captured vCPU, put into a fresh one in the order that KVM's own rules set.
//!
//! Before this come: the VM with its memory and irqchip, the vCPU, its CPUID (`KVM_SET_CPUID2`): KVM
//! checks MSRs, special registers and XSAVE components against it.

use ferry_state::x86::{
    Clock, DebugRegs, IA32_TSC, Irqchip, KNOWN_SECTIONS, Lapic, MpState, Msrs, Nested, Pit, Regs,
    SREGS_PDPTRS_VALID, Sregs, TscFrequency, TscOffset, VcpuEvents, Xcrs, Xsave,
};
use ferry_state::{MachineState, Part, StateError};
use kvm_bindings::{KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_TRIPLE_FAULT, kvm_mp_state};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use super::msrs::Batch;
use super::{FirstTsc, Notice, StateIoError, X86Caps, capture, convert, ioctls, msrs, nested, tsc};

/// Refuses a state that has needed sections of unknown parts, or of vCPUs beyond `vcpus`: nothing
/// would apply them. For the state of vCPUs and VM, without that of devices.
pub fn check_sections(state: &MachineState, vcpus: u32) -> Result<(), StateIoError> {
    state.refuse_unknown(KNOWN_SECTIONS)?;
    let is_vm_wide = |name: &str| [Irqchip::NAME, Pit::NAME, Clock::NAME].contains(&name);
    for section in state.sections.iter().filter(|section| !section.needed.is_empty()) {
        let bound = if is_vm_wide(&section.name) { 1 } else { vcpus };
        if section.index >= bound {
            let (section, index) = (section.name.clone(), section.index);
            return Err(StateIoError::NoSuchVcpu { section, index, vcpus });
        }
    }
    Ok(())
}

/// Puts the sections of one index into a fresh vCPU, and says what is worth a notice. After an error
/// the vCPU holds half a state: discard its VM. The vCPUs of a VM are restored from 0 on with the same
/// `first`.
pub fn restore_vcpu(
    vcpu: &VcpuFd,
    index: u32,
    state: &MachineState,
    caps: &X86Caps,
    first: &mut FirstTsc,
) -> Result<Vec<Notice>, StateIoError> {
    let mut notices = Vec::new();
    let to = Writer { vcpu, index, caps };
    // First: the TSC's value, its deadline and the kvmclock are all counted in this frequency.
    apply_if_there(state, index, &mut notices, |part| to.tsc_frequency(part))?;
    // Before SREGS2 and the other MSRs: these say which of their values KVM takes; and once a nested
    // state is set, KVM refuses the VMX ones.
    to.msrs(state, Batch::Features, &mut notices)?;
    // Before the LAPIC, whose mode is in the APIC base; before a nested state, which needs EFER.SVME;
    // SREGS2 rather than SREGS, so that PAE's page directory pointers are not read from memory anew.
    apply(state, index, &mut notices, |part| to.sregs(part))?;
    // After the APIC base, before the TSC deadline, which KVM ignores unless the LAPIC's timer is in
    // that mode.
    if !apply_if_there(state, index, &mut notices, |part| to.lapic(part))?
        && capture::has_lapic(vcpu, index, caps)?
    {
        return Err(StateIoError::NotInState { section: Lapic::NAME, index });
    }
    // After the LAPIC. The TSC, then the deadline, which counts in its units, come last; the TSC also
    // before a nested state, whose preemption timer has its deadline in L1's TSC and starts at once. Then
    // what is needed is read back, before a nested state, because L2's values may be read after it.
    to.msrs(state, Batch::Rest, &mut notices)?;
    to.tsc(state, first, &mut notices)?;
    to.msrs(state, Batch::Deadline, &mut notices)?;
    to.check_msrs(state, &mut notices)?;
    // The selftests' order; KVM does not check XSAVE against XCR0.
    apply_if_there(state, index, &mut notices, |part| to.xcrs(part))?;
    apply(state, index, &mut notices, |part| to.xsave(part))?;
    // Before the events, whose pending exception may have DR6 as its payload; before a nested state, which
    // may take DR7 from the vmcs12.
    apply(state, index, &mut notices, |part| to.debug_regs(part))?;
    // Before the events: it drops a pending exception (__set_regs). Before a nested state: on SVM that
    // moves the current registers into L2's VMCB, and on VMX it sets RIP, RSP and RFLAGS itself.
    apply(state, index, &mut notices, |part| to.regs(part))?;
    // Before a nested state, because a change of SMM forces the vCPU out of it, and it is checked against
    // SMM; before MP_STATE, because a state of
    // INIT or SIPI is refused or kept by what the events say of SMM.
    apply(state, index, &mut notices, |part| to.events(part))?;
    // After CPUID, memory, VMX MSRs, SREGS2 with EFER.SVME, TSC, registers and events: see there. Never read
    // back before the first run: with enlightened or shadow VMCS that GET overwrites what was just set.
    apply_if_there(state, index, &mut notices, |part| to.nested(part))?;
    // Last: with what was set before it the vCPU is whole, and KVM would else wake it on the way.
    apply(state, index, &mut notices, |part| to.mp_state(part))?;
    // After the MSR that turns the kvmclock on.
    note_pause(vcpu, index, caps)?;
    Ok(notices)
}

/// Tells a guest with a kvmclock that it was paused, so that its watchdogs take no offence
/// (`KVM_KVMCLOCK_CTRL`). [`restore_vcpu`] does it; a source that resumes its guest does it, too.
pub fn note_pause(vcpu: &VcpuFd, index: u32, caps: &X86Caps) -> Result<(), StateIoError> {
    if !caps.kvmclock_ctrl {
        return Ok(());
    }
    match vcpu.kvmclock_ctrl() {
        Ok(()) => Ok(()),
        // No kvmclock is in use.
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        Err(source) => {
            let fact = "the guest's clock cannot be told of the pause".to_owned();
            Err(StateIoError::Ioctl { ioctl: "KVM_KVMCLOCK_CTRL", section: Clock::NAME, index, fact, source })
        }
    }
}

/// Applies a part that must be there. What KVM refuses is an error if anything in it is needed, else
/// it is noted.
pub(super) fn apply<T: Part>(
    state: &MachineState,
    index: u32,
    notices: &mut Vec<Notice>,
    set: impl FnOnce(&T) -> Result<(), StateIoError>,
) -> Result<(), StateIoError> {
    if apply_if_there(state, index, notices, set)? {
        Ok(())
    } else {
        Err(StateError::MissingSection { section: T::NAME, index }.into())
    }
}

/// Applies a part that a source may lack, and says whether it is there.
pub(super) fn apply_if_there<T: Part>(
    state: &MachineState,
    index: u32,
    notices: &mut Vec<Notice>,
    set: impl FnOnce(&T) -> Result<(), StateIoError>,
) -> Result<bool, StateIoError> {
    let Some(section) = state.section(T::NAME, index)? else {
        return Ok(false);
    };
    match set(&section.read()?) {
        Ok(()) => Ok(true),
        Err(StateIoError::State(error)) => Err(error.into()),
        Err(_) if section.needed.is_empty() => {
            notices.push(Notice::SectionSkipped { section: T::NAME, index });
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// One vCPU to write to.
pub(super) struct Writer<'a> {
    pub(super) vcpu: &'a VcpuFd,
    pub(super) index: u32,
    pub(super) caps: &'a X86Caps,
}

impl Writer<'_> {
    pub(super) fn tsc_frequency(&self, part: &TscFrequency) -> Result<(), StateIoError> {
        let host_khz = self.vcpu.get_tsc_khz().unwrap_or(0);
        if host_khz == part.khz {
            return Ok(());
        }
        self.vcpu.set_tsc_khz(part.khz).map_err(|source| StateIoError::TscFrequency {
            index: self.index,
            guest_khz: part.khz,
            host_khz,
            source,
        })
    }

    fn msrs(
        &self,
        state: &MachineState,
        batch: Batch,
        notices: &mut Vec<Notice>,
    ) -> Result<(), StateIoError> {
        let index = self.index;
        let missing = || StateError::MissingSection { section: Msrs::NAME, index };
        let section = state.section(Msrs::NAME, index)?.ok_or_else(missing)?;
        let values: Msrs = section.read()?;
        msrs::write(self.vcpu, section, &values, batch, notices)
    }

    /// Reads back the MSRs that are needed.
    fn check_msrs(&self, state: &MachineState, notices: &mut Vec<Notice>) -> Result<(), StateIoError> {
        let Some(section) = state.section(Msrs::NAME, self.index)? else { return Ok(()) };
        msrs::check_kept(self.vcpu, section, &section.read()?, notices)
    }

    /// vCPU 0's TSC by its value, the others' by how far they are from it: see `tsc.rs`.
    pub(super) fn tsc(
        &self,
        state: &MachineState,
        first: &mut FirstTsc,
        notices: &mut Vec<Notice>,
    ) -> Result<(), StateIoError> {
        let index = self.index;
        let failed = |ioctl, source| {
            self.failed::<TscOffset>(ioctl, "KVM has the attribute and refuses it".to_owned(), source)
        };
        if index == 0 {
            let value = state.require::<Msrs>(index)?.values.get(&IA32_TSC).copied();
            value.map_or(Ok(()), |value| tsc::leave_its_own_count(self.vcpu, index, value))?;
            self.msrs(state, Batch::Tsc, notices)?;
            if self.caps.tsc_offset {
                let offset = tsc::offset(self.vcpu).map_err(|e| failed("KVM_GET_DEVICE_ATTR", e))?;
                first.offset = Some(offset);
            }
            return Ok(());
        }
        let section = state.section(TscOffset::NAME, index)?;
        match (section, first.offset) {
            (Some(section), Some(first)) => {
                let wanted = section.read::<TscOffset>()?.from_first;
                tsc::set_offset(self.vcpu, first.wrapping_add(wanted))
                    .map_err(|e| failed("KVM_SET_DEVICE_ATTR", e))?;
                let reads = tsc::offset(self.vcpu).map_err(|e| failed("KVM_GET_DEVICE_ATTR", e))?;
                let kept = reads.wrapping_sub(first);
                if kept != wanted {
                    notices.push(Notice::TscOffsetNotKept { index, wanted, kept });
                }
                Ok(())
            }
            (Some(section), None) if !section.needed.is_empty() => Err(StateIoError::Lacking {
                capability: "KVM_CAP_VCPU_ATTRIBUTES",
                section: TscOffset::NAME,
                index,
            }),
            _ => self.msrs(state, Batch::Tsc, notices),
        }
    }

    pub(super) fn nested(&self, part: &Nested) -> Result<(), StateIoError> {
        let index = self.index;
        if self.caps.nested_bytes == 0 {
            let section = Nested::NAME;
            return Err(StateIoError::Lacking { capability: "KVM_CAP_NESTED_STATE", section, index });
        }
        nested::write(self.vcpu, part, self.caps.nested_bytes).map_err(|refusal| match refusal {
            nested::Refusal::Entry(code) => StateIoError::NestedEntry { index, code },
            nested::Refusal::Errno(source) => {
                let fact = format!(
                    "this host's KVM or the vCPU's CPUID does not allow a nested state of format {} with flags {:#x} and {} bytes",
                    part.format(), part.flags(), part.data().len()
                );
                self.failed::<Nested>("KVM_SET_NESTED_STATE", fact, source)
            }
        })
    }

    pub(super) fn sregs(&self, part: &Sregs) -> Result<(), StateIoError> {
        let sregs = convert::sregs_to_kvm(part);
        let (ioctl, result) = if self.caps.sregs2 {
            ("KVM_SET_SREGS2", ioctls::set_sregs2(self.vcpu, &sregs))
        } else if part.flags & SREGS_PDPTRS_VALID != 0 {
            let index = self.index;
            return Err(StateIoError::Lacking { capability: "KVM_CAP_SREGS2", section: Sregs::NAME, index });
        } else {
            ("KVM_SET_SREGS", self.vcpu.set_sregs(&convert::sregs_from_sregs2(&sregs)))
        };
        result.map_err(|source| {
            let fact = format!(
                "the vCPU's CPUID or this host's KVM does not allow CR0 {:#x}, CR4 {:#x}, EFER {:#x}, APIC base {:#x} together",
                part.cr0, part.cr4, part.efer, part.apic_base
            );
            self.failed::<Sregs>(ioctl, fact, source)
        })
    }

    pub(super) fn lapic(&self, part: &Lapic) -> Result<(), StateIoError> {
        self.vcpu.set_lapic(&convert::lapic_to_kvm(part)).map_err(|source| {
            let fact = "the VM needs an in-kernel irqchip, and the LAPIC id must be the vCPU's".to_owned();
            self.failed::<Lapic>("KVM_SET_LAPIC", fact, source)
        })
    }

    pub(super) fn xcrs(&self, part: &Xcrs) -> Result<(), StateIoError> {
        if !self.caps.xcrs {
            let index = self.index;
            return Err(StateIoError::Lacking { capability: "KVM_CAP_XCRS", section: Xcrs::NAME, index });
        }
        self.vcpu.set_xcrs(&convert::xcrs_to_kvm(part)).map_err(|source| {
            let xcr0 = part.xcrs.first().map_or(0, |xcr| xcr.value);
            let fact = format!("the vCPU's CPUID or this host does not allow XCR0 {xcr0:#x}");
            self.failed::<Xcrs>("KVM_SET_XCRS", fact, source)
        })
    }

    pub(super) fn xsave(&self, part: &Xsave) -> Result<(), StateIoError> {
        let (index, room) = (self.index, self.caps.xsave_bytes);
        let length = part.region.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if length > room {
            return Err(StateIoError::XsaveTooLong { index, length, room });
        }
        let used = part.region.get(..length).unwrap_or_default();
        ioctls::set_xsave(self.vcpu, used).map_err(|source| {
            let fact = format!(
                "the vCPU's CPUID or this host lacks a component of XSTATE_BV {:#x}",
                xstate_bv(&part.region)
            );
            self.failed::<Xsave>("KVM_SET_XSAVE", fact, source)
        })
    }

    pub(super) fn debug_regs(&self, part: &DebugRegs) -> Result<(), StateIoError> {
        self.vcpu.set_debug_regs(&convert::debug_regs_to_kvm(part)).map_err(|source| {
            let fact =
                format!("KVM refuses DR6 {:#x}, DR7 {:#x}, flags {:#x}", part.dr6, part.dr7, part.flags);
            self.failed::<DebugRegs>("KVM_SET_DEBUGREGS", fact, source)
        })
    }

    pub(super) fn regs(&self, part: &Regs) -> Result<(), StateIoError> {
        self.vcpu
            .set_regs(&convert::regs_to_kvm(part))
            .map_err(|source| self.failed::<Regs>("KVM_SET_REGS", "KVM refuses them".to_owned(), source))
    }

    pub(super) fn events(&self, part: &VcpuEvents) -> Result<(), StateIoError> {
        let mut events = convert::events_to_kvm(part);
        // A flag without the capability is refused, even where it says of something that it is not: it
        // may go then. With something to say it stays, and KVM's refusal stands.
        if !self.caps.exception_payload && !part.exception.pending && !part.exception_has_payload {
            events.flags &= !KVM_VCPUEVENT_VALID_PAYLOAD;
        }
        if !self.caps.triple_fault && !part.triple_fault_pending {
            events.flags &= !KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        }
        self.vcpu.set_vcpu_events(&events).map_err(|source| {
            let fact = format!(
                "this host's KVM cannot deliver them, or does not know one of the flags {:#x}",
                part.flags
            );
            self.failed::<VcpuEvents>("KVM_SET_VCPU_EVENTS", fact, source)
        })?;
        // KVM passes over what no flag declares valid, and over more without a word. The flags
        // themselves say what this host's KVM reports, and the SIPI vector is never reported.
        let kept = capture::events(self.vcpu, self.index, self.caps)?;
        let sent = VcpuEvents { flags: kept.flags, sipi_vector: kept.sipi_vector, ..part.clone() };
        if kept == sent {
            Ok(())
        } else {
            let (sent, kept) = (Box::new(sent), Box::new(kept));
            Err(StateIoError::EventsNotKept { index: self.index, sent, kept })
        }
    }

    pub(super) fn mp_state(&self, part: &MpState) -> Result<(), StateIoError> {
        let state = kvm_mp_state { mp_state: part.mp_state };
        self.vcpu.set_mp_state(state).map_err(|source| {
            let fact =
                format!("state {} is not to be had, or not without an in-kernel irqchip", part.mp_state);
            self.failed::<MpState>("KVM_SET_MP_STATE", fact, source)
        })
    }

    fn failed<T: Part>(&self, ioctl: &'static str, fact: String, source: errno::Error) -> StateIoError {
        StateIoError::Ioctl { ioctl, section: T::NAME, index: self.index, fact, source }
    }
}

/// The components that an XSAVE area says it holds: `XSTATE_BV`, the first word of its header (Intel
/// SDM, volume 1, 13.4.2).
fn xstate_bv(region: &[u8]) -> u64 {
    let bytes = region.get(512..520).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    bytes.map_or(0, u64::from_ne_bytes)
}
