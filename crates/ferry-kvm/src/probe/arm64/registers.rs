//! The registers of a fresh vCPU: `KVM_GET_REG_LIST`, each one's value, and the masks of those that may be
//! written.

use ferry_contract::Arm64Register;
use ferry_contract::arm64::{RegisterId, RegisterKind, RegisterValue};
use kvm_bindings::KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES;
use kvm_ioctls::VcpuFd;

use super::ioctls;
use super::vcpu::Fresh;
use crate::arm64::registers;
use crate::probe::ProbeError;
use crate::probe::capabilities::check;
use crate::probe::error::failed;

/// The registers, ascending by id.
pub(super) fn all(fresh: &Fresh) -> Result<Vec<Arm64Register>, ProbeError> {
    let masks = if check(&fresh.vm, KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES) & 1 == 1 {
        let masks = ioctls::feature_id_masks(&fresh.vm);
        Some(masks.map_err(failed("KVM_ARM_GET_REG_WRITABLE_MASKS", "which bits may be written"))?)
    } else {
        None
    };
    let list = ioctls::register_list(&fresh.vcpu);
    let mut ids = list.map_err(failed("KVM_GET_REG_LIST", "the list of registers"))?;
    ids.sort_unstable();
    ids.dedup();
    let register = |id: u64| {
        let id = RegisterId::new(id).map_err(ProbeError::Register)?;
        Ok(Arm64Register {
            id,
            // Two probes of one host give one profile.
            value: if id.counts() { None } else { read(&fresh.vcpu, id) },
            writable_mask: mask_place(id).and_then(|place| masks.as_ref()?.get(place).copied()),
            lowering: None,
        })
    };
    ids.into_iter().map(register).collect()
}

/// Where the masks have the register.
pub(super) fn mask_place(id: RegisterId) -> Option<usize> {
    let RegisterKind::System(register) = id.kind() else { return None };
    register.mask_place()
}

/// What a register holds; none if KVM lists it and cannot read it.
pub(super) fn read(vcpu: &VcpuFd, id: RegisterId) -> Option<RegisterValue> {
    registers::read(vcpu, id).ok()
}

/// Lengths of SVE's vectors, by the register that says them: bit *n* of its 512 stands for *n* + 1 times 128
/// bits.
pub(super) fn sve_vector_bits(registers: &[Arm64Register]) -> Vec<u32> {
    let lengths = registers.iter().find(|register| register.id == RegisterId::SVE_VECTOR_LENGTHS);
    let Some(value) = lengths.and_then(|register| register.value.as_ref()) else { return Vec::new() };
    let bits = value.bytes().iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
    (1_u32..).zip(bits).filter_map(|(quads, there)| there.then_some(quads * 128)).collect()
}
