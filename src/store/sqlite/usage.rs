//! What requests to models took, and what providers call their conversations. Writes run inside one commit.

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::{
    super::{DaySpent, Result, Spend, Spent, Thread, now, seal::Seal, usage::COUNT_MAX},
    queries, values,
};
use crate::chat::{Day, SessionId, Timestamp, TurnId, Usage, UserId};

/// Whose a request was, and what for.
pub(super) struct Account<'a> {
    pub(super) user_id: &'a UserId,
    pub(super) session_id: Option<SessionId>,
    pub(super) asked: Asked,
}

/// What a request belongs to.
pub(super) enum Asked {
    Turn(TurnId),
    /// nothing; the name of its row
    Outside(Uuid),
}

/// What is counted of what a provider reported.
pub(super) fn counted(usage: Usage) -> Usage {
    let Usage { prompt_tokens, completion_tokens, estimated } = usage;
    Usage {
        prompt_tokens: prompt_tokens.min(COUNT_MAX),
        completion_tokens: completion_tokens.min(COUNT_MAX),
        estimated,
    }
}

/// Adds a row, and its numbers to the user's day. Reads nothing. Gives its place; `None` when one of that name is there.
pub(super) fn insert(
    connection: &Connection,
    account: &Account<'_>,
    spent: &Spent,
    at: Timestamp,
) -> Result<Option<i64>> {
    let Usage { prompt_tokens, completion_tokens, estimated } = counted(spent.usage);
    let cost = spent.cost.map(|cost| cost.min(COUNT_MAX));
    let (id, turn_id) = match &account.asked {
        Asked::Turn(turn_id) => (None, Some(*turn_id)),
        Asked::Outside(id) => (Some(id.as_bytes()), None),
    };
    let inserted = connection.prepare_cached(queries::USAGE_INSERT)?.execute(params![
        id,
        account.user_id,
        account.session_id,
        turn_id,
        spent.model_id,
        spent.purpose,
        prompt_tokens,
        completion_tokens,
        estimated,
        cost,
        at
    ])?;
    if inserted == 0 {
        return Ok(None);
    }
    let place = connection.last_insert_rowid();
    connection.prepare_cached(queries::USAGE_DAILY_ADD)?.execute(params![
        account.user_id,
        Day::of(at).0,
        spent.model_id,
        prompt_tokens,
        completion_tokens,
        if estimated { prompt_tokens + completion_tokens } else { 0 },
        cost
    ])?;
    Ok(Some(place))
}

/// Adds what a request outside of a turn took, unless an earlier call has.
pub(super) fn spend(connection: &Connection, spend: &Spend) -> Result<()> {
    let session: Option<SessionId> = connection
        .prepare_cached(queries::SESSION_KNOWN)?
        .query_row([spend.session_id], |row| row.get(0))
        .optional()?;
    let account = Account { user_id: &spend.user_id, session_id: session, asked: Asked::Outside(spend.id) };
    insert(connection, &account, &spend.spent, now()).map(drop)
}

/// What a user's requests took from a day on.
pub(super) fn spent(connection: &Connection, user: &UserId, since: Day) -> Result<Vec<DaySpent>> {
    let mut statement = connection.prepare_cached(queries::USAGE_DAILY)?;
    let rows = statement.query_map(params![user, since.0], |row| {
        Ok(DaySpent {
            day: Day(row.get(0)?),
            model_id: row.get(1)?,
            requests: row.get(2)?,
            prompt_tokens: row.get(3)?,
            completion_tokens: row.get(4)?,
            estimated_tokens: row.get(5)?,
            cost: row.get(6)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Keeps what the provider of a model calls a session's conversation.
pub(super) fn keep_thread(
    connection: &Connection,
    session: SessionId,
    model_id: &str,
    thread: &Thread,
    seal: &Seal,
) -> Result<()> {
    let row = values::thread_row(session, model_id);
    let reference = seal.close(values::thread_place(&row), thread.reference.as_bytes())?;
    let mut statement = connection.prepare_cached(queries::THREAD_KEEP)?;
    statement.execute(params![session, model_id, reference, thread.reply_seq])?;
    Ok(())
}

/// Reads it.
pub(super) fn thread(
    connection: &Connection,
    session: SessionId,
    model_id: &str,
    seal: &Seal,
) -> Result<Option<Thread>> {
    let mut statement = connection.prepare_cached(queries::THREAD)?;
    let found: Option<(Vec<u8>, u64)> =
        statement.query_row(params![session, model_id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((reference, reply_seq)) = found else { return Ok(None) };
    let row = values::thread_row(session, model_id);
    let reference = seal.open_text(values::thread_place(&row), &reference)?;
    Ok(Some(Thread { reference, reply_seq }))
}
