//! Rotation: everything that a store holds is sealed with the current key, while others go on writing.
//!
//! A pass looks at every row, a few at a time, and the next one begins where the last row was. A value that is sealed
//! with the current key costs a look, so a rotation that was cut short is begun again from the first row. It is over
//! when a whole pass has changed nothing: other nodes may have sealed with the old key during the one before.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{Error, Result, Store, seal::PLAIN};
use crate::metrics::Metrics;

/// Rows that are looked at in one call: what changes in them is one write.
pub const BATCH_ROWS: u32 = 256;

/// Passes after which it is given up: somebody keeps on sealing with another key.
const PASSES_MAX: u32 = 5;

/// Longest pause between two batches.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How far a pass has come; what is in it is the store's own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Position {
    /// the part that it is in, counted as the store counts them
    pub part: u8,
    /// the last row that was looked at
    pub key: Vec<u8>,
}

/// What one call has done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Resealed {
    /// where the next call goes on; `None`: that was the last row
    pub next: Option<Position>,
    /// rows that were looked at
    pub rows: u64,
    /// values by the key that they are sealed with now
    pub values: BTreeMap<u32, u64>,
    /// values that were sealed with another key before
    pub renewed: u64,
    /// values that changed while they were looked at, and are sealed with whatever their writer had
    pub missed: u64,
    /// values that did not open, and are as they were
    pub failed: u64,
}

/// What a store says of its keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SealedWith {
    /// the key that closes; 0: none
    pub current: u32,
    /// all that values may be sealed with, the current one among them; 0: some may be plain
    pub keys: Vec<u32>,
    /// about how many rows there are
    pub rows: u64,
}

/// How far a rotation is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Progress {
    /// what it is at
    pub state: State,
    /// the key that everything is sealed with in the end
    pub key: u32,
    /// which pass over all rows it is, from 1 on
    pub pass: u32,
    /// rows of this pass that were looked at
    pub rows: u64,
    /// about how many there are
    pub rows_about: u64,
    /// values that were sealed with the key, in all passes
    pub renewed: u64,
    /// values of this pass that did not open; the log says which
    pub failed: u64,
    /// values by the key that they are sealed with, as far as this pass has come; 0: plain
    pub values: BTreeMap<u32, u64>,
}

/// What a rotation is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// nobody has asked for one since the start
    #[default]
    Idle,
    /// it goes on
    Running,
    /// everything is sealed with the key, and the others are forgotten
    Done,
    /// it has ended, and values of other keys are left
    Incomplete,
    /// the store has failed; the log says how
    Failed,
}

/// Seals everything with the current key, and tells how far it is after each batch. Leaves writers half of the time:
/// after each batch it waits for as long as that took.
///
/// # Errors
/// What the store says; without a key. May be called again after any error, and goes on.
pub async fn rotate(store: &dyn Store, metrics: &Metrics, mut tell: impl FnMut(&Progress)) -> Result<Progress> {
    let SealedWith { current, keys, rows: rows_about } = store.sealed_with().await?;
    if current == PLAIN {
        return Err(Error::Database("no encryption key is configured".into()));
    }
    let begun = Progress { state: State::Running, key: current, rows_about, ..Progress::default() };
    if keys == [current] {
        return Ok(Progress { state: State::Done, ..begun });
    }
    let mut progress = begun;
    loop {
        let before = progress.renewed;
        let (pass, renewed) = (progress.pass + 1, progress.renewed);
        progress = Progress { state: State::Running, key: current, pass, rows_about, renewed, ..Progress::default() };
        let missed = pass_over(store, metrics, &mut progress, &mut tell).await?;
        let unchanged = progress.renewed == before && missed == 0;
        let clean = progress.failed == 0 && progress.values.keys().all(|key| *key == current);
        if clean && unchanged {
            store.retire_keys().await?;
            return Ok(Progress { state: State::Done, ..progress });
        }
        // What does not open will not open in the next pass.
        if unchanged || progress.pass == PASSES_MAX {
            return Ok(Progress { state: State::Incomplete, ..progress });
        }
    }
}

/// Gives the number of values that were missed.
async fn pass_over(
    store: &dyn Store,
    metrics: &Metrics,
    progress: &mut Progress,
    tell: &mut impl FnMut(&Progress),
) -> Result<u64> {
    let (mut place, mut missed) = (None, 0);
    loop {
        let began = Instant::now();
        let batch = store.reseal(place, BATCH_ROWS).await?;
        metrics.store_resealed_total.with_label_values(&["renewed"]).inc_by(batch.renewed);
        metrics.store_resealed_total.with_label_values(&["failed"]).inc_by(batch.failed);
        progress.rows += batch.rows;
        progress.renewed += batch.renewed;
        progress.failed += batch.failed;
        missed += batch.missed;
        for (key, values) in batch.values {
            *progress.values.entry(key).or_default() += values;
        }
        tell(progress);
        place = batch.next;
        if place.is_none() {
            return Ok(missed);
        }
        sleep(began.elapsed().min(PAUSE_MAX)).await;
    }
}
