//! Protocols that are known to be wrong, as others have them or had them (named by what they do): the
//! checker must find how each comes to run the guest twice. A last one, that only waits, is the control.

use stateright::{Checker, Model, Property};

use super::checker::numbered;

/// How custody passes, and what the source does when a message of that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// The target says that it has all and then runs; the source resumes if that word is lost.
    ResumesOnLostAcknowledgement,
    /// The target runs the guest and then answers; on any error while it reads that answer the source
    /// resumes.
    RunsThenAnswers,
    /// A manager asks the target to finish and run; if the reply is lost, it has the source resume.
    ResumesAfterLostFinishReply,
    /// The source that hears nothing waits.
    Waits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Source {
    Runs,
    Paused,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Target {
    Waits,
    /// It said that it has all; the guest is being started.
    Starts,
    Runs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Party {
    Source,
    Target,
    Manager,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Word {
    Paused,
    Take,
    Taken,
    LetGo,
    GoOn,
    /// The link broke before the answer came.
    NoAnswer,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Hosts {
    source: Source,
    target: Target,
    under_way: Vec<(Party, Word)>,
    may_lose: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    TheSourcePauses,
    Arrives(Party, Word),
    IsLost(Party, Word),
    TheTargetRuns,
}

impl Protocol {
    fn has_manager(self) -> bool {
        self == Self::ResumesAfterLostFinishReply
    }

    /// Who waits for the target's answer.
    fn waits(self) -> Party {
        if self.has_manager() { Party::Manager } else { Party::Source }
    }

    fn arrives(self, hosts: &mut Hosts, to: Party, word: Word) {
        let mut send = |to, word| hosts.under_way.push((to, word));
        match (to, word) {
            (Party::Manager, Word::Paused) => send(Party::Target, Word::Take),
            (Party::Manager, Word::Taken) => send(Party::Source, Word::LetGo),
            (Party::Manager, Word::NoAnswer) => send(Party::Source, Word::GoOn),
            (Party::Target, Word::Take) if self == Self::RunsThenAnswers => {
                hosts.target = Target::Runs;
                send(self.waits(), Word::Taken);
            }
            (Party::Target, Word::Take) => {
                hosts.target = Target::Starts;
                send(self.waits(), Word::Taken);
            }
            (Party::Source, Word::Taken | Word::LetGo) => hosts.source = Source::Gone,
            (Party::Source, Word::GoOn) => hosts.source = Source::Runs,
            (Party::Source, Word::NoAnswer) if self != Self::Waits => hosts.source = Source::Runs,
            _ => {}
        }
    }
}

impl Model for Protocol {
    type State = Hosts;
    type Action = Step;

    fn init_states(&self) -> Vec<Hosts> {
        let (source, target) = (Source::Runs, Target::Waits);
        vec![Hosts { source, target, under_way: Vec::new(), may_lose: true }]
    }

    fn actions(&self, hosts: &Hosts, steps: &mut Vec<Step>) {
        if hosts.source == Source::Runs && hosts.target == Target::Waits && hosts.may_lose {
            steps.push(Step::TheSourcePauses);
        }
        for &(to, word) in &hosts.under_way {
            steps.push(Step::Arrives(to, word));
            if hosts.may_lose && word != Word::NoAnswer {
                steps.push(Step::IsLost(to, word));
            }
        }
        if hosts.target == Target::Starts {
            steps.push(Step::TheTargetRuns);
        }
    }

    fn next_state(&self, hosts: &Hosts, step: Step) -> Option<Hosts> {
        let mut hosts = hosts.clone();
        match step {
            Step::TheSourcePauses => {
                hosts.source = Source::Paused;
                let manager = (Party::Manager, Word::Paused);
                let target = (Party::Target, Word::Take);
                hosts.under_way.push(if self.has_manager() { manager } else { target });
            }
            Step::TheTargetRuns => hosts.target = Target::Runs,
            Step::Arrives(to, word) | Step::IsLost(to, word) => {
                hosts.under_way.retain(|&one| one != (to, word));
                if matches!(step, Step::IsLost(..)) {
                    hosts.may_lose = false;
                    hosts.under_way.push((self.waits(), Word::NoAnswer));
                } else {
                    self.arrives(&mut hosts, to, word);
                }
            }
        }
        Some(hosts)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("never two runners", |_, hosts: &Hosts| {
            (hosts.source, hosts.target) != (Source::Runs, Target::Runs)
        })]
    }
}

/// The schedule by which the guest comes to run twice.
fn double_run(protocol: Protocol) -> Option<String> {
    let checker = protocol.checker().spawn_bfs().join();
    let path = checker.discovery("never two runners")?;
    let steps: Vec<_> = path.into_actions().iter().map(|step| format!("{step:?}")).collect();
    Some(numbered(&steps))
}

#[test]
fn wrong_protocols_are_found_out() {
    for protocol in [
        Protocol::ResumesOnLostAcknowledgement,
        Protocol::RunsThenAnswers,
        Protocol::ResumesAfterLostFinishReply,
    ] {
        let schedule = double_run(protocol).unwrap_or_else(|| panic!("{protocol:?} passes"));
        println!("{protocol:?}: the guest runs twice\n{schedule}");
        assert!(schedule.contains("IsLost("), "{protocol:?} is wrong without any fault");
    }
    assert_eq!(double_run(Protocol::Waits), None);
}
