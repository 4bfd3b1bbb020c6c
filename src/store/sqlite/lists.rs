//! Reads of many sessions.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{
    super::{ListSessions, Order, Page, Place, Result, Revs, seal::Seal},
    queries, sessions, values,
};
use crate::chat::{Session, SessionId, Timestamp, UserId};

/// Before the first session of any list.
const START: Place = Place { at: Timestamp(i64::MAX), id: SessionId(Uuid::max()) };

/// One page of a user's sessions.
pub(super) fn page(connection: &Connection, ask: &ListSessions, seal: &Seal) -> Result<Page> {
    // One more than asked for tells whether more follow.
    let limit = ask.limit.saturating_add(1);
    let after = ask.after.unwrap_or(START);
    let mut sessions = match ask.order {
        Order::Activity => by_activity(connection, &ask.user_id, Some(after), limit, seal)?,
        Order::Created => {
            let mut statement = connection.prepare_cached(queries::SESSIONS_BY_START)?;
            let params = params![ask.user_id, after.at, after.id, limit];
            statement.query_and_then(params, |row| values::session(row, seal))?.collect::<Result<_>>()?
        }
    };
    let more = sessions.len() > usize::try_from(ask.limit).unwrap_or(usize::MAX);
    if more {
        sessions.pop();
    }
    let mut statement = connection.prepare_cached(queries::SESSIONS_COUNT)?;
    let total = statement.query_row([&ask.user_id], |row| row.get(0))?;
    Ok(Page { sessions, more, total })
}

/// A user's sessions behind a place, latest activity first.
pub(super) fn by_activity(
    connection: &Connection,
    user: &UserId,
    after: Option<Place>,
    limit: u32,
    seal: &Seal,
) -> Result<Vec<Session>> {
    let Place { at, id } = after.unwrap_or(START);
    let mut statement = connection.prepare_cached(queries::SESSIONS_BY_ACTIVITY)?;
    let params = params![user, sessions::quarter(at), at, id, limit];
    statement.query_and_then(params, |row| values::session(row, seal))?.collect()
}

/// Active sessions in which nothing has happened since a moment, and that wait for nothing.
pub(super) fn idle(connection: &Connection, since: Timestamp, limit: u32) -> Result<Vec<SessionId>> {
    let mut statement = connection.prepare_cached(queries::SESSIONS_IDLE)?;
    let rows = statement.query_map(params![sessions::quarter(since), since, limit], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The `rev` of each user's sessions with the latest activity.
pub(super) fn user_revs(connection: &Connection, users: Vec<UserId>, limit: u32) -> Result<Vec<(UserId, Revs)>> {
    let mut statement = connection.prepare_cached(queries::SESSIONS_REVS)?;
    let mut revs = Vec::with_capacity(users.len());
    for user in users {
        let rows = statement.query_map(params![user, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let of_user = rows.collect::<rusqlite::Result<_>>()?;
        revs.push((user, of_user));
    }
    Ok(revs)
}
