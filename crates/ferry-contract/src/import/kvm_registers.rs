//! `kvm-registers`: the registers of arm64 vCPUs as a small program dumps them on a host, one JSON document a
//! host.
//!
//! | field | holds |
//! |---|---|
//! | `kernel` | `uname -r` and `uname -v` |
//! | `cpu`, `emulator` | what people call the machine |
//! | `caps` | capabilities by short names, numbers as texts |
//! | `register_sets` | lists of registers: `base` of a vCPU with PSCI alone, `full` with all that the host has but EL2, and a `GICv3`; `el2` with EL2 on top |
//!
//! A register has `id`, `size` in bytes, `value` (of a wide register its low 64 bits, which is not the value),
//! and where the dump knows them `writable_mask` and `lowerable_at_bits`, whose places are texts, too.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::arm64::{RegisterClass, RegisterId, RegisterKind, RegisterValue, SystemRegister};
use crate::json::{self, JsonError};
use crate::profile::{
    Arm64Processor, Arm64Profile, Arm64Register, Capability, Extra, FeatureSet, KernelFacts, Lowering,
    PROFILE_FORMAT, VcpuFeature, granules,
};

/// The only version of KVM's API that there is: a dump was made with it.
const KVM_API_VERSION: u32 = 12;

/// Bits of guest-physical addresses of a KVM without `KVM_CAP_ARM_VM_IPA_SIZE`.
const IPA_BITS: u32 = 40;

/// The short names of capabilities, with numbers and names of linux/kvm.h.
const CAPABILITIES: [(&str, u32, &str); 19] = [
    ("MAX_VCPUS", 66, "KVM_CAP_MAX_VCPUS"),
    ("EL1_32BIT", 93, "KVM_CAP_ARM_EL1_32BIT"),
    ("PSCI02", 102, "KVM_CAP_ARM_PSCI_0_2"),
    ("HW_BPS", 119, "KVM_CAP_GUEST_DEBUG_HW_BPS"),
    ("HW_WPS", 120, "KVM_CAP_GUEST_DEBUG_HW_WPS"),
    ("PMU_V3", 126, "KVM_CAP_ARM_PMU_V3"),
    ("USER_IRQ", 144, "KVM_CAP_ARM_USER_IRQ"),
    ("SERROR_ESR", 158, "KVM_CAP_ARM_INJECT_SERROR_ESR"),
    ("IPA_SIZE", 165, "KVM_CAP_ARM_VM_IPA_SIZE"),
    ("SVE", 170, "KVM_CAP_ARM_SVE"),
    ("PTRAUTH_A", 171, "KVM_CAP_ARM_PTRAUTH_ADDRESS"),
    ("PTRAUTH_G", 172, "KVM_CAP_ARM_PTRAUTH_GENERIC"),
    ("NISV", 177, "KVM_CAP_ARM_NISV_TO_USER"),
    ("EXT_DABT", 178, "KVM_CAP_ARM_INJECT_EXT_DABT"),
    ("STEAL_TIME", 187, "KVM_CAP_STEAL_TIME"),
    ("MTE", 205, "KVM_CAP_ARM_MTE"),
    ("REG_MASK_RANGES230", 230, "KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES"),
    ("EL2_240", 240, "KVM_CAP_ARM_EL2"),
    ("EL2_E2H0_241", 241, "KVM_CAP_ARM_EL2_E2H0"),
];

/// `APIAKEYLO_EL1`: vCPUs have it that authenticate pointers.
const POINTER_KEY: SystemRegister = SystemRegister::new(3, 0, 2, 1, 0);

#[derive(Deserialize)]
struct Dump {
    kernel: String,
    caps: BTreeMap<String, String>,
    register_sets: BTreeMap<String, Vec<DumpedRegister>>,
}

#[derive(Deserialize)]
struct DumpedRegister {
    id: String,
    size: u64,
    value: String,
    #[serde(default)]
    writable_mask: Option<String>,
    #[serde(default)]
    lowerable_at_bits: Option<Vec<String>>,
}

/// Makes a profile of a dump.
///
/// # Errors
/// [`JsonError`] with the place, and with the register's id where one is wrong: of another architecture,
/// with a size that KVM never had, there twice, with a mask or a value wider than itself.
pub fn kvm_registers(bytes: &[u8]) -> Result<Arm64Profile, JsonError> {
    let dump: Dump = json::read(bytes)?;
    let capabilities = capabilities(&dump.caps)?;
    let value = |number: u32| {
        let found = capabilities.iter().find(|capability| capability.number == number);
        found.map_or(0, |capability| u32::try_from(capability.vm).unwrap_or(0))
    };
    let mut feature_sets = Vec::new();
    for (name, list) in &dump.register_sets {
        let path = format!("$.register_sets.{name}");
        let registers = registers(&path, list)?;
        feature_sets.push(FeatureSet {
            features: features(&path, name, &registers)?,
            gic_version: (name != "base").then_some(3),
            sve_vector_bits: Vec::new(),
            registers,
            extra: Extra::new(),
        });
    }
    feature_sets.sort_by(|a, b| a.features.cmp(&b.features));
    let number_of = |register| {
        let value = feature_sets.first()?.register(RegisterId::system(register))?.value.as_ref()?;
        value.number()
    };
    let (release, version) = dump.kernel.split_once(' ').unwrap_or((&dump.kernel, ""));
    let profile = Arm64Profile {
        format: PROFILE_FORMAT.to_owned(),
        architecture: "aarch64".to_owned(),
        kernel: KernelFacts { release: release.to_owned(), version: version.to_owned(), extra: Extra::new() },
        processors: number_of(SystemRegister::MIDR_EL1)
            .map(|midr| Arm64Processor { midr, revidr: None })
            .into_iter()
            .collect(),
        kvm_api_version: KVM_API_VERSION,
        ipa_bits: match value(165) {
            0 => IPA_BITS,
            bits => bits,
        },
        granules_bytes: number_of(SystemRegister::ID_AA64MMFR0_EL1).map(granules).unwrap_or_default(),
        mask_ranges: (0..32).filter(|range| value(230) >> range & 1 == 1).collect(),
        vcpus_max: value(66),
        capabilities,
        feature_sets,
        ..Arm64Profile::default()
    };
    profile.check()?;
    Ok(profile)
}

/// The capabilities that the dump names, ascending by number.
fn capabilities(named: &BTreeMap<String, String>) -> Result<Vec<Capability>, JsonError> {
    let mut found = Vec::new();
    for (short, text) in named {
        let path = || format!("$.caps.{short}");
        let known = CAPABILITIES.iter().find(|(known, ..)| known == short);
        let (_, number, name) =
            known.ok_or_else(|| JsonError::sense(path(), "no capability that this build knows"))?;
        let value = text.parse::<i64>().map_err(|_| JsonError::sense(path(), "no number"))?;
        found.push(Capability {
            number: *number,
            name: (*name).to_owned(),
            system: value,
            vm: value,
            extra: Extra::new(),
        });
    }
    found.sort_by_key(|capability| capability.number);
    Ok(found)
}

/// The registers of one list, ascending by id.
fn registers(path: &str, list: &[DumpedRegister]) -> Result<Vec<Arm64Register>, JsonError> {
    let mut ids = BTreeSet::new();
    let mut found = Vec::with_capacity(list.len());
    for (index, dumped) in list.iter().enumerate() {
        let wrong = |what: String| JsonError::sense(format!("{path}[{index}]"), what);
        let register = register(dumped).map_err(wrong)?;
        if !ids.insert(register.id) {
            return Err(wrong(format!("{} a second time", register.id)));
        }
        found.push(register);
    }
    found.sort_by_key(|register| register.id);
    Ok(found)
}

/// One register; says the id if it makes no sense.
fn register(dumped: &DumpedRegister) -> Result<Arm64Register, String> {
    let id = hexadecimal(&dumped.id).ok_or("the id is no number of `0x` and 1 to 16 hexadecimal digits")?;
    let id = RegisterId::new(id).map_err(|error| error.to_string())?;
    let bits = id.bytes() * 8;
    let number = |text: &str, what: &str| {
        let number =
            hexadecimal(text).ok_or_else(|| format!("the {what} of {id} is no hexadecimal number"))?;
        if bits < 64 && number >> bits != 0 {
            return Err(format!("{id} has {bits} bits, its {what} {number:#018x} has more"));
        }
        Ok(number)
    };
    if !dumped.size.is_power_of_two() || dumped.size > crate::arm64::MAX_REGISTER_BYTES as u64 {
        return Err(format!("{id} is said to have {} bytes: no register of KVM ever had", dumped.size));
    }
    if dumped.size != id.bytes() as u64 {
        return Err(format!("{id} has {} bytes, the dump says {}", id.bytes(), dumped.size));
    }
    let value = number(&dumped.value, "value")?.to_le_bytes();
    let is_shown = id.bytes() <= value.len() && !id.counts();
    let place = |text: &String| {
        let place = text.parse::<u32>();
        place.map_err(|_| format!("a place at which {id} can be lowered is no number"))
    };
    let places = |list: &Vec<String>| list.iter().map(place).collect::<Result<Vec<u32>, String>>();
    let taken = dumped.lowerable_at_bits.as_ref().map(places).transpose()?;
    Ok(Arm64Register {
        id,
        // Of a wide register the dump has the low 64 bits alone.
        value: value
            .get(..id.bytes())
            .filter(|_| is_shown)
            .and_then(|bytes| RegisterValue::new(bytes.to_vec())),
        writable_mask: dumped.writable_mask.as_deref().map(|mask| number(mask, "mask")).transpose()?,
        lowering: taken.map(|taken| Lowering { taken, ..Lowering::default() }),
    })
}

fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.len() <= 16)?;
    let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16).ok().filter(|_| plain)
}

/// With which features the vCPU of a list was made: by the list's name, and by what is in it.
fn features(path: &str, name: &str, registers: &[Arm64Register]) -> Result<Vec<VcpuFeature>, JsonError> {
    let any = |fits: &dyn Fn(RegisterId) -> bool| registers.iter().any(|register| fits(register.id));
    let mut features = vec![VcpuFeature::Psci02];
    match name {
        "base" => return Ok(features),
        "full" | "el2" => {}
        _ => {
            let what = "no list that this build knows: `base`, `full` or `el2`";
            return Err(JsonError::sense(path, what));
        }
    }
    if any(&|id| id.class() == RegisterClass::Pmu) {
        features.push(VcpuFeature::PmuV3);
    }
    if any(&|id| matches!(id.kind(), RegisterKind::Vector(_))) {
        features.push(VcpuFeature::Sve);
    }
    if any(&|id| id == RegisterId::system(POINTER_KEY)) {
        features.extend([VcpuFeature::PtrauthAddress, VcpuFeature::PtrauthGeneric]);
    }
    if name == "el2" {
        features.push(VcpuFeature::HasEl2);
    }
    Ok(features)
}
