//! What the server sends: one flat JSON object a frame.

use std::{borrow::Cow, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chat::{
    ConnectionId, Entry, EntryId, ErrorCode, Metadata, Rating, RequestId, Segment, Sender, SessionId, SessionState,
    SessionUpdate, Timestamp, TurnId, TurnState, Usage, UserId,
};

/// One frame from the server.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// where the connection or a watch stands
    ConnectionStatus(Box<ConnectionStatus>),
    /// the entry is in the store
    Accepted(Accepted),
    /// the turn has started, or its provider is still silent
    Loading {
        /// the request that asked, on its own exchange
        #[serde(skip_serializing_if = "Option::is_none")]
        re: Option<RequestId>,
        /// the session
        session_id: SessionId,
        /// the turn
        turn_id: TurnId,
        /// the place of the reply
        seq: u64,
    },
    /// a piece of a reply, or its end
    AiResponse(Box<AiResponse>),
    /// a stored message
    UserMessage(Box<EntryFrame>),
    /// the session itself has changed
    SessionUpdate(Arc<SessionUpdate>),
    /// somebody types
    TypingIndicator {
        /// the session
        session_id: SessionId,
        /// who, seen from the session
        sender: Sender,
        /// whether they still do
        metadata: TypingMetadata,
    },
    /// a request failed
    Error {
        /// the request
        #[serde(skip_serializing_if = "Option::is_none")]
        re: Option<RequestId>,
        /// the turn that failed
        #[serde(skip_serializing_if = "Option::is_none")]
        turn_id: Option<TurnId>,
        /// why
        error: ErrorBody,
    },
    /// here I am
    Pong {
        /// the request
        #[serde(skip_serializing_if = "Option::is_none")]
        re: Option<RequestId>,
    },
    /// the server drains
    GoingAway {
        /// reconnect after so many milliseconds
        retry_after: u64,
    },
}

/// Where the connection or a watch stands.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConnectionStatus {
    /// the request that this answers
    #[serde(skip_serializing_if = "Option::is_none")]
    pub re: Option<RequestId>,
    /// the session of a session watch
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// who the server takes the caller for
    pub user_id: UserId,
    /// this connection
    pub connection_id: ConnectionId,
    /// configured models, in configured order
    pub models: Arc<[Model]>,
    /// the session's name, once it has one
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// whether the session takes messages
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<SessionState>,
    /// whether the session's owner waits for a person
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help_requested: Option<bool>,
    /// the model that answers in this session
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// the last place of the log that is taken
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seq: Option<u64>,
    /// false: the position could not be honoured, take the snapshot that follows
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovered: Option<bool>,
    /// the member of staff who holds the session
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assisted_by: Option<crate::chat::Assist>,
    /// what this connection may do at a time
    pub limits: Limits,
    /// `webtransport` or `websocket`
    pub transport: Cow<'static, str>,
    /// a sentence for people
    pub status: Cow<'static, str>,
}

/// A configured model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// its id in frames
    pub id: String,
    /// its name for people
    pub name: String,
    /// it looks at images
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub images: bool,
}

/// What a connection may do at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// exchanges and watches that run at a time
    pub streams: u32,
    /// largest frame in bytes
    pub frame_bytes: usize,
    /// longest message in characters
    pub content_chars: usize,
}

/// The entry is in the store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Accepted {
    /// the request
    #[serde(skip_serializing_if = "Option::is_none")]
    pub re: Option<RequestId>,
    /// the session, unless a watch of no session has ended
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// the entry's place, where one was made
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// the turn that will answer
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<TurnId>,
    /// the same `id` had been applied before; nothing follows
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub duplicate: bool,
}

/// A piece of a reply, or its end.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AiResponse {
    /// the request that asked, on its own exchange
    #[serde(skip_serializing_if = "Option::is_none")]
    pub re: Option<RequestId>,
    /// the session
    pub session_id: SessionId,
    /// the turn
    pub turn_id: TurnId,
    /// UTF-8 byte offset of `content` in the turn's text
    pub offset: u64,
    /// the text
    pub content: Cow<'static, str>,
    /// the model that writes
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// always `ai`
    pub sender: Sender,
    /// whether more comes, and how it came
    pub metadata: ReplyMetadata,
    /// what only the last frame carries
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
}

/// How far a reply is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReplyMetadata {
    /// whether the text comes in pieces
    pub streaming: Word,
    /// whether this is the last frame
    pub done: Word,
}

/// A truth as the contract writes it: a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// it is so
    True,
    /// it is not
    False,
}

/// Whether somebody types.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TypingMetadata {
    /// how it changed
    pub state: TypingState,
}

/// How it changed that somebody types.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TypingState {
    /// they type
    Start,
    /// they do no longer
    Stop,
}

/// What the last frame of a reply carries.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Reply {
    /// the reply's place in the log
    pub seq: u64,
    /// the place of the message that it answers
    pub reply_to: u64,
    /// how the turn ended
    pub state: TurnState,
    /// bytes of the whole text
    pub length: u64,
    /// SHA-256 of the whole text, in hex
    pub sha256: String,
    /// tokens
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// which model wrote which part, when several did
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
    /// what the session's owner thinks of it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rating: Option<Rating>,
    /// the text as HTML, safe to insert
    #[serde(skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// when the reply was begun
    pub timestamp: Timestamp,
}

/// A stored message.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EntryFrame {
    /// the id that its author's client chose; for its author only
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<RequestId>,
    /// the entry's own name
    pub entry_id: EntryId,
    /// the session
    pub session_id: SessionId,
    /// its place in the log
    pub seq: u64,
    /// the turn that answers it
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_id: Option<TurnId>,
    /// the text exactly as typed
    pub content: String,
    /// ids of uploads
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// who wrote it
    pub sender: Sender,
    /// when it was stored
    pub timestamp: Timestamp,
    /// small facts
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// for programs
    pub code: ErrorCode,
    /// for people
    pub message: String,
    /// false: the connection is closed after this frame
    pub recoverable: bool,
    /// milliseconds after which it may be tried again
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

/// An entry as its reader gets it.
pub struct Presented<'a> {
    /// the entry
    pub entry: &'a Entry,
    /// the request that asked, on its own exchange
    pub re: Option<RequestId>,
    /// the reader
    pub reader: &'a UserId,
    /// the reply's text as safe HTML, where there is one
    pub html: Option<String>,
}

impl ServerFrame {
    /// Answers a request that failed; the connection goes on.
    #[must_use]
    pub fn error(re: Option<RequestId>, code: ErrorCode, message: impl Into<String>) -> Self {
        let error = ErrorBody { code, message: message.into(), recoverable: true, retry_after: None };
        Self::Error { re, turn_id: None, error }
    }

    /// Tells that somebody types, or has stopped.
    #[must_use]
    pub fn typing(session_id: SessionId, sender: Sender, active: bool) -> Self {
        let state = if active { TypingState::Start } else { TypingState::Stop };
        Self::TypingIndicator { session_id, sender, metadata: TypingMetadata { state } }
    }

    /// Adds its JSON to a line. What is relayed without being stored is written by hand: nothing else about it takes as
    /// long as serde_json's many small writes.
    pub(super) fn write(&self, line: &mut Vec<u8>) -> serde_json::Result<()> {
        let Self::TypingIndicator { session_id, sender, metadata } = self else {
            return serde_json::to_writer(line, self);
        };
        let sender = match sender {
            Sender::User => "user",
            Sender::Ai => "ai",
            Sender::Admin => "admin",
            Sender::System => "system",
        };
        let state = match metadata.state {
            TypingState::Start => "start",
            TypingState::Stop => "stop",
        };
        let mut id = uuid::Uuid::encode_buffer();
        for part in [
            "{\"type\":\"typing_indicator\",\"session_id\":\"",
            session_id.0.hyphenated().encode_lower(&mut id),
            "\",\"sender\":\"",
            sender,
            "\",\"metadata\":{\"state\":\"",
            state,
            "\"}}",
        ] {
            line.extend_from_slice(part.as_bytes());
        }
        Ok(())
    }

    /// Answers a request that failed; the connection ends.
    #[must_use]
    pub fn fatal(re: Option<RequestId>, code: ErrorCode, message: impl Into<String>) -> Self {
        let error = ErrorBody { code, message: message.into(), recoverable: false, retry_after: None };
        Self::Error { re, turn_id: None, error }
    }
}

impl AiResponse {
    /// A piece of text of a running turn.
    #[must_use]
    pub fn piece(session_id: SessionId, turn_id: TurnId, offset: u64, content: impl Into<Cow<'static, str>>) -> Self {
        Self {
            re: None,
            session_id,
            turn_id,
            offset,
            content: content.into(),
            model_id: None,
            sender: Sender::Ai,
            metadata: ReplyMetadata { streaming: Word::True, done: Word::False },
            reply: None,
        }
    }
}

impl Presented<'_> {
    /// The frame of a settled entry that its reader does not hold: the whole text.
    #[must_use]
    pub fn whole(self) -> ServerFrame {
        match self.entry.sender {
            Sender::Ai => self.reply(0, true),
            _ => self.message(),
        }
    }

    /// The last frame of a reply whose text the reader has in full.
    #[must_use]
    pub fn end(self) -> ServerFrame {
        let length = self.entry.length.unwrap_or_default();
        self.reply(length, false)
    }

    fn message(self) -> ServerFrame {
        let entry = self.entry;
        ServerFrame::UserMessage(Box::new(EntryFrame {
            id: entry.client_id.filter(|_| *self.reader == entry.user_id),
            entry_id: entry.id,
            session_id: entry.session_id,
            seq: entry.seq,
            turn_id: entry.turn_id,
            content: entry.content.clone(),
            files: entry.files.clone(),
            sender: entry.sender,
            timestamp: entry.created_at,
            metadata: entry.metadata.clone(),
        }))
    }

    fn reply(self, offset: u64, whole: bool) -> ServerFrame {
        let entry = self.entry;
        let content = if whole { Cow::Owned(entry.content.clone()) } else { Cow::Borrowed("") };
        ServerFrame::AiResponse(Box::new(AiResponse {
            re: self.re,
            session_id: entry.session_id,
            turn_id: entry.turn_id.unwrap_or(TurnId(uuid::Uuid::nil())),
            offset,
            content,
            model_id: entry.model_id.clone(),
            sender: Sender::Ai,
            metadata: ReplyMetadata { streaming: if whole { Word::False } else { Word::True }, done: Word::True },
            reply: Some(Reply {
                seq: entry.seq,
                reply_to: entry.reply_to.unwrap_or_default(),
                state: entry.state.unwrap_or(TurnState::Complete),
                length: entry.length.unwrap_or_default(),
                sha256: entry.sha256.clone().unwrap_or_default(),
                usage: entry.usage,
                segments: entry.segments.clone(),
                rating: entry.rating,
                html: self.html,
                timestamp: entry.created_at,
            }),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_by_hand_is_what_serde_writes() {
        let session_id = SessionId(uuid::Uuid::from_u128(0x0198_c0de_0000_7000_8000_0123_4567_89ab));
        for sender in [Sender::User, Sender::Ai, Sender::Admin, Sender::System] {
            for active in [true, false] {
                let frame = ServerFrame::typing(session_id, sender, active);
                let mut line = Vec::new();
                frame.write(&mut line).unwrap();
                assert_eq!(String::from_utf8(line).unwrap(), serde_json::to_string(&frame).unwrap());
            }
        }
    }
}
