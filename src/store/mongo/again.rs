//! Writes that answer a message once more.

use super::{
    super::{Error, Regenerate, Regenerated, Result},
    head::OpenTurn,
    turns::{self, Begin},
    work::{Decided, Draft},
};
use crate::chat::{Entry, TurnId, UserId};

/// Queues a new turn for the message of one that has just ended, in front of all that wait; tells whether it did. No
/// other turn of that message is open: none is made for it as long as one is.
pub(super) fn requeue(draft: &mut Draft, ended: OpenTurn, new: TurnId) -> bool {
    let (head, created_at) = (&mut draft.head, draft.now);
    if !head.active() {
        return false;
    }
    let front = usize::from(head.running().is_some());
    head.open.insert(front, OpenTurn { id: new, created_at, running: None, ..ended });
    true
}

/// A reply that is asked for once more: the turn that is answered again, and who wrote its message.
pub(super) struct Again {
    pub(super) ask: Regenerate,
    pub(super) message_seq: u64,
    pub(super) user_id: UserId,
}

impl Again {
    /// Starts a new turn for the message of the last turn.
    pub(super) fn decide(&self, mut draft: Box<Draft>) -> Result<Decided<Regenerated>> {
        let (head, ask) = (&draft.head, &self.ask);
        if head.user_id != ask.owner {
            return Err(Error::NotFound);
        }
        let session_id = head.id;
        if let Some((open, running)) = head.running().filter(|(open, _running)| open.id == ask.new) {
            let (turn_id, reply_seq) = (open.id, running.reply_seq);
            return Ok(Decided::Same(Regenerated { session_id, turn_id, reply_seq, started: None }));
        }
        if !head.active() {
            return Err(Error::Ended);
        }
        if !head.open.is_empty() || head.last.is_none_or(|last| last.id != ask.turn_id) {
            return Err(Error::NotFound);
        }
        let (user_id, message_seq, created_at) = (self.user_id.clone(), self.message_seq, draft.now);
        let open = OpenTurn { id: ask.new, message_seq, user_id, created_at, running: None };
        let begin = Begin { open, client_id: ask.client_id, lease: &ask.lease };
        let started = turns::begin(&mut draft, begin)?;
        let (turn_id, reply_seq) = (ask.new, started.reply_seq);
        Ok(Decided::Keep(Regenerated { session_id, turn_id, reply_seq, started: Some(started) }, draft))
    }
}

/// The answer to a request that made its entry before: the turn of that reply.
///
/// # Errors
/// `IdTaken` when it made anything else than another reply to this message.
pub(super) fn repeated(entry: Entry, of: (crate::chat::SessionId, u64)) -> Result<Regenerated> {
    match entry {
        Entry { session_id, seq, turn_id: Some(turn_id), reply_to: Some(message_seq), .. }
            if (session_id, message_seq) == of =>
        {
            Ok(Regenerated { session_id, turn_id, reply_seq: seq, started: None })
        }
        _another => Err(Error::IdTaken),
    }
}
