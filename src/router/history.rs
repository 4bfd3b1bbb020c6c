//! What was said in the conversations that are being answered, kept between their turns: a long one is not read, and
//! not opened, anew for every reply, and one whose entries all came by here is not read at all.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;

use super::naming;
use crate::{
    chat::{Entry, EntryKind, Sender, SessionId},
    llm::{Message, Role},
    store::{Range, Result, Store},
};

/// Entries before a message that a model is told of at most.
const ENTRIES_MAX: u32 = 400;

/// Messages that are kept of one conversation: with their replies they are as many entries.
const MESSAGES_MAX: usize = 200;

/// Conversations that are kept at a time, whatever their texts take.
const SESSIONS_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");

/// What was said in one conversation, up to an entry before which all have settled. Settled entries do not change.
#[derive(Clone, Default, Debug)]
pub(super) struct History {
    upto: u64,
    /// in the order of the messages
    said: Vec<Said>,
    bytes: usize,
}

/// A message and its newest reply.
#[derive(Clone, Debug)]
struct Said {
    seq: u64,
    message: Arc<str>,
    reply: Option<Arc<str>>,
}

impl History {
    /// Takes entries that follow, in order; `upto` moves on as far as all of them have settled.
    fn extend(&mut self, entries: &[Entry]) {
        let mut whole = true;
        for entry in entries {
            whole &= entry.settled();
            if whole {
                self.upto = entry.seq;
            }
            if entry.settled() {
                self.note(entry);
            }
        }
        let over = self.said.len().saturating_sub(MESSAGES_MAX);
        let gone: usize = self.said.drain(..over).map(|said| said.bytes()).sum();
        self.bytes -= gone;
    }

    /// Notes a message, or a reply to one that is known. What stands behind an entry that has not settled is read again
    /// and changes nothing.
    fn note(&mut self, entry: &Entry) {
        match (entry.sender, entry.reply_to) {
            (Sender::Ai, Some(message)) if !entry.content.is_empty() => {
                let Ok(at) = self.said.binary_search_by_key(&message, |said| said.seq) else { return };
                let Some(said) = self.said.get_mut(at) else { return };
                self.bytes += entry.content.len();
                let older = said.reply.replace(entry.content.as_str().into());
                self.bytes -= older.map_or(0, |older| older.len());
            }
            (Sender::User, _) if entry.kind == EntryKind::Text && self.ends_before(entry.seq) => {
                let said = Said { seq: entry.seq, message: entry.content.as_str().into(), reply: None };
                self.bytes += said.bytes();
                self.said.push(said);
            }
            _ => {}
        }
    }

    fn ends_before(&self, seq: u64) -> bool {
        self.said.last().is_none_or(|last| last.seq < seq)
    }

    /// Every message up to `last`, before `last` each with its newest reply.
    fn conversation(&self, last: u64) -> Vec<Message> {
        let until = self.said.partition_point(|said| said.seq <= last);
        let mut told = Vec::with_capacity(2 * until);
        for said in self.said.iter().take(until) {
            told.push(Message::text(Role::User, Arc::clone(&said.message)));
            if let Some(reply) = said.reply.as_ref().filter(|_reply| said.seq < last) {
                told.push(Message::text(Role::Assistant, Arc::clone(reply)));
            }
        }
        told
    }
}

impl Said {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.message.len() + self.reply.as_ref().map_or(0, |reply| reply.len())
    }
}

/// The conversations of this node's turns, those of the latest ones first, within a limit of bytes.
#[derive(Debug)]
pub(super) struct Histories {
    bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    sessions: LruCache<SessionId, History>,
    bytes: usize,
}

impl Histories {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, kept: Mutex::new(Kept { sessions: LruCache::new(SESSIONS_MAX), bytes: 0 }) }
    }

    /// The conversation up to `last`, for the reply at `reply`; `None` when that reply has settled.
    pub(super) async fn conversation(
        &self,
        store: &dyn Store,
        session: SessionId,
        last: u64,
        reply: u64,
    ) -> Result<Option<Vec<Message>>> {
        let mut history = self.take(session);
        let range = history.as_ref().map_or(ALL, |history| Range::After(history.upto, ENTRIES_MAX));
        let mut entries = store.entries(session, range).await?;
        if history.is_some() && u32::try_from(entries.len()).is_ok_and(|count| count >= ENTRIES_MAX) {
            // Too far behind.
            history = None;
            entries = store.entries(session, ALL).await?;
        }
        let mut history = history.unwrap_or_default();
        let ended = entries.iter().any(|entry| entry.seq == reply && entry.settled()) || history.upto >= reply;
        history.extend(&entries);
        let told = (!ended).then(|| history.conversation(last));
        self.put(session, history);
        Ok(told)
    }

    /// The conversation up to a message that has just been stored, and has started its turn with that; `None` when
    /// something before it is not kept, and has to be read. The caller knows that nobody has ended the turn.
    pub(super) fn asked(&self, message: &Entry) -> Option<Vec<Message>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if message.seq == 1 && !kept.sessions.contains(&message.session_id) {
            kept.insert(message.session_id, History::default());
        }
        let told = kept.follow(message).map(|history| history.conversation(message.seq));
        kept.trim(self.bytes_max);
        told
    }

    /// Whether a message that gave the conversation its name is known, so that none is made of the next one.
    pub(super) fn named(&self, session: SessionId) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let said = kept.sessions.peek(&session).and_then(|history| history.said.first());
        said.is_some_and(|said| naming::says_something(&said.message))
    }

    /// Notes a reply that has just settled, if all before it is kept.
    pub(super) fn answered(&self, reply: &Entry) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.follow(reply);
        kept.trim(self.bytes_max);
    }

    /// Forgets a conversation that is deleted.
    pub(super) fn forget(&self, session: SessionId) {
        drop(self.take(session));
    }

    fn take(&self, session: SessionId) -> Option<History> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let history = kept.sessions.pop(&session)?;
        kept.bytes -= history.bytes;
        Some(history)
    }

    fn put(&self, session: SessionId, history: History) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.insert(session, history);
        kept.trim(self.bytes_max);
    }
}

impl Kept {
    fn insert(&mut self, session: SessionId, history: History) {
        self.bytes += history.bytes;
        if let Some((_, replaced)) = self.sessions.push(session, history) {
            self.bytes -= replaced.bytes;
        }
    }

    /// Adds the entry that comes next in a conversation; `None` when it is another one, or nothing is kept.
    fn follow(&mut self, entry: &Entry) -> Option<&History> {
        let history = self.sessions.get_mut(&entry.session_id).filter(|history| history.upto + 1 == entry.seq)?;
        self.bytes -= history.bytes;
        history.extend(std::slice::from_ref(entry));
        self.bytes += history.bytes;
        Some(history)
    }

    fn trim(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some((_, oldest)) = self.sessions.pop_lru()
        {
            self.bytes -= oldest.bytes;
        }
    }
}

/// What is read of a conversation that is not kept.
const ALL: Range = Range::Last(ENTRIES_MAX);
