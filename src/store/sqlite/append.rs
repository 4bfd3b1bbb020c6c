//! The write that adds an entry, and with it queues or starts its turn.

use rusqlite::{Connection, params};

use super::{
    super::{Appended, Error, NewEntry, NewTurn, Result, StartedTurn, now, seal::Seal, sealed::Closed},
    queries, reads,
    sessions::Head,
    turns, values,
};
use crate::chat::{Entry, SessionState, Timestamp};

/// An entry whose sealed columns are ready: the sealing is done before it is queued, off the writer's thread.
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

    /// Stores it, unless it is there. That is seen by the unique indexes as the row goes in: nearly every call is
    /// the first one, and pays for no look-up.
    pub(super) fn run(&self, connection: &Connection, seal: &Seal) -> Result<Appended> {
        let session_id = self.entry.session_id;
        let head = Head::read(connection, session_id)?.filter(|head| head.user_id == self.entry.owner);
        let Some(mut head) = head else { return self.repeated(connection, seal, Error::NotFound) };
        if head.state == SessionState::Ended {
            return self.repeated(connection, seal, Error::Ended);
        }
        if self.entry.turn.as_ref().is_some_and(|turn| head.busy() && head.waiting >= turn.queued_max) {
            return self.repeated(connection, seal, Error::QueueFull);
        }
        let now = now();
        let before = head.last_seq;
        head.last_seq += 1;
        head.rev += 1;
        let (seq, rev) = (head.last_seq, head.rev);
        if !self.insert(connection, seq, now)? {
            let taken = Error::Database("an entry with other owners has this id".into());
            return self.repeated(connection, seal, taken);
        }
        let started = match &self.entry.turn {
            Some(turn) => self.queue(connection, turn, &mut head, now)?,
            None => None,
        };
        turns::grown(connection, session_id, &head, before, self.closed.name.as_deref())?;
        let name = self.entry.session_name.clone().filter(|_| !head.named);
        Ok(Appended { entry: self.entry.stored(seq, now), rev, name, duplicate: false, started })
    }

    /// What the first call with this request or row has made; without one, `refusal`.
    fn repeated(&self, connection: &Connection, seal: &Seal, refusal: Error) -> Result<Appended> {
        let entry = self.first(connection, seal)?.ok_or(refusal)?;
        let rev = connection.prepare_cached(queries::SESSION_REV)?.query_row([entry.session_id], |row| row.get(0))?;
        Ok(Appended { entry, rev, name: None, duplicate: true, started: None })
    }

    /// The entry that an earlier call with the same request, or the same row, has made. A request that made a reply
    /// was another one, and makes no message.
    fn first(&self, connection: &Connection, seal: &Seal) -> Result<Option<Entry>> {
        if let Some(client_id) = self.entry.client_id
            && let Some(first) = reads::entry_of(connection, &self.entry.user_id, client_id, seal)?
        {
            return if first.reply_to.is_none() { Ok(Some(first)) } else { Err(Error::IdTaken) };
        }
        let mut statement = connection.prepare_cached(queries::ENTRY_OF_ID)?;
        let mut rows = statement.query([self.entry.id])?;
        let same = rows.next()?.map(|row| values::entry(row, seal)).transpose()?;
        Ok(same.filter(|same| same.user_id == self.entry.user_id && same.session_id == self.entry.session_id))
    }

    /// Stores the row; `false` when its request or its id is there.
    fn insert(&self, connection: &Connection, seq: u64, now: Timestamp) -> Result<bool> {
        let entry = &self.entry;
        let inserted = connection.prepare_cached(queries::ENTRY_INSERT)?.execute(params![
            entry.session_id,
            seq,
            entry.id,
            entry.user_id,
            entry.client_id.as_ref().map(uuid::Uuid::as_bytes),
            entry.turn.as_ref().map(|turn| turn.id),
            entry.sender,
            entry.kind,
            self.closed.content,
            self.closed.files,
            self.closed.metadata,
            now,
        ])?;
        Ok(inserted == 1)
    }

    fn queue(
        &self,
        connection: &Connection,
        turn: &NewTurn,
        head: &mut Head,
        now: Timestamp,
    ) -> Result<Option<StartedTurn>> {
        let session_id = self.entry.session_id;
        let message_seq = head.last_seq;
        if head.busy() {
            let mut queue = connection.prepare_cached(queries::TURN_QUEUE)?;
            queue.execute(params![turn.id, session_id, message_seq, now])?;
            return Ok(None);
        }
        let user_id = self.entry.user_id.clone();
        let queued = turns::Queued { waited: false, id: turn.id, session_id, message_seq, user_id, client_id: None };
        turns::begin(connection, queued, head, &turn.lease, now).map(Some)
    }
}
