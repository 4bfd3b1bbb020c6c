//! Shares: the rows behind links to a conversation as it was.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::{
    super::{Error, NewShare, Result, Share, now, seal::Seal},
    queries, reads, sessions, values,
};
use crate::chat::{SessionId, UserId};

/// Makes a share of what the session is now; a repeated call finds the first one.
pub(super) fn share(connection: &Connection, new: &NewShare, seal: &Seal) -> Result<Share> {
    let session = sessions::owned(connection, new.session_id, Some(&new.owner), seal)?;
    if let Some(made) = read(connection, new.id, seal)? {
        return if made.session_id == session.id { Ok(made) } else { Err(Error::NotFound) };
    }
    let now = now();
    let older_max = new.shares_max.saturating_sub(1);
    connection.prepare_cached(queries::SHARES_TRIM)?.execute(params![session.id, now, older_max])?;
    let running = reads::turn(connection, queries::TURN_RUNNING, session.id)?;
    let share = Share {
        id: new.id,
        session_id: session.id,
        name: session.name,
        last_seq: session.last_seq,
        running_seq: running.and_then(|running| running.reply_seq),
        created_at: now,
        expires_at: new.expires_at,
    };
    let name = share.name.as_deref().unwrap_or_default();
    connection.prepare_cached(queries::SHARE_INSERT)?.execute(params![
        share.id.as_bytes(),
        share.session_id,
        values::close_text(seal, values::share_place(&share.id), name)?,
        share.last_seq,
        share.running_seq,
        share.created_at,
        share.expires_at
    ])?;
    Ok(share)
}

/// A share that has not ended.
pub(super) fn shared(connection: &Connection, id: Uuid, seal: &Seal) -> Result<Option<Share>> {
    let now = now();
    let share = read(connection, id, seal)?;
    Ok(share.filter(|share| share.expires_at.is_none_or(|expires_at| expires_at > now)))
}

/// The newest share of each session that has one that has not ended.
pub(super) fn of_sessions(connection: &Connection, ids: &[SessionId], seal: &Seal) -> Result<Vec<Share>> {
    let now = now();
    let mut statement = connection.prepare_cached(queries::SHARE_OF_SESSION)?;
    let mut shares = Vec::new();
    for id in ids {
        let mut rows = statement.query(params![id, now])?;
        shares.extend(rows.next()?.map(|row| values::share(row, seal)).transpose()?);
    }
    Ok(shares)
}

/// Deletes the shares of a session.
pub(super) fn unshare(connection: &Connection, id: SessionId, owner: &UserId, seal: &Seal) -> Result<u64> {
    sessions::owned(connection, id, Some(owner), seal)?;
    let deleted = connection.prepare_cached(queries::SHARES_DELETE)?.execute([id])?;
    Ok(u64::try_from(deleted).unwrap_or(u64::MAX))
}

fn read(connection: &Connection, id: Uuid, seal: &Seal) -> Result<Option<Share>> {
    let mut statement = connection.prepare_cached(queries::SHARE)?;
    let mut rows = statement.query([id.as_bytes()])?;
    rows.next()?.map(|row| values::share(row, seal)).transpose()
}
