//! From the bytes of an event stream to chunks, the same for every vendor; what an event means is its [`Dialect`]'s.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{
    Chunk, Error, Failure,
    http::Source,
    refusal,
    sse::{Decoder, Event},
};
use crate::chat::Usage;

/// How long usage and the last event are waited for once the text is complete.
const TAIL_TIMEOUT: Duration = Duration::from_secs(2);

/// What one vendor's events mean. Knows no socket and no clock.
pub(super) trait Dialect: Send + 'static {
    /// Takes the next event, and adds to the answer what it says.
    ///
    /// # Errors
    /// When the answer is of no further use.
    fn event(&mut self, event: &Event, answer: &mut Progress) -> Result<(), Fault>;
}

/// Why a stream is of no further use; an [`Error`] without the provider's name.
#[derive(Debug)]
pub(super) struct Fault {
    failure: Failure,
    reason: String,
    source: Option<Source>,
}

impl Fault {
    pub(super) fn new(failure: Failure, reason: impl Into<String>) -> Self {
        Self { failure, reason: reason.into(), source: None }
    }

    pub(super) fn broken(reason: impl Into<String>) -> Self {
        Self::new(Failure::Broken, reason)
    }

    fn caused(self, source: impl Into<Source>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// An error that the vendor reports in the middle of its answer.
    pub(super) fn reported(error: &Value) -> Self {
        let word = refusal::word(error);
        let failure = word.as_deref().map_or(Failure::Broken, refusal::by_word);
        let word = word.as_deref().unwrap_or("no type");
        Self::new(failure, format!("reported an error in the middle of its answer ({word})"))
    }

    /// The vendor, or its filter, takes the answer back; `word` is what it calls that.
    pub(super) fn withheld(word: &str) -> Self {
        Self::new(Failure::Withheld, format!("withheld the rest of its answer ({word})"))
    }
}

/// Reads an event as JSON. What it holds is not quoted in the error.
pub(super) fn json<T: DeserializeOwned>(event: &Event) -> Result<T, Fault> {
    serde_json::from_str(&event.data).map_err(|err| {
        let place = format!("{:?} error at line {} column {}", err.classify(), err.line(), err.column());
        Fault::broken("sent an event that is no completion").caused(place)
    })
}

/// What has come of an answer.
///
/// Its text is complete when the vendor has said so. What goes wrong after that costs at most the usage. What goes
/// wrong before it is a fault that comes after all text that came before.
#[derive(Default)]
pub(super) struct Progress {
    /// ends with `Chunk::Done` or a fault, and then stays as it is
    ready: VecDeque<Result<Chunk, Fault>>,
    usage: Option<Usage>,
    thread: Option<String>,
    /// there was text
    begun: bool,
    finished: bool,
    ended: bool,
}

impl Progress {
    /// More text; nothing if it is empty.
    pub(super) fn text(&mut self, text: String) {
        if !text.is_empty() {
            self.begun = true;
            self.ready.push_back(Ok(Chunk::Text(text)));
        }
    }

    /// Tokens of the whole answer so far; the last report counts.
    pub(super) const fn usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// What the vendor calls the conversation.
    pub(super) fn thread(&mut self, thread: String) {
        self.thread = Some(thread);
    }

    /// No more text comes; usage may.
    pub(super) const fn finish(&mut self) {
        self.finished = true;
    }

    /// Nothing more comes.
    pub(super) fn done(&mut self) {
        self.end(Ok(Chunk::Done));
    }

    fn fail(&mut self, fault: Fault) {
        self.end(if self.finished { Ok(Chunk::Done) } else { Err(fault) });
    }

    /// The first end counts.
    fn end(&mut self, last: Result<Chunk, Fault>) {
        if !std::mem::replace(&mut self.ended, true) {
            self.ready.extend(self.usage.take().map(|usage| Ok(Chunk::Usage(usage))));
            if last.is_ok() {
                self.ready.extend(self.thread.take().map(|thread| Ok(Chunk::Thread(thread))));
            }
            self.ready.push_back(last);
        }
    }
}

/// From bytes to chunks, without I/O.
pub(super) struct Parser<D> {
    decoder: Decoder,
    dialect: D,
    answer: Progress,
}

impl<D: Dialect> Parser<D> {
    pub(super) fn new(dialect: D) -> Self {
        Self { decoder: Decoder::default(), dialect, answer: Progress::default() }
    }

    fn push(&mut self, bytes: &[u8]) {
        let mut events = VecDeque::new();
        let result = self.decoder.push(bytes, &mut events);
        for event in events {
            if self.answer.ended {
                return;
            }
            if let Err(fault) = self.dialect.event(&event, &mut self.answer) {
                self.answer.fail(fault);
            }
        }
        if let Err(err) = result {
            self.answer.fail(Fault::broken("sent an event that is too large").caused(err));
        }
    }
}

/// What a dialect makes of a whole body that comes in these pieces and then ends.
pub(super) fn read<'a, D: Dialect>(
    dialect: D,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<Result<Chunk, Failure>> {
    let mut parser = Parser::new(dialect);
    pieces.into_iter().for_each(|piece| parser.push(piece));
    parser.answer.fail(Fault::broken(ENDED));
    parser.answer.ready.into_iter().map(|next| next.map_err(|fault| fault.failure)).collect()
}

const ENDED: &str = "ended its answer without finishing it";

/// The answer's bytes, on their way to chunks. Dropping it closes the connection.
pub(super) struct Reader<D> {
    pub(super) response: reqwest::Response,
    /// of the whole answer
    pub(super) deadline: Instant,
    /// of its first text
    pub(super) first_text: Instant,
    pub(super) idle_timeout: Duration,
    /// of what follows the text, once it is complete
    pub(super) tail: Option<Instant>,
    pub(super) provider: Arc<str>,
    pub(super) parser: Parser<D>,
}

impl<D: Dialect> Reader<D> {
    /// The next chunk; no reader is left after the last one.
    pub(super) async fn step(reader: Option<Self>) -> Option<(Result<Chunk, Error>, Option<Self>)> {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Chunk::Done) => Some((Ok(Chunk::Done), None)),
            Ok(chunk) => Some((Ok(chunk), Some(reader))),
            Err(Fault { failure, reason, source }) => {
                let provider = Arc::clone(&reader.provider);
                Some((Err(Error { provider, failure, reason, source }), None))
            }
        }
    }

    async fn next(&mut self) -> Result<Chunk, Fault> {
        loop {
            if let Some(next) = self.parser.answer.ready.pop_front() {
                return next;
            }
            let now = Instant::now();
            let (until, reason) = self.patience(now);
            // A timeout alone never fires while there is always something to read.
            let read = if now < until { timeout_at(until, self.response.chunk()).await.ok() } else { None };
            match read {
                Some(Ok(Some(bytes))) => self.parser.push(&bytes),
                Some(Ok(None)) => self.parser.answer.fail(Fault::broken(ENDED)),
                Some(Err(err)) => {
                    let fault = Fault::broken("broke off in the middle of its answer");
                    self.parser.answer.fail(fault.caused(err.without_url()));
                }
                None => self.parser.answer.fail(Fault::new(Failure::Late, reason)),
            }
        }
    }

    /// Until when the next bytes are waited for, and what it means if they do not come.
    fn patience(&mut self, now: Instant) -> (Instant, &'static str) {
        let answer = &self.parser.answer;
        let (until, reason) = match () {
            () if answer.finished => (*self.tail.get_or_insert(now + TAIL_TIMEOUT.min(self.idle_timeout)), ""),
            () if answer.begun => (now + self.idle_timeout, "fell silent in the middle of its answer"),
            () => (self.first_text, "sent no text in time"),
        };
        if self.deadline <= until { (self.deadline, "did not finish its answer in time") } else { (until, reason) }
    }
}
