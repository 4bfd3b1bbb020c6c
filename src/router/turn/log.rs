//! What of a turn's text is written to its log, and when; and until when this node may speak for the turn.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::{
    router::{Router, live::Live},
    store::{self, StartedTurn, TurnText},
};

/// Shown text that a crash may lose: this much, or this old, whichever comes first.
const UNSAVED_BYTES_MAX: u64 = 4096;
const UNSAVED_AGE_MAX: Duration = Duration::from_millis(250);

/// However slow the store is, text is collected for so long before it is written.
const UNSAVED_AGE_MIN: Duration = Duration::from_millis(50);

/// However short the lease is, it is not renewed more often.
const RENEWAL_MIN: Duration = Duration::from_millis(10);

/// Pauses before a write that failed is repeated: the first one, and the longest.
const AGAIN_PAUSE: Duration = Duration::from_millis(50);
const AGAIN_PAUSE_MAX: Duration = Duration::from_millis(800);

/// Why a turn is not this node's any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lost {
    /// somebody ended it
    Ended,
    /// the store has confirmed nothing for as long as the lease holds: somebody else may end it
    Lapsed,
}

/// The log of one running turn. Every write of it renews the turn's lease, which is counted from before the write was
/// sent: by the store's clock it holds longer.
pub(super) struct Log<'a> {
    router: &'a Router,
    started: &'a StartedTurn,
    live: &'a Live,
    /// bytes of the text
    length: u64,
    /// bytes of it that are written, or on their way
    taken: u64,
    /// since when text waits that no write has taken; without any, since when nothing has been written
    since: Instant,
    write: Write<'a>,
    /// how long the last write took
    took: Duration,
    lease_until: Instant,
}

enum Write<'a> {
    None,
    /// one is under way
    Sent {
        piece: Piece,
        at: Instant,
        outcome: BoxFuture<'a, store::Result<bool>>,
    },
    /// it is not known whether the last one was done: the same one again, as the store knows it by its place and text
    Failed {
        piece: Piece,
        again: Instant,
    },
}

/// What one write takes of the text.
#[derive(Clone, Copy)]
struct Piece {
    from: u64,
    until: u64,
    /// before it is repeated
    pause: Duration,
}

impl<'a> Log<'a> {
    /// The log of a turn that was taken on by a call of the store that began at `asked`.
    pub(super) fn new(router: &'a Router, started: &'a StartedTurn, live: &'a Live, asked: Instant) -> Self {
        let lease_until = asked + router.0.parts.config.turn_lease;
        Self {
            router,
            started,
            live,
            length: 0,
            taken: 0,
            since: asked,
            write: Write::None,
            took: Duration::ZERO,
            lease_until,
        }
    }

    /// Bytes of the text.
    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// Until when this node may speak for the turn.
    pub(super) const fn lease_until(&self) -> Instant {
        self.lease_until
    }

    /// Whether this node may speak for the turn now.
    pub(super) fn holds(&self) -> bool {
        Instant::now() < self.lease_until
    }

    /// Notes that the text has grown to so many bytes.
    pub(super) fn grown(&mut self, length: u64) {
        if self.length == self.taken {
            self.since = Instant::now();
        }
        self.length = length;
    }

    /// Does what may take long, and renews the lease meanwhile; `None` when the turn is not this node's any more.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            _lost = self.lost() => None,
            done = work => Some(done),
        }
    }

    /// Writes what is due for as long as it is polled; resolves when the turn is not this node's any more. Cancel safe.
    pub(super) async fn lost(&mut self) -> Lost {
        loop {
            let Write::Sent { piece, at, outcome } = &mut self.write else {
                let due = self.due().min(self.lease_until);
                sleep_until(due).await;
                if !self.holds() {
                    return Lost::Lapsed;
                }
                self.begin();
                continue;
            };
            let kept = tokio::select! {
                biased;
                kept = outcome => kept,
                () = sleep_until(self.lease_until) => return Lost::Lapsed,
            };
            let (piece, at) = (*piece, *at);
            self.write = Write::None;
            match kept {
                Ok(true) => {
                    self.took = at.elapsed();
                    self.lease_until = at + self.ttl();
                }
                Ok(false) => return Lost::Ended,
                Err(err) => {
                    warn!(error = &err as &dyn std::error::Error, "turn's log is not written yet");
                    let pause = (piece.pause * 2).min(AGAIN_PAUSE_MAX);
                    self.write = Write::Failed { piece: Piece { pause, ..piece }, again: Instant::now() + piece.pause };
                }
            }
        }
    }

    fn ttl(&self) -> Duration {
        self.router.0.parts.config.turn_lease
    }

    /// When the next write is due; with nothing to write, the lease alone asks for one.
    fn due(&self) -> Instant {
        match (&self.write, self.length - self.taken) {
            (Write::Failed { again, .. }, _) => *again,
            (_, 0) => self.since + (self.ttl() / 3).max(RENEWAL_MIN),
            (_, bytes) if bytes >= UNSAVED_BYTES_MAX => self.since,
            // Text is at risk until its write is done, so a slow store is asked earlier.
            _ => self.since + UNSAVED_AGE_MAX.saturating_sub(self.took).max(UNSAVED_AGE_MIN),
        }
    }

    fn begin(&mut self) {
        let at = Instant::now();
        let piece = match self.write {
            Write::Failed { piece, .. } => piece,
            _ => {
                let piece = Piece { from: self.taken, until: self.length, pause: AGAIN_PAUSE };
                (self.taken, self.since) = (self.length, at);
                piece
            }
        };
        let (parts, node) = (&self.router.0.parts, self.router.0.node);
        let text = TurnText { offset: piece.from, text: self.live.between(piece.from, piece.until) };
        let outcome = parts.store.extend_turn(self.started.turn.id, node, text, parts.config.turn_lease);
        self.write = Write::Sent { piece, at, outcome };
    }
}
