//! What capturing and restoring one vCPU costs: registers, ioctls, microseconds, beside the same ioctls alone.
//!
//! `cargo xtask lab run --with PROGRAM HOST -- PROGRAM --nocapture cost` prints it. In an emulated host the
//! microseconds are those of the emulation; the ratio to the bare ioctls of the same run is what counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ferry_contract::arm64::RegisterValue;
use ferry_state::arm64::{GicCpuInterface, GicLines, GicRedistributor, MpState};
use kvm_bindings::{
    KVM_CAP_ARM_PMU_V3, KVM_CAP_ARM_SVE, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS as CPU_INTERFACE,
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO as LINES, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS as REDISTRIBUTOR,
    kvm_mp_state,
};

use super::super::gic::Affinity;
use super::super::tables::Outcome;
use super::super::{capture::VcpuValues, restore};
use super::*;
use crate::probe::arm64::register_list;

/// How often each is measured, in turns. The least counts: whatever else a host does only adds to it.
const TIMES: usize = 9;

/// The most that a capture or a restore may take, in times of its bare ioctls. What it does beside them is to take
/// values apart and to keep them.
const RATIO_MAX: f64 = 5.0;

/// What this takes with a machine made anew.
fn time(kvm: &Kvm, like: &Like, what: &mut dyn FnMut(&Fresh)) -> Duration {
    let fresh = Fresh::new(kvm, like);
    let start = Instant::now();
    what(&fresh);
    start.elapsed()
}

/// Measures something beside its bare ioctls, which `bare` counts, says so, and holds one against the other.
fn compare(
    kvm: &Kvm,
    like: &Like,
    name: &str,
    mut whole: impl FnMut(&Fresh),
    bare: impl Fn(&Fresh) -> usize,
) {
    let (mut least, mut least_bare, mut ioctls) = (Duration::MAX, Duration::MAX, 0);
    for _ in 0..TIMES {
        least = least.min(time(kvm, like, &mut whole));
        least_bare = least_bare.min(time(kvm, like, &mut |fresh| ioctls = bare(fresh)));
    }
    let ratio = least.as_secs_f64() / least_bare.as_secs_f64();
    println!("  {name}: {ioctls} ioctls, {} us, {ratio:.2} times the bare ioctls", least.as_micros());
    assert!(ratio < RATIO_MAX, "{name}: {least:?} and {least_bare:?}");
}

/// What the interrupt controller has of the first vCPU: group, number in it, and value.
fn of_gic(state: &MachineState) -> BTreeMap<(u32, u32), u64> {
    let words = |group, values: BTreeMap<u32, u32>| {
        values.into_iter().map(move |(number, value)| ((group, number), u64::from(value)))
    };
    let wide = part::<GicCpuInterface>(state, 0).values;
    let wide = wide.into_iter().map(|(number, value)| ((CPU_INTERFACE, number), value));
    let narrow = words(REDISTRIBUTOR, part::<GicRedistributor>(state, 0).values);
    wide.chain(narrow).chain(words(LINES, part::<GicLines>(state, 0).values)).collect()
}

/// Reads as many values of the interrupt controller's.
fn read_gic(fresh: &Fresh, values: &BTreeMap<(u32, u32), u64>) -> usize {
    let vcpu = Affinity::of(fresh.first()).unwrap();
    for &(group, number) in values.keys() {
        attribute::read(&fresh.device, group, vcpu.attribute(number)).unwrap();
    }
    // The vCPU's number was one.
    values.len() + 1
}

/// The ioctls of a capture of the first vCPU, and nothing else; how many.
fn read_bare(fresh: &Fresh, values: &BTreeMap<(u32, u32), u64>) -> usize {
    let vcpu = fresh.first();
    vcpu.get_mp_state().unwrap();
    vcpu.get_vcpu_events().unwrap();
    let ids = register_list(vcpu).unwrap();
    let mut buffer = [0; 256];
    for id in &ids {
        vcpu.get_one_reg(*id, &mut buffer[..1 << (id >> 52 & 0xf)]).unwrap();
    }
    // The list is asked for twice: how long it is, and it.
    4 + ids.len() + read_gic(fresh, values)
}

/// The ioctls of a restore of the first vCPU, and nothing else; how many.
fn write_bare(fresh: &Fresh, state: &MachineState, changed: &BTreeMap<(u32, u32), u64>) -> usize {
    let (vcpu, registers): (_, Registers) = (fresh.first(), part(state, 0));
    let needed = &state.section(Registers::NAME, 0).unwrap().unwrap().needed;
    let mut count = 2;
    let mut buffer = [0; 256];
    let mut read = |id: RegisterId| {
        vcpu.get_one_reg(id.raw(), &mut buffer[..id.bytes()]).unwrap();
    };
    let written: Vec<(RegisterId, &RegisterValue)> =
        registers.iter().filter(|(id, _)| registers::stage(*id).is_some()).collect();
    for (id, value) in &written {
        count += 1;
        if vcpu.set_one_reg(id.raw(), value.bytes()).is_err() {
            read(*id);
            count += 1;
        }
    }
    for (id, _) in written.iter().filter(|(id, _)| needed.contains(&id.key())) {
        read(*id);
        count += 1;
    }
    vcpu.set_vcpu_events(&vcpu.get_vcpu_events().unwrap()).unwrap();
    vcpu.set_mp_state(kvm_mp_state { mp_state: part::<MpState>(state, 0).mp_state }).unwrap();
    let affinity = Affinity::of(vcpu).unwrap();
    for (&(group, number), &value) in changed {
        attribute::write(&fresh.device, group, affinity.attribute(number), value).unwrap();
    }
    // They are read before and after.
    let values = of_gic(state);
    let read = read_gic(fresh, &values) + read_gic(fresh, &values);
    count + read + changed.len()
}

fn measure(kvm: &Kvm, like: &Like) {
    let mut source = Fresh::new(kvm, like);
    let fresh = of_gic(&source.capture());
    round_trip::set_everything(&source);
    let state = source.capture();
    let values = of_gic(&state);
    let changed = values.iter().filter(|(which, value)| fresh.get(which) != Some(value));
    let changed = changed.map(|(which, value)| (*which, *value)).collect();
    let registers = part::<Registers>(&state, 0).iter().count();
    println!("one vCPU with {:?}: {registers} registers, {} of the GIC", like.features, values.len());

    let values_of = |fresh: &Fresh| VcpuValues::read(fresh.first(), 0, Some(&fresh.gic)).unwrap();
    let created = values_of(&Fresh::new(kvm, like));
    let capture = |fresh: &Fresh| drop(values_of(fresh).sections(0, &created).unwrap());
    compare(kvm, like, "capture", capture, |fresh| read_bare(fresh, &values));
    let restore = |fresh: &Fresh| {
        let (vcpu, mut outcome) = (fresh.first(), Outcome::default());
        restore::vcpu(vcpu, 0, &state, &mut outcome.notices).unwrap();
        restore::gic_of_vcpu(&fresh.gic, vcpu, 0, &state, &mut outcome).unwrap();
        restore::mp_state(vcpu, 0, &state).unwrap();
    };
    compare(kvm, like, "restore", restore, |fresh| write_bare(fresh, &state, &changed));
}

#[test]
fn one_vcpu_costs_little_more_than_its_ioctls() {
    let Some(kvm) = kvm() else { return };
    measure(&kvm, &Like::default());
    let has = |capability: u32| kvm.check_extension_raw(capability.into()) > 0;
    let more = [(KVM_CAP_ARM_PMU_V3, VcpuFeature::PmuV3), (KVM_CAP_ARM_SVE, VcpuFeature::Sve)];
    let features = more.into_iter().filter(|(capability, _)| has(*capability)).map(|(_, feature)| feature);
    measure(&kvm, &Like { features: features.collect(), ..Like::default() });
}
