//! What of a turn's text is written to its log, and when.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

/// Shown text that a crash may lose: this much, or this old, whichever comes first.
const UNSAVED_BYTES_MAX: usize = 4096;
const UNSAVED_AGE_MAX: Duration = Duration::from_millis(250);

/// However slow the store is, text is collected for so long before it is written.
const UNSAVED_AGE_MIN: Duration = Duration::from_millis(50);

/// What of a turn's text has not been written to its log yet.
pub(super) struct Log<'a> {
    unsaved: String,
    length: usize,
    oldest: Instant,
    writing: Option<BoxFuture<'a, bool>>,
    began: Instant,
    /// how long the last write took
    took: Duration,
}

impl<'a> Log<'a> {
    pub(super) const fn new(began: Instant) -> Self {
        Self { unsaved: String::new(), length: 0, oldest: began, writing: None, began, took: Duration::ZERO }
    }

    pub(super) const fn length(&self) -> usize {
        self.length
    }

    pub(super) fn push(&mut self, text: &str) {
        if self.unsaved.is_empty() {
            self.oldest = Instant::now();
        }
        self.unsaved.push_str(text);
        self.length += text.len();
    }

    /// When the next write is due; with nothing to write, the lease alone asks for one.
    pub(super) fn due(&self, renew: Duration) -> Instant {
        match (&self.writing, self.unsaved.len()) {
            (Some(_), _) => Instant::now() + UNSAVED_AGE_MAX,
            (None, 0) => self.oldest + renew,
            (None, bytes) if bytes >= UNSAVED_BYTES_MAX => self.oldest,
            // Text is at risk until its write is done, so a slow store is asked earlier.
            (None, _) => self.oldest + UNSAVED_AGE_MAX.saturating_sub(self.took).max(UNSAVED_AGE_MIN),
        }
    }

    pub(super) fn begin(&mut self, write: impl FnOnce(String, usize) -> BoxFuture<'a, bool>) {
        if self.writing.is_none() {
            self.oldest = Instant::now();
            self.began = self.oldest;
            self.writing = Some(write(std::mem::take(&mut self.unsaved), self.length));
        }
    }

    /// Resolves when a write is done, with whether the turn is still ours; never while none is under way.
    pub(super) async fn saved(&mut self) -> bool {
        match &mut self.writing {
            Some(write) => {
                let kept = write.await;
                self.writing = None;
                self.took = self.began.elapsed();
                kept
            }
            None => std::future::pending().await,
        }
    }
}
