//! Who is calling: [`Verifier`] turns a token into a [`Principal`].
//!
//! It knows the rules of tokens, origins and the local sign-in. It knows no socket, no route and no session.

pub mod dev;
pub mod hmac;
pub mod issuer;
pub mod origins;

use jsonwebtoken::{DecodingKey, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};

use crate::{
    chat::{
        Timestamp, UserId,
        name::{legible, visible},
    },
    clock::now,
    config::secret::Secret,
};

/// Who may come in.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// shared secret of HS256, HS384 and HS512; at least 32 characters
    pub jwt_secret: Option<Secret>,
    /// origins that pages may come from, beside this server's own
    pub allowed_origins: Option<Vec<String>>,
    /// `iss` that a token must carry
    pub issuer: Option<String>,
    /// `aud` that a token must carry
    pub audience: Option<String>,
    /// accepted algorithms; absent: HS256, HS384, HS512
    pub algorithms: Option<Vec<Algorithm>>,
    /// whether `?token=` is accepted on the WebSocket
    pub allow_query_token: bool,
}

/// How tokens are signed (RFC 7518, section 3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[expect(missing_docs, reason = "the names are those of the RFC")]
pub enum Algorithm {
    #[serde(rename = "HS256")]
    Hs256,
    #[serde(rename = "HS384")]
    Hs384,
    #[serde(rename = "HS512")]
    Hs512,
}

impl From<Algorithm> for jsonwebtoken::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Hs256 => Self::HS256,
            Algorithm::Hs384 => Self::HS384,
            Algorithm::Hs512 => Self::HS512,
        }
    }
}

/// What a caller may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// its own sessions
    User,
    /// every session
    Staff,
}

/// The authenticated caller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Principal {
    /// who
    pub user_id: UserId,
    /// the name that others see
    pub name: String,
    /// what it may do
    pub role: Role,
    /// when the token ends, and the connection with it
    pub expires_at: Timestamp,
}

/// Why a token was not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// forged, malformed, of another family, or a claim is missing
    #[error("the token is not valid")]
    Invalid,
    /// it was valid once
    #[error("the token has expired")]
    Expired,
}

/// Longest token that is looked at, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Longest name that others see, in characters.
pub const NAME_CHARACTERS_MAX: usize = 100;

/// How far ahead of this machine the issuer's clock may be, in milliseconds: `nbf` is checked with this leeway.
/// `exp` has none, since the connection ends at that moment.
pub const NOT_BEFORE_LEEWAY_MS: i64 = 5_000;

/// Seconds from 1970 to the end of the year 9999. A later `exp` is a mistake, milliseconds most likely.
const EXPIRY_SECONDS_MAX: f64 = 253_402_300_799.0;

/// Checks tokens. The accepted algorithms come from the configuration, never from the token.
pub struct Verifier {
    key: DecodingKey,
    validation: Validation,
}

impl Verifier {
    /// Accepts what `config` accepts, signed with `secret`.
    #[must_use]
    pub fn new(config: &Config, secret: &Secret) -> Self {
        let algorithms = config.algorithms.as_deref().unwrap_or(&DEFAULT_ALGORITHMS);
        let mut validation = Validation::new(jsonwebtoken::Algorithm::HS256);
        validation.algorithms = algorithms.iter().map(|&algorithm| algorithm.into()).collect();
        // Times are checked below, after everything else: only a token that was right in all else has "expired".
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let mut required = vec!["exp"];
        if let Some(issuer) = &config.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.validate_aud = config.audience.is_some();
        if let Some(audience) = &config.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        hmac::install();
        Self { key: DecodingKey::from_secret(secret.expose().as_bytes()), validation }
    }

    /// Checks a token: signature, algorithm, expiry and claims.
    ///
    /// # Errors
    /// Whether it expired or was never valid; logs hold the cause.
    pub fn verify(&self, token: &str) -> Result<Principal, Denied> {
        self.verify_at(token, now())
    }

    fn verify_at(&self, token: &str, now: Timestamp) -> Result<Principal, Denied> {
        self.principal(token, now).map_err(|refusal| {
            tracing::debug!(cause = refusal.cause, "token refused");
            refusal.denied
        })
    }

    fn principal(&self, token: &str, now: Timestamp) -> Result<Principal, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::invalid("longer than 8 KiB"));
        }
        let token = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|err| Refusal::invalid(cause(err.kind())))?;
        if token.header.crit.is_some() {
            return Err(Refusal::invalid("critical header extension (RFC 7515, section 4.1.11)"));
        }
        let claims = token.claims;
        let user_id = claims.user_id.or(claims.sub).ok_or(Refusal::invalid("neither `user_id` nor `sub`"))?;
        let user_id = UserId::parse(&user_id).ok_or(Refusal::invalid("`user_id` is empty or longer than 255 bytes"))?;
        let expires_at = milliseconds(claims.exp).ok_or(Refusal::invalid("`exp` is out of range"))?;
        if let Some(not_before) = claims.nbf {
            let not_before = milliseconds(not_before).ok_or(Refusal::invalid("`nbf` is out of range"))?;
            if not_before.0 > now.0.saturating_add(NOT_BEFORE_LEEWAY_MS) {
                return Err(Refusal::invalid("`nbf` lies ahead"));
            }
        }
        // RFC 7519, section 4.1.4: "on or after".
        if now >= expires_at {
            return Err(Refusal { denied: Denied::Expired, cause: "`exp` has passed" });
        }
        let staff = claims.roles.iter().flatten().any(|role| role == "admin" || role == "chat_admin");
        Ok(Principal {
            name: display_name(claims.name.as_deref(), &user_id),
            user_id,
            role: if staff { Role::Staff } else { Role::User },
            expires_at,
        })
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("algorithms", &self.validation.algorithms).finish_non_exhaustive()
    }
}

const DEFAULT_ALGORITHMS: [Algorithm; 3] = [Algorithm::Hs256, Algorithm::Hs384, Algorithm::Hs512];

/// The claims that mean something here (PROTOCOL.md, section 3). Others are ignored; a wrong type is refused.
#[derive(Deserialize)]
struct Claims {
    user_id: Option<String>,
    sub: Option<String>,
    roles: Option<Vec<String>>,
    name: Option<String>,
    exp: f64,
    nbf: Option<f64>,
}

/// What the caller hears and what the log holds. The cause is never text from the token.
struct Refusal {
    denied: Denied,
    cause: &'static str,
}

impl Refusal {
    const fn invalid(cause: &'static str) -> Self {
        Self { denied: Denied::Invalid, cause }
    }
}

fn cause(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSignature => "signature does not match",
        ErrorKind::InvalidAlgorithm => "algorithm is not accepted",
        ErrorKind::MissingRequiredClaim(_) => "a required claim is missing",
        ErrorKind::InvalidIssuer => "`iss` is another one",
        ErrorKind::InvalidAudience => "`aud` is another one",
        ErrorKind::Json(_) => "a part is not the JSON that is expected",
        ErrorKind::Base64(_) | ErrorKind::Utf8(_) => "a part is not base64url",
        _ => "not a token",
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the range is checked, and fractions below a millisecond mean nothing"
)]
fn milliseconds(seconds: f64) -> Option<Timestamp> {
    (0.0..=EXPIRY_SECONDS_MAX).contains(&seconds).then_some(Timestamp((seconds * 1000.0) as i64))
}

/// The name in a token, or else the user id, without what could disguise it: control characters and those that
/// turn the direction of writing (Unicode UAX 9) or show nothing.
fn display_name(name: Option<&str>, user_id: &UserId) -> String {
    let clean = |text: &str| -> String {
        legible(text.trim()).chars().filter(|c| !c.is_control()).take(NAME_CHARACTERS_MAX).collect()
    };
    name.map(clean).filter(|name| name.chars().any(visible)).unwrap_or_else(|| clean(user_id.as_str()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn token(nbf: Option<i64>) -> String {
        let mut claims = serde_json::json!({ "user_id": "ada", "exp": 2_000 });
        if let Some(nbf) = nbf {
            claims["nbf"] = nbf.into();
        }
        hmac::install();
        let key = jsonwebtoken::EncodingKey::from_secret(secret().expose().as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    }

    fn secret() -> Secret {
        Secret::new("9b1c7f60a4d2e8835d0f6ab7c2e49d11")
    }

    #[test]
    fn a_token_ends_exactly_at_its_expiry() {
        let verifier = Verifier::new(&Config::default(), &secret());
        let principal = verifier.verify_at(&token(None), Timestamp(1_999_999)).unwrap();
        assert_eq!(principal.expires_at, Timestamp(2_000_000));
        assert_eq!(verifier.verify_at(&token(None), Timestamp(2_000_000)), Err(Denied::Expired));
    }

    #[test]
    fn a_token_begins_within_the_leeway_of_its_nbf() {
        let verifier = Verifier::new(&Config::default(), &secret());
        let token = token(Some(1_000));
        let early = Timestamp(1_000_000 - NOT_BEFORE_LEEWAY_MS);
        assert_eq!(verifier.verify_at(&token, Timestamp(early.0 - 1)), Err(Denied::Invalid));
        assert_eq!(verifier.verify_at(&token, early).unwrap().user_id.as_str(), "ada");
    }

    #[test]
    fn what_the_issuer_signs_the_verifier_accepts() {
        let config = Config {
            issuer: Some("chat".to_owned()),
            audience: Some("web".to_owned()),
            algorithms: Some(vec![Algorithm::Hs512]),
            ..Config::default()
        };
        let ada = UserId::parse("ada").unwrap();
        let issuer = issuer::Issuer::new(&config, &secret());
        let token = issuer.issue(&ada, Role::Staff, Some("Ada L."), Duration::from_secs(60)).unwrap();
        let principal = Verifier::new(&config, &secret()).verify(&token).unwrap();
        assert_eq!((principal.name.as_str(), principal.role), ("Ada L.", Role::Staff));
        let lasts_ms = principal.expires_at.0 - now().0;
        assert!((58_000..=60_000).contains(&lasts_ms), "got {lasts_ms} ms, expected about 60000");
    }
}
