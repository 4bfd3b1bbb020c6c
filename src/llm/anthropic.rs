//! Anthropic's messages, streamed: <https://docs.anthropic.com/en/api/messages>, and their events:
//! <https://docs.anthropic.com/en/api/messages-streaming>. Stop reasons:
//! <https://docs.anthropic.com/en/api/handling-stop-reasons>.

use std::borrow::Cow;

use async_trait::async_trait;
use reqwest::{Method, RequestBuilder};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::{
    Answer, Chunk, Error, Failure, Message, Prompt, Provider, Role, Usable, VendorModel,
    files::{self, Shown},
    http::{Auth, Http, Settings},
    request::{Content, RequestMessage},
    sse::Event,
    stream::{self, Dialect, Fault, Progress},
};
use crate::chat::Usage;

/// What the interface was when this was written; Anthropic keeps it
/// (<https://docs.anthropic.com/en/api/versioning>).
const VERSION: &str = "2023-06-01";

/// Tokens that an answer may have when the configuration does not say: the vendor wants to be told.
const MAX_TOKENS: u32 = 4096;

/// A conversation must begin with the user; what stands in front of an assistant's message that comes first.
const OPENING: &str = "(The conversation begins.)";

/// A provider that speaks Anthropic's messages.
///
/// It is not told who asks: [`Prompt::user_id`] stays here.
#[derive(Debug)]
pub struct Anthropic {
    http: Http,
    model: VendorModel,
}

impl Anthropic {
    /// Makes a provider; opens no connection.
    #[must_use]
    pub const fn new(settings: Settings, model: VendorModel) -> Self {
        Self { http: Http::new(settings, Auth::Header("x-api-key")), model }
    }

    fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, Error> {
        Ok(self.http.request(method, url)?.header("anthropic-version", VERSION))
    }

    fn body<'a>(&'a self, prompt: &'a Prompt) -> Request<'a> {
        let mut messages: Vec<_> = prompt.messages.iter().filter_map(|message| self.message(message)).collect();
        if messages.first().is_some_and(|first| first.role == Role::Assistant.name()) {
            messages.insert(0, RequestMessage { role: Role::User.name(), content: Content::Text(OPENING.into()) });
        }
        Request {
            model: &self.model.name,
            max_tokens: self.model.max_tokens.unwrap_or(MAX_TOKENS),
            system: prompt.system.as_deref().filter(|system| !system.trim().is_empty()),
            messages,
            stream: true,
        }
    }

    /// `None` for a message without content, which the vendor refuses.
    fn message<'a>(&self, message: &'a Message) -> Option<RequestMessage<'a, Block<'a>>> {
        let role = message.role.name();
        let Shown { text, images } = files::show(message, self.model.images);
        let text = Some(text).filter(|text| !text.trim().is_empty());
        if images.is_empty() {
            return Some(RequestMessage { role, content: Content::Text(text?) });
        }
        // Images first, as the vendor advises.
        let images = images.into_iter().map(|file| {
            let source = Source { r#type: "base64", media_type: &file.media_type, data: files::base64(file) };
            Block::Image { source }
        });
        let blocks = images.chain(text.map(|text| Block::Text { text })).collect();
        Some(RequestMessage { role, content: Content::Parts(blocks) })
    }
}

#[async_trait]
impl Provider for Anthropic {
    async fn stream(&self, prompt: &Prompt) -> Result<Answer, Error> {
        let start = Instant::now();
        let request = self.request(Method::POST, self.http.url(&["messages"]))?.json(&self.body(prompt));
        self.http.stream(request, start, Messages::default()).await
    }

    /// Asks for the model by its name, `GET /models/{model}`
    /// (<https://docs.anthropic.com/en/api/models>), which takes aliases too.
    async fn probe(&self) -> Result<Usable, Error> {
        let until = self.http.first_byte(Instant::now());
        let name = &self.model.name;
        let request = self.request(Method::GET, self.http.url(&["models", name]))?;
        let known = self.http.ask::<IgnoredAny>(request, until).await?;
        let unknown = || self.http.error(Failure::Refused, format!("does not know the model `{name}`"));
        known.map(|(_, usable)| usable).ok_or_else(unknown)
    }
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<&'a str>,
    messages: Vec<RequestMessage<'a, Block<'a>>>,
    stream: bool,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
    Text { text: Cow<'a, str> },
    Image { source: Source<'a> },
}

#[derive(Serialize)]
struct Source<'a> {
    r#type: &'static str,
    media_type: &'a str,
    data: String,
}

/// One event of the stream; the vendor adds kinds and fields as it pleases.
#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    message: Option<Opening>,
    #[serde(default)]
    content_block: Option<Delta>,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    usage: Option<Tokens>,
    #[serde(default)]
    error: Value,
}

#[derive(Deserialize)]
struct Opening {
    #[serde(default)]
    usage: Option<Tokens>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    stop_reason: Option<String>,
}

/// Every count is of the whole answer so far; one that is absent is as it was.
#[derive(Deserialize, Default, Clone, Copy)]
struct Tokens {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

impl Tokens {
    fn and(self, later: Self) -> Self {
        Self {
            input_tokens: later.input_tokens.or(self.input_tokens),
            cache_creation_input_tokens: later.cache_creation_input_tokens.or(self.cache_creation_input_tokens),
            cache_read_input_tokens: later.cache_read_input_tokens.or(self.cache_read_input_tokens),
            output_tokens: later.output_tokens.or(self.output_tokens),
        }
    }

    /// The vendor counts what it reads from its cache, or writes there, beside `input_tokens`
    /// (<https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching>).
    fn usage(self) -> Option<Usage> {
        let cached = [self.cache_creation_input_tokens, self.cache_read_input_tokens];
        let cached = cached.into_iter().flatten().fold(0, u64::saturating_add);
        Some(Usage {
            prompt_tokens: self.input_tokens?.saturating_add(cached),
            completion_tokens: self.output_tokens.unwrap_or_default(),
            estimated: false,
        })
    }
}

/// The events of a message. Its text is complete when a `stop_reason` came; what comes of thinking, tools and kinds
/// that are not known is passed over.
#[derive(Default)]
struct Messages {
    tokens: Tokens,
}

impl Dialect for Messages {
    fn event(&mut self, event: &Event, answer: &mut Progress) -> Result<(), Fault> {
        let piece: Piece = stream::json(event)?;
        let kind = if piece.r#type.is_empty() { &event.name } else { &piece.r#type };
        if kind == "error" || !piece.error.is_null() {
            return Err(Fault::reported(&piece.error));
        }
        for tokens in [piece.message.and_then(|message| message.usage), piece.usage].into_iter().flatten() {
            self.tokens = self.tokens.and(tokens);
        }
        if let Some(usage) = self.tokens.usage() {
            answer.usage(usage);
        }
        match (kind.as_str(), piece.delta, piece.content_block) {
            ("content_block_delta", Some(Delta { r#type, text: Some(text), .. }), _) if r#type == "text_delta" => {
                answer.text(text);
            }
            ("content_block_start", _, Some(Delta { r#type, text: Some(text), .. })) if r#type == "text" => {
                answer.text(text);
            }
            ("message_delta", Some(Delta { stop_reason: Some(reason), .. }), _) => stopped(&reason, answer)?,
            ("message_stop", ..) => answer.done(),
            _ => {}
        }
        Ok(())
    }
}

fn stopped(reason: &str, answer: &mut Progress) -> Result<(), Fault> {
    match reason {
        "refusal" => return Err(Fault::withheld(reason)),
        "tool_use" | "pause_turn" => return Err(Fault::broken("called a tool, and none was offered")),
        // `end_turn`, `max_tokens`, `stop_sequence`, `model_context_window_exceeded`, and what comes to be.
        _ => answer.finish(),
    }
    Ok(())
}

/// What a whole answer's bytes mean, in whatever pieces they come: for tests and fuzzing, without a socket. The last
/// one is [`Chunk::Done`] or a failure.
pub fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Result<Chunk, Failure>> {
    stream::read(Messages::default(), pieces)
}
