//! Writes that start, extend and end turns.

use std::time::Duration;

use mongodb::bson::DateTime;
use ring::digest;

use super::{
    super::{EndTurn, EndedTurn, Error, Lease, Result, StartedTurn, TurnText, seal::Seal},
    again,
    head::{LastTurn, OpenTurn, Running, ThreadRow},
    link::Table,
    rows::{ChunkRow, DropLog, EntryRow, How, TurnRow},
    usage, values,
    work::{Decided, Draft},
};
use crate::chat::{Entry, EntryId, EntryKind, NodeId, RequestId, Sender, TurnId, TurnState};

/// A turn that is about to start.
pub(super) struct Begin<'a> {
    pub(super) open: OpenTurn,
    /// the request that asks for another reply
    pub(super) client_id: Option<RequestId>,
    pub(super) lease: &'a Lease,
}

/// Starts a turn in front of all that wait: its lease, and its reply's place at the end of the log.
pub(super) fn begin(draft: &mut Draft, begin: Begin<'_>) -> Result<StartedTurn> {
    let Begin { mut open, client_id, lease } = begin;
    let (now, head) = (draft.now, &mut draft.head);
    head.last_seq += 1;
    head.rev += 1;
    head.counters.entries += 1;
    head.active_at(now);
    let model_id = head.model_id.clone().unwrap_or_else(|| lease.default_model.clone());
    let running = Running {
        node: lease.node,
        lease_until: after(now, lease.ttl),
        reply_seq: head.last_seq,
        reply_id: lease.reply_id,
        client_id,
        model_id: model_id.clone(),
        started_at: now,
        first_token_at: None,
        length: 0,
    };
    let reply_seq = running.reply_seq;
    head.last = head.last.max(Some(LastTurn { message_seq: open.message_seq, reply_seq, id: open.id }));
    let (rev, v, user_id) = (head.rev, head.v + 1, head.user_id.clone());
    let row = reply(draft, v, &open, &running, TurnState::Running);
    open.running = Some(running);
    let turn = open.turn(draft.head.id);
    draft.head.open.insert(0, open);
    draft.row_for_now(Table::Entries, &row)?;
    Ok(StartedTurn { turn, user_id, reply_seq, model_id, rev })
}

/// The row of a reply that has no text yet.
fn reply(draft: &Draft, v: u64, open: &OpenTurn, running: &Running, state: TurnState) -> EntryRow {
    EntryRow {
        id: running.reply_id,
        v,
        session_id: draft.head.id,
        seq: running.reply_seq,
        user_id: open.user_id.clone(),
        client_id: running.client_id,
        turn_id: Some(open.id),
        reply_to: Some(open.message_seq),
        sender: Sender::Ai,
        kind: EntryKind::Text,
        content: None,
        files: None,
        metadata: None,
        state: Some(state),
        length: None,
        sha256: None,
        usage: None,
        model_id: Some(running.model_id.clone()).filter(|model_id| !model_id.is_empty()),
        segments: Vec::new(),
        rating: None,
        created_at: running.started_at,
    }
}

/// Starts the next turn of a session; a repeated call finds the one that it had started.
pub(super) fn start(mut draft: Box<Draft>, lease: &Lease) -> Result<Decided<Option<StartedTurn>>> {
    let (now, head) = (draft.now, &mut draft.head);
    let (rev, id, user_id) = (head.rev, head.id, head.user_id.clone());
    if let Some(open) = head.open.first_mut()
        && let Some(running) = &mut open.running
    {
        if running.reply_id != lease.reply_id || running.node != lease.node {
            return Ok(Decided::Same(None));
        }
        running.lease_until = after(now, lease.ttl);
        let (reply_seq, model_id) = (running.reply_seq, running.model_id.clone());
        let started = StartedTurn { turn: open.turn(id), user_id, reply_seq, model_id, rev };
        return Ok(Decided::Keep(Some(started), draft));
    }
    if head.open.is_empty() {
        return Ok(Decided::Same(None));
    }
    if !head.active() {
        return Err(Error::Ended);
    }
    let open = head.open.remove(0);
    let started = begin(&mut draft, Begin { open, client_id: None, lease })?;
    Ok(Decided::Keep(Some(started), draft))
}

/// A piece of a turn's log on its way in.
pub(super) struct Extend {
    pub(super) turn: TurnId,
    pub(super) node: NodeId,
    pub(super) piece: TurnText,
    pub(super) ttl: Duration,
}

impl Extend {
    /// Writes it, if the turn is the node's and the log ends at its offset.
    pub(super) fn decide(&self, mut draft: Box<Draft>, seal: &Seal) -> Result<Decided<bool>> {
        let (now, v) = (draft.now, draft.head.v + 1);
        let open = draft.head.open.iter_mut().find(|open| open.id == self.turn);
        let Some(running) = open.and_then(|open| open.running.as_mut()).filter(|running| running.node == self.node)
        else {
            return Ok(Decided::Same(false));
        };
        let size = u64::try_from(self.piece.text.len()).unwrap_or(u64::MAX);
        if running.length != self.piece.offset {
            return self.written_before(draft, size);
        }
        running.lease_until = after(now, self.ttl);
        if size == 0 {
            return Ok(Decided::Keep(true, draft));
        }
        running.length += size;
        running.first_token_at.get_or_insert(now);
        let row = values::chunk_row(self.turn, self.piece.offset);
        let chunk = ChunkRow {
            id: values::binary(&row),
            v,
            offset: self.piece.offset,
            text: values::close(seal, values::chunk_place(&row), self.piece.text.as_bytes())?,
            at: DateTime::from_millis(now),
        };
        draft.row_for_now(Table::TurnChunks, &chunk)?;
        Ok(Decided::Keep(true, draft))
    }

    /// Whether an earlier call with the same piece has written it, as the last one.
    fn written_before(&self, mut draft: Box<Draft>, size: u64) -> Result<Decided<bool>> {
        let until = after(draft.now, self.ttl);
        let Some(running) = draft.head.open.first_mut().and_then(|open| open.running.as_mut()) else {
            return Ok(Decided::Same(false));
        };
        if size == 0 || self.piece.offset.checked_add(size) != Some(running.length) {
            return Ok(Decided::Same(false));
        }
        let Some(log) = &draft.log else { return Ok(Decided::Log(self.turn)) };
        let from = usize::try_from(self.piece.offset).unwrap_or(usize::MAX);
        if log.text.get(from..) != Some(self.piece.text.as_str()) {
            return Ok(Decided::Same(false));
        }
        running.lease_until = until;
        Ok(Decided::Keep(true, draft))
    }
}

/// Ends a turn, once.
pub(super) fn end(mut draft: Box<Draft>, end: &EndTurn, seal: &Seal) -> Result<Decided<Option<EndedTurn>>> {
    let now = draft.now;
    let Some(at) = draft.head.open.iter().position(|open| open.id == end.turn_id) else {
        return Ok(Decided::Same(None));
    };
    let lost = |running: &Running| running.lease_until <= now;
    let running = draft.head.open.get(at).and_then(|open| open.running.as_ref());
    if end.only_lost.is_some() && !running.is_some_and(lost) {
        return Ok(Decided::Same(None));
    }
    let logged = running.map_or(0, |running| running.length);
    let text = match (&end.text, &draft.log) {
        (Some(text), _) => text.clone(),
        (None, Some(log)) => log.text.clone(),
        (None, None) if logged > 0 => return Ok(Decided::Log(end.turn_id)),
        (None, None) => String::new(),
    };
    let ran = running.is_some();
    let mut open = draft.head.open.remove(at);
    let running = match open.running.take() {
        Some(running) => running,
        None => place(&mut draft, &open),
    };
    let again = end.again.filter(|_new| text.is_empty());
    let reply = reply(&draft, draft.head.v + 1, &open, &running, end.state);
    let reply = settle(&mut draft, reply, end, text, seal)?;
    note(&mut draft, &open, Some(&running).filter(|_running| ran), &reply, end)?;
    if logged > 0 {
        draft.row(Table::TurnChunks, How::DropLog, &DropLog { turn: open.id })?;
    }
    if let (Some(reference), Some(model_id)) = (&end.thread, &reply.model_id) {
        let row = values::thread_row(draft.head.id, model_id);
        let reference = values::close(seal, values::thread_place(&row), reference.as_bytes())?;
        draft.head.threads.retain(|thread| thread.model_id != *model_id);
        draft.head.threads.push(ThreadRow { model_id: model_id.clone(), reference, reply_seq: reply.seq });
    }
    count(&mut draft, &reply, (ran && end.state == TurnState::Complete).then(|| now - running.started_at));
    let asked_again = again.is_some_and(|new| again::requeue(&mut draft, open, new));
    let waiting = draft.head.open.iter().any(|open| open.running.is_none());
    let ended = EndedTurn { reply, rev: draft.head.rev, waiting, asked_again };
    Ok(Decided::Keep(Some(ended), draft))
}

/// Gives the reply of a turn that never started a place at the end of the log.
fn place(draft: &mut Draft, open: &OpenTurn) -> Running {
    let (now, head) = (draft.now, &mut draft.head);
    head.last_seq += 1;
    head.counters.entries += 1;
    head.active_at(now);
    let reply_seq = head.last_seq;
    head.last = head.last.max(Some(LastTurn { message_seq: open.message_seq, reply_seq, id: open.id }));
    Running {
        // Nobody ran it, and no model was chosen: neither is kept.
        node: NodeId(uuid::Uuid::nil()),
        lease_until: now,
        reply_seq,
        reply_id: EntryId::new(),
        client_id: None,
        model_id: String::new(),
        started_at: now,
        first_token_at: None,
        length: 0,
    }
}

/// Gives a reply its text.
fn settle(draft: &mut Draft, mut row: EntryRow, end: &EndTurn, text: String, seal: &Seal) -> Result<Entry> {
    let sha256 = hex::encode(digest::digest(&digest::SHA256, text.as_bytes()));
    row.content = values::close_text(seal, values::entry_place(&row.id, "content"), &text)?;
    row.sha256 = values::close_text(seal, values::entry_place(&row.id, "sha256"), &sha256)?;
    row.length = Some(u64::try_from(text.len()).unwrap_or(u64::MAX));
    row.usage = end.usage.map(usage::counted);
    row.model_id = end.segments.last().map(|segment| segment.model_id.clone()).or(row.model_id);
    row.segments = if end.segments.len() > 1 { end.segments.clone() } else { Vec::new() };
    draft.row(Table::Entries, How::Put, &row)?;
    let (content, files, metadata) = (text, Vec::new(), crate::chat::Metadata::new());
    row.content = None;
    row.sha256 = None;
    Ok(Entry { content, files, metadata, sha256: Some(sha256), ..row.open(seal)? })
}

/// Writes down the turn, and what was asked of models for it.
fn note(draft: &mut Draft, open: &OpenTurn, ran: Option<&Running>, reply: &Entry, end: &EndTurn) -> Result<()> {
    let now = draft.now;
    let length = reply.length.unwrap_or_default();
    let turn = TurnRow {
        id: open.id,
        v: draft.head.v + 1,
        session_id: draft.head.id,
        user_id: open.user_id.clone(),
        message_seq: open.message_seq,
        reply_seq: reply.seq,
        state: end.state,
        length,
        node: ran.map(|running| running.node),
        model_id: ran.map(|running| running.model_id.clone()),
        created_at: open.created_at,
        started_at: ran.map(|running| running.started_at),
        first_token_at: if length > 0 { ran.and_then(|running| running.first_token_at).or(Some(now)) } else { None },
        ended_at: now,
        usage: reply.usage,
        failure: end.failure,
    };
    draft.row(Table::Turns, How::Insert, &turn)?;
    usage::charge(draft, &open.user_id, end)
}

/// Moves the session's `rev` and counters: tokens of every reply, number and time of complete ones.
fn count(draft: &mut Draft, reply: &Entry, response_ms: Option<i64>) {
    let usage = reply.usage.unwrap_or_default();
    let head = &mut draft.head;
    head.rev += 1;
    let counters = &mut head.counters;
    counters.prompt_tokens += usage.prompt_tokens;
    counters.completion_tokens += usage.completion_tokens;
    if let Some(took_ms) = response_ms {
        let took_ms = u64::try_from(took_ms).unwrap_or_default();
        counters.responses += 1;
        counters.response_ms_sum += took_ms;
        counters.response_ms_max = counters.response_ms_max.max(took_ms);
    }
}

fn after(now: i64, ttl: Duration) -> i64 {
    now.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
}
