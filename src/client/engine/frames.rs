//! What a frame means: whose answer it is, or which watch is told.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Engine, Item, Key, Source};
use crate::{
    chat::{RequestId, SessionId},
    client::{
        Closed, Error,
        conversation::{Conversation, Wanted},
        event::Reply,
        message::Stored,
    },
    protocol::{Accepted, CloseCode, ConnectionStatus, ErrorBody, ServerFrame},
};

/// A message that may come back within so many milliseconds is sent again by itself; else its author is told.
const PATIENCE_MS: u64 = 30_000;

impl Engine {
    pub(super) fn arrived(&mut self, source: Source, item: Item) {
        match item {
            Item::Frame(frame) => self.frame(source, &frame),
            Item::Over => self.over(source),
            // The connection's own end says what to do.
            Item::Failed(Error::Closed(_)) => {}
            Item::Failed(err) => self.resume(&err),
        }
    }

    fn frame(&mut self, source: Source, bytes: &Bytes) {
        let Ok(frame) = serde_json::from_slice::<ServerFrame>(bytes) else {
            if let Some(conversation) = self.conversation(source, None) {
                conversation.unknown(bytes);
            }
            return;
        };
        if let Some(re) = answered(&frame) {
            self.prove(re);
            if let Some(key) = self.attaching.remove(&re) {
                return self.attached(key, frame);
            }
            if let Some(asked) = self.asked.remove(&re) {
                if let ServerFrame::ConnectionStatus(status) = &frame {
                    self.status_of(source, status.as_ref().clone());
                }
                let answer = match frame {
                    ServerFrame::Error { error, .. } => Err(Error::Answered(error)),
                    frame => Ok(frame),
                };
                return drop(asked.answer.send(answer));
            }
        }
        match frame {
            ServerFrame::Accepted(accepted) => self.accepted(&accepted),
            ServerFrame::Error { re: Some(re), turn_id: None, error } if self.outbox.holds(re) => {
                self.refuse(re, error)
            }
            ServerFrame::GoingAway { retry_after } => self.drain(retry_after),
            ServerFrame::Error { turn_id: None, error, .. } => {
                let key = match source {
                    Source::Watch(key) | Source::Exchange(_, key) => key,
                };
                self.refused(Some(key), error);
            }
            frame => self.publish(source, frame),
        }
    }

    fn publish(&mut self, source: Source, frame: ServerFrame) {
        let session_id = session_of(&frame);
        let Some(conversation) = self.conversation(source, session_id) else { return };
        let wanted = conversation.frame(frame);
        self.want(source, session_id, wanted);
    }

    fn want(&mut self, source: Source, session_id: Option<SessionId>, wanted: Wanted) {
        match wanted {
            Wanted::Nothing => {}
            Wanted::Resume => self.resume(&Error::Protocol("text is missing")),
            Wanted::Reread(reply) => self.reread(*reply),
            Wanted::Own(entry) => {
                let stored = Stored {
                    session_id: Some(entry.session_id),
                    seq: Some(entry.seq),
                    turn_id: entry.turn_id,
                    duplicate: true,
                };
                if entry.id.is_none_or(|id| !self.settle(id, stored))
                    && let Some(conversation) = self.conversation(source, session_id)
                {
                    conversation.show(entry);
                }
            }
            Wanted::Gone => {
                let Source::Watch(key) = source else { return };
                let code = crate::chat::ErrorCode::NotFound;
                let error =
                    ErrorBody { code, message: code.sentence().to_owned(), recoverable: true, retry_after: None };
                self.forget(key, &Error::Answered(error));
            }
        }
    }

    /// The watch that a frame belongs to: of its session, else the one that it came on.
    fn conversation(&mut self, source: Source, session_id: Option<SessionId>) -> Option<&mut Conversation> {
        let key = match source {
            Source::Watch(key) => key,
            Source::Exchange(_, key) => self.of_session(session_id).unwrap_or(key),
        };
        self.watches.get_mut(&key)
    }

    pub(super) fn of_session(&self, session_id: Option<SessionId>) -> Option<Key> {
        let session_id = session_id?;
        self.watches.iter().find(|(_, watch)| watch.session_id == Some(session_id)).map(|(key, _)| *key)
    }

    /// Takes a copy of a small frame.
    pub(super) fn copied(&mut self, copy: &Bytes) {
        let Ok(frame) = serde_json::from_slice::<ServerFrame>(copy) else { return };
        let session_id = session_of(&frame);
        let Some(key) = self.of_session(session_id) else { return };
        let Some(conversation) = self.watches.get_mut(&key).filter(|watch| watch.wants(&frame)) else { return };
        // Counted before it is told, and nobody is woken for it.
        self.status.send_if_modified(|status| {
            status.copies += 1;
            false
        });
        let wanted = conversation.frame(frame);
        self.want(Source::Watch(key), session_id, wanted);
    }

    /// A watch has its first answer.
    fn attached(&mut self, key: Key, frame: ServerFrame) {
        match frame {
            ServerFrame::ConnectionStatus(status) => self.begin(key, *status),
            ServerFrame::Error { error, .. } => self.unattached(key, error),
            _ => {}
        }
        self.look_for_ended_watches();
    }

    /// Attaches anew when a watch has ended that should not, once all others are answered.
    fn look_for_ended_watches(&mut self) {
        let Some(live) = self.live.as_ref().filter(|_| self.attaching.is_empty()) else { return };
        if self.watches.keys().any(|key| !live.requests.contains_key(key)) {
            self.resume(&Error::Protocol("a watch has ended"));
        }
    }

    /// A watch goes on from here.
    pub(super) fn begin(&mut self, key: Key, status: ConnectionStatus) {
        if let Some(live) = &mut self.live {
            live.limits = status.limits;
        }
        let Some(conversation) = self.watches.get_mut(&key) else { return };
        conversation.attached(status.clone());
        self.replace(key);
        if let Some(answer) = self.begun.remove(&key)
            && answer.send(Ok((key, status))).is_err()
        {
            self.forget(key, &Error::Closed(Closed::by(CloseCode::Done)));
        }
    }

    /// The newer of two watches of one session replaces the older (the contract, `attach`), and has what was said there.
    fn replace(&mut self, key: Key) {
        let Some(newer) = self.watches.get(&key) else { return };
        let attached = |other: &Key| *other != key && !self.begun.contains_key(other);
        let older = self.watches.iter().find(|(other, watch)| attached(other) && watch.same(newer));
        let Some(old) = older.map(|(old, _)| *old) else { return };
        self.outbox.pass(old, key);
        self.asked.values_mut().filter(|asked| asked.key == old).for_each(|asked| asked.key = key);
        if let (Some(older), Some(newer)) = (self.watches.remove(&old), self.watches.get_mut(&key)) {
            newer.succeed(older);
        }
        self.unfollow(old);
    }

    fn status_of(&mut self, source: Source, status: ConnectionStatus) {
        if let Some(live) = &mut self.live {
            live.limits = status.limits;
        }
        let session_id = status.session_id;
        if let Some(conversation) = self.conversation(source, session_id) {
            conversation.frame(ServerFrame::ConnectionStatus(Box::new(status)));
        }
    }

    fn accepted(&mut self, accepted: &Accepted) {
        let Some(re) = accepted.re else { return };
        let Accepted { session_id, seq, turn_id, duplicate, .. } = *accepted;
        self.settle(re, Stored { session_id, seq, turn_id, duplicate });
    }

    /// A message is stored; `false`: it is none of ours.
    fn settle(&mut self, id: RequestId, stored: Stored) -> bool {
        let Some(pending) = self.outbox.take(id) else { return false };
        if let Some(turn_id) = stored.turn_id.filter(|_| !stored.duplicate) {
            self.answering.insert(id, turn_id);
        }
        let lasting = pending.lasting();
        if let Some(conversation) = self.watches.get_mut(&pending.key) {
            conversation.stored(&stored, lasting, pending.teller);
        }
        true
    }

    fn refuse(&mut self, id: RequestId, error: ErrorBody) {
        use crate::chat::ErrorCode::{GoingAway, TooManyRequests};
        match error.code {
            // It is sent again over the next connection, or when there is room.
            GoingAway => {
                self.outbox.unsend(id);
                // A drain that has been announced has said when to come back.
                if self.live.as_ref().is_some_and(|live| !live.leaving) {
                    self.drain(error.retry_after.unwrap_or_default());
                }
            }
            TooManyRequests if error.retry_after.is_some_and(|wait| wait <= PATIENCE_MS) => {
                let wait = Duration::from_millis(error.retry_after.unwrap_or_default());
                self.postponed.insert(id, Instant::now() + wait);
            }
            _ => {
                if let Some(pending) = self.outbox.take(id) {
                    pending.fail(&Error::Answered(error));
                }
            }
        }
    }

    /// A stream has ended. An exchange that told less than it should is made good by attaching again.
    fn over(&mut self, source: Source) {
        let (id, key) = match source {
            Source::Exchange(id, key) => (id, key),
            // The watch of a session that was deleted ends with it.
            Source::Watch(key) if !self.watches.contains_key(&key) => return,
            // A newer watch may replace it; the answer to that one will tell.
            Source::Watch(key) => {
                self.unfollow(key);
                return self.look_for_ended_watches();
            }
        };
        if let Some(live) = &mut self.live {
            live.exchanges = live.exchanges.saturating_sub(1);
        }
        let turn = self.answering.remove(&id);
        let runs = turn.zip(self.watches.get(&key)).is_some_and(|(turn, watch)| watch.turns.runs(turn));
        if runs || (self.outbox.awaits(id) && !self.postponed.contains_key(&id)) {
            self.resume(&Error::Protocol("an exchange has ended without its answer"));
        }
    }

    /// Reads a reply again whose text is not what was announced.
    fn reread(&self, reply: Reply) {
        let (http, dialer, token) = (self.http.clone(), self.known.dialer(), self.token.clone());
        self.rereads.push(Box::pin(async move { http.proved(dialer, token, reply).await }));
    }

    fn prove(&mut self, re: RequestId) {
        if self.ping.is_some_and(|(id, _)| id == re) {
            self.ping = None;
        }
        if self.ping.is_none() {
            self.proved = Instant::now();
        }
    }

    /// Whether something is unanswered.
    pub(super) fn busy(&self) -> bool {
        self.outbox.sending() || !self.asked.is_empty() || self.watches.values().any(|watch| watch.turns.any())
    }
}

/// The request that a frame answers.
const fn answered(frame: &ServerFrame) -> Option<RequestId> {
    match frame {
        ServerFrame::Accepted(accepted) => accepted.re,
        ServerFrame::Pong { re } | ServerFrame::Error { re, turn_id: None, .. } => *re,
        ServerFrame::Loading { re, .. } => *re,
        ServerFrame::ConnectionStatus(status) => status.re,
        _ => None,
    }
}

/// The session that a frame is about.
fn session_of(frame: &ServerFrame) -> Option<SessionId> {
    match frame {
        ServerFrame::ConnectionStatus(status) => status.session_id,
        ServerFrame::Loading { session_id, .. } | ServerFrame::TypingIndicator { session_id, .. } => Some(*session_id),
        ServerFrame::AiResponse(response) => Some(response.session_id),
        ServerFrame::UserMessage(entry) => Some(entry.session_id),
        ServerFrame::SessionUpdate(update) => Some(update.session_id),
        _ => None,
    }
}
