//! What of people's words is sealed, and under which names: the same in every store. It knows no database.

use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    Error, NewEntry, Result,
    seal::{Place, Seal},
};
use crate::chat::{Entry, EntryId, SessionId, Timestamp, TurnId};

/// The name of a sealed value of an entry.
pub(in crate::store) fn entry_place<'a>(id: &'a EntryId, field: &'static str) -> Place<'a> {
    Place { table: "entries", row: id.0.as_bytes(), field }
}

/// The name of a sealed value of a session.
pub(in crate::store) fn session_place<'a>(id: &'a SessionId, field: &'static str) -> Place<'a> {
    Place { table: "sessions", row: id.0.as_bytes(), field }
}

/// The name of a sealed value of a share.
pub(in crate::store) fn share_place(id: &Uuid) -> Place<'_> {
    Place { table: "shares", row: id.as_bytes(), field: "name" }
}

/// The row of one chunk of a turn's log: the turn, and where its text begins.
pub(in crate::store) fn chunk_row(turn: TurnId, offset: u64) -> [u8; 24] {
    let mut row = [0; 24];
    let (id, at) = row.split_at_mut(16);
    id.copy_from_slice(turn.0.as_bytes());
    at.copy_from_slice(&offset.to_be_bytes());
    row
}

/// The name of a sealed chunk.
pub(in crate::store) fn chunk_place(row: &[u8; 24]) -> Place<'_> {
    Place { table: "turn_chunks", row, field: "text" }
}

/// The row of a thread: the session, and the model's name.
pub(in crate::store) fn thread_row(session: SessionId, model_id: &str) -> Vec<u8> {
    [session.0.as_bytes(), model_id.as_bytes()].concat()
}

/// The name of a sealed thread.
pub(in crate::store) fn thread_place(row: &[u8]) -> Place<'_> {
    Place { table: "threads", row, field: "reference" }
}

/// A text on its way in; an empty one takes no room.
pub(in crate::store) fn close_text(seal: &Seal, place: Place<'_>, text: &str) -> Result<Option<Vec<u8>>> {
    if text.is_empty() { Ok(None) } else { seal.close(place, text.as_bytes()).map(Some) }
}

/// A list or map on its way in.
pub(in crate::store) fn close_json(seal: &Seal, place: Place<'_>, value: &impl Serialize) -> Result<Option<Vec<u8>>> {
    let json = serde_json::to_vec(value).map_err(|err| Error::Database(Box::new(err)))?;
    seal.close(place, &json).map(Some)
}

/// A text on its way out.
pub(in crate::store) fn open_text(seal: &Seal, place: Place<'_>, stored: Option<&[u8]>) -> Result<Option<String>> {
    stored.map(|stored| seal.open_text(place, stored)).transpose()
}

/// A list or map on its way out; one that was not stored is empty.
pub(in crate::store) fn open_json<T>(seal: &Seal, place: Place<'_>, stored: Option<&[u8]>) -> Result<T>
where
    T: DeserializeOwned + Default,
{
    match stored {
        Some(stored) => {
            serde_json::from_slice(&seal.open(place, stored)?).map_err(|err| Error::Database(Box::new(err)))
        }
        None => Ok(T::default()),
    }
}

/// The sealed fields of an entry on its way in, and the name that it gives its session.
#[derive(Clone)]
pub(in crate::store) struct Closed {
    pub(in crate::store) content: Option<Vec<u8>>,
    pub(in crate::store) files: Option<Vec<u8>>,
    pub(in crate::store) metadata: Option<Vec<u8>>,
    pub(in crate::store) name: Option<Vec<u8>>,
}

impl NewEntry {
    /// Seals what is to be sealed. What is empty takes no room.
    pub(in crate::store) fn close(&self, seal: &Seal) -> Result<Closed> {
        let place = |field| entry_place(&self.id, field);
        let files = match self.files.as_slice() {
            [] => None,
            files => close_json(seal, place("files"), &files)?,
        };
        let metadata = match &self.metadata {
            metadata if metadata.is_empty() => None,
            metadata => close_json(seal, place("metadata"), metadata)?,
        };
        let name = match &self.session_name {
            Some(name) => close_text(seal, session_place(&self.session_id, "name"), name)?,
            None => None,
        };
        Ok(Closed { content: close_text(seal, place("content"), &self.content)?, files, metadata, name })
    }

    /// The entry as it is stored.
    pub(in crate::store) fn stored(&self, seq: u64, created_at: Timestamp) -> Entry {
        Entry {
            session_id: self.session_id,
            seq,
            id: self.id,
            user_id: self.user_id.clone(),
            client_id: self.client_id,
            turn_id: self.turn.as_ref().map(|turn| turn.id),
            reply_to: None,
            sender: self.sender,
            kind: self.kind,
            content: self.content.clone(),
            files: self.files.clone(),
            metadata: self.metadata.clone(),
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
