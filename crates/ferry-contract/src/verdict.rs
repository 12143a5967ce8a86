//! Findings and the verdict that they make.
//!
//! A target answers an offer with a [`Verdict`]. Each [`Finding`] names one subject, the layer
//! that lacks it, both values, what the guest would notice and the remedy, so that an operator can
//! act on it without reading code.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// The most findings that one verdict carries over the wire.
pub const MAX_FINDINGS: usize = 1024;

/// The longest text of a finding's field, in bytes.
pub const MAX_TEXT_BYTES: usize = 4096;

/// The most bytes of text in one verdict; it fits into a message with room to spare.
const MAX_VERDICT_BYTES: usize = 512 * 1024;

/// The layer at which a finding arises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// The machine description: memory, vCPUs, the kind of machine.
    #[n(0)]
    Machine,
    /// The target's processor.
    #[n(1)]
    Processor,
    /// The target's kernel, KVM included.
    #[n(2)]
    Kernel,
    /// The program that holds the guest on the target.
    #[n(3)]
    Vmm,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "machine",
            Self::Processor => "processor",
            Self::Kernel => "kernel",
            Self::Vmm => "VMM",
        })
    }
}

/// Whether a finding forbids the move or only deserves a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The guest would notice: the move is refused.
    #[n(0)]
    Refusal,
    /// The guest notices nothing, an operator may want to know.
    #[n(1)]
    Notice,
}

/// One reason: the subject, the layer that lacks it, both values, what the guest would notice, the
/// remedy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(map)]
pub struct Finding {
    /// Whether it forbids the move.
    #[n(0)]
    pub kind: FindingKind,
    /// What the finding is about, for example `memory` or a register's name.
    #[n(1)]
    pub subject: String,
    /// The layer that lacks it.
    #[n(2)]
    pub layer: Layer,
    /// The value that the guest has, as text.
    #[n(3)]
    pub guest: String,
    /// The value that the target offers, as text.
    #[n(4)]
    pub target: String,
    /// What the guest would notice.
    #[n(5)]
    pub effect: String,
    /// What to do about it.
    #[n(6)]
    pub remedy: String,
}

impl Finding {
    fn texts(&mut self) -> [&mut String; 5] {
        [&mut self.subject, &mut self.guest, &mut self.target, &mut self.effect, &mut self.remedy]
    }

    fn cut(&mut self) {
        for text in self.texts() {
            let end = (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
            text.truncate(end.unwrap_or(0));
        }
    }

    fn text_bytes(&self) -> usize {
        let texts = [&self.subject, &self.guest, &self.target, &self.effect, &self.remedy];
        texts.iter().map(|text| text.len()).sum()
    }

    /// Whether every text keeps to [`MAX_TEXT_BYTES`].
    pub fn is_bounded(&self) -> bool {
        [&self.subject, &self.guest, &self.target, &self.effect, &self.remedy]
            .iter()
            .all(|text| text.len() <= MAX_TEXT_BYTES)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}): the guest has {}, the target {}; {}; {}",
            self.subject, self.layer, self.guest, self.target, self.effect, self.remedy
        )
    }
}

/// The answer to an offer, made of findings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(map)]
pub struct Verdict {
    /// Every reason found, refusals and notices alike.
    #[n(0)]
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// A verdict without findings: the guest notices nothing.
    pub fn accept() -> Self {
        Self::default()
    }

    /// Whether any finding forbids the move.
    pub fn is_refusal(&self) -> bool {
        self.findings.iter().any(|finding| finding.kind == FindingKind::Refusal)
    }

    /// The verdict's stable name: `accept`, `accept_with_notices` or `refuse`.
    pub fn name(&self) -> &'static str {
        if self.is_refusal() {
            "refuse"
        } else if self.findings.is_empty() {
            "accept"
        } else {
            "accept_with_notices"
        }
    }

    /// This verdict cut to what one message carries: long texts are cut, findings past the bounds
    /// are left out, a refusal never.
    #[must_use]
    pub fn trimmed(mut self) -> Self {
        // Refusals first, so that what is left out is a notice as long as there is one.
        self.findings.sort_by_key(|finding| finding.kind == FindingKind::Notice);
        let mut bytes = 0;
        for finding in &mut self.findings {
            finding.cut();
        }
        self.findings.retain(|finding| {
            bytes += finding.text_bytes();
            bytes <= MAX_VERDICT_BYTES
        });
        self.findings.truncate(MAX_FINDINGS);
        self
    }

    /// Whether a peer's verdict keeps to the bounds of this module.
    pub fn is_bounded(&self) -> bool {
        self.findings.len() <= MAX_FINDINGS && self.findings.iter().all(Finding::is_bounded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(kind: FindingKind) -> Finding {
        Finding {
            kind,
            subject: "vcpus".into(),
            layer: Layer::Kernel,
            guest: "8".into(),
            target: "4".into(),
            effect: "four vCPUs would be missing".into(),
            remedy: "choose a host that offers 8 vCPUs".into(),
        }
    }

    #[test]
    fn one_refusal_among_notices_refuses() {
        let mut verdict = Verdict::accept();
        assert_eq!(verdict.name(), "accept");
        verdict.findings.push(finding(FindingKind::Notice));
        assert_eq!(verdict.name(), "accept_with_notices");
        verdict.findings.push(finding(FindingKind::Refusal));
        assert_eq!(verdict.name(), "refuse");
        assert!(verdict.is_refusal());
    }

    #[test]
    fn a_text_over_the_bound_is_seen() {
        let mut long = finding(FindingKind::Notice);
        long.remedy = "x".repeat(MAX_TEXT_BYTES + 1);
        assert!(!Verdict { findings: vec![long] }.is_bounded());
    }

    #[test]
    fn a_verdict_is_trimmed_to_one_message_and_still_refuses() {
        let mut long = finding(FindingKind::Notice);
        long.effect = "ü".repeat(MAX_TEXT_BYTES);
        let mut verdict = Verdict { findings: vec![long; MAX_FINDINGS + 1] };
        verdict.findings.push(finding(FindingKind::Refusal));
        let trimmed = verdict.trimmed();
        assert!(trimmed.is_bounded() && trimmed.is_refusal());
        assert!(minicbor::to_vec(&trimmed).unwrap().len() < 1 << 20);
    }

    #[test]
    fn a_finding_reads_as_one_sentence() {
        assert_eq!(
            finding(FindingKind::Refusal).to_string(),
            "vcpus (kernel): the guest has 8, the target 4; four vCPUs would be missing; choose a host that offers 8 vCPUs"
        );
    }
}
