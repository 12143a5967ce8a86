//! Guests are born on each host, work, and are saved by `ferry migrate --to file:PATH`.

use std::fs;
use std::path::{Path, PathBuf};

use ferry_contract::arm64::{RegisterId, RegisterValue};
use ferry_contract::{
    Arm64Contract, BirthRequest, Contract, Features, FindingKind, Profile, Register, X86Contract, compare,
};
use ferry_lab::{Host, Vendor};

use super::{Saved, boot, slowness, with_each};
use crate::{Ready, STEP_MAX};

/// What the guests of x86-64 do: each looks at something else. Those with the narrow contract do what depends on it.
const PAYLOADS: &[&str] = &["features", "exercise", "msrs", "clock", "ticks"];
/// What those of Intel's hosts do: a guest that ticks on a processor that it does not know can take all the time of a host
/// under Bochs.
const PAYLOADS_OF_INTEL: &[&str] = &["features", "exercise", "msrs", "clock"];
const PAYLOADS_OF_COMMON: &[&str] = &["features", "exercise", "msrs"];

/// What those of arm64 do.
const PAYLOADS_OF_ARM64: &[&str] = &["features", "clock", "ticks"];

/// Guests with a narrow contract: what all AMD hosts of the matrix offer. `FERRY_BLESS=1` writes it anew.
const COMMON: &str = "tests/hosts/matrix/common.json";

/// Guests with all that their host offers.
pub(super) const OFFERED: &str = "offered";

/// Guests of arm64 as those are born that are to go back to an older kernel: with its PSCI, and without the services that
/// it does not have.
const WAY_BACK: &str = "way-back";
const OLD_PSCI: (u64, u64) = (0x6030_0000_0014_0000, 0x1_0000);
const NEW_SERVICES: u64 = 0x6030_0000_0016_0003;

/// A birth, the work of a guest, and its end in a file. The jump that `clock` allows is that of a loaded machine, and
/// under Bochs no guest stands still as shortly as the usual limit wants.
const BIRTH: &str = r"
    mkdir -p -m 700 /tmp/state; export FERRY_STATE_DIR=/tmp/state
    id=$contract-$payload
    ferry run --id $id --memory 16M --payload $payload --jump-limit 600000 $how >/tmp/run-$id.log 2>&1 &
    for try in $(seq 150); do
        ferry status $id 2>/dev/null | grep -q 'progress *[1-9]' && break
        usleep 100000
    done
    ferry status $id >/tmp/status-$id.log 2>&1
    grep -q 'faults *0' /tmp/status-$id.log &&
        ferry migrate $id --to file:/files/$id.ferry --downtime-limit 60000 --wait >/tmp/migrate-$id.log 2>&1 &&
        gzip /files/$id.ferry && exit 0
    cat /tmp/*-$id.log >&2; ps >&2; dmesg | tail -n 20 >&2
    exit 1
";

/// The contract of the file with this host's TSC frequency, which each boot measures a little otherwise.
const FITTED: &str = r#"
    khz=$(sed -n 's/^ *"frequency_khz": \([0-9]*\),*$/\1/p' /files/profile.json)
    sed "s/\"tsc_frequency_khz\": [0-9]*/\"tsc_frequency_khz\": $khz/" /common.json >/tmp/common.json
"#;

/// What came from one host.
pub(super) struct Born {
    pub(super) saved: Vec<Saved>,
    profile: Profile,
}

/// Has guests born on every host.
pub(super) fn everywhere(lab: &Ready, folder: &Path) -> Vec<Born> {
    with_each(lab, "had its guests born", |index, host| {
        let place = folder.join(index.to_string());
        on(lab, index, host, &place).unwrap_or_else(|error| panic!("{host}: {error}"))
    })
}

fn on(lab: &Ready, index: usize, host: &Host, place: &Path) -> Result<Born, ferry_lab::Error> {
    let has_common = host.vendor == Vendor::Amd && Path::new(COMMON).exists();
    let job =
        if has_common { lab.job.clone().file("common.json", Path::new(COMMON)) } else { lab.job.clone() };
    let mut machine = boot(lab, host, &job)?;
    let within = 2 * STEP_MAX * slowness(host);
    let text =
        machine.expect("ferry probe -o /files/profile.json >/dev/null; cat /files/profile.json", within)?;
    let profile = Profile::from_json(text.as_bytes()).unwrap();
    let mut contracts = Vec::new();
    if has_common {
        machine.expect(FITTED, within)?;
        contracts.push(("common", "--contract /tmp/common.json", PAYLOADS_OF_COMMON));
    }
    match offered(&profile) {
        Contract::X86(_) if host.vendor == Vendor::Intel => contracts.push((OFFERED, "", PAYLOADS_OF_INTEL)),
        Contract::X86(_) => contracts.push((OFFERED, "", PAYLOADS)),
        Contract::Arm64(contract) => {
            fs::create_dir_all(place).unwrap();
            let file = place.join("way-back.json");
            fs::write(&file, way_back(*contract).to_json()).unwrap();
            machine.put(place, "/contracts", within)?;
            contracts.push((OFFERED, "", PAYLOADS_OF_ARM64));
            contracts.push((WAY_BACK, "--contract /contracts/way-back.json", PAYLOADS_OF_ARM64));
        }
    }
    let mut saved = Vec::new();
    for (contract, how, payloads) in contracts {
        for payload in payloads {
            machine.expect(&format!("contract={contract} payload={payload} how='{how}'{BIRTH}"), within)?;
            let file = place.join(format!("{contract}-{payload}.ferry.gz"));
            saved.push(Saved { source: index, contract: contract.into(), payload: (*payload).into(), file });
        }
    }
    machine.fetch("/files", place, within)?;
    Ok(Born { saved, profile })
}

/// A contract with which a guest can go back.
fn way_back(mut contract: Arm64Contract) -> Contract {
    let id = |raw| RegisterId::new(raw).unwrap();
    contract.registers.insert(id(OLD_PSCI.0), RegisterValue::from(OLD_PSCI.1));
    contract.registers.insert(id(NEW_SERVICES), RegisterValue::from(0));
    contract.into()
}

/// For what `ferry check` refuses a guest with all that a host offers, by source and target.
pub(super) fn checked(born: &[Born]) -> Vec<Vec<Vec<String>>> {
    let refusals = |contract: &Contract, on: &Born| -> Vec<String> {
        let findings = compare(contract, &on.profile).findings.into_iter();
        findings
            .filter(|finding| finding.kind == FindingKind::Refusal)
            .map(|finding| finding.subject)
            .collect()
    };
    let on_all = |of: &Born| -> Vec<Vec<String>> {
        born.iter().map(|on| refusals(&offered(&of.profile), on)).collect()
    };
    born.iter().map(on_all).collect()
}

fn offered(profile: &Profile) -> Contract {
    let request = BirthRequest { vcpus: 1, features: Features::Offered(Vec::new()) };
    Contract::birth(profile, &request).unwrap()
}

/// Whether the narrow contract is still what all these hosts offer.
pub(super) fn check_common(hosts: &[Host], born: &[Born]) {
    if hosts.iter().any(|host| host.vendor != Vendor::Amd) {
        return;
    }
    let of_x86 = |born: &Born| match offered(&born.profile) {
        Contract::X86(contract) => *contract,
        Contract::Arm64(_) => panic!("these hosts are of x86-64"),
    };
    let common = born.iter().map(of_x86).reduce(|all, one| both(&all, &one)).unwrap();
    // Of no meaning: each birth gets its host's.
    let text = Contract::from(X86Contract { tsc_frequency_khz: 2_000_000, ..common }).to_json();
    if std::env::var_os("FERRY_BLESS").is_some() {
        fs::write(COMMON, &text).unwrap();
    }
    let stored = fs::read_to_string(PathBuf::from(COMMON)).unwrap_or_default();
    assert!(
        stored == text,
        "lab/{COMMON} is not what these hosts have in common: FERRY_BLESS=1 writes it anew"
    );
}

/// Registers whose bits are features, by leaf and subleaf.
const FEATURES: &[(u32, u32, Register)] = &[
    (1, 0, Register::Ecx),
    (1, 0, Register::Edx),
    (7, 0, Register::Ebx),
    (7, 0, Register::Ecx),
    (7, 0, Register::Edx),
    (7, 1, Register::Eax),
    (0xd, 0, Register::Eax),
    (0xd, 1, Register::Eax),
    (0xd, 1, Register::Ecx),
    (0x4000_0001, 0, Register::Eax),
    (0x8000_0001, 0, Register::Ecx),
    (0x8000_0001, 0, Register::Edx),
    (0x8000_0008, 0, Register::Ebx),
    (0x8000_000a, 0, Register::Edx),
    (0x8000_0021, 0, Register::Eax),
];

/// Numbers of which the lower one is common.
const NUMBERS: &[(u32, u32, Register)] = &[
    (0xd, 0, Register::Ecx),
    (0x8000_0008, 0, Register::Eax),
    (0x8000_000a, 0, Register::Eax),
    (0x8000_000a, 0, Register::Ebx),
];

/// What both contracts have. Enough for hosts of one emulator, whose other values are data.
fn both(one: &X86Contract, other: &X86Contract) -> X86Contract {
    let mut both = one.clone();
    both.cpuid.retain(|entry| other.cpuid.iter().any(|their| their.key() == entry.key()));
    for entry in &mut both.cpuid {
        let (leaf, subleaf) = entry.key();
        for register in Register::ALL {
            let theirs = other.register(leaf, subleaf, register);
            let own = entry.register_mut(register);
            if FEATURES.contains(&(leaf, subleaf, register)) {
                *own &= theirs;
            } else if NUMBERS.contains(&(leaf, subleaf, register)) {
                *own = theirs.min(*own);
            }
        }
    }
    both.xcr0 = both.register(0xd, 0, Register::Eax).into();
    both.xss = both.register(0xd, 1, Register::Ecx).into();
    let components = both.xcr0 | both.xss;
    both.cpuid.retain(|entry| entry.leaf != 0xd || entry.subleaf < 2 || components >> entry.subleaf & 1 == 1);
    both.feature_msrs.retain(|msr| other.feature_msrs.iter().any(|their| their.index == msr.index));
    for msr in &mut both.feature_msrs {
        let theirs = other.feature_msrs.iter().find(|their| their.index == msr.index);
        msr.value &= theirs.map_or(0, |their| their.value);
    }
    both.xsave_area_bytes = both.xsave_area_bytes.min(other.xsave_area_bytes);
    both.nested_state_bytes = both.nested_state_bytes.min(other.nested_state_bytes);
    both
}
