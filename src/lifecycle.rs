//! How the server ends: `drain` finishes what runs, `close` ends connections, `stop` drops what is left; every
//! long task is tracked and joined.

use std::{future::Future, io, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
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

/// Listens for SIGTERM and SIGINT from this call on, not only once the future is polled. The first one begins to
/// drain, the second one stops at once; then, or when the server has stopped by itself, the future ends.
///
/// # Errors
/// When the operating system refuses the handlers.
pub fn signals(lifecycle: &Lifecycle) -> io::Result<impl Future<Output = ()> + Send + use<>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let lifecycle = lifecycle.clone();
    Ok(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        tokio::select! {
            biased;
            () = lifecycle.stopping() => return,
            signal = next() => {
                tracing::info!(signal, "draining; a second signal stops at once");
                lifecycle.drain();
            }
        }
        tokio::select! {
            biased;
            () = lifecycle.stopping() => {}
            signal = next() => {
                tracing::warn!(signal, "stopping at once");
                lifecycle.stop();
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a signal to this process.
    fn raise(signal: &str) {
        let sent = std::process::Command::new("sh").args(["-c", &format!("kill -{signal} $PPID")]).status();
        assert!(sent.unwrap().success(), "{signal} was not sent");
    }

    #[tokio::test]
    async fn the_first_signal_drains_and_the_second_stops() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn(signals(&lifecycle).unwrap());
        raise("TERM");
        lifecycle.draining().await;
        assert!(!lifecycle.stop.is_cancelled(), "stopped by the first signal");
        raise("INT");
        lifecycle.stopping().await;
        lifecycle.join().await;
    }

    #[tokio::test]
    async fn waiting_for_signals_ends_with_the_server() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn(signals(&lifecycle).unwrap());
        lifecycle.stop();
        lifecycle.join().await;
        assert!(lifecycle.drains());
    }
}
