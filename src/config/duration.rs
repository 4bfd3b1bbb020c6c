//! Durations as people write them: `2s`, `250ms`, `1h 30m`.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Reads a duration; for `#[serde(with)]`.
///
/// # Errors
/// When the text is not a duration; the error names it and what is accepted.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|err| serde::de::Error::custom(format!("`{text}` is not a duration such as `2s` or `1h 30m`: {err}")))
}

/// The same for keys that may be absent; for `#[serde(default, with)]`.
pub mod option {
    use super::{Deserializer, Duration};

    /// Reads a duration that is there.
    ///
    /// # Errors
    /// As [`super::deserialize`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}
