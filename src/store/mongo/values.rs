//! How the words of [`crate::chat`] lie in documents: ids as binary values, moments as milliseconds since 1970, and
//! people's words sealed, under the same names as in the other store.

use mongodb::bson::{
    Binary, RawDocumentBuf, deserialize_from_slice, serialize_to_raw_document_buf, spec::BinarySubtype,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

pub(super) use super::super::sealed::{
    chunk_place, chunk_row, entry_place, session_place, share_place, thread_place, thread_row,
};
use super::super::{
    Error, Result,
    seal::{Place, Seal},
    sealed,
};

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

/// A value on its way in.
pub(super) fn close(seal: &Seal, place: Place<'_>, bytes: &[u8]) -> Result<Sealed> {
    seal.close(place, bytes).map(of_bytes)
}

/// A text on its way in; an empty one takes no room.
pub(super) fn close_text(seal: &Seal, place: Place<'_>, text: &str) -> Result<Option<Sealed>> {
    Ok(sealed::close_text(seal, place, text)?.map(of_bytes))
}

/// A sealed value as it is stored.
pub(super) const fn of_bytes(bytes: Vec<u8>) -> Sealed {
    Binary { subtype: BinarySubtype::Generic, bytes }
}

pub(super) fn open_text(seal: &Seal, place: Place<'_>, stored: Option<&Sealed>) -> Result<Option<String>> {
    sealed::open_text(seal, place, stored.map(|stored| &*stored.bytes))
}

pub(super) fn open_json<T>(seal: &Seal, place: Place<'_>, stored: Option<&Sealed>) -> Result<T>
where
    T: DeserializeOwned + Default,
{
    sealed::open_json(seal, place, stored.map(|stored| &*stored.bytes))
}
