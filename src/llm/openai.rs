//! OpenAI's chat completions, streamed: <https://platform.openai.com/docs/api-reference/chat/create>.
//!
//! Many servers speak it (vLLM, Ollama, llama.cpp, OpenRouter, …), so what this reads is what they have in common,
//! and unknown fields, events and finish reasons are passed over. One request, never repeated here.

use std::{
    collections::VecDeque,
    error::Error as StdError,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use reqwest::{
    StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{
    Answer, Chunk, Error, Failure, Prompt, Provider, Role,
    sse::{Decoder, Event},
};
use crate::{chat::Usage, config::secret::Secret};

/// How long a refusal's body is waited for, and how much of it is read: only its code is of interest.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// How long usage and `[DONE]` are waited for once the text is complete.
const TAIL_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything about one provider.
#[derive(Clone, Debug)]
pub struct Settings {
    /// its name in the configuration
    pub provider: Arc<str>,
    /// version included; see [`super::Config::problems`] for what is accepted
    pub endpoint: Url,
    /// sent as a bearer token
    pub api_key: Option<Secret>,
    /// the vendor's name of the model
    pub model: String,
    /// tokens that an answer may have
    pub max_tokens: Option<u32>,
    /// deadline of a whole answer
    pub timeout: Duration,
    /// how long a connection may take to open
    pub connect_timeout: Duration,
    /// how long it may be silent before the first byte of its answer
    pub first_byte_timeout: Duration,
    /// how long it may be silent between two pieces
    pub idle_timeout: Duration,
}

/// A provider that speaks OpenAI's chat completions.
///
/// It is not told who asks: [`Prompt::user_id`] stays here.
#[derive(Debug)]
pub struct OpenAi {
    settings: Settings,
    url: Url,
    client: OnceLock<reqwest::Client>,
}

impl OpenAi {
    /// Makes a provider; opens no connection. Certificates of authorities are loaded at the first request, so that
    /// a machine without any still starts.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let mut url = settings.endpoint.clone();
        let path = format!("{}/chat/completions", url.path().trim_end_matches('/'));
        url.set_path(&path);
        Self { settings, url, client: OnceLock::new() }
    }

    fn client(&self) -> Result<&reqwest::Client, reqwest::Error> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // reqwest is built without a crypto provider and takes the process's. Whoever installed one first wins.
        drop(rustls::crypto::ring::default_provider().install_default());
        let builder = reqwest::Client::builder()
            .user_agent(concat!("chatbox/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.settings.connect_timeout)
            // A redirect would carry the conversation to an address that nobody configured.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            // Shorter than the keep-alive of common servers and proxies, so that none closes what is about to be used.
            .pool_idle_timeout(Duration::from_secs(15))
            .pool_max_idle_per_host(32);
        let builder = if self.url.scheme() == "https" { builder } else { builder.tls_certs_only([]) };
        let client = builder.build()?;
        Ok(self.client.get_or_init(|| client))
    }

    fn error(&self, failure: Failure, reason: impl Into<String>) -> Error {
        Error { provider: Arc::clone(&self.settings.provider), failure, reason: reason.into(), source: None }
    }

    fn caused(&self, reason: &str, source: reqwest::Error) -> Error {
        let failure = match () {
            () if source.is_connect() || source.is_builder() => Failure::Unreachable,
            () if source.is_timeout() => Failure::Late,
            () => Failure::Broken,
        };
        Error { source: Some(source.without_url().into()), ..self.error(failure, reason) }
    }

    async fn request(&self, prompt: &Prompt, deadline: Instant) -> Result<reqwest::Response, Error> {
        let settings = &self.settings;
        let client = self.client().map_err(|err| self.caused("the HTTP client cannot be made", err))?;
        let mut request = client.post(self.url.clone()).header(ACCEPT, "text/event-stream").json(&self.body(prompt));
        if let Some(key) = &settings.api_key {
            request = request.bearer_auth(key.expose());
        }
        let first_byte = deadline.min(Instant::now() + settings.first_byte_timeout);
        match timeout_at(first_byte, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(err)) if err.is_connect() => Err(self.caused("cannot be reached", err)),
            Ok(Err(err)) => Err(self.caused("broke off before it answered", err)),
            Err(_elapsed) => Err(self.error(Failure::Late, "sent no answer in time")),
        }
    }

    fn body<'a>(&'a self, prompt: &'a Prompt) -> Request<'a> {
        let system = prompt.system.iter().map(|content| RequestMessage { role: "system", content });
        let messages = prompt.messages.iter().map(|message| RequestMessage {
            role: match message.role {
                Role::User => "user",
                Role::Assistant => "assistant",
            },
            content: &message.content,
        });
        // OpenAI calls `max_tokens` deprecated, and its reasoning models refuse it. Other servers know it best, and
        // some pass over the newer name, which would leave the answer without a limit.
        let vendor = self.url.host_str().is_some_and(|host| host == "openai.com" || host.ends_with(".openai.com"));
        Request {
            model: &self.settings.model,
            messages: system.chain(messages).collect(),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            max_tokens: self.settings.max_tokens.filter(|_| !vendor),
            max_completion_tokens: self.settings.max_tokens.filter(|_| vendor),
        }
    }

    /// Reads a refusal's code for the logs. Its message stays out of them: it may quote the key or the prompt.
    async fn refusal(&self, mut response: reqwest::Response) -> Error {
        let status = response.status();
        let deadline = Instant::now() + REFUSAL_TIMEOUT.min(self.settings.idle_timeout);
        let mut body = Vec::new();
        while let Ok(Ok(Some(bytes))) = timeout_at(deadline, response.chunk()).await {
            body.extend_from_slice(
                bytes.get(..REFUSAL_BYTES_MAX.saturating_sub(body.len()).min(bytes.len())).unwrap_or_default(),
            );
            if body.len() >= REFUSAL_BYTES_MAX {
                break;
            }
        }
        let cause = serde_json::from_slice(&body).ok().and_then(|body: Refusal| kind(&body.error));
        let failure = match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Failure::Late,
            StatusCode::TOO_MANY_REQUESTS => Failure::Busy { retry_after: None },
            _ if status.is_server_error() => Failure::Busy { retry_after: None },
            _ => Failure::Refused,
        };
        let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
        self.error(failure, format!("refused with status {}{cause}", status.as_u16()))
    }
}

#[async_trait]
impl Provider for OpenAi {
    async fn stream(&self, prompt: &Prompt) -> Result<Answer, Error> {
        let deadline = Instant::now() + self.settings.timeout;
        let response = self.request(prompt, deadline).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !media_type.is_empty() && !media_type.to_ascii_lowercase().starts_with("text/event-stream") {
            let media_type: String = media_type.chars().take(100).collect();
            return Err(
                self.error(Failure::Broken, format!("answered with `{media_type}` instead of `text/event-stream`"))
            );
        }
        let reader = Reader {
            response,
            deadline,
            idle_timeout: self.settings.idle_timeout,
            provider: Arc::clone(&self.settings.provider),
            parser: Parser::default(),
        };
        Ok(stream::unfold(Some(reader), Reader::step).boxed())
    }

    async fn probe(&self) -> Result<(), Error> {
        std::future::ready(Ok(())).await
    }
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: Vec<RequestMessage<'a>>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
}

#[derive(Serialize)]
struct RequestMessage<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Deserialize)]
struct Refusal {
    error: Value,
}

/// One event of the stream. Everything may be absent: vendors differ.
#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Value,
    #[serde(default)]
    error: Value,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u64,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    /// What the model says instead when it declines.
    #[serde(default)]
    refusal: Option<String>,
}

/// The answer's bytes, on their way to chunks. Dropping it closes the connection.
struct Reader {
    response: reqwest::Response,
    deadline: Instant,
    idle_timeout: Duration,
    provider: Arc<str>,
    parser: Parser,
}

impl Reader {
    async fn step(reader: Option<Self>) -> Option<(Result<Chunk, Error>, Option<Self>)> {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Chunk::Done) => Some((Ok(Chunk::Done), None)),
            Ok(chunk) => Some((Ok(chunk), Some(reader))),
            Err(fault) => {
                let Fault { failure, reason, source } = fault;
                Some((Err(Error { provider: reader.provider, failure, reason, source }), None))
            }
        }
    }

    async fn next(&mut self) -> Result<Chunk, Fault> {
        loop {
            if let Some(next) = self.parser.ready.pop_front() {
                return next;
            }
            if Instant::now() >= self.deadline {
                // A timeout alone never fires while there is always something to read.
                self.parser.fail(Fault::timeout("did not finish its answer in time"));
                continue;
            }
            let silence = if self.parser.finished { TAIL_TIMEOUT.min(self.idle_timeout) } else { self.idle_timeout };
            let until = self.deadline.min(Instant::now() + silence);
            match timeout_at(until, self.response.chunk()).await {
                Ok(Ok(Some(bytes))) => self.parser.push(&bytes),
                Ok(Ok(None)) => self.parser.fail(Fault::broken("ended its answer without finishing it")),
                Ok(Err(err)) => self.parser.fail(Fault {
                    source: Some(err.without_url().into()),
                    ..Fault::broken("broke off in the middle of its answer")
                }),
                Err(_elapsed) if until < self.deadline => {
                    self.parser.fail(Fault::timeout("fell silent in the middle of its answer"));
                }
                Err(_elapsed) => {}
            }
        }
    }
}

/// Why the stream is of no further use; an [`Error`] without the provider's name.
#[derive(Debug)]
struct Fault {
    failure: Failure,
    reason: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Fault {
    fn broken(reason: impl Into<String>) -> Self {
        Self { failure: Failure::Broken, reason: reason.into(), source: None }
    }

    fn timeout(reason: &str) -> Self {
        Self { failure: Failure::Late, reason: reason.to_owned(), source: None }
    }
}

/// From bytes to chunks, without I/O.
///
/// The text is complete when a `finish_reason` came, or `[DONE]`. What goes wrong after that costs at most the usage.
/// What goes wrong before it is a fault that comes after all text that came before.
#[derive(Default)]
struct Parser {
    decoder: Decoder,
    /// ends with `Chunk::Done` or a fault, and then stays as it is
    ready: VecDeque<Result<Chunk, Fault>>,
    usage: Option<Usage>,
    finished: bool,
    ended: bool,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        let mut events = VecDeque::new();
        let result = self.decoder.push(bytes, &mut events);
        for event in events {
            if event.data.trim() == "[DONE]" {
                self.end(Ok(Chunk::Done));
            } else if let Err(fault) = self.event(&event) {
                self.fail(fault);
            }
        }
        if let Err(err) = result {
            self.fail(Fault { source: Some(err.into()), ..Fault::broken("sent an event that is too large") });
        }
    }

    fn fail(&mut self, fault: Fault) {
        self.end(if self.finished { Ok(Chunk::Done) } else { Err(fault) });
    }

    /// The first end counts.
    fn end(&mut self, last: Result<Chunk, Fault>) {
        if !std::mem::replace(&mut self.ended, true) {
            self.ready.extend(self.usage.take().map(|usage| Ok(Chunk::Usage(usage))));
            self.ready.push_back(last);
        }
    }

    fn event(&mut self, event: &Event) -> Result<(), Fault> {
        if self.ended {
            return Ok(());
        }
        let piece: Piece = serde_json::from_str(&event.data).map_err(|err| Fault {
            source: Some(position(&err).into()),
            ..Fault::broken("sent an event that is no completion")
        })?;
        if !piece.error.is_null() || event.name == "error" {
            let kind = kind(&piece.error).unwrap_or_else(|| "no type".to_owned());
            return Err(Fault::broken(format!("reported an error in the middle of its answer ({kind})")));
        }
        self.usage = usage(&piece.usage).or(self.usage);
        // Only one choice is asked for.
        for choice in piece.choices.into_iter().flatten().filter(|choice| choice.index == 0) {
            let texts = choice.delta.into_iter().flat_map(|delta| [delta.content, delta.refusal]).flatten();
            self.ready.extend(texts.filter(|text| !text.is_empty()).map(|text| Ok(Chunk::Text(text))));
            match choice.finish_reason.as_deref() {
                // Some servers send an empty reason with every piece.
                None | Some("") => {}
                Some("content_filter") => {
                    return Err(Fault {
                        failure: Failure::Withheld,
                        ..Fault::broken("withheld the rest of its answer (content_filter)")
                    });
                }
                Some("tool_calls" | "function_call") => {
                    return Err(Fault::broken("called a tool, and none was offered"));
                }
                // `stop`, `length`, and what other vendors call the same.
                Some(_) => self.finished = true,
            }
        }
        Ok(())
    }
}

fn usage(usage: &Value) -> Option<Usage> {
    Some(Usage {
        prompt_tokens: usage.get("prompt_tokens")?.as_u64()?,
        completion_tokens: usage.get("completion_tokens")?.as_u64()?,
        estimated: false,
    })
}

/// The code or type of a vendor's error object, if it is a plain word: free text may quote the key or the prompt.
fn kind(error: &Value) -> Option<String> {
    let plain = |word: &&str| {
        (1..=64).contains(&word.len())
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    ["code", "type"].iter().find_map(|key| match error.get(key)? {
        Value::String(word) => Some(word.as_str()).filter(plain).map(ToOwned::to_owned),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

/// Where an event is malformed, without quoting it.
fn position(err: &serde_json::Error) -> String {
    format!("{:?} error at line {} column {}", err.classify(), err.line(), err.column())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::UserId;

    #[test]
    fn the_limit_of_tokens_has_the_name_that_the_vendor_takes() {
        let prompt =
            Prompt { system: None, messages: Vec::new(), user_id: UserId::parse("alice").unwrap(), thread: None };
        for (endpoint, name, other) in [
            ("https://api.openai.com/v1", "max_completion_tokens", "max_tokens"),
            ("https://eu.api.openai.com/v1", "max_completion_tokens", "max_tokens"),
            ("https://notopenai.com/v1", "max_tokens", "max_completion_tokens"),
            ("http://localhost:11434/v1", "max_tokens", "max_completion_tokens"),
        ] {
            let openai = OpenAi::new(Settings {
                provider: "fast".into(),
                endpoint: endpoint.parse().unwrap(),
                api_key: None,
                model: "m".to_owned(),
                max_tokens: Some(7),
                timeout: Duration::from_secs(1),
                connect_timeout: Duration::from_secs(1),
                first_byte_timeout: Duration::from_secs(1),
                idle_timeout: Duration::from_secs(1),
            });
            let body = serde_json::to_value(openai.body(&prompt)).unwrap();
            assert_eq!((&body[name], body.get(other)), (&Value::from(7), None), "{endpoint}");
            assert!(!body.to_string().contains("alice"), "{body}");
        }
    }
}
