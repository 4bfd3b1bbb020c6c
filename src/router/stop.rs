//! Ending a turn on request, wherever it runs: by its runner, who knows all of its text, else in the store.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tracing::debug;

use super::{Refusal, Router};
use crate::{
    auth::Principal,
    bus::{Delivery, Topic},
    chat::{ErrorCode, Event, NodeId, SessionId, Turn, TurnId, TurnState, word::Word},
    store::EndTurn,
};

/// How long another node may take to end a turn that it runs before it is ended without it.
const OWNER_DEADLINE: Duration = Duration::from_millis(300);

impl Router {
    /// Ends a turn that is queued or running: the provider's request is cut, the text so far is kept. On this node the
    /// end follows at once; elsewhere it is stored when this returns, after 300 ms and a write at most.
    ///
    /// # Errors
    /// `TURN_NOT_FOUND` when it is unknown, ended, or not the caller's.
    pub async fn stop(&self, principal: &Principal, turn_id: TurnId) -> Result<SessionId, Refusal> {
        let gone = || Refusal::new(ErrorCode::TurnNotFound);
        let turn = self.0.parts.store.turn(turn_id).await?.filter(|turn| !turn.state.ended()).ok_or_else(gone)?;
        let session = self.readable(principal, turn.session_id).await.map_err(|refusal| match refusal.code {
            ErrorCode::NotFound => gone(),
            _ => refusal,
        })?;
        self.stop_turn(&turn).await?;
        Ok(session.id)
    }

    /// Ends a turn as `stopped`: by its runner, else in the store.
    pub(super) async fn stop_turn(&self, turn: &Turn) -> Result<(), Refusal> {
        let live = &self.0.live;
        if let Some(owner) = turn.node.filter(|node| *node != self.0.node) {
            return match live.stop_running(turn.id) || self.stopped_by(owner, turn).await {
                true => Ok(()),
                false => self.stop_idle(turn.id).await,
            };
        }
        if live.stop(turn.id) {
            return Ok(());
        }
        let ended = self.stop_idle(turn.id).await;
        live.end(turn.id);
        ended
    }

    /// Asks the node that runs a turn to end it; whether it has.
    async fn stopped_by(&self, owner: NodeId, turn: &Turn) -> bool {
        let bus = &self.0.parts.bus;
        // Before it is asked: its answer is the end, as all watchers are told.
        let mut subscription = bus.subscribe(Topic::Session(turn.session_id)).await;
        bus.tell(&Topic::Node(owner), Arc::new(Word::Stop { turn_id: turn.id }));
        let ended = async {
            loop {
                if let Delivery::Event(event) = subscription.next().await
                    && let Event::Ended { entry, .. } = &**event
                    && entry.turn_id == Some(turn.id)
                {
                    return;
                }
            }
        };
        let ended = timeout(OWNER_DEADLINE, ended).await.is_ok();
        if !ended {
            debug!(turn_id = %turn.id, node = %owner, "the node of a turn does not end it");
            self.0.parts.metrics.turn_stops_unanswered_total.inc();
        }
        ended
    }

    /// Ends a turn in the store: a queued one, or one whose runner has just gone, or does not answer. One that was
    /// stopped meanwhile is as it should be.
    pub(super) async fn stop_idle(&self, turn_id: TurnId) -> Result<(), Refusal> {
        if self.end(EndTurn::of(turn_id, TurnState::Stopped)).await?.is_some() {
            return Ok(());
        }
        let turn = self.0.parts.store.turn(turn_id).await?;
        match turn.filter(|turn| turn.state == TurnState::Stopped) {
            Some(_) => Ok(()),
            None => Err(Refusal::new(ErrorCode::TurnNotFound)),
        }
    }

    /// Listens to what other nodes say to this one, until the server stops.
    pub async fn hear(&self) {
        let mut words = self.0.parts.bus.subscribe(Topic::Node(self.0.node)).await;
        loop {
            let told = tokio::select! {
                biased;
                () = self.0.parts.lifecycle.closing() => return,
                told = words.next() => told,
            };
            // What is lost is made up for by whoever asked.
            if let Delivery::Word(word) = told
                && let Word::Stop { turn_id } = &*word
                && !self.0.live.stop_running(*turn_id)
            {
                debug!(%turn_id, "asked to end a turn that does not run here");
            }
        }
    }
}
