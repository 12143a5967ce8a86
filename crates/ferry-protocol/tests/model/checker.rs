//! The search: every state that can be reached, by stateright, and the schedule to one that breaks a
//! property.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::heal::{Healed, bad_story};
use super::moves::Move;
use super::properties::{
    kept_until_given, nobody_is_overruled, one_runs, runner_has_the_record, runner_is_highest,
};
use super::world::{Left, Setup, World};

/// The protocol under so many faults.
#[derive(Debug)]
pub(crate) struct Protocol {
    setup: Setup,
    left: Left,
    /// The only promise to look at; none: at all.
    only: Option<&'static str>,
    healed: Healed,
    /// A violation was found: later ones would only be longer.
    found: AtomicBool,
}

impl Protocol {
    fn new(setup: Setup, left: Left, only: Option<&'static str>) -> Self {
        Self { setup, left, only, healed: Healed::default(), found: AtomicBool::new(false) }
    }

    fn holds(&self, good: bool) -> bool {
        good || self.found.swap(true, Ordering::Relaxed)
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Move;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.setup, self.left)]
    }

    fn actions(&self, state: &World, actions: &mut Vec<Move>) {
        state.moves(actions);
    }

    fn next_state(&self, state: &World, action: Move) -> Option<World> {
        state.after(action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut promises: Vec<Property<Self>> = vec![
            Property::always(TWO, |model, world: &World| model.holds(one_runs(world))),
            Property::always(HIGHEST, |model, world: &World| model.holds(runner_is_highest(world))),
            Property::always(KEPT, |model, world: &World| model.holds(kept_until_given(world))),
            Property::always(WITNESSED, |model, world: &World| model.holds(runner_has_the_record(world))),
            Property::always(USED, |model, world: &World| model.holds(world.broken.is_none())),
            Property::always(HEALED, |model, world: &World| model.holds(model.healed.settles(world))),
        ];
        promises.retain(|promise| self.only.is_none_or(|only| only == promise.name));
        if self.only == Some(OVERRULED) {
            // No promise: a search for it shows that the model comes there.
            promises.push(Property::always(OVERRULED, |_, world: &World| nobody_is_overruled(world)));
        }
        promises
    }
}

pub(crate) const TWO: &str = "never two runners";
pub(crate) const HIGHEST: &str = "a runner's epoch is the highest";
pub(crate) const KEPT: &str = "the source runs until custody is given";
pub(crate) const WITNESSED: &str = "with a witness, its record names the runner";
pub(crate) const USED: &str = "no custody and no epoch is used twice";
pub(crate) const OVERRULED: &str = "no answer goes before a person's choice";
pub(crate) const HEALED: &str = "after healing exactly one runs, or a person is asked";

/// What a search found.
pub(crate) struct Searched {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    pub(crate) depth: usize,
    pub(crate) took: Duration,
    /// The broken property and the schedule that breaks it.
    pub(crate) broken: Option<(&'static str, String)>,
}

/// Searches until all is seen or a promise is broken. With one thread the schedule is the shortest.
pub(crate) fn search(setup: Setup, left: Left, threads: usize, only: Option<&'static str>) -> Searched {
    let begun = Instant::now();
    let checker = Protocol::new(setup, left, only)
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::Any)
        .spawn_bfs()
        .join();
    let broken = checker.discoveries().into_iter().next().map(|(name, path)| {
        let end = path.last_state().clone();
        let steps = path.into_vec();
        let mut lines: Vec<_> = steps.into_iter().filter_map(|(world, one)| Some(world.tell(one?))).collect();
        lines.extend(end.broken.map(String::from));
        let heals = (name == HEALED).then(|| bad_story(&end)).flatten();
        lines.extend(heals.into_iter().flatten());
        (name, numbered(&lines))
    });
    Searched {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        took: begun.elapsed(),
        broken,
    }
}

/// One line a step.
pub(crate) fn numbered(lines: &[String]) -> String {
    let lines: Vec<_> = (1..).zip(lines).map(|(number, line)| format!("{number:>3}. {line}")).collect();
    lines.join("\n")
}
