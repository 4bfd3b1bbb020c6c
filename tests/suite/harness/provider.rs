//! A scripted provider: a server on a real loopback socket that says what a test tells it to, as OpenAI does, and in
//! the modules below as Anthropic and Dify do.
//!
//! ```ignore
//! let gate = Gate::new();
//! let provider = Provider::start(Script::answer(["Hel", "lo"]).usage(3, 2).gated(&gate)).await;
//! // … point a server at provider.endpoint(), send a message …
//! let request = provider.request(0).await; // waits for it; request.body is what the model was sent
//! gate.release(1); // "Hel" goes out, and no more until the next release
//! gate.open(); // the rest
//! provider.hung_up(1).await; // or: the client closed the connection in the middle
//! ```

pub(crate) mod anthropic;
pub(crate) mod dify;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use super::client::PATIENCE;

/// What the provider does with a request.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    head: Head,
    headers: String,
    steps: Vec<Vec<u8>>,
    gate: Option<Gate>,
    pace: Option<Duration>,
    ending: Ending,
}

#[derive(Clone, Debug)]
enum Head {
    /// a status line, a content type, and then the steps
    Answer(u16, &'static str),
    /// not even a status line
    Silence,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    /// the body ends as HTTP says
    Whole,
    /// the connection closes in the middle of the body
    Cut,
    /// nothing more comes, and the connection stays open
    Stall,
    /// the last step comes again and again, as fast as it is read
    Repeat,
}

impl Script {
    /// The pieces, then `finish_reason` `stop` and `[DONE]`.
    pub(crate) fn answer<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Self {
        let opening =
            chunk(&json!([{ "index": 0, "delta": { "role": "assistant", "content": "" }, "finish_reason": null }]));
        let mut script = Self::events([opening]);
        for piece in pieces {
            script.steps.push(delta(piece));
        }
        script.finish("stop")
    }

    /// Events as bytes, and nothing else.
    pub(crate) fn events(events: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let steps = events.into_iter().collect();
        let head = Head::Answer(200, "text/event-stream; charset=utf-8");
        Self { head, headers: String::new(), steps, gate: None, pace: None, ending: Ending::Whole }
    }

    /// A body with a status and a content type.
    pub(crate) fn status(status: u16, content_type: &'static str, body: &str) -> Self {
        let steps = vec![body.as_bytes().to_vec()];
        Self { head: Head::Answer(status, content_type), ..Self::events(steps) }
    }

    /// One piece again and again, as fast as it is read, for ever.
    pub(crate) fn endless(piece: &str) -> Self {
        Self::events([delta(piece)]).repeated()
    }

    /// Takes the request and never says a word.
    pub(crate) fn silent() -> Self {
        Self { head: Head::Silence, ..Self::events([]).stall_after(0) }
    }

    /// Takes the request and closes the connection without a word.
    pub(crate) fn gone() -> Self {
        Self { ending: Ending::Cut, ..Self::silent() }
    }

    /// The last step again and again, as fast as it is read, for ever.
    pub(crate) fn repeated(mut self) -> Self {
        self.ending = Ending::Repeat;
        self
    }

    /// Sends one more header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Ends the text with another `finish_reason`, and `[DONE]`.
    pub(crate) fn finish(mut self, reason: &str) -> Self {
        if self.steps.last().is_some_and(|step| step == DONE) {
            self.steps.truncate(self.steps.len() - 2);
        }
        self.steps.push(chunk(&json!([{ "index": 0, "delta": {}, "finish_reason": reason }])));
        self.steps.push(DONE.to_vec());
        self
    }

    /// Reports tokens before `[DONE]`, as `stream_options.include_usage` asks for.
    pub(crate) fn usage(mut self, prompt_tokens: u64, completion_tokens: u64) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        let usage = json!({ "id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": {
            "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total_tokens,
            "completion_tokens_details": { "reasoning_tokens": 0 },
        }});
        let done = self.steps.len() - usize::from(self.steps.last().is_some_and(|step| step == DONE));
        self.steps.insert(done, event(&usage.to_string()));
        self
    }

    /// Before each piece, and before the end, waits for the test to release it.
    pub(crate) fn gated(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    /// Pauses that long before each piece.
    pub(crate) fn paced(mut self, pace: Duration) -> Self {
        self.pace = Some(pace).filter(|pace| !pace.is_zero());
        self
    }

    /// After that many pieces closes the connection in the middle of the body.
    pub(crate) fn cut_after(self, pieces: usize) -> Self {
        self.ending_after(pieces, Ending::Cut)
    }

    /// After that many pieces says nothing more and keeps the connection open.
    pub(crate) fn stall_after(self, pieces: usize) -> Self {
        self.ending_after(pieces, Ending::Stall)
    }

    /// After that many pieces ends the body as HTTP says, in the middle of the text.
    pub(crate) fn end_after(self, pieces: usize) -> Self {
        self.ending_after(pieces, Ending::Whole)
    }

    /// The whole body as one run of bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.steps.concat()
    }

    /// The first `count` bytes of the body, cut there or ended there as HTTP says.
    pub(crate) fn first_bytes(&self, count: usize, cut: bool) -> Self {
        let ending = if cut { Ending::Cut } else { Ending::Whole };
        Self { ending, ..Self::events([self.bytes()[..count].to_vec()]) }
    }

    fn ending_after(mut self, pieces: usize, ending: Ending) -> Self {
        self.steps.truncate(pieces + 1);
        self.ending = ending;
        self
    }
}

/// One piece of text as the vendor sends it.
pub(crate) fn delta(text: &str) -> Vec<u8> {
    chunk(&json!([{ "index": 0, "delta": { "content": text }, "logprobs": null, "finish_reason": null }]))
}

/// One event with that data.
pub(crate) fn event(data: &str) -> Vec<u8> {
    format!("data: {data}\n\n").into_bytes()
}

/// The event after the last.
pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";

fn chunk(choices: &Value) -> Vec<u8> {
    let chunk = json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "scripted",
        "system_fingerprint": "fp_1", "choices": choices, "usage": null,
    });
    event(&chunk.to_string())
}

/// Holds a script's pieces back until the test lets them go. Shared by every request that runs the script.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets that many more pieces through; the end of the answer counts as one.
    pub(crate) fn release(&self, pieces: usize) {
        self.0.add_permits(pieces);
    }

    /// Lets everything through from here on.
    pub(crate) fn open(&self) {
        self.0.close();
    }

    async fn pass(&self) {
        // A closed gate semaphore is an open gate.
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// method and path
    pub(crate) target: String,
    /// names in lower case
    pub(crate) headers: Vec<(String, String)>,
    /// what it holds, if that is JSON
    pub(crate) body: Value,
    /// what it holds, as it came
    pub(crate) bytes: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    /// What the model was told, as (role, content).
    pub(crate) fn messages(&self) -> Vec<(&str, &str)> {
        let messages = self.body["messages"].as_array().expect("a request has messages");
        messages
            .iter()
            .map(|message| {
                let field = |key: &str| message[key].as_str().expect("a message has a role and a content");
                (field("role"), field("content"))
            })
            .collect()
    }
}

type Scripts = Arc<dyn Fn(&Request) -> Script + Send + Sync>;

struct State {
    scripts: Mutex<Scripts>,
    requests: watch::Sender<Vec<Request>>,
    hang_ups: watch::Sender<Vec<Instant>>,
    sent: AtomicUsize,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

/// A running provider. Dropping it closes its sockets.
#[derive(Debug)]
pub(crate) struct Provider {
    address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

impl Provider {
    pub(crate) async fn start(script: Script) -> Self {
        Self::start_by(move |_request| script.clone()).await
    }

    /// Starts one that answers each request with a script of its own.
    pub(crate) async fn start_by(scripts: impl Fn(&Request) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(State {
            scripts: Mutex::new(Arc::new(scripts)),
            requests: watch::Sender::new(Vec::new()),
            hang_ups: watch::Sender::new(Vec::new()),
            sent: AtomicUsize::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&state)));
        Self { address, state, _tasks: tasks }
    }

    /// What to configure as `endpoint`.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// What requests from here on are answered with.
    pub(crate) fn script(&self, script: Script) {
        *self.state.scripts.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(move |_request| script.clone());
    }

    /// How many requests have arrived.
    pub(crate) fn requests(&self) -> usize {
        self.state.requests.borrow().len()
    }

    /// Waits for the request of that index, counted from 0.
    pub(crate) async fn request(&self, index: usize) -> Request {
        let mut requests = self.state.requests.subscribe();
        let found = timeout(PATIENCE, requests.wait_for(|requests| requests.len() > index)).await;
        found.expect("the request arrives").expect("the provider runs")[index].clone()
    }

    /// Waits until the client has closed that many connections in the middle of an answer; says when it last did.
    pub(crate) async fn hung_up(&self, times: usize) -> Instant {
        let mut hang_ups = self.state.hang_ups.subscribe();
        let found = timeout(PATIENCE, hang_ups.wait_for(|hang_ups| hang_ups.len() >= times)).await;
        found.expect("the client hangs up").expect("the provider runs")[times - 1]
    }

    /// How many bytes of bodies the kernel has taken from it.
    pub(crate) fn sent(&self) -> usize {
        self.state.sent.load(Ordering::Relaxed)
    }

    /// How many connections the client has closed in the middle of an answer.
    pub(crate) fn hang_ups(&self) -> usize {
        self.state.hang_ups.borrow().len()
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, Arc::clone(&state)));
    }
}

async fn serve(mut stream: TcpStream, state: Arc<State>) {
    stream.set_nodelay(true).expect("a socket takes the option");
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    while let Some(request) = read_request(&mut read).await {
        let scripts = Arc::clone(&state.scripts.lock().unwrap_or_else(PoisonError::into_inner));
        let script = scripts(&request);
        state.requests.send_modify(|requests| requests.push(request));
        let mut next = [0];
        tokio::select! {
            biased;
            kept = play(&script, &mut write, &state.sent) => {
                if !kept {
                    return;
                }
            }
            // A client does not pipeline: whatever comes in the middle of an answer is its end.
            _ = read.read(&mut next) => {
                return state.hang_ups.send_modify(|hang_ups| hang_ups.push(Instant::now()));
            }
        }
    }
}

/// Answers one request; whether the connection goes on. A failed write means that the client went: the reader tells.
async fn play(script: &Script, write: &mut (impl AsyncWriteExt + Unpin), sent: &AtomicUsize) -> bool {
    if let Head::Answer(status, content_type) = script.head {
        let head = format!(
            "HTTP/1.1 {status} Scripted\r\ncontent-type: {content_type}\r\n{}transfer-encoding: chunked\r\n\r\n",
            script.headers
        );
        send(write, head.as_bytes()).await;
    }
    let mut pace = script.pace.map(tokio::time::interval);
    for (index, step) in script.steps.iter().enumerate() {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        // The opening event has no text; `[DONE]` goes with what is before it.
        if let Some(gate) = script.gate.as_ref().filter(|_| index > 0 && step != DONE) {
            gate.pass().await;
        }
        send_chunk(write, step).await;
        sent.fetch_add(step.len(), Ordering::Relaxed);
    }
    match script.ending {
        Ending::Whole => send(write, b"0\r\n\r\n").await,
        Ending::Cut => return false,
        Ending::Stall => std::future::pending().await,
        Ending::Repeat => loop {
            let step = script.steps.last().expect("a script that repeats has a step");
            send_chunk(write, step).await;
            sent.fetch_add(step.len(), Ordering::Relaxed);
        },
    }
    true
}

async fn send_chunk(write: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) {
    // A chunk without bytes would end the body (RFC 9112, section 7.1).
    if !bytes.is_empty() {
        send(write, &[format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()).await;
    }
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) {
    if write.write_all(bytes).await.is_err() {
        std::future::pending().await
    }
}

/// Reads a request; `None` when the client has gone.
async fn read_request(read: &mut (impl AsyncReadExt + Unpin)) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(read.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("a request head is text");
    let mut lines = head.lines();
    let target = lines.next().expect("a request has a first line").trim_end_matches(" HTTP/1.1").to_owned();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut request = Request { target, headers, body: Value::Null, bytes: Vec::new() };
    let length = request.header("content-length").map_or(0, |length| length.parse().expect("a length is a number"));
    request.bytes = vec![0; length];
    read.read_exact(&mut request.bytes).await.ok()?;
    if request.header("content-type") == Some("application/json") {
        request.body = serde_json::from_slice(&request.bytes).expect("the body is JSON");
    }
    Some(request)
}
