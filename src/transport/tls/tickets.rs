//! Session tickets of TLS 1.3 (RFC 8446, section 4.6.1) that outlast the process: their keys come from the cluster
//! secret, so that a client that comes back to another node, or after a restart, costs no signature and no chain.
//!
//! Whoever holds the secret can open tickets, but with version 1.3 not what was said: every resumption has a key
//! exchange of its own (`psk_dhe_ke` is all that rustls does), and early data is off. A ticket is for one certificate:
//! after a reload clients check the new one.

use std::{fmt, sync::Arc};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf,
    rand::{SecureRandom as _, SystemRandom},
};
use rustls::server::ProducesTickets;

use super::Current;
use crate::clock::now;

/// How long tickets are made under one name, in milliseconds. They are taken until the next such time is over.
const EPOCH_MS: i64 = 12 * 3600 * 1000;

/// Makes every ticket's key a key of its own, so that no count of tickets wears one out.
const SALT_BYTES: usize = 16;

const EPOCH_BYTES: usize = size_of::<i64>();

/// Seals and opens tickets.
pub(super) struct Tickets {
    root: hkdf::Prk,
    random: SystemRandom,
    current: Arc<Current>,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    pub(super) fn new(cluster_secret: &str, current: Arc<Current>) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"chatbox session tickets");
        Self { root: salt.extract(cluster_secret.as_bytes()), random: SystemRandom::new(), current }
    }

    /// The key for one ticket. It seals once, so the nonce may be the same always.
    fn key(&self, epoch: [u8; EPOCH_BYTES], salt: &[u8]) -> Option<(LessSafeKey, Nonce)> {
        let info = [&epoch[..], salt];
        let key = UnboundKey::from(self.root.expand(&info, &AES_256_GCM).ok()?);
        Some((LessSafeKey::new(key), Nonce::assume_unique_for_key([0; 12])))
    }

    /// What a ticket is for beside its holder: the certificate that new handshakes get.
    fn certificate(&self) -> Aad<ring::digest::Digest> {
        let key = self.current.key();
        let certificate = key.cert.first().map(AsRef::as_ref).unwrap_or_default();
        Aad::from(ring::digest::digest(&ring::digest::SHA256, certificate))
    }

    fn seal(&self, plain: &[u8], epoch: i64) -> Option<Vec<u8>> {
        let mut salt = [0; SALT_BYTES];
        self.random.fill(&mut salt).ok()?;
        let epoch = epoch.to_be_bytes();
        let (key, nonce) = self.key(epoch, &salt)?;
        let mut sealed = plain.to_vec();
        key.seal_in_place_append_tag(nonce, self.certificate(), &mut sealed).ok()?;
        Some([&epoch[..], &salt, &sealed].concat())
    }

    fn open(&self, ticket: &[u8], epoch: i64) -> Option<Vec<u8>> {
        let (made, rest) = ticket.split_first_chunk::<EPOCH_BYTES>()?;
        let (salt, sealed) = rest.split_first_chunk::<SALT_BYTES>()?;
        if ![epoch, epoch - 1].contains(&i64::from_be_bytes(*made)) {
            return None;
        }
        let (key, nonce) = self.key(*made, salt)?;
        let mut opened = sealed.to_vec();
        let length = key.open_in_place(nonce, self.certificate(), &mut opened).ok()?.len();
        opened.truncate(length);
        Some(opened)
    }
}

fn epoch() -> i64 {
    now().0.div_euclid(EPOCH_MS)
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(EPOCH_MS / 1000).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, epoch())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, epoch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metrics::Metrics,
        transport::tls::{Config, Tls},
    };

    fn tickets(secret: &str, dir: &std::path::Path) -> Tickets {
        let config = Config { dir: dir.to_owned(), ..Config::default() };
        Tickets::new(secret, Tls::load(&config, true, Metrics::new()).unwrap().current)
    }

    #[test]
    fn ticket_opens_elsewhere_with_the_same_secret_and_certificate_until_its_time_is_over() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ticket = tickets("secret", dir.path()).seal(b"state", 7).unwrap();
        let again = tickets("secret", dir.path());
        for (epoch, opened) in [(6, None), (7, Some(&b"state"[..])), (8, Some(&b"state"[..])), (9, None)] {
            assert_eq!(again.open(&ticket, epoch).as_deref(), opened, "{epoch}");
        }
        assert_eq!(tickets("another", dir.path()).open(&ticket, 7), None);
        assert_eq!(tickets("secret", other.path()).open(&ticket, 7), None, "another certificate");
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(again.open(&changed, 7), None, "byte {at}");
            assert_eq!(again.open(&ticket[..at], 7), None, "{at} bytes");
        }
    }

    #[test]
    fn no_two_tickets_are_alike() {
        let dir = tempfile::tempdir().unwrap();
        let tickets = tickets("secret", dir.path());
        assert_ne!(tickets.encrypt(b"state"), tickets.encrypt(b"state"));
    }
}
