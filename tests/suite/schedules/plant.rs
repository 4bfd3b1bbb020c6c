//! Faults that a network cannot make, planted between a connection and its reader, so that the checker must find
//! them. A checker that finds nothing here would find nothing in the server either.

use std::collections::VecDeque;

use super::link::Came;

/// What is done to what arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Plant {
    /// the second piece of text is dropped
    Drop,
    /// every message comes twice
    Double,
    /// the first entry comes after what follows it
    Swap,
}

pub(super) struct Planted {
    plant: Plant,
    pieces: usize,
    entries: usize,
    held: Option<Came>,
}

impl Planted {
    pub(super) const fn new(plant: Plant) -> Self {
        Self { plant, pieces: 0, entries: 0, held: None }
    }

    pub(super) fn pass(&mut self, came: Came, out: &mut VecDeque<Came>) {
        let (frame, _) = &came;
        let piece = frame["type"] == "ai_response" && frame["metadata"]["done"] == "false";
        let entry = frame["type"] == "user_message";
        self.pieces += usize::from(piece);
        self.entries += usize::from(entry);
        match self.plant {
            Plant::Drop if piece && self.pieces == 2 => return,
            Plant::Swap if entry && self.entries == 1 => return self.held = Some(came),
            Plant::Double if entry => out.push_back(came.clone()),
            _ => {}
        }
        out.push_back(came);
        out.extend(self.held.take());
    }
}
