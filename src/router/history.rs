//! What was said in the conversations that are being answered, kept between their turns: a long one is not read, and
//! not opened, anew for every reply, and one whose entries all came by here is not read at all.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use lru::LruCache;

use super::naming;
use crate::{
    chat::{Entry, EntryKind, Scalar, Sender, SessionId, TurnState},
    llm::{Message, Messages, Role},
    store::{Error, Range, Result, Store},
};

/// Entries before a message that a model is told of at most.
const ENTRIES_MAX: u32 = 400;

/// Messages that are kept of one conversation: with their replies they are as many entries.
const MESSAGES_MAX: usize = 200;

/// Messages that go at a time when there are more. Until the next ones go, what a model is told begins as it did before,
/// and a provider that caches what it has read finds it.
const MESSAGES_GONE: usize = 25;

/// Conversations that are kept at a time, whatever their texts take.
const SESSIONS_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");

/// What was said in one conversation, up to an entry before which all have settled. Settled entries do not change.
#[derive(Clone, Default, Debug)]
pub(super) struct History {
    upto: u64,
    /// in the order of the messages
    said: Vec<Said>,
    /// the place of the last text of staff
    staff_upto: u64,
    bytes: usize,
    /// all of it as a model is told, which grows with it; `None` where it has to be made of `said`
    told: Option<Arc<Vec<Message>>>,
}

/// A message, its newest reply, and what staff wrote behind it.
#[derive(Clone, Debug)]
struct Said {
    seq: u64,
    message: Arc<str>,
    reply: Option<Reply>,
    staff: Vec<Arc<str>>,
}

#[derive(Clone, Debug)]
struct Reply {
    seq: u64,
    text: Arc<str>,
    whole: bool,
}

/// What a model is told of a conversation.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Told {
    /// oldest first; the last one is to be answered
    pub(super) messages: Messages,
    /// the place of the reply that stands right before the last message and is whole. Whoever holds the conversation up
    /// to it holds all but that message
    pub(super) before: Option<u64>,
}

impl History {
    /// Takes entries that follow, in order; `upto` moves on as far as all of them have settled. Nothing is taken behind
    /// a place that is missing: what belongs there could not be put before it.
    fn extend(&mut self, entries: &[Entry]) {
        let mut whole = true;
        let mut last = if self.said.is_empty() { None } else { Some(self.upto) };
        for entry in entries {
            if last.is_some_and(|last| entry.seq > last + 1) {
                break;
            }
            last = last.max(Some(entry.seq));
            whole &= entry.settled();
            if whole {
                self.upto = self.upto.max(entry.seq);
            }
            if entry.settled() {
                self.note(entry);
            }
        }
        let over = self.said.len().saturating_sub(MESSAGES_MAX).next_multiple_of(MESSAGES_GONE);
        let mut gone = 0;
        for said in self.said.drain(..over) {
            gone += said.messages().count();
            self.bytes -= said.bytes();
        }
        if let Some(told) = &mut self.told {
            Arc::make_mut(told).drain(..gone);
        }
    }

    /// Notes a message, or a reply to one that is known. What stands behind an entry that has not settled is read again
    /// and changes nothing.
    fn note(&mut self, entry: &Entry) {
        match (entry.sender, entry.reply_to) {
            (Sender::Ai, Some(message)) if !entry.content.is_empty() => {
                let Ok(at) = self.said.binary_search_by_key(&message, |said| said.seq) else { return };
                let Some(said) = self.said.get_mut(at) else { return };
                self.bytes += entry.content.len();
                let whole = entry.state == Some(TurnState::Complete);
                let text: Arc<str> = entry.content.as_str().into();
                let reply = Reply { seq: entry.seq, text: Arc::clone(&text), whole };
                let older = said.reply.replace(reply);
                self.bytes -= older.as_ref().map_or(0, |older| older.text.len());
                let follows = older.is_none() && said.staff.is_empty() && at + 1 == self.said.len();
                self.tell(follows.then(|| Message::text(Role::Assistant, text)));
            }
            // What is read again changes nothing. Without a message before it, it answers none that a model sees.
            (Sender::Admin, _) if entry.kind == EntryKind::Text && entry.seq > self.staff_upto => {
                self.staff_upto = entry.seq;
                let Some(said) = self.said.last_mut() else { return };
                let text = by_staff(entry);
                self.bytes += text.len();
                said.staff.push(Arc::clone(&text));
                self.tell(Some(Message::text(Role::Assistant, text)));
            }
            (Sender::User, _) if entry.kind == EntryKind::Text && self.ends_before(entry.seq) => {
                let message: Arc<str> = entry.content.as_str().into();
                let said = Said { seq: entry.seq, message: Arc::clone(&message), reply: None, staff: Vec::new() };
                self.bytes += said.bytes();
                self.said.push(said);
                self.tell(Some(Message::text(Role::User, message)));
            }
            _ => {}
        }
    }

    fn ends_before(&self, seq: u64) -> bool {
        self.said.last().is_none_or(|last| last.seq < seq)
    }

    /// Whether the message at this place is known.
    fn has(&self, seq: u64) -> bool {
        self.said.binary_search_by_key(&seq, |said| said.seq).is_ok()
    }

    /// Notes what is said behind all the rest; `None`: something is said in between.
    fn tell(&mut self, message: Option<Message>) {
        self.told = self.told.take().zip(message).map(|(mut told, message)| {
            // Nobody else holds it between two turns.
            Arc::make_mut(&mut told).push(message);
            told
        });
    }

    /// Every message up to `last`, before `last` each with what was answered to it.
    fn conversation(&mut self, last: u64) -> Told {
        let until = self.said.partition_point(|said| said.seq <= last);
        let upto = self.said.get(..until).unwrap_or_default();
        let before = upto.iter().rfind(|said| said.seq < last);
        let alone = before.filter(|before| before.staff.is_empty()).and_then(|before| before.reply.as_ref());
        let before = alone.filter(|reply| reply.whole).map(|reply| reply.seq);
        let all = until == self.said.len()
            && upto.last().is_some_and(|newest| newest.reply.is_none() && newest.staff.is_empty());
        if let Some(told) = self.told.as_ref().filter(|_told| all) {
            return Told { messages: Arc::clone(told).into(), before };
        }
        let told = upto.iter().flat_map(|said| said.messages().take(if said.seq < last { usize::MAX } else { 1 }));
        let told = Arc::new(told.collect::<Vec<_>>());
        if all {
            self.told = Some(Arc::clone(&told));
        }
        Told { messages: told.into(), before }
    }
}

/// A text of staff, with the name in front where it is known: to a model they are on its side.
fn by_staff(entry: &Entry) -> Arc<str> {
    match entry.metadata.get("admin_name") {
        Some(Scalar::Text(name)) if !name.is_empty() => format!("{name}: {}", entry.content).into(),
        _ => entry.content.as_str().into(),
    }
}

impl Said {
    /// As a model is told.
    fn messages(&self) -> impl Iterator<Item = Message> {
        let answers = self.reply.iter().map(|reply| &reply.text).chain(&self.staff);
        let answers = answers.map(|text| Message::text(Role::Assistant, Arc::clone(text)));
        std::iter::once(Message::text(Role::User, Arc::clone(&self.message))).chain(answers)
    }

    fn bytes(&self) -> usize {
        let staff: usize = self.staff.iter().map(|text| text.len()).sum();
        size_of::<Self>()
            + 2 * size_of::<Message>()
            + self.message.len()
            + self.reply.as_ref().map_or(0, |reply| reply.text.len())
            + staff
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

    /// The conversation up to `last`, for the reply at `reply`; `None` when that reply has settled. What other nodes have
    /// added since is read.
    ///
    /// # Errors
    /// What the store says; also when it lacks the message that is to be answered.
    pub(super) async fn conversation(
        &self,
        store: &dyn Store,
        session: SessionId,
        last: u64,
        reply: u64,
    ) -> Result<Option<Told>> {
        // What is kept beyond a reply that is to be written is of another conversation, or has its end: it is read.
        let mut history = self.take(session).filter(|history| history.upto < reply);
        let range = history.as_ref().map_or(ALL, |history| Range::After(history.upto, ENTRIES_MAX));
        let mut entries = store.entries(session, range).await?;
        if history.is_some() && u32::try_from(entries.len()).is_ok_and(|count| count >= ENTRIES_MAX) {
            // Too far behind.
            history = None;
            entries = store.entries(session, ALL).await?;
        }
        let mut history = history.unwrap_or_default();
        history.extend(&entries);
        if entries.iter().any(|entry| entry.seq == reply && entry.settled()) {
            self.put(session, history);
            return Ok(None);
        }
        let told = history.has(last).then(|| history.conversation(last));
        self.put(session, history);
        if told.is_some() {
            return Ok(told);
        }
        // It has waited behind more than is kept: it is told with what stands before it.
        let mut before = History::default();
        before.extend(&store.entries(session, Range::Before(last.saturating_add(1), ENTRIES_MAX)).await?);
        if !before.has(last) {
            return Err(Error::Database(format!("the log has no message at {last}").into()));
        }
        Ok(Some(before.conversation(last)))
    }

    /// The conversation up to a message that has just been stored, and has started its turn with that; `None` when
    /// something before it is not kept, and has to be read. The caller knows that nobody has ended the turn.
    pub(super) fn asked(&self, message: &Entry) -> Option<Told> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if message.seq == 1 {
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
    fn follow(&mut self, entry: &Entry) -> Option<&mut History> {
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::chat::{EntryId, Timestamp, UserId};

    pub(in crate::router) fn entry(seq: u64, sender: Sender, content: &str, reply_to: Option<u64>) -> Entry {
        Entry {
            session_id: SessionId(uuid::Uuid::nil()),
            seq,
            id: EntryId::new(),
            user_id: UserId::parse("ann").unwrap(),
            client_id: None,
            turn_id: None,
            reply_to,
            sender,
            kind: EntryKind::Text,
            content: content.to_owned(),
            files: Vec::new(),
            metadata: crate::chat::Metadata::new(),
            state: reply_to.map(|_| TurnState::Complete),
            length: None,
            sha256: None,
            usage: None,
            model_id: None,
            segments: Vec::new(),
            rating: None,
            created_at: Timestamp(0),
        }
    }

    fn told(entries: &[Entry], last: u64) -> (Vec<(Role, String)>, Option<u64>) {
        let mut history = History::default();
        history.extend(entries);
        let bytes = history.bytes;
        // What is read again changes nothing.
        history.extend(entries);
        assert_eq!(history.bytes, bytes);
        let told = history.conversation(last);
        (told.messages.iter().map(|message| (message.role, message.content.to_string())).collect(), told.before)
    }

    fn said(texts: &[(Role, &str)]) -> Vec<(Role, String)> {
        texts.iter().map(|(role, text)| (*role, (*text).to_owned())).collect()
    }

    #[test]
    fn staff_are_on_the_models_side_and_notices_are_not_told() {
        let mut named = entry(3, Sender::Admin, "I am on it.", None);
        named.metadata.insert("admin_name".to_owned(), Scalar::Text("Sue".to_owned()));
        let joined = Entry { kind: EntryKind::Notice, ..entry(4, Sender::Admin, "joined", None) };
        let entries = [
            entry(1, Sender::User, "Help", None),
            entry(2, Sender::Ai, "How?", Some(1)),
            named,
            joined,
            entry(5, Sender::System, "notice", None),
            entry(6, Sender::User, "Thanks", None),
            entry(7, Sender::Admin, "Bye.", None),
            entry(8, Sender::User, "Again", None),
        ];
        use Role::{Assistant, User};
        let expected = [
            (User, "Help"),
            (Assistant, "How?"),
            (Assistant, "Sue: I am on it."),
            (User, "Thanks"),
            (Assistant, "Bye."),
            (User, "Again"),
        ];
        assert_eq!(told(&entries, 8), (said(&expected), None));
        assert_eq!(told(&entries, 6).1, None, "whoever holds reply 2 has not heard Sue");
    }

    #[test]
    fn what_a_model_is_told_grows_as_it_would_be_made_anew() {
        let staff = |seq| entry(seq, Sender::Admin, "staff", None);
        let user = |seq| entry(seq, Sender::User, &format!("message {seq}"), None);
        let reply = |seq, to| entry(seq, Sender::Ai, &format!("reply {seq}"), Some(to));
        let mut entries = vec![user(1), reply(2, 1), user(3), user(4), reply(5, 3), reply(6, 4), reply(7, 4), user(8)];
        entries.extend([staff(9), reply(10, 8), user(11), reply(12, 11), staff(13)]);
        for seq in (14..).step_by(2).take(MESSAGES_MAX) {
            entries.extend([user(seq), reply(seq + 1, seq)]);
        }
        let (mut grown, mut begins) = (History::default(), std::collections::BTreeSet::new());
        for (nth, entry) in entries.iter().enumerate() {
            grown.extend(std::slice::from_ref(entry));
            let mut anew = History::default();
            anew.extend(&entries[..=nth]);
            let newest = grown.said.last().map_or(0, |said| said.seq);
            for last in [newest, newest.saturating_sub(3)] {
                assert_eq!(grown.conversation(last), anew.conversation(last), "entry {}, up to {last}", entry.seq);
            }
            assert_eq!(grown.bytes, anew.bytes);
            begins.insert(grown.said[0].seq);
        }
        assert_eq!(grown.said.len(), 205 - MESSAGES_GONE);
        assert_eq!(begins.len(), 2, "five messages too many have moved the beginning once: {begins:?}");
    }

    /// A message behind a place that is missing would keep out the one that belongs there.
    #[test]
    fn nothing_is_taken_behind_a_place_that_is_missing() {
        let mut history = History::default();
        let entries = [
            entry(1, Sender::User, "a", None),
            entry(2, Sender::Ai, "b", Some(1)),
            entry(3, Sender::User, "c", None),
            entry(4, Sender::Ai, "d", Some(3)),
            entry(5, Sender::User, "e", None),
        ];
        history.extend(&entries[..2]);
        history.extend(&entries[4..]);
        assert_eq!((history.upto, history.has(5)), (2, false));
        history.extend(&entries[2..]);
        let told = history.conversation(5).messages;
        let texts: Vec<_> = told.iter().map(|message| message.content.to_string()).collect();
        assert_eq!((history.upto, texts), (5, ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec()));
    }

    #[test]
    fn a_conversation_that_begins_anew_has_nothing_of_an_earlier_one() {
        let histories = Histories::new(1 << 20);
        histories.asked(&entry(1, Sender::User, "old", None)).expect("it is the first");
        histories.answered(&entry(2, Sender::Ai, "answer", Some(1)));
        let told = histories.asked(&entry(1, Sender::User, "new", None)).expect("it is the first");
        assert_eq!(*told.messages, [Message::text(Role::User, "new")]);
    }

    #[test]
    fn the_reply_before_is_the_newest_one_and_whole() {
        let first = [entry(1, Sender::User, "a", None), entry(2, Sender::Ai, "b", Some(1))];
        let again = entry(3, Sender::Ai, "c", Some(1));
        let next = entry(4, Sender::User, "d", None);
        assert_eq!(told(&first, 1).1, None, "nothing is before the first message");
        let third = Entry { seq: 3, ..next.clone() };
        assert_eq!(told(&[&first[..], std::slice::from_ref(&third)].concat(), 3).1, Some(2));
        assert_eq!(told(&[&first[..], &[again.clone(), next.clone()]].concat(), 4).1, Some(3));
        assert_eq!(told(&[&first[..], &[again.clone(), next.clone()]].concat(), 1).1, None, "answered once more");
        let broken = Entry { state: Some(TurnState::Interrupted), ..again };
        assert_eq!(told(&[&first[..], &[broken, next.clone()]].concat(), 4).1, None);
        let unanswered = [&first[..], &[third, next]].concat();
        assert_eq!(told(&unanswered, 4).1, None, "the message before has no reply");
    }
}
