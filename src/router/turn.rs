//! Running one reply: history to the model, pieces to the watchers, text to the log, and exactly one end.

mod log;
mod run;

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, error, info, info_span, warn};

use super::Router;
use crate::{
    bus::{Published, Topic},
    chat::{Entry, ErrorCode, Event, Segment, SessionId, SessionUpdate, TurnState},
    clock::now,
    llm::{
        Failure,
        chain::{self, Made},
    },
    store::{EndTurn, Purpose, Spent, StartedTurn},
};

use log::Log;
use run::Run;

/// Pauses before the end of a turn is tried to be stored once more: the first one, and the longest.
const END_PAUSE: Duration = Duration::from_millis(100);
const END_PAUSE_MAX: Duration = Duration::from_millis(1600);

/// How a turn came to its end.
struct Ending {
    state: TurnState,
    failure: Option<ErrorCode>,
    made: Made,
}

impl Ending {
    const fn of(state: TurnState, made: Made) -> Self {
        Self { state, failure: None, made }
    }

    fn failed(code: ErrorCode) -> Self {
        Self { state: TurnState::Failed, failure: Some(code), made: Made::default() }
    }

    /// No model gives more. What was said stays, and is no whole answer.
    const fn broken(failure: Failure, made: Made) -> Self {
        let state = match failure {
            Failure::Withheld => TurnState::Failed,
            _ if made.segments.is_empty() => TurnState::Failed,
            _ => TurnState::Interrupted,
        };
        Self { state, failure: Some(failure.code()), made }
    }

    /// The model that wrote the end of the text.
    fn model_id(&self) -> Option<&str> {
        self.made.segments.last().map(|segment| &*segment.model_id)
    }
}

/// A turn that this node is to run.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Taken {
    pub(super) started: StartedTurn,
    /// when the store was asked for it: from then on its lease is counted
    pub(super) asked: Instant,
}

/// What a session has left to answer when a turn of it has ended. A message that comes later starts its own turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    Nothing,
    /// a turn that waits; or nobody knows, as somebody else ended this one, or nobody could
    Maybe,
}

impl Router {
    /// Runs a turn that has started, then the queued ones of its session, in a task of its own.
    pub(super) fn spawn_runner(&self, taken: Taken) {
        let router = self.clone();
        // Boxed: a task's future is moved several times on its way.
        drop(self.0.runners.spawn(Box::pin(async move { router.run_all(taken, None).await })));
    }

    /// Runs a turn that has started, then the queued ones of its session, in order. `message`: what has just been stored
    /// and started it, if it is known that nobody has ended it since.
    pub(super) async fn run_all(&self, taken: Taken, mut message: Option<Arc<Entry>>) {
        let session_id = taken.started.turn.session_id;
        let mut next = Some(taken);
        while let Some(taken) = next {
            let (turn_id, user_id) = (taken.started.turn.id, &taken.started.user_id);
            let span = info_span!("turn", %turn_id, %session_id, %user_id);
            // After a panic the turn's lease runs out, and a sweep ends it with what its log holds.
            let run = self.run(taken, message.take());
            let ended = self.contained(run.instrument(span)).await;
            next = match ended {
                Some(Left::Nothing) => None,
                _ => self.next_queued(session_id).await,
            };
        }
    }

    /// Starts the oldest queued turn of a session, unless another one runs or the server drains.
    pub(super) async fn next_queued(&self, session_id: SessionId) -> Option<Taken> {
        if self.0.parts.lifecycle.drains() {
            return None;
        }
        let asked = Instant::now();
        match self.0.parts.store.start_turn(session_id, self.lease()).await {
            Ok(started) => started.map(|started| Taken { started, asked }),
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

    async fn run(&self, Taken { started, asked }: Taken, message: Option<Arc<Entry>>) -> Left {
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
        let run = Run { router: self, started: &started, message, live: &live, began };
        let mut log = Log::new(self, &started, &live, asked);
        let ending = self.contained(run.until_end(&mut log)).await;
        let Some(mut ending) = ending.unwrap_or_else(|| Some(Ending::failed(ErrorCode::ServiceError))) else {
            return Left::Maybe;
        };
        let mut text = live.text();
        if ending.state == TurnState::Complete {
            let Some(allowed) = log.beside(self.reply_allowed(&started, &text)).await else { return Left::Maybe };
            if !allowed {
                // Clients take back what they have shown.
                text.clear();
                ending = Ending { made: ending.made.withdrawn(), ..Ending::failed(ErrorCode::ContentRefused) };
            }
        }
        let complete = ending.state == TurnState::Complete;
        let model_id = ending.model_id().unwrap_or(&started.model_id).to_owned();
        let left = self.finish(&started, ending, text.clone(), log.lease_until()).await;
        if complete {
            self.name_by_model(&StartedTurn { model_id, ..started.clone() }, text);
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

    /// Fixes the end of a turn in the store and tells the watchers. Tries while the store fails, as long as the lease
    /// holds; after that a sweep ends the turn with what its log holds.
    async fn finish(&self, started: &StartedTurn, ending: Ending, text: String, lease_until: Instant) -> Left {
        let Ending { state, failure, made } = ending;
        let end = EndTurn {
            text: Some(text),
            usage: made.usage(),
            failure,
            thread: made.thread.filter(|_thread| state == TurnState::Complete),
            spent: made.spent.into_iter().map(row).collect(),
            segments: match &*made.segments {
                [Segment { model_id, .. }] if *model_id == started.model_id => Vec::new(),
                _ => made.segments,
            },
            ..EndTurn::of(started.turn.id, state)
        };
        let mut pause = END_PAUSE;
        loop {
            match self.end(end.clone()).await {
                Ok(ended) => return ended.unwrap_or(Left::Maybe),
                Err(err) => warn!(error = &err as &dyn std::error::Error, "end of turn is not stored yet"),
            }
            let again = Instant::now() + pause;
            if again >= lease_until {
                error!("end of turn could not be stored while its lease held; whoever finds it ends it");
                self.0.parts.metrics.turn_leases_lapsed_total.inc();
                return Left::Maybe;
            }
            sleep_until(again).await;
            pause = (pause * 2).min(END_PAUSE_MAX);
        }
    }

    /// Ends a turn, whoever asks, and tells the watchers. `None` when it had ended before.
    pub(super) async fn end(&self, end: EndTurn) -> crate::store::Result<Option<Left>> {
        let (turn_id, failure, again) = (end.turn_id, end.failure, end.again.is_some());
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
        if again && reply.content.is_empty() && !ended.asked_again {
            warn!(%turn_id, "abandoned turn is not asked again");
        }
        let session_id = reply.session_id;
        let event = Event::Ended { rev: ended.rev, failure, entry: reply };
        self.0.parts.bus.publish(&Topic::Session(session_id), Published::new(event)).await;
        Ok(Some(if ended.waiting { Left::Maybe } else { Left::Nothing }))
    }
}

fn row(spent: chain::Spent) -> Spent {
    let chain::Spent { model_id, usage, cost } = spent;
    Spent { model_id: model_id.to_string(), purpose: Purpose::Reply, usage, cost }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of<A, B, C, F: Future>(_work: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_turn_that_runs_is_small() {
        assert!(bytes_of(Router::run_all) <= 4608, "{} bytes", bytes_of(Router::run_all));
    }
}
