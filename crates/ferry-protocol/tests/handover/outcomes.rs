//! The table of `docs/guarantees.md`: each phase of the source and each fault that can strike it, run
//! in the world to its end.

use ferry_protocol::{EXIT_AMBIGUOUS, Epoch, SourceEvent, SourceOutcome, SourcePhase};

use super::guarantees::{check_or_bless, rendered};
use super::world::World;

/// Long after every timeout.
const STEPS: usize = 2_000;

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    LinkLost,
    SourceDies,
    TargetDies,
    TargetDiesAndAnotherListens,
    TargetSilent,
    SourceSilent,
    TargetJobFails,
    SourceJobFails,
    Cancelled,
}

impl Fault {
    const ALL: [(Self, &'static str); 9] = [
        (Self::LinkLost, "link lost"),
        (Self::SourceDies, "source's process dies"),
        (Self::TargetDies, "target's process dies"),
        (Self::TargetDiesAndAnotherListens, "the same, another listens there"),
        (Self::TargetSilent, "target goes silent"),
        (Self::SourceSilent, "source goes silent"),
        (Self::TargetJobFails, "target's next job fails"),
        (Self::SourceJobFails, "source's next job fails"),
        (Self::Cancelled, "user cancels"),
    ];

    fn strike(self, world: &mut World) {
        match self {
            Self::LinkLost => lose_link(world, 0),
            Self::SourceDies => {
                lose_link(world, 0);
                world.kill_source();
            }
            Self::TargetDies => {
                lose_link(world, 0);
                world.kill_target();
            }
            Self::TargetDiesAndAnotherListens => {
                if world.source.link.is_some() {
                    lose_link(world, 0);
                }
                world.kill_target();
                world.start_target();
            }
            Self::TargetSilent => world.target_mute = true,
            Self::SourceSilent => world.source_mute = true,
            Self::TargetJobFails => world.lives[0].fail_next = true,
            Self::SourceJobFails => world.source.fail_next = true,
            Self::Cancelled => world.feed_source(SourceEvent::Cancel),
        }
    }

    /// Whether the fault struck: a job that never came cannot fail.
    fn struck(self, world: &World) -> bool {
        match self {
            Self::TargetJobFails => !world.lives[0].fail_next,
            Self::SourceJobFails => !world.source.fail_next,
            _ => true,
        }
    }
}

/// A point at which a fault strikes.
struct Point {
    phase: SourcePhase,
    /// After custody was given: whether the message arrived and the guest runs on the target.
    taken: Option<bool>,
}

impl Point {
    fn all() -> Vec<Self> {
        let struck = |phase: &SourcePhase| !matches!(phase, SourcePhase::Undo | SourcePhase::Done);
        let both = |phase: SourcePhase| {
            let after = matches!(phase, SourcePhase::Given | SourcePhase::Asking);
            let cases = if after { vec![Some(false), Some(true)] } else { vec![None] };
            cases.into_iter().map(move |taken| Self { phase, taken })
        };
        SourcePhase::ALL.into_iter().filter(struck).flat_map(both).collect()
    }

    fn name(&self) -> String {
        let name = self.phase.name();
        match self.taken {
            None => format!("`{name}`"),
            Some(false) => format!("`{name}`, custody under way"),
            Some(true) => format!("`{name}`, custody taken"),
        }
    }

    fn reached(&self) -> World {
        let mut world = World::new(false);
        let asking = self.phase == SourcePhase::Asking;
        let first = if asking { SourcePhase::Given } else { self.phase };
        run_until(&mut world, |world| world.phase() == first);
        if self.taken == Some(true) {
            run_until(&mut world, |world| world.lives[0].ran.is_some());
        }
        if asking {
            lose_link(&mut world, 0);
            run_until(&mut world, |world| world.phase() == self.phase && world.source.link.is_some());
        }
        assert_eq!(world.phase(), self.phase);
        world
    }
}

fn run_until(world: &mut World, reached: impl Fn(&World) -> bool) {
    for _ in 0..STEPS {
        if reached(world) {
            return;
        }
        world.run_step();
    }
    panic!("the point was not reached");
}

/// The link breaks; while it is being made, it cannot be.
fn lose_link(world: &mut World, keep: usize) {
    match world.source.link {
        Some(number) => world.links[number].cut(keep, keep),
        None => world.source.fail_next = true,
    }
}

fn cell(point: &Point, fault: Fault) -> String {
    let mut world = point.reached();
    fault.strike(&mut world);
    for _ in 0..STEPS {
        if !world.run_step() {
            break;
        }
    }
    if fault.struck(&world) { outcome(&world) } else { "no such job".into() }
}

fn outcome(world: &World) -> String {
    let source = &world.source;
    let target = world.lives.iter().any(|life| life.runs.is_some_and(|epoch| epoch > Epoch::BIRTH));
    let status = match &source.outcome {
        _ if source.machine.is_none() => "–".into(),
        Some(outcome) => outcome.exit_status().to_string(),
        None if source.ambiguous => EXIT_AMBIGUOUS.to_string(),
        None => panic!("the source waits for ever in {:?}", world.phase()),
    };
    let place = match (source.runs, target) {
        (true, false) => "source runs",
        (false, true) if source.ambiguous && source.outcome.is_none() => "target runs, a person is asked",
        (false, true) => "target runs",
        (false, false) if source.machine.is_none() => "nobody: the guest died with its process",
        (false, false) if source.ambiguous => "paused on the source, a person is asked",
        (false, false) if matches!(source.outcome, Some(SourceOutcome::Held { .. })) => {
            "paused on the source, which has custody"
        }
        (false, false) => panic!("nobody has the guest: {:?}", source.outcome),
        (true, true) => panic!("both run"),
    };
    format!("{place} · {status}")
}

#[test]
fn the_table_of_outcomes_is_what_the_protocol_does() {
    let header = std::iter::once("phase \\ fault").chain(Fault::ALL.iter().map(|&(_, name)| name));
    let mut rows = vec![header.map(String::from).collect::<Vec<_>>()];
    for point in Point::all() {
        let cells = Fault::ALL.iter().map(|&(fault, _)| cell(&point, fault));
        rows.push(std::iter::once(point.name()).chain(cells).collect());
    }
    check_or_bless("outcomes", &rendered(&rows));
}

#[test]
fn a_migration_without_a_fault_moves_the_guest() {
    for verify in [false, true] {
        let mut world = World::new(verify);
        while world.run_step() {}
        assert_eq!(outcome(&world), "target runs · 0");
        assert!(world.source.gone && !world.source.runs);
    }
}

/// Even where a person is asked, the source goes on asking: if the link heals, it settles by itself.
#[test]
fn an_ambiguous_outcome_settles_when_the_target_is_heard_again() {
    for taken in [false, true] {
        let mut world = Point { phase: SourcePhase::Given, taken: Some(taken) }.reached();
        lose_link(&mut world, 0);
        (world.target_mute, world.source_mute) = (true, true);
        run_until(&mut world, |world| world.source.ambiguous);
        (world.target_mute, world.source_mute) = (false, false);
        run_until(&mut world, |world| world.source.outcome.is_some());
        let expected = if taken { "target runs · 0" } else { "source runs · 4" };
        assert_eq!(outcome(&world), expected);
    }
}
