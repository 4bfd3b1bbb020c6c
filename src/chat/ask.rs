//! What callers ask for, whatever frame or route it came in: checked, and not yet decided on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Metadata, Rating, SessionId, TurnId};

/// A session as a client names it: an id of ours, or some other text that can only be unknown.
pub type Named = Result<SessionId, String>;

/// What a watch is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// one session
    #[default]
    Session,
    /// the caller's list of sessions
    User,
    /// the staff's queue
    Desk,
}

/// Where a client left a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// the turn
    pub turn_id: TurnId,
    /// bytes of its text that the client holds
    pub offset: u64,
}

/// Starts a watch.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Attach {
    /// the caller's token, unless the transport carried it
    pub token: Option<String>,
    /// what to watch
    pub scope: Scope,
    /// the session; absent: the caller's active one, else a new one
    pub session_id: Option<Named>,
    /// largest n for which the client holds every entry up to n in its final state
    pub after_seq: Option<u64>,
    /// without `after_seq`: how many of the last entries to show
    pub last: Option<u32>,
    /// where the client left a running turn
    pub position: Option<Position>,
    /// start another session
    pub new: bool,
    /// make the named session active again
    pub reopen: bool,
    /// whether copies of small frames may come as datagrams, from here on and on every stream of the connection
    pub datagrams: bool,
}

/// Something to say.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct UserMessage {
    /// the session; absent: the one that the connection watches
    pub session_id: Option<Named>,
    /// the text exactly as typed
    pub content: String,
    /// ids of uploads that ride with it
    pub files: Vec<String>,
    /// small facts that ride with it
    pub metadata: Metadata,
}

/// What a session's owner thinks of a reply.
#[derive(Clone, PartialEq, Debug)]
pub struct Feedback {
    /// the session; absent: the one that the connection watches
    pub session_id: Option<Named>,
    /// the place of the reply
    pub seq: u64,
    /// whether it helped
    pub rating: Rating,
    /// why
    pub content: Option<String>,
}
