//! The running turns of other nodes whose text somebody here reads from its middle: one shared text each. It is read
//! from the turn's log, and what is told live is kept beside it until the log has come that far.
//!
//! However many viewers come at once, the log is read once for all of them. A viewer that has got as far as what is told
//! live needs it no longer, and with the last one it goes.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;

use super::{Router, live::Live};
use crate::{
    bus::{Delivery, Published, Topic},
    chat::{Event, SessionId, TurnId},
    store,
};

/// How often the log is read while something is missing. A log is at most a quarter of a second behind its turn; after
/// so many reads more rarely, up to the longest pause: its node may be gone, or the provider silent.
const READ_PAUSE: Duration = Duration::from_millis(60);
const READS_IN_HASTE: u32 = 8;
const READ_PAUSE_MAX: Duration = Duration::from_secs(2);

/// What is told live and kept until the log reaches it: at most so many pieces, and bytes. What does not fit is read.
const AHEAD_PIECES_MAX: usize = 256;
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// The text of another node's running turn, as far as this node has it. It grows while somebody holds it.
#[derive(Debug)]
pub(super) struct Remote {
    turn_id: TurnId,
    live: Arc<Live>,
    length: watch::Receiver<u64>,
    kept: Kept,
    /// ends the task that follows the turn
    _left: DropGuard,
}

type Kept = Arc<Mutex<HashMap<TurnId, Weak<Remote>>>>;

/// Those of this node: one for each turn that somebody reads from its middle.
#[derive(Debug, Default)]
pub(super) struct Remotes(Kept);

impl Remote {
    /// The text.
    pub(super) const fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Resolves when there is text beyond a byte; never, if there will be none. Cancel safe.
    pub(super) async fn grown(&self, offset: u64) {
        if self.length.clone().wait_for(|length| *length > offset).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Another one may have taken its place.
        if kept.get(&self.turn_id).is_some_and(|remote| remote.strong_count() == 0) {
            kept.remove(&self.turn_id);
        }
    }
}

impl Router {
    /// The text of a turn that does not run here, shared by all who read it.
    pub(super) fn remote(&self, session_id: SessionId, turn_id: TurnId) -> Arc<Remote> {
        let Remotes(kept) = &self.0.remotes;
        let mut remotes = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = remotes.get(&turn_id).and_then(Weak::upgrade) {
            return remote;
        }
        let (grown, length) = watch::channel(0);
        let (live, left) = (Arc::<Live>::default(), CancellationToken::new());
        let follower = Follower {
            router: self.clone(),
            session_id,
            turn_id,
            live: Arc::clone(&live),
            grown,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            missing: Some(Missing::from(Instant::now())),
            left: left.clone(),
        };
        self.0.parts.lifecycle.spawn(follower.run());
        let kept = Arc::clone(kept);
        let remote = Arc::new(Remote { turn_id, live, length, kept, _left: left.drop_guard() });
        remotes.insert(turn_id, Arc::downgrade(&remote));
        remote
    }
}

/// The task that keeps one text.
struct Follower {
    router: Router,
    session_id: SessionId,
    turn_id: TurnId,
    live: Arc<Live>,
    grown: watch::Sender<u64>,
    /// what was told beyond the end of the text, in order
    ahead: VecDeque<Arc<Published>>,
    ahead_bytes: usize,
    /// something between the text and what is told may be missing
    missing: Option<Missing>,
    left: CancellationToken,
}

/// When the log is read, and how often it was in vain.
#[derive(Clone, Copy)]
struct Missing {
    at: Instant,
    reads: u32,
}

impl Missing {
    const fn from(at: Instant) -> Self {
        Self { at, reads: 0 }
    }

    fn later(self) -> Self {
        let doubled = self.reads.saturating_sub(READS_IN_HASTE).min(16);
        let pause = (READ_PAUSE * 2_u32.pow(doubled)).min(READ_PAUSE_MAX);
        Self { at: Instant::now() + pause, reads: self.reads.saturating_add(1) }
    }
}

impl Follower {
    async fn run(mut self) {
        // Before the first read: what is told after it is heard.
        let mut subscription = self.router.0.parts.bus.subscribe(Topic::Session(self.session_id)).await;
        let (router, left) = (self.router.clone(), self.left.clone());
        loop {
            let due = self.missing.map(|missing| missing.at);
            tokio::select! {
                biased;
                () = left.cancelled() => return,
                () = router.0.parts.lifecycle.closing() => return,
                told = subscription.next() => match told {
                    Delivery::Event(event) => match &**event {
                        Event::Piece { turn_id, .. } if *turn_id == self.turn_id => self.told(&event),
                        Event::Ended { entry, .. } if entry.turn_id == Some(self.turn_id) => return,
                        _ => {}
                    },
                    Delivery::Lagged => self.missing = Some(Missing::from(Instant::now())),
                    Delivery::Word(_) => {}
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    router.0.parts.metrics.turn_log_reads_total.inc();
                    let text = router.0.parts.store.turn_text(self.turn_id, self.live.length());
                    tokio::select! {
                        biased;
                        () = left.cancelled() => return,
                        () = router.0.parts.lifecycle.closing() => return,
                        read = text => self.read(read),
                    }
                }
            }
            let length = self.live.length();
            self.grown.send_if_modified(|grown| std::mem::replace(grown, length) < length);
        }
    }

    /// Takes what was told live: it fits, or waits for what is between.
    fn told(&mut self, event: &Arc<Published>) {
        let Event::Piece { model_id, offset, content, .. } = &***event else { return };
        if self.live.join(Some(model_id), *offset, content) {
            self.missing = None;
            self.join_ahead();
        } else if self.ahead.len() < AHEAD_PIECES_MAX && self.ahead_bytes + content.len() <= AHEAD_BYTES_MAX {
            self.ahead_bytes += content.len();
            self.ahead.push_back(Arc::clone(event));
            self.missing.get_or_insert_with(|| Missing::from(Instant::now()));
        }
    }

    /// Takes what the log held behind the end of the text.
    fn read(&mut self, read: store::Result<store::TurnText>) {
        match read {
            Ok(text) => drop(self.live.join(None, text.offset, &text.text)),
            Err(err) => warn!(error = &err as &dyn std::error::Error, "log of a turn is not read yet"),
        }
        self.missing = self.missing.map(Missing::later);
        self.join_ahead();
    }

    fn join_ahead(&mut self) {
        while let Some(event) = self.ahead.front()
            && let Event::Piece { model_id, offset, content, .. } = &***event
            && self.live.join(Some(model_id), *offset, content)
        {
            self.ahead_bytes -= content.len();
            self.ahead.pop_front();
            // With the first one the text has come to what is told.
            self.missing = None;
        }
        if !self.ahead.is_empty() {
            self.missing.get_or_insert_with(|| Missing::from(Instant::now()));
        }
    }
}
