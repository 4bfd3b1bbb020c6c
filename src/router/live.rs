//! The turns that run on this node: one shared text each, and the way to stop them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

use super::boundary;
use crate::chat::TurnId;

/// A running turn's text so far. Watchers read it from their own offset; nobody keeps a copy for them.
#[derive(Debug, Default)]
pub(super) struct Live {
    text: Mutex<Text>,
    /// a runner has taken it on
    begun: AtomicBool,
    stopped: CancellationToken,
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct Text {
    text: String,
    /// from which byte on which model writes, in order
    writers: Vec<(u64, Arc<str>)>,
}

impl Live {
    /// Adds a piece and returns its offset.
    pub(super) fn push(&self, model_id: &Arc<str>, piece: &str) -> u64 {
        self.lock().push(Some(model_id), piece)
    }

    /// Adds what is new of a piece whose place is known; its writer is not, where it was read from a log. `false`: it
    /// begins behind the end of the text.
    pub(super) fn join(&self, model_id: Option<&Arc<str>>, offset: u64, piece: &str) -> bool {
        let mut live = self.lock();
        let Some(held) = live.length().checked_sub(offset) else { return false };
        let new = usize::try_from(held).ok().and_then(|held| piece.get(held..)).unwrap_or_default();
        if !new.is_empty() {
            live.push(model_id, new);
        }
        true
    }

    /// All of the text.
    pub(super) fn text(&self) -> String {
        self.lock().text.clone()
    }

    /// The text from one byte to another, both ends of pieces.
    pub(super) fn between(&self, from: u64, until: u64) -> String {
        let at = |byte: u64| usize::try_from(byte).unwrap_or(usize::MAX);
        self.lock().text.get(at(from)..at(until)).unwrap_or_default().to_owned()
    }

    /// Bytes of the text.
    pub(super) fn length(&self) -> u64 {
        self.lock().length()
    }

    /// The text from an offset on, or from the beginning of the character that it lies in, at most so many bytes, whole
    /// characters, by one model; where it begins, and that model.
    pub(super) fn piece(&self, offset: u64, most: u64) -> (u64, Option<Arc<str>>, String) {
        let live = self.lock();
        let next = live.writers.partition_point(|(from, _)| *from <= offset);
        let writer = next.checked_sub(1).and_then(|at| live.writers.get(at)).map(|(_, writer)| Arc::clone(writer));
        let until = live.writers.get(next).map_or(u64::MAX, |(from, _)| *from).min(offset.saturating_add(most));
        let at = |byte: u64| boundary(&live.text, usize::try_from(byte).unwrap_or(usize::MAX));
        let begin = at(offset);
        let text = live.text.get(begin..at(until)).unwrap_or_default().to_owned();
        (begin.try_into().unwrap_or(u64::MAX), writer, text)
    }

    fn lock(&self) -> MutexGuard<'_, Text> {
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

impl Text {
    fn push(&mut self, model_id: Option<&Arc<str>>, piece: &str) -> u64 {
        let offset = self.length();
        if let Some(model_id) = model_id
            && self.writers.last().is_none_or(|(_, writer)| writer != model_id)
        {
            self.writers.push((offset, Arc::clone(model_id)));
        }
        self.text.push_str(piece);
        offset
    }

    fn length(&self) -> u64 {
        self.text.len().try_into().unwrap_or(u64::MAX)
    }
}

/// The running turns of this node; one for each runner, removed when it ends. And those that are being made.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<TurnId, Arc<Live>>>);

impl Turns {
    pub(super) fn get(&self, id: TurnId) -> Option<Arc<Live>> {
        self.lock().get(&id).cloned()
    }

    /// Takes a turn on, for its runner.
    pub(super) fn begin(&self, id: TurnId) -> Arc<Live> {
        let mut turns = self.lock();
        let live = turns.entry(id).or_default();
        live.begun.store(true, Ordering::Relaxed);
        Arc::clone(live)
    }

    /// Announces a turn before it is made: whoever stops it before its runner begins stops it for that one.
    pub(super) fn early(&self, id: TurnId) -> Early<'_> {
        self.lock().entry(id).or_default();
        Early { turns: self, id, settled: false }
    }

    /// Asks the runner of a turn to end it. `false` when none has begun or is about to: until [`Self::end`] one that
    /// does finds itself stopped.
    pub(super) fn stop(&self, id: TurnId) -> bool {
        let mut turns = self.lock();
        let known = turns.contains_key(&id);
        turns.entry(id).or_default().stop();
        known
    }

    /// The same, and nothing is kept of a turn that is none of this node's.
    pub(super) fn stop_running(&self, id: TurnId) -> bool {
        self.get(id).inspect(|live| live.stop()).is_some()
    }

    pub(super) fn end(&self, id: TurnId) {
        let live = self.lock().remove(&id);
        if let Some(live) = live {
            live.ended.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TurnId, Arc<Live>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn that is being made. Dropped before it is known what became of it, the turn is forgotten.
#[derive(Debug)]
pub(super) struct Early<'a> {
    turns: &'a Turns,
    id: TurnId,
    settled: bool,
}

impl Early<'_> {
    /// The turn has started, and its runner takes it on.
    pub(super) fn runs(mut self) {
        self.settled = true;
    }

    /// The turn waits for another one. `true` when it was stopped meanwhile, and no runner will see that.
    pub(super) fn waits(mut self) -> bool {
        self.forget()
    }

    /// Forgets the turn, unless a runner has it already; whether it was stopped.
    fn forget(&mut self) -> bool {
        let mut turns = self.turns.lock();
        let begun = turns.get(&self.id).is_none_or(|live| live.begun.load(Ordering::Relaxed));
        if std::mem::replace(&mut self.settled, true) || begun {
            return false;
        }
        let live = turns.remove(&self.id);
        drop(turns);
        live.is_some_and(|live| {
            live.ended.cancel();
            live.stopped.is_cancelled()
        })
    }
}

impl Drop for Early<'_> {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_that_is_stopped_while_it_is_made_is_stopped_for_its_runner() {
        let (turns, id) = (Turns::default(), TurnId::new());
        let early = turns.early(id);
        assert!(turns.stop(id), "the runner will see it");
        early.runs();
        assert!(turns.begin(id).stopped.is_cancelled());
        turns.end(id);
        assert!(turns.get(id).is_none());
    }

    #[test]
    fn a_turn_that_waits_is_forgotten_and_says_whether_it_was_stopped() {
        let (turns, id) = (Turns::default(), TurnId::new());
        for stopped in [false, true] {
            let early = turns.early(id);
            let live = turns.get(id).unwrap();
            assert!(!stopped || turns.stop(id));
            assert_eq!(early.waits(), stopped);
            assert!(turns.get(id).is_none() && live.ended.is_cancelled());
        }
        drop(turns.early(id));
        assert!(turns.get(id).is_none(), "nothing was made");
    }

    #[test]
    fn a_turn_that_another_runner_has_taken_on_stays_known() {
        let (turns, id) = (Turns::default(), TurnId::new());
        let early = turns.early(id);
        let live = turns.begin(id);
        assert!(turns.stop(id));
        assert!(!early.waits(), "its runner ends it");
        assert!(Arc::ptr_eq(&turns.get(id).unwrap(), &live) && !live.ended.is_cancelled());
    }
}
