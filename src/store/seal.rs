//! Encryption at rest: what the store keeps of people's words goes through a [`Seal`].
//!
//! A sealed value is a key id (4 bytes, big endian) and a payload. Key id 0 is plain bytes. Any other id names a
//! configured AES-256-GCM key (NIST SP 800-38D); its payload is a 12-byte random nonce, the ciphertext and a
//! 16-byte tag, and the place of the value (table, row, field) is bound to it as associated data, so that a value
//! that was moved to another row does not open. It knows no database.

use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};

use super::{Error, Result};
use crate::config::secret::Secret;

/// The key id of plain bytes.
const PLAIN: u32 = 0;

/// One configured key: `{ id = 1, key = "<base64 of 32 random bytes>" }`.
///
/// One key may seal 2^32 values at most, because nonces are random (SP 800-38D, section 8.3).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// its name in every value that it sealed; 1 or more, never used again for another key
    pub id: u32,
    /// standard base64 of exactly 32 bytes
    pub key: Secret,
}

/// Why a list of keys cannot be used. The server must not start then.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// 0 means plain bytes
    #[error("encryption key id 0 is reserved")]
    Reserved,
    /// two keys have one id
    #[error("encryption key id {0} is configured twice")]
    Twice(u32),
    /// not base64 of 32 bytes
    #[error("encryption key {0} is not base64 of exactly 32 bytes")]
    Length(u32),
}

/// Where a sealed value is kept.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// the table
    pub table: &'static str,
    /// the row's id, as bytes
    pub row: &'a [u8],
    /// the column
    pub field: &'static str,
}

impl Place<'_> {
    /// The associated data: no two places share it, because neither names nor a separator can hold a NUL.
    fn bytes(&self) -> Vec<u8> {
        [self.table.as_bytes(), b"\0", self.field.as_bytes(), b"\0", self.row].concat()
    }

    fn refused(&self) -> Error {
        Error::Sealed { what: format!("{}.{} of row {}", self.table, self.field, hex::encode(self.row)) }
    }
}

/// Closes values on their way into the store and opens them on their way out. Its keys are set up once.
pub struct Seal {
    keys: BTreeMap<u32, LessSafeKey>,
    current: u32,
    random: SystemRandom,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("keys", &self.keys.keys()).field("current", &self.current).finish()
    }
}

impl Seal {
    /// Takes the configured keys: the first one closes, all of them open. Without keys values are plain.
    ///
    /// # Errors
    /// A key of another length than 32 bytes, an id twice, or id 0.
    pub fn new(keys: &[Key]) -> std::result::Result<Self, KeyError> {
        let mut ready = BTreeMap::new();
        for Key { id, key } in keys {
            let bytes = STANDARD.decode(key.expose()).map_err(|_decode| KeyError::Length(*id))?;
            let unbound = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_length| KeyError::Length(*id))?;
            if *id == PLAIN {
                return Err(KeyError::Reserved);
            }
            if ready.insert(*id, LessSafeKey::new(unbound)).is_some() {
                return Err(KeyError::Twice(*id));
            }
        }
        Ok(Self { keys: ready, current: keys.first().map_or(PLAIN, |key| key.id), random: SystemRandom::new() })
    }

    /// Whether new values are kept as plain bytes.
    #[must_use]
    pub const fn plain(&self) -> bool {
        self.current == PLAIN
    }

    /// Closes a value for its place.
    ///
    /// # Errors
    /// `Sealed` when the system gives no randomness.
    pub fn close(&self, place: Place<'_>, plain: &[u8]) -> Result<Vec<u8>> {
        let mut sealed = Vec::with_capacity(size_of::<u32>() + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        sealed.extend_from_slice(&self.current.to_be_bytes());
        let Some(key) = self.keys.get(&self.current) else {
            sealed.extend_from_slice(plain);
            return Ok(sealed);
        };
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_unspecified| place.refused())?;
        let mut text = plain.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place.bytes()), &mut text)
            .map_err(|_unspecified| place.refused())?;
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut text);
        Ok(sealed)
    }

    /// Opens a value at its place.
    ///
    /// # Errors
    /// `Sealed` when its key is unknown, or when it was changed or moved. Never gives the stored bytes instead.
    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Vec<u8>> {
        let (id, payload) = sealed.split_first_chunk().ok_or_else(|| place.refused())?;
        let id = u32::from_be_bytes(*id);
        if id == PLAIN {
            return Ok(payload.to_vec());
        }
        let key = self.keys.get(&id).ok_or_else(|| place.refused())?;
        let (nonce, text) = payload.split_first_chunk().ok_or_else(|| place.refused())?;
        let mut text = text.to_vec();
        let plain = key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(place.bytes()), &mut text)
            .map_err(|_unspecified| place.refused())?
            .len();
        text.truncate(plain);
        Ok(text)
    }

    /// Opens a value that is text.
    ///
    /// # Errors
    /// As [`Self::open`], and when it is not UTF-8.
    pub fn open_text(&self, place: Place<'_>, sealed: &[u8]) -> Result<String> {
        String::from_utf8(self.open(place, sealed)?).map_err(|_utf8| place.refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Place<'_> = Place { table: "entries", row: &[7; 16], field: "content" };

    fn key(id: u32, byte: u8, length: usize) -> Key {
        Key { id, key: Secret::new(STANDARD.encode(vec![byte; length])) }
    }

    fn seal(keys: &[Key]) -> Seal {
        Seal::new(keys).unwrap()
    }

    #[test]
    fn closed_value_opens_at_its_place_and_hides_its_text() {
        let seal = seal(&[key(1, 9, 32)]);
        let closed = seal.close(HERE, "größe".as_bytes()).unwrap();
        assert_eq!(closed[..4], [0, 0, 0, 1]);
        assert!(!closed.windows(3).any(|window| window == b"gr\xc3"));
        assert_eq!(seal.open_text(HERE, &closed).unwrap(), "größe");
        assert_ne!(seal.close(HERE, "größe".as_bytes()).unwrap(), closed, "a nonce is used once");
    }

    #[test]
    fn value_that_was_moved_or_changed_does_not_open() {
        let seal = seal(&[key(1, 9, 32)]);
        let closed = seal.close(HERE, b"text").unwrap();
        let elsewhere = [
            Place { row: &[8; 16], ..HERE },
            Place { field: "metadata", ..HERE },
            Place { table: "turn_chunks", ..HERE },
        ];
        for place in elsewhere {
            assert!(matches!(seal.open(place, &closed), Err(Error::Sealed { .. })), "{place:?}");
        }
        for at in 0..closed.len() {
            let mut changed = closed.clone();
            changed[at] ^= 1;
            // Byte 3 turns key id 1 into 0: plain bytes are told apart by the caller's keys alone.
            if at == 3 {
                continue;
            }
            assert!(matches!(seal.open(HERE, &changed), Err(Error::Sealed { .. })), "byte {at}");
        }
        for length in 1..closed.len() {
            assert!(matches!(seal.open(HERE, &closed[..length]), Err(Error::Sealed { .. })), "length {length}");
        }
    }

    #[test]
    fn old_key_opens_after_rotation_and_unknown_key_is_named() {
        let old = seal(&[key(1, 9, 32)]).close(HERE, b"old").unwrap();
        let rotated = seal(&[key(2, 5, 32), key(1, 9, 32)]);
        assert_eq!(rotated.open(HERE, &old).unwrap(), b"old");
        assert_eq!(rotated.close(HERE, b"new").unwrap()[..4], [0, 0, 0, 2]);
        let error = seal(&[key(2, 5, 32)]).open(HERE, &old).unwrap_err();
        assert_eq!(error.to_string(), "stored entries.content of row 07070707070707070707070707070707 does not open");
    }

    #[test]
    fn plain_value_is_key_id_zero_and_the_bytes() {
        let plain = seal(&[]);
        assert!(plain.plain());
        assert_eq!(plain.close(HERE, b"hi").unwrap(), b"\0\0\0\0hi");
        assert_eq!(seal(&[key(1, 9, 32)]).open(HERE, b"\0\0\0\0hi").unwrap(), b"hi");
        assert!(matches!(plain.open(HERE, b"hi"), Err(Error::Sealed { .. })));
    }

    // checklist 79
    #[test]
    fn key_of_any_other_length_is_refused() {
        for length in [0, 16, 31, 33, 44] {
            assert_eq!(Seal::new(&[key(3, 1, length)]).unwrap_err(), KeyError::Length(3), "{length} bytes");
        }
        assert_eq!(Seal::new(&[Key { id: 3, key: Secret::new("ß") }]).unwrap_err(), KeyError::Length(3));
        assert_eq!(Seal::new(&[key(0, 1, 32)]).unwrap_err(), KeyError::Reserved);
        assert_eq!(Seal::new(&[key(1, 1, 32), key(1, 2, 32)]).unwrap_err(), KeyError::Twice(1));
    }
}
