//! What was said in the conversations that are being answered, kept between their turns: a long one is not read, and
//! not opened, anew for every reply.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;

use crate::{
    chat::{Entry, EntryKind, Sender, SessionId},
    llm::{Message, Role},
    store::{Range, Result, Store},
};

/// Entries before a message that a model is told of at most.
pub(super) const ENTRIES_MAX: u32 = 400;

/// Conversations that are kept at a time, whatever their texts take.
const SESSIONS_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");

/// What was said in one conversation, up to an entry before which all have settled. Settled entries do not change.
#[derive(Clone, Default, Debug)]
pub(super) struct History {
    upto: u64,
    said: Vec<Said>,
}

#[derive(Clone, Debug)]
struct Said {
    seq: u64,
    /// the message that it answers; `None`: it is a message
    reply_to: Option<u64>,
    text: Arc<str>,
}

impl Said {
    fn of(entry: &Entry) -> Option<Self> {
        let reply_to = match entry.sender {
            Sender::Ai if !entry.content.is_empty() => Some(entry.reply_to?),
            Sender::User if entry.kind == EntryKind::Text => None,
            _ => return None,
        };
        Some(Self { seq: entry.seq, reply_to, text: entry.content.as_str().into() })
    }
}

impl History {
    /// Takes entries that follow, in order, up to one that has not settled.
    fn extend(&mut self, entries: &[Entry]) {
        for entry in entries.iter().take_while(|entry| entry.settled()) {
            self.upto = entry.seq;
            self.said.extend(Said::of(entry));
        }
        let over = self.said.len().saturating_sub(usize::try_from(ENTRIES_MAX).unwrap_or(usize::MAX));
        self.said.drain(..over);
    }

    fn bytes(&self) -> usize {
        self.said.iter().map(|said| said.text.len() + size_of::<Said>()).sum()
    }

    /// Every message up to `last` before its own newest reply, in the order of the messages; `later` was said after
    /// an entry that has not settled.
    fn conversation(&self, later: &[Said], last: u64) -> Vec<Message> {
        let all = || self.said.iter().chain(later);
        let replies = all().filter_map(|said| Some((said.reply_to.filter(|message| *message < last)?, said)));
        let replies: HashMap<u64, &Said> = replies.collect();
        let messages = all().filter(|said| said.reply_to.is_none() && said.seq <= last);
        let told = messages.flat_map(|message| {
            let told = |role, said: &Said| Message { role, content: Arc::clone(&said.text) };
            let reply = replies.get(&message.seq).map(|reply| told(Role::Assistant, reply));
            std::iter::once(told(Role::User, message)).chain(reply)
        });
        told.collect()
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
        let later = entries.iter().filter(|entry| entry.seq > history.upto && entry.settled());
        let later: Vec<_> = later.filter_map(Said::of).collect();
        let told = (!ended).then(|| history.conversation(&later, last));
        self.put(session, history);
        Ok(told)
    }

    /// Forgets a conversation that is deleted.
    pub(super) fn forget(&self, session: SessionId) {
        drop(self.take(session));
    }

    fn take(&self, session: SessionId) -> Option<History> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let history = kept.sessions.pop(&session)?;
        kept.bytes -= history.bytes();
        Some(history)
    }

    fn put(&self, session: SessionId, history: History) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += history.bytes();
        if let Some((_, replaced)) = kept.sessions.push(session, history) {
            kept.bytes -= replaced.bytes();
        }
        while kept.bytes > self.bytes_max
            && let Some((_, oldest)) = kept.sessions.pop_lru()
        {
            kept.bytes -= oldest.bytes();
        }
    }
}

/// What is read of a conversation that is not kept.
const ALL: Range = Range::Last(ENTRIES_MAX);
