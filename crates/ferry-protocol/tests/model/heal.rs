//! After every fault: all works again, and the machines run on until nothing is left to be done.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use ferry_protocol::SourcePhase;
use ferry_protocol::journal::Choice;

use super::moves::Move;
use super::shared::hash_of;
use super::world::{Ending, Left, World};

/// Steps in which a healed world must settle.
const STEPS: usize = 300;

/// How much of a story that never ends is told.
const TOLD: usize = 40;

/// Healed states that are known to settle as they should.
#[derive(Debug, Default)]
pub(crate) struct Healed(Mutex<HashSet<u64>>);

impl Healed {
    /// Whether this state settles as it should once all is well: with what is under way lost, and with
    /// it still arriving.
    pub(crate) fn settles(&self, world: &World) -> bool {
        world.broken.is_some() || [true, false].into_iter().all(|keep| self.runs_well(world, keep))
    }

    fn runs_well(&self, world: &World, keep: bool) -> bool {
        let mut world = healed(world, keep);
        let mut passed = Vec::new();
        for _ in 0..STEPS {
            passed.push(hash_of(&world));
            let known = |hash| self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(hash);
            let step = if passed.last().is_some_and(known) { Err(None) } else { next(&world) };
            match step {
                Ok(moves) => moves.into_iter().for_each(|one| world.make(one)),
                Err(None) => {
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(passed);
                    return true;
                }
                Err(Some(_)) => return false,
            }
            world.forget_links();
        }
        false
    }
}

/// What happens while a state heals, if it ends badly.
pub(crate) fn bad_story(world: &World) -> Option<Vec<String>> {
    [true, false].into_iter().find_map(|keep| {
        let fate = if keep { "arrives" } else { "is lost" };
        let mut story = vec![format!("all works again; what is under way {fate}")];
        let mut world = healed(world, keep);
        for _ in 0..STEPS {
            match next(&world) {
                Ok(moves) => {
                    for one in moves {
                        story.push(world.tell(one));
                        world.make(one);
                    }
                }
                Err(None) => return None,
                Err(Some(wrong)) => {
                    story.push(wrong.into());
                    return Some(story);
                }
            }
            world.forget_links();
        }
        story.truncate(TOLD);
        story.push("and so on: it never settles".into());
        Some(story)
    })
}

fn healed(world: &World, keep: bool) -> World {
    let mut world = world.clone();
    world.left = Left { faults: 0, retries: 1 };
    let links: Vec<_> = if keep { Vec::new() } else { world.links.keys().copied().collect() };
    for link in links {
        world.make(Move::Cut { link, keep_to_target: false, keep_to_source: false });
    }
    world
}

/// What happens next in a world without faults, in a fixed order: somebody listens, jobs are done,
/// messages arrive, and only then the time passes, for all. Once it has settled: what is wrong with it.
fn next(world: &World) -> Result<Vec<Move>, Option<&'static str>> {
    if world.address.is_none() {
        return Ok(vec![Move::StartTarget]);
    }
    let asks = world.source.ambiguous && world.phase() == Some(SourcePhase::Asking);
    let is_free = world.source.jobs.is_empty() && world.source.choice().is_none();
    if asks && !answers(world) && is_free {
        // A person is asked; whoever knows that the target's process is gone lets the source run.
        let wrong = wrong_end(world);
        let gone = world.lives.iter().any(|life| {
            life.machine.is_none() && world.source.given.is_some_and(|(to, _)| to == life.instance)
        });
        let may_decide = wrong.is_none() && gone;
        return if may_decide { Ok(vec![Move::Decide(Choice::SourceRuns)]) } else { Err(wrong) };
    }
    let mut moves = Vec::new();
    world.calm_moves(&mut moves);
    let is_time = |one: &Move| matches!(one, Move::SourceTick | Move::TargetTick(_));
    match moves.iter().find(|one| !is_time(one)) {
        Some(&one) => Ok(vec![one]),
        None if !moves.is_empty() => Ok(moves),
        None if may_move_again(world) => Ok(vec![Move::Retry]),
        None => Err(wrong_end(world)),
    }
}

/// Whether the process that was given custody is there to say what became of it.
fn answers(world: &World) -> bool {
    let listener = world.address.map(|life| world.lives[life].instance);
    world.source.given.is_some_and(|(to, _)| Some(to) == listener)
}

/// A failed move can be made again, and then it succeeds.
fn may_move_again(world: &World) -> bool {
    let free = world.address.and_then(|life| world.lives[life].machine.as_ref());
    world.source.may_begin() && free.is_some_and(|machine| machine.ledger().taken().is_none())
}

/// What is wrong with a world that has settled.
fn wrong_end(world: &World) -> Option<&'static str> {
    let source = &world.source;
    let targets = world.lives.iter().filter(|life| life.runs).count();
    if world.runners() > 1 {
        return Some("two hosts run the guest");
    }
    if !source.lives || source.stuck {
        // The guest's fate is that of its process, unless it has moved.
        return None;
    }
    if let Some((to, of)) = source.given
        && !source.gone
    {
        if answers(world) {
            return Some("both answer, and yet nobody knows who runs the guest");
        }
        let lives = world.lives.iter().any(|life| life.instance == to && life.machine.is_some());
        let runs = world.lives.iter().any(|life| life.runs && life.ran == Some(of.epoch));
        return (!source.ambiguous || source.runs || (runs && !lives))
            .then_some("given, not settled, and nobody is asked");
    }
    match source.ending {
        Some(Ending::Kept) => {
            (!source.runs || targets > 0).then_some("the source kept the guest, but does not run it")
        }
        Some(Ending::Moved) => {
            let taker = world.lives.iter().rev().find(|life| life.ran.is_some());
            match taker {
                None => Some("the source let the guest go, and nobody took it"),
                Some(life) => {
                    (life.machine.is_some() != life.runs).then_some("the target let the guest stop")
                }
            }
        }
        Some(Ending::Abandoned) => source.runs.then_some("the source runs an abandoned guest"),
        Some(Ending::Held) | None => Some("the source is stuck"),
    }
}
