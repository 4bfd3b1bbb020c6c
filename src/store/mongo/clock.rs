//! The time of the database: leases of several nodes are compared by one clock.
//!
//! A node samples the primary's clock and counts on from there with its own monotonic one, so that its wall clock
//! may be wrong.

use std::{
    sync::{PoisonError, RwLock},
    time::Duration,
};

use mongodb::bson::rawdoc;
use tokio::time::Instant;

use super::{
    super::{Error, Result},
    link::Link,
};

/// A sample that took longer than this says too little.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(100);
/// Samples, at most, for one that is good enough; then the best one counts.
const SAMPLES_MAX: usize = 10;
/// How often the clock is compared: monotonic clocks drift by less than a millisecond in this time.
pub(super) const COMPARE_EVERY: Duration = Duration::from_secs(30);

/// The primary's clock, as this node knows it.
#[derive(Debug)]
pub(super) struct Clock {
    sample: RwLock<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// milliseconds since 1970
    at_ms: i64,
    taken: Instant,
    round_trip: Duration,
}

impl Clock {
    /// Takes the first sample.
    pub(super) async fn new(link: &Link, deadline: Instant) -> Result<Self> {
        Ok(Self { sample: RwLock::new(sample(link, deadline).await?) })
    }

    /// Compares with the primary.
    pub(super) async fn compare(&self, link: &Link, deadline: Instant) -> Result<()> {
        let sample = sample(link, deadline).await?;
        *self.sample.write().unwrap_or_else(PoisonError::into_inner) = sample;
        Ok(())
    }

    /// The present moment in milliseconds since 1970.
    pub(super) fn now(&self) -> i64 {
        let Sample { at_ms, taken, .. } = *self.sample.read().unwrap_or_else(PoisonError::into_inner);
        at_ms.saturating_add(i64::try_from(taken.elapsed().as_millis()).unwrap_or(i64::MAX))
    }
}

async fn sample(link: &Link, deadline: Instant) -> Result<Sample> {
    let mut best: Option<Sample> = None;
    for _ in 0..SAMPLES_MAX {
        let sent = Instant::now();
        let reply = link.run(rawdoc! { "hello": 1 }, deadline).await?;
        let round_trip = sent.elapsed();
        let local = reply.get_datetime("localTime").map_err(|err| Error::Database(Box::new(err)))?;
        // The clock was read somewhere in between.
        let taken = sent + round_trip / 2;
        if best.is_none_or(|best| round_trip < best.round_trip) {
            best = Some(Sample { at_ms: local.timestamp_millis(), taken, round_trip });
        }
        if round_trip <= ROUND_TRIP_MAX {
            break;
        }
    }
    best.ok_or(Error::Overloaded)
}
