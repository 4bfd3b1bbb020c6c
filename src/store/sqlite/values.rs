//! How the words of [`crate::chat`] lie in columns and rows.

use rusqlite::{
    Row, ToSql,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::super::{Error, Result, Share, seal::Place, seal::Seal};
use crate::chat::{
    Assist, Counters, Entry, EntryId, EntryKind, ErrorCode, NodeId, Rating, Sender, Session, SessionId, SessionState,
    Timestamp, Turn, TurnId, TurnState, Usage, UserId,
};

macro_rules! ids {
    ($($id:ident),+) => {$(
        impl ToSql for $id {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(ToSqlOutput::Borrowed(ValueRef::Blob(self.0.as_bytes())))
            }
        }

        impl FromSql for $id {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                <[u8; 16]>::column_result(value).map(|bytes| Self(Uuid::from_bytes(bytes)))
            }
        }
    )+};
}

ids!(SessionId, EntryId, TurnId, NodeId);

macro_rules! words {
    ($($type:ident { $($variant:ident = $word:literal),+ })+) => {$(
        impl ToSql for $type {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                let word = match self {
                    $(Self::$variant => $word,)+
                };
                Ok(ToSqlOutput::from(word))
            }
        }

        impl FromSql for $type {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                match value.as_str()? {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(FromSqlError::InvalidType),
                }
            }
        }
    )+};
}

words! {
    Sender { User = "user", Ai = "ai", Admin = "admin", System = "system" }
    EntryKind { Text = "text", File = "file", Voice = "voice", Notice = "notice" }
    Rating { Up = "up", Down = "down" }
    SessionState { Active = "active", Ended = "ended" }
    TurnState {
        Queued = "queued", Running = "running", Complete = "complete", Stopped = "stopped",
        Interrupted = "interrupted", Failed = "failed"
    }
}

impl ToSql for Timestamp {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for Timestamp {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        i64::column_result(value).map(Self)
    }
}

impl ToSql for UserId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.as_str().to_sql()
    }
}

impl FromSql for UserId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Self::parse(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

impl ToSql for ErrorCode {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let text = serde_json::to_string(self).map_err(|err| rusqlite::Error::ToSqlConversionFailure(err.into()))?;
        Ok(ToSqlOutput::from(text.trim_matches('"').to_owned()))
    }
}

impl From<rusqlite::Error> for Error {
    fn from(err: rusqlite::Error) -> Self {
        Self::Database(Box::new(err))
    }
}

impl From<serde_json::Error> for Error {
    fn from(err: serde_json::Error) -> Self {
        Self::Database(Box::new(err))
    }
}

/// The name of a sealed value of an entry.
pub(super) fn entry_place<'a>(id: &'a EntryId, field: &'static str) -> Place<'a> {
    Place { table: "entries", row: id.0.as_bytes(), field }
}

/// The name of a sealed value of a session.
pub(super) fn session_place<'a>(id: &'a SessionId, field: &'static str) -> Place<'a> {
    Place { table: "sessions", row: id.0.as_bytes(), field }
}

/// The name of a sealed value of a share.
pub(super) fn share_place(id: &Uuid) -> Place<'_> {
    Place { table: "shares", row: id.as_bytes(), field: "name" }
}

/// The row of one chunk of a turn's log: the turn, and where its text begins.
pub(super) fn chunk_row(turn: TurnId, offset: u64) -> [u8; 24] {
    let mut row = [0; 24];
    let (id, at) = row.split_at_mut(16);
    id.copy_from_slice(turn.0.as_bytes());
    at.copy_from_slice(&offset.to_be_bytes());
    row
}

/// The name of a sealed chunk.
pub(super) fn chunk_place(row: &[u8; 24]) -> Place<'_> {
    Place { table: "turn_chunks", row, field: "text" }
}

/// A text on its way in; an empty one takes no room.
pub(super) fn close_text(seal: &Seal, place: Place<'_>, text: &str) -> Result<Option<Vec<u8>>> {
    if text.is_empty() { Ok(None) } else { seal.close(place, text.as_bytes()).map(Some) }
}

/// A list or map on its way in.
pub(super) fn close_json(seal: &Seal, place: Place<'_>, value: &impl Serialize) -> Result<Option<Vec<u8>>> {
    seal.close(place, &serde_json::to_vec(value)?).map(Some)
}

fn open_text(seal: &Seal, place: Place<'_>, stored: Option<Vec<u8>>) -> Result<Option<String>> {
    stored.map(|stored| seal.open_text(place, &stored)).transpose()
}

fn open_json<T: DeserializeOwned + Default>(seal: &Seal, place: Place<'_>, stored: Option<Vec<u8>>) -> Result<T> {
    match stored {
        Some(stored) => Ok(serde_json::from_slice(&seal.open(place, &stored)?)?),
        None => Ok(T::default()),
    }
}

fn usage(row: &Row<'_>) -> rusqlite::Result<Option<Usage>> {
    let prompt_tokens: Option<u64> = row.get("prompt_tokens")?;
    let Some(prompt_tokens) = prompt_tokens else { return Ok(None) };
    let completion_tokens = row.get("completion_tokens")?;
    Ok(Some(Usage { prompt_tokens, completion_tokens, estimated: row.get("usage_estimated")? }))
}

/// An entry from a row of `ENTRY_COLUMNS`.
pub(super) fn entry(row: &Row<'_>, seal: &Seal) -> Result<Entry> {
    let id: EntryId = row.get("id")?;
    let state: Option<TurnState> = row.get("state")?;
    Ok(Entry {
        session_id: row.get("session_id")?,
        seq: row.get("seq")?,
        user_id: row.get("user_id")?,
        client_id: row.get::<_, Option<[u8; 16]>>("client_id")?.map(Uuid::from_bytes),
        turn_id: row.get("turn_id")?,
        reply_to: row.get("reply_to")?,
        sender: row.get("sender")?,
        kind: row.get("kind")?,
        content: open_text(seal, entry_place(&id, "content"), row.get("content")?)?.unwrap_or_default(),
        files: open_json(seal, entry_place(&id, "files"), row.get("files")?)?,
        metadata: open_json(seal, entry_place(&id, "metadata"), row.get("metadata")?)?,
        state,
        length: row.get("length")?,
        sha256: open_text(seal, entry_place(&id, "sha256"), row.get("sha256")?)?,
        usage: usage(row)?,
        model_id: row.get("model_id")?,
        rating: row.get("rating")?,
        created_at: row.get("created_at")?,
        id,
    })
}

/// A session from a row of `SESSION_COLUMNS`.
pub(super) fn session(row: &Row<'_>, seal: &Seal) -> Result<Session> {
    let id: SessionId = row.get("id")?;
    let assist = match row.get("assist_admin_id")? {
        Some(admin_id) => {
            let name = open_text(seal, session_place(&id, "assist_name"), row.get("assist_name")?)?;
            Some(Assist { admin_id, name: name.unwrap_or_default() })
        }
        None => None,
    };
    Ok(Session {
        user_id: row.get("user_id")?,
        name: open_text(seal, session_place(&id, "name"), row.get("name")?)?,
        model_id: row.get("model_id")?,
        state: row.get("state")?,
        rev: row.get("rev")?,
        last_seq: row.get("last_seq")?,
        created_at: row.get("created_at")?,
        last_activity: row.get("last_activity")?,
        ended_at: row.get("ended_at")?,
        help_requested: row.get("help_requested")?,
        assist,
        admin_assisted: row.get("admin_assisted")?,
        counters: Counters {
            entries: row.get("entries")?,
            prompt_tokens: row.get("prompt_tokens")?,
            completion_tokens: row.get("completion_tokens")?,
            responses: row.get("responses")?,
            response_ms_sum: row.get("response_ms_sum")?,
            response_ms_max: row.get("response_ms_max")?,
        },
        id,
    })
}

/// A turn from a row of `TURN_COLUMNS`.
pub(super) fn turn(row: &Row<'_>) -> rusqlite::Result<Turn> {
    Ok(Turn {
        id: row.get("id")?,
        session_id: row.get("session_id")?,
        message_seq: row.get("message_seq")?,
        reply_seq: row.get("reply_seq")?,
        state: row.get("state")?,
        node: row.get("node")?,
        model_id: row.get("model_id")?,
    })
}

/// A share from a row of `SHARE_COLUMNS`.
pub(super) fn share(row: &Row<'_>, seal: &Seal) -> Result<Share> {
    let id = Uuid::from_bytes(row.get("id")?);
    Ok(Share {
        session_id: row.get("session_id")?,
        name: open_text(seal, share_place(&id), row.get("name")?)?,
        last_seq: row.get("last_seq")?,
        running_seq: row.get("running_seq")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        id,
    })
}
