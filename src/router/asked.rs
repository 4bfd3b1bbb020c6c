//! Which turns a connection shows on exchanges of its own.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use crate::chat::TurnId;

/// The turns that this connection's own exchanges show, so that its watches do not show them again.
#[derive(Debug, Default)]
pub struct Asked(Mutex<VecDeque<TurnId>>);

impl Asked {
    /// More than a connection can have running; the oldest is forgotten first.
    const TURNS_MAX: usize = 256;

    /// Notes a turn before anything of it can happen.
    pub fn add(&self, turn_id: TurnId) {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() == Self::TURNS_MAX {
            turns.pop_front();
        }
        turns.push_back(turn_id);
    }

    /// Forgets a turn that was not made after all.
    pub fn remove(&self, turn_id: TurnId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| *other != turn_id);
    }

    pub(super) fn has(&self, turn_id: Option<TurnId>) -> bool {
        turn_id.is_some_and(|turn_id| self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&turn_id))
    }
}
