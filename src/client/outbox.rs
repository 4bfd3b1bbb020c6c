//! Messages on their way: in order, each with the id that makes a second try harmless. Knows no transport.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::{Error, engine::Key, message::Teller};
use crate::{
    chat::{RequestId, SessionId, TurnId, ask::UserMessage},
    protocol::{ClientFrame, Request, encode_request},
};

/// What is to be sent.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// text of a person, which must not get lost
    Say(String),
    /// a wish for another reply
    Regenerate(TurnId),
}

/// One message that is not stored yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: RequestId,
    pub(super) key: Key,
    pub(super) what: What,
    pub(super) teller: Teller,
    pub(super) sent: bool,
    /// given back when the message is stored, or fails
    pub(super) _place: OwnedSemaphorePermit,
}

impl Pending {
    /// Whether it makes an entry.
    pub(super) const fn lasting(&self) -> bool {
        matches!(self.what, What::Say(_))
    }

    pub(super) fn frame(&self, session_id: SessionId) -> Bytes {
        let frame = match &self.what {
            What::Say(content) => ClientFrame::UserMessage(Box::new(UserMessage {
                session_id: Some(Ok(session_id)),
                content: content.clone(),
                ..UserMessage::default()
            })),
            What::Regenerate(turn_id) => ClientFrame::Regenerate { turn_id: *turn_id },
        };
        encode_request(&Request { id: Some(self.id), frame }).into()
    }

    pub(super) fn fail(self, err: &Error) {
        self.teller.send_modify(|progress| progress.end = Some(Err(err.clone())));
    }
}

/// The messages that are not stored yet, in the order they were given. How many there are is limited by their places.
#[derive(Debug, Default)]
pub(super) struct Outbox(VecDeque<Pending>);

impl Outbox {
    pub(super) fn add(&mut self, pending: Pending) {
        self.0.push_back(pending);
    }

    /// Whether a message is on its way right now.
    pub(super) fn sending(&self) -> bool {
        self.0.iter().any(|pending| pending.sent)
    }

    /// The next message of a watch. One is sent when the one before it is stored: two streams may overtake each other,
    /// messages must not.
    pub(super) fn next(&mut self, key: Key) -> Option<&mut Pending> {
        self.0.iter_mut().find(|pending| pending.key == key).filter(|pending| !pending.sent)
    }

    /// Whether a message of a watch is not stored yet.
    pub(super) fn waits(&self, key: Key) -> bool {
        self.0.iter().any(|pending| pending.key == key)
    }

    pub(super) fn holds(&self, id: RequestId) -> bool {
        self.0.iter().any(|pending| pending.id == id)
    }

    /// Whether a message is on its way, and what became of it is not known.
    pub(super) fn awaits(&self, id: RequestId) -> bool {
        self.0.iter().any(|pending| pending.id == id && pending.sent)
    }

    pub(super) fn take(&mut self, id: RequestId) -> Option<Pending> {
        let at = self.0.iter().position(|pending| pending.id == id)?;
        self.0.remove(at)
    }

    /// Puts a message back to be sent again.
    pub(super) fn unsend(&mut self, id: RequestId) {
        for pending in self.0.iter_mut().filter(|pending| pending.id == id) {
            pending.sent = false;
        }
    }

    /// The connection is gone: what was sent and not answered is sent again, under the same id.
    pub(super) fn unsend_all(&mut self) {
        for pending in &mut self.0 {
            pending.sent = false;
        }
    }

    /// Has the messages of a watch go to the one that replaces it.
    pub(super) fn pass(&mut self, from: Key, to: Key) {
        for pending in self.0.iter_mut().filter(|pending| pending.key == from) {
            pending.key = to;
        }
    }

    /// Gives up the messages of a watch, or all.
    pub(super) fn fail(&mut self, key: Option<Key>, err: &Error) {
        let (lost, kept) =
            std::mem::take(&mut self.0).into_iter().partition(|pending| key.is_none_or(|key| key == pending.key));
        self.0 = kept;
        let lost: VecDeque<Pending> = lost;
        for pending in lost {
            pending.fail(err);
        }
    }
}
