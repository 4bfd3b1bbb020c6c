//! What an operator can say about models: the section `llm`.

mod check;
mod endpoint;

use std::{fmt, time::Duration};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use url::Url;

use crate::config::duration;
use crate::config::secret::Secret;

/// The configured models.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// name of the provider that answers when a session has chosen none; absent: the first
    pub default: Option<String>,
    /// what every model is told before the conversation
    pub system_prompt: Option<String>,
    /// deadline of a whole answer
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// how long a connection to a provider may take to open
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// how long the first text of an answer may take; what a model thinks before, and pings, are no text
    #[serde(with = "duration")]
    pub first_byte_timeout: Duration,
    /// how long a provider may be silent in the middle of its answer
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// how often a refused request is repeated, when nothing of an answer has come
    pub retries: u32,
    /// pause before the first repetition; it doubles with each, and each is shortened at random by up to a half
    #[serde(with = "duration")]
    pub retry_pause: Duration,
    /// longest pause before a repetition; a provider that asks for a longer one by `Retry-After` is not asked again
    #[serde(with = "duration")]
    pub retry_pause_max: Duration,
    /// failures in a row after which a provider is left alone
    pub breaker_failures: u32,
    /// how long a provider is left alone before one request tries it again
    #[serde(with = "duration")]
    pub breaker_pause: Duration,
    /// what becomes of an answer whose provider fails in the middle of it
    pub after_text: AfterText,
    /// tokens, prompts included, that the models take for one user in a day of UTC; absent: any number
    pub tokens_per_user_day: Option<u64>,
    /// what `price_prompt` and `price_completion` are in, as ISO 4217 names it
    pub currency: String,
    /// what makes text of recordings; absent: nothing does
    pub transcription: Option<Transcription>,
    /// who is asked whether a text is allowed
    pub moderation: Moderation,
    /// by name, in the order of the file; empty: one `demo` provider
    pub providers: IndexMap<String, ProviderConfig>,
}

/// What becomes of an answer whose provider fails in the middle of it; the text so far stays in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterText {
    /// the next provider of the chain goes on, below a mark; the turn ends `interrupted` when there is none
    #[default]
    Continue,
    /// the turn ends `interrupted`
    Interrupt,
}

/// What makes text of recordings, in OpenAI's interface: `POST {endpoint}/audio/transcriptions`.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Transcription {
    /// where it listens, version included: `https://…/v1`
    pub endpoint: Url,
    /// what it authenticates us by; absent for servers that want none
    pub api_key: Option<Secret>,
    /// the vendor's name of the model
    pub model: String,
    /// deadline of one recording
    #[serde(default = "transcription_timeout", with = "duration")]
    pub timeout: Duration,
}

/// Who is asked over HTTP whether a text is allowed; nobody, unless configured.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Moderation {
    /// asked before a message is stored and sent to a model
    pub before: Option<Url>,
    /// asked when a reply is whole, before its turn ends
    pub after: Option<Url>,
    /// sent as a bearer token to both
    pub api_key: Option<Secret>,
    /// how long it may take
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// what holds when it cannot be asked
    pub on_failure: Verdict,
}

/// Whether a text is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// it is
    Allow,
    /// it is not
    Refuse,
}

const fn transcription_timeout() -> Duration {
    Duration::from_secs(60)
}

impl Default for Moderation {
    fn default() -> Self {
        Self { before: None, after: None, api_key: None, timeout: Duration::from_secs(3), on_failure: Verdict::Allow }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default: None,
            system_prompt: None,
            timeout: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            retries: 2,
            retry_pause: Duration::from_millis(500),
            retry_pause_max: Duration::from_secs(10),
            breaker_failures: 5,
            breaker_pause: Duration::from_secs(30),
            after_text: AfterText::Continue,
            tokens_per_user_day: None,
            currency: "USD".to_owned(),
            transcription: None,
            moderation: Moderation::default(),
            providers: IndexMap::new(),
        }
    }
}

/// One configured provider.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// what it speaks
    pub r#type: Kind,
    /// where it listens, version included: `https://…/v1`. Required by all types but `demo`
    pub endpoint: Option<Url>,
    /// what it authenticates us by; absent for servers that want none. Required by `anthropic` and `dify`
    pub api_key: Option<Secret>,
    /// the vendor's name of the model. Required by `openai` and `anthropic`; a Dify application has its own
    pub model: Option<String>,
    /// what people read in lists; absent: the provider's name
    pub label: Option<String>,
    /// what this model is told before the conversation; absent: `llm.system_prompt`. A Dify application has its own
    pub system_prompt: Option<String>,
    /// tokens that prompt and answer may have together; absent: [`super::CONTEXT_TOKENS`]
    pub context_tokens: Option<u32>,
    /// tokens that an answer may have; absent: as the provider decides, and 4096 where it wants to be told
    pub max_tokens: Option<u32>,
    /// how its tokens are counted before it has counted them itself; absent: by the name of its model
    pub tokenizer: Option<Tokenizer>,
    /// whether it looks at images
    #[serde(default)]
    pub images: bool,
    /// the names of those that answer in its place when it cannot, in order
    #[serde(default)]
    pub fallback: Vec<String>,
    /// price of a million tokens that it is sent
    pub price_prompt: Option<f64>,
    /// price of a million tokens that it writes
    pub price_completion: Option<f64>,
    /// deadline of a whole answer; absent: `llm.timeout`
    #[serde(default, with = "duration::option")]
    pub timeout: Option<Duration>,
    /// how long its first text may take, longer for one that thinks; absent: `llm.first_byte_timeout`
    #[serde(default, with = "duration::option")]
    pub first_byte_timeout: Option<Duration>,
    /// how long it may be silent in the middle of its answer; absent: `llm.idle_timeout`
    #[serde(default, with = "duration::option")]
    pub idle_timeout: Option<Duration>,
    /// of `demo`: the pause before each piece; `0s` for load tests. Absent: [`super::demo::PACE`]
    #[serde(default, with = "duration::option")]
    pub pace: Option<Duration>,
    /// of `demo`: says this to everything, in one piece; for load tests. Absent: picks a text by keyword
    pub answer: Option<String>,
}

/// What a provider speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// OpenAI's chat completions, which many other servers speak too
    Openai,
    /// Anthropic's messages
    Anthropic,
    /// an application of Dify, which keeps the conversation itself
    Dify,
    /// no network and no model; answers about chatbox
    Demo,
}

/// How tokens of a text are counted before the provider has done it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tokenizer {
    /// of OpenAI's models since GPT-4o
    O200k,
    /// of OpenAI's GPT-4 and GPT-3.5
    Cl100k,
    /// a guess of ours by bytes; see [`super::estimate_tokens`]
    Estimate,
}

/// One thing that is wrong with the section.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct Problem {
    /// the key as the file has it, such as `llm.providers.fast.endpoint`
    pub key: String,
    /// what is wrong and what is accepted; holds no secret
    pub reason: String,
}

impl ProviderConfig {
    /// A provider of one kind with nothing else said about it.
    #[must_use]
    pub const fn new(kind: Kind) -> Self {
        Self {
            r#type: kind,
            endpoint: None,
            api_key: None,
            model: None,
            label: None,
            system_prompt: None,
            context_tokens: None,
            max_tokens: None,
            tokenizer: None,
            images: false,
            fallback: Vec::new(),
            price_prompt: None,
            price_completion: None,
            timeout: None,
            first_byte_timeout: None,
            idle_timeout: None,
            pace: None,
            answer: None,
        }
    }
}

impl Config {
    /// The providers in order; one `demo` when none is configured.
    pub(super) fn named(&self) -> impl Iterator<Item = (&str, ProviderConfig)> {
        let demo = self.providers.is_empty().then(|| {
            let mut config = ProviderConfig::new(Kind::Demo);
            config.label = Some("Demo".to_owned());
            ("demo", config)
        });
        self.providers.iter().map(|(name, config)| (name.as_str(), config.clone())).chain(demo)
    }
}

/// Scheme, host and port: a mistaken URL may hold a secret in the rest.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Shows neither the key nor what a mistaken endpoint may hold beside its origin.
impl fmt::Debug for ProviderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderConfig")
            .field("type", &self.r#type)
            .field("endpoint", &self.endpoint.as_ref().map(origin))
            .field("api_key", &self.api_key)
            .field("model", &self.model)
            .field("fallback", &self.fallback)
            .finish_non_exhaustive()
    }
}

/// Like that of [`ProviderConfig`].
impl fmt::Debug for Transcription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transcription")
            .field("endpoint", &origin(&self.endpoint))
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// Like that of [`ProviderConfig`].
impl fmt::Debug for Moderation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moderation")
            .field("before", &self.before.as_ref().map(origin))
            .field("after", &self.after.as_ref().map(origin))
            .finish_non_exhaustive()
    }
}
