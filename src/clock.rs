//! The present moment by this machine's clock: what tokens are checked with, and what rows keep.

use time::OffsetDateTime;

use crate::chat::Timestamp;

/// The present moment; a clock beyond the year 292 million counts as that.
pub(crate) fn now() -> Timestamp {
    Timestamp(i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX))
}
