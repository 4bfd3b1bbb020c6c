//! How the server ends: `leave` says so to whoever asks, `drain` finishes what runs, `close` ends connections, `stop`
//! drops what is left; every long task is tracked and joined.

use std::{future::Future, io, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How the server ends.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// how long running turns may go on once the drain has begun
    #[serde(with = "crate::config::duration")]
    pub timeout: Duration,
    /// from the first signal to the drain: not ready any more, everything else as before, so that load balancers send
    /// nobody who would be refused
    #[serde(with = "crate::config::duration")]
    pub delay: Duration,
    /// clients come back within this time, each at a moment of its own; [`SPREAD_MAX`] at most
    #[serde(with = "crate::config::duration")]
    pub spread: Duration,
}

/// Longest time within which clients are told to come back: nobody waits longer for a reply that goes on.
pub const SPREAD_MAX: Duration = Duration::from_secs(300);

/// What the end takes beyond `delay` and `timeout`, if every one of its steps needs all of its time.
const STEPS_MAX: Duration = Duration::from_secs(35);

impl Default for Config {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(125), delay: Duration::ZERO, spread: Duration::from_secs(5) }
    }
}

impl Config {
    /// How long the end may take from the first signal on. Whoever kills the process should wait for as long.
    #[must_use]
    pub const fn ends_within(&self) -> Duration {
        self.delay.saturating_add(self.timeout).saturating_add(STEPS_MAX)
    }
}

/// The tokens and the tracker that every task of the server hangs on. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Lifecycle {
    config: Config,
    leave: CancellationToken,
    drain: CancellationToken,
    close: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Lifecycle {
    /// Of a server that ends as it is configured.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { config: config.clone(), ..Self::default() }
    }

    /// When a client of this server should come back after the drain has begun, from a random number of its own.
    #[must_use]
    pub fn returns_after(&self, random: u64) -> Duration {
        let spread = u64::try_from(self.config.spread.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(random.checked_rem(spread).unwrap_or_default())
    }

    /// Starts a task that [`Self::join`] waits for. It must end soon after `stopping` resolves.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.tasks.spawn(task));
    }

    /// Resolves when the server is to end: nobody new should be sent to it.
    pub async fn leaving(&self) {
        self.leave.cancelled().await;
    }

    /// Whether the server is to end, or ends already.
    #[must_use]
    pub fn leaves(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// Waits for `drain.delay` once the server is to end, then begins to drain.
    pub async fn drain_after_delay(&self) {
        self.leaving().await;
        tokio::select! {
            biased;
            () = self.draining() => {}
            () = tokio::time::sleep(self.config.delay) => self.drain(),
        }
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

    /// Begins to end: the drain follows after `drain.delay`.
    pub fn leave(&self) {
        self.leave.cancel();
    }

    /// Begins to drain, at once.
    pub fn drain(&self) {
        self.leave.cancel();
        self.drain.cancel();
    }

    /// Ends every connection with a close code.
    pub fn close(&self) {
        self.drain();
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

/// Listens for SIGTERM and SIGINT from this call on, not only once the future is polled. The first one begins the
/// end, the second one stops at once; then, or when the server has stopped by itself, the future ends.
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
                tracing::info!(signal, "leaving; a second signal stops at once");
                lifecycle.leave();
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
    async fn the_first_signal_begins_the_end_and_the_second_stops() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn(signals(&lifecycle).unwrap());
        raise("TERM");
        lifecycle.leaving().await;
        assert!(!lifecycle.drains(), "drained before its time");
        assert!(!lifecycle.stop.is_cancelled(), "stopped by the first signal");
        raise("INT");
        lifecycle.stopping().await;
        lifecycle.join().await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_drain_comes_after_its_delay() {
        let lifecycle = Lifecycle::new(&Config { delay: Duration::from_secs(7), ..Config::default() });
        let began = tokio::time::Instant::now();
        lifecycle.leave();
        assert_eq!((lifecycle.leaves(), lifecycle.drains()), (true, false));
        lifecycle.drain_after_delay().await;
        assert_eq!((lifecycle.drains(), began.elapsed()), (true, Duration::from_secs(7)));
        assert_eq!(lifecycle.config.ends_within(), Duration::from_secs(7 + 125 + 35));
    }

    /// checklist 118: a peak of a tenth of the time is no higher than a fifth above the mean.
    #[test]
    fn clients_come_back_evenly_within_the_spread() {
        let lifecycle = Lifecycle::new(&Config { spread: Duration::from_secs(20), ..Config::default() });
        let mut tenths = [0_u32; 10];
        for _ in 0..10_000 {
            // As ids of connections are.
            let after = lifecycle.returns_after(uuid::Uuid::now_v7().as_u64_pair().1);
            assert!(after < Duration::from_secs(20), "{after:?}");
            tenths[usize::try_from(after.as_secs() / 2).unwrap()] += 1;
        }
        assert!(tenths.iter().all(|tenth| (800..=1200).contains(tenth)), "{tenths:?}");
        let at_once = Lifecycle::new(&Config { spread: Duration::ZERO, ..Config::default() });
        assert_eq!(at_once.returns_after(77), Duration::ZERO);
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
