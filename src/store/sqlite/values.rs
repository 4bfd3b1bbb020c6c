//! How the words of [`crate::chat`] lie in columns and rows.

use rusqlite::{
    Row, ToSql,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};
use uuid::Uuid;

pub(super) use super::super::sealed::{
    chunk_place, chunk_row, close_text, entry_place, session_place, share_place, thread_place, thread_row,
};
use super::super::{Error, Purpose, Result, Share, seal::Seal, sealed};
use crate::chat::{
    Assist, Counters, Entry, EntryId, EntryKind, ErrorCode, Metadata, NodeId, Rating, Segment, Sender, Session,
    SessionId, SessionState, Timestamp, Turn, TurnId, TurnState, Usage, UserId,
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
    Purpose { Reply = "reply", Name = "name" }
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

/// Who wrote which part of a reply, on its way in: no words of anybody's. One part takes no room.
pub(super) fn segments_text(segments: &[Segment]) -> Result<Option<String>> {
    if segments.len() > 1 { Ok(Some(serde_json::to_string(segments)?)) } else { Ok(None) }
}

fn segments(stored: Option<String>) -> Result<Vec<Segment>> {
    stored.map_or_else(|| Ok(Vec::new()), |stored| Ok(serde_json::from_str(&stored)?))
}

/// Reads the columns of a row one after the other, in the order in which the statement names them. By name, SQLite
/// would be asked for the names of all columns for each value.
struct Columns<'a> {
    row: &'a Row<'a>,
    at: usize,
}

impl<'a> Columns<'a> {
    const fn of(row: &'a Row<'a>) -> Self {
        Self { row, at: 0 }
    }

    fn next<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        self.at += 1;
        self.row.get(self.at - 1)
    }

    fn bytes(&mut self) -> rusqlite::Result<Option<Vec<u8>>> {
        self.next()
    }

    fn usage(&mut self) -> rusqlite::Result<Option<Usage>> {
        let (prompt, completion): (Option<u64>, Option<u64>) = (self.next()?, self.next()?);
        let estimated: Option<bool> = self.next()?;
        Ok(prompt.map(|prompt_tokens| Usage {
            prompt_tokens,
            completion_tokens: completion.unwrap_or_default(),
            estimated: estimated.unwrap_or_default(),
        }))
    }
}

/// An entry from a row of `entry_columns`.
pub(super) fn entry(row: &Row<'_>, seal: &Seal) -> Result<Entry> {
    let mut columns = Columns::of(row);
    let (session_id, seq, id) = (columns.next()?, columns.next()?, columns.next()?);
    Ok(Entry {
        session_id,
        seq,
        user_id: columns.next()?,
        client_id: columns.next::<Option<[u8; 16]>>()?.map(Uuid::from_bytes),
        turn_id: columns.next()?,
        reply_to: columns.next()?,
        sender: columns.next()?,
        kind: columns.next()?,
        content: sealed::open_text(seal, entry_place(&id, "content"), columns.bytes()?.as_deref())?.unwrap_or_default(),
        files: sealed::open_json(seal, entry_place(&id, "files"), columns.bytes()?.as_deref())?,
        metadata: sealed::open_json(seal, entry_place(&id, "metadata"), columns.bytes()?.as_deref())?,
        state: columns.next()?,
        length: columns.next()?,
        sha256: sealed::open_text(seal, entry_place(&id, "sha256"), columns.bytes()?.as_deref())?,
        usage: columns.usage()?,
        model_id: columns.next()?,
        segments: segments(columns.next()?)?,
        rating: columns.next()?,
        created_at: columns.next()?,
        id,
    })
}

/// A session from a row of `session_columns`.
pub(super) fn session(row: &Row<'_>, seal: &Seal) -> Result<Session> {
    let mut columns = Columns::of(row);
    let id: SessionId = columns.next()?;
    Ok(Session {
        user_id: columns.next()?,
        name: sealed::open_text(seal, session_place(&id, "name"), columns.bytes()?.as_deref())?,
        model_id: columns.next()?,
        state: columns.next()?,
        rev: columns.next()?,
        last_seq: columns.next()?,
        created_at: columns.next()?,
        last_activity: columns.next()?,
        ended_at: columns.next()?,
        help_requested: columns.next()?,
        assist: match (
            columns.next()?,
            sealed::open_text(seal, session_place(&id, "assist_name"), columns.bytes()?.as_deref())?,
        ) {
            (Some(admin_id), name) => Some(Assist { admin_id, name: name.unwrap_or_default() }),
            (None, _) => None,
        },
        admin_assisted: columns.next()?,
        counters: Counters {
            entries: columns.next()?,
            prompt_tokens: columns.next()?,
            completion_tokens: columns.next()?,
            responses: columns.next()?,
            response_ms_sum: columns.next()?,
            response_ms_max: columns.next()?,
        },
        id,
    })
}

/// A turn from a row of `turn_columns`.
pub(super) fn turn(row: &Row<'_>) -> rusqlite::Result<Turn> {
    turn_of(&mut Columns::of(row))
}

/// What `TURN_ENDING` reads.
pub(super) struct Ending {
    pub(super) turn: Turn,
    pub(super) lease_until: Option<Timestamp>,
    pub(super) started_at: Option<Timestamp>,
    /// bytes of its log
    pub(super) length: u64,
    /// of its session
    pub(super) rev: u64,
    /// another turn of its session waits
    pub(super) waiting: bool,
    /// its place in the log, without a text
    pub(super) reply: Option<Entry>,
}

/// A turn that is to end, from a row of `TURN_ENDING`.
pub(super) fn ending(row: &Row<'_>) -> rusqlite::Result<Ending> {
    let mut columns = Columns::of(row);
    let turn = turn_of(&mut columns)?;
    let (lease_until, started_at, length) = (columns.next()?, columns.next()?, columns.next()?);
    let (rev, waiting) = (columns.next()?, columns.next()?);
    let reply = match (turn.reply_seq, columns.next()?) {
        (Some(seq), Some(id)) => Some(Entry {
            session_id: turn.session_id,
            seq,
            id,
            user_id: columns.next()?,
            client_id: columns.next::<Option<[u8; 16]>>()?.map(Uuid::from_bytes),
            turn_id: Some(turn.id),
            reply_to: Some(turn.message_seq),
            sender: Sender::Ai,
            kind: EntryKind::Text,
            content: String::new(),
            files: Vec::new(),
            metadata: Metadata::new(),
            state: Some(turn.state),
            length: None,
            sha256: None,
            usage: None,
            model_id: columns.next()?,
            segments: Vec::new(),
            rating: None,
            created_at: columns.next()?,
        }),
        _ => None,
    };
    Ok(Ending { turn, lease_until, started_at, length, rev, waiting, reply })
}

fn turn_of(columns: &mut Columns<'_>) -> rusqlite::Result<Turn> {
    Ok(Turn {
        id: columns.next()?,
        session_id: columns.next()?,
        message_seq: columns.next()?,
        reply_seq: columns.next()?,
        state: columns.next()?,
        node: columns.next()?,
        model_id: columns.next()?,
    })
}

/// A share from a row of `share_columns`.
pub(super) fn share(row: &Row<'_>, seal: &Seal) -> Result<Share> {
    let mut columns = Columns::of(row);
    let id = Uuid::from_bytes(columns.next()?);
    Ok(Share {
        session_id: columns.next()?,
        name: sealed::open_text(seal, share_place(&id), columns.bytes()?.as_deref())?,
        last_seq: columns.next()?,
        running_seq: columns.next()?,
        created_at: columns.next()?,
        expires_at: columns.next()?,
        id,
    })
}
