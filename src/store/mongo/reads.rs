//! Reads of one session: its document, its log, its turns.
//!
//! A document is read before the rows that it speaks of. Rows that it implies may not be written yet, and ride along
//! in it; rows that are newer than it belong to places that it knows, or are left out.

use std::collections::BTreeMap;

use mongodb::bson::{Document, RawDocumentBuf, doc};
use tokio::time::Instant;

use super::{
    super::{Error, Range, Result, Revs, TurnText},
    head::Head,
    lane::Shared,
    link::{Find, Table},
    log,
    rows::{self, EntryRow, TurnRow},
    values,
};
use crate::chat::{Entry, SessionId, Turn, TurnId};

/// Attempts to read a log that is being dropped.
const ATTEMPTS: usize = 3;

/// The document of a session that was not deleted.
pub(super) async fn head(shared: &Shared, id: SessionId, deadline: Instant) -> Result<Option<Head>> {
    head_by(shared, doc! { "_id": values::id(id.0) }, deadline).await
}

/// The document of the session that a turn belongs to, while it knows of it.
pub(super) async fn head_of_turn(shared: &Shared, turn: TurnId, deadline: Instant) -> Result<Option<Head>> {
    head_by(shared, doc! { "turns": values::id(turn.0) }, deadline).await
}

pub(super) async fn head_by(shared: &Shared, filter: Document, deadline: Instant) -> Result<Option<Head>> {
    let found = shared.link.find_one(Table::Sessions, filter, deadline).await?;
    let head = found.map(|found| Head::read(&found)).transpose()?;
    Ok(head.filter(|head| head.gone_at.is_none()))
}

/// The `rev` of each session that there is, in the order that they were asked for.
pub(super) async fn revs(shared: &Shared, ids: &[SessionId], deadline: Instant) -> Result<Revs> {
    let known: Vec<_> = ids.iter().map(|id| values::id(id.0)).collect();
    let find =
        Find { projection: Some(doc! { "rev": 1 }), ..Find::of(doc! { "_id": { "$in": known }, "gone_at": null }) };
    let found = shared.link.find(Table::Sessions, &find, deadline).await?;
    let found: BTreeMap<_, _> = found.iter().map(rev).collect::<Result<_>>()?;
    Ok(ids.iter().filter_map(|id| Some((*id, *found.get(id)?))).collect())
}

/// A session's id and `rev`.
pub(super) fn rev(document: &RawDocumentBuf) -> Result<(SessionId, u64)> {
    #[derive(serde::Deserialize)]
    struct Row {
        #[serde(rename = "_id")]
        id: SessionId,
        rev: u64,
    }
    let row: Row = values::row(document)?;
    Ok((row.id, row.rev))
}

/// Entries of a log, in order.
pub(super) async fn entries(
    shared: &Shared,
    session: SessionId,
    range: Range,
    deadline: Instant,
) -> Result<Vec<Entry>> {
    let Some(head) = head(shared, session, deadline).await? else { return Ok(Vec::new()) };
    let (after, to, limit, last) = match range {
        Range::After(seq, limit) => (seq, head.last_seq, limit, false),
        Range::Before(seq, limit) => (0, head.last_seq.min(seq.saturating_sub(1)), limit, true),
        Range::Last(limit) => (0, head.last_seq, limit, true),
    };
    // Places have no gaps, so the range is known before it is read.
    let limit = u64::from(limit);
    let (after, to) = if last { (to.saturating_sub(limit), to) } else { (after, to.min(after.saturating_add(limit))) };
    if after >= to {
        return Ok(Vec::new());
    }
    let mut find = Find::of(rows::in_range(session, after, to));
    find.sort = Some(doc! { "session_id": 1, "seq": 1 });
    let written = shared.link.find(Table::Entries, &find, deadline).await?;
    let mut entries: BTreeMap<u64, EntryRow> = BTreeMap::new();
    let written = written.iter().map(values::row::<EntryRow>).collect::<Result<Vec<_>>>()?;
    for row in written.into_iter().chain(rows::of_table(&head.redo, Table::Entries)?) {
        let newer = entries.get(&row.seq).is_none_or(|known| known.v < row.v);
        if newer && row.seq > after && row.seq <= to {
            entries.insert(row.seq, row);
        }
    }
    if u64::try_from(entries.len()).unwrap_or(u64::MAX) != to - after {
        return deleted_meanwhile(shared, session, deadline).await;
    }
    entries.into_values().map(|row| row.open(&shared.seal)).collect()
}

/// Rows are missing only where a session is being deleted.
async fn deleted_meanwhile(shared: &Shared, session: SessionId, deadline: Instant) -> Result<Vec<Entry>> {
    match head(shared, session, deadline).await? {
        None => Ok(Vec::new()),
        Some(head) => Err(Error::Database(format!("the log of session {} has a gap", head.id).into())),
    }
}

/// The entry at a place.
pub(super) async fn entry_at(
    shared: &Shared,
    session: SessionId,
    seq: u64,
    deadline: Instant,
) -> Result<Option<Entry>> {
    let Some(before) = seq.checked_sub(1) else { return Ok(None) };
    Ok(entries(shared, session, Range::After(before, 1), deadline).await?.pop())
}

/// A turn that has ended.
pub(super) async fn ended_turn(shared: &Shared, id: TurnId, deadline: Instant) -> Result<Option<TurnRow>> {
    let head = head_of_turn(shared, id, deadline).await?;
    if let Some(head) = &head {
        if head.open.iter().any(|open| open.id == id) {
            return Ok(None);
        }
        let mut redo = rows::of_table::<TurnRow>(&head.redo, Table::Turns)?.into_iter();
        if let Some(row) = redo.find(|row| row.id == id) {
            return Ok(Some(row));
        }
    }
    let row = shared.link.find_one(Table::Turns, doc! { "_id": values::id(id.0) }, deadline).await?;
    row.map(|row| values::row(&row)).transpose()
}

/// One turn.
pub(super) async fn turn(shared: &Shared, id: TurnId, deadline: Instant) -> Result<Option<Turn>> {
    if let Some(head) = head_of_turn(shared, id, deadline).await?
        && let Some(open) = head.open.iter().find(|open| open.id == id)
    {
        return Ok(Some(open.turn(head.id)));
    }
    Ok(ended_turn(shared, id, deadline).await?.map(TurnRow::turn))
}

/// The text of a turn's log from an offset on. One inside a character moves back to its beginning, and one behind
/// the end to the end.
pub(super) async fn turn_text(shared: &Shared, id: TurnId, offset: u64, deadline: Instant) -> Result<TurnText> {
    let mut failed = Error::NotFound;
    for _attempt in 0..ATTEMPTS {
        let head = head_of_turn(shared, id, deadline).await?;
        let open = head.as_ref().and_then(|head| Some((head, head.open.iter().find(|open| open.id == id)?)));
        let Some((head, open)) = open else {
            let ended = ended_turn(shared, id, deadline).await?.ok_or(Error::NotFound)?;
            return Ok(TurnText { offset: offset.min(ended.length), text: String::new() });
        };
        let length = open.running.as_ref().map_or(0, |running| running.length);
        if offset >= length {
            return Ok(TurnText { offset: length, text: String::new() });
        }
        // A turn that ends meanwhile takes its log along.
        match log::text(shared, id, offset..length, &head.redo, deadline).await {
            Ok(text) => return Ok(text),
            Err(err) => failed = err,
        }
    }
    Err(failed)
}
