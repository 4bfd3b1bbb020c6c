//! What a store remembers of the keys that its values are sealed with: a row for each key id in use, with a value
//! that only the right key opens. Compared when the store opens, so that a missing or a wrong key refuses the start
//! and is not found out row by row. It knows no database: both stores keep [`Held`] rows and ask [`examine`].

use super::{PLAIN, Place, Seal};

/// The row of one key id in use: the store may hold values that this key sealed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// the key; [`PLAIN`]: the store may hold plain values
    pub id: u32,
    /// what the key sealed; empty for [`PLAIN`]
    pub proof: Vec<u8>,
}

/// Why the configured keys are not those of the store.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// values are sealed with keys that are not configured
    #[error(
        "the store holds values of encryption key {}, and `store.encryption_keys` has {}: add what is missing",
        listed(.missing),
        listed(.configured)
    )]
    Missing {
        /// those keys
        missing: Vec<u32>,
        /// those that are configured
        configured: Vec<u32>,
    },
    /// a key has the right id and other bytes
    #[error("encryption key {0} is not the one that the store's values were sealed with: the id is, its bytes are not")]
    Wrong(u32),
}

fn listed(ids: &[u32]) -> String {
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
}

/// What sealed rows say of plain values: that there may be some, or that there is none.
const SOME: &[u8] = b"plain";
const NONE: &[u8] = b"sealed";

/// Compares the rows of a store with the configured keys, and tells the seal whether a plain value is an error. Gives
/// the row that is missing, of the current key: it must be stored before the first value is sealed.
///
/// Whether plain values are over is said by what a key has sealed, so that nobody makes it untrue by adding a row. Whoever
/// can put back old rows, or take away all of them, can: that is how a new store looks.
///
/// # Errors
/// A key is missing, or is another one than it was.
pub fn examine(seal: &Seal, held: &[Held]) -> Result<Option<Held>, Unreadable> {
    let sealed = || held.iter().filter(|held| held.id != PLAIN);
    let configured: Vec<u32> = seal.ids().collect();
    let missing: Vec<u32> = sealed().map(|held| held.id).filter(|id| !configured.contains(id)).collect();
    if !missing.is_empty() {
        return Err(Unreadable::Missing { missing, configured });
    }
    let mut over = held.iter().all(|held| held.id != PLAIN) && (!held.is_empty() || !seal.plain());
    for Held { id, proof } in sealed() {
        let said = seal.open(place(&id.to_be_bytes()), proof).map_err(|_sealed| Unreadable::Wrong(*id))?;
        over |= said == NONE;
    }
    if over {
        seal.refuse_plain();
    }
    let known = held.iter().any(|held| held.id == seal.current());
    Ok(if known { None } else { Some(statement(seal, seal.current(), over)?) })
}

/// The rows of a store that has none although it holds values, of these keys.
///
/// # Errors
/// When the system gives no randomness.
pub fn made_up(seal: &Seal, ids: impl Iterator<Item = u32> + Clone) -> Result<Vec<Held>, Unreadable> {
    let over = ids.clone().all(|id| id != PLAIN);
    ids.map(|id| statement(seal, id, over)).collect()
}

/// The row of the current key where others are missing: it says nothing of plain values.
///
/// # Errors
/// When the system gives no randomness.
pub fn in_use(seal: &Seal) -> Result<Held, Unreadable> {
    statement(seal, seal.current(), false)
}

/// The row of the current key once everything is sealed with it. It replaces all others.
///
/// # Errors
/// As [`examine`]; when the system gives no randomness.
pub fn settled(seal: &Seal) -> Result<Held, Unreadable> {
    let held = statement(seal, seal.current(), true)?;
    seal.refuse_plain();
    Ok(held)
}

fn statement(seal: &Seal, id: u32, over: bool) -> Result<Held, Unreadable> {
    if id == PLAIN {
        return Ok(Held { id, proof: Vec::new() });
    }
    let proof = seal.close_with(id, place(&id.to_be_bytes()), if over { NONE } else { SOME });
    proof.map(|proof| Held { id, proof }).map_err(|_random| Unreadable::Wrong(id))
}

fn place(row: &[u8]) -> Place<'_> {
    Place { table: "seal_keys", row, field: "proof" }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::{super::Key, *};
    use crate::config::secret::Secret;

    fn seal(keys: &[(u32, u8)]) -> Seal {
        let key = |(id, byte): &(u32, u8)| Key { id: *id, key: Secret::new(STANDARD.encode([*byte; 32])) };
        Seal::new(&keys.iter().map(key).collect::<Vec<_>>()).unwrap()
    }

    fn plain_opens(seal: &Seal) -> bool {
        seal.open(place(b"x"), b"\0\0\0\0text").is_ok()
    }

    /// Opens a store that holds these rows, and adds the one that is missing.
    fn opened(keys: &[(u32, u8)], held: &mut Vec<Held>) -> Result<Seal, String> {
        let seal = seal(keys);
        held.extend(examine(&seal, held).map_err(|err| err.to_string())?);
        Ok(seal)
    }

    fn ids(held: &[Held]) -> Vec<u32> {
        held.iter().map(|held| held.id).collect()
    }

    // checklist 78
    #[test]
    fn missing_and_wrong_keys_are_named() {
        let mut held = Vec::new();
        opened(&[(1, 9)], &mut held).unwrap();
        opened(&[(2, 5), (1, 9)], &mut held).unwrap();
        assert_eq!(ids(&held), [1, 2]);
        for (keys, told) in [
            (
                &[][..],
                "the store holds values of encryption key 1, 2, and `store.encryption_keys` has none: add what is missing",
            ),
            (
                &[(2, 5)],
                "the store holds values of encryption key 1, and `store.encryption_keys` has 2: add what is missing",
            ),
            (
                &[(1, 9)],
                "the store holds values of encryption key 2, and `store.encryption_keys` has 1: add what is missing",
            ),
            (
                &[(2, 5), (1, 8)],
                "encryption key 1 is not the one that the store's values were sealed with: the id is, its bytes are not",
            ),
        ] {
            assert_eq!(opened(keys, &mut held).unwrap_err(), told);
        }
        opened(&[(1, 9), (2, 5)], &mut held).unwrap();
        assert_eq!(held.len(), 2, "an order is no new key");
    }

    #[test]
    fn store_that_was_sealed_from_its_start_never_takes_plain_text() {
        let mut held = Vec::new();
        assert!(!plain_opens(&opened(&[(1, 9)], &mut held).unwrap()));
        held.push(Held { id: PLAIN, proof: Vec::new() });
        assert!(!plain_opens(&opened(&[(1, 9)], &mut held).unwrap()), "a row that anybody can add");
    }

    #[test]
    fn plain_store_takes_plain_text_until_all_of_it_is_sealed() {
        let mut held = Vec::new();
        assert!(plain_opens(&opened(&[], &mut held).unwrap()));
        assert!(plain_opens(&opened(&[], &mut held).unwrap()));
        let sealed = opened(&[(1, 9)], &mut held).unwrap();
        assert!(plain_opens(&sealed));
        assert_eq!(ids(&held), [PLAIN, 1]);
        assert!(plain_opens(&opened(&[(2, 5), (1, 9)], &mut held).unwrap()));
        held = vec![settled(&sealed).unwrap()];
        assert!(!plain_opens(&sealed));
        assert!(!plain_opens(&opened(&[(1, 9)], &mut held).unwrap()));
        held.push(Held { id: PLAIN, proof: Vec::new() });
        let next = opened(&[(2, 5), (1, 9)], &mut held).unwrap();
        assert!(!plain_opens(&next), "what a key has sealed says so");
        held = vec![settled(&next).unwrap()];
        let told = "the store holds values of encryption key 2, and `store.encryption_keys` has 1: add what is missing";
        assert_eq!(opened(&[(1, 9)], &mut held).unwrap_err(), told);
        assert!(!plain_opens(&opened(&[(2, 5)], &mut held).unwrap()));
    }
}
