//! Language models: [`Provider`] streams an answer to a [`Prompt`]. It knows no session, no store and no frame.

pub mod demo;
pub mod openai;
mod sse;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use indexmap::IndexMap;
use serde::Deserialize;

use crate::chat::{ErrorCode, Usage, UserId};

/// What goes to a model.
#[derive(Clone, PartialEq, Debug)]
pub struct Prompt {
    /// what the model is told before the conversation
    pub system: Option<String>,
    /// the conversation, oldest first; the last one is to be answered
    pub messages: Vec<Message>,
    /// the user whom it answers
    pub user_id: UserId,
}

/// One message of a conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// who said it
    pub role: Role,
    /// the text
    pub content: String,
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
    /// the answer ended as the model meant it to. A stream that ends without it was cut
    Done,
}

/// Why a model gave no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
#[error("provider `{provider}`: {reason}")]
pub struct Error {
    /// the provider's name in the configuration
    pub provider: Arc<str>,
    /// `LLM_UNAVAILABLE` or `LLM_TIMEOUT`
    pub code: ErrorCode,
    /// what happened, for logs; holds no key and no content
    pub reason: String,
    /// what caused it
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// An answer in progress. Dropping it cuts the provider's request at once.
pub type Answer = BoxStream<'static, Result<Chunk, Error>>;

/// A language model behind some interface.
#[async_trait]
pub trait Provider: Send + Sync + std::fmt::Debug + 'static {
    /// Asks for an answer. Returns once the provider has accepted the request.
    async fn stream(&self, prompt: Prompt) -> Result<Answer, Error>;
}

/// The configured models.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// name of the provider that answers when a session has chosen none; absent: the first
    pub default: Option<String>,
    /// what every model is told before the conversation
    pub system_prompt: Option<String>,
    /// deadline of a whole answer
    #[serde(with = "crate::config::duration")]
    pub timeout: Duration,
    /// how long a provider may be silent
    #[serde(with = "crate::config::duration")]
    pub idle_timeout: Duration,
    /// by name, in the order of the file; empty: one `demo` provider
    pub providers: IndexMap<String, ProviderConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default: None,
            system_prompt: None,
            timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(30),
            providers: IndexMap::new(),
        }
    }
}

/// One configured provider.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// `openai` or `demo`
    pub r#type: String,
}
