//! A table of the interrupt controller's registers, written, and read back: KVM passes over writes that it does not like.
//!
//! How the kernel takes each write stands in arch/arm64/kvm/vgic (vgic-mmio.c, vgic-mmio-v3.c, vgic-sys-reg-v3.c).

use std::collections::BTreeMap;

use ferry_state::arm64::{GicCpuInterface, GicDistributor, GicIts, GicRedistributor};
use ferry_state::{Part, Section, StateError};
use vmm_sys_util::errno;

use super::capture::failed;
use super::gic::{self, GICD_IIDR, ICC_CTLR_EL1};
use super::{Notice, StateIoError};

/// What came of a restore. With anything refused the VM must be discarded.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// What the guest needs and does not have here, in the order in which it was found.
    pub(super) refused: Vec<StateIoError>,
    /// What is otherwise here, and the guest can go on with.
    pub(super) notices: Vec<Notice>,
}

impl Outcome {
    /// The notices, unless something was refused: then the first of it.
    pub(super) fn notices(self) -> Result<Vec<Notice>, StateIoError> {
        self.refused.into_iter().next().map_or(Ok(self.notices), Err)
    }
}

/// Writes what of a table is not there yet, in this order, and reads back what the guest needs. An error is one of
/// the state's form, or of reading.
pub(super) fn apply<V: Copy + PartialEq + Into<u64>>(
    section: &Section,
    values: &BTreeMap<u32, V>,
    order: &[u32],
    read: impl Fn() -> Result<BTreeMap<u32, V>, StateIoError>,
    set: impl Fn(u32, V) -> Result<(), errno::Error>,
    outcome: &mut Outcome,
) -> Result<(), StateIoError> {
    refuse_unwritten(section, order)?;
    write(section, values, &read()?, order, set, outcome);
    check_kept(section, values, &read()?, outcome);
    Ok(())
}

/// Refuses a table in which something is needed that this build does not write.
pub(super) fn refuse_unwritten(section: &Section, order: &[u32]) -> Result<(), StateIoError> {
    match section.needed.iter().find(|number| !order.contains(number)) {
        None => Ok(()),
        Some(&field) => {
            let (section, index) = (section.name.clone(), section.index);
            Err(StateError::UnknownNeededField { section, index, field }.into())
        }
    }
}

/// Writes what of a table is not there `now`.
pub(super) fn write<V: Copy + PartialEq + Into<u64>>(
    section: &Section,
    values: &BTreeMap<u32, V>,
    now: &BTreeMap<u32, V>,
    order: &[u32],
    set: impl Fn(u32, V) -> Result<(), errno::Error>,
    outcome: &mut Outcome,
) {
    let index = section.index;
    for &number in order {
        let Some(&value) = values.get(&number).filter(|value| now.get(&number) != Some(*value)) else {
            continue;
        };
        let what = format!("{:#x} in {} {number:#x}", value.into(), section.name);
        match set(number, value) {
            Ok(()) => {}
            Err(source) if must_hold(section, number) => {
                outcome.refused.push(failed("KVM_SET_DEVICE_ATTR", &what, index)(source));
            }
            Err(_) => outcome.notices.push(Notice::GicSkipped { index, what }),
        }
    }
}

/// Compares what must be so with what was read back.
pub(super) fn check_kept<V: Copy + Into<u64>>(
    section: &Section,
    values: &BTreeMap<u32, V>,
    now: &BTreeMap<u32, V>,
    outcome: &mut Outcome,
) {
    for (&number, &value) in values.iter().filter(|(number, _)| must_hold(section, **number)) {
        let value = value.into();
        let reads = now.get(&number).map_or(0, |reads| (*reads).into());
        let (name, index) = (section.name.as_str(), section.index);
        if (value ^ reads) & compared(name, number) == 0 {
            continue;
        }
        if name == GicDistributor::NAME && number == GICD_IIDR && gic::is_later_revision(value, reads) {
            outcome.notices.push(Notice::GicRevision { value, reads });
        } else if name == GicIts::NAME {
            outcome.refused.push(StateIoError::ItsNotKept { index, offset: number, value, reads });
        } else {
            let section = name.to_owned();
            outcome.refused.push(StateIoError::GicNotKept { section, index, number, value, reads });
        }
    }
}

/// Whether the guest needs it as it was. Always needed is what tells it which interrupt controller it has: KVM
/// gives each fresh one what the host's has.
fn must_hold(section: &Section, number: u32) -> bool {
    let identity = match section.name.as_str() {
        GicDistributor::NAME => number == GICD_IIDR,
        GicCpuInterface::NAME => number == ICC_CTLR_EL1,
        _ => false,
    };
    identity || section.needs(number)
}

/// The bits of a register that must read as they were.
fn compared(section: &str, number: u32) -> u64 {
    if section == GicRedistributor::NAME { gic::redistributor_bits(number).into() } else { u64::MAX }
}
