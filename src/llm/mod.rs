//! Language models: [`Provider`] streams an answer to a [`Prompt`]. It knows no session, no store and no frame.

pub mod anthropic;
pub mod breaker;
pub mod chain;
pub mod config;
pub mod demo;
pub mod dify;
pub mod files;
pub mod http;
pub mod moderation;
pub mod openai;
pub mod probe;
mod prompt;
mod refusal;
mod request;
mod sse;
mod stream;
pub mod tokens;
pub mod transcription;

pub use breaker::Breaker;
pub use chain::Chain;
pub use config::{Config, Kind, Problem, ProviderConfig, Tokenizer};
pub use prompt::{Conversation, Messages};
pub use tokens::estimate as estimate_tokens;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use indexmap::IndexMap;

use crate::{
    chat::{ErrorCode, Usage, UserId},
    metrics::Metrics,
};
use moderation::Moderator;
use transcription::Transcriber;

/// What goes to a model.
#[derive(Clone, PartialEq, Debug)]
pub struct Prompt {
    /// what the model is told before the conversation
    pub system: Option<Arc<str>>,
    /// the conversation, oldest first; the last one is to be answered
    pub messages: Messages,
    /// the user whom it answers
    pub user_id: UserId,
    /// what the provider itself calls this conversation, if it keeps it and holds all messages but the last one;
    /// [`Chunk::Thread`] told it
    pub thread: Option<String>,
}

/// One message of a conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// who said it
    pub role: Role,
    /// the text
    pub content: Arc<str>,
    /// what rides with it
    pub files: Vec<File>,
}

impl Message {
    /// A message that is text and nothing else.
    #[must_use]
    pub fn text(role: Role, content: impl Into<Arc<str>>) -> Self {
        Self { role, content: content.into(), files: Vec::new() }
    }
}

/// A file that rides with a message. Images go to models that look at them, what is text goes as text; of others
/// the model is told the name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// its name, as its owner knows it
    pub name: Arc<str>,
    /// its media type (RFC 6838), without parameters
    pub media_type: Arc<str>,
    /// what it holds
    pub bytes: Bytes,
}

/// Who said a message, as models see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// a person
    User,
    /// the model
    Assistant,
}

/// One step of an answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Chunk {
    /// more text; never empty
    Text(String),
    /// tokens of the whole answer; the last report counts
    Usage(Usage),
    /// what the provider calls the conversation, which it keeps itself: [`Prompt::thread`] of the next message
    Thread(String),
    /// the answer ended as the model meant it to. A stream that ends without it was cut
    Done,
}

/// Why a model gave no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
#[error("provider `{provider}`: {reason}")]
pub struct Error {
    /// the provider's name in the configuration
    pub provider: Arc<str>,
    /// what whoever asked can do about it
    pub failure: Failure,
    /// what happened, for logs; holds no key and no content
    pub reason: String,
    /// what caused it
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What kind of failure it was: which decides whether the same provider is asked again, or another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// the request was not sent: no address, no connection, no TLS
    Unreachable,
    /// it refused for now, before it did any work: too many requests, overloaded, a fault of its own
    Busy {
        /// how long it wants to be left alone, where it says so (RFC 9110, section 10.2.3)
        retry_after: Option<Duration>,
    },
    /// it refused this request, and will again
    Refused,
    /// it refuses every request of ours: it does not take the key, the account, or the model's name
    Denied,
    /// a deadline passed; it may be working on it, and bill it
    Late,
    /// it broke off, or spoke what is not its interface; it may bill it
    Broken,
    /// the model, or its vendor's filter, withheld the answer
    Withheld,
}

impl Failure {
    /// What the asker is told.
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::Late => ErrorCode::LlmTimeout,
            Self::Withheld => ErrorCode::ContentRefused,
            Self::Unreachable | Self::Busy { .. } | Self::Refused | Self::Denied | Self::Broken => {
                ErrorCode::LlmUnavailable
            }
        }
    }
}

/// An answer in progress. Dropping it cuts the provider's request at once.
pub type Answer = BoxStream<'static, Result<Chunk, Error>>;

/// A language model behind some interface. It asks once and repeats nothing.
#[async_trait]
pub trait Provider: Send + Sync + std::fmt::Debug + 'static {
    /// Asks for an answer. Returns once the provider has accepted the request.
    async fn stream(&self, prompt: &Prompt) -> Result<Answer, Error>;

    /// Asks whether it can be used: it answers, takes the key, and knows the model. Takes no tokens, and is over
    /// within the first byte's deadline.
    async fn probe(&self) -> Result<Usable, Error>;

    /// Waits for what it still does about answers that were dropped. No more of them may be asked for. Ends within
    /// seconds.
    async fn close(&self) {}
}

/// What is known of a provider that can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usable {
    /// what its clock showed, where it shows it (RFC 9110, section 6.6.1)
    pub date: Option<SystemTime>,
}

/// Tokens that prompt and answer may have together when a provider's configuration does not say.
pub const CONTEXT_TOKENS: u32 = 16_384;

/// The vendor's model behind a provider.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VendorModel {
    /// what the vendor calls it
    pub name: String,
    /// tokens that an answer may have
    pub max_tokens: Option<u32>,
    /// it looks at images
    pub images: bool,
}

/// One model that sessions can choose.
#[derive(Clone, Debug)]
pub struct Model {
    /// the provider's name in the configuration: `model_id` in frames
    pub id: Arc<str>,
    /// what people read
    pub label: Arc<str>,
    /// what it is told before the conversation
    pub system_prompt: Option<Arc<str>>,
    /// tokens that prompt and answer may have together
    pub context_tokens: u32,
    /// tokens that an answer may have, where the configuration limits them
    pub max_tokens: Option<u32>,
    /// what counts the tokens of a text before the provider has done it
    pub tokenizer: Tokenizer,
    /// it looks at images
    pub images: bool,
    /// deadline of a whole answer; the provider keeps it
    pub timeout: Duration,
    /// the provider keeps conversations itself, and is told of each by [`Prompt::thread`]
    pub threads: bool,
    /// prices of a million tokens that it is sent, and that it writes
    pub prices: Option<(f64, f64)>,
    /// ids of the models that answer in its place when it cannot, in order
    pub fallback: Arc<[Arc<str>]>,
    /// whether it is asked while it keeps failing
    pub breaker: Arc<Breaker>,
    /// it says what it is told to, and no model is behind it
    pub demo: bool,
    /// what answers
    pub provider: Arc<dyn Provider>,
}

impl Model {
    /// Tokens of a text, as far as they are known before the provider has counted them.
    #[must_use]
    pub fn tokens(&self, text: &str) -> u64 {
        self.tokenizer.count(text)
    }

    /// Price of what a request took, in millionths of the configured currency; `None` without configured prices.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "tokens and prices are far below 2^53, and no price is negative"
    )]
    pub fn cost(&self, usage: &Usage) -> Option<u64> {
        let (prompt, completion) = self.prices?;
        Some((usage.prompt_tokens as f64 * prompt + usage.completion_tokens as f64 * completion).round() as u64)
    }
}

/// The models of this deployment, in configured order; there is always one. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Models {
    models: Arc<IndexMap<Arc<str>, Model>>,
    default: Arc<str>,
    moderator: Arc<Moderator>,
    transcriber: Option<Arc<Transcriber>>,
    policy: chain::Policy,
}

impl Models {
    /// Makes the configured models. Opens no connection and reads no file.
    ///
    /// # Errors
    /// Everything that is wrong with the configuration, not only the first.
    pub fn new(config: &Config) -> Result<Self, Vec<Problem>> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(problems);
        }
        let models: IndexMap<_, _> = config
            .named()
            .filter_map(|(name, provider)| model(config, name, provider))
            .map(|model| (Arc::clone(&model.id), model))
            .collect();
        let default = config.default.as_deref().or_else(|| models.keys().next().map(|id| &**id));
        let Some(default) = default.map(Arc::from) else { return Err(problems) };
        let moderator = Arc::new(Moderator::new(&config.moderation, config.connect_timeout));
        let transcriber = config.transcription.as_ref();
        let transcriber = transcriber.map(|it| Arc::new(Transcriber::new(it, config.connect_timeout)));
        let policy = chain::Policy {
            retries: config.retries,
            pause: config.retry_pause,
            pause_max: config.retry_pause_max,
            after_text: config.after_text,
        };
        Ok(Self { models: Arc::new(models), default, policy, moderator, transcriber })
    }

    /// Every model, in configured order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Model> {
        self.models.values()
    }

    /// The model of that id; `None` when it is not configured.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Model> {
        self.models.get(id)
    }

    /// Id of the model that answers when a session has chosen none, or one that is no longer configured.
    #[must_use]
    pub fn default_id(&self) -> &Arc<str> {
        &self.default
    }

    /// Waits for what the providers still do about answers that were dropped, each for some seconds at most.
    pub async fn close(&self) {
        futures_util::future::join_all(self.models.values().map(|model| model.provider.close())).await;
    }

    /// What makes text of recordings; `None` where nothing is configured to.
    #[must_use]
    pub fn transcriber(&self) -> Option<&Transcriber> {
        self.transcriber.as_deref()
    }

    /// Who is asked whether a text is allowed.
    #[must_use]
    pub fn moderator(&self) -> &Moderator {
        &self.moderator
    }

    /// Has a model answer, or, when it is no longer configured, the default one; and those of its chain in its place,
    /// if it cannot. Asks nobody before the answer is awaited.
    #[must_use]
    pub fn answer(&self, id: &str, conversation: Conversation, metrics: &Arc<Metrics>) -> Chain {
        let chain = self.chain(id).into_iter().cloned().collect();
        Chain::new(chain, self.policy, conversation, Arc::clone(metrics))
    }

    /// The models that [`Self::answer`] asks for one, in order.
    #[must_use]
    pub fn chain(&self, id: &str) -> Vec<&Model> {
        let first = self.get(id).or_else(|| self.get(&self.default));
        let mut chain: Vec<&Model> = first.into_iter().collect();
        for name in first.iter().flat_map(|model| model.fallback.iter()) {
            chain.extend(self.get(name).filter(|model| chain.iter().all(|other| other.id != model.id)));
        }
        chain
    }
}

/// `None` only for what [`Config::problems`] reports.
fn model(config: &Config, name: &str, provider: ProviderConfig) -> Option<Model> {
    let id: Arc<str> = name.into();
    let timeout = provider.timeout.unwrap_or(config.timeout);
    let tokenizer = provider.tokenizer.unwrap_or_else(|| match provider.r#type {
        Kind::Openai => Tokenizer::of_model(provider.model.as_deref().unwrap_or_default()),
        Kind::Anthropic | Kind::Dify | Kind::Demo => Tokenizer::Estimate,
    });
    // An application of Dify has its own.
    let general = config.system_prompt.as_ref().filter(|_| provider.r#type != Kind::Dify);
    Some(Model {
        label: provider.label.as_deref().unwrap_or(name).into(),
        system_prompt: provider.system_prompt.as_ref().or(general).map(|prompt| prompt.as_str().into()),
        context_tokens: provider.context_tokens.unwrap_or(CONTEXT_TOKENS),
        max_tokens: provider.max_tokens,
        tokenizer,
        images: provider.images,
        timeout,
        threads: provider.r#type == Kind::Dify,
        prices: provider.price_prompt.zip(provider.price_completion),
        fallback: provider.fallback.iter().map(|name| name.as_str().into()).collect(),
        breaker: Breaker::new(config.breaker_failures, config.breaker_pause),
        demo: matches!(provider.r#type, Kind::Demo),
        provider: answering(config, &id, provider)?,
        id,
    })
}

fn answering(config: &Config, id: &Arc<str>, provider: ProviderConfig) -> Option<Arc<dyn Provider>> {
    if provider.r#type == Kind::Demo {
        let pace = provider.pace.unwrap_or(demo::PACE);
        return Some(Arc::new(demo::Demo::new(pace, provider.answer.as_deref())));
    }
    let settings = http::Settings {
        provider: Arc::clone(id),
        endpoint: provider.endpoint?,
        api_key: provider.api_key,
        timeout: provider.timeout.unwrap_or(config.timeout),
        connect_timeout: config.connect_timeout,
        first_byte_timeout: provider.first_byte_timeout.unwrap_or(config.first_byte_timeout),
        idle_timeout: provider.idle_timeout.unwrap_or(config.idle_timeout),
    };
    let vendor = |name| VendorModel { name, max_tokens: provider.max_tokens, images: provider.images };
    match provider.r#type {
        Kind::Openai => Some(Arc::new(openai::OpenAi::new(settings, vendor(provider.model?)))),
        Kind::Anthropic => Some(Arc::new(anthropic::Anthropic::new(settings, vendor(provider.model?)))),
        Kind::Dify => Some(Arc::new(dify::Dify::new(settings, dify::Application { images: provider.images }))),
        Kind::Demo => None,
    }
}
