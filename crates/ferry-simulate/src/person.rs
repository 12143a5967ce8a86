//! The person who is asked: looks at both hosts, and decides among what the program allows.
//!
//! The person is right about what can be seen (which processes live, where the guest runs) and makes
//! sure before giving the guest back to the source that the other process is gone. Now and then a
//! choice is wrong, but only where the program knows better and must refuse it.

use ferry_protocol::journal::Choice;
use ferry_protocol::{SourcePhase, Time};

use crate::clock::Due;
use crate::guest::Custody;
use crate::invariants::Broken;
use crate::world::World;

/// How long a person waits who cannot tell yet, in microseconds.
const LOOK_AGAIN: u64 = 5_000;

impl World {
    /// A person comes a while after having been asked, or just as what was held arrives, or only when
    /// everything else is settled.
    pub(crate) fn agenda_person(&mut self, process: usize) {
        if self.persons_dice.chance(40) {
            let after = self.persons_dice.below(40_000);
            self.agenda.enter(Time(self.now.0 + after), Due::Person(process));
        }
    }

    /// The links heal: a person who waited may decide before the source has heard the answer.
    pub(crate) fn agenda_hasty_persons(&mut self) {
        for process in 0..self.processes.len() {
            if self.waits_for_a_person(process) && self.persons_dice.chance(50) {
                self.agenda.enter(self.now, Due::Person(process));
            }
        }
    }

    /// Sources about which a person is asked and that still wait: whether there was one.
    pub(crate) fn ask_last(&mut self) -> bool {
        let asked = (0..self.processes.len()).find(|&process| self.waits_for_a_person(process));
        asked.is_some_and(|process| self.person_acts(process))
    }

    fn waits_for_a_person(&self, process: usize) -> bool {
        let this = &self.processes[process];
        let source = this.source.as_ref().filter(|_| this.alive);
        source.is_some_and(|source| {
            source.ambiguous
                && source.machine.choice().is_none()
                && source.machine.phase() == SourcePhase::Asking
        })
    }

    /// A person looks and decides. False if nothing can be decided now.
    pub(crate) fn person_acts(&mut self, process: usize) -> bool {
        if self.is_away(process) || !self.waits_for_a_person(process) {
            return false;
        }
        let others: Vec<_> = (0..self.processes.len())
            .filter(|&other| other != process && self.processes[other].alive)
            .filter(|&other| {
                self.processes[other].guest.as_ref().is_some_and(|guest| guest.custody != Custody::None)
            })
            .collect();
        let given_to = self.processes[process].source.as_ref().and_then(|source| source.given_to);
        let Some(given_to) = given_to else { return false };
        if others.iter().any(|&other| self.processes[other].is_starting()) {
            // Whether it runs there is not known yet: looked at again later.
            self.agenda.enter(Time(self.now.0 + LOOK_AGAIN), Due::Person(process));
            return false;
        }
        if !others.is_empty() {
            // It runs elsewhere, or may: the source lets go of it.
            let choice = if self.persons_dice.chance(70) { Choice::TargetRuns } else { Choice::Abandon };
            return self.decide(process, choice) || self.decide(process, Choice::Abandon);
        }
        // Nobody has it. A process that could still take it is ended first, or the guest is given up.
        if self.processes[given_to].alive {
            if self.persons_dice.chance(30) {
                return self.decide(process, Choice::Abandon);
            }
            let name = self.processes[given_to].name.clone();
            self.story.tell(self.now, || format!("a person ends the process {name}"));
            self.exit(given_to);
        }
        match self.persons_dice.below(10) {
            0 => self.decide(process, Choice::Abandon),
            1 if self.is_known_to_be_gone(process) => {
                if self.decide(process, Choice::TargetRuns) {
                    self.broken(Broken::Choice, || "a choice that is known to be wrong is heard".into());
                }
                true
            }
            _ => self.decide(process, Choice::SourceRuns),
        }
    }

    fn is_known_to_be_gone(&self, process: usize) -> bool {
        self.processes[process].source.as_ref().is_some_and(|source| source.told_gone)
    }

    /// A move is over: if a person's choice ended it, that was followed.
    pub(crate) fn note_followed(&mut self, process: usize) {
        let Some(source) = &mut self.processes[process].source else { return };
        let Some(choice) = source.chose.take() else { return };
        let told_gone = source.told_gone;
        self.decided = Some((process, choice));
        self.tally.decided += 1;
        if choice == Choice::TargetRuns && told_gone {
            self.broken(Broken::Choice, || "the guest is left to a target whose process is gone".into());
        }
    }

    /// Custody comes back, or the guest is let go: not by a choice that the target has answered before.
    pub(crate) fn check_choice(&mut self, process: usize) {
        let Some(source) = &self.processes[process].source else { return };
        if let (Some(choice), true) = (source.chose, source.answered) {
            let name = self.processes[process].name.clone();
            self.broken(Broken::Choice, || {
                format!("{name} follows `{choice}` after the target has answered")
            });
        }
    }
}
