//! The vocabulary: ids, [`Session`], [`Entry`], [`Turn`] and [`Event`].
//!
//! Plain data that every other module speaks in. It knows no transport, no database, no I/O and no clock.

pub mod ask;
mod day;
mod error;
pub mod name;
mod scalar;
pub mod word;

pub use day::Day;
pub use error::ErrorCode;
pub use scalar::{Metadata, Scalar};

use std::{borrow::Cow, fmt, sync::Arc};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Serialize,
    de::{Error as _, Unexpected},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Makes a fresh id that sorts by the time of its making (RFC 9562, section 5.7).
            #[must_use]
            #[expect(clippy::new_without_default, reason = "every call gives another value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// Names one session; issued by the server, never by a client.
    SessionId
}
id! {
    /// Names one row of a session's log.
    EntryId
}
id! {
    /// Names one turn: a message's reply in progress, or ended.
    TurnId
}
id! {
    /// Names one WebTransport session or WebSocket of one principal.
    ConnectionId
}
id! {
    /// Names one run of one server process: the owner of a turn's lease.
    NodeId
}

/// A request's id as its client chose it: the idempotency key, unique for each user.
pub type RequestId = Uuid;

/// Who a user is to the host application: an opaque text of 1 to 255 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Longest user id that a token may carry, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// Takes a user id as a token gives it; `None` when it is empty or longer than [`Self::MAX_BYTES`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && text.len() <= Self::MAX_BYTES).then(|| Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A moment in milliseconds since 1970 UTC, shown as RFC 3339 with three decimals.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Reads an RFC 3339 text; `None` when it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let moment = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(moment.unix_timestamp_nanos() / 1_000_000).ok().map(Self)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.0) * 1_000_000;
        let moment = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let (year, month, day) = moment.to_calendar_date();
        let (hour, minute, second, milli) = moment.time().as_hms_milli();
        write!(f, "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z", u8::from(month))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time", "description": "RFC 3339 with milliseconds, in UTC"})
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let other = || D::Error::invalid_value(Unexpected::Str(&text), &"an RFC 3339 time");
        Self::parse(&text).ok_or_else(other)
    }
}

/// Who wrote an entry, seen from its session. The server decides it; a client's claim is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sender {
    /// the session's owner
    User,
    /// the model
    Ai,
    /// the member of staff who holds the session
    Admin,
    /// chatbox itself
    System,
}

/// What an entry holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// text, from a person or from the model
    Text,
    /// a stored upload
    File,
    /// a stored upload that is a recording
    Voice,
    /// something that happened: staff joined or left
    Notice,
}

/// How far a turn has come. It moves to the right only, and ends exactly once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TurnState {
    /// waits behind an earlier turn of its session
    Queued,
    /// the model is answering
    Running,
    /// the model said all it wanted to say
    Complete,
    /// somebody stopped it; the text so far stays
    Stopped,
    /// its node, its provider's connection or the drain deadline cut it; the text so far stays
    Interrupted,
    /// it failed for a reason that the asker was told; the text so far stays
    Failed,
}

impl TurnState {
    /// Whether nothing of the turn can change any more.
    #[must_use]
    pub const fn ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// Tokens of one turn, as the provider counted them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// tokens that went to the model
    pub prompt_tokens: u64,
    /// tokens that came back
    pub completion_tokens: u64,
    /// true when the provider reported none and these are our own guess
    pub estimated: bool,
}

/// From which byte on which model wrote a reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Segment {
    /// UTF-8 byte offset in the reply's text
    pub offset: u64,
    /// the model that wrote from there on
    pub model_id: String,
}

/// Whether a session takes new messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// takes messages
    Active,
    /// read-only
    Ended,
}

/// The member of staff who holds a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Assist {
    /// user id of the member of staff
    pub admin_id: UserId,
    /// the name that the session's owner sees
    pub name: String,
}

/// One conversation.
#[derive(Clone, PartialEq, Debug)]
pub struct Session {
    /// its name in every frame, path and row
    pub id: SessionId,
    /// its owner
    pub user_id: UserId,
    /// what lists show; absent until the first message
    pub name: Option<String>,
    /// the model that the owner chose; absent means the deployment's default
    pub model_id: Option<String>,
    /// whether it takes messages
    pub state: SessionState,
    /// raised by every change of the session or its log, carried by every event
    pub rev: u64,
    /// the last place of the log that is taken, a running reply's included; 0 when the log is empty
    pub last_seq: u64,
    /// when it was made
    pub created_at: Timestamp,
    /// when its log last grew, or it was made active again
    pub last_activity: Timestamp,
    /// when it ended
    pub ended_at: Option<Timestamp>,
    /// its owner asked for a person
    pub help_requested: bool,
    /// who of the staff holds it
    pub assist: Option<Assist>,
    /// whether staff ever held it
    pub admin_assisted: bool,
    /// what its log adds up to
    pub counters: Counters,
}

/// What a session's log adds up to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// entries, replies included
    pub entries: u64,
    /// tokens that went to models
    pub prompt_tokens: u64,
    /// tokens that came back
    pub completion_tokens: u64,
    /// complete replies
    pub responses: u64,
    /// milliseconds that complete replies took from their start to their end, together
    pub response_ms_sum: u64,
    /// milliseconds of the longest one
    pub response_ms_max: u64,
}

/// What a change of a session changed, as its watchers and its owner's lists are told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SessionUpdate {
    /// the session
    pub session_id: SessionId,
    /// its new name
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// the model that answers from here on
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// whether it takes messages
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<SessionState>,
    /// whether its owner waits for a person
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help_requested: Option<bool>,
    /// when its log last grew; to lists only
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity: Option<Timestamp>,
    /// entries of its log; to lists only
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_count: Option<u64>,
    /// it was deleted with everything in it
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

impl SessionUpdate {
    /// An update that says nothing yet.
    #[must_use]
    pub const fn of(session_id: SessionId) -> Self {
        Self {
            session_id,
            name: None,
            model_id: None,
            state: None,
            help_requested: None,
            last_activity: None,
            message_count: None,
            deleted: false,
        }
    }
}

/// What the owner of a session thinks of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rating {
    /// it helped
    Up,
    /// it did not
    Down,
}

/// One row of a session's log.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// the session whose log it is in
    pub session_id: SessionId,
    /// its place: 1, 2, 3, … without gaps
    pub seq: u64,
    /// its own name
    pub id: EntryId,
    /// who wrote it; for a reply, whom it answers
    pub user_id: UserId,
    /// the id that its author's client chose
    pub client_id: Option<RequestId>,
    /// the turn that answers it (a message) or that it is the text of (a reply)
    pub turn_id: Option<TurnId>,
    /// on a reply: the place of the message that it answers
    pub reply_to: Option<u64>,
    /// who wrote it, seen from the session
    pub sender: Sender,
    /// what it holds
    pub kind: EntryKind,
    /// the text exactly as it was typed or generated; of a running reply it is empty
    pub content: String,
    /// ids of the uploads that ride with it
    pub files: Vec<String>,
    /// small facts that ride with it
    pub metadata: Metadata,
    /// on a reply: how far its turn has come. A message has none: it is final from the start
    pub state: Option<TurnState>,
    /// on an ended reply: bytes of `content` in UTF-8
    pub length: Option<u64>,
    /// on an ended reply: SHA-256 of `content` in UTF-8, in hex
    pub sha256: Option<String>,
    /// on an ended reply: tokens
    pub usage: Option<Usage>,
    /// on a reply: the model that wrote it, or its end
    pub model_id: Option<String>,
    /// on a reply that several models wrote: who wrote which part; empty for all others
    pub segments: Vec<Segment>,
    /// on a reply: what the session's owner thinks of it
    pub rating: Option<Rating>,
    /// when it was stored
    pub created_at: Timestamp,
}

impl Entry {
    /// Whether nothing of it can change any more: every message, and every reply whose turn has ended.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.state.is_none_or(TurnState::ended)
    }
}

/// One turn as its row has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// its name
    pub id: TurnId,
    /// the session that it belongs to
    pub session_id: SessionId,
    /// place of the message that it answers
    pub message_seq: u64,
    /// place of its reply, once it has started
    pub reply_seq: Option<u64>,
    /// how far it has come
    pub state: TurnState,
    /// the node that runs it, while it runs
    pub node: Option<NodeId>,
    /// the model that answers; fixed when it starts
    pub model_id: Option<String>,
}

/// What the watchers of a session see. Cheap to share, complete enough to be sent to another node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// a message was stored
    Appended {
        /// the session's `rev` with this change
        rev: u64,
        /// the connection that sent it, and does not need to hear of it
        origin: Option<ConnectionId>,
        /// the message
        entry: Arc<Entry>,
    },
    /// a turn started, or its provider is still silent
    Loading {
        /// the session's `rev` with this change
        rev: u64,
        /// the turn
        turn_id: TurnId,
        /// the place of its reply
        seq: u64,
        /// the model that answers
        model_id: Arc<str>,
    },
    /// text of a running turn
    Piece {
        /// the turn
        turn_id: TurnId,
        /// the model that writes
        model_id: Arc<str>,
        /// UTF-8 byte offset of `content` in the turn's text
        offset: u64,
        /// the text, cut at character boundaries
        content: Arc<str>,
    },
    /// a turn ended
    Ended {
        /// the session's `rev` with this change
        rev: u64,
        /// why the models gave no more of it, for whoever asked; the state of `entry` is `failed` or `interrupted` then
        failure: Option<ErrorCode>,
        /// the reply, settled
        entry: Arc<Entry>,
    },
    /// the session itself changed
    Session {
        /// the session's `rev` with this change
        rev: u64,
        /// what changed
        update: Arc<SessionUpdate>,
    },
    /// somebody types; not stored, and nobody misses it
    Typing {
        /// the connection that they type on
        origin: ConnectionId,
        /// who, seen from the session
        sender: Sender,
        /// whether they still do
        active: bool,
    },
}

impl Event {
    /// The session's `rev` with this change; `None` for what changes nothing that is stored.
    #[must_use]
    pub const fn rev(&self) -> Option<u64> {
        match self {
            Self::Appended { rev, .. }
            | Self::Loading { rev, .. }
            | Self::Ended { rev, .. }
            | Self::Session { rev, .. } => Some(*rev),
            Self::Piece { .. } | Self::Typing { .. } => None,
        }
    }
}
