//! One turn while it runs: the conversation to the models, their text to the watchers and to the turn's log.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::warn;
use uuid::Uuid;

use super::{
    Ending,
    log::{Log, Lost},
    row,
};
use crate::{
    bus::{Published, Topic},
    chat::{Entry, ErrorCode, Event, TurnState},
    llm::{
        Chain, Conversation,
        chain::{Made, Step},
    },
    router::{Refusal, Router, live::Live},
    store::{self, Spend, StartedTurn},
};

/// How often a silent provider's turn says that it is still there.
const LOADING_INTERVAL: Duration = Duration::from_secs(5);

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
    /// Runs to the end; `None` when the turn is not this node's any more, and there is nothing left to fix.
    pub(super) async fn until_end(&self, log: &mut Log<'_>) -> Option<Ending> {
        let conversation = tokio::select! {
            biased;
            () = self.router.0.cut.cancelled() => return Some(Ending::of(TurnState::Interrupted, Made::default())),
            () = self.live.stopped() => return Some(Ending::of(TurnState::Stopped, Made::default())),
            lost = log.lost() => return self.silent(lost, Made::default()),
            conversation = self.conversation() => conversation,
        };
        let parts = &self.router.0.parts;
        match conversation {
            Ok(Some(conversation)) => {
                self.relay(parts.models.answer(&self.started.model_id, conversation, &parts.metrics), log).await
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
    async fn relay(&self, mut answer: Chain, log: &mut Log<'_>) -> Option<Ending> {
        let metrics = &self.router.0.parts.metrics;
        let mut loading = self.began + LOADING_INTERVAL;
        let (state, failure) = loop {
            let silent = log.length() == 0;
            tokio::select! {
                biased;
                () = self.router.0.cut.cancelled() => break (TurnState::Interrupted, None),
                () = self.live.stopped() => break (TurnState::Stopped, None),
                // Before the next piece: a provider that is always ahead does not keep text from being written.
                lost = log.lost() => return self.silent(lost, answer.finish()),
                step = answer.next() => match step {
                    Step::Text { .. } if !log.holds() => return self.silent(Lost::Lapsed, answer.finish()),
                    Step::Text { model_id, text } => {
                        if silent {
                            metrics.turn_first_chunk_seconds.with_label_values(&[&self.started.model_id])
                                .observe(self.began.elapsed().as_secs_f64());
                        }
                        log.grown(self.publish(model_id, &text).await);
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

    /// Tells a piece to the watchers, and gives the length of the text with it.
    async fn publish(&self, model_id: Arc<str>, text: &str) -> u64 {
        let offset = self.live.push(&model_id, text);
        let event = Event::Piece { turn_id: self.started.turn.id, model_id, offset, content: text.into() };
        self.router.0.parts.bus.publish(&Topic::Session(self.started.turn.session_id), Published::new(event)).await;
        offset + u64::try_from(text.len()).unwrap_or_default()
    }

    /// Leaves a turn that others end, or have ended, without a word. What its requests took is charged beside it.
    fn silent(&self, lost: Lost, made: Made) -> Option<Ending> {
        if lost == Lost::Lapsed {
            warn!("the lease of a turn has run out; whoever finds it ends it");
            self.router.0.parts.metrics.turn_leases_lapsed_total.inc();
        }
        let (user_id, session_id) = (&self.started.user_id, self.started.turn.session_id);
        for spent in made.spent {
            let spend = Spend { id: Uuid::now_v7(), user_id: user_id.clone(), session_id, spent: row(spent) };
            let router = self.router.clone();
            drop(self.router.0.runners.spawn(async move { router.spend(spend).await }));
        }
        None
    }
}
