//! The rules on which "never two runners" rests, by name, so that a checker can take one away.
//!
//! A [`Source`](crate::Source) and a [`Target`](crate::Target) keep them all. The model and the
//! simulation switch off one at a time, and must then find a schedule that breaks an invariant:
//! a rule whose loss nobody notices would be no rule, and a checker that finds nothing no checker.

use std::fmt;
use std::str::FromStr;

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// A source that gave custody resumes only on a refusal, a won claim or a person's word.
    RefusalBeforeResume,
    /// An epoch that was refused is never taken.
    RefusalIsFinal,
    /// Who took an epoch never refuses it.
    TakenIsNotRefused,
    /// Only the process that was given custody, or its journal, can refuse.
    OnlyThatProcess,
    /// While a guest is being started nobody is told that it runs.
    AnswerAfterStart,
    /// "May run" is on disk before the source can pause the guest.
    MayRunOnDisk,
    /// A process that follows another never refuses what that one may have run.
    UnknownAfterRestart,
    /// A process takes no offer that was made to another.
    OnlyToThatProcess,
    /// With a witness, nobody runs the guest after the pause without having won the claim.
    WitnessDecides,
    /// What a person gives back to the source runs above every epoch that was given.
    PersonAbove,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 10] = [
        Self::RefusalBeforeResume,
        Self::RefusalIsFinal,
        Self::TakenIsNotRefused,
        Self::OnlyThatProcess,
        Self::AnswerAfterStart,
        Self::MayRunOnDisk,
        Self::UnknownAfterRestart,
        Self::OnlyToThatProcess,
        Self::WitnessDecides,
        Self::PersonAbove,
    ];

    /// Its stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::RefusalBeforeResume => "refusal-before-resume",
            Self::RefusalIsFinal => "refusal-is-final",
            Self::TakenIsNotRefused => "taken-is-not-refused",
            Self::OnlyThatProcess => "only-that-process",
            Self::AnswerAfterStart => "answer-after-start",
            Self::MayRunOnDisk => "may-run-on-disk",
            Self::UnknownAfterRestart => "unknown-after-restart",
            Self::OnlyToThatProcess => "only-to-that-process",
            Self::WitnessDecides => "witness-decides",
            Self::PersonAbove => "person-above",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no rule has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no rule `{name}`; the rules are {}", Rule::ALL.map(Rule::name).join(", "))]
pub struct UnknownRule {
    name: String,
}

impl FromStr for Rule {
    type Err = UnknownRule;

    fn from_str(name: &str) -> Result<Self, UnknownRule> {
        let found = Self::ALL.into_iter().find(|rule| rule.name() == name);
        found.ok_or_else(|| UnknownRule { name: name.chars().take(64).collect() })
    }
}

/// The rules that are kept: all, unless a checker takes one away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Rules {
    off: Option<Rule>,
}

impl Rules {
    /// All rules but one: for checkers, never for a guest that somebody needs.
    pub fn without(rule: Rule) -> Self {
        Self { off: Some(rule) }
    }

    /// Whether a rule is kept.
    pub fn keep(self, rule: Rule) -> bool {
        self.off != Some(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_found_by_its_name() {
        for rule in Rule::ALL {
            assert_eq!(rule.name().parse::<Rule>(), Ok(rule));
            assert!(Rules::default().keep(rule) && !Rules::without(rule).keep(rule));
        }
        assert!("none".parse::<Rule>().unwrap_err().to_string().contains("person-above"));
    }
}
