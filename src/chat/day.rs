//! Days, as budgets count them.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;

use super::Timestamp;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// A day of UTC, counted from 1970-01-01 on and shown as RFC 3339's `full-date`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Day(pub i64);

impl Day {
    /// The day that a moment is in.
    #[must_use]
    pub const fn of(moment: Timestamp) -> Self {
        Self(moment.0.div_euclid(DAY_MS))
    }

    /// Its first moment.
    #[must_use]
    pub const fn begin(self) -> Timestamp {
        Timestamp(self.0.saturating_mul(DAY_MS))
    }

    /// The day so many days before it.
    #[must_use]
    pub const fn before(self, days: i64) -> Self {
        Self(self.0.saturating_sub(days))
    }

    /// The day after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = self.begin().to_string();
        f.write_str(moment.split('T').next().unwrap_or_default())
    }
}

impl Serialize for Day {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Day {
    fn schema_name() -> Cow<'static, str> {
        "Day".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date", "description": "a day of UTC"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> Day {
        Day::of(Timestamp::parse(text).unwrap())
    }

    #[test]
    fn a_day_begins_and_ends_at_midnight_of_utc() {
        let leap = day("2024-02-29T00:00:00Z");
        assert_eq!(leap, day("2024-03-01T00:59:59.999+01:00"));
        assert_eq!((leap.to_string(), leap.next().to_string()), ("2024-02-29".to_owned(), "2024-03-01".to_owned()));
        assert_eq!(leap.begin().to_string(), "2024-02-29T00:00:00.000Z");
        assert_eq!(day("2024-03-02T12:00:00Z").before(2), leap);
        assert_eq!((day("1969-12-31T23:59:59Z"), day("1970-01-01T00:00:00Z")), (Day(-1), Day(0)));
    }
}
