//! The rows beside the session documents, and how a commit's rows are written: any number of times, by anyone.
//!
//! A row carries the version of the session document that implies it and never takes the place of a newer one.

use mongodb::bson::{Binary, DateTime, RawArrayBuf, RawDocumentBuf, doc, rawdoc};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    super::{Result, seal::Seal},
    erase,
    link::{self, Link, Table, Written},
    usage,
    values::{self, Sealed, failed},
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
}

/// How a row is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum How {
    /// nothing is there yet
    Insert,
    /// in place of an older one
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
        Ok(Self { table, how, row: values::document(row)? })
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
        Some(self.row.get_binary(mongodb::bson::raw::cstr!("_id")).ok()?.bytes)
    }

    /// Adds a row to others of the same commit: one of the same name takes the place of the earlier one.
    pub(super) fn add_to(self, rows: &mut Vec<Self>) {
        let replaces = matches!(self.how, How::Insert | How::Put);
        let same = |row: &&mut Self| {
            replaces
                && row.table == self.table
                && row.how != How::Add
                && row.how != How::DropLog
                && row.key() == self.key()
        };
        match rows.iter_mut().find(same) {
            Some(row) => row.row = self.row,
            None => rows.push(self),
        }
    }
}

/// The rows of a table among those of a commit that is not known to be written, newest version of each.
pub(super) fn of_table<T: serde::de::DeserializeOwned>(rows: &[Row], table: Table) -> Result<Vec<T>> {
    let written = rows.iter().filter(|row| row.table == table && matches!(row.how, How::Insert | How::Put));
    written.map(|row| values::row(&row.row)).collect()
}

/// Whether somebody may have written the rows before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turnout {
    First,
    Again,
}

/// Writes what a commit implies. When it returns, a majority of the servers has it.
pub(super) async fn apply(link: &Link, rows: &[Row], turnout: Turnout, deadline: Instant) -> Result<()> {
    let of = |how: How, table: Table| rows.iter().filter(move |row| row.how == how && row.table == table);
    // A day is added to before the row of what was spent is there: whoever finds that one knows that it was.
    usage::add_days(link, of(How::Add, Table::UsageDaily), turnout, deadline).await?;
    let tables = [Table::Entries, Table::Turns, Table::TurnChunks, Table::Usage];
    let inserts = tables.map(|table| async move { insert(link, table, of(How::Insert, table), deadline).await });
    let puts = tables.map(|table| async move { put(link, table, of(How::Put, table), deadline).await });
    let inserts = futures_util::future::try_join_all(inserts);
    let puts = futures_util::future::try_join_all(puts);
    futures_util::try_join!(inserts, puts)?;
    let logs = of(How::DropLog, Table::TurnChunks).map(|row| values::row::<DropLog>(&row.row));
    let logs: Vec<_> = logs.map(|log| log.map(|log| log.turn)).collect::<Result<_>>()?;
    erase::logs(link, &logs, deadline).await?;
    for row in of(How::DropSession, Table::Sessions) {
        erase::session(link, &values::row(&row.row)?, deadline).await?;
    }
    Ok(())
}

/// Most statements, and most bytes, of one command (MongoDB takes 100 000 and 48 MB).
const STATEMENTS_MAX: usize = 1000;
const COMMAND_BYTES_MAX: usize = 16 << 20;

/// Hands over a command's worth of statements at a time.
struct Batches<'a> {
    link: &'a Link,
    table: Table,
    command: fn(Table, RawArrayBuf) -> RawDocumentBuf,
    deadline: Instant,
    statements: RawArrayBuf,
    count: usize,
    bytes: usize,
}

impl Batches<'_> {
    async fn push(&mut self, statement: RawDocumentBuf) -> Result<()> {
        if self.count >= STATEMENTS_MAX || self.bytes + statement.as_bytes().len() > COMMAND_BYTES_MAX {
            self.flush().await?;
        }
        self.count += 1;
        self.bytes += statement.as_bytes().len();
        self.statements.push(statement);
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        if self.count > 0 {
            let command = (self.command)(self.table, std::mem::take(&mut self.statements));
            (self.count, self.bytes) = (0, 0);
            self.link.write(command, self.deadline).await.and_then(Written::unless_duplicate)?;
        }
        Ok(())
    }
}

fn batches(
    link: &Link,
    table: Table,
    command: fn(Table, RawArrayBuf) -> RawDocumentBuf,
    deadline: Instant,
) -> Batches<'_> {
    Batches { link, table, command, deadline, statements: RawArrayBuf::new(), count: 0, bytes: 0 }
}

async fn insert(link: &Link, table: Table, rows: impl Iterator<Item = &Row>, deadline: Instant) -> Result<()> {
    let mut batches = batches(link, table, link::insert, deadline);
    for row in rows {
        batches.push(row.row.clone()).await?;
    }
    batches.flush().await
}

/// An older row gives way; a newer one, or this one, keeps its place, and the unique index of `_id` says so.
async fn put(link: &Link, table: Table, rows: impl Iterator<Item = &Row>, deadline: Instant) -> Result<()> {
    let mut batches = batches(link, table, link::update, deadline);
    for row in rows {
        let filter = older(&row.row)?;
        batches.push(rawdoc! { "q": filter, "u": row.row.clone(), "upsert": true }).await?;
    }
    batches.flush().await
}

fn older(row: &RawDocumentBuf) -> Result<RawDocumentBuf> {
    use mongodb::bson::raw::cstr;
    let id = row.get_binary(cstr!("_id")).map_err(failed)?;
    let v = row.get_i64(cstr!("v")).map_err(failed)?;
    Ok(rawdoc! { "_id": Binary { subtype: id.subtype, bytes: id.bytes.to_vec() }, "v": { "$lt": v } })
}

/// The entries of a session in a range of places, as far as they are written.
pub(super) fn in_range(session: SessionId, from: u64, to: u64) -> mongodb::bson::Document {
    let place = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    doc! { "session_id": values::id(session.0), "seq": { "$gt": place(from), "$lte": place(to) } }
}
