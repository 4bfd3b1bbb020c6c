//! One turn while it runs: the conversation to the models, their text to the watchers and to the turn's log.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::{Ending, log::Log};
use crate::{
    bus::{Published, Topic},
    chat::{Entry, ErrorCode, Event, TurnState},
    llm::{
        Chain, Conversation,
        chain::{Made, Step},
    },
    router::{Refusal, Router, live::Live},
    store::{self, StartedTurn, TurnText},
};

/// How often a silent provider's turn says that it is still there.
const LOADING_INTERVAL: Duration = Duration::from_secs(5);

/// However short the lease is, it is not renewed more often.
const RENEWAL_MIN: Duration = Duration::from_millis(10);

/// One turn while it runs.
pub(super) struct Run<'a> {
    pub(super) router: &'a Router,
    pub(super) started: &'a StartedTurn,
    /// what it answers, if it has just been stored
    pub(super) message: Option<Arc<Entry>>,
    pub(super) live: &'a Live,
    pub(super) began: Instant,
}

impl Run<'_> {
    /// Runs to the end; `None` when the turn was ended by somebody else, and there is nothing left to fix.
    pub(super) async fn until_end(&self) -> Option<Ending> {
        let conversation = tokio::select! {
            biased;
            () = self.router.0.cut.cancelled() => return Some(Ending::of(TurnState::Interrupted, Made::default())),
            () = self.live.stopped() => return Some(Ending::of(TurnState::Stopped, Made::default())),
            conversation = self.conversation() => conversation,
        };
        let parts = &self.router.0.parts;
        match conversation {
            Ok(Some(conversation)) => {
                self.relay(parts.models.answer(&self.started.model_id, conversation, &parts.metrics)).await
            }
            Ok(None) => None,
            Err(code) => Some(Ending::failed(code)),
        }
    }

    /// What is to be answered; `None` when somebody ended the turn before it was begun here.
    async fn conversation(&self) -> Result<Option<Conversation>, ErrorCode> {
        let (store, histories) = (&self.router.0.parts.store, &self.router.0.histories);
        let (turn, reply) = (&self.started.turn, self.started.reply_seq);
        let told = match self.message.as_ref().and_then(|message| histories.asked(message)) {
            Some(told) => told,
            None => {
                let said = histories.conversation(&**store, turn.session_id, turn.message_seq, reply).await;
                let Some(told) = said.map_err(|err| Refusal::from(err).code)? else { return Ok(None) };
                told
            }
        };
        let threads = self.threads(told.before).await.map_err(|err| Refusal::from(err).code)?;
        Ok(Some(Conversation { messages: told.messages, user_id: self.started.user_id.clone(), threads }))
    }

    /// What providers that keep conversations themselves call this one, where they hold it up to the reply at `before`
    /// and no further.
    async fn threads(&self, before: Option<u64>) -> store::Result<HashMap<String, String>> {
        let parts = &self.router.0.parts;
        let mut threads = HashMap::new();
        let Some(before) = before else { return Ok(threads) };
        for model in parts.models.chain(&self.started.model_id).into_iter().filter(|model| model.threads) {
            let thread = parts.store.thread(self.started.turn.session_id, &model.id).await?;
            let fits = thread.filter(|thread| thread.reply_seq == before);
            threads.extend(fits.map(|thread| (model.id.to_string(), thread.reference)));
        }
        Ok(threads)
    }

    /// Passes pieces on as they come, and writes them to the turn's log in batches beside that.
    async fn relay(&self, mut answer: Chain) -> Option<Ending> {
        let parts = &self.router.0.parts;
        let mut log = Log::new(self.began);
        let mut loading = self.began + LOADING_INTERVAL;
        let renewal = (parts.config.turn_lease / 3).max(RENEWAL_MIN);
        let (state, failure) = loop {
            let due = log.due(renewal);
            let silent = log.length() == 0;
            tokio::select! {
                biased;
                () = self.router.0.cut.cancelled() => break (TurnState::Interrupted, None),
                () = self.live.stopped() => break (TurnState::Stopped, None),
                kept = log.saved() => if !kept { return None },
                // Before the next piece: a provider that is always ahead does not keep text from being written.
                () = sleep_until(due) => log.begin(|text, length| {
                    Box::pin(self.save(text, length))
                }),
                step = answer.next() => match step {
                    Step::Text { model_id, text } => {
                        if silent {
                            parts.metrics.turn_first_chunk_seconds.with_label_values(&[&self.started.model_id])
                                .observe(self.began.elapsed().as_secs_f64());
                        }
                        self.publish(model_id, &text).await;
                        log.push(&text);
                    }
                    Step::Complete => break (TurnState::Complete, None),
                    Step::Failed(failure) => break (TurnState::Failed, Some(failure)),
                },
                () = sleep_until(loading), if silent => {
                    loading += LOADING_INTERVAL;
                    self.router.announce(self.started).await;
                }
            }
        };
        // Before the end is stored: the provider's request is cut.
        let made = answer.finish();
        Some(match failure {
            Some(failure) => Ending::broken(failure, made),
            None => Ending::of(state, made),
        })
    }

    async fn publish(&self, model_id: Arc<str>, text: &str) {
        let offset = self.live.push(&model_id, text);
        let event = Event::Piece { turn_id: self.started.turn.id, model_id, offset, content: text.into() };
        self.router.0.parts.bus.publish(&Topic::Session(self.started.turn.session_id), Published::new(event)).await;
    }

    /// Whether the turn is still ours to write.
    async fn save(&self, text: String, length: usize) -> bool {
        let parts = &self.router.0.parts;
        let offset = u64::try_from(length - text.len()).unwrap_or(u64::MAX);
        let piece = TurnText { offset, text };
        let kept = parts.store.extend_turn(self.started.turn.id, self.router.0.node, piece, parts.config.turn_lease);
        match kept.await {
            Ok(kept) => kept,
            Err(err) => {
                // The whole text is stored at the end; until then a crash loses more than it should.
                warn!(error = &err as &dyn std::error::Error, "turn's log is not written");
                true
            }
        }
    }
}
