//! Writes that find, make, change, end and delete sessions. Each runs inside one commit.

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    super::{Change, Changed, Error, Open, OpenSession, Opened, Result, now, seal::Seal},
    queries, reads, values,
};
use crate::chat::{Session, SessionId, SessionState, Timestamp, UserId};

const QUARTER_MS: i64 = 15 * 60 * 1000;

/// The quarter of an hour that a moment is in. Lists are sorted by it first, so that their indexes change once in a
/// quarter and not with each message.
pub(super) const fn quarter(moment: Timestamp) -> i64 {
    moment.0 / QUARTER_MS
}

/// What a write needs to know of its session.
pub(super) struct Head {
    pub(super) user_id: UserId,
    pub(super) state: SessionState,
    pub(super) rev: u64,
    pub(super) last_seq: u64,
    pub(super) model_id: Option<String>,
    /// of its latest activity
    pub(super) quarter: i64,
    pub(super) named: bool,
    /// a turn of it runs
    pub(super) running: bool,
    /// so many of its turns wait
    pub(super) waiting: u32,
}

impl Head {
    /// Whether a turn of it runs or waits.
    pub(super) const fn busy(&self) -> bool {
        self.running || self.waiting > 0
    }

    pub(super) fn read(connection: &Connection, id: SessionId) -> Result<Option<Self>> {
        let mut statement = connection.prepare_cached(queries::SESSION_HEAD)?;
        let head = statement.query_row([id], |row| {
            Ok(Self {
                user_id: row.get(0)?,
                state: row.get(1)?,
                rev: row.get(2)?,
                last_seq: row.get(3)?,
                model_id: row.get(4)?,
                quarter: row.get(5)?,
                named: row.get(6)?,
                running: row.get(7)?,
                waiting: row.get(8)?,
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
pub(super) fn open(connection: &Connection, ask: &OpenSession, seal: &Seal) -> Result<Opened> {
    let (id, ended) = match ask.open {
        Open::Reopen(id) => (id, reopen(connection, ask, id)?),
        Open::New | Open::Current => match Head::read(connection, ask.id)? {
            Some(made) if made.user_id == ask.user_id => (ask.id, None),
            Some(_foreign) => return Err(Error::NotFound),
            None => match current(connection, ask)? {
                Some(id) => (id, None),
                None => (ask.id, Some(make(connection, ask)?)),
            },
        },
    };
    let session = read(connection, id, seal)?.ok_or(Error::NotFound)?;
    let changed = ended.is_some();
    let ended = ended.into_iter().flatten().map(|id| read(connection, id, seal)?.ok_or(Error::NotFound));
    Ok(Opened { session, changed, ended: ended.collect::<Result<_>>()? })
}

/// The user's active session with the latest activity, if that is what is asked for.
fn current(connection: &Connection, ask: &OpenSession) -> Result<Option<SessionId>> {
    if ask.open == Open::New {
        return Ok(None);
    }
    Ok(active(connection, &ask.user_id)?.last().map(|(id, _slot)| *id))
}

/// Gives those that ended for it.
fn make(connection: &Connection, ask: &OpenSession) -> Result<Vec<SessionId>> {
    let now = now();
    let (slot, ended) = free_slot(connection, ask, now)?;
    let mut statement = connection.prepare_cached(queries::SESSION_INSERT)?;
    statement.execute(params![ask.id, ask.user_id, slot, now, quarter(now)])?;
    Ok(ended)
}

/// Gives those that ended for it; `None` when it is active already.
fn reopen(connection: &Connection, ask: &OpenSession, id: SessionId) -> Result<Option<Vec<SessionId>>> {
    let head = Head::read(connection, id)?.filter(|head| head.user_id == ask.user_id).ok_or(Error::NotFound)?;
    if head.state == SessionState::Active {
        return Ok(None);
    }
    let now = now();
    let (slot, ended) = free_slot(connection, ask, now)?;
    connection.prepare_cached(queries::SESSION_REOPEN)?.execute(params![id, slot, now, quarter(now)])?;
    Ok(Some(ended))
}

/// Ends the oldest active sessions until a slot is free. Gives the lowest one that is, and what ended.
fn free_slot(connection: &Connection, ask: &OpenSession, now: Timestamp) -> Result<(u32, Vec<SessionId>)> {
    let mut taken = active(connection, &ask.user_id)?;
    let active_max = ask.active_max.max(1);
    let surplus = (taken.len() + 1).saturating_sub(usize::try_from(active_max).unwrap_or(usize::MAX));
    let ended: Vec<_> = taken.drain(..surplus).map(|(id, _slot)| id).collect();
    for id in &ended {
        connection.prepare_cached(queries::SESSION_END)?.execute(params![id, now])?;
    }
    let free = (0..active_max).find(|slot| taken.iter().all(|(_id, taken)| taken != slot));
    let slot = free.ok_or_else(|| Error::Database("more sessions are active than there are slots".into()))?;
    Ok((slot, ended))
}

/// Active sessions and their slots, the one with the oldest activity first.
fn active(connection: &Connection, user: &UserId) -> Result<Vec<(SessionId, u32)>> {
    let mut statement = connection.prepare_cached(queries::SESSIONS_ACTIVE)?;
    let rows = statement.query_map([user], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Changes a session, if anything is to be other than it is.
pub(super) fn change(
    connection: &Connection,
    id: SessionId,
    owner: Option<&UserId>,
    change: &Change,
    seal: &Seal,
) -> Result<Changed> {
    let before = owned(connection, id, owner, seal)?;
    let active = before.state == SessionState::Active;
    let changed = match change {
        Change::Name(name) => rename(connection, &before, name, "user", seal)?,
        Change::BetterName(name) => {
            named_by(connection, id)?.is_none() && rename(connection, &before, name, "model", seal)?
        }
        Change::Model(_) | Change::Help(_) if !active => return Err(Error::Ended),
        Change::Model(model) => {
            before.model_id.as_ref() != Some(model)
                && connection.prepare_cached(queries::SESSION_MODEL)?.execute(params![id, model])? == 1
        }
        Change::Help(wanted) => before.help_requested != *wanted && help(connection, &before, owner, *wanted)?,
        Change::End => active && end(connection, id)?,
        Change::EndIdle { since } => {
            let silent = active && before.last_activity <= *since;
            silent && reads::open_turns(connection, id)?.is_empty() && end(connection, id)?
        }
    };
    let open_turns = match change {
        Change::End => reads::open_turns(connection, id)?,
        _ => Vec::new(),
    };
    let session = if changed { read(connection, id, seal)?.ok_or(Error::NotFound)? } else { before };
    Ok(Changed { session, changed, open_turns })
}

/// Deletes a session with all that is in it.
pub(super) fn delete(connection: &Connection, id: SessionId, owner: &UserId, seal: &Seal) -> Result<Changed> {
    let session = owned(connection, id, Some(owner), seal)?;
    let open_turns = reads::open_turns(connection, id)?;
    connection.prepare_cached(queries::USAGE_UNLINK)?.execute([id])?;
    connection.prepare_cached(queries::USAGE_UNLINK_OUTSIDE)?.execute(params![owner, id])?;
    connection.prepare_cached(queries::TURNS_DELETE)?.execute([id])?;
    connection.prepare_cached(queries::SESSION_DELETE)?.execute([id])?;
    Ok(Changed { session, changed: true, open_turns })
}

/// A session that belongs to `owner`, if anyone is named.
pub(super) fn owned(connection: &Connection, id: SessionId, owner: Option<&UserId>, seal: &Seal) -> Result<Session> {
    let session = read(connection, id, seal)?;
    session.filter(|session| owner.is_none_or(|owner| session.user_id == *owner)).ok_or(Error::NotFound)
}

fn named_by(connection: &Connection, id: SessionId) -> Result<Option<String>> {
    Ok(connection.prepare_cached(queries::SESSION_NAME_BY)?.query_row([id], |row| row.get(0))?)
}

/// Whether the name is another one; who gave it is noted in any case.
fn rename(connection: &Connection, before: &Session, name: &str, by: &str, seal: &Seal) -> Result<bool> {
    let id = before.id;
    if before.name.as_deref().unwrap_or_default() == name {
        connection.prepare_cached(queries::SESSION_KEEP_NAME)?.execute(params![id, by])?;
        return Ok(false);
    }
    let sealed = values::close_text(seal, values::session_place(&id, "name"), name)?;
    Ok(connection.prepare_cached(queries::SESSION_NAME)?.execute(params![id, sealed, by])? == 1)
}

fn help(connection: &Connection, before: &Session, owner: Option<&UserId>, wanted: bool) -> Result<bool> {
    let at = wanted.then(now);
    let by = wanted.then(|| owner.unwrap_or(&before.user_id));
    Ok(connection.prepare_cached(queries::SESSION_HELP)?.execute(params![before.id, at, by])? == 1)
}

fn end(connection: &Connection, id: SessionId) -> Result<bool> {
    Ok(connection.prepare_cached(queries::SESSION_END)?.execute(params![id, now()])? == 1)
}
