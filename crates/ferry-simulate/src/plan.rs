//! What a seed stands for: the guest, the hosts, the network, and the faults that will strike.
//!
//! A fault strikes when a migration reaches a phase, and a while later, so that a plan with a fault
//! left out still tells the same story as far as it can: that is what shrinking rests on.

use std::fmt;

use ferry_protocol::{SourcePhase, TargetPhase};

use crate::clock::{Clock, EVEN};
use crate::dice::Dice;
use crate::story::millis;

/// The parts of the world that have dice of their own.
const DICE_OF_THE_BASE: u64 = 1;
const DICE_OF_THE_FAULTS: u64 = 2;

/// The most faults of a plan.
const MAX_FAULTS: u64 = 7;

/// Pages of guest memory that the workload never writes.
const UNTOUCHED_PAGES: u64 = 4;

/// What holds from the beginning to the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Pages that the guest writes over and over.
    pub(crate) working_pages: u64,
    /// Pages of its memory.
    pub(crate) pages: u64,
    /// Pages that the guest writes in a second.
    pub(crate) rate: u64,
    pub(crate) delay_us: u64,
    pub(crate) page_us: u64,
    pub(crate) verify: bool,
    pub(crate) lanes: u8,
    pub(crate) downtime_limit_us: u64,
    pub(crate) clocks: [Clock; 2],
    /// How often the user has the guest moved, failures and ways back included.
    pub(crate) moves: u32,
    /// How long a job may take.
    pub(crate) job_us: u64,
    /// Whether the guest has a lock that only one host may hold.
    pub(crate) lock: bool,
    /// Whether there is a witness.
    pub(crate) witness: bool,
}

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// A while after the source of a move reached a phase.
    Source { attempt: u32, phase: SourcePhase, after_us: u64 },
    /// A while after the target did.
    Target { attempt: u32, phase: TargetPhase, after_us: u64 },
}

/// One of the two sides of the present move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Target,
}

/// What becomes of the journals when a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Journals {
    /// The next process there reads them.
    Stay,
    /// It reads them, but a part is damaged.
    Damaged,
    /// It has another folder and knows nothing of them.
    Elsewhere,
}

/// What strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The link dies. Of what is under way the first items still arrive; a side that is not told
    /// finds out by waiting.
    Cut { keep_down: usize, keep_up: usize, tell_source: bool, tell_target: bool },
    /// What is under way to a side arrives garbled; the other way of the link is whole.
    Garble { to: Side },
    /// Everything that a side sends is held that long, then arrives.
    Hold { side: Side, for_us: u64 },
    /// Everything is slower for a while.
    Slow { factor: u64, for_us: u64 },
    /// A side's process dies, and another listens there after a while.
    Kill { side: Side, again_after_us: u64, journals: Journals },
    /// A side's host loses power: the other side is not told, and what was not synced is gone.
    PowerOff { side: Side, again_after_us: u64 },
    /// A side's process is stopped and goes on later.
    Stop { side: Side, for_us: u64 },
    /// The next job of a side fails.
    Fail { side: Side },
    /// The user cancels on a side.
    Cancel { side: Side },
    /// Somebody opens a link to the target and says nothing, or offers a guest, perhaps of the same name
    /// and epoch, and goes away.
    Stranger { words: usize, same_name: bool },
    /// Somebody who listened sends everything that a source sent in an earlier move once more.
    Replay { move_back: u32 },
    /// A side's disk takes nothing for a while; what failed may be there all the same.
    DiskFails { side: Side, for_us: u64, written: bool },
    /// A side's disk is slow for a while.
    DiskSlow { side: Side, by_us: u64 },
    /// A side does not reach the witness for a while.
    Witness { side: Side, for_us: u64 },
    /// The guest writes at another rate, in pages a second.
    Rate { rate: u64 },
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub(crate) when: When,
    pub(crate) what: What,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The seed; jitter follows from it too.
    pub seed: u64,
    /// What holds from the beginning to the end.
    pub base: Base,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::new(seed, DICE_OF_THE_BASE);
        let base = Base::draw(&mut dice);
        let mut dice = Dice::new(seed, DICE_OF_THE_FAULTS);
        let count = dice.below(MAX_FAULTS + 1);
        let lost = |dice: &mut Dice| Fault::without_the_witness(dice, base.moves);
        let mut faults: Vec<_> = (0..count).map(|_| Fault::draw(&mut dice, base.moves)).collect();
        if base.witness && dice.chance(60) {
            faults.push(lost(&mut dice));
        }
        // What a stranger sends once more matters to a process that came after the one that heard it.
        let replays = faults.iter().filter(|fault| matches!(fault.what, What::Replay { .. })).count();
        for _ in 0..replays {
            if dice.chance(60) {
                faults.push(Fault::before_a_replay(&mut dice));
            }
        }
        Self { seed, base, faults }
    }
}

impl Base {
    fn draw(dice: &mut Dice) -> Self {
        let working_pages = dice.within(4, 24);
        let page_us = dice.weighted(&[(6, 10), (3, 60), (1, 500)], 10);
        // Now and then it writes faster than the link carries.
        let rate = dice.weighted(&[(2, 50), (4, 500), (3, 3000)], 500);
        let even = Clock { origin: 0, rate: EVEN };
        let odd = |dice: &mut Dice| Clock {
            origin: dice.below(1_000_000_000),
            rate: dice.weighted(&[(4, EVEN), (2, EVEN + 200), (2, EVEN * 2), (2, EVEN / 2)], EVEN),
        };
        let clocks = if dice.chance(40) { [odd(dice), odd(dice)] } else { [even, even] };
        Self {
            working_pages,
            pages: working_pages + UNTOUCHED_PAGES,
            rate,
            delay_us: dice.within(10, 400),
            page_us,
            verify: dice.chance(25),
            lanes: dice.weighted(&[(6, 1), (2, 2), (1, 3)], 1),
            downtime_limit_us: dice.within(200, 4000),
            clocks,
            moves: dice.weighted(&[(3, 1), (3, 2), (2, 3), (1, 4)], 1),
            job_us: dice.weighted(&[(6, 100), (2, 1000), (1, 8000)], 100),
            lock: dice.chance(30),
            witness: dice.chance(25),
        }
    }
}

impl Fault {
    fn without_the_witness(dice: &mut Dice, moves: u32) -> Self {
        let attempt = u32::try_from(dice.within(1, u64::from(moves))).unwrap_or(1);
        let when = When::Source { attempt, phase: SourcePhase::Given, after_us: dice.below(12_000) };
        let side = if dice.chance(50) { Side::Source } else { Side::Target };
        Self { when, what: What::Witness { side, for_us: dice.within(500, 30_000) } }
    }

    fn before_a_replay(dice: &mut Dice) -> Self {
        let phase = dice.weighted(&[(3, SourcePhase::Given), (1, SourcePhase::Asking)], SourcePhase::Given);
        let when = When::Source { attempt: 1, phase, after_us: dice.below(3000) };
        let again_after_us = dice.within(50, 2000);
        let kinds = [(1, Journals::Stay), (1, Journals::Elsewhere)];
        let journals = dice.weighted(&kinds, Journals::Stay);
        Self { when, what: What::Kill { side: Side::Target, again_after_us, journals } }
    }

    fn draw(dice: &mut Dice, moves: u32) -> Self {
        let attempt = u32::try_from(dice.within(1, u64::from(moves))).unwrap_or(1);
        let after_us = match dice.below(4) {
            0 => 0,
            1 => dice.below(100),
            2 => dice.below(1500),
            _ => dice.below(20_000),
        };
        let when = if dice.chance(25) {
            When::Target { attempt, phase: target_phase(dice), after_us }
        } else {
            When::Source { attempt, phase: source_phase(dice), after_us }
        };
        let what = What::draw(dice);
        let when = match (what, when) {
            // Where only custody is claimed.
            (What::Witness { .. }, When::Source { attempt, after_us, .. }) => {
                When::Source { attempt, phase: SourcePhase::Given, after_us }
            }
            // Where it may be first.
            (What::Stranger { .. }, When::Source { attempt, after_us, .. }) if dice.chance(50) => {
                When::Source { attempt, phase: SourcePhase::Connect, after_us: after_us % 200 }
            }
            // Everything that it sends again was sent by then.
            (What::Replay { .. }, When::Source { attempt, .. }) => {
                let (phase, after_us) = match dice.below(10) {
                    0..4 => (SourcePhase::Connect, 0),
                    4..8 => (SourcePhase::Given, dice.within(2_000, 40_000)),
                    _ => (SourcePhase::Done, dice.below(40_000)),
                };
                When::Source { attempt, phase, after_us }
            }
            (_, when) => when,
        };
        Self { when, what }
    }
}

/// Late phases more often: there is custody.
fn source_phase(dice: &mut Dice) -> SourcePhase {
    let choices = [
        (1, SourcePhase::Connect),
        (1, SourcePhase::Hello),
        (1, SourcePhase::Offer),
        (2, SourcePhase::Build),
        (3, SourcePhase::Rounds),
        (3, SourcePhase::Pause),
        (3, SourcePhase::LastRound),
        (3, SourcePhase::State),
        (5, SourcePhase::Ready),
        (10, SourcePhase::Given),
        (8, SourcePhase::Asking),
        (2, SourcePhase::Undo),
        (2, SourcePhase::Done),
    ];
    dice.weighted(&choices, SourcePhase::Given)
}

fn target_phase(dice: &mut Dice) -> TargetPhase {
    let choices = [
        (1, TargetPhase::Offer),
        (2, TargetPhase::Build),
        (2, TargetPhase::Receive),
        (3, TargetPhase::Restore),
        (3, TargetPhase::Ready),
        (5, TargetPhase::Taking),
        (4, TargetPhase::Running),
    ];
    dice.weighted(&choices, TargetPhase::Running)
}

impl What {
    fn draw(dice: &mut Dice) -> Self {
        let side = if dice.chance(50) { Side::Source } else { Side::Target };
        let while_us = match dice.below(3) {
            0 => dice.within(50, 1000),
            1 => dice.within(1000, 12_000),
            _ => dice.within(12_000, 60_000),
        };
        let keep = |dice: &mut Dice| usize::try_from(dice.below(3)).unwrap_or(0);
        match dice.below(100) {
            0..3 => Self::Garble { to: side },
            3..25 => Self::Cut {
                keep_down: keep(dice),
                keep_up: keep(dice),
                tell_source: dice.chance(75),
                tell_target: dice.chance(75),
            },
            25..37 => Self::Hold { side, for_us: while_us },
            37..41 => Self::Slow { factor: dice.within(2, 40), for_us: while_us },
            41..53 => {
                let kinds = [(84, Journals::Stay), (8, Journals::Damaged), (8, Journals::Elsewhere)];
                Self::Kill { side, again_after_us: while_us, journals: dice.weighted(&kinds, Journals::Stay) }
            }
            53..59 => Self::PowerOff { side, again_after_us: while_us },
            59..66 => Self::Stop { side, for_us: while_us },
            66..75 => Self::Fail { side },
            75..79 => Self::Cancel { side },
            79..82 => Self::Stranger { words: keep(dice), same_name: dice.chance(50) },
            82..88 => Self::Replay { move_back: u32::try_from(dice.below(3)).unwrap_or(0) },
            88..92 => Self::DiskFails { side, for_us: while_us, written: dice.chance(30) },
            92..94 => Self::DiskSlow { side, by_us: while_us },
            94..97 => Self::Witness { side, for_us: while_us },
            _ => Self::Rate { rate: dice.weighted(&[(2, 20), (1, 8000)], 20) },
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.when {
            When::Source { attempt, phase, after_us } => {
                write!(f, "move {attempt}, {} after the source's `{}`: ", millis(after_us), phase.name())?;
            }
            When::Target { attempt, phase, after_us } => {
                write!(f, "move {attempt}, {} after the target's `{}`: ", millis(after_us), phase.name())?;
            }
        }
        self.what.fmt(f)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Cut { tell_source, tell_target, .. } => {
                let told = match (tell_source, tell_target) {
                    (true, true) => "",
                    (true, false) => ", and the target is not told",
                    (false, true) => ", and the source is not told",
                    (false, false) => ", and nobody is told",
                };
                write!(f, "the link dies{told}")
            }
            Self::Garble { to } => write!(f, "what is under way to the {to} arrives garbled"),
            Self::Hold { side, for_us } => {
                write!(f, "everything that the {side} sends is held for {}", millis(for_us))
            }
            Self::Slow { factor, for_us } => {
                write!(f, "the network is {factor} times slower for {}", millis(for_us))
            }
            Self::Kill { side, journals, .. } => {
                let then = match journals {
                    Journals::Stay => "",
                    Journals::Damaged => ", and its journal is damaged",
                    Journals::Elsewhere => ", and the next one keeps its journals elsewhere",
                };
                write!(f, "the {side}'s process dies{then}")
            }
            Self::PowerOff { side, .. } => write!(f, "the {side}'s host loses power"),
            Self::Stop { side, for_us } => {
                write!(f, "the {side}'s process is stopped for {}", millis(for_us))
            }
            Self::Fail { side } => write!(f, "the {side}'s next job fails"),
            Self::Cancel { side } => write!(f, "the user cancels on the {side}"),
            Self::Stranger { same_name, .. } => {
                let whose = if same_name { "of the same name" } else { "of its own" };
                write!(f, "a stranger with a guest {whose} opens a link to the target")
            }
            Self::Replay { .. } => f.write_str("a stranger sends an earlier session once more"),
            Self::DiskFails { side, for_us, .. } => {
                write!(f, "the {side}'s disk takes nothing for {}", millis(for_us))
            }
            Self::DiskSlow { side, by_us } => {
                write!(f, "each write to the {side}'s disk takes {}", millis(by_us))
            }
            Self::Witness { side, for_us } => {
                write!(f, "the {side} does not reach the witness for {}", millis(for_us))
            }
            Self::Rate { rate } => write!(f, "the guest writes {rate} pages a second from now on"),
        }
    }
}

impl Fault {
    /// The same fault, right when its phase is reached.
    pub(crate) fn at_once(&mut self) {
        match &mut self.when {
            When::Source { after_us, .. } | When::Target { after_us, .. } => *after_us = 0,
        }
    }

    /// The same fault, half as long.
    pub(crate) fn shorter(&mut self) {
        match &mut self.what {
            What::Hold { for_us, .. }
            | What::Slow { for_us, .. }
            | What::Stop { for_us, .. }
            | What::DiskFails { for_us, .. }
            | What::Witness { for_us, .. } => *for_us /= 2,
            What::Kill { again_after_us, .. } | What::PowerOff { again_after_us, .. } => *again_after_us /= 2,
            _ => {}
        }
    }
}
