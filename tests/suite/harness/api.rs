//! A caller of the HTTP routes: JSON in, JSON out, with one user's token. It shares no type with the server.

use reqwest::{Method, StatusCode, header::HeaderName};
use serde_json::Value;
use url::Url;

use super::{client::http, server::Target};

/// One user's view of the API.
pub(crate) struct Api {
    base: Url,
    token: Option<String>,
    client: reqwest::Client,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
    /// the text as JSON, or null
    pub(crate) body: Value,
}

impl Api {
    pub(crate) fn new(server: &Target, user: &str) -> Self {
        Self::with_token(server, Some(server.token(user)))
    }

    pub(crate) fn staff(server: &Target, user: &str) -> Self {
        let hour = std::time::Duration::from_secs(3600);
        Self::with_token(server, Some(server.token_for(user, chatbox::auth::Role::Staff, hour)))
    }

    pub(crate) fn with_token(server: &Target, token: Option<String>) -> Self {
        Self { base: server.url.join("/chatbox").unwrap(), token, client: http() }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None, &[]).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(body), &[]).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PATCH, path, Some(body), &[]).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        headers: &[(&'static str, &str)],
    ) -> Reply {
        self.bytes(method, path, body.map(|body| body.to_string().into_bytes()), headers).await
    }

    /// Sends a body that need not be JSON.
    pub(crate) async fn bytes(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        headers: &[(&'static str, &str)],
    ) -> Reply {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        for (name, value) in headers {
            request = request.header(*name, value.as_bytes());
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.expect("a whole body");
        let body = serde_json::from_str(&text).unwrap_or_default();
        Reply { status, headers, text, body }
    }
}

impl Reply {
    pub(crate) fn header(&self, name: HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header is ASCII"))
    }

    /// Asserts that this is a problem document of that kind, which says `detail`.
    #[track_caller]
    pub(crate) fn problem(&self, status: StatusCode, code: &str, detail: &str) {
        let shown = &self.text;
        assert_eq!((self.status, self.body["code"].as_str()), (status, Some(code)), "{shown}");
        assert_eq!(self.header(reqwest::header::CONTENT_TYPE), "application/problem+json");
        assert_eq!(self.body["status"], status.as_u16(), "{shown}");
        assert!(self.body["detail"].as_str().is_some_and(|told| told.contains(detail)), "{shown} lacks {detail}");
        assert_eq!(self.body["error"], self.body["detail"], "old clients read `error`");
        let later = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
        assert_eq!(self.body["retryable"], later, "{shown}");
    }
}
