//! The keys that this file is sealed with: compared when it opens, and forgotten when nothing is sealed with them.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::{
    super::{
        Error, Result,
        rotation::SealedWith,
        seal::{
            Seal, check,
            check::{Held, Unreadable},
        },
    },
    OpenError, queries, reseal,
};

/// The first version of a file that says what it is sealed with.
pub(super) const SINCE_VERSION: usize = 4;

/// Compares the file's keys with the configured ones, and adds the current one.
///
/// # Errors
/// A key is missing or is another one; the database fails.
pub(super) fn compare(connection: &mut Connection, seal: &Seal) -> std::result::Result<(), OpenError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut held = held(&transaction)?;
    if held.is_empty() {
        held = found(&transaction, seal)?;
        held.iter().try_for_each(|held| add(&transaction, held))?;
    }
    if let Some(added) = check::examine(seal, &held)? {
        add(&transaction, &added)?;
    }
    Ok(transaction.commit()?)
}

/// What the file says of its keys.
pub(super) fn held(connection: &Connection) -> rusqlite::Result<Vec<Held>> {
    let mut statement = connection.prepare_cached(queries::SEAL_KEYS)?;
    let rows = statement.query_map([], |row| Ok(Held { id: row.get(0)?, proof: row.get(1)? }))?;
    rows.collect()
}

fn add(connection: &Connection, held: &Held) -> rusqlite::Result<()> {
    connection.prepare_cached(queries::SEAL_KEY_ADD)?.execute(params![held.id, held.proof]).map(drop)
}

/// Looks for the keys of a file that was made before it said: once, at the start that brings it to this version.
fn found(connection: &Connection, seal: &Seal) -> std::result::Result<Vec<Held>, OpenError> {
    let some: Option<i64> = connection.query_row("SELECT 1 FROM sessions LIMIT 1", [], |row| row.get(0)).optional()?;
    if some.is_none() {
        return Ok(Vec::new());
    }
    let ids = reseal::keys_in_use(connection, seal).map_err(|err| OpenError::Database(Box::new(err)))?;
    let configured: Vec<u32> = seal.ids().collect();
    if let Some((id, _)) = ids.iter().find(|(id, opens)| !**opens && configured.contains(id)) {
        return Err(Unreadable::Wrong(*id).into());
    }
    Ok(check::made_up(seal, ids.keys().copied())?)
}

/// What [`super::Store::sealed_with`] answers.
pub(super) fn sealed_with(connection: &Connection, current: u32) -> Result<SealedWith> {
    let keys = held(connection)?.into_iter().map(|held| held.id).collect();
    let rows: Option<u64> = connection.prepare_cached(queries::SEALED_ABOUT)?.query_row([], |row| row.get(0))?;
    Ok(SealedWith { current, keys, rows: rows.unwrap_or_default() })
}

/// Forgets every key but the current one.
pub(super) fn retire(connection: &Connection, seal: &Seal) -> Result<()> {
    let settled = check::settled(seal).map_err(|err| Error::Database(Box::new(err)))?;
    connection.prepare_cached(queries::SEAL_KEYS_FORGET)?.execute([])?;
    Ok(add(connection, &settled)?)
}
