//! OpenAI's chat completions, streamed: <https://platform.openai.com/docs/api-reference/chat/create>, and their events:
//! <https://platform.openai.com/docs/api-reference/chat-streaming>.
//!
//! Many servers speak it (vLLM, Ollama, llama.cpp, OpenRouter, …), so what this reads is what they have in common,
//! and unknown fields, events and finish reasons are passed over. One request, never repeated here.

use std::borrow::Cow;

use async_trait::async_trait;
use reqwest::Method;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    Answer, Chunk, Error, Failure, Message, Prompt, Provider, Usable, VendorModel,
    files::{self, Shown},
    http::{Auth, Http, Settings},
    request::{Content, RequestMessage},
    sse::Event,
    stream::{self, Dialect, Fault, Progress},
};
use crate::chat::Usage;

/// A provider that speaks OpenAI's chat completions.
///
/// It is not told who asks: [`Prompt::user_id`] stays here.
#[derive(Debug)]
pub struct OpenAi {
    http: Http,
    model: VendorModel,
}

impl OpenAi {
    /// Makes a provider; opens no connection.
    #[must_use]
    pub const fn new(settings: Settings, model: VendorModel) -> Self {
        Self { http: Http::new(settings, Auth::Bearer), model }
    }

    fn body<'a>(&'a self, prompt: &'a Prompt) -> Request<'a> {
        let system = prompt
            .system
            .as_deref()
            .map(|content| RequestMessage { role: "system", content: Content::Text(Cow::Borrowed(content)) });
        let messages = prompt.messages.iter().map(|message| self.message(message));
        // OpenAI calls `max_tokens` deprecated, and its reasoning models refuse it. Other servers know it best, and
        // some pass over the newer name, which would leave the answer without a limit.
        let host = self.http.settings.endpoint.host_str();
        let vendor = host.is_some_and(|host| host == "openai.com" || host.ends_with(".openai.com"));
        Request {
            model: &self.model.name,
            messages: system.into_iter().chain(messages).collect(),
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            max_tokens: self.model.max_tokens.filter(|_| !vendor),
            max_completion_tokens: self.model.max_tokens.filter(|_| vendor),
        }
    }

    fn message<'a>(&self, message: &'a Message) -> RequestMessage<'a, Part<'a>> {
        let role = message.role.name();
        let Shown { text, images } = files::show(message, self.model.images);
        if images.is_empty() {
            return RequestMessage { role, content: Content::Text(text) };
        }
        let text = Some(text).filter(|text| !text.is_empty()).map(|text| Part::Text { text });
        let images = images.into_iter().map(|file| {
            let url = format!("data:{};base64,{}", file.media_type, files::base64(file));
            Part::ImageUrl { image_url: ImageUrl { url } }
        });
        RequestMessage { role, content: Content::Parts(text.into_iter().chain(images).collect()) }
    }
}

#[async_trait]
impl Provider for OpenAi {
    async fn stream(&self, prompt: &Prompt) -> Result<Answer, Error> {
        let start = Instant::now();
        let url = self.http.url(&["chat", "completions"]);
        let request = self.http.request(Method::POST, url)?.json(&self.body(prompt));
        self.http.stream(request, start, Completions).await
    }

    /// Looks for the model in `GET /models` (<https://platform.openai.com/docs/api-reference/models/list>), and where
    /// it is not in the list, or there is none, asks for it by name: Ollama lists `llama3:latest` and takes `llama3`.
    /// A server that knows neither route is taken for usable: it answers, and the interface demands neither.
    async fn probe(&self) -> Result<Usable, Error> {
        find(&self.http, &self.model.name).await
    }
}

/// Whether a server has a model of that name, found as `OpenAi::probe` says.
pub(super) async fn find(http: &Http, name: &str) -> Result<Usable, Error> {
    let until = http.first_byte(Instant::now());
    let listed = listed(http, name, until).await?;
    if let Some((true, usable)) = listed {
        return Ok(usable);
    }
    let request = http.request(Method::GET, http.url(&["models", name]))?;
    match http.ask::<IgnoredAny>(request, until).await? {
        Some((_, usable)) => Ok(usable),
        None if listed.is_none() => Ok(Usable::default()),
        None => Err(http.error(Failure::Refused, format!("does not know the model `{name}`"))),
    }
}

/// Whether the server lists the model; `None` where it has no list.
async fn listed(http: &Http, name: &str, until: Instant) -> Result<Option<(bool, Usable)>, Error> {
    let request = http.request(Method::GET, http.url(&["models"]))?;
    let Some((list, usable)) = http.ask::<Value>(request, until).await? else { return Ok(None) };
    // Some have the list itself in place of an object with it.
    let Some(models) = list.get("data").unwrap_or(&list).as_array() else { return Ok(None) };
    let known = models.iter().any(|model| model.get("id").and_then(Value::as_str) == Some(name));
    Ok(Some((known, usable)))
}

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    messages: Vec<RequestMessage<'a, Part<'a>>>,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'a> {
    Text { text: Cow<'a, str> },
    ImageUrl { image_url: ImageUrl },
}

/// <https://platform.openai.com/docs/guides/images-vision>
#[derive(Serialize)]
struct ImageUrl {
    url: String,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
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

/// The events of a completion. Its text is complete when a `finish_reason` came, or `[DONE]`.
struct Completions;

impl Dialect for Completions {
    fn event(&mut self, event: &Event, answer: &mut Progress) -> Result<(), Fault> {
        if event.data.trim() == "[DONE]" {
            answer.done();
            return Ok(());
        }
        let piece: Piece = stream::json(event)?;
        if !piece.error.is_null() || event.name == "error" {
            return Err(Fault::reported(&piece.error));
        }
        if let Some(usage) = usage(&piece.usage) {
            answer.usage(usage);
        }
        // Only one choice is asked for.
        for choice in piece.choices.into_iter().flatten().filter(|choice| choice.index == 0) {
            for text in choice.delta.into_iter().flat_map(|delta| [delta.content, delta.refusal]).flatten() {
                answer.text(text);
            }
            match choice.finish_reason.as_deref() {
                // Some servers send an empty reason with every piece.
                None | Some("") => {}
                Some(word @ "content_filter") => return Err(Fault::withheld(word)),
                Some("tool_calls" | "function_call") => {
                    return Err(Fault::broken("called a tool, and none was offered"));
                }
                // `stop`, `length`, and what other vendors call the same.
                Some(_) => answer.finish(),
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

/// What a whole answer's bytes mean, in whatever pieces they come: for tests and fuzzing, without a socket. The last
/// one is [`Chunk::Done`] or a failure.
pub fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Result<Chunk, Failure>> {
    stream::read(Completions, pieces)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{chat::UserId, llm::Messages};

    #[test]
    fn the_limit_of_tokens_has_the_name_that_the_vendor_takes() {
        let prompt = Prompt {
            system: None,
            messages: Messages::default(),
            user_id: UserId::parse("alice").unwrap(),
            thread: None,
        };
        for (endpoint, name, other) in [
            ("https://api.openai.com/v1", "max_completion_tokens", "max_tokens"),
            ("https://eu.api.openai.com/v1", "max_completion_tokens", "max_tokens"),
            ("https://notopenai.com/v1", "max_tokens", "max_completion_tokens"),
            ("http://localhost:11434/v1", "max_tokens", "max_completion_tokens"),
        ] {
            let settings = Settings {
                provider: "fast".into(),
                endpoint: endpoint.parse().unwrap(),
                api_key: None,
                timeout: Duration::from_secs(1),
                connect_timeout: Duration::from_secs(1),
                first_byte_timeout: Duration::from_secs(1),
                idle_timeout: Duration::from_secs(1),
            };
            let model = VendorModel { name: "m".to_owned(), max_tokens: Some(7), images: false };
            let openai = OpenAi::new(settings, model);
            let body = serde_json::to_value(openai.body(&prompt)).unwrap();
            assert_eq!((&body[name], body.get(other)), (&Value::from(7), None), "{endpoint}");
            assert!(!body.to_string().contains("alice"), "{body}");
        }
    }
}
