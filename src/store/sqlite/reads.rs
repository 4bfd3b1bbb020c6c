//! Reads of the log and of turns, for readers and for writes alike.

use rusqlite::{Connection, OptionalExtension, ToSql, params};

use super::{
    super::{Error, Lost, Range, Result, Revs, TurnText, now, seal::Seal},
    queries, values,
};
use crate::chat::{Entry, NodeId, RequestId, SessionId, Turn, TurnId, UserId};

/// The `rev` of each session that there is.
pub(super) fn revs(connection: &Connection, ids: &[SessionId]) -> Result<Revs> {
    let mut statement = connection.prepare_cached(queries::SESSION_REV)?;
    let mut revs = Vec::with_capacity(ids.len());
    for id in ids {
        let rev: Option<u64> = statement.query_row([id], |row| row.get(0)).optional()?;
        revs.extend(rev.map(|rev| (*id, rev)));
    }
    Ok(revs)
}

/// Entries of a log, in order.
pub(super) fn entries(connection: &Connection, session: SessionId, range: Range, seal: &Seal) -> Result<Vec<Entry>> {
    match range {
        // No log is that long: a place that does not fit lies behind its end.
        Range::After(seq, limit) => {
            let seq = i64::try_from(seq).unwrap_or(i64::MAX);
            collect(connection, queries::ENTRIES_AFTER, &[&session, &seq, &limit], seal)
        }
        Range::Before(seq, limit) => {
            let seq = i64::try_from(seq).unwrap_or(i64::MAX);
            let mut entries = collect(connection, queries::ENTRIES_BEFORE, &[&session, &seq, &limit], seal)?;
            entries.reverse();
            Ok(entries)
        }
        Range::Last(limit) => entries(connection, session, Range::Before(u64::MAX, limit), seal),
    }
}

fn collect(connection: &Connection, sql: &str, params: &[&dyn ToSql], seal: &Seal) -> Result<Vec<Entry>> {
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_and_then(params, |row| values::entry(row, seal))?.collect()
}

/// The entry that a user's request has made.
pub(super) fn entry_of(
    connection: &Connection,
    user: &UserId,
    client_id: RequestId,
    seal: &Seal,
) -> Result<Option<Entry>> {
    let mut statement = connection.prepare_cached(queries::ENTRY_OF_CLIENT)?;
    let mut rows = statement.query(params![user, client_id.as_bytes()])?;
    rows.next()?.map(|row| values::entry(row, seal)).transpose()
}

/// The turn that `sql`, with one id bound, finds.
pub(super) fn turn(connection: &Connection, sql: &str, id: impl ToSql) -> Result<Option<Turn>> {
    Ok(connection.prepare_cached(sql)?.query_row([id], values::turn).optional()?)
}

/// The turns of a session that have not ended, in the order of its queue.
pub(super) fn open_turns(connection: &Connection, session: SessionId) -> Result<Vec<Turn>> {
    let mut statement = connection.prepare_cached(queries::TURNS_WAITING)?;
    let waiting = statement.query_map([session], values::turn)?;
    let running = turn(connection, queries::TURN_RUNNING, session)?;
    Ok(running.into_iter().map(Ok).chain(waiting).collect::<rusqlite::Result<_>>()?)
}

/// Whether a turn runs, and how long its text is.
pub(super) fn turn_length(connection: &Connection, id: TurnId) -> Result<Option<(bool, u64)>> {
    let mut statement = connection.prepare_cached(queries::TURN_LENGTH)?;
    Ok(statement.query_row([id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

/// The text of a turn's log from an offset on. One inside a character moves back to its beginning, and one behind
/// the end to the end.
pub(super) fn turn_text(connection: &Connection, id: TurnId, offset: u64, seal: &Seal) -> Result<TurnText> {
    let (running, length) = turn_length(connection, id)?.ok_or(Error::NotFound)?;
    if !running || offset >= length {
        return Ok(TurnText { offset: offset.min(length), text: String::new() });
    }
    chunks(connection, id, offset, seal)
}

/// What the chunks of a turn hold from an offset on.
pub(super) fn chunks(connection: &Connection, id: TurnId, offset: u64, seal: &Seal) -> Result<TurnText> {
    let mut statement = connection.prepare_cached(queries::CHUNKS_FROM)?;
    let mut rows = statement.query(params![id, offset])?;
    let mut found: Option<TurnText> = None;
    while let Some(row) = rows.next()? {
        let begins: u64 = row.get(0)?;
        let sealed: Vec<u8> = row.get(1)?;
        let chunk = seal.open_text(values::chunk_place(&values::chunk_row(id, begins)), &sealed)?;
        match &mut found {
            Some(found) => found.text.push_str(&chunk),
            None => {
                let into = usize::try_from(offset.saturating_sub(begins)).unwrap_or(usize::MAX);
                let skip = chunk.floor_char_boundary(into);
                let text = chunk.get(skip..).unwrap_or_default().to_owned();
                found = Some(TurnText { offset: begins + u64::try_from(skip).unwrap_or_default(), text });
            }
        }
    }
    Ok(found.unwrap_or(TurnText { offset, text: String::new() }))
}

/// What nobody takes care of.
pub(super) fn lost(connection: &Connection, node: NodeId, limit: u32) -> Result<Lost> {
    let mut statement = connection.prepare_cached(queries::TURNS_LOST)?;
    let turns = statement.query_map(params![now(), node, limit], values::turn)?.collect::<rusqlite::Result<_>>()?;
    let mut statement = connection.prepare_cached(queries::SESSIONS_LOST)?;
    let sessions = statement.query_map([limit], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(Lost { turns, sessions })
}
