//! One request to a vendor over HTTP: addresses, keys, deadlines. What an answer means is `stream`'s and the
//! vendors'; what a refusal means is `refusal`'s.

use std::{
    error::Error as StdError,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{
    Answer, Error, Failure, Usable, refusal,
    stream::{Dialect, Parser, Reader},
};
use crate::config::secret::Secret;

/// How long a refusal's body is waited for: only its code is of interest.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Largest answer to a probe, in bytes: a list of models, of which some vendors have hundreds.
const PROBED_BYTES_MAX: usize = 8 << 20;

/// Connections that are kept open for the next request, and for how long: shorter than the keep-alive of common
/// servers and proxies, so that none closes what is about to be used.
const IDLE_CONNECTIONS_MAX: usize = 32;
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// Where a provider listens, and how long it may take.
#[derive(Clone, Debug)]
pub struct Settings {
    /// its name in the configuration
    pub provider: Arc<str>,
    /// version included; see [`super::Config::problems`] for what is accepted
    pub endpoint: Url,
    /// what it authenticates us by
    pub api_key: Option<Secret>,
    /// deadline of a whole answer
    pub timeout: Duration,
    /// how long a connection may take to open
    pub connect_timeout: Duration,
    /// how long the first text of an answer may take; pings, and events without text, do not count as one
    pub first_byte_timeout: Duration,
    /// how long it may be silent between two bytes, once there was text
    pub idle_timeout: Duration,
}

/// How a vendor wants to be shown the key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Auth {
    /// `Authorization: Bearer` (RFC 6750, section 2.1)
    Bearer,
    /// a header of its own
    Header(&'static str),
}

/// A client for one vendor. It follows no redirect, takes no proxy from the environment and repeats nothing.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) settings: Settings,
    auth: Auth,
    client: OnceLock<reqwest::Client>,
}

impl Http {
    /// Opens no connection. Certificates of authorities are loaded at the first request, so that a machine without
    /// any still starts.
    pub(super) const fn new(settings: Settings, auth: Auth) -> Self {
        Self { settings, auth, client: OnceLock::new() }
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
            .pool_idle_timeout(IDLE_CONNECTION_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
        let https = self.settings.endpoint.scheme() == "https";
        let client = if https { builder } else { builder.tls_certs_only([]) }.build()?;
        Ok(self.client.get_or_init(|| client))
    }

    /// The endpoint's address with more of a path; what is no path's character in a segment is escaped.
    pub(super) fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.settings.endpoint.clone();
        // Only addresses such as `mailto:` have no segments, and none of them is accepted as an endpoint.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// A request with the key on it.
    pub(super) fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, Error> {
        let client = self.client().map_err(|err| self.caused("the HTTP client cannot be made", err))?;
        let request = client.request(method, url);
        let Some(key) = &self.settings.api_key else { return Ok(request) };
        match self.auth {
            Auth::Bearer => Ok(request.bearer_auth(key.expose())),
            Auth::Header(name) => {
                let value = HeaderValue::from_str(key.expose());
                let mut value =
                    value.map_err(|_err| self.error(Failure::Unreachable, "has a key that no header can hold"))?;
                value.set_sensitive(true);
                Ok(request.header(name, value))
            }
        }
    }

    /// Sends a request and waits for the head of the answer, whatever its status.
    pub(super) async fn send(&self, request: RequestBuilder, until: Instant) -> Result<Response, Error> {
        match timeout_at(until, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(err)) if err.is_connect() => Err(self.caused("cannot be reached", err)),
            Ok(Err(err)) => Err(self.caused("broke off before it answered", err)),
            Err(_elapsed) => Err(self.error(Failure::Late, "sent no answer in time")),
        }
    }

    /// The response again if it is a success; else what kind of refusal it is.
    pub(super) async fn accepted(&self, response: Response) -> Result<Response, Error> {
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    /// Reads a refusal's code for the logs, and drops the rest of it.
    pub(super) async fn refusal(&self, response: Response) -> Error {
        let until = Instant::now() + REFUSAL_TIMEOUT.min(self.settings.idle_timeout);
        let (failure, reason) = refusal::read(response, until).await;
        self.error(failure, reason)
    }

    /// The whole body of an answer that is no stream, up to `bytes_max`.
    pub(super) async fn body(
        &self,
        mut response: Response,
        bytes_max: usize,
        until: Instant,
    ) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        loop {
            match timeout_at(until, response.chunk()).await {
                Ok(Ok(None)) => return Ok(body),
                Ok(Ok(Some(bytes))) if body.len() + bytes.len() > bytes_max => {
                    return Err(
                        self.error(Failure::Broken, format!("sent an answer that is larger than {bytes_max} bytes"))
                    );
                }
                Ok(Ok(Some(bytes))) => body.extend_from_slice(&bytes),
                Ok(Err(err)) => return Err(self.caused("broke off in the middle of its answer", err)),
                Err(_elapsed) => return Err(self.error(Failure::Late, "did not finish its answer in time")),
            }
        }
    }

    /// Sends a request whose answer is JSON, for a probe; `None` if the vendor does not know what is asked for.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        until: Instant,
    ) -> Result<Option<(T, Usable)>, Error> {
        let response = self.send(request, until).await?;
        if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
            return Ok(None);
        }
        let response = self.accepted(response).await?;
        let usable = Usable { date: refusal::date(response.headers()) };
        let body = self.body(response, PROBED_BYTES_MAX, until).await?;
        let read = serde_json::from_slice(&body);
        Ok(Some((read.map_err(|_err| self.error(Failure::Broken, "answered a probe with something else"))?, usable)))
    }

    /// Sends a request whose answer is a stream of events. Returns once the vendor has accepted it.
    pub(super) async fn stream<D: Dialect>(
        &self,
        request: RequestBuilder,
        start: Instant,
        dialect: D,
    ) -> Result<Answer, Error> {
        let request = request.header(ACCEPT, "text/event-stream");
        let response = self.send(request, self.first_byte(start)).await?;
        self.answer(response, start, dialect).await
    }

    /// The chunks of an answer whose head has come.
    pub(super) async fn answer<D: Dialect>(
        &self,
        response: Response,
        start: Instant,
        dialect: D,
    ) -> Result<Answer, Error> {
        let response = self.accepted(response).await?;
        let media_type = media_type(&response);
        if !media_type.is_empty() && media_type != "text/event-stream" {
            return Err(self.no_stream(response, &media_type).await);
        }
        let reader = Reader {
            response,
            deadline: start + self.settings.timeout,
            first_text: self.first_byte(start),
            idle_timeout: self.settings.idle_timeout,
            tail: None,
            provider: Arc::clone(&self.settings.provider),
            parser: Parser::new(dialect),
        };
        Ok(stream::unfold(Some(reader), Reader::step).boxed())
    }

    /// Until when the first text of a request may take that began at `start`.
    pub(super) fn first_byte(&self, start: Instant) -> Instant {
        start + self.settings.first_byte_timeout.min(self.settings.timeout)
    }

    /// A success that is no stream: some servers report errors so.
    async fn no_stream(&self, response: Response, media_type: &str) -> Error {
        let media_type: String = media_type.chars().take(100).collect();
        let mut told = self.refusal(response).await;
        told.reason = match told.reason.split_once(" (") {
            Some((_, kind)) => format!("answered with an error instead of `text/event-stream` ({kind}"),
            None => format!("answered with `{media_type}` instead of `text/event-stream`"),
        };
        told
    }

    pub(super) fn error(&self, failure: Failure, reason: impl Into<String>) -> Error {
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
}

/// An error that says more than its text, for [`Error::source`].
pub(super) type Source = Box<dyn StdError + Send + Sync>;

/// The media type of an answer without its parameters, in lower case; empty when it has none.
fn media_type(response: &Response) -> String {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}
