//! When a deadline has its turn among events that never cease to come.
//!
//! What had come when the deadline was over is heard before it: it may be the very thing that was waited
//! for. What comes later waits, so nobody can put a deadline off by keeping the pump busy.

/// Whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    /// How many events are still heard before the deadline that is over.
    before: Option<usize>,
}

impl Turn {
    /// Whether the deadline is next, not an event: asked before each of them, with how many wait.
    pub(crate) fn is_the_deadlines(&mut self, is_over: bool, waiting: usize) -> bool {
        let before = is_over.then(|| self.before.unwrap_or(waiting));
        self.before = before.and_then(|before| before.checked_sub(1));
        before == Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_had_come_goes_before_a_deadline_and_what_comes_later_behind_it() {
        let mut turn = Turn::default();
        assert!(!turn.is_the_deadlines(false, 3));
        let turns: Vec<_> = (0..6).map(|_| turn.is_the_deadlines(true, 2)).collect();
        assert_eq!(turns, [false, false, true, false, false, true], "the queue is never empty");
        assert!(!turn.is_the_deadlines(true, 1) && !turn.is_the_deadlines(false, 1), "it has moved");
        assert!(!turn.is_the_deadlines(true, 1) && turn.is_the_deadlines(true, 1));
        assert!(turn.is_the_deadlines(true, 0), "nothing has come");
    }
}
