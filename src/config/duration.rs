//! Durations as people write them: `2s`, `250ms`, `1h 30m`; at most [`MAX`].

use std::{fmt, time::Duration};

use serde::{Deserializer, Serializer, de::Visitor};

/// Longest duration that is accepted: ten years. A deadline far beyond it has no place on the system's clock.
pub const MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Reads a duration; for `#[serde(with)]`.
///
/// # Errors
/// When the text is not a duration; the error names it and what is accepted.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = deserializer.deserialize_str(Written)?;
    let wrong =
        |why: &str| serde::de::Error::custom(format!("`{text}` is not a duration such as `2s` or `1h 30m`: {why}"));
    let duration = humantime::parse_duration(&text).map_err(|err| wrong(&err.to_string()))?;
    if duration > MAX { Err(wrong("it is longer than ten years")) } else { Ok(duration) }
}

struct Written;

impl Visitor<'_> for Written {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as `2s` or `1h 30m`, as a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

/// Writes a duration as [`deserialize`] reads it; for `#[serde(with)]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// The same for keys that may be absent; for `#[serde(default, with)]`.
pub mod option {
    use super::{Deserializer, Duration, Serializer};

    /// Reads a duration that is there.
    ///
    /// # Errors
    /// As [`super::deserialize`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }

    /// Writes a duration that is there.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::de::{IntoDeserializer, value::Error};

    use super::*;

    #[test]
    fn ten_years_are_the_longest() {
        let read = |text: &str| deserialize::<'_, _>(IntoDeserializer::<Error>::into_deserializer(text));
        assert_eq!(read("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(read("3650days"), Ok(MAX));
        for (text, why) in [
            ("3651days", "it is longer than ten years"),
            ("500000000000years", "it is longer than ten years"),
            ("2", "time unit needed, for example 2sec or 2ms"),
        ] {
            let told = format!("`{text}` is not a duration such as `2s` or `1h 30m`: {why}");
            assert_eq!(read(text).unwrap_err().to_string(), told);
        }
    }
}
