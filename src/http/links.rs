//! Links to shared sessions: a token is the share's id and a seal on it, so that what a database holds is no link,
//! and no token that was made up is ever looked for.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{hkdf, hmac};
use uuid::Uuid;

use crate::config::secret::Secret;

/// Bytes of the seal that a token carries.
const SEAL_BYTES: usize = 16;

/// Makes tokens, and knows its own.
#[derive(Clone, Debug)]
pub struct Links(hmac::Key);

impl Links {
    /// Derives the key from the cluster's secret: the same on all nodes and after a restart.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a key of this algorithm is within HKDF's limit")]
    pub fn new(cluster_secret: &Secret) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"chatbox links").extract(cluster_secret.expose().as_bytes());
        Self(root.expand(&[b"share"], hmac::HMAC_SHA256).expect("32 bytes are within the limit").into())
    }

    /// The token of a share.
    #[must_use]
    pub fn token(&self, share: Uuid) -> String {
        let mut bytes = share.as_bytes().to_vec();
        bytes.extend_from_slice(&self.seal(share));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The share that a token names; `None` for one that this deployment did not make.
    #[must_use]
    pub fn share(&self, token: &str) -> Option<Uuid> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (id, seal) = bytes.split_first_chunk::<16>()?;
        let share = Uuid::from_bytes(*id);
        let expected = self.seal(share);
        // Looks at every byte, so that the time it takes tells nothing.
        let different = seal.iter().zip(&expected).fold(0, |different, (one, other)| different | (one ^ other));
        (seal.len() == expected.len() && different == 0).then_some(share)
    }

    fn seal(&self, share: Uuid) -> [u8; SEAL_BYTES] {
        let tag = hmac::sign(&self.0, share.as_bytes());
        let mut seal = [0; SEAL_BYTES];
        seal.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        seal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_of_this_deployment_name_a_share() {
        let (links, other) = (Links::new(&Secret::random()), Links::new(&Secret::random()));
        let id = Uuid::new_v4();
        let token = links.token(id);
        assert_eq!(links.share(&token), Some(id));
        assert_eq!(token.len(), 43);
        for forged in [
            other.token(id),
            token.replacen(|_: char| true, "", 1),
            format!("{token}A"),
            URL_SAFE_NO_PAD.encode(id),
            String::new(),
        ] {
            assert_eq!(links.share(&forged), None, "{forged}");
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert_eq!(links.share(&URL_SAFE_NO_PAD.encode(&bytes)), None, "byte {at} was changed");
            bytes[at] ^= 1;
        }
    }
}
