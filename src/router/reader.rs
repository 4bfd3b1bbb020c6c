//! Reading one running turn: what is told of it where that fits, else what this node has of its text.

use std::sync::Arc;

use super::{
    Router,
    cursor::{Cursor, Fit, Waiting},
    remote::Remote,
};
use crate::{
    bus::Published,
    chat::{Entry, ErrorCode, SessionId},
};

/// A cursor in a running turn's text, and where the text comes from that it was not told.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    pub(super) cursor: Cursor,
    /// while something is missing between what was shown and what is told: the turn runs elsewhere
    remote: Option<Arc<Remote>>,
}

impl Reader {
    pub(super) const fn new(cursor: Cursor) -> Self {
        Self { cursor, remote: None }
    }

    /// Shows what is new of the piece that `event` is.
    pub(super) fn piece(&mut self, event: &Arc<Published>, out: &mut Waiting) -> Fit {
        match self.cursor.piece(event, out) {
            Fit::Seamless => {
                self.remote = None;
                Fit::Seamless
            }
            // The shared text was told of it too, and grows when it has what is before it.
            Fit::Hole if self.remote.is_some() => Fit::Seamless,
            Fit::Hole => Fit::Hole,
        }
    }

    /// Shows what the turn has come to while the watcher was not told: from this node's memory, else from the text that
    /// all such watchers of this node share, as far as it goes, and as it grows.
    pub(super) fn catch_up(&mut self, router: &Router, session_id: SessionId, out: &mut Waiting) {
        match router.0.live.get(self.cursor.turn_id) {
            Some(live) => {
                self.remote = None;
                self.cursor.follow(live, out);
            }
            None => {
                let remote = || router.remote(session_id, self.cursor.turn_id);
                let live = Arc::clone(self.remote.get_or_insert_with(remote).live());
                self.cursor.follow(live, out);
            }
        }
    }

    /// Whether the text is read beside what is told.
    pub(super) const fn reads(&self) -> bool {
        self.remote.is_some()
    }

    /// Resolves when the shared text has more than was shown; never while none is read. Cancel safe.
    pub(super) async fn behind(reader: Option<&Self>) {
        match reader.and_then(|reader| Some((reader.remote.as_ref()?, reader.cursor.offset))) {
            // Boxed, being rare: an idle watch keeps no room for it.
            Some((remote, offset)) => Box::pin(remote.grown(offset)).await,
            None => std::future::pending().await,
        }
    }

    /// Shows what the shared text has grown by.
    pub(super) fn grow(&mut self, out: &mut Waiting) {
        if let Some(remote) = &self.remote {
            let live = Arc::clone(remote.live());
            self.cursor.follow(live, out);
        }
    }

    /// Shows what is missing of the reply that `event` ends, and its end.
    pub(super) fn end(self, event: &Arc<Published>, out: &mut Waiting) {
        self.cursor.end(event, out);
    }

    /// Shows what is missing of a reply that has settled, and its end.
    pub(super) fn finish(self, entry: &Arc<Entry>, failure: Option<ErrorCode>, out: &mut Waiting) {
        self.cursor.finish(entry, failure, out);
    }
}
