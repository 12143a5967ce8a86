//! What must hold in every state.

use super::moves::may_be_paused;
use super::world::World;

/// At no moment do two hosts run the guest.
pub(crate) fn one_runs(world: &World) -> bool {
    world.runners() <= 1
}

/// Whoever runs the guest has the highest epoch under which it ever ran.
pub(crate) fn runner_is_highest(world: &World) -> bool {
    let highest = world.highest_run();
    let source = !world.source.runs || world.source.epoch == highest;
    source && world.lives.iter().all(|life| !life.runs || life.ran == Some(highest))
}

/// No answer of the target comes before a person's choice: it can, and that is to be found.
pub(crate) fn nobody_is_overruled(world: &World) -> bool {
    !world.source.overruled
}

/// Until custody is given the source runs the guest, or has it paused for a moment and runs it again.
pub(crate) fn kept_until_given(world: &World) -> bool {
    let source = &world.source;
    if !source.lives {
        return !source.runs;
    }
    let paused = world.phase().is_some_and(may_be_paused);
    source.runs || source.gone || source.given.is_some() || source.stuck || paused
}

/// With a witness, whoever runs the guest is whom its record names.
pub(crate) fn runner_has_the_record(world: &World) -> bool {
    let holds = |who| world.witness.holder == who;
    !world.setup.witness
        || ((!world.source.runs || holds(None))
            && world.lives.iter().all(|life| !life.runs || holds(Some(life.instance))))
}
