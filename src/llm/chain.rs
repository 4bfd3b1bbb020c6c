//! One answer by a chain of models: asked again after a pause, replaced before their first text, gone on with after it.
//!
//! The one place where requests to models are repeated. Before any text, `Unreachable` and `Busy` are repeated with the
//! same provider, as nobody bills those; after that, and after every other failure but `Withheld`, the next model of the
//! chain is asked. What a model has said is never taken back: with `after_text = "continue"` the next one goes on
//! below [`MARK`].

use std::{collections::VecDeque, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    Answer, Chunk, Conversation, Error, Failure, Model, Prompt, breaker::Permit, config::AfterText, prompt::Begun,
};
use crate::{
    chat::{Segment, Usage},
    markdown,
    metrics::Metrics,
};

/// What stands between the texts of two models in one answer. An open code block is closed before it.
pub const MARK: &str = "\n\n---\n\n";

/// Most tokens that one request is counted with: providers report what they like.
const TOKENS_MAX: u64 = 1 << 40;

/// How failures are met.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) retries: u32,
    pub(super) pause: Duration,
    pub(super) pause_max: Duration,
    pub(super) after_text: AfterText,
}

/// What comes next of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// more text; never empty
    Text {
        /// the model that writes it; of a mark, the one before it
        model_id: Arc<str>,
        /// the text
        text: String,
    },
    /// the answer ended as its model meant it to
    Complete,
    /// nobody gives more of it
    Failed(Failure),
}

/// What an answer was made of, whether it is complete or not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Made {
    /// who wrote which part of the text, in order; empty when nobody wrote anything
    pub segments: Vec<Segment>,
    /// what the requests took that a provider may bill, in order
    pub spent: Vec<Spent>,
    /// what the provider calls the conversation that now ends with this answer, if it keeps it and wrote all of it
    pub thread: Option<String>,
}

/// What one request took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spent {
    /// the model
    pub model_id: Arc<str>,
    /// as the provider reported it, else our own count, which says so
    pub usage: Usage,
    /// price in millionths of the configured currency
    pub cost: Option<u64>,
}

impl Made {
    /// What all requests took together; `None` when there was none that may be billed.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.spent.iter().map(|spent| spent.usage).reduce(|sum, usage| Usage {
            prompt_tokens: sum.prompt_tokens.saturating_add(usage.prompt_tokens),
            completion_tokens: sum.completion_tokens.saturating_add(usage.completion_tokens),
            estimated: sum.estimated || usage.estimated,
        })
    }

    /// The same of an answer whose text is taken back: what it took stays, and who wrote its end.
    #[must_use]
    pub fn withdrawn(mut self) -> Self {
        self.segments.drain(..self.segments.len().saturating_sub(1));
        self.thread = None;
        self
    }
}

/// An answer in progress. Dropping it cuts the provider's request at once; [`Self::finish`] also tells what it took.
pub struct Chain {
    conversation: Conversation,
    /// those that have not been asked
    waiting: VecDeque<Model>,
    policy: Policy,
    metrics: Arc<Metrics>,
    /// one for all models together
    deadline: Instant,
    state: State,
    /// the request that runs
    request: Option<Request>,
    /// the text without marks, code blocks closed
    said: String,
    /// where in `said` the last writer began
    part: usize,
    /// bytes of the text, marks included
    length: u64,
    made: Made,
    /// why the last request failed; before there was one, that all of them are left alone
    failure: Failure,
    /// text that follows a mark
    held: Option<Step>,
}

enum State {
    /// nobody has been asked
    Fresh,
    /// a model is asked again at a moment
    Pausing {
        model: Model,
        until: Instant,
        repeats: u32,
    },
    Asking(BoxFuture<'static, Result<Answer, Error>>),
    Answering(Answer),
    Over(Step),
}

/// One request to one model.
struct Request {
    model: Model,
    /// how often it was asked before
    repeats: u32,
    permit: Permit,
    prompt: Arc<Prompt>,
    began: Instant,
    accepted: bool,
    wrote: bool,
    reported: Option<Usage>,
    thread: Option<String>,
}

/// What a wait came to.
enum Heard {
    Begin,
    Rested,
    Accepted(Answer),
    Chunk(Chunk),
    Failed(Error),
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain").field("made", &self.made).finish_non_exhaustive()
    }
}

impl Chain {
    /// Its deadline is that of the first model, from now on.
    pub(super) fn new(models: Vec<Model>, policy: Policy, conversation: Conversation, metrics: Arc<Metrics>) -> Self {
        let timeout = models.first().map_or(Duration::ZERO, |model| model.timeout);
        Self {
            conversation,
            waiting: models.into(),
            policy,
            metrics,
            deadline: Instant::now() + timeout,
            state: State::Fresh,
            request: None,
            said: String::new(),
            part: 0,
            length: 0,
            made: Made::default(),
            failure: Failure::Busy { retry_after: None },
            held: None,
        }
    }

    /// Waits for what comes next; the end comes again and again. Cancel safe.
    pub async fn next(&mut self) -> Step {
        loop {
            if let Some(step) = self.held.take() {
                return step;
            }
            let wait = Wait { deadline: self.deadline, metrics: &self.metrics };
            let heard = match &mut self.state {
                State::Fresh => Heard::Begin,
                State::Pausing { until, .. } => {
                    sleep_until(*until).await;
                    Heard::Rested
                }
                State::Asking(answer) => wait.of(answer).await.map_or_else(Heard::Failed, Heard::Accepted),
                State::Answering(answer) => {
                    let next = answer.next().map(|chunk| chunk.unwrap_or_else(|| Err(fault(ENDED))));
                    wait.of(next).await.map_or_else(Heard::Failed, Heard::Chunk)
                }
                State::Over(step) => return step.clone(),
            };
            // Nothing is awaited from here on: what was heard is not lost when the caller gives up.
            if let Some(step) = self.hear(heard) {
                return step;
            }
        }
    }

    /// Cuts the request that runs, and tells what the answer was made of.
    #[must_use]
    pub fn finish(mut self) -> Made {
        self.state = State::Over(Step::Failed(Failure::Broken));
        if let Some(request) = self.request.take() {
            self.settle(request, Came::Dropped);
        }
        self.made
    }

    fn hear(&mut self, heard: Heard) -> Option<Step> {
        match heard {
            Heard::Begin => self.move_on(),
            Heard::Rested => {
                if let State::Pausing { model, repeats, .. } = std::mem::replace(&mut self.state, State::Fresh) {
                    self.metrics.model_retries_total.with_label_values(&[&model.id]).inc();
                    self.ask(model, repeats);
                }
            }
            Heard::Accepted(answer) => {
                self.state = State::Answering(answer);
                self.request.as_mut()?.accepted = true;
            }
            Heard::Chunk(Chunk::Text(text)) => return self.write(text),
            Heard::Chunk(Chunk::Usage(usage)) => self.request.as_mut()?.reported = Some(usage),
            Heard::Chunk(Chunk::Thread(thread)) => self.request.as_mut()?.thread = Some(thread),
            Heard::Chunk(Chunk::Done) => {
                self.state = State::Over(Step::Complete);
                let mut request = self.request.take()?;
                self.made.thread = request.thread.take().filter(|_| self.made.segments.len() <= 1);
                self.settle(request, Came::Complete);
            }
            Heard::Failed(err) => self.fail(err),
        }
        None
    }

    /// Asks a model, unless it is left alone.
    fn ask(&mut self, model: Model, repeats: u32) {
        let permit = match model.breaker.admit() {
            Ok(permit) => permit,
            Err(_pause) => {
                self.metrics.model_requests_total.with_label_values(&[&model.id, "left_alone"]).inc();
                return self.replace(&model);
            }
        };
        let prompt = Arc::new(match self.said.is_empty() {
            true => model.prompt(&self.conversation),
            false => {
                let closing = self.closing();
                let text = format!("{}{}", self.said, closing.as_deref().unwrap_or_default());
                model.prompt_to_go_on(&self.conversation, &Begun { text: &text, in_code: closing.is_some() })
            }
        });
        let (provider, sent) = (Arc::clone(&model.provider), Arc::clone(&prompt));
        self.state = State::Asking(Box::pin(async move { provider.stream(&sent).await }));
        let (accepted, wrote, reported, thread) = (false, false, None, None);
        let began = Instant::now();
        self.request = Some(Request { model, repeats, permit, prompt, began, accepted, wrote, reported, thread });
    }

    /// Has the next model of the chain answer in place of one that does not.
    fn replace(&mut self, model: &Model) {
        if !self.waiting.is_empty() {
            self.metrics.model_fallbacks_total.with_label_values(&[&model.id]).inc();
        }
        self.move_on();
    }

    /// Asks the next model of the chain. Without one, or without time, the answer has failed.
    fn move_on(&mut self) {
        match self.waiting.pop_front().filter(|_| Instant::now() < self.deadline) {
            Some(next) => self.ask(next, 0),
            None => self.state = State::Over(Step::Failed(self.failure)),
        }
    }

    /// Takes text of the request that runs, and puts the mark before it when it goes on with another's.
    fn write(&mut self, text: String) -> Option<Step> {
        let request = self.request.as_mut()?;
        let model_id = Arc::clone(&request.model.id);
        if std::mem::replace(&mut request.wrote, true) {
            self.say(&text);
            return Some(Step::Text { model_id, text });
        }
        if request.permit.works() {
            info!(model = %model_id, "provider answers again");
        }
        let first = self.metrics.model_first_text_seconds.with_label_values(&[&model_id]);
        first.observe(request.began.elapsed().as_secs_f64());
        let mark = self.made.segments.last().map(|before| before.model_id.as_str().into()).map(|before| {
            let closing = self.closing().unwrap_or_default();
            let mark = format!("{closing}{MARK}");
            self.said.push_str(&closing);
            self.length += bytes(&mark);
            Step::Text { model_id: before, text: mark }
        });
        self.part = self.said.len();
        self.made.segments.push(Segment { offset: self.length, model_id: model_id.to_string() });
        self.say(&text);
        let step = Step::Text { model_id, text };
        let Some(mark) = mark else { return Some(step) };
        self.held = Some(step);
        Some(mark)
    }

    fn say(&mut self, text: &str) {
        self.said.push_str(text);
        self.length += bytes(text);
    }

    /// What closes the code block that the last writer left open.
    fn closing(&self) -> Option<String> {
        let part = self.said.get(self.part..).unwrap_or_default();
        let fence = markdown::open_fence(part)?;
        let line = if part.ends_with('\n') { "" } else { "\n" };
        Some(format!("{line}{fence}"))
    }

    /// Repeats, replaces, or gives up.
    fn fail(&mut self, mut err: Error) {
        let Some(request) = self.request.take() else { return };
        self.state = State::Fresh;
        err.provider = Arc::clone(&request.model.id);
        warn!(error = &err as &dyn std::error::Error, "provider failed");
        self.failure = err.failure;
        let (model, repeats, wrote) = (request.model.clone(), request.repeats, request.wrote);
        self.settle(request, Came::Failed(err.failure));
        if err.failure == Failure::Withheld || (wrote && self.policy.after_text == AfterText::Interrupt) {
            self.state = State::Over(Step::Failed(err.failure));
        } else if let Some(until) = self.pause(err.failure, repeats).filter(|_| !wrote) {
            self.state = State::Pausing { model, until, repeats: repeats + 1 };
        } else {
            self.replace(&model);
        }
    }

    /// When the same provider is asked again; `None` when it is not.
    fn pause(&self, failure: Failure, repeats: u32) -> Option<Instant> {
        let wanted = match failure {
            Failure::Unreachable => Duration::ZERO,
            Failure::Busy { retry_after } => retry_after.unwrap_or_default(),
            _ => return None,
        };
        if repeats >= self.policy.retries || wanted > self.policy.pause_max {
            return None;
        }
        let pause = self.policy.pause.saturating_mul(1 << repeats.min(16)).min(self.policy.pause_max);
        // Sixteen random bits: a fraction between a half and one.
        let random = u16::try_from(Uuid::new_v4().as_u128() & 0xFFFF).unwrap_or_default();
        let until = Instant::now() + pause.mul_f32(0.5 + f32::from(random) / 131_072.0).max(wanted);
        (until < self.deadline).then_some(until)
    }

    /// Counts what came of a request, and what it took.
    fn settle(&mut self, request: Request, came: Came) {
        let (metrics, model) = (&self.metrics, &request.model);
        metrics.model_requests_total.with_label_values(&[&model.id, came.name()]).inc();
        let took = request.began.elapsed().as_secs_f64();
        metrics.model_request_duration_seconds.with_label_values(&[&model.id]).observe(took);
        came.tell(request.permit, &model.id);
        if !request.wrote && request.reported.is_none() && (came.refused() || !request.accepted) {
            return;
        }
        let usage = request.reported.unwrap_or_else(|| Usage {
            prompt_tokens: model.prompt_tokens(&request.prompt),
            completion_tokens: match request.wrote {
                true => model.tokens(self.said.get(self.part..).unwrap_or_default()),
                false => 0,
            },
            estimated: true,
        });
        let usage = Usage {
            prompt_tokens: usage.prompt_tokens.min(TOKENS_MAX),
            completion_tokens: usage.completion_tokens.min(TOKENS_MAX),
            ..usage
        };
        let cost = model.cost(&usage);
        metrics.model_cost_millionths_total.with_label_values(&[&model.id]).inc_by(cost.unwrap_or_default());
        self.made.spent.push(Spent { model_id: Arc::clone(&model.id), usage, cost });
    }
}

/// What came of a request.
#[derive(Clone, Copy)]
enum Came {
    Complete,
    /// somebody gave up waiting
    Dropped,
    Failed(Failure),
}

impl Came {
    /// For metrics.
    const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Dropped => "dropped",
            Self::Failed(Failure::Unreachable) => "unreachable",
            Self::Failed(Failure::Busy { .. }) => "busy",
            Self::Failed(Failure::Refused) => "refused",
            Self::Failed(Failure::Denied) => "denied",
            Self::Failed(Failure::Late) => "late",
            Self::Failed(Failure::Broken) => "broken",
            Self::Failed(Failure::Withheld) => "withheld",
        }
    }

    /// The provider did no work, and bills none.
    const fn refused(self) -> bool {
        use Failure::{Busy, Denied, Refused, Unreachable};
        matches!(self, Self::Failed(Unreachable | Busy { .. } | Refused | Denied))
    }

    /// Tells the breaker. What was refused or withheld of one prompt proves that the provider works, and clears it of
    /// no earlier failure.
    fn tell(self, mut permit: Permit, model_id: &str) {
        match self {
            Self::Complete => permit.succeeded(),
            Self::Dropped => drop(permit),
            Self::Failed(Failure::Refused | Failure::Withheld) => drop(permit.works()),
            Self::Failed(_) => {
                if let Some(pause) = permit.failed() {
                    warn!(model = model_id, pause_ms = pause.as_millis(), "provider keeps failing and is left alone");
                }
            }
        }
    }
}

/// How a provider is waited for: until the deadline of the answer, and its panics are contained.
struct Wait<'a> {
    deadline: Instant,
    metrics: &'a Metrics,
}

impl Wait<'_> {
    async fn of<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match timeout_at(self.deadline, AssertUnwindSafe(work).catch_unwind()).await {
            Ok(Ok(result)) => result,
            Ok(Err(_panic)) => {
                // The panic hook has logged the cause.
                self.metrics.panics_total.inc();
                Err(fault("panicked"))
            }
            Err(_elapsed) => Err(Error { failure: Failure::Late, ..fault("did not finish its answer in time") }),
        }
    }
}

const ENDED: &str = "ended its answer without finishing it";

fn fault(reason: &str) -> Error {
    Error { provider: "".into(), failure: Failure::Broken, reason: reason.to_owned(), source: None }
}

fn bytes(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
