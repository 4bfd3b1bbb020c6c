//! How the words of [`crate::chat`] lie in documents: ids as binary values, moments as milliseconds since 1970, and
//! people's words sealed, under the same names as in the other store.

use mongodb::bson::{
    Binary, RawDocumentBuf, deserialize_from_slice, serialize_to_raw_document_buf, spec::BinarySubtype,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::super::{
    Error, Result,
    seal::{Place, Seal},
};
use crate::chat::{EntryId, SessionId, TurnId};

/// A sealed value as it is stored.
pub(super) type Sealed = Binary;

pub(super) fn failed(err: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Database(Box::new(err))
}

/// A document of a row.
pub(super) fn document(row: &impl Serialize) -> Result<RawDocumentBuf> {
    serialize_to_raw_document_buf(row).map_err(failed)
}

/// A row from its document.
pub(super) fn row<T: DeserializeOwned>(document: &RawDocumentBuf) -> Result<T> {
    deserialize_from_slice(document.as_bytes()).map_err(failed)
}

pub(super) fn binary(bytes: &[u8]) -> Binary {
    Binary { subtype: BinarySubtype::Generic, bytes: bytes.to_vec() }
}

/// An id as documents hold it.
pub(super) fn id(id: Uuid) -> Binary {
    binary(id.as_bytes())
}

/// The name of a sealed value of an entry.
pub(super) fn entry_place<'a>(id: &'a EntryId, field: &'static str) -> Place<'a> {
    Place { table: "entries", row: id.0.as_bytes(), field }
}

/// The name of a sealed value of a session.
pub(super) fn session_place<'a>(id: &'a SessionId, field: &'static str) -> Place<'a> {
    Place { table: "sessions", row: id.0.as_bytes(), field }
}

/// The name of a sealed value of a share.
pub(super) fn share_place(id: &Uuid) -> Place<'_> {
    Place { table: "shares", row: id.as_bytes(), field: "name" }
}

/// The row of one chunk of a turn's log: the turn, and where its text begins.
pub(super) fn chunk_row(turn: TurnId, offset: u64) -> [u8; 24] {
    let mut row = [0; 24];
    let (id, at) = row.split_at_mut(16);
    id.copy_from_slice(turn.0.as_bytes());
    at.copy_from_slice(&offset.to_be_bytes());
    row
}

/// The name of a sealed chunk.
pub(super) fn chunk_place(row: &[u8; 24]) -> Place<'_> {
    Place { table: "turn_chunks", row, field: "text" }
}

/// The row of a thread: the session, and the model's name.
pub(super) fn thread_row(session: SessionId, model_id: &str) -> Vec<u8> {
    [session.0.as_bytes(), model_id.as_bytes()].concat()
}

/// The name of a sealed thread.
pub(super) fn thread_place(row: &[u8]) -> Place<'_> {
    Place { table: "threads", row, field: "reference" }
}

/// A value on its way in.
pub(super) fn close(seal: &Seal, place: Place<'_>, bytes: &[u8]) -> Result<Sealed> {
    seal.close(place, bytes).map(|bytes| Binary { subtype: BinarySubtype::Generic, bytes })
}

/// A text on its way in; an empty one takes no room.
pub(super) fn close_text(seal: &Seal, place: Place<'_>, text: &str) -> Result<Option<Sealed>> {
    if text.is_empty() { Ok(None) } else { close(seal, place, text.as_bytes()).map(Some) }
}

/// A list or map on its way in.
pub(super) fn close_json(seal: &Seal, place: Place<'_>, value: &impl Serialize) -> Result<Option<Sealed>> {
    close(seal, place, &serde_json::to_vec(value).map_err(failed)?).map(Some)
}

pub(super) fn open_text(seal: &Seal, place: Place<'_>, stored: Option<&Sealed>) -> Result<Option<String>> {
    stored.map(|stored| seal.open_text(place, &stored.bytes)).transpose()
}

pub(super) fn open_json<T>(seal: &Seal, place: Place<'_>, stored: Option<&Sealed>) -> Result<T>
where
    T: DeserializeOwned + Default,
{
    match stored {
        Some(stored) => serde_json::from_slice(&seal.open(place, &stored.bytes)?).map_err(failed),
        None => Ok(T::default()),
    }
}
