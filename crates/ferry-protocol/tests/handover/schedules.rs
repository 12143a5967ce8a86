//! Random schedules: whatever is lost, delayed or dies, in whatever order, the world's invariants
//! hold at every step; and when all is well again, exactly one host runs the guest or the source
//! says that a person must decide.

use ferry_protocol::{SourceEvent, SourceOutcome, SourcePhase, TargetEvent, TargetPhase};
use proptest::prelude::*;

use super::world::{MANY_PAGES, World};

const SCHEDULES: u32 = 20_000;

/// The share of a schedule's moves that are no faults, of 256.
const CALM: u8 = 216;

/// Steps of a migration that nothing disturbs.
const STEPS_OF_A_MOVE: usize = 32;

const MAX_ATTEMPTS: u64 = 4;

/// Steps in which a healed world must settle.
const SETTLED: usize = 400;

#[derive(Clone, Copy)]
enum Move {
    SourceJob,
    TargetJob(usize),
    TargetWrite(usize),
    ToTarget(usize),
    ToSource(usize),
    Advance,
    Retry,
}

fn calm_moves(world: &World) -> Vec<Move> {
    let (to_target, to_source) = world.arriving();
    let busy = (0..world.lives.len()).filter(|&life| !world.lives[life].jobs.is_empty());
    let writing = (0..world.lives.len()).filter(|&life| !world.lives[life].writes.is_empty());
    let mut moves: Vec<_> = busy.map(Move::TargetJob).chain(writing.map(Move::TargetWrite)).collect();
    moves.extend(to_target.into_iter().map(Move::ToTarget));
    moves.extend(to_source.into_iter().map(Move::ToSource));
    if !world.source.jobs.is_empty() {
        moves.push(Move::SourceJob);
    }
    // Time is mostly the last to move, else every wait would be over before anything arrives.
    if moves.is_empty() {
        moves.extend([Move::Advance, Move::Retry]);
    }
    moves
}

fn make(world: &mut World, one: Move) {
    match one {
        Move::SourceJob => world.source_job(true),
        Move::TargetJob(life) => world.target_job(life, true),
        Move::TargetWrite(life) => world.target_write(life, true),
        Move::ToTarget(link) => world.deliver_to_target(link),
        Move::ToSource(link) => world.deliver_to_source(link),
        Move::Advance => {
            world.advance();
        }
        Move::Retry => {
            if world.source.attempts < MAX_ATTEMPTS {
                world.retry();
            }
        }
    }
}

fn fault(world: &mut World, choice: u8) {
    let detail = choice / 16;
    match choice % 16 {
        0 | 1 => cut(world, usize::from(detail)),
        2 | 3 => world.source_job(false),
        4 => fail_a_target_job(world),
        5 => fail_a_target_write(world),
        6 => world.feed_source(SourceEvent::Cancel),
        7 => cancel_target(world),
        8 => {
            world.kill_target();
            world.start_target();
        }
        9 => world.kill_target(),
        10 if world.address.is_none() => world.start_target(),
        11 | 12 => world.stranger(detail),
        13 if detail == 0 => world.kill_source(),
        14 if detail < 8 => {
            world.advance();
        }
        14 => world.dirty_pages = if detail.is_multiple_of(2) { 0 } else { MANY_PAGES },
        _ => world.tick(),
    }
}

/// Breaks the source's link, or an older one; a part of what is under way still arrives.
fn cut(world: &mut World, detail: usize) {
    let number = world.source.link.or(world.links.len().checked_sub(1));
    if let Some(number) = number {
        world.links[number].cut(detail % 4, detail / 4);
    }
}

fn fail_a_target_job(world: &mut World) {
    if let Some(life) = (0..world.lives.len()).find(|&life| !world.lives[life].jobs.is_empty()) {
        world.target_job(life, false);
    }
}

fn fail_a_target_write(world: &mut World) {
    if let Some(life) = (0..world.lives.len()).find(|&life| !world.lives[life].writes.is_empty()) {
        world.target_write(life, false);
    }
}

fn cancel_target(world: &mut World) {
    if let Some(life) = world.address {
        world.feed_target(life, TargetEvent::Cancel);
    }
}

/// No more faults: whatever listens answers, and time passes.
fn heal(world: &mut World) {
    if world.address.is_none() {
        world.start_target();
    }
    world.dirty_pages = 0;
    for _ in 0..SETTLED {
        let busy = world.lives.iter().any(|life| !life.jobs.is_empty() || !life.writes.is_empty());
        let settled = world.phase() == SourcePhase::Done && world.source.jobs.is_empty() && !busy;
        if settled && !world.advance() && world.arriving() == (vec![], vec![]) {
            return;
        }
        world.run_step();
    }
}

fn check_healed(world: &World) {
    let targets = world.lives.iter().filter(|life| life.ran.is_some()).count();
    let listener = world.address.map(|life| &world.lives[life]);
    let waits = listener.and_then(|life| life.machine.as_ref()).map(ferry_protocol::Target::phase);
    assert_eq!(waits, Some(TargetPhase::Waiting), "the target is stuck");
    let source = &world.source;
    if source.machine.is_none() {
        return;
    }
    if let Some((given_to, _)) = source.given
        && !source.gone
    {
        assert!(source.ambiguous, "given, not settled, and nobody is asked");
        let lives = listener.is_some_and(|life| life.instance == given_to);
        assert!(!lives, "the target lives and could have said who runs the guest");
        return;
    }
    assert_eq!(world.phase(), SourcePhase::Done, "the source is stuck");
    match source.outcome.as_ref().unwrap() {
        SourceOutcome::Moved { .. } => assert!(source.gone && !source.runs),
        SourceOutcome::Kept { .. } => {
            assert!(source.is_as_before(), "a failed migration left its traces");
            assert_eq!(targets, 0);
        }
        SourceOutcome::Held { .. } => assert!(!source.runs && source.given.is_none() && targets == 0),
        SourceOutcome::Doubtful { .. } => panic!("only a one-way source ends in doubt"),
        SourceOutcome::Abandoned { .. } => panic!("no person spoke"),
    }
}

/// A world after some steps without a fault, so that faults strike late phases as often as early ones,
/// and after a schedule.
fn run(verify: bool, calm_steps: usize, schedule: &[(u8, u8)]) -> World {
    let mut world = World::new(verify);
    for _ in 0..calm_steps {
        world.run_step();
    }
    for &(kind, choice) in schedule {
        if kind < CALM {
            let moves = calm_moves(&world);
            let one = moves[usize::from(choice) % moves.len()];
            make(&mut world, one);
        } else {
            fault(&mut world, choice);
        }
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: SCHEDULES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_two_run_and_nobody_waits_for_ever(
        verify: bool,
        calm_steps in 0..STEPS_OF_A_MOVE,
        schedule in proptest::collection::vec(any::<(u8, u8)>(), 0..120),
    ) {
        let mut world = run(verify, calm_steps, &schedule);
        heal(&mut world);
        check_healed(&world);
    }
}
