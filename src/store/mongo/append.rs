//! The write that adds an entry, and with it queues or starts its turn.

use super::{
    super::{Appended, Error, NewEntry, NewTurn, Result, StartedTurn, seal::Seal, sealed::Closed},
    head::OpenTurn,
    link::Table,
    rows::{EntryRow, How},
    turns::{self, Begin},
    values,
    work::{Decided, Draft},
};
use crate::chat::{Entry, Timestamp};

/// An entry whose sealed fields are ready: they do not change however often it is decided about.
pub(super) struct Append {
    entry: NewEntry,
    closed: Closed,
}

impl Append {
    /// Seals what is to be sealed.
    pub(super) fn prepare(entry: NewEntry, seal: &Seal) -> Result<Self> {
        let closed = entry.close(seal)?;
        Ok(Self { entry, closed })
    }

    /// Adds it.
    pub(super) fn decide(&self, mut draft: Box<Draft>, _seal: &Seal) -> Result<Decided<Appended>> {
        let head = &mut draft.head;
        if head.user_id != self.entry.owner {
            return Err(Error::NotFound);
        }
        if !head.active() {
            return Err(Error::Ended);
        }
        let now = draft.now;
        head.last_seq += 1;
        head.rev += 1;
        head.counters.entries += 1;
        head.filled = true;
        head.active_at(now);
        let named = head.name.is_some();
        if !named {
            head.name = self.closed.name.clone().map(values::of_bytes);
        }
        let (seq, rev, v) = (head.last_seq, head.rev, head.v + 1);
        draft.row(Table::Entries, How::Insert, &self.row(seq, v, now))?;
        let started = match &self.entry.turn {
            Some(turn) => self.queue(turn, &mut draft)?,
            None => None,
        };
        let name = self.entry.session_name.clone().filter(|_name| !named);
        let appended = Appended { entry: self.entry.stored(seq, Timestamp(now)), rev, name, duplicate: false, started };
        Ok(Decided::Keep(appended, draft))
    }

    fn queue(&self, turn: &NewTurn, draft: &mut Draft) -> Result<Option<StartedTurn>> {
        let head = &mut draft.head;
        let queued = head.open.iter().filter(|open| open.running.is_none()).count();
        let full = queued >= usize::try_from(turn.queued_max).unwrap_or(usize::MAX);
        if !head.open.is_empty() && full {
            return Err(Error::QueueFull);
        }
        let (message_seq, user_id, created_at) = (head.last_seq, self.entry.user_id.clone(), draft.now);
        let open = OpenTurn { id: turn.id, message_seq, user_id, created_at, running: None };
        if !head.open.is_empty() {
            head.open.push(open);
            return Ok(None);
        }
        turns::begin(draft, Begin { open, client_id: None, lease: &turn.lease }).map(Some)
    }

    fn row(&self, seq: u64, v: u64, created_at: i64) -> EntryRow {
        let entry = &self.entry;
        EntryRow {
            id: entry.id,
            v,
            session_id: entry.session_id,
            seq,
            user_id: entry.user_id.clone(),
            client_id: entry.client_id,
            turn_id: entry.turn.as_ref().map(|turn| turn.id),
            reply_to: None,
            sender: entry.sender,
            kind: entry.kind,
            content: self.closed.content.clone().map(values::of_bytes),
            files: self.closed.files.clone().map(values::of_bytes),
            metadata: self.closed.metadata.clone().map(values::of_bytes),
            state: None,
            length: None,
            sha256: None,
            usage: None,
            model_id: None,
            segments: Vec::new(),
            rating: None,
            created_at,
        }
    }
}

/// The answer to a request that made its entry before. One that made a reply was another request, and makes no message.
pub(super) fn repeated(entry: Entry, rev: u64) -> Result<Appended> {
    if entry.reply_to.is_some() {
        return Err(Error::IdTaken);
    }
    Ok(Appended { entry, rev, name: None, duplicate: true, started: None })
}
