//! The local sign-in: the printed URL's one-time code, and the cookie that stands in for it after a reload.
//!
//! It exists only on loopback with a generated secret (PROTOCOL.md, section 4); whoever wires the server decides.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ring::hmac;

use super::{Config, Role, issuer::Issuer};
use crate::{
    chat::{Timestamp, UserId},
    clock::now,
    config::secret::{Secret, random_bytes},
};

/// Name of the cookie. The route that sets it adds `HttpOnly; SameSite=Strict` and its own path.
pub const COOKIE: &str = "chatbox_dev";

/// How long the cookie signs in.
pub const COOKIE_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a token of the local sign-in is valid.
pub const TOKEN_TTL: Duration = Duration::from_secs(3600);

/// How long a code is valid.
const CODE_TTL: Duration = Duration::from_secs(600);

/// Codes that are valid at a time; a further one displaces the oldest.
const CODES_MAX: usize = 8;

/// Longest code or cookie that is looked at, in bytes.
const PRESENTED_BYTES_MAX: usize = 256;

/// Who the local sign-in signs in.
const USER: &str = "local";

/// What a code or a cookie is good for.
pub struct Grant {
    /// a token of [`TOKEN_TTL`], for the page
    pub token: String,
    /// the value of [`COOKIE`], valid for [`COOKIE_TTL`] from now on, also after a restart
    pub cookie: String,
}

/// Codes that were handed out, and the key that signs cookies.
pub struct DevSessions {
    issuer: Issuer,
    key: hmac::Key,
    /// tags of the outstanding codes, oldest first; at most [`CODES_MAX`]
    codes: Mutex<VecDeque<(hmac::Tag, Instant)>>,
}

impl DevSessions {
    /// Signs in with tokens under `secret`. The key of the cookies is derived from it: no token is a cookie.
    #[must_use]
    pub fn new(config: &Config, secret: &Secret) -> Self {
        let master = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
        let derived = hmac::sign(&master, b"chatbox local sign-in v1");
        Self {
            issuer: Issuer::new(config, secret),
            key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
            codes: Mutex::default(),
        }
    }

    /// Makes a code of 128 random bits: valid once, for ten minutes.
    #[must_use]
    pub fn code(&self) -> String {
        self.code_at(Instant::now())
    }

    /// Takes a code: each works once.
    #[must_use]
    pub fn redeem(&self, code: &str) -> Option<Grant> {
        self.redeem_at(code, Instant::now()).then(|| self.grant(now()))?
    }

    /// Takes a cookie's value, any number of times until it expires.
    #[must_use]
    pub fn resume(&self, cookie: &str) -> Option<Grant> {
        self.resume_at(cookie, now())
    }

    fn code_at(&self, now: Instant) -> String {
        let code = hex::encode(random_bytes::<16>());
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        while codes.len() >= CODES_MAX {
            codes.pop_front();
        }
        codes.push_back((hmac::sign(&self.key, code.as_bytes()), now + CODE_TTL));
        code
    }

    fn redeem_at(&self, code: &str, now: Instant) -> bool {
        if code.len() > PRESENTED_BYTES_MAX {
            return false;
        }
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
        codes.retain(|(_, until)| now < *until);
        let found = codes.iter().position(|(tag, _)| hmac::verify(&self.key, code.as_bytes(), tag.as_ref()).is_ok());
        found.and_then(|at| codes.remove(at)).is_some()
    }

    fn resume_at(&self, cookie: &str, now: Timestamp) -> Option<Grant> {
        if cookie.len() > PRESENTED_BYTES_MAX {
            return None;
        }
        let (body, tag) = cookie.rsplit_once('.')?;
        hmac::verify(&self.key, body.as_bytes(), &hex::decode(tag).ok()?).ok()?;
        let (_, expires_at) = body.split_once('.')?;
        (now.0 < expires_at.parse().ok()?).then(|| self.grant(now))?
    }

    fn grant(&self, now: Timestamp) -> Option<Grant> {
        let user = UserId::parse(USER)?;
        let token = self.issuer.issue(&user, Role::User, None, TOKEN_TTL).ok()?;
        let expires_at = now.0.checked_add(i64::try_from(COOKIE_TTL.as_millis()).ok()?)?;
        let body = format!("{}.{expires_at}", hex::encode(random_bytes::<32>()));
        let tag = hex::encode(hmac::sign(&self.key, body.as_bytes()));
        Some(Grant { token, cookie: format!("{body}.{tag}") })
    }
}

impl std::fmt::Debug for DevSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DevSessions").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grant").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> DevSessions {
        DevSessions::new(&Config::default(), &Secret::new("9b1c7f60a4d2e8835d0f6ab7c2e49d11"))
    }

    #[test]
    fn a_code_works_once_and_for_ten_minutes() {
        let sessions = sessions();
        let start = Instant::now();
        let (once, late) = (sessions.code_at(start), sessions.code_at(start));
        assert_eq!(once.len(), 32, "128 bits in hex, got `{once}`");
        assert!(sessions.redeem_at(&once, start));
        assert!(!sessions.redeem_at(&once, start), "second use");
        assert!(!sessions.redeem_at(&late, start + CODE_TTL), "after ten minutes");
        assert!(!sessions.redeem_at("", start));
    }

    #[test]
    fn a_ninth_code_displaces_the_first() {
        let sessions = sessions();
        let start = Instant::now();
        let codes: Vec<String> = (0..=CODES_MAX).map(|_| sessions.code_at(start)).collect();
        let redeemed: Vec<bool> = codes.iter().map(|code| sessions.redeem_at(code, start)).collect();
        assert_eq!(redeemed, [vec![false], vec![true; CODES_MAX]].concat());
    }

    #[test]
    fn a_cookie_survives_a_restart_and_ends_after_its_time() {
        let start = Timestamp(1_000_000);
        let cookie = sessions().grant(start).unwrap().cookie;
        let restarted = sessions();
        let end = start.0 + i64::try_from(COOKIE_TTL.as_millis()).unwrap();
        assert!(restarted.resume_at(&cookie, Timestamp(end - 1)).is_some());
        assert!(restarted.resume_at(&cookie, Timestamp(end)).is_none());
        let other = DevSessions::new(&Config::default(), &Secret::new("another secret of thirty-two letters"));
        assert!(other.resume_at(&cookie, start).is_none());
    }

    #[test]
    fn a_changed_cookie_does_not_sign_in() {
        let sessions = sessions();
        let start = Timestamp(0);
        let cookie = sessions.grant(start).unwrap().cookie;
        for at in 0..cookie.len() {
            let mut bytes = cookie.clone().into_bytes();
            bytes[at] ^= 1;
            let forged = String::from_utf8(bytes).unwrap();
            assert!(sessions.resume_at(&forged, start).is_none(), "byte {at} changed");
        }
        assert!(sessions.resume_at("", start).is_none());
        assert!(sessions.resume_at(&"a.".repeat(200), start).is_none());
    }
}
