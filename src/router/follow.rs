//! Following one turn, for the exchange that asked for it: from its queue to its end.

use std::sync::Arc;

use super::{
    Router,
    cursor::{Cursor, Fit, Shown, Waiting},
    reader::Reader,
};
use crate::{
    bus::{Delivery, Published, Subscription, Topic},
    chat::{Event, SessionId, TurnId, TurnState},
    store::{self, Range},
};

/// A watcher of one turn. It ends after the turn's end was shown.
#[derive(Debug)]
pub struct Follow {
    router: Router,
    subscription: Subscription,
    session_id: SessionId,
    reader: Reader,
    loading_shown: bool,
    ended: bool,
    ready: Waiting,
}

impl Router {
    /// Listens to a turn that is about to be made. Nothing of it is missed, however early it starts.
    pub async fn follow(&self, session_id: SessionId, turn_id: TurnId) -> Follow {
        Follow {
            router: self.clone(),
            subscription: self.0.parts.bus.subscribe(Topic::Session(session_id)).await,
            session_id,
            reader: Reader::new(Cursor::start(turn_id)),
            loading_shown: false,
            ended: false,
            ready: Waiting::default(),
        }
    }
}

impl Follow {
    /// The session that the turn belongs to.
    #[must_use]
    pub const fn session_id(&self) -> SessionId {
        self.session_id
    }

    /// Notes the session's `rev` with which the turn was made, so that a later change that is lost is missed.
    pub fn saw(&self, rev: u64) {
        self.subscription.saw(rev);
    }

    /// Waits for what is to be shown next; `None` after the end. Cancel safe.
    pub async fn next(&mut self) -> Option<Shown> {
        loop {
            if let Some(shown) = self.ready.next() {
                return Some(shown);
            }
            if self.ended {
                return None;
            }
            let told = tokio::select! {
                biased;
                told = self.subscription.next() => Some(told),
                () = Reader::behind(Some(&self.reader)) => None,
            };
            let seamless = match told {
                Some(Delivery::Event(event)) => self.apply(&event) == Fit::Seamless,
                Some(Delivery::Lagged) => false,
                Some(Delivery::Word(_)) => true,
                None => {
                    self.reader.grow(&mut self.ready);
                    true
                }
            };
            if !seamless && let Err(err) = self.resync().await {
                // The sender's own exchange ends early; `attach` with its turn shows the rest.
                tracing::warn!(error = &err as &dyn std::error::Error, "turn cannot be followed");
                self.ended = true;
            }
        }
    }

    fn apply(&mut self, event: &Arc<Published>) -> Fit {
        let cursor = &mut self.reader.cursor;
        match &***event {
            Event::Loading { turn_id, model_id, .. } if *turn_id == cursor.turn_id => {
                self.loading_shown = true;
                cursor.model_id = Some(Arc::clone(model_id));
                self.ready.push(Shown::Published(Arc::clone(event)));
            }
            Event::Piece { turn_id, .. } if *turn_id == cursor.turn_id => {
                return self.reader.piece(event, &mut self.ready);
            }
            Event::Ended { entry, .. } if entry.turn_id == Some(cursor.turn_id) => {
                self.reader.clone().end(event, &mut self.ready);
                self.ended = true;
            }
            _ => {}
        }
        Fit::Seamless
    }

    async fn resync(&mut self) -> store::Result<()> {
        let store = &self.router.0.parts.store;
        let cursor = &mut self.reader.cursor;
        let turn = store.turn(cursor.turn_id).await?.ok_or(store::Error::NotFound)?;
        let Some(seq) = turn.reply_seq else { return Ok(()) };
        cursor.model_id = turn.model_id.map(Into::into);
        if turn.state == TurnState::Running {
            if !std::mem::replace(&mut self.loading_shown, true) {
                self.ready.push(Shown::Loading { turn_id: turn.id, seq });
            }
            self.reader.catch_up(&self.router, self.session_id, &mut self.ready);
            return Ok(());
        }
        let entries = store.entries(self.session_id, Range::After(seq - 1, 1)).await?;
        if let Some(entry) = entries.into_iter().next() {
            self.reader.clone().finish(&Arc::new(entry), None, &mut self.ready);
            self.ended = true;
        }
        Ok(())
    }
}
