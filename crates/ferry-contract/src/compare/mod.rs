//! Holding a guest's contract against a host's profile, register by register.

mod arm64;
pub(crate) mod x86;

use crate::contract::Contract;
use crate::profile::Profile;
use crate::verdict::{Finding, FindingKind, Layer, MAX_FINDINGS, Verdict};

/// Whether a guest with this contract can run on the host of this profile, with every reason found.
pub fn compare(contract: &Contract, profile: &Profile) -> Verdict {
    match (contract, profile) {
        (Contract::X86(contract), Profile::X86(profile)) => x86::compare_x86(contract, profile),
        (Contract::Arm64(contract), Profile::Arm64(profile)) => arm64::compare_arm64(contract, profile),
        _ => Verdict { findings: vec![another_kind(contract, profile.architecture())] },
    }
}

fn another_kind(contract: &Contract, architecture: &str) -> Finding {
    let values = (contract.kind().to_owned(), format!("is an {architecture} host"));
    let effect = "its state would mean nothing there";
    refusal("kind of machine", Layer::Machine, values, effect, "choose a host of the guest's kind")
}

/// Refusals first: a reader looks for them, and none may be among those that are left out.
fn verdict(mut findings: Vec<Finding>) -> Verdict {
    findings.sort_by_key(|finding| finding.kind != FindingKind::Refusal);
    findings.truncate(MAX_FINDINGS);
    Verdict { findings }
}

fn finding(
    kind: FindingKind,
    subject: impl Into<String>,
    layer: Layer,
    (guest, target): (String, String),
    effect: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding {
        kind,
        subject: subject.into(),
        layer,
        guest,
        target,
        effect: effect.into(),
        remedy: remedy.into(),
    }
}

fn refusal(
    subject: impl Into<String>,
    layer: Layer,
    values: (String, String),
    effect: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    finding(FindingKind::Refusal, subject, layer, values, effect, remedy)
}

/// Set bits as the manuals write them: `3,5,7-9`.
fn bit_list(bits: u64) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == bit => *last = bit,
            _ => runs.push((bit, bit)),
        }
    }
    let run = |(first, last): &(u32, u32)| match last - first {
        0 => first.to_string(),
        _ => format!("{last}-{first}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_read_as_in_the_manuals() {
        assert_eq!(bit_list(1 << 16), "16");
        assert_eq!(bit_list(0b1011_1010), "1,5-3,7");
        assert_eq!(bit_list(u64::MAX), "63-0");
    }
}
