//! The store: what is in it exists, what is not does not.
//!
//! [`Store`] is the trait that every database passes one conformance suite on (`tests/suite/store.rs`). It
//! knows no frame, no connection and no model; it takes values and keeps them, in one write for each method.

pub mod mongo;
mod open;
pub mod rotation;
pub mod seal;
mod sealed;
mod sessions;
mod snippet;
pub mod sqlite;
mod usage;

pub use self::sqlite::inspect::Inspected;
pub use open::{Config, OpenError, inspect, open};
pub use rotation::{Position, Resealed, SealedWith};
pub use sessions::{
    Change, Changed, Found, ListSessions, NewShare, Open, OpenSession, Opened, Order, Page, Place, Search, Share,
};
pub use usage::{DaySpent, Purpose, Spend, Spent, Thread};

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::chat::{
    Day, Entry, EntryId, EntryKind, ErrorCode, Metadata, NodeId, Rating, RequestId, Segment, Sender, Session,
    SessionId, Timestamp, Turn, TurnId, TurnState, Usage, UserId,
};
use crate::clock::now;

/// Sessions, each with its `rev`.
pub type Revs = Vec<(SessionId, u64)>;

/// Why the store did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// there is no such row, or it belongs to somebody else
    #[error("no such session, entry or turn")]
    NotFound,
    /// the user has used the request's id for another request
    #[error("the request's id named another request")]
    IdTaken,
    /// the session takes no more messages
    #[error("the session has ended")]
    Ended,
    /// as many turns of the session are queued as the caller allows
    #[error("too many messages wait for an answer in this session")]
    QueueFull,
    /// the queue of the writer is full, or the call's deadline passed; nothing is known to be written
    #[error("the store is overloaded")]
    Overloaded,
    /// a stored value cannot be read: it was changed, or its key is missing
    #[error("stored {what} does not open: {why}")]
    Sealed {
        /// table, row and field
        what: String,
        /// the key that it wants, and whether that is configured
        why: seal::Why,
    },
    /// the database failed
    #[error("the database failed")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What every method of a store returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A regenerated reply on its way in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Regenerate {
    /// the turn that is answered again: the last one of its session, ended
    pub turn_id: TurnId,
    /// its session must belong to this user, else `NotFound`
    pub owner: UserId,
    /// the id that the client chose
    pub client_id: Option<RequestId>,
    /// the new turn's name
    pub new: TurnId,
    /// who runs it
    pub lease: Lease,
}

/// What `regenerate` did.
#[derive(Clone, PartialEq, Debug)]
pub struct Regenerated {
    /// the session
    pub session_id: SessionId,
    /// the turn that answers: the first one, when the same request was made before
    pub turn_id: TurnId,
    /// the place of its reply
    pub reply_seq: u64,
    /// the turn, started; `None`: the same request was made before, and nothing was written
    pub started: Option<StartedTurn>,
}

/// What the owner of a session thinks of one of its replies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rate {
    /// the session
    pub session_id: SessionId,
    /// the place of the reply
    pub seq: u64,
    /// must own the session, else `NotFound`
    pub owner: UserId,
    /// whether it helped
    pub rating: Rating,
    /// in their words
    pub why: Option<String>,
}

/// An entry on its way into a log.
#[derive(Clone, PartialEq, Debug)]
pub struct NewEntry {
    /// the log
    pub session_id: SessionId,
    /// the session must belong to this user, else `NotFound`
    pub owner: UserId,
    /// the row's name, made before the first attempt
    pub id: EntryId,
    /// the id that the client chose
    pub client_id: Option<RequestId>,
    /// who writes
    pub user_id: UserId,
    /// who writes, seen from the session
    pub sender: Sender,
    /// what it holds
    pub kind: EntryKind,
    /// the text
    pub content: String,
    /// ids of uploads
    pub files: Vec<String>,
    /// small facts
    pub metadata: Metadata,
    /// the turn that is to answer it
    pub turn: Option<NewTurn>,
    /// the name that the session gets if it has none
    pub session_name: Option<String>,
}

/// A turn on its way into the store, together with its message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewTurn {
    /// its name
    pub id: TurnId,
    /// who runs it, should it start at once
    pub lease: Lease,
    /// `append` fails with `QueueFull`, and stores nothing, when so many turns of the session are queued already
    pub queued_max: u32,
}

/// Who runs a turn, and for how long without a sign of life.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// the node
    pub node: NodeId,
    /// from the moment of the write, by the store's clock
    pub ttl: Duration,
    /// the model that answers when the session has chosen none
    pub default_model: String,
    /// the name of the reply's row
    pub reply_id: EntryId,
}

/// What `append` did.
#[derive(Clone, PartialEq, Debug)]
pub struct Appended {
    /// the entry as it is stored: the first one, if `duplicate`
    pub entry: Entry,
    /// the session's `rev` after it
    pub rev: u64,
    /// the name that the session got with it
    pub name: Option<String>,
    /// the same user had used the same `client_id` before; nothing was written
    pub duplicate: bool,
    /// the turn, if it could start at once: no other of the session is running or queued
    pub started: Option<StartedTurn>,
}

/// A turn that has begun: its lease is held, and its reply has a place in the log.
#[derive(Clone, PartialEq, Debug)]
pub struct StartedTurn {
    /// the turn, running
    pub turn: Turn,
    /// the owner of its session
    pub user_id: UserId,
    /// place of the reply
    pub reply_seq: u64,
    /// the model that answers
    pub model_id: String,
    /// the session's `rev` after the start
    pub rev: u64,
}

/// How a turn ends.
#[derive(Clone, PartialEq, Debug)]
pub struct EndTurn {
    /// the turn
    pub turn_id: TurnId,
    /// an ended state
    pub state: TurnState,
    /// the whole text, from the node that runs it; `None`: what the turn's log holds
    pub text: Option<String>,
    /// tokens, where known
    pub usage: Option<Usage>,
    /// why it failed
    pub failure: Option<ErrorCode>,
    /// who wrote which part of the text; empty: all of it is by the model that the turn started with. The last one
    /// becomes the reply's `model_id`; with one alone no segments are kept
    pub segments: Vec<Segment>,
    /// what was asked of models for it, in order; each becomes a row
    pub spent: Vec<Spent>,
    /// what the provider of the reply's `model_id` calls this conversation, if it keeps one itself. It holds
    /// everything up to this reply
    pub thread: Option<String>,
    /// only a turn that nobody runs: its lease has run out, or, in a database that one process at a time has
    /// open, its node is another than this one, the caller
    pub only_lost: Option<NodeId>,
    /// when the text that the turn ends with is empty, its message is asked again in the same commit: by a new turn of
    /// this name, which no other has, in front of all that wait. Not in a session that has ended
    pub again: Option<TurnId>,
}

impl EndTurn {
    /// An end that says no more than the state: the text is what the turn's log holds.
    #[must_use]
    pub const fn of(turn_id: TurnId, state: TurnState) -> Self {
        let (text, usage, failure, thread, only_lost, again) = (None, None, None, None, None, None);
        Self { turn_id, state, text, usage, failure, segments: Vec::new(), spent: Vec::new(), thread, only_lost, again }
    }
}

/// What `end_turn` did.
#[derive(Clone, PartialEq, Debug)]
pub struct EndedTurn {
    /// the reply, settled. A turn that ends while it is queued gets an empty one, at the end of the log
    pub reply: Entry,
    /// the session's `rev` after it
    pub rev: u64,
    /// whether another turn of the session waits to be started
    pub waiting: bool,
    /// whether one of them is the turn that asks its message again
    pub asked_again: bool,
}

/// What a turn's log holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TurnText {
    /// UTF-8 byte offset of `text`
    pub offset: u64,
    /// the text from there on
    pub text: String,
}

/// Which entries of a log to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Range {
    /// those after this place, oldest first, at most so many
    After(u64, u32),
    /// the last so many before this place, oldest first
    Before(u64, u32),
    /// the last so many, oldest first
    Last(u32),
}

/// The truth about sessions, entries and turns.
///
/// Every method is one write or one read, has a deadline of its own, and may be repeated after any error: a
/// repeated write that had succeeded is recognised by its row's id. What a method returned is durable.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Finds or makes a session of a user. Keeps at most `active_max` active ones, also under concurrent calls.
    async fn open_session(&self, ask: OpenSession) -> Result<Opened>;

    /// Changes a session of `owner`; of anyone, when `None`.
    ///
    /// # Errors
    /// `NotFound`; `Ended` when an ended session cannot change so (its model, a request for help).
    async fn change_session(&self, id: SessionId, owner: Option<UserId>, change: Change) -> Result<Changed>;

    /// Deletes a session of `owner` with everything in it. Gives the session as it was, and the turns that were open.
    /// What its requests took stays in the user's days, and in rows that no longer say whose they were.
    ///
    /// # Errors
    /// `NotFound`.
    async fn delete_session(&self, id: SessionId, owner: UserId) -> Result<Changed>;

    /// Reads a page of a user's sessions.
    async fn sessions(&self, ask: ListSessions) -> Result<Page>;

    /// Searches a user's own names and texts.
    async fn search(&self, ask: Search) -> Result<Found>;

    /// Finds active sessions without activity since a moment and without an open turn, at most `limit`.
    async fn idle_sessions(&self, since: Timestamp, limit: u32) -> Result<Vec<SessionId>>;

    /// Reads `rev` of the sessions of each of these users: the `limit` with the latest activity that have an entry.
    async fn user_revs(&self, users: &[UserId], limit: u32) -> Result<Vec<(UserId, Revs)>>;

    /// Reads a session.
    async fn session(&self, id: SessionId) -> Result<Option<Session>>;

    /// Reads the `rev` of each of these sessions; unknown ones are left out.
    async fn revs(&self, ids: &[SessionId]) -> Result<Revs>;

    /// Adds an entry at the end of a log, once for each `client_id` of a user, and queues or starts its turn.
    ///
    /// # Errors
    /// `NotFound` when the session is not the owner's, `IdTaken`, `Ended` when it takes no messages.
    async fn append(&self, entry: NewEntry) -> Result<Appended>;

    /// Reads entries of a log, in order. A running reply is among them, with empty content.
    async fn entries(&self, session: SessionId, range: Range) -> Result<Vec<Entry>>;

    /// Reads the entry that a user's request has made: a message, or a reply that was asked for once more.
    async fn entry_of(&self, user: &UserId, client_id: RequestId) -> Result<Option<Entry>>;

    /// Starts the oldest queued turn of a session; `None` when there is none, or another one runs.
    ///
    /// # Errors
    /// `Ended` when turns are queued and the session has ended: the caller ends them.
    async fn start_turn(&self, session: SessionId, lease: Lease) -> Result<Option<StartedTurn>>;

    /// Adds text at the end of a running turn's log and renews its lease; `false` when the turn is no longer
    /// this node's to write, and then nothing was written. `offset` is the UTF-8 length of what is there.
    async fn extend_turn(&self, turn: TurnId, node: NodeId, piece: TurnText, ttl: Duration) -> Result<bool>;

    /// Reads the running turn of a session.
    async fn running_turn(&self, session: SessionId) -> Result<Option<Turn>>;

    /// Reads a turn.
    async fn turn(&self, id: TurnId) -> Result<Option<Turn>>;

    /// Reads the text of a running turn's log from a byte offset on. Empty once it has ended: the text is then
    /// the reply's content.
    async fn turn_text(&self, id: TurnId, offset: u64) -> Result<TurnText>;

    /// Ends a turn: the one compare-and-set that fixes its text, and asks its message again where that is wanted and
    /// there is none. `None` when it had ended before, is unknown, or is not lost although only a lost one was meant.
    async fn end_turn(&self, end: EndTurn) -> Result<Option<EndedTurn>>;

    /// Notes what requests outside of turns took, once for each `id`.
    async fn spend(&self, spend: Spend) -> Result<()>;

    /// Reads what a user's requests took from the beginning of a day on: by day, then by model, oldest first.
    async fn spent(&self, user: &UserId, since: Day) -> Result<Vec<DaySpent>>;

    /// Reads what the provider of a model calls a session's conversation, as the last `end_turn` that named it said.
    async fn thread(&self, session: SessionId, model_id: &str) -> Result<Option<Thread>>;

    /// Reads the turns of a session that have not ended, in the order of its queue.
    async fn open_turns(&self, session: SessionId) -> Result<Vec<Turn>>;

    /// Starts a new turn for the message of the last turn of a session, once for each `client_id` of a user.
    ///
    /// # Errors
    /// `NotFound` when there is no such turn, it is not the last one, or it has not ended; `IdTaken`; `Ended`.
    async fn regenerate(&self, ask: Regenerate) -> Result<Regenerated>;

    /// Notes what the owner of a session thinks of a settled reply, and why; a later call replaces an earlier one.
    /// No watcher is told, so `rev` stays.
    ///
    /// # Errors
    /// `NotFound` when there is no such reply, or its session is not the owner's.
    async fn rate(&self, rate: Rate) -> Result<()>;

    /// Makes a link's row.
    ///
    /// # Errors
    /// `NotFound`, also when another session has a share with this id.
    async fn share(&self, new: NewShare) -> Result<Share>;

    /// Reads a share that has neither been revoked nor ended.
    async fn shared(&self, id: Uuid) -> Result<Option<Share>>;

    /// Reads the newest share of each of these sessions that has neither been revoked nor ended.
    async fn shares_of(&self, sessions: &[SessionId]) -> Result<Vec<Share>>;

    /// Revokes all shares of a session; tells how many there were.
    ///
    /// # Errors
    /// `NotFound`.
    async fn unshare(&self, session: SessionId, owner: UserId) -> Result<u64>;

    /// Finds turns that run with nobody running them, and sessions whose queued turns nobody starts, at most
    /// `limit` of each. `node` is the caller.
    async fn lost(&self, node: NodeId, limit: u32) -> Result<Lost>;

    /// Tells which keys the values may be sealed with, without looking at them.
    async fn sealed_with(&self) -> Result<SealedWith>;

    /// Looks at most at `limit` rows behind a place, from the first one on without it, and seals with the current key
    /// what is not. A value that changes meanwhile is left alone. What does not open is logged, counted and left.
    async fn reseal(&self, after: Option<Position>, limit: u32) -> Result<Resealed>;

    /// Forgets every key but the current one: from now on the store opens with that one alone, and a plain value is an
    /// error. To be called when [`Self::reseal`] has found nothing else from the first row to the last one.
    async fn retire_keys(&self) -> Result<()>;

    /// Answers whether the store can be read and written.
    async fn ready(&self) -> Result<()>;

    /// Takes no more writes, and returns when those that were asked for are durable and the database is closed.
    async fn close(&self);
}

/// What a node that went away left behind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lost {
    /// turns that run with nobody running them
    pub turns: Vec<Turn>,
    /// sessions with queued turns and no running one
    pub sessions: Vec<SessionId>,
}
