//! Tokens: asked of whoever made the client, kept in memory while they are good.

use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::time::timeout;

use super::Error;
use crate::clock;

/// How long the host may take to give a token.
const DEADLINE: Duration = Duration::from_secs(30);

type Ask = dyn Fn(bool) -> BoxFuture<'static, Option<String>> + Send + Sync;

/// Gives a token whenever one is needed.
#[derive(Clone)]
pub struct Tokens(Source);

#[derive(Clone)]
enum Source {
    Fixed(Arc<str>),
    Asked(Arc<Ask>),
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(_)")
    }
}

impl Tokens {
    /// One token, which ends the client when it expires.
    #[must_use]
    pub fn fixed(token: impl Into<Arc<str>>) -> Self {
        Self(Source::Fixed(token.into()))
    }

    /// Asks for a token at first, before the old one expires, and when the server refuses it; with `true`, it is not
    /// to come from a cache. `None` says that nobody is signed in: the client closes. It may take 30 seconds.
    #[must_use]
    pub fn from_fn(ask: impl Fn(bool) -> BoxFuture<'static, Option<String>> + Send + Sync + 'static) -> Self {
        Self(Source::Asked(Arc::new(ask)))
    }

    /// Whether another token can be had.
    pub(super) const fn renewable(&self) -> bool {
        matches!(self.0, Source::Asked(_))
    }

    pub(super) async fn get(&self, refresh: bool) -> Result<String, Error> {
        match &self.0 {
            Source::Fixed(token) => Ok(token.as_ref().to_owned()),
            Source::Asked(ask) => {
                let asked = timeout(DEADLINE, ask(refresh)).await;
                asked.map_err(|_elapsed| Error::Timeout("the token"))?.ok_or(Error::NoToken)
            }
        }
    }
}

/// How long a token is still good by its own word; `None` when it does not say. Only the server's word counts.
pub(super) fn life(token: &str) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    let now_ms = u64::try_from(clock::now().0).ok()?;
    Some(Duration::from_millis(claims.exp.saturating_mul(1000).saturating_sub(now_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokens_life_is_read_from_its_claims() {
        let claims = |exp: i64| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{exp}}}"#)));
        let now = clock::now().0 / 1000;
        let left = life(&claims(now + 100)).unwrap();
        assert!((98..=100).contains(&left.as_secs()), "got {left:?}");
        assert_eq!(life(&claims(now - 100)), Some(Duration::ZERO));
        assert_eq!(life("opaque"), None);
    }
}
