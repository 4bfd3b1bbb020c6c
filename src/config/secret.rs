//! [`Secret`]: text that must not be shown, and whether it is strong enough.

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize, Serializer};

/// Text that logs, errors and `check-config` never show: `Debug` and `Serialize` give `***`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// What is shown in place of a secret.
pub const REDACTED: &str = "***";

/// Shortest signing secret, in characters.
pub const CHARACTERS_MIN: usize = 32;

impl Secret {
    /// Takes a text as a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Makes a secret of 256 random bits, as 64 hexadecimal characters.
    #[must_use]
    pub fn random() -> Self {
        Self(hex::encode(random_bytes::<32>()))
    }

    /// The text itself, for the one place that computes with it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Why the text is no secret; `None` when nothing speaks against it.
    ///
    /// Refused are fewer than [`CHARACTERS_MIN`] characters, fewer than eight different ones, a short text that is
    /// repeated, and texts that consist of little but the words that samples are made of.
    #[must_use]
    pub fn weakness(&self) -> Option<&'static str> {
        if self.0.chars().count() < CHARACTERS_MIN {
            return Some("is shorter than 32 characters");
        }
        let mut distinct: Vec<char> = self.0.chars().collect();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() < DISTINCT_MIN {
            return Some("has fewer than eight different characters");
        }
        if repeats(self.0.as_bytes()) {
            return Some("repeats a short text");
        }
        let mut rest: String = self.0.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
        for word in SAMPLE_WORDS {
            rest = rest.replace(word, "");
        }
        (rest.chars().count() < UNKNOWN_MIN).then_some("is made of well-known words")
    }
}

/// So many different characters any random text of the accepted length has, hexadecimal digits included.
const DISTINCT_MIN: usize = 8;

/// Characters that must be left once the words of samples are taken away.
const UNKNOWN_MIN: usize = 12;

/// What published sample secrets are made of, longest first so that no word hides a longer one.
const SAMPLE_WORDS: [&str; 52] = [
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiopasdfghjklzxcvbnm",
    "0123456789abcdef",
    "development",
    "1234567890",
    "0123456789",
    "characters",
    "production",
    "password",
    "changeme",
    "changeit",
    "insecure",
    "abcdefgh",
    "12345678",
    "qwertyui",
    "testing",
    "default",
    "example",
    "minimum",
    "chatbox",
    "replace",
    "signing",
    "secure",
    "secret",
    "sample",
    "please",
    "string",
    "random",
    "change",
    "length",
    "atleast",
    "super",
    "admin",
    "token",
    "local",
    "12345",
    "least",
    "chars",
    "only",
    "test",
    "demo",
    "this",
    "that",
    "long",
    "very",
    "with",
    "your",
    "jwt",
    "key",
    "256",
    "bit",
    "for",
];

fn repeats(text: &[u8]) -> bool {
    (1..=text.len() / 2).any(|unit| text.iter().zip(text.iter().skip(unit)).all(|(here, later)| here == later))
}

/// Random bytes from the operating system.
#[must_use]
#[expect(clippy::expect_used, reason = "the kernel's generator has no failure once it is seeded, and waits until then")]
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // checklist 9
    #[test]
    fn weak_secrets_are_named_as_such() {
        for (text, why) in [
            ("tooshort", "is shorter than 32 characters"),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "has fewer than eight different characters"),
            ("0123456789abcdef0123456789abcdef", "repeats a short text"),
            ("correct-horse-1correct-horse-1correct", "repeats a short text"),
            ("a-string-secret-at-least-256-bits-long", "is made of well-known words"),
            ("super-secret-jwt-token-with-at-least-32-characters-long", "is made of well-known words"),
            ("my_super_secret_jwt_key_for_development_only", "is made of well-known words"),
            ("abcdefghijklmnopqrstuvwxyz1234567890", "is made of well-known words"),
        ] {
            assert_eq!(Secret::new(text).weakness(), Some(why), "{text}");
        }
    }

    #[test]
    fn random_secrets_are_strong_and_differ() {
        for _ in 0..256 {
            let secret = Secret::random();
            assert_eq!(secret.weakness(), None, "{}", secret.expose());
            assert_ne!(secret, Secret::random());
        }
        assert_eq!(Secret::new("Zm9vYmFyIGJheiBxdXV4IHdpYmJsZSBmb28h").weakness(), None);
    }

    #[test]
    fn debug_and_serialize_hide_the_text() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), REDACTED);
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
    }
}
