//! Two running hosts: with a network between them where the emulators have one, and with a folder that
//! both see in turn, because Bochs has none.

use std::fs;
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
    /// Whether there is a network.
    networked: bool,
    /// Whether the step before ran on the target.
    before: Option<bool>,
    /// The network's socket, and what is carried.
    wire: Scratch,
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

    /// The folder that a step finds as the step before left it, on whichever side that was.
    pub const CARRY: &str = "/carry";

    pub(crate) fn new(source: Machine, target: Machine, networked: bool, wire: Scratch) -> Self {
        debug_assert_eq!(
            (Network::address(1).as_str(), Network::address(2).as_str()),
            (Self::SOURCE, Self::TARGET)
        );
        Self { source, target, networked, before: None, wire }
    }

    /// The host of a step.
    pub fn host(&mut self, on_target: bool) -> &mut Machine {
        if on_target { &mut self.target } else { &mut self.source }
    }

    /// Runs a step, with `$SOURCE` and `$TARGET` set to the addresses if there is a network, and `$CARRY` to
    /// the folder that goes from side to side.
    ///
    /// # Errors
    /// Those of [`Machine::run`], [`Machine::fetch`] and [`Machine::put`].
    pub fn run(&mut self, step: &Step, within: Duration) -> Result<Output, Error> {
        let script = self.prepare(step, within)?;
        self.host(step.on_target).run(&script, within)
    }

    /// Runs a step, and passes on what it says as it comes.
    ///
    /// # Errors
    /// Those of [`Pair::run`].
    pub fn run_into(
        &mut self,
        step: &Step,
        within: Duration,
        sink: &mut dyn FnMut(Side, &[u8]),
    ) -> Result<i32, Error> {
        let script = self.prepare(step, within)?;
        self.host(step.on_target).run_into(&script, within, sink)
    }

    /// Brings the folder to the step's side if it is on the other; answers with the step's script.
    fn prepare(&mut self, step: &Step, within: Duration) -> Result<String, Error> {
        let before = self.before.replace(step.on_target);
        if before.is_some_and(|before| before != step.on_target) {
            let here = self.wire.path().join("carry");
            if here.exists() {
                fs::remove_dir_all(&here).map_err(Error::file("remove", &here))?;
            }
            self.host(!step.on_target).fetch(Self::CARRY, &here, within)?;
            let host = self.host(step.on_target);
            host.expect(&format!("rm -rf {}", Self::CARRY), within)?;
            host.put(&here, Self::CARRY, within)?;
        }
        Ok(script(self.networked, &step.script))
    }
}

fn script(networked: bool, step: &str) -> String {
    let carry = Pair::CARRY;
    let network =
        if networked { format!("SOURCE={} TARGET={} ", Pair::SOURCE, Pair::TARGET) } else { String::new() };
    format!("{network}CARRY={carry}; mkdir -p {carry}\n{step}")
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

    #[test]
    fn a_step_knows_the_addresses_where_there_is_a_network() {
        assert_eq!(script(true, "ls"), "SOURCE=10.77.0.1 TARGET=10.77.0.2 CARRY=/carry; mkdir -p /carry\nls");
        assert_eq!(script(false, "ls"), "CARRY=/carry; mkdir -p /carry\nls");
    }
}
