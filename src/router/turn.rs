//! Running one reply: history to the model, pieces to the watchers, text to the log, and exactly one end.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture};
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, error, info, info_span, warn};

use super::{Refusal, Router, live::Live};
use crate::{
    bus::{Published, Topic},
    chat::{Entry, ErrorCode, Event, SessionId, SessionUpdate, TurnId, TurnState, Usage},
    clock::now,
    llm::{Answer, Chunk, Message, Model, Prompt, estimate_tokens},
    store::{EndTurn, Purpose, Spent, StartedTurn, TurnText},
};

/// Shown text that a crash may lose: this much, or this old, whichever comes first.
const UNSAVED_BYTES_MAX: usize = 4096;
const UNSAVED_AGE_MAX: Duration = Duration::from_millis(250);

/// However slow the store is, text is collected for so long before it is written.
const UNSAVED_AGE_MIN: Duration = Duration::from_millis(50);

/// How often a silent provider's turn says that it is still there.
const LOADING_INTERVAL: Duration = Duration::from_secs(5);

/// However short the lease is, it is not renewed more often.
const RENEWAL_MIN: Duration = Duration::from_millis(10);

/// How often the end of a turn is tried to be stored; in between a pause that doubles.
const END_ATTEMPTS: u32 = 6;
const END_PAUSE: Duration = Duration::from_millis(100);

/// How a turn came to its end.
struct Ending {
    state: TurnState,
    usage: Option<Usage>,
    failure: Option<ErrorCode>,
}

impl Ending {
    const fn of(state: TurnState) -> Self {
        Self { state, usage: None, failure: None }
    }

    const fn failed(code: ErrorCode) -> Self {
        Self { state: TurnState::Failed, usage: None, failure: Some(code) }
    }
}

/// What a session has left to answer when a turn of it has ended. A message that comes later starts its own turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    Nothing,
    /// a turn that waits; or nobody knows, as somebody else ended this one, or nobody could
    Maybe,
}

impl Router {
    /// Runs a turn that has started, then the queued ones of its session, in order, in a task of its own. `message`:
    /// what has just been stored and started it, if it is known that nobody has ended it since.
    pub(super) fn spawn_runner(&self, started: StartedTurn, mut message: Option<Arc<Entry>>) {
        let router = self.clone();
        let session_id = started.turn.session_id;
        // Boxed: a task's future is moved several times on its way.
        drop(self.0.runners.spawn(Box::pin(async move {
            let mut next = Some(started);
            while let Some(started) = next {
                let span = info_span!("turn", turn_id = %started.turn.id, %session_id, user_id = %started.user_id);
                // After a panic the turn's lease runs out, and a sweep ends it with what its log holds.
                let run = router.run(started, message.take());
                let ended = router.contained(run.instrument(span)).await;
                next = match ended {
                    Some(Left::Nothing) => None,
                    _ => router.next_queued(session_id).await,
                };
            }
        })));
    }

    /// Starts the oldest queued turn of a session, unless another one runs or the server drains.
    pub(super) async fn next_queued(&self, session_id: SessionId) -> Option<StartedTurn> {
        if self.0.parts.lifecycle.drains() {
            return None;
        }
        match self.0.parts.store.start_turn(session_id, self.lease()).await {
            Ok(started) => started,
            Err(crate::store::Error::Ended) => {
                // Its node was lost between the end of the session and that of its turns.
                self.end_open_turns(session_id).await;
                None
            }
            Err(err) => {
                // The sweep finds it again.
                error!(error = &err as &dyn std::error::Error, %session_id, "queued turn does not start");
                None
            }
        }
    }

    async fn run(&self, started: StartedTurn, message: Option<Arc<Entry>>) -> Left {
        let live = self.0.live.begin(started.turn.id);
        let began = Instant::now();
        let _running = Running::begin(self, &started, began);
        self.announce(&started).await;
        if message.is_none() {
            let update = SessionUpdate {
                last_activity: Some(now()),
                message_count: Some(started.reply_seq),
                ..SessionUpdate::of(started.turn.session_id)
            };
            self.tell_list(started.user_id.clone(), started.rev, update).await;
        }
        let model_id = started.model_id.as_str().into();
        let run = Run { router: self, started: &started, message, live: &live, model_id, began };
        let ending = self.contained(run.until_end()).await;
        let Some(mut ending) = ending.unwrap_or_else(|| Some(Ending::failed(ErrorCode::ServiceError))) else {
            return Left::Maybe;
        };
        let mut text = live.text();
        if ending.state == TurnState::Complete && !self.reply_allowed(&started, &text).await {
            // Clients take back what they have shown.
            text.clear();
            ending = Ending { usage: ending.usage, ..Ending::failed(ErrorCode::ContentRefused) };
        }
        let complete = ending.state == TurnState::Complete;
        let left = self.finish(&started, ending, Some(text.clone())).await;
        if complete {
            self.name_by_model(&started, text);
        }
        left
    }

    async fn announce(&self, started: &StartedTurn) {
        let event = Event::Loading {
            rev: started.rev,
            turn_id: started.turn.id,
            seq: started.reply_seq,
            model_id: started.model_id.as_str().into(),
        };
        self.0.parts.bus.publish(&Topic::Session(started.turn.session_id), Published::new(event)).await;
    }

    /// Fixes the end of a turn in the store and tells the watchers. Tries for some seconds while the store fails;
    /// after that the lease runs out and a sweep ends the turn with what its log holds.
    async fn finish(&self, started: &StartedTurn, ending: Ending, text: Option<String>) -> Left {
        let end = EndTurn {
            text,
            usage: ending.usage,
            failure: ending.failure,
            spent: ending.usage.map(|usage| spent(started, usage)).into_iter().collect(),
            ..EndTurn::of(started.turn.id, ending.state)
        };
        let mut pause = END_PAUSE;
        for _attempt in 0..END_ATTEMPTS {
            match self.end(end.clone()).await {
                Ok(ended) => return ended.unwrap_or(Left::Maybe),
                Err(err) => warn!(error = &err as &dyn std::error::Error, "end of turn is not stored yet"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        error!("end of turn could not be stored; its lease will run out");
        Left::Maybe
    }

    /// Ends a turn, whoever asks, and tells the watchers. `None` when it had ended before.
    pub(super) async fn end(&self, end: EndTurn) -> crate::store::Result<Option<Left>> {
        let failure = end.failure;
        let Some(ended) = self.0.parts.store.end_turn(end).await? else { return Ok(None) };
        self.0.histories.answered(&ended.reply);
        let reply = Arc::new(ended.reply);
        let state = reply.state.unwrap_or(TurnState::Complete);
        let model = reply.model_id.as_deref().unwrap_or_default();
        let metrics = &self.0.parts.metrics;
        metrics.turns_ended_total.with_label_values(&[model, state_name(state)]).inc();
        if let Some(usage) = reply.usage {
            metrics.tokens_total.with_label_values(&[model, "prompt"]).inc_by(usage.prompt_tokens);
            metrics.tokens_total.with_label_values(&[model, "completion"]).inc_by(usage.completion_tokens);
        }
        info!(state = state_name(state), size_bytes = reply.length, "turn ended");
        let session_id = reply.session_id;
        let event = Event::Ended { rev: ended.rev, failure, entry: reply };
        self.0.parts.bus.publish(&Topic::Session(session_id), Published::new(event)).await;
        Ok(Some(if ended.waiting { Left::Maybe } else { Left::Nothing }))
    }

    /// Ends a turn that no task of this node runs: a queued one, or one whose runner has just gone.
    pub(super) async fn stop_idle(&self, turn_id: TurnId) -> Result<(), Refusal> {
        match self.end(EndTurn::of(turn_id, TurnState::Stopped)).await? {
            Some(_) => Ok(()),
            None => Err(Refusal::new(ErrorCode::TurnNotFound)),
        }
    }
}

/// What the one request of a turn took.
fn spent(started: &StartedTurn, usage: Usage) -> Spent {
    Spent { model_id: started.model_id.clone(), purpose: Purpose::Reply, usage, cost: None }
}

const fn state_name(state: TurnState) -> &'static str {
    match state {
        TurnState::Queued => "queued",
        TurnState::Running => "running",
        TurnState::Complete => "complete",
        TurnState::Stopped => "stopped",
        TurnState::Interrupted => "interrupted",
        TurnState::Failed => "failed",
    }
}

/// Counts a turn as running until it is dropped, however its task ends.
struct Running<'a> {
    router: &'a Router,
    started: &'a StartedTurn,
    began: Instant,
}

impl<'a> Running<'a> {
    fn begin(router: &'a Router, started: &'a StartedTurn, began: Instant) -> Self {
        router.0.parts.metrics.turns_running.inc();
        Self { router, started, began }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let metrics = &self.router.0.parts.metrics;
        self.router.0.live.end(self.started.turn.id);
        metrics.turns_running.dec();
        let duration = metrics.turn_duration_seconds.with_label_values(&[&self.started.model_id]);
        duration.observe(self.began.elapsed().as_secs_f64());
    }
}

/// One turn while it runs.
struct Run<'a> {
    router: &'a Router,
    started: &'a StartedTurn,
    message: Option<Arc<Entry>>,
    live: &'a Live,
    model_id: Arc<str>,
    began: Instant,
}

impl Run<'_> {
    /// Runs to the end; `None` when the turn was ended by somebody else, and there is nothing left to fix.
    async fn until_end(&self) -> Option<Ending> {
        let parts = &self.router.0.parts;
        let answer = async {
            let models = &parts.models;
            let model = models.get(&self.started.model_id).or_else(|| models.get(models.default_id()));
            let model = model.ok_or(ErrorCode::LlmUnavailable)?;
            let Some(prompt) = self.prompt(model).await.map_err(|refusal| refusal.code)? else { return Ok(None) };
            model.provider.stream(&prompt).await.map(Some).map_err(|err| {
                warn!(error = &err as &dyn std::error::Error, "provider refused");
                err.failure.code()
            })
        };
        let mut answer = std::pin::pin!(answer);
        let mut still_there = tokio::time::interval_at(self.began + LOADING_INTERVAL, LOADING_INTERVAL);
        let renewal = (parts.config.turn_lease / 3).max(RENEWAL_MIN);
        let mut renewal = tokio::time::interval_at(self.began + renewal, renewal);
        let answer = loop {
            tokio::select! {
                biased;
                () = self.router.0.cut.cancelled() => return Some(Ending::of(TurnState::Interrupted)),
                () = self.live.stopped() => return Some(Ending::of(TurnState::Stopped)),
                answer = &mut answer => match answer {
                    Ok(Some(answer)) => break answer,
                    Ok(None) => return None,
                    Err(code) => return Some(Ending::failed(code)),
                },
                _ = still_there.tick() => self.router.announce(self.started).await,
                _ = renewal.tick() => if !self.renew().await { return None },
            }
        };
        self.relay(answer).await
    }

    async fn renew(&self) -> bool {
        // Nothing has been said yet.
        save(self, String::new(), 0).await
    }

    /// Passes pieces on as they come, and writes them to the turn's log in batches beside that.
    async fn relay(&self, mut answer: Answer) -> Option<Ending> {
        let parts = &self.router.0.parts;
        let mut log = Log::new(self.began);
        let mut usage = None;
        let mut loading = self.began + LOADING_INTERVAL;
        let ending = loop {
            let due = log.due(parts.config.turn_lease / 3);
            let silent = log.length() == 0;
            tokio::select! {
                biased;
                () = self.router.0.cut.cancelled() => break Ending { usage, ..Ending::of(TurnState::Interrupted) },
                () = self.live.stopped() => break Ending { usage, ..Ending::of(TurnState::Stopped) },
                kept = log.saved() => if !kept { return None },
                // Before the next piece: a provider that is always ahead does not keep text from being written.
                () = sleep_until(due) => log.begin(|text, length| {
                    Box::pin(save(self, text, length))
                }),
                chunk = answer.next() => match chunk {
                    Some(Ok(Chunk::Text(text))) => {
                        if silent {
                            parts.metrics.turn_first_chunk_seconds.with_label_values(&[&self.started.model_id])
                                .observe(self.began.elapsed().as_secs_f64());
                        }
                        self.publish(&text).await;
                        log.push(&text);
                    }
                    Some(Ok(Chunk::Usage(reported))) => usage = Some(reported),
                    Some(Ok(Chunk::Thread(_))) => {}
                    Some(Ok(Chunk::Done)) => break Ending { usage, ..Ending::of(TurnState::Complete) },
                    Some(Err(err)) => {
                        warn!(error = &err as &dyn std::error::Error, "provider failed");
                        break Ending { usage, ..Ending::failed(err.failure.code()) };
                    }
                    None => break Ending { usage, ..Ending::failed(ErrorCode::LlmUnavailable) },
                },
                () = sleep_until(loading), if silent => {
                    loading += LOADING_INTERVAL;
                    self.router.announce(self.started).await;
                }
            }
        };
        // Dropped first: the provider's request is cut before the end is stored.
        drop(answer);
        Some(ending)
    }

    async fn publish(&self, text: &str) {
        let offset = self.live.push(text);
        let model_id = Arc::clone(&self.model_id);
        let event = Event::Piece { turn_id: self.started.turn.id, model_id, offset, content: text.into() };
        self.router.0.parts.bus.publish(&Topic::Session(self.started.turn.session_id), Published::new(event)).await;
    }

    /// Makes the prompt; `None` when somebody ended the turn before it was begun here.
    async fn prompt(&self, model: &Model) -> Result<Option<Prompt>, Refusal> {
        let parts = &self.router.0.parts;
        let turn = &self.started.turn;
        let histories = &self.router.0.histories;
        let mut messages = match self.message.as_ref().and_then(|message| histories.asked(message)) {
            Some(messages) => messages,
            None => {
                let (message, reply) = (turn.message_seq, self.started.reply_seq);
                let said = histories.conversation(&*parts.store, turn.session_id, message, reply).await?;
                let Some(messages) = said else { return Ok(None) };
                messages
            }
        };
        let answer = model.max_tokens.map_or(model.context_tokens / 4, |tokens| tokens.min(model.context_tokens / 2));
        fit(&mut messages, u64::from(model.context_tokens - answer));
        let system = model.system_prompt.clone();
        Ok(Some(Prompt { system, messages, user_id: self.started.user_id.clone(), thread: None }))
    }
}

async fn save(run: &Run<'_>, text: String, length: usize) -> bool {
    let parts = &run.router.0.parts;
    let offset = u64::try_from(length - text.len()).unwrap_or(u64::MAX);
    let piece = TurnText { offset, text };
    match parts.store.extend_turn(run.started.turn.id, run.router.0.node, piece, parts.config.turn_lease).await {
        Ok(kept) => kept,
        Err(err) => {
            // The whole text is stored at the end; until then a crash loses more than it should.
            warn!(error = &err as &dyn std::error::Error, "turn's log is not written");
            true
        }
    }
}

/// What of a turn's text has not been written to its log yet.
struct Log<'a> {
    unsaved: String,
    length: usize,
    oldest: Instant,
    writing: Option<BoxFuture<'a, bool>>,
    began: Instant,
    /// how long the last write took
    took: Duration,
}

impl<'a> Log<'a> {
    const fn new(began: Instant) -> Self {
        Self { unsaved: String::new(), length: 0, oldest: began, writing: None, began, took: Duration::ZERO }
    }

    const fn length(&self) -> usize {
        self.length
    }

    fn push(&mut self, text: &str) {
        if self.unsaved.is_empty() {
            self.oldest = Instant::now();
        }
        self.unsaved.push_str(text);
        self.length += text.len();
    }

    /// When the next write is due; with nothing to write, the lease alone asks for one.
    fn due(&self, renew: Duration) -> Instant {
        match (&self.writing, self.unsaved.len()) {
            (Some(_), _) => Instant::now() + UNSAVED_AGE_MAX,
            (None, 0) => self.oldest + renew,
            (None, bytes) if bytes >= UNSAVED_BYTES_MAX => self.oldest,
            // Text is at risk until its write is done, so a slow store is asked earlier.
            (None, _) => self.oldest + UNSAVED_AGE_MAX.saturating_sub(self.took).max(UNSAVED_AGE_MIN),
        }
    }

    fn begin(&mut self, write: impl FnOnce(String, usize) -> BoxFuture<'a, bool>) {
        if self.writing.is_none() {
            self.oldest = Instant::now();
            self.began = self.oldest;
            self.writing = Some(write(std::mem::take(&mut self.unsaved), self.length));
        }
    }

    /// Resolves when a write is done, with whether the turn is still ours; never while none is under way.
    async fn saved(&mut self) -> bool {
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

/// Drops the oldest messages until the rest fits a budget of tokens; the last one always stays.
fn fit(messages: &mut Vec<Message>, tokens_max: u64) {
    let mut tokens = 0;
    let kept = messages.iter().rev().take_while(|message| {
        tokens += estimate_tokens(&message.content);
        tokens <= tokens_max
    });
    let kept = kept.count().max(1);
    messages.drain(..messages.len().saturating_sub(kept));
}
