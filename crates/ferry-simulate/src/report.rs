//! What a simulation came to.

use std::fmt;
use std::ops::AddAssign;

use crate::invariants::Violation;

/// What a simulation came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// The first invariant that was broken.
    pub violation: Option<Violation>,
    /// What happened.
    pub story: Vec<String>,
    /// How much of it.
    pub tally: Tally,
}

/// How much happened: a simulation in which nothing does finds nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages, jobs, deadlines and faults.
    pub events: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Guests that were born, the first of each seed included.
    pub births: u64,
    /// Moves after which the target ran the guest.
    pub moved: u64,
    /// Moves that failed and left it running on the source.
    pub kept: u64,
    /// Moves that ended otherwise: held, or abandoned.
    pub others: u64,
    /// Times that a person was asked.
    pub asked: u64,
    /// Choices of persons that waited for the end of a question.
    pub held: u64,
    /// Of these, such that gave way to an answer of the target.
    pub overruled: u64,
    /// Choices of persons that were followed.
    pub decided: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.faults += other.faults;
        self.births += other.births;
        self.moved += other.moved;
        self.kept += other.kept;
        self.others += other.others;
        self.asked += other.asked;
        self.held += other.held;
        self.overruled += other.overruled;
        self.decided += other.decided;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, faults, births, moved, kept, others, asked, held, overruled, decided } = self;
        write!(
            f,
            "{events} events, {faults} faults; the guest was born {births} times, moved {moved} times, stayed {kept} \
             times, was held or abandoned {others} times; persons were asked {asked} times and chose {held} times, \
             {overruled} of these gave way to an answer and {decided} were followed"
        )
    }
}
