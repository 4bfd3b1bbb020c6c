//! The rows beside the session documents, which commits imply.
//!
//! A row carries the version of the session document that implies it.

use mongodb::bson::{Binary, DateTime, RawDocumentBuf, doc, raw::cstr};
use serde::{Deserialize, Serialize};

use super::{
    super::{Result, seal::Seal},
    link::Table,
    values::{self, Sealed},
};
use crate::chat::{
    Entry, EntryId, EntryKind, Rating, RequestId, Segment, Sender, SessionId, Timestamp, Turn, TurnId, TurnState,
    Usage, UserId,
};

/// A row that a commit implies.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) table: Table,
    pub(super) how: How,
    /// the row; of [`How::DropLog`] and [`How::DropSession`] what they need to know
    pub(super) row: RawDocumentBuf,
    /// what its lane does about it; whoever finds it in a document writes it
    #[serde(skip)]
    pub(super) due: Due,
}

/// When the lane whose commit implies a row has it written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Due {
    #[default]
    Now,
    /// not before it has to: its turn is about to put another one in its place, or to do without it
    Later,
    /// it is on its way, since the commit of this version
    Sent(u64),
}

/// How a row is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum How {
    /// nothing is there yet
    Insert,
    /// in place of an older one, if that was written
    Put,
    /// adds to a user's day
    Add,
    /// the log of an ended turn goes
    DropLog,
    /// everything of a session goes
    DropSession,
}

/// One entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct EntryRow {
    #[serde(rename = "_id")]
    pub(super) id: EntryId,
    /// the version of the session document that implies it
    pub(super) v: u64,
    pub(super) session_id: SessionId,
    pub(super) seq: u64,
    pub(super) user_id: UserId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) client_id: Option<RequestId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) turn_id: Option<TurnId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) reply_to: Option<u64>,
    pub(super) sender: Sender,
    pub(super) kind: EntryKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<Sealed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) files: Option<Sealed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<Sealed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<TurnState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) length: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<Sealed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) model_id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) segments: Vec<Segment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rating: Option<Rating>,
    pub(super) created_at: i64,
}

impl EntryRow {
    /// The entry, opened.
    pub(super) fn open(self, seal: &Seal) -> Result<Entry> {
        let place = |field| values::entry_place(&self.id, field);
        Ok(Entry {
            session_id: self.session_id,
            seq: self.seq,
            id: self.id,
            content: values::open_text(seal, place("content"), self.content.as_ref())?.unwrap_or_default(),
            files: values::open_json(seal, place("files"), self.files.as_ref())?,
            metadata: values::open_json(seal, place("metadata"), self.metadata.as_ref())?,
            sha256: values::open_text(seal, place("sha256"), self.sha256.as_ref())?,
            user_id: self.user_id,
            client_id: self.client_id,
            turn_id: self.turn_id,
            reply_to: self.reply_to,
            sender: self.sender,
            kind: self.kind,
            state: self.state,
            length: self.length,
            usage: self.usage,
            model_id: self.model_id,
            segments: self.segments,
            rating: self.rating,
            created_at: Timestamp(self.created_at),
        })
    }
}

/// A turn that has ended. Others lie in the document of their session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TurnRow {
    #[serde(rename = "_id")]
    pub(super) id: TurnId,
    pub(super) v: u64,
    pub(super) session_id: SessionId,
    /// who wrote the message
    pub(super) user_id: UserId,
    pub(super) message_seq: u64,
    pub(super) reply_seq: u64,
    pub(super) state: TurnState,
    pub(super) length: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<crate::chat::NodeId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) model_id: Option<String>,
    pub(super) created_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) started_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) first_token_at: Option<i64>,
    pub(super) ended_at: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Usage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<crate::chat::ErrorCode>,
}

impl TurnRow {
    pub(super) fn turn(self) -> Turn {
        Turn {
            id: self.id,
            session_id: self.session_id,
            message_seq: self.message_seq,
            reply_seq: Some(self.reply_seq),
            state: self.state,
            node: self.node,
            model_id: self.model_id,
        }
    }
}

/// A piece of a turn's log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ChunkRow {
    /// the turn, and the offset: sorted by both
    #[serde(rename = "_id")]
    pub(super) id: Binary,
    pub(super) v: u64,
    pub(super) offset: u64,
    pub(super) text: Sealed,
    /// what a late writer leaves behind goes by its age
    pub(super) at: DateTime,
}

/// The log of a turn that goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DropLog {
    #[serde(rename = "_id")]
    pub(super) turn: TurnId,
}

/// A session that goes, with the turns whose logs are there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct DropSession {
    #[serde(rename = "_id")]
    pub(super) session: SessionId,
    pub(super) turns: Vec<TurnId>,
}

impl Row {
    pub(super) fn new(table: Table, how: How, row: &impl Serialize) -> Result<Self> {
        Ok(Self { table, how, row: values::document(row)?, due: Due::Now })
    }

    /// How large it is.
    pub(super) fn bytes(&self) -> usize {
        self.row.as_bytes().len()
    }

    /// Whether everybody who reads it reads the document that implies it too.
    pub(super) fn read_from_its_document(&self) -> bool {
        self.how == How::Insert && matches!(self.table, Table::Entries | Table::TurnChunks)
    }

    fn key(&self) -> Option<&[u8]> {
        Some(self.row.get_binary(cstr!("_id")).ok()?.bytes)
    }

    /// Whether an earlier row need not be written any more, beside this one.
    fn replaces(&self, earlier: &Self) -> bool {
        let written = matches!(earlier.how, How::Insert | How::Put) && earlier.table == self.table;
        match self.how {
            How::Insert | How::Put => written && earlier.key() == self.key(),
            // Names of chunks begin with that of their turn.
            How::DropLog => {
                written && self.key().zip(earlier.key()).is_some_and(|(turn, chunk)| chunk.starts_with(turn))
            }
            How::Add | How::DropSession => false,
        }
    }

    /// Adds a row to others of its session: to those of the same commit, and to those that earlier ones imply.
    pub(super) fn add_to(self, rows: &mut Vec<Self>) {
        rows.retain(|row| !self.replaces(row));
        if self.how == How::DropSession {
            // Who deletes the rows finds the names of requests by them.
            rows.iter_mut().for_each(Self::settle);
        }
        rows.push(self);
    }

    /// It is not to be carried any longer.
    pub(super) fn settle(&mut self) {
        if self.due == Due::Later {
            self.due = Due::Now;
        }
    }
}

/// Bytes of logs that a document carries before they are written beside it.
const CARRIED_BYTES_MAX: usize = 4096;

/// Decides which of the rows that a document implies it goes on carrying.
pub(super) fn carry(rows: &mut [Row]) {
    let mut later: Vec<_> = rows.iter_mut().filter(|row| row.due == Due::Later).collect();
    if later.iter().map(|row| row.bytes()).sum::<usize>() > CARRIED_BYTES_MAX {
        later.iter_mut().filter(|row| row.table == Table::TurnChunks).for_each(|row| row.settle());
    }
}

/// The rows of a table among those of a commit that is not known to be written, newest version of each.
pub(super) fn of_table<T: serde::de::DeserializeOwned>(rows: &[Row], table: Table) -> Result<Vec<T>> {
    let written = rows.iter().filter(|row| row.table == table && matches!(row.how, How::Insert | How::Put));
    written.map(|row| values::row(&row.row)).collect()
}

/// The entries of a session in a range of places, as far as they are written.
pub(super) fn in_range(session: SessionId, from: u64, to: u64) -> mongodb::bson::Document {
    let place = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    doc! { "session_id": values::id(session.0), "seq": { "$gt": place(from), "$lte": place(to) } }
}
