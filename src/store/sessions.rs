//! What a store is asked about whole sessions, and what it answers.

use uuid::Uuid;

use crate::chat::{Session, SessionId, Timestamp, Turn, UserId};

/// How `open_session` finds the session to write in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// the user's active session with the latest activity, else a new one
    Current,
    /// a new one; the oldest active one ends when all slots are taken
    New,
    /// this one, active again; the oldest other active one ends when all slots are taken
    Reopen(SessionId),
}

/// Asks for a session of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenSession {
    /// the owner
    pub user_id: UserId,
    /// which one
    pub open: Open,
    /// the id that a new one gets. A repeated call with the same id finds what the first one made
    pub id: SessionId,
    /// how many sessions of one user are active at a time
    pub active_max: u32,
}

/// What `open_session` did.
#[derive(Clone, PartialEq, Debug)]
pub struct Opened {
    /// the session, active
    pub session: Session,
    /// the call made it, or made it active again; a repeated one finds that done
    pub changed: bool,
    /// the sessions that ended to make room
    pub ended: Vec<Session>,
}

/// What is to change of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// its owner names it; no later guess replaces that
    Name(String),
    /// the model names it; of no effect once its owner has
    BetterName(String),
    /// this model answers from here on
    Model(String),
    /// it ends
    End,
    /// it ends, if its log has not grown since, it is still active, and none of its turns is open
    EndIdle {
        /// the latest activity that counts as idle
        since: Timestamp,
    },
    /// its owner asks for a person, or no longer does
    Help(bool),
}

/// What `change_session` did.
#[derive(Clone, PartialEq, Debug)]
pub struct Changed {
    /// the session after it
    pub session: Session,
    /// whether anything is other than before; `rev` was raised only then
    pub changed: bool,
    /// its turns that have not ended, after `End`: the caller ends them
    pub open_turns: Vec<Turn>,
}

/// Asks for a page of a user's sessions. Those without an entry are left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListSessions {
    /// the owner
    pub user_id: UserId,
    /// in which order
    pub order: Order,
    /// behind this one, the last of the page before
    pub after: Option<Place>,
    /// at most so many
    pub limit: u32,
}

/// In which order sessions are listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// latest activity first
    Activity,
    /// newest first
    Created,
}

/// Where in a list a session stands: the moment that the order looks at, then its id, both from the largest on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// `last_activity` or `created_at`
    pub at: Timestamp,
    /// the session
    pub id: SessionId,
}

/// A page of a user's sessions.
#[derive(Clone, PartialEq, Debug)]
pub struct Page {
    /// the sessions
    pub sessions: Vec<Session>,
    /// whether more follow
    pub more: bool,
    /// how many there are on all pages
    pub total: u64,
}

/// Asks for the sessions of a user in whose name or text some words occur, letters' case aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Search {
    /// the owner
    pub user_id: UserId,
    /// the words, as one text
    pub text: String,
    /// behind this one, in the order of activity
    pub after: Option<Place>,
    /// at most so many sessions
    pub limit: u32,
    /// at most so many entries are opened and read
    pub entries_max: u32,
}

/// What a search found, latest activity first.
#[derive(Clone, PartialEq, Debug)]
pub struct Found {
    /// each session with the text around its first hit
    pub sessions: Vec<(Session, String)>,
    /// where the next search goes on; `None` when all was read
    pub next: Option<Place>,
    /// the limit of entries was reached before the limit of sessions. A log that is longer than that limit by itself
    /// is read up to there
    pub truncated: bool,
}

/// A share of a session on its way in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewShare {
    /// its name. A repeated call with the same id finds what the first one made
    pub id: Uuid,
    /// the session
    pub session_id: SessionId,
    /// must own it, else `NotFound`
    pub owner: UserId,
    /// when it ends; `None`: when it is revoked
    pub expires_at: Option<Timestamp>,
    /// shares of one session that are kept; the oldest goes first
    pub shares_max: u32,
}

/// A conversation as it was when it was shared.
#[derive(Clone, PartialEq, Debug)]
pub struct Share {
    /// its name
    pub id: Uuid,
    /// the session
    pub session_id: SessionId,
    /// the session's name at that time
    pub name: Option<String>,
    /// the last place of the log at that time
    pub last_seq: u64,
    /// the place of the reply that was running then, which is not shown
    pub running_seq: Option<u64>,
    /// when it was made
    pub created_at: Timestamp,
    /// when it ends
    pub expires_at: Option<Timestamp>,
}
