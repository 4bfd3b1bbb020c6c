//! What a client tells of a session.

use std::sync::Arc;

use crate::{
    chat::{Rating, Segment, Sender, SessionId, SessionUpdate, Timestamp, TurnId, TurnState, Usage},
    protocol::{ConnectionStatus, EntryFrame, ErrorBody},
};

/// Something that happened in a session, or to a list of sessions.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// where the session stands: after each connection, and after a change of model or identity
    Session(Box<ConnectionStatus>),
    /// what was shown is to be forgotten: what the server still has follows
    Reset,
    /// an entry of the log that is no reply, once; one's own messages too, where another device sent them
    Entry(Box<EntryFrame>),
    /// a reply has its place in the log, or its model is still silent
    Turn {
        /// the turn
        turn_id: TurnId,
        /// the place of its reply
        seq: u64,
    },
    /// new text of a reply; the pieces of a turn neither overlap nor leave a hole
    Piece {
        /// the turn
        turn_id: TurnId,
        /// UTF-8 bytes before it
        offset: u64,
        /// the text
        content: String,
    },
    /// a reply has ended, or was read from the log
    Reply(Arc<Reply>),
    /// what changed of the session, on any device
    Update(Arc<SessionUpdate>),
    /// another participant types, or has stopped
    Typing {
        /// who, seen from the session
        sender: Sender,
        /// whether they still do
        active: bool,
    },
    /// the server refused something that nobody waits for
    Refused(ErrorBody),
    /// events were not read in time, and some are lost: `history` has what they told
    Missed,
}

/// A finished reply.
#[derive(Clone, PartialEq, Debug)]
pub struct Reply {
    /// the session
    pub session_id: SessionId,
    /// the turn
    pub turn_id: TurnId,
    /// its place in the log
    pub seq: u64,
    /// the place of the message that it answers
    pub reply_to: u64,
    /// how the turn ended
    pub state: TurnState,
    /// the whole text
    pub text: String,
    /// SHA-256 of the text in hex, as the server announced it
    pub sha256: String,
    /// whether the text has the announced length and hash; `false` only after it was read again over HTTP in vain
    pub verified: bool,
    /// tokens
    pub usage: Option<Usage>,
    /// what this person has said of it
    pub rating: Option<Rating>,
    /// the model that wrote it, or its end
    pub model_id: Option<String>,
    /// which model wrote which part, when several did
    pub segments: Vec<Segment>,
    /// the text as HTML that is safe to insert
    pub html: Option<String>,
    /// when it was begun
    pub timestamp: Timestamp,
    /// why it failed, for the client that asked
    pub error: Option<ErrorBody>,
}
