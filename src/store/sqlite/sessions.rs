//! Writes that find, make, end and reopen sessions. Each runs inside one commit.

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    super::{Error, Open, OpenSession, Result, now, seal::Seal},
    queries, values,
};
use crate::chat::{Session, SessionId, SessionState, Timestamp, UserId};

/// What a write needs to know of its session.
pub(super) struct Head {
    pub(super) user_id: UserId,
    pub(super) state: SessionState,
    pub(super) rev: u64,
    pub(super) last_seq: u64,
    pub(super) model_id: Option<String>,
}

impl Head {
    pub(super) fn read(connection: &Connection, id: SessionId) -> Result<Option<Self>> {
        let mut statement = connection.prepare_cached(queries::SESSION_HEAD)?;
        let head = statement.query_row([id], |row| {
            Ok(Self {
                user_id: row.get(0)?,
                state: row.get(1)?,
                rev: row.get(2)?,
                last_seq: row.get(3)?,
                model_id: row.get(4)?,
            })
        });
        Ok(head.optional()?)
    }
}

/// Reads a session.
pub(super) fn read(connection: &Connection, id: SessionId, seal: &Seal) -> Result<Option<Session>> {
    let mut statement = connection.prepare_cached(queries::SESSION)?;
    let mut rows = statement.query([id])?;
    rows.next()?.map(|row| values::session(row, seal)).transpose()
}

/// Finds or makes the session that is asked for.
pub(super) fn open(connection: &Connection, ask: &OpenSession, seal: &Seal) -> Result<Session> {
    let id = match ask.open {
        Open::Reopen(id) => {
            reopen(connection, ask, id)?;
            id
        }
        Open::New | Open::Current => match Head::read(connection, ask.id)? {
            Some(made) if made.user_id == ask.user_id => ask.id,
            Some(_foreign) => return Err(Error::NotFound),
            None => current(connection, ask)?.map_or_else(|| make(connection, ask), Ok)?,
        },
    };
    read(connection, id, seal)?.ok_or(Error::NotFound)
}

/// The user's active session with the latest activity, if that is what is asked for.
fn current(connection: &Connection, ask: &OpenSession) -> Result<Option<SessionId>> {
    if ask.open == Open::New {
        return Ok(None);
    }
    Ok(active(connection, &ask.user_id)?.last().map(|(id, _slot)| *id))
}

fn make(connection: &Connection, ask: &OpenSession) -> Result<SessionId> {
    let now = now();
    let slot = free_slot(connection, ask, now)?;
    connection.prepare_cached(queries::SESSION_INSERT)?.execute(params![ask.id, ask.user_id, slot, now])?;
    Ok(ask.id)
}

fn reopen(connection: &Connection, ask: &OpenSession, id: SessionId) -> Result<()> {
    let head = Head::read(connection, id)?.filter(|head| head.user_id == ask.user_id).ok_or(Error::NotFound)?;
    if head.state == SessionState::Active {
        return Ok(());
    }
    let now = now();
    let slot = free_slot(connection, ask, now)?;
    connection.prepare_cached(queries::SESSION_REOPEN)?.execute(params![id, slot, now])?;
    Ok(())
}

/// Ends the oldest active sessions until a slot is free, and gives the lowest one that is.
fn free_slot(connection: &Connection, ask: &OpenSession, now: Timestamp) -> Result<u32> {
    let mut taken = active(connection, &ask.user_id)?;
    let active_max = ask.active_max.max(1);
    let surplus = (taken.len() + 1).saturating_sub(usize::try_from(active_max).unwrap_or(usize::MAX));
    for (id, _slot) in taken.drain(..surplus) {
        connection.prepare_cached(queries::SESSION_END)?.execute(params![id, now])?;
    }
    let free = (0..active_max).find(|slot| taken.iter().all(|(_id, taken)| taken != slot));
    free.ok_or_else(|| Error::Database("more sessions are active than there are slots".into()))
}

/// Active sessions and their slots, the one with the oldest activity first.
fn active(connection: &Connection, user: &UserId) -> Result<Vec<(SessionId, u32)>> {
    let mut statement = connection.prepare_cached(queries::SESSIONS_ACTIVE)?;
    let rows = statement.query_map([user], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
