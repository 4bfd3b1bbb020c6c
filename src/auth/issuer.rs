//! [`Issuer`] signs tokens: for `chatbox token` and for the local sign-in.

use std::time::Duration;

use anyhow::Context;
use jsonwebtoken::{EncodingKey, Header};
use serde::Serialize;

use super::{Algorithm, Config, Role, hmac};
use crate::{chat::UserId, clock::now, config::secret::Secret};

/// Signs tokens that a [`Verifier`](super::Verifier) of the same configuration accepts.
pub struct Issuer {
    key: EncodingKey,
    algorithm: Algorithm,
    issuer: Option<String>,
    audience: Option<String>,
}

#[derive(Serialize)]
struct Claims<'a> {
    user_id: &'a UserId,
    roles: &'a [&'a str],
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    exp: i64,
    iat: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

impl Issuer {
    /// Signs with the first algorithm that `config` accepts.
    #[must_use]
    pub fn new(config: &Config, secret: &Secret) -> Self {
        hmac::install();
        let algorithm = config.algorithms.as_deref().and_then(<[_]>::first).copied();
        Self {
            key: EncodingKey::from_secret(secret.expose().as_bytes()),
            algorithm: algorithm.unwrap_or(Algorithm::Hs256),
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
        }
    }

    /// Signs a token that is valid from now on, for `ttl` in whole seconds.
    ///
    /// # Errors
    /// When `ttl` reaches beyond what a clock can show.
    pub fn issue(&self, user: &UserId, role: Role, name: Option<&str>, ttl: Duration) -> anyhow::Result<String> {
        let iat = now().0 / 1000;
        let exp = i64::try_from(ttl.as_secs()).ok().and_then(|ttl| iat.checked_add(ttl)).context("ttl is too long")?;
        let claims = Claims {
            user_id: user,
            roles: match role {
                Role::User => &[],
                Role::Staff => &["chat_admin"],
            },
            name,
            exp,
            iat,
            iss: self.issuer.as_deref(),
            aud: self.audience.as_deref(),
        };
        jsonwebtoken::encode(&Header::new(self.algorithm.into()), &claims, &self.key).context("sign the token")
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}
