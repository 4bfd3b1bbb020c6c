//! A model that knows when it spoke: chat completions in OpenAI's format on a real loopback socket.
//!
//! A message says what the answer is: `play KEY`, with an [`Answer`] that was announced under that key. The time of
//! each piece is noted when it is handed to the socket, by the clock that the readers use too.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::{Request, Response, StatusCode, body::Frame, body::Incoming, header, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet, time::sleep};

/// Answers that are announced at a time.
const ANSWERS_MAX: usize = 20_000;

/// A prompt holds the history of a session.
const PROMPT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What is to be said, and when it was.
#[derive(Debug)]
pub(super) struct Answer {
    piece_bytes: usize,
    pause: Duration,
    epoch: Instant,
    asked: OnceLock<Instant>,
    /// nanoseconds after `epoch`, for each piece; 0: not said yet
    said: Vec<AtomicU64>,
}

impl Answer {
    /// So many pieces of so many bytes, with a pause before each but the first.
    pub(super) fn new(pieces: usize, piece_bytes: usize, pause: Duration) -> Arc<Self> {
        let said = (0..pieces).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { piece_bytes, pause, epoch: Instant::now(), asked: OnceLock::new(), said })
    }

    pub(super) const fn pause(&self) -> Duration {
        self.pause
    }

    pub(super) fn pieces(&self) -> usize {
        self.said.len()
    }

    /// When a piece was handed to the socket.
    pub(super) fn said_at(&self, piece: usize) -> Option<Instant> {
        let after = self.said.get(piece)?.load(Ordering::Acquire);
        (after > 0).then(|| self.epoch + Duration::from_nanos(after))
    }

    /// When the whole request was there.
    pub(super) fn asked_at(&self) -> Option<Instant> {
        self.asked.get().copied()
    }

    fn say(&self, piece: usize) {
        if let Some(said) = self.said.get(piece) {
            let after = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
            said.store(after.max(1), Ordering::Release);
        }
    }
}

/// Announced answers, by key.
#[derive(Clone, Debug, Default)]
pub(super) struct Script(Arc<Mutex<Announced>>);

#[derive(Debug, Default)]
struct Announced {
    last: u64,
    answers: HashMap<u64, Arc<Answer>>,
}

impl Script {
    /// Announces an answer, and gives the message that asks for it. It is said once.
    ///
    /// # Errors
    /// When 20,000 were announced and not asked for.
    pub(super) fn announce(&self, answer: &Arc<Answer>) -> anyhow::Result<String> {
        let mut announced = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(announced.answers.len() < ANSWERS_MAX, "more than {ANSWERS_MAX} answers wait to be asked for");
        announced.last += 1;
        let key = announced.last;
        announced.answers.insert(key, Arc::clone(answer));
        drop(announced);
        Ok(format!("play {key}"))
    }

    fn take(&self, message: &str) -> Option<Arc<Answer>> {
        let key: u64 = message.strip_prefix("play ")?.parse().ok()?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).answers.remove(&key)
    }
}

/// The running model. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Model {
    address: SocketAddr,
    script: Script,
    _tasks: JoinSet<()>,
}

impl Model {
    /// Listens on a free loopback port.
    ///
    /// # Errors
    /// When there is none.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen for the model")?;
        let address = listener.local_addr().context("the model's address")?;
        let script = Script::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, script.clone()));
        Ok(Self { address, script, _tasks: tasks })
    }

    pub(super) const fn script(&self) -> &Script {
        &self.script
    }

    /// What a server is configured with to ask it, and nothing else.
    pub(super) fn settings(&self) -> [(&'static str, String); 3] {
        [
            ("LLM__PROVIDERS__SCRIPTED__TYPE", "openai".to_owned()),
            ("LLM__PROVIDERS__SCRIPTED__MODEL", "scripted".to_owned()),
            ("LLM__PROVIDERS__SCRIPTED__ENDPOINT", format!("http://{}/v1", self.address)),
        ]
    }
}

/// The server under test opens as many connections as it has answers; each ends with it.
async fn accept(listener: TcpListener, script: Script) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                drop(stream.set_nodelay(true));
                let script = script.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(request, script.clone()));
                    // A connection that breaks is told by the answer that is missing.
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

#[derive(Deserialize)]
struct Prompt {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, script: Script) -> Result<Response<Body>, Infallible> {
    let Some(answer) = read(request, &script).await else {
        let mut refused = Response::new(Body::default());
        *refused.status_mut() = StatusCode::NOT_FOUND;
        return Ok(refused);
    };
    let events = events(answer).map(|event| Ok(Frame::data(event)));
    let mut response = Response::new(StreamBody::new(events).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

/// Finds the answer that the last message asks for.
async fn read(request: Request<Incoming>, script: &Script) -> Option<Arc<Answer>> {
    let body = Limited::new(request.into_body(), PROMPT_BYTES_MAX).collect().await.ok()?.to_bytes();
    let asked = Instant::now();
    let prompt: Prompt = serde_json::from_slice(&body).ok()?;
    let last = prompt.messages.iter().rfind(|message| message.role == "user")?;
    let answer = script.take(&last.content)?;
    answer.asked.set(asked).ok()?;
    Some(answer)
}

/// The events of an answer, each at its time; the end comes with the last piece.
fn events(answer: Arc<Answer>) -> impl Stream<Item = Bytes> + Send {
    stream::unfold((answer, 0), |(answer, at)| async move {
        if at > 0 && at < answer.pieces() && !answer.pause.is_zero() {
            sleep(answer.pause).await;
        }
        let event = match at {
            _ if at < answer.pieces() => {
                // Distinct from its neighbours, so that a piece that is lost or doubled changes the text's hash.
                let content = format!("{at:0>width$}", width = answer.piece_bytes);
                answer.say(at);
                delta(&json!({"content": content}), None)
            }
            _ if at == answer.pieces() => [delta(&json!({}), Some("stop")), DONE.to_vec()].concat(),
            _ => return None,
        };
        Some((Bytes::from(event), (answer, at + 1)))
    })
}

const DONE: &[u8] = b"data: [DONE]\n\n";

fn delta(delta: &serde_json::Value, finish_reason: Option<&str>) -> Vec<u8> {
    let choice = json!({"index": 0, "delta": delta, "finish_reason": finish_reason});
    let chunk = json!({"id": "bench", "object": "chat.completion.chunk", "choices": [choice]});
    format!("data: {chunk}\n\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_announced_answer_is_said_once_and_its_times_are_noted() {
        let model = Model::start().await.unwrap();
        let answer = Answer::new(3, 20, Duration::from_millis(5));
        let message = model.script().announce(&answer).unwrap();
        let body = json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": message}]});
        let ask = || async {
            drop(rustls::crypto::ring::default_provider().install_default());
            let client = reqwest::Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
            client.post(format!("http://{}/v1/chat/completions", model.address)).json(&body).send().await.unwrap()
        };
        assert_eq!(answer.asked_at(), None);
        let text = ask().await.text().await.unwrap();
        assert_eq!(text.matches("data: ").count(), 5, "{text}");
        assert!(text.contains("00000000000000000002") && text.ends_with("data: [DONE]\n\n"), "{text}");
        let said: Vec<_> = (0..3).map(|piece| answer.said_at(piece).unwrap()).collect();
        assert!(said[2] - said[0] >= Duration::from_millis(10), "{said:?}");
        let own = said[0].saturating_duration_since(answer.asked_at().unwrap());
        assert!(own < Duration::from_secs(10), "{own:?}");
        assert_eq!(ask().await.status(), 404);
    }
}
