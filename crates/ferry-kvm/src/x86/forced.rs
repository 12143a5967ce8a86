//! A captured state, put into a fresh VM whatever of it is refused on the way, and all of it read back:
//! see [`Deviation`].
//!
//! The order is that of `restore.rs`. A field counts if it is needed, that is, if its value is not what the vCPU
//! held at its creation on its source. Left out are clocks, counters and timers, which go on by themselves:
//! the TSC and its deadline, the kvmclock, the LAPIC's current count and what its timer may have requested
//! since, the PIT; the LAPIC's processor priority, which KVM works out anew from what is set; and of the XSAVE area what says how its bytes are to be read. A nested state is not read back: before the
//! first run that may change it.

use std::collections::BTreeMap;

use ferry_state::x86::{
    Clock, DebugRegs, IA32_TSC, Irqchip, Lapic, MAX_XSAVE_BYTES, MpState, Msrs, Nested, Pit, Regs, Sregs,
    TscFrequency, VcpuEvents, Xcrs, Xsave,
};
use ferry_state::{MachineState, Part, Section, StateError, describe_known};
use kvm_ioctls::{VcpuFd, VmFd};

use super::capture::Reader;
use super::forced_contract::force_msr;
use super::msrs::{self, Batch};
use super::restore::Writer;
use super::vm;
use super::{FirstTsc, StateIoError, X86Caps};
use crate::Deviation;

/// The longest value in a deviation, in characters.
const SHOWN_MAX: usize = 120;

/// In the LAPIC's page: the processor priority, the requests, and the timer's current count.
const LAPIC_TIME: [std::ops::Range<usize>; 3] = [0xa0..0xa4, 0x200..0x280, 0x390..0x394];

/// In the XSAVE area: the processor's mask of MXCSR, what the kernel notes for user space, and the header,
/// in which a component that holds its first value may be absent.
const XSAVE_FORM: [std::ops::Range<usize>; 3] = [28..32, 464..512, 512..576];

/// Puts what KVM takes of the sections of one index into a vCPU. An error is one of the state's form: a
/// section cannot be read.
pub fn force_vcpu(
    vcpu: &VcpuFd,
    index: u32,
    state: &MachineState,
    caps: &X86Caps,
    first: &mut FirstTsc,
) -> Result<Vec<Deviation>, StateError> {
    let mut forced = Forced {
        to: Writer { vcpu, index, caps },
        from: Reader { vcpu, index, caps },
        state,
        found: Vec::new(),
    };
    forced.apply::<TscFrequency>(Writer::tsc_frequency)?;
    forced.msrs(|batch| batch == Batch::Features)?;
    forced.apply::<Sregs>(Writer::sregs)?;
    forced.apply::<Lapic>(Writer::lapic)?;
    forced.compare::<Lapic>(|from| from.lapic().map(Option::unwrap_or_default), without_time)?;
    forced.msrs(|batch| batch == Batch::Rest)?;
    let tsc = forced.to.tsc(state, first, &mut Vec::new());
    forced.note("the TSC", tsc);
    forced.msrs(|batch| batch == Batch::Deadline)?;
    forced.apply::<Xcrs>(Writer::xcrs)?;
    forced.apply::<Xsave>(Writer::xsave)?;
    forced.apply::<DebugRegs>(Writer::debug_regs)?;
    forced.apply::<Regs>(Writer::regs)?;
    // With what it reads back, by itself.
    forced.apply::<VcpuEvents>(Writer::events)?;
    forced.apply::<Nested>(Writer::nested)?;
    forced.apply::<MpState>(Writer::mp_state)?;
    forced.compare::<Sregs>(Reader::sregs, |_| {})?;
    forced.compare::<Xcrs>(|from| from.xcrs().map(Option::unwrap_or_default), |_| {})?;
    forced.compare::<Xsave>(Reader::xsave, without_form)?;
    forced.compare::<DebugRegs>(Reader::debug_regs, |_| {})?;
    forced.compare::<Regs>(Reader::regs, |_| {})?;
    forced.compare_msrs()?;
    Ok(forced.found)
}

/// Puts what KVM takes of the rest into a VM, after its vCPUs.
pub fn force_vm(vm: &VmFd, state: &MachineState) -> Result<Vec<Deviation>, StateError> {
    let mut found = Vec::new();
    if let Some(section) = state.section(Irqchip::NAME, 0)? {
        let sent: Irqchip = section.read()?;
        match vm::set_irqchip(vm, &sent).and_then(|()| vm::irqchip(vm)) {
            Ok(now) => found.extend(changes(section, &sent, &now.unwrap_or_default())?),
            Err(error) => found.push(refusal(Irqchip::NAME, &error)),
        }
    }
    if let Some(section) = state.section(Pit::NAME, 0)?
        && let Err(error) = vm::set_pit(vm, &section.read()?)
    {
        found.push(refusal(Pit::NAME, &error));
    }
    if let Some(section) = state.section(Clock::NAME, 0)?
        && let Err(error) = vm::set_clock(vm, &section.read()?)
    {
        found.push(refusal(Clock::NAME, &error));
    }
    Ok(found)
}

struct Forced<'a> {
    to: Writer<'a>,
    from: Reader<'a>,
    state: &'a MachineState,
    found: Vec<Deviation>,
}

impl<'a> Forced<'a> {
    fn section<T: Part>(&self) -> Result<Option<&'a Section>, StateError> {
        self.state.section(T::NAME, self.to.index)
    }

    fn note(&mut self, what: &str, result: Result<(), StateIoError>) {
        self.found.extend(result.err().map(|error| refusal(what, &error)));
    }

    /// Sets a part that the source has. What it holds for no need of the guest may fail.
    fn apply<T: Part>(
        &mut self,
        set: impl FnOnce(&Writer<'a>, &T) -> Result<(), StateIoError>,
    ) -> Result<(), StateError> {
        let Some(section) = self.section::<T>()? else { return Ok(()) };
        let result = set(&self.to, &section.read()?);
        if !section.needed.is_empty() {
            self.note(T::NAME, result);
        }
        Ok(())
    }

    /// Reads a part back; `settle` blanks what goes on by itself.
    fn compare<T: Part>(
        &mut self,
        read: impl FnOnce(&Reader<'a>) -> Result<T, StateIoError>,
        settle: impl Fn(&mut T),
    ) -> Result<(), StateError> {
        let Some(section) = self.section::<T>()? else { return Ok(()) };
        let mut sent: T = section.read()?;
        match read(&self.from) {
            Ok(mut now) => {
                settle(&mut sent);
                settle(&mut now);
                self.found.extend(changes(section, &sent, &now)?);
            }
            Err(error) => self.found.push(refusal(T::NAME, &error)),
        }
        Ok(())
    }

    /// Sets some MSRs, each by itself.
    fn msrs(&mut self, chosen: impl Fn(Batch) -> bool) -> Result<(), StateError> {
        let Some(section) = self.section::<Msrs>()? else { return Ok(()) };
        for (msr, value) in section.read::<Msrs>()?.values {
            if chosen(Batch::with(msr)) {
                let refused = force_msr(self.to.vcpu, msr, value)
                    .filter(|deviation| matches!(deviation, Deviation::Refused { .. }));
                self.found.extend(refused.filter(|_| section.needs(msr)));
            }
        }
        Ok(())
    }

    /// Reads the MSRs back that are needed, once all is in place.
    fn compare_msrs(&mut self) -> Result<(), StateError> {
        let Some(section) = self.section::<Msrs>()? else { return Ok(()) };
        let sent: BTreeMap<u32, u64> = section.read::<Msrs>()?.values;
        let stays = |msr: &u32| *msr != IA32_TSC && !msrs::is_time(*msr);
        let wanted: Vec<u32> = section.needed.iter().copied().filter(stays).collect();
        match msrs::read(self.to.vcpu, self.to.index, &wanted) {
            Ok((now, _)) => {
                // One that cannot be read was refused when it was set, and is noted.
                for (msr, reads) in now.values {
                    let wanted = sent.get(&msr).copied().unwrap_or_default();
                    if wanted != reads {
                        self.found.push(Deviation::Changed {
                            what: format!("MSR {msr:#x}"),
                            set: format!("{wanted:#018x}"),
                            reads: format!("{reads:#018x}"),
                        });
                    }
                }
            }
            Err(error) => self.found.push(refusal(Msrs::NAME, &error)),
        }
        Ok(())
    }
}

/// The needed fields that are not what was sent.
fn changes<T: Part>(section: &Section, sent: &T, now: &T) -> Result<Vec<Deviation>, StateError> {
    let differing = Section::of(now, section.index, Some(sent))?;
    if !differing.needed.iter().any(|field| section.needs(*field)) {
        return Ok(Vec::new());
    }
    let sent = describe_known(&Section::of(sent, section.index, None)?)?;
    let now = describe_known(&Section::of(now, section.index, None)?)?;
    let pairs = sent.into_iter().zip(now).filter(|(one, other)| one != other);
    Ok(pairs
        .map(|((name, value), (_, reads))| {
            let (wanted, reads) = around_the_difference(&value, &reads);
            Deviation::Changed { what: format!("{} {name}", section.name), set: wanted, reads }
        })
        .collect())
}

/// Both values from where they begin to differ, if they are long.
fn around_the_difference(set: &str, reads: &str) -> (String, String) {
    let same = set.bytes().zip(reads.bytes()).take_while(|(a, b)| a == b).count();
    let from = if set.len().max(reads.len()) > SHOWN_MAX { same.saturating_sub(8) } else { 0 };
    let cut = |text: &str| -> String {
        let place = if from > 0 { format!("(from character {from}) …") } else { String::new() };
        place + &text.chars().skip(from).take(SHOWN_MAX).collect::<String>()
    };
    (cut(set), cut(reads))
}

fn refusal(what: &str, error: &StateIoError) -> Deviation {
    Deviation::Refused { what: what.to_owned(), error: error.to_string() }
}

fn without_time(lapic: &mut Lapic) {
    for range in LAPIC_TIME {
        lapic.regs.iter_mut().take(range.end).skip(range.start).for_each(|byte| *byte = 0);
    }
}

/// Blanks what says how the area is to be read; hosts have areas of unlike lengths.
fn without_form(xsave: &mut Xsave) {
    for range in XSAVE_FORM {
        xsave.region.iter_mut().take(range.end).skip(range.start).for_each(|byte| *byte = 0);
    }
    xsave.region.resize(MAX_XSAVE_BYTES, 0);
}
