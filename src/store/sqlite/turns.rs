//! Writes that start, extend and end turns. Each runs inside one commit.

use std::time::Duration;

use ring::digest;
use rusqlite::{Connection, OptionalExtension, ToSql, params};

use super::{
    super::{EndTurn, EndedTurn, Error, Lease, Result, StartedTurn, Thread, TurnText, now, seal::Seal},
    again, queries, reads,
    sessions::{self, Head},
    usage,
    values::{self, Ending},
};
use crate::chat::{
    Entry, EntryId, NodeId, RequestId, SessionId, SessionState, Timestamp, Turn, TurnId, TurnState, Usage, UserId,
};

/// A turn that is about to start.
pub(super) struct Queued {
    /// it has waited, and has a row
    pub(super) waited: bool,
    pub(super) id: TurnId,
    pub(super) session_id: SessionId,
    pub(super) message_seq: u64,
    /// who wrote the message
    pub(super) user_id: UserId,
    /// the request that asks for another reply to it
    pub(super) client_id: Option<RequestId>,
}

/// Starts a turn: its lease, and its reply's place at the end of the log. `head` moves on; the caller stores it.
pub(super) fn begin(
    connection: &Connection,
    queued: Queued,
    head: &mut Head,
    lease: &Lease,
    now: Timestamp,
) -> Result<StartedTurn> {
    head.last_seq += 1;
    head.rev += 1;
    let Queued { waited, id, session_id, message_seq, user_id, client_id } = queued;
    let reply_seq = head.last_seq;
    let model_id = head.model_id.clone().unwrap_or_else(|| lease.default_model.clone());
    let until = after(now, lease.ttl);
    let Lease { node, reply_id, .. } = lease;
    if waited {
        let mut start = connection.prepare_cached(queries::TURN_START)?;
        start.execute(params![id, reply_seq, node, until, model_id, now])?;
    } else {
        let mut begin = connection.prepare_cached(queries::TURN_BEGIN)?;
        begin.execute(params![id, session_id, message_seq, reply_seq, node, until, model_id, now])?;
    }
    let state = TurnState::Running;
    connection.prepare_cached(queries::REPLY_INSERT)?.execute(params![
        session_id,
        reply_seq,
        reply_id,
        user_id,
        id,
        message_seq,
        state,
        model_id,
        now,
        client_id.as_ref().map(RequestId::as_bytes)
    ])?;
    let turn = Turn {
        id,
        session_id,
        message_seq,
        reply_seq: Some(reply_seq),
        state,
        node: Some(*node),
        model_id: Some(model_id.clone()),
    };
    Ok(StartedTurn { turn, user_id: head.user_id.clone(), reply_seq, model_id, rev: head.rev })
}

/// Stores where a session's log has come to, from `before` on.
pub(super) fn grown(
    connection: &Connection,
    id: SessionId,
    head: &Head,
    before: u64,
    name: Option<&[u8]>,
) -> Result<()> {
    let now = now();
    connection.prepare_cached(queries::SESSION_GROWN)?.execute(params![
        id,
        head.rev,
        head.last_seq,
        head.last_seq - before,
        now,
        name
    ])?;
    if before == 0 || sessions::quarter(now) > head.quarter {
        connection.prepare_cached(queries::SESSION_LISTED)?.execute(params![id, sessions::quarter(now)])?;
    }
    Ok(())
}

/// Starts the next turn of a session; a repeated call finds the one that it had started.
pub(super) fn start(
    connection: &Connection,
    session_id: SessionId,
    lease: &Lease,
    seal: &Seal,
) -> Result<Option<StartedTurn>> {
    let Some(mut head) = Head::read(connection, session_id)? else { return Ok(None) };
    if let Some(running) = reads::turn(connection, queries::TURN_RUNNING, session_id)? {
        return started_before(connection, running, head, lease, seal);
    }
    let Some(next) = reads::turn(connection, queries::TURN_NEXT, session_id)? else { return Ok(None) };
    if head.state == SessionState::Ended {
        return Err(Error::Ended);
    }
    let message = entry_at(connection, session_id, next.message_seq, seal)?;
    let Turn { id, message_seq, .. } = next;
    let user_id = message.user_id;
    let queued = Queued { waited: true, id, session_id, message_seq, user_id, client_id: None };
    let before = head.last_seq;
    let started = begin(connection, queued, &mut head, lease, now())?;
    grown(connection, session_id, &head, before, None)?;
    Ok(Some(started))
}

fn started_before(
    connection: &Connection,
    running: Turn,
    head: Head,
    lease: &Lease,
    seal: &Seal,
) -> Result<Option<StartedTurn>> {
    let (Some(reply_seq), Some(model_id)) = (running.reply_seq, running.model_id.clone()) else { return Ok(None) };
    if entry_at(connection, running.session_id, reply_seq, seal)?.id != lease.reply_id {
        return Ok(None);
    }
    let until = after(now(), lease.ttl);
    let renewed = connection.prepare_cached(queries::TURN_RENEW)?.execute(params![running.id, lease.node, until])?;
    let started = StartedTurn { turn: running, user_id: head.user_id, reply_seq, model_id, rev: head.rev };
    Ok((renewed == 1).then_some(started))
}

/// A piece of a turn's log on its way in, sealed before it is queued.
pub(super) struct Extend {
    turn: TurnId,
    node: NodeId,
    piece: TurnText,
    sealed: Vec<u8>,
    ttl: Duration,
}

impl Extend {
    /// Seals the piece.
    pub(super) fn prepare(turn: TurnId, node: NodeId, piece: TurnText, ttl: Duration, seal: &Seal) -> Result<Self> {
        let row = values::chunk_row(turn, piece.offset);
        let sealed = seal.close(values::chunk_place(&row), piece.text.as_bytes())?;
        Ok(Self { turn, node, piece, sealed, ttl })
    }

    /// Writes it, if the turn is the node's and the log ends at its offset.
    pub(super) fn run(&self, connection: &Connection, seal: &Seal) -> Result<bool> {
        let now = now();
        let until = after(now, self.ttl);
        let extended = connection.prepare_cached(queries::TURN_EXTEND)?.execute(params![
            self.turn,
            self.node,
            self.piece.offset,
            self.piece.text.len(),
            until,
            now
        ])?;
        if extended == 0 {
            return self.written_before(connection, until, seal);
        }
        if !self.piece.text.is_empty() {
            let mut statement = connection.prepare_cached(queries::CHUNK_INSERT)?;
            statement.execute(params![self.turn, self.piece.offset, self.sealed])?;
        }
        Ok(true)
    }

    /// Whether an earlier call with the same piece has written it, as the last one.
    fn written_before(&self, connection: &Connection, until: Timestamp, seal: &Seal) -> Result<bool> {
        let Some((true, length)) = reads::turn_length(connection, self.turn)? else { return Ok(false) };
        if self.piece.text.is_empty()
            || self.piece.offset.checked_add(u64::try_from(self.piece.text.len()).unwrap_or(0)) != Some(length)
        {
            return Ok(false);
        }
        let mut statement = connection.prepare_cached(queries::CHUNK_AT)?;
        let sealed: Option<Vec<u8>> =
            statement.query_row(params![self.turn, self.piece.offset], |row| row.get(0)).optional()?;
        let Some(sealed) = sealed else { return Ok(false) };
        let row = values::chunk_row(self.turn, self.piece.offset);
        if seal.open(values::chunk_place(&row), &sealed)? != self.piece.text.as_bytes() {
            return Ok(false);
        }
        let renewed = connection.prepare_cached(queries::TURN_RENEW)?.execute(params![self.turn, self.node, until])?;
        Ok(renewed == 1)
    }
}

impl Ending {
    fn read(connection: &Connection, id: TurnId) -> Result<Option<Self>> {
        let mut statement = connection.prepare_cached(queries::TURN_ENDING)?;
        Ok(statement.query_row([id], values::ending).optional()?)
    }

    /// Whether nobody runs it. One process at a time has this database open, so another node is a former one.
    fn lost(&self, caller: NodeId, now: Timestamp) -> bool {
        self.turn.state == TurnState::Running
            && (self.turn.node != Some(caller) || self.lease_until.is_none_or(|until| until <= now))
    }
}

/// Ends a turn, once.
pub(super) fn end(connection: &Connection, end: &EndTurn, seal: &Seal) -> Result<Option<EndedTurn>> {
    if !end.state.ended() {
        return Err(Error::Database(format!("{:?} is not a state that a turn ends in", end.state).into()));
    }
    let (now, tokens) = (now(), end.usage.map(usage::counted));
    let Some(ending) = Ending::read(connection, end.turn_id)? else { return Ok(None) };
    if ending.turn.state.ended() || end.only_lost.is_some_and(|caller| !ending.lost(caller, now)) {
        return Ok(None);
    }
    let text = match &end.text {
        Some(text) => text.clone(),
        None => reads::chunks(connection, end.turn_id, 0, seal)?.text,
    };
    let session_id = ending.turn.session_id;
    let reply = match ending.reply {
        Some(reply) => reply,
        None => entry_at(connection, session_id, place(connection, &ending.turn, now, seal)?, seal)?,
    };
    let reply = Entry { usage: tokens, ..reply };
    let usage_place = charge(connection, &reply, end, now)?;
    connection.prepare_cached(queries::TURN_END)?.execute(params![
        end.turn_id,
        end.state,
        text.len(),
        reply.seq,
        now,
        tokens.map(|usage| usage.prompt_tokens),
        tokens.map(|usage| usage.completion_tokens),
        tokens.map(|usage| usage.estimated),
        end.failure,
        usage_place,
        end.spent.len()
    ])?;
    if ending.length > 0 {
        connection.prepare_cached(queries::CHUNKS_DELETE)?.execute([end.turn_id])?;
    }
    let asked_again = match end.again.filter(|_new| text.is_empty()) {
        Some(new) => again::requeue(connection, &ending.turn, new, now)?,
        None => false,
    };
    let reply = settle(connection, reply, end, text, seal)?;
    if let (Some(reference), Some(model_id)) = (&end.thread, &reply.model_id) {
        let thread = Thread { reference: reference.clone(), reply_seq: reply.seq };
        usage::keep_thread(connection, session_id, model_id, &thread, seal)?;
    }
    let took_ms = ending.started_at.map(|started| now.0 - started.0);
    count(connection, session_id, tokens, took_ms.filter(|_took| end.state == TurnState::Complete))?;
    let waiting = ending.waiting || asked_again;
    Ok(Some(EndedTurn { reply, rev: ending.rev + 1, waiting, asked_again }))
}

/// Writes what was asked of models for a reply, in rows that follow each other. Gives the place of the first one.
fn charge(connection: &Connection, reply: &Entry, end: &EndTurn, now: Timestamp) -> Result<Option<i64>> {
    let (session_id, asked) = (Some(reply.session_id), usage::Asked::Turn(end.turn_id));
    let account = usage::Account { user_id: &reply.user_id, session_id, asked };
    let mut first = None;
    for spent in &end.spent {
        let place = usage::insert(connection, &account, spent, now)?;
        first = first.or(place);
    }
    Ok(first)
}

/// Moves the session's `rev` and counters: tokens of every reply, number and time of complete ones.
fn count(connection: &Connection, session: SessionId, usage: Option<Usage>, response_ms: Option<i64>) -> Result<()> {
    let usage = usage.unwrap_or_default();
    connection.prepare_cached(queries::SESSION_SETTLED)?.execute(params![
        session,
        usage.prompt_tokens,
        usage.completion_tokens,
        response_ms.is_some(),
        response_ms.unwrap_or(0).max(0)
    ])?;
    Ok(())
}

/// Gives the reply of a turn that never started a place at the end of the log.
fn place(connection: &Connection, turn: &Turn, now: Timestamp, seal: &Seal) -> Result<u64> {
    let session_id = turn.session_id;
    let mut head = Head::read(connection, session_id)?.ok_or(Error::NotFound)?;
    let message = entry_at(connection, session_id, turn.message_seq, seal)?;
    let before = head.last_seq;
    head.last_seq += 1;
    let none: Option<&[u8]> = None;
    let model: Option<&str> = None;
    connection.prepare_cached(queries::REPLY_INSERT)?.execute(params![
        session_id,
        head.last_seq,
        EntryId::new(),
        message.user_id,
        turn.id,
        turn.message_seq,
        TurnState::Queued,
        model,
        now,
        none
    ])?;
    grown(connection, session_id, &head, before, None)?;
    Ok(head.last_seq)
}

/// Gives a reply its text.
fn settle(connection: &Connection, reply: Entry, end: &EndTurn, text: String, seal: &Seal) -> Result<Entry> {
    let sha256 = hex::encode(digest::digest(&digest::SHA256, text.as_bytes()));
    let last = end.segments.last().map(|segment| segment.model_id.clone());
    let settled = Entry {
        state: Some(end.state),
        length: Some(u64::try_from(text.len()).unwrap_or(u64::MAX)),
        content: text,
        model_id: last.or(reply.model_id),
        segments: if end.segments.len() > 1 { end.segments.clone() } else { Vec::new() },
        ..reply
    };
    connection.prepare_cached(queries::REPLY_SETTLE)?.execute(params![
        settled.session_id,
        settled.seq,
        values::close_text(seal, values::entry_place(&settled.id, "content"), &settled.content)?,
        settled.state,
        settled.length,
        values::close_text(seal, values::entry_place(&settled.id, "sha256"), &sha256)?,
        settled.usage.map(|usage| usage.prompt_tokens),
        settled.usage.map(|usage| usage.completion_tokens),
        settled.usage.map(|usage| usage.estimated),
        settled.model_id,
        values::segments_text(&settled.segments)?,
    ])?;
    Ok(Entry { sha256: Some(sha256), ..settled })
}

/// The entry at a place that is taken.
pub(super) fn entry_at(connection: &Connection, session: SessionId, seq: impl ToSql, seal: &Seal) -> Result<Entry> {
    let mut statement = connection.prepare_cached(queries::ENTRY_AT)?;
    let mut rows = statement.query(params![session, seq])?;
    let row = rows.next()?.ok_or(Error::NotFound)?;
    values::entry(row, seal)
}

fn after(now: Timestamp, ttl: Duration) -> Timestamp {
    Timestamp(now.0.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)))
}
