//! What a client holds of a session's log. Pure bookkeeping: no transport, no clock.

use std::collections::BTreeSet;

/// Places beyond the contiguous part that are remembered. More would be a fault of the server's.
const AHEAD_MAX: usize = 4096;

/// Which entries are held in their final state.
#[derive(Debug, Default)]
pub(super) struct Position {
    /// the largest n for which every entry up to n is held; `None` until something tells where what comes begins
    contiguous: Option<u64>,
    ahead: BTreeSet<u64>,
}

impl Position {
    /// What an `attach` names as `after_seq`; `None` before anything tells.
    pub(super) const fn after_seq(&self) -> Option<u64> {
        self.contiguous
    }

    /// Whether an entry is exactly the one that comes next.
    pub(super) fn is_next(&self, seq: u64) -> bool {
        !self.ahead.contains(&seq) && self.contiguous.is_some_and(|held| held + 1 == seq)
    }

    pub(super) fn holds(&self, seq: u64) -> bool {
        self.contiguous.is_some_and(|held| seq <= held) || self.ahead.contains(&seq)
    }

    /// This is the first place that there will be, if nothing has told of another one before.
    pub(super) fn begin(&mut self, seq: u64) {
        self.contiguous.get_or_insert(seq.saturating_sub(1));
    }

    /// Notes that an entry of the log is held; `false`: it had been before.
    pub(super) fn hold(&mut self, seq: u64) -> bool {
        self.begin(seq);
        self.note(seq)
    }

    /// Notes that an entry is held that came beside the log, so it does not tell where a snapshot begins; `false`: it
    /// had been held before.
    pub(super) fn note(&mut self, seq: u64) -> bool {
        if self.holds(seq) {
            return false;
        }
        self.ahead.insert(seq);
        if let Some(held) = &mut self.contiguous {
            while self.ahead.remove(&(*held + 1)) {
                *held += 1;
            }
        }
        if self.ahead.len() > AHEAD_MAX {
            self.ahead.pop_first();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_grows_over_gaps_once_they_are_filled() {
        let mut position = Position::default();
        position.begin(1);
        assert!(position.hold(1) && position.hold(3) && position.hold(4));
        assert_eq!(position.after_seq(), Some(1));
        assert!(position.is_next(2) && !position.is_next(3) && !position.is_next(5));
        assert!(position.hold(2));
        assert_eq!(position.after_seq(), Some(4));
        assert!(!position.hold(3), "it was held");
    }

    #[test]
    fn a_snapshot_begins_where_its_first_entry_is() {
        let mut position = Position::default();
        position.note(9);
        assert_eq!(position.after_seq(), None);
        assert!(position.hold(7) && position.hold(8));
        assert_eq!(position.after_seq(), Some(9));
        assert!(position.holds(3), "what is before the snapshot is not asked for");
    }

    #[test]
    fn what_is_held_before_a_beginning_is_known_has_a_limit() {
        let mut position = Position::default();
        for seq in 1..=10_000 {
            assert!(position.note(seq));
        }
        assert_eq!((position.ahead.len(), position.holds(10_000), position.after_seq()), (AHEAD_MAX, true, None));
    }
}
