//! Two running hosts with a network between them.

use std::time::Duration;

use crate::cache::Scratch;
use crate::error::Error;
use crate::machine::{Machine, Output, Side};
use crate::qemu::Network;

/// Two hosts; each takes scripts, and finds the other under [`Pair::SOURCE`] or [`Pair::TARGET`].
#[derive(Debug)]
pub struct Pair {
    /// The first host.
    pub source: Machine,
    /// The second.
    pub target: Machine,
    _wire: Scratch,
}

/// One step of a pair: `source: SCRIPT` or `target: SCRIPT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Whether it runs on the target.
    pub on_target: bool,
    /// The script.
    pub script: String,
}

impl Step {
    /// Reads a step.
    ///
    /// # Errors
    /// [`Error::Unable`] if it does not begin with a side.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let sides = [("source:", false), ("target:", true)];
        let found = sides.iter().find_map(|(side, on_target)| Some((text.strip_prefix(side)?, *on_target)));
        let (script, on_target) = found.ok_or_else(|| {
            Error::Unable(format!(
                "the step `{text}` says not where it runs: write `source: …` or `target: …`"
            ))
        })?;
        Ok(Self { on_target, script: script.trim().to_owned() })
    }
}

impl Pair {
    /// The source's address.
    pub const SOURCE: &str = "10.77.0.1";
    /// The target's address.
    pub const TARGET: &str = "10.77.0.2";

    pub(crate) fn new(source: Machine, target: Machine, wire: Scratch) -> Self {
        debug_assert_eq!(
            (Network::address(1).as_str(), Network::address(2).as_str()),
            (Self::SOURCE, Self::TARGET)
        );
        Self { source, target, _wire: wire }
    }

    /// The host of a step.
    pub fn host(&mut self, on_target: bool) -> &mut Machine {
        if on_target { &mut self.target } else { &mut self.source }
    }

    /// Runs a step, with `$SOURCE` and `$TARGET` set to the addresses.
    ///
    /// # Errors
    /// Those of [`Machine::run`].
    pub fn run(&mut self, step: &Step, within: Duration) -> Result<Output, Error> {
        let script = Self::with_addresses(&step.script);
        self.host(step.on_target).run(&script, within)
    }

    /// Runs a step, and passes on what it says as it comes.
    ///
    /// # Errors
    /// Those of [`Machine::run`].
    pub fn run_into(
        &mut self,
        step: &Step,
        within: Duration,
        sink: &mut dyn FnMut(Side, &[u8]),
    ) -> Result<i32, Error> {
        let script = Self::with_addresses(&step.script);
        self.host(step.on_target).run_into(&script, within, sink)
    }

    fn with_addresses(script: &str) -> String {
        format!("SOURCE={} TARGET={}\n{script}", Self::SOURCE, Self::TARGET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_names_its_side() {
        let step = Step::parse("target: ferry receive &").unwrap();
        assert_eq!(step, Step { on_target: true, script: "ferry receive &".to_owned() });
        assert!(!Step::parse("source:ls").unwrap().on_target);
        assert!(Step::parse("ls").unwrap_err().to_string().contains("`ls`"));
    }
}
