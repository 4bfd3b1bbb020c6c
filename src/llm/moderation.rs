//! Asks a hook of the operator's over HTTP whether a text is allowed; off unless configured.
//!
//! The request is `POST` with JSON, `{"kind": "message" | "reply", "user_id", "session_id", "content"}`, and with the
//! key as a bearer token where there is one. The answer is a success with `{"allowed": true | false}`; what else is in
//! it is passed over.

use std::{sync::Arc, time::Duration};

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;

use super::{
    Error, Failure, Usable,
    config::{self, Verdict},
    http::{Auth, Http, Settings},
    refusal,
};
use crate::chat::{SessionId, UserId};

/// Most bytes of an answer that are read: it is one word.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// What is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// what a person wrote, before it is stored
    Message,
    /// what a model answered, before its turn ends
    Reply,
}

/// Asks the hooks. Repeats nothing.
#[derive(Debug)]
pub struct Moderator {
    before: Option<Http>,
    after: Option<Http>,
    on_failure: Verdict,
}

#[derive(Serialize)]
struct Question<'a> {
    kind: Kind,
    user_id: &'a UserId,
    session_id: SessionId,
    content: &'a str,
}

#[derive(Deserialize)]
struct Reply {
    allowed: bool,
}

impl Moderator {
    /// Opens no connection. A connection may take `connect_timeout` to open, within the hook's own deadline.
    #[must_use]
    pub fn new(config: &config::Moderation, connect_timeout: Duration) -> Self {
        let hook = |name: &str, url: &Option<url::Url>| {
            let settings = Settings {
                provider: Arc::from(name),
                endpoint: url.clone()?,
                api_key: config.api_key.clone(),
                timeout: config.timeout,
                connect_timeout: connect_timeout.min(config.timeout),
                first_byte_timeout: config.timeout,
                idle_timeout: config.timeout,
            };
            Some(Http::new(settings, Auth::Bearer))
        };
        Self {
            before: hook("moderation.before", &config.before),
            after: hook("moderation.after", &config.after),
            on_failure: config.on_failure,
        }
    }

    /// Whether anybody is asked about texts of that kind.
    #[must_use]
    pub const fn asks(&self, kind: Kind) -> bool {
        self.hook(kind).is_some()
    }

    /// What holds when a hook cannot be asked.
    #[must_use]
    pub const fn on_failure(&self) -> Verdict {
        self.on_failure
    }

    const fn hook(&self, kind: Kind) -> Option<&Http> {
        match kind {
            Kind::Message => self.before.as_ref(),
            Kind::Reply => self.after.as_ref(),
        }
    }

    /// Asks whether a hook can be reached; `None` where none is configured. It is sent `HEAD`, so that it judges and
    /// keeps nothing, and any answer but a refusal of the key will do: the interface demands no other method than
    /// `POST`.
    pub(super) fn probe(&self, kind: Kind) -> Option<impl Future<Output = Result<Usable, Error>> + Send> {
        let http = self.hook(kind)?;
        Some(async move {
            let until = Instant::now() + http.settings.timeout;
            let request = http.request(Method::HEAD, http.settings.endpoint.clone())?;
            let response = http.send(request, until).await?;
            let date = refusal::date(response.headers());
            match response.status() {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(http.refusal(response).await),
                status if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED => {
                    Err(http.refusal(response).await)
                }
                _ => Ok(Usable { date }),
            }
        })
    }

    /// Whether a text is allowed; without a request where no hook is configured. A hook that fails is logged, and then
    /// [`Self::on_failure`] holds. Takes at most the hook's deadline.
    pub async fn ask(&self, kind: Kind, user: &UserId, session: SessionId, content: &str) -> Verdict {
        self.verdict(kind, user, session, content).await.unwrap_or_else(|err| {
            warn!(error = &err as &dyn std::error::Error, verdict = ?self.on_failure, "moderation failed");
            self.on_failure
        })
    }

    /// The same for who decides about failures, and counts them.
    ///
    /// # Errors
    /// When the hook cannot be asked in time, or its answer is no verdict.
    pub async fn verdict(
        &self,
        kind: Kind,
        user: &UserId,
        session: SessionId,
        content: &str,
    ) -> Result<Verdict, Error> {
        let Some(http) = self.hook(kind) else { return Ok(Verdict::Allow) };
        let until = Instant::now() + http.settings.timeout;
        let question = Question { kind, user_id: user, session_id: session, content };
        let request = http.request(Method::POST, http.settings.endpoint.clone())?.json(&question);
        let response = http.accepted(http.send(request, until).await?).await?;
        let body = http.body(response, ANSWER_BYTES_MAX, until).await?;
        let reply: Reply = serde_json::from_slice(&body)
            .map_err(|_err| http.error(Failure::Broken, "sent an answer that is no verdict"))?;
        Ok(if reply.allowed { Verdict::Allow } else { Verdict::Refuse })
    }
}
