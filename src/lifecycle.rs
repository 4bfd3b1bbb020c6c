//! How the server ends: `drain` finishes what runs, `close` ends connections, `stop` drops what is left; every
//! long task is tracked and joined.

use std::{future::Future, time::Duration};

use serde::{Deserialize, Serialize};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How the server ends.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// how long running turns may go on after the first signal
    #[serde(with = "crate::config::duration")]
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(125) }
    }
}

/// The tokens and the tracker that every task of the server hangs on. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    drain: CancellationToken,
    close: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// Starts a task that [`Self::join`] waits for. It must end soon after `stopping` resolves.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.tasks.spawn(task));
    }

    /// Resolves when the server has begun to drain: nothing new is taken on.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Whether the server has begun to drain.
    #[must_use]
    pub fn drains(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Resolves when no turn runs any more, and every connection is to end with a close code.
    pub async fn closing(&self) {
        self.close.cancelled().await;
    }

    /// Resolves when whatever still runs is to be dropped.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Begins to drain.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends every connection with a close code.
    pub fn close(&self) {
        self.drain.cancel();
        self.close.cancel();
    }

    /// Drops what runs.
    pub fn stop(&self) {
        self.close();
        self.stop.cancel();
    }

    /// Waits until every task has ended.
    pub async fn join(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
