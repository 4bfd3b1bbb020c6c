//! The turns that run on this node: one shared text each, and the way to stop them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use super::boundary;
use crate::chat::TurnId;

/// A running turn's text so far. Watchers read it from their own offset; nobody keeps a copy for them.
#[derive(Debug, Default)]
pub(super) struct Live {
    text: Mutex<String>,
    stopped: CancellationToken,
    ended: CancellationToken,
}

impl Live {
    /// Adds a piece and returns its offset.
    pub(super) fn push(&self, piece: &str) -> u64 {
        let mut text = self.lock();
        let offset = text.len();
        text.push_str(piece);
        offset.try_into().unwrap_or(u64::MAX)
    }

    /// All of the text.
    pub(super) fn text(&self) -> String {
        self.lock().clone()
    }

    /// Bytes of the text.
    pub(super) fn length(&self) -> u64 {
        self.lock().len().try_into().unwrap_or(u64::MAX)
    }

    /// The text from an offset on, at most so many bytes, whole characters.
    pub(super) fn piece(&self, offset: u64, most: u64) -> String {
        let text = self.lock();
        let at = |byte: u64| boundary(&text, usize::try_from(byte).unwrap_or(usize::MAX));
        text.get(at(offset)..at(offset.saturating_add(most))).unwrap_or_default().to_owned()
    }

    fn lock(&self) -> MutexGuard<'_, String> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.stopped.cancel();
    }

    /// Resolves when somebody asked for the end.
    pub(super) async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// Resolves when the task that runs the turn is done with it.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

/// The running turns of this node; one for each runner, removed when it ends.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<TurnId, Arc<Live>>>);

impl Turns {
    pub(super) fn get(&self, id: TurnId) -> Option<Arc<Live>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(super) fn begin(&self, id: TurnId) -> Arc<Live> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default())
    }

    /// Asks the runner of a turn to end it. `false` when none has begun: until [`Self::end`] one that does finds
    /// itself stopped.
    pub(super) fn stop(&self, id: TurnId) -> bool {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = turns.contains_key(&id);
        turns.entry(id).or_default().stop();
        begun
    }

    pub(super) fn end(&self, id: TurnId) {
        let live = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(live) = live {
            live.ended.cancel();
        }
    }
}
