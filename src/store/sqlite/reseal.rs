//! Renews what is sealed in the rows of this file. Looking is done beside the writer, which then replaces what is
//! still as it was seen.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, ToSql, params, types::Value};
use uuid::Uuid;

use super::{
    super::{
        Error, Result,
        rotation::{Position, Resealed},
        seal::{self, PLAIN, Place, Seal},
    },
    queries, values,
};
use crate::chat::{SessionId, TurnId};

/// Bytes of changed values after which a batch is full, however few rows it has.
const BATCH_BYTES: usize = 1024 * 1024;

/// Rows that are read at a time where nothing is written.
const ROWS_READ: u32 = 1000;

/// What makes a row's name in its seal, from its first columns: its place, then what is below.
#[derive(Clone, Copy)]
enum Name {
    /// an id, behind the row's number
    Id,
    /// an id, which the rows are sorted by
    Key,
    /// a turn's id and, behind the values, an offset
    Chunk,
    /// the place is the model's name, the second column the session's id
    Thread,
}

/// A table with sealed columns.
struct Part {
    table: &'static str,
    read: &'static str,
    name: Name,
    /// the columns behind the first two, with what replaces a value
    fields: &'static [(&'static str, &'static str)],
}

/// In the order of a pass.
const PARTS: [Part; 5] = [
    Part {
        table: "sessions",
        read: queries::SEALED_SESSIONS,
        name: Name::Key,
        fields: &[("name", queries::RESEAL_NAME), ("assist_name", queries::RESEAL_ASSIST_NAME)],
    },
    Part {
        table: "entries",
        read: queries::SEALED_ENTRIES,
        name: Name::Id,
        fields: &[
            ("content", queries::RESEAL_CONTENT),
            ("files", queries::RESEAL_FILES),
            ("metadata", queries::RESEAL_METADATA),
            ("sha256", queries::RESEAL_SHA256),
            ("rating_why", queries::RESEAL_RATING_WHY),
        ],
    },
    Part {
        table: "turn_chunks",
        read: queries::SEALED_CHUNKS,
        name: Name::Chunk,
        fields: &[("text", queries::RESEAL_CHUNK)],
    },
    Part { table: "shares", read: queries::SEALED_SHARES, name: Name::Id, fields: &[("name", queries::RESEAL_SHARE)] },
    Part {
        table: "threads",
        read: queries::SEALED_THREADS,
        name: Name::Thread,
        fields: &[("reference", queries::RESEAL_THREAD)],
    },
];

/// A value that is to be replaced.
pub(super) struct Replaced {
    sql: &'static str,
    /// the row's place, and the model's name where that is part of it
    row: (Value, Option<Value>),
    old: Vec<u8>,
    new: Vec<u8>,
}

/// Looks at the rows behind a place.
pub(super) fn look(
    connection: &Connection,
    after: Option<Position>,
    limit: u32,
    seal: &Seal,
) -> Result<(Resealed, Vec<Replaced>)> {
    let (mut found, mut changes, mut bytes) = (Resealed::default(), Vec::new(), 0);
    let next = walk(connection, after, limit.max(1), |place, stored, sql, row| {
        let id = seal::key_of(stored).unwrap_or(PLAIN);
        match seal.renew(place, stored) {
            Ok(None) => {}
            Ok(Some(new)) => {
                bytes += new.len();
                changes.push(Replaced { sql, row: row.clone(), old: stored.to_vec(), new });
                found.renewed += 1;
                *found.values.entry(seal.current()).or_default() += 1;
                return Ok(bytes < BATCH_BYTES);
            }
            Err(err) => {
                tracing::error!(error = &err as &dyn std::error::Error, "value is not sealed with the current key");
                found.failed += 1;
            }
        }
        *found.values.entry(id).or_default() += 1;
        Ok(true)
    })?;
    (found.rows, found.next) = next;
    Ok((found, changes))
}

/// Replaces what is as it was seen. What is not was sealed meanwhile, or its row is gone.
pub(super) fn replace(connection: &Connection, found: &Resealed, changes: &[Replaced]) -> Result<Resealed> {
    let mut found = found.clone();
    for Replaced { sql, row: (row, model), old, new } in changes {
        let mut statement = connection.prepare_cached(sql)?;
        let replaced = match model {
            Some(model) => statement.execute(params![row, old, new, model])?,
            None => statement.execute(params![row, old, new])?,
        };
        found.renewed -= u64::from(replaced == 0);
        found.missed += u64::from(replaced == 0);
    }
    Ok(found)
}

/// The keys that values say they are sealed with, each with whether one of its values opens. Reads every row.
pub(super) fn keys_in_use(connection: &Connection, seal: &Seal) -> Result<BTreeMap<u32, bool>> {
    let mut keys = BTreeMap::new();
    let mut place = None;
    loop {
        let (_rows, next) = walk(connection, place, ROWS_READ, |place, stored, _sql, _row| {
            if let Some(id) = seal::key_of(stored) {
                let opens = keys.entry(id).or_insert(false);
                *opens = *opens || seal.open(place, stored).is_ok();
            }
            Ok(true)
        })?;
        place = next;
        if place.is_none() {
            return Ok(keys);
        }
    }
}

/// Shows each sealed value of the rows behind a place, at most of `limit` rows, to `see`; when that says `false`, the
/// row is the last one. Gives the number of rows, and where the next call goes on.
fn walk(
    connection: &Connection,
    after: Option<Position>,
    limit: u32,
    mut see: impl FnMut(Place<'_>, &[u8], &'static str, &(Value, Option<Value>)) -> Result<bool>,
) -> Result<(u64, Option<Position>)> {
    let Position { part: at, key } = after.unwrap_or(Position { part: 0, key: Vec::new() });
    let Some(part) = PARTS.get(usize::from(at)) else { return Ok((0, None)) };
    let mut statement = connection.prepare_cached(part.read)?;
    let behind = behind(part, &key)?;
    let mut bound: Vec<&dyn ToSql> = behind.iter().map(|value| -> &dyn ToSql { value }).collect();
    bound.push(&limit);
    let mut rows = statement.query(bound.as_slice())?;
    let (mut seen, mut last) = (0, key);
    while let Some(row) = rows.next()? {
        seen += 1;
        let name = name(part, row)?;
        let place = place(part, row)?;
        last = key_of_row(part, row)?;
        let mut more = true;
        for (at, (field, sql)) in part.fields.iter().enumerate() {
            let Some(stored) = row.get_ref(2 + at)?.as_blob_or_null().map_err(rusqlite::Error::from)? else { continue };
            more &= see(Place { table: part.table, row: &name, field }, stored, sql, &place)?;
        }
        if !more {
            return Ok((seen, Some(Position { part: at, key: last })));
        }
    }
    let (part, key) = if seen < u64::from(limit) { (at + 1, Vec::new()) } else { (at, last) };
    let over = usize::from(part) >= PARTS.len();
    Ok((seen, (!over).then_some(Position { part, key })))
}

/// What the reading statement begins behind.
fn behind(part: &Part, key: &[u8]) -> Result<Vec<Value>> {
    let strange = || Error::Database("not a place in this file".into());
    Ok(match part.name {
        Name::Thread => {
            let (session, model) = key.split_at(key.len().min(size_of::<SessionId>()));
            let model = String::from_utf8(model.to_vec()).map_err(|_utf8| strange())?;
            vec![Value::Blob(session.to_vec()), Value::Text(model)]
        }
        Name::Key => vec![Value::Blob(key.to_vec())],
        Name::Id | Name::Chunk if key.is_empty() => vec![Value::Integer(0)],
        Name::Id | Name::Chunk => {
            vec![Value::Integer(i64::from_be_bytes(key.try_into().map_err(|_length| strange())?))]
        }
    })
}

/// The row's place in the order of reading.
fn key_of_row(part: &Part, row: &Row<'_>) -> Result<Vec<u8>> {
    Ok(match row.get(0)? {
        Value::Integer(rowid) => rowid.to_be_bytes().to_vec(),
        Value::Text(model) => {
            let session: SessionId = row.get(1)?;
            values::thread_row(session, &model)
        }
        Value::Blob(id) => id,
        Value::Null | Value::Real(_) => {
            return Err(Error::Database(format!("a row of {} has no place", part.table).into()));
        }
    })
}

/// What a replacing statement finds the row by.
fn place(part: &Part, row: &Row<'_>) -> Result<(Value, Option<Value>)> {
    Ok(match part.name {
        Name::Thread => (row.get(1)?, Some(row.get(0)?)),
        Name::Id | Name::Key | Name::Chunk => (row.get(0)?, None),
    })
}

/// The row's name in its seal.
fn name(part: &Part, row: &Row<'_>) -> Result<Vec<u8>> {
    Ok(match part.name {
        Name::Id | Name::Key => Uuid::from_bytes(row.get(1)?).as_bytes().to_vec(),
        Name::Chunk => values::chunk_row(row.get::<_, TurnId>(1)?, row.get(2 + part.fields.len())?).to_vec(),
        Name::Thread => values::thread_row(row.get(1)?, &row.get::<_, String>(0)?),
    })
}
