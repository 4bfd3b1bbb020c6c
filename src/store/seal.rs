//! Encryption at rest: what the store keeps of people's words goes through a [`Seal`].
//!
//! A sealed value is a key id (4 bytes, big endian) and a payload. Key id 0 is plain bytes. Any other id names a
//! configured AES-256-GCM key (NIST SP 800-38D); its payload is a 12-byte random nonce, the ciphertext and a
//! 16-byte tag, and the place of the value (table, row, field) is bound to it as associated data, so that a value
//! that was moved to another row does not open. It knows no database.

pub mod check;

use std::{
    collections::BTreeMap,
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use serde::{Deserialize, Serialize};

use super::{Error, Result};
use crate::config::secret::Secret;

/// The key id of plain bytes.
pub const PLAIN: u32 = 0;

/// One configured key: `{ id = 1, key = "<base64 or hex of 32 random bytes>" }`.
///
/// One key may seal 2^32 values at most, because nonces are random (SP 800-38D, section 8.3).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// its name in every value that it sealed; 1 or more, never used again for another key
    pub id: u32,
    /// exactly 32 bytes in standard base64, or in hex
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
    /// not 32 bytes
    #[error("encryption key {0} is not exactly 32 bytes in base64 or hex")]
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

    fn refused(&self, why: Why) -> Error {
        Error::Sealed { what: format!("{}.{} of row {}", self.table, self.field, hex::encode(self.row)), why }
    }
}

/// Why a stored value does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// it names a key that is not configured
    Missing(u32),
    /// it names a key that is configured, and is not what that key sealed for this place: it was changed or moved,
    /// or the key has other bytes than it had
    Changed(u32),
    /// it is plain, in a store whose values are all sealed
    Plain,
    /// it is shorter than any sealed value
    Short,
    /// it is no UTF-8, and should be text
    Text(u32),
    /// the system gave no randomness to seal it with
    Random,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(id) => write!(f, "its encryption key {id} is not configured"),
            Self::Changed(id) => write!(f, "it is not what encryption key {id}, which is configured, sealed there"),
            Self::Plain => f.write_str("it is plain text, which this store holds no more"),
            Self::Short => f.write_str("it is shorter than a sealed value"),
            Self::Text(id) => write!(f, "what encryption key {id} sealed there is not text"),
            Self::Random => f.write_str("the system gave no randomness"),
        }
    }
}

/// Which key a stored value says that it is sealed with; `None` when it is too short to say.
#[must_use]
pub fn key_of(sealed: &[u8]) -> Option<u32> {
    sealed.first_chunk().map(|id| u32::from_be_bytes(*id))
}

/// Closes values on their way into the store and opens them on their way out. Its keys are set up once.
pub struct Seal {
    keys: BTreeMap<u32, LessSafeKey>,
    current: u32,
    /// every value of the store is sealed: a plain one was put there by somebody else
    plain_over: AtomicBool,
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
            // Hex of 32 bytes would be base64 of 48.
            let bytes = hex::decode(key.expose()).or_else(|_no_hex| STANDARD.decode(key.expose()));
            let bytes = bytes.map_err(|_decode| KeyError::Length(*id))?;
            let unbound = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_length| KeyError::Length(*id))?;
            if *id == PLAIN {
                return Err(KeyError::Reserved);
            }
            if ready.insert(*id, LessSafeKey::new(unbound)).is_some() {
                return Err(KeyError::Twice(*id));
            }
        }
        let current = keys.first().map_or(PLAIN, |key| key.id);
        Ok(Self { keys: ready, current, plain_over: AtomicBool::new(false), random: SystemRandom::new() })
    }

    /// The id of the key that closes; [`PLAIN`] without one.
    #[must_use]
    pub const fn current(&self) -> u32 {
        self.current
    }

    /// The ids of the keys that open, in their order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.keys.keys().copied()
    }

    /// From now on a plain value is an error. The store says so once all its values are sealed: whoever can change its
    /// rows could else put words there that nobody sealed.
    pub fn refuse_plain(&self) {
        self.plain_over.store(true, Ordering::Relaxed);
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
        self.close_with(self.current, place, plain)
    }

    /// Closes a value with one of the keys; [`PLAIN`], or one that is not configured, leaves it plain.
    fn close_with(&self, id: u32, place: Place<'_>, plain: &[u8]) -> Result<Vec<u8>> {
        let mut sealed = Vec::with_capacity(size_of::<u32>() + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        let Some(key) = self.keys.get(&id) else {
            sealed.extend_from_slice(&PLAIN.to_be_bytes());
            sealed.extend_from_slice(plain);
            return Ok(sealed);
        };
        sealed.extend_from_slice(&id.to_be_bytes());
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_unspecified| place.refused(Why::Random))?;
        let mut text = plain.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place.bytes()), &mut text)
            .map_err(|_unspecified| place.refused(Why::Random))?;
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut text);
        Ok(sealed)
    }

    /// Opens a value at its place.
    ///
    /// # Errors
    /// `Sealed` when its key is unknown, when it was changed or moved, or when it is plain after
    /// [`Self::refuse_plain`]; it names place and key. Never gives the stored bytes instead.
    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Vec<u8>> {
        let (id, payload) = sealed.split_first_chunk().ok_or_else(|| place.refused(Why::Short))?;
        let id = u32::from_be_bytes(*id);
        if id == PLAIN {
            let over = self.plain_over.load(Ordering::Relaxed);
            return if over { Err(place.refused(Why::Plain)) } else { Ok(payload.to_vec()) };
        }
        let key = self.keys.get(&id).ok_or_else(|| place.refused(Why::Missing(id)))?;
        let (nonce, text) = payload.split_first_chunk().ok_or_else(|| place.refused(Why::Short))?;
        let mut text = text.to_vec();
        let plain = key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(place.bytes()), &mut text)
            .map_err(|_unspecified| place.refused(Why::Changed(id)))?
            .len();
        text.truncate(plain);
        Ok(text)
    }

    /// Opens a value that is text.
    ///
    /// # Errors
    /// As [`Self::open`], and when it is not UTF-8.
    pub fn open_text(&self, place: Place<'_>, sealed: &[u8]) -> Result<String> {
        let text = String::from_utf8(self.open(place, sealed)?);
        text.map_err(|_utf8| place.refused(Why::Text(key_of(sealed).unwrap_or_default())))
    }

    /// Closes a value with the current key that another one closed, or none; `None` when the current one did.
    ///
    /// # Errors
    /// As [`Self::open`] and [`Self::close`].
    pub fn renew(&self, place: Place<'_>, sealed: &[u8]) -> Result<Option<Vec<u8>>> {
        if key_of(sealed) == Some(self.current) {
            return Ok(None);
        }
        self.close(place, &self.open(place, sealed)?).map(Some)
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

    fn refused<T: fmt::Debug>(result: Result<T>) -> Why {
        match result {
            Err(Error::Sealed { why, .. }) => why,
            other => panic!("is not refused: {other:?}"),
        }
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
            // Byte 3 turns key id 1 into 0, which is plain bytes for as long as the store may hold some.
            if at == 3 {
                assert_eq!(seal.open(HERE, &changed).unwrap(), closed[4..]);
                continue;
            }
            let why = if at < 4 { Why::Missing(1 ^ 1 << (8 * (3 - at))) } else { Why::Changed(1) };
            assert_eq!(refused(seal.open(HERE, &changed)), why, "byte {at}");
        }
        seal.refuse_plain();
        let mut changed = closed.clone();
        changed[3] = 0;
        assert_eq!(refused(seal.open(HERE, &changed)), Why::Plain);
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
        let row = "07070707070707070707070707070707";
        let told = format!("stored entries.content of row {row} does not open: its encryption key 1 is not configured");
        assert_eq!(error.to_string(), told);
        assert_eq!(rotated.open(HERE, &rotated.renew(HERE, &old).unwrap().unwrap()).unwrap(), b"old");
        assert_eq!(rotated.renew(HERE, &rotated.close(HERE, b"new").unwrap()).unwrap(), None);
    }

    #[test]
    fn plain_value_is_key_id_zero_and_the_bytes() {
        let plain = seal(&[]);
        assert!(plain.plain());
        assert_eq!(plain.close(HERE, b"hi").unwrap(), b"\0\0\0\0hi");
        assert_eq!(seal(&[key(1, 9, 32)]).open(HERE, b"\0\0\0\0hi").unwrap(), b"hi");
        assert!(matches!(plain.open(HERE, b"hi"), Err(Error::Sealed { .. })));
    }

    #[test]
    fn key_is_the_same_in_hex() {
        let hexed = Key { id: 1, key: Secret::new(hex::encode([9; 32])) };
        let closed = seal(&[key(1, 9, 32)]).close(HERE, b"hi").unwrap();
        assert_eq!(seal(&[hexed]).open(HERE, &closed).unwrap(), b"hi");
    }

    // checklist 79
    #[test]
    fn key_of_any_other_length_is_refused() {
        for length in [0, 16, 31, 33, 44] {
            assert_eq!(Seal::new(&[key(3, 1, length)]).unwrap_err(), KeyError::Length(3), "{length} bytes");
        }
        for key in ["ß".to_owned(), hex::encode([1; 31]), hex::encode([1; 33])] {
            assert_eq!(Seal::new(&[Key { id: 3, key: Secret::new(key) }]).unwrap_err(), KeyError::Length(3));
        }
        assert_eq!(Seal::new(&[key(0, 1, 32)]).unwrap_err(), KeyError::Reserved);
        assert_eq!(Seal::new(&[key(1, 1, 32), key(1, 2, 32)]).unwrap_err(), KeyError::Twice(1));
    }
}
